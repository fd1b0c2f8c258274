"""Command lines: one line for a wrong flag, numbers with a range, and the flags of both stages."""

import argparse
import math
import os
import re
from pathlib import Path

from engine.base import UserError, seed_of


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
        if not (low <= value <= high and math.isfinite(value)) or (even and value % 2):
            span = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"{text!r} must be {'an even' if even else 'a'} number {span}")
        return value

    return parse


SELECTS = ("low", "high", "random", "all", "freeze")


def add_flags(parser, tasks, backbones, scores, **default):
    """The flags of both stages; stage 2 gives no defaults and takes what is not given from the checkpoint."""
    method, protocol = parser.add_argument_group("method"), parser.add_argument_group("protocol")

    def flag(group, name, **kw):
        group.add_argument(name, default=default.get(name[2:].replace("-", "_")), **kw)

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
    flag(method, "--beta", type=number(float, 0, 1), help="kept share of a batch")
    flag(method, "--steps", type=number(int, 1), help="of a stage: 40000 dgcnn, 10000 pointnet, 200 epochs of bodies")
    flag(method, "--seed", type=number(int, 0, 2**32 - 1))
    flag(method, "--out", type=Path, help="the run's folder; without it the run names one in runs/")
    flag(protocol, "--score", choices=scores, help="what is selected by")
    flag(protocol, "--alpha", type=number(float, 0), help="radius exponent, Eq. (4)")
    flag(protocol, "--measure", choices=("train", "eval"), help="mode of the pass whose gradient is read")
    flag(protocol, "--mtl", help="how the losses' gradients are joined: sum, or a comparator: pcgrad, cagrad, cgdm")
    flag(protocol, "--points", type=number(int, 20), help="points a cloud: 1024, of bodies 2048")
    flag(
        protocol, "--batch-size", type=number(int, 4, even=True), help="both domains: 64 dgcnn, 128 pointnet, 32 bodies"
    )
    flag(protocol, "--eval-every", type=number(int, 1), help="steps between evaluations: max(steps // 20, 100)")
    flag(protocol, "--up", choices=("z", "y", "x"), help="the axis that is up in the files of bodies and own clouds")
    flag(protocol, "--target-up", choices=("z", "y", "x"), help="the same of the target's, where it is another one")
    flag(protocol, "--unit-sphere", action=argparse.BooleanOptionalAction, help=seg)
    flag(protocol, "--device", choices=("auto", "cpu", "cuda"))


def own_clouds(args):
    """--source and --target as the direction and the data that they stand for; nothing where neither is given."""
    source, target = (vars(args).pop(name, None) for name in ("source", "target"))
    if bool(source) != bool(target):
        raise UserError("--source DIR and --target DIR go together; give both")
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
