"""Command lines: one line for a wrong flag, numbers with a range, and the flags of both stages."""

import argparse
import math
import os
import re
from pathlib import Path

from engine.base import CONTROL, UserError, seed_of
from engine.fast import PRECISIONS

MOST_STEPS, MOST_POINTS, MOST_BATCH = 10**9, 1 << 16, 1 << 14  # beyond these a number is a slip


class Parser(argparse.ArgumentParser):
    """argparse with one line for a wrong flag, and the module's docstring as it is written."""

    def __init__(self, *args, **kw):
        super().__init__(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kw)

    def error(self, message):
        raise UserError(f"{message}; see python {self.prog} --help")


def number(kind, low, high=math.inf, even=False):
    """An argparse type: a finite number in [low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and value < math.inf) or (even and value % 2):
            span = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} must be {'an even' if even else 'a'} number {span}")
        return value

    return parse


def path(text):
    """An argparse type: a Path whose name a terminal and a table can show."""
    if CONTROL.search(text):
        raise argparse.ArgumentTypeError(f"{text!r} has characters that cannot be shown; give another name")
    return Path(text)


LEAST = ("task", "backbone", "alpha", "points", "up")  # what a prediction needs to know of a run
LATER = {"target_up": None, "precision": "fp32"}  # what runs of an older version had, unsaid
SELECTS = ("low", "high", "random", "all", "freeze", "gap")


def add_flags(parser, tasks, backbones, scores, **default):
    """The flags of both stages, returned; stage 2 takes what is not given from the checkpoint, so has no defaults."""
    found = []
    method, protocol = parser.add_argument_group("method"), parser.add_argument_group("protocol")

    def flag(group, name, **kw):
        found.append(group.add_argument(name, default=default.get(name[2:].replace("-", "_")), **kw))

    tasks = (*tasks, *(f"{name}+pcm" for name in tasks))
    seg = "centre and scale PointSegDA's bodies, where the domains' files differ in that"
    flag(
        method,
        "--task",
        metavar="DIRECTION",
        help="M_S M_SC S_M S_SC SC_M SC_S, seg_F_A ...; S_S, seg_A_A: an oracle, WITH target labels",
    )
    flag(
        method,
        "--data",
        type=os.path.expanduser,
        help="folder that holds PointDA_data/ or PointSegDA/, or 'shapes' for the built-in shapes",
    )
    method.add_argument(
        "--source",
        metavar="DIR",
        type=os.path.expanduser,
        help="own clouds, DIR/<class>/*, in place of --task and --data",
    )
    method.add_argument(
        "--target",
        metavar="DIR",
        type=os.path.expanduser,
        help="own clouds to adapt to, with or without labels; or one .h5",
    )
    flag(method, "--backbone", choices=backbones)
    flag(method, "--ssl", choices=tasks, metavar="SSL_TASK", help=f"{', '.join(tasks)}; none: no adaptation")
    flag(method, "--select", choices=SELECTS, help="whose SSL loss stays: low is SM-DSB, all is the base")
    flag(method, "--beta", type=number(float, 0, 1), help="kept share of a batch; of gap the least")
    flag(
        method,
        "--steps",
        type=number(int, 1, MOST_STEPS),
        help="of a stage: 40000 dgcnn, 10000 pointnet, 200 epochs of bodies",
    )
    flag(method, "--seed", type=number(int, 0, 2**32 - 1))
    flag(method, "--out", type=path, help="the run's folder; without it the run names one in runs/")
    flag(protocol, "--score", choices=scores, help="what is selected by")
    flag(protocol, "--alpha", type=number(float, 0, 100), help="radius exponent, Eq. (4)")
    flag(protocol, "--measure", choices=("train", "eval"), help="mode of the pass whose gradient is read")
    flag(protocol, "--mtl", help="how the losses' gradients are joined: sum, or a comparator of docs/comparators.md")
    flag(protocol, "--points", type=number(int, 20, MOST_POINTS), help="points a cloud: 1024, of bodies 2048")
    batch = number(int, 4, MOST_BATCH, even=True)
    flag(protocol, "--batch-size", type=batch, help="both domains: 64 dgcnn, 128 pointnet, 32 bodies")
    flag(
        protocol,
        "--eval-every",
        type=number(int, 1, MOST_STEPS),
        help="steps between evaluations: max(steps // 20, 100)",
    )
    flag(protocol, "--up", choices=("z", "y", "x"), help="the axis that is up in the files of bodies and own clouds")
    flag(protocol, "--target-up", choices=("z", "y", "x"), help="the same of the target's, where it is another one")
    flag(protocol, "--unit-sphere", action=argparse.BooleanOptionalAction, help=seg)
    flag(protocol, "--precision", choices=PRECISIONS, help="of the layers' products on points; all else is fp32")
    flag(protocol, "--device", choices=("auto", "cpu", "cuda", "mps"))
    return found


def recorded(args, choices=None):
    """Which flag of a run, as a file has recorded it, is none that could be given; None where all are well.

    choices: of tasks, backbones and scores, as add_flags has them, where the run goes on and so needs every flag.
    """
    for name, value in LATER.items():
        args.setdefault(name, value)
    for flag in add_flags(Parser(), *(choices or ((), (), ()))):
        name, value = flag.dest, args.get(flag.dest)
        if name in ("out", "device") or name in ("measure", "target_up") and value is None:
            continue
        if name not in args and not choices and name not in LEAST:
            continue
        if name == "unit_sphere":
            sound = isinstance(value, bool)
        elif name == "data":  # a path may hold anything else
            paths = value if isinstance(value, list) and len(value) == 2 else [value]
            sound = all(isinstance(path, str) and "\0" not in path for path in paths)
        elif flag.type in (None, os.path.expanduser):
            sound = is_text(value) and (not flag.choices or value in flag.choices)
        else:
            sound = type(value) in (int, float) and abs(value) < 1e18 and taken(flag.type, repr(value))
        if not sound:
            return name


def is_text(value):
    """Whether a value is a text that can be shown."""
    return isinstance(value, str) and not CONTROL.search(value)


def taken(kind, text):
    """Whether an argparse type takes this text."""
    try:
        kind(text)
    except argparse.ArgumentTypeError:
        return False
    return True


def own_clouds(args):
    """--source and --target as the direction and the data that they stand for; nothing where neither is given."""
    source, target = (vars(args).pop(name, None) for name in ("source", "target"))
    if bool(source) != bool(target):
        raise UserError("--source DIR and --target DIR go together; give both")
    if source and Path(source).resolve() == Path(target).resolve():
        raise UserError(f"--target {target}: is the source, whose labels are learnt; give other clouds")
    if source:
        args.task, args.data = "own_source_target", [source, target]


def folder_name(args, default, more=""):
    """What a run calls its folder: its setting, then each flag that is not the default's; `more` are further flags.

    What a text loses on its way into a name comes back as a hash, so that x/y and x_y are two folders.
    """

    def word(text, also=""):
        plain = re.sub(rf"[^\w.{also}]+", "_", text).strip("_.")
        return plain if plain == text else f"{plain}_{seed_of(text) % 16**6:06x}"

    more = "_".join(more.split()).lstrip("-")
    name = f"{args.task}-{args.backbone}-{args.ssl}-{args.select}-b{args.beta}-s{args.seed}"
    said = {"task", "backbone", "ssl", "select", "beta", "seed", "data", "out", "device"}
    name += f"-{word(str(args.data))}" if str(args.data) != default.data else ""
    for key in [key for key in vars(default) if key not in said and getattr(args, key) != getattr(default, key)]:
        name += f"-{key}{word(str(getattr(args, key)))}"
    return name + (f"-{word(more, '+-')}" if more else "")
