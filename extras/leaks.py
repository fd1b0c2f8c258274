"""Does what must stay unseen reach the weights? Every setting is trained anew with it changed, bit for bit compared.

python -m extras.leaks            # or make leaks -> results/reliability/leaks.md and .csv; minutes on one core

Changed is one thing at a time: the target's labels are permuted, or removed; its clouds for testing are others; the
source's clouds for validation are others. The first three must leave every tensor as it was, of the last step and of
the chosen moment. Validation chooses the moment, by design, so there the last step's weights alone must not move; each
stage 2 starts from the untouched run's stage 1. As a comparison that cannot fail says nothing, the source's labels are
permuted, too, and must change the weights. Exit code 2 where one of this does not hold.
"""

import engine  # noqa: F401, I001 - first: how torch's threads wait
import contextlib
import importlib.util
import io
import tempfile
from argparse import Namespace
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import torch

import data
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from datasets import files, pointda
from engine.base import UserError, cli, markdown, provenance, write_report
from engine.flags import SELECTS, Parser, number
from engine.run import Run, weights
from extras import surgery
from saliency import SCORES

LABELS, NO_LABELS, TEST = "target labels permuted", "target labels removed", "target test clouds replaced"
VALIDATION, CONTROL = "source validation clouds replaced", "source labels permuted"
CHANGES = (LABELS, NO_LABELS, TEST, VALIDATION, CONTROL)
TINY = dict(backbone="pointnet", points=24, batch_size=8, steps=3, eval_every=2, device="cpu")
STAGE2 = stage2_pseudo.SETTINGS | {"gcn_iters": 2}


# ---------------------------------------------------------------- few clouds, and one thing of them changed
@lru_cache
def few(keys, seed):
    """Some built-in clouds of 64 points: (key, split) -> points (n, 64, 3), labels (n,) or (n, 64), other points."""
    found, rng = {}, np.random.default_rng(seed)
    for key in keys:
        domain = data.load_domain("shapes", key)
        for split in domain.splits:
            x, y = getattr(domain, split).numpy(), getattr(domain, f"{split}_labels").numpy()
            some, points = np.arange(0, len(x), len(x) // 10), rng.permutation(x.shape[1])[:64]
            x, y = x[some][:, points], y[some][:, points] if y.ndim == 2 else y[some]
            found[key, split] = x, y, x[::-1, :, [1, 0, 2]] * np.float32(0.9)
    return found


def changed(clouds, change, source, target, seed):
    """The same clouds with one of CHANGES: (key, split) -> points, labels."""
    rng, found = np.random.default_rng(seed), {}
    val = "val" if (source, "val") in clouds else "test"
    for (key, split), (x, y, others) in clouds.items():
        if (change, key) in ((LABELS, target), (CONTROL, source)):
            y = rng.permuted(y, axis=-1)
        if (change, key) == (NO_LABELS, target):
            y = None
        if (change, key, split) in ((TEST, target, "test"), (VALIDATION, source, val)):
            x = others
        found[key, split] = np.ascontiguousarray(x), y
    return found


@contextlib.contextmanager
def in_memory(clouds, folder):
    """The data set that serves these clouds in place of the built-in ones -> what --data has to be."""
    dataset = data.dataset_of(next(iter(clouds))[0])
    load = dataset.load
    dataset.load = lambda root, key, split, labels: (clouds[key, split][0], clouds[key, split][1] if labels else None)
    try:
        yield "shapes"
    finally:
        dataset.load = load


@contextlib.contextmanager
def in_folders(clouds, folder):
    """Own clouds, <key>/<split>/<class>/*, without labels <key>/<split>/* -> what --data has to be."""
    for (key, split), (x, y) in clouds.items():
        for i, cloud in enumerate(x):
            path = folder / key / split / ("" if y is None else pointda.CLASSES[y[i]]) / f"{i}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, cloud)
    cache, files.CACHE = files.CACHE, folder / "cache"
    try:
        yield [str(folder / key) for key in dict.fromkeys(key for key, _ in clouds)]
    finally:
        files.CACHE = cache


@contextlib.contextmanager
def in_h5(clouds, folder):
    """The same with a target in one .h5, which has no splits."""
    (source, target), parts = dict.fromkeys(key for key, _ in clouds), ("train", "test")
    with in_folders({place: value for place, value in clouds.items() if place[0] == source}, folder) as root:
        with h5py.File(folder / "scans.h5", "w") as file:
            file["data"] = np.concatenate([clouds[target, part][0] for part in parts])
            if clouds[target, "test"][1] is not None:
                file["label"] = np.concatenate([clouds[target, part][1] for part in parts])
        yield [*root, str(folder / "scans.h5")]


# ---------------------------------------------------------------- what is trained
@dataclass
class Setting:
    """Flags of both stages, in words, and how its clouds are served."""

    name: str
    flags: dict
    stage2: dict = field(default_factory=dict)
    serve: object = in_memory
    of: str = "M_SC"  # whose clouds

    task = property(lambda self: self.of if self.serve is in_memory else "own_source_target")
    domains = property(lambda self: (data.direction(self.of).source, data.direction(self.of).target))
    # an .h5 is split by the clouds' contents: another cloud for testing is another split
    changes = property(lambda self: [c for c in CHANGES if c != TEST or self.serve is not in_h5])


def settings():
    """Every task, score, selection, installed way to join the losses, backbone, kind of data, and flag of stage 2."""
    mixes = [f"{name}{more}" for name in ssl_tasks.TASKS for more in ("", "+pcm")]
    found = [Setting(name, {"ssl": name} | ({"backbone": "pointdan"} if "pointdan" in name else {})) for name in mixes]
    found += [Setting(f"--score {name}", {"ssl": "defrec", "score": name}) for name in SCORES if name != "skewness"]
    found += [Setting(f"--select {name}", {"ssl": "defrec", "select": name}) for name in SELECTS if name != "low"]
    found += [Setting("--measure eval", {"ssl": "defrec", "measure": "eval"})]
    for name in surgery.METHODS:
        needs = {"upgrad": "quadprog"}.get(name, "torchjd" if name in surgery.TORCHJD else "torch")
        if importlib.util.find_spec(needs):
            found.append(Setting(f"--mtl {name}", {"ssl": "defrec", "select": "all", "mtl": name}))
    for name in ("paretoda", "cgdm"):  # the whole methods
        found.append(Setting(f"{name}, whole", {"ssl": name, "select": "all", "mtl": name}))
    found += [Setting("dgcnn", {"ssl": "selfdist", "backbone": "dgcnn"})]
    found += [Setting("--scratch", {"ssl": "selfdist"}, {"scratch": True})]
    found += [Setting("--filter-stream", {"ssl": "defrec"}, {"filter_stream": True})]
    bodies = [name for name in mixes if ssl_tasks.TASKS[name.partition("+")[0]].bodies]
    found += [Setting(f"bodies, {name}", {"ssl": name}, {"gcn_iters": 0}, of="seg_F_M") for name in bodies]
    found += [Setting("own folders", {"ssl": "selfdist"}, serve=in_folders)]
    return found + [Setting("own .h5", {"ssl": "selfdist"}, serve=in_h5)]


class Kept(Run):
    """A run whose checkpoint stays in memory; none here is resumed."""

    def _save(self, done, parts):
        pass

    def finish(self, student):
        self.payload = {"config": self.config, **self.best, "last_student": weights(student)}


def stage(n, setting, clouds, seed, start=None):
    """A finished stage on these clouds as its checkpoint; start: of stage 1, for stage 2."""
    with tempfile.TemporaryDirectory() as folder, setting.serve(clouds, Path(folder) / "set") as root:
        flags = TINY | {"task": setting.task, "data": root, "seed": seed} | setting.flags
        args = stage1_ssl.settle(Namespace(**stage1_ssl.SETTINGS | flags | {"out": Path(folder) / "run"}))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if n == 2:
                args = Namespace(**vars(args) | STAGE2 | setting.stage2)
            with Kept(args.out, n, args) as run:
                domains = stage1_ssl.load(args, run)
                stage1_ssl.train(args, run, *domains) if n == 1 else stage2_pseudo.train(args, run, *domains, start)
        return run.payload


def tensors(payload, parts):
    """The tensors of these parts of a checkpoint, by name."""
    return {(part, name): tensor for part in parts if part in payload for name, tensor in payload[part].items()}


def check(setting, seed):
    """One setting under each change: rows with how many tensors were compared, and how many differ."""
    clouds = few(setting.domains, seed)
    version = lambda change: changed(clouds, change, *setting.domains, seed)
    base, rows = {1: stage(1, setting, version(None), seed)}, []
    base[2] = stage(2, setting, version(None), seed, base[1])
    for change in setting.changes:
        parts = ("last_student",) if change == VALIDATION else ("student", "last_student", "task", "teacher")
        for n in (1, 2):
            mine = tensors(base[n], parts)
            other = tensors(stage(n, setting, version(change), seed, base[1]), parts)
            differing = sum(name not in other or not torch.equal(mine[name], other[name]) for name in mine)
            differing += len(other.keys() - mine.keys())
            held = differing > 0 if change == CONTROL else differing == 0
            rows.append(dict(setting=setting.name, stage=n, changed=change, tensors=len(mine), differing=differing))
            rows[-1]["holds"] = held
    return rows


def table(rows):
    """A line for each setting, both stages together: how many tensors differ of how many."""
    lines = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        cells = [[row for row in rows if (row["setting"], row["changed"]) == (name, change)] for change in CHANGES]
        add = lambda own, key: sum(row[key] for row in own)
        lines.append([name, *(f"{add(c, 'differing')} of {add(c, 'tensors')}" if c else "–" for c in cells)])
    return markdown(["setting", *CHANGES[:3], f"{VALIDATION}: last step", f"{CONTROL}: must differ"], lines)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--seed", type=number(int, 0), default=0)
    parser.add_argument("--only", nargs="+", default=[], help="settings by their names in the table")
    parser.add_argument("--out", type=Path, default=Path("results/reliability/leaks"), help="path without an ending")
    args = parser.parse_args()
    chosen, rows = [setting for setting in settings() if not args.only or setting.name in args.only], []
    if not chosen:
        raise UserError(f"--only: unknown; choose of {', '.join(setting.name for setting in settings())}")
    for setting in chosen:
        rows += check(setting, args.seed)
        print("\n".join(table(rows)[-1:]), flush=True)
    record, broken = provenance("cpu"), [row for row in rows if not row["holds"]]
    note = (
        f"{len(rows) - len(broken)} of {len(rows)} comparisons hold. Tensors that differ, of those compared; both "
        f"stages, {TINY['steps']} steps each, clouds of {TINY['points']} points, seed {args.seed}. PointNet, DefRec "
        "or what a line names. An .h5 has no split of its own, so none of its clouds is one for testing alone.\n"
        f"Data: built-in shapes and bodies. Device: {record['device']}. Commit: {record['commit']}."
    )
    text = "\n".join(["# Label guard: `make leaks`", "", *table(rows), "", note, ""])
    print(f"{note}\n{write_report(args.out, text, rows)}")
    if broken:
        first = "{setting}, stage {stage}, {changed}: {differing} of {tensors} tensors differ".format(**broken[0])
        raise UserError(f"{first}; what it trains on depends on what it must not see, or on nothing: mend it")


if __name__ == "__main__":
    cli(main)
