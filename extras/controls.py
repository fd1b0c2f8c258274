"""Controls that must fail or hold: labels that say nothing teach nothing, and labels say what their names say.

python -m extras.controls                 # or make controls -> results/reliability/controls.md; minutes on one core
python -m extras.controls --data data --task M_S

Twice the same short run of DefRec, once with the source's labels shuffled, of training and validation alike.
As they are, accuracy must lie far above chance, on source validation and on the target; shuffled, it must be chance.
Then the order of the labels: a cloud of each class folder must carry the place of the folder's name in CLASSES, and the
classes that a network learnt on the source must be the target's of the same number, rather than a renaming of them.
Exit code 2 names what does not hold.
"""

import engine  # noqa: F401, I001 - first: how torch's threads wait
import contextlib
import json
import math
import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom, binomtest

import data
import stage1_ssl
from datasets import pointda
from engine.base import UserError, cli, generator, markdown, provenance, write_report
from engine.flags import Parser, number
from engine.metrics import confusion
from engine.run import Run

SHORT = dict(backbone="pointnet", ssl="defrec", select="all", points=64, batch_size=64, eval_every=50)
RISK = 1e-3  # that a sound run is called broken, for each bound


# ---------------------------------------------------------------- shuffled labels
def shuffled(domain, seed):
    """A source whose labels, of each split, are dealt to other clouds."""
    g = generator("cpu", seed, "shuffled")
    deal = lambda y: y[torch.randperm(len(y), generator=g)]
    return replace(domain, train_labels=deal(domain.train_labels), test_labels=deal(domain.test_labels))


@contextlib.contextmanager
def dealt(key, seed):
    """As long as this lasts, the domain `key` is loaded with shuffled labels."""
    load = data.load_domain
    data.load_domain = lambda root, k, labels=True: (
        shuffled(load(root, k, labels), seed) if k == key and labels else load(root, k, labels)
    )
    try:
        yield
    finally:
        data.load_domain = load


def short_run(flags):
    """The last step's confusion on source validation and on the target, by true labels, and the log's rows."""
    with tempfile.TemporaryDirectory() as folder:
        args = stage1_ssl.settle(Namespace(**stage1_ssl.SETTINGS | SHORT | flags | {"out": Path(folder)}))
        with Run(args.out, 1, args) as run:
            src, tgt = stage1_ssl.load(args, run)
            stage1_ssl.train(args, run, src, tgt)
            name = run.config["data"]["name"]
        with np.load(args.out / "preds1.npz", allow_pickle=False) as kept:
            predicted = {side: kept[side][-1].astype(np.int64) for side in ("source", "target")}
        rows = [json.loads(line) for line in (args.out / "log.jsonl").read_text().splitlines()]
    truth = {"source": src.validation[1].cpu().numpy()}
    truth["target"] = data.load_domain(args.data, tgt.key).test_labels.numpy()  # opened after training
    return {side: confusion(truth[side], predicted[side], len(src.classes)) for side in truth}, rows, name


def worth(matrix):
    """How many independent draws the clouds of a confusion matrix (C, C) are worth against a chance of 1 / C.

    Clouds of a class are predicted alike, so that their hits come together. Over all ways to name the predicted classes
    the hits' variance is that of their doubly centred counts; n p (1 - p) of independent ones is set beside it.
    """
    n, C = matrix.sum(), len(matrix)
    centred = matrix - matrix.mean(0) - matrix.mean(1, keepdims=True) + matrix.mean()
    variance = (centred**2).sum() / (C - 1) / n**2
    return int(n) if variance == 0 else max(1, min(int(n), math.floor((1 / C) * (1 - 1 / C) / variance)))


def hits(matrix):
    """Right clouds, and all."""
    return int(np.trace(matrix)), int(matrix.sum())


def chance_bound(matrix):
    """The accuracy that labels which say nothing stay below, but for RISK: a binomial's quantile."""
    n = worth(matrix)
    return float(binom.ppf(1 - RISK, n, 1 / len(matrix)) / n)


def surely(matrix):
    """The accuracy that lies below the true one, but for RISK: a binomial's lower confidence bound."""
    return float(binomtest(*hits(matrix)).proportion_ci(1 - 2 * RISK).low)


def judge_shuffled(plain, other):
    """Rows of both sides from confusion matrices as they are, and with shuffled labels."""
    rows = []
    for side, what in (("source", "source validation"), ("target", "target test")):
        right, n = hits(other[side])
        bound, low = chance_bound(other[side]), surely(plain[side])
        said = f"{right / n:.1%} of {n}, chance ends at {bound:.1%}"
        rows.append({"control": f"shuffled labels, {what}", "found": said, "holds": right / n <= bound})
        right, n = hits(plain[side])
        said = f"{right / n:.1%} of {n}, surely above {low:.1%}; shuffled, chance ends at {bound:.1%}"
        rows.append({"control": f"labels as they are, {what}", "found": said, "holds": low > bound})
    return rows


# ---------------------------------------------------------------- the order of the labels
def judge_order(matrix, classes):
    """A row: whether the best one-to-one naming of the predicted classes leaves most of them as they are.

    Counts are set beside those of their row and column: a class that is seen everywhere takes no other's place.
    """
    near = matrix / np.sqrt(matrix.sum(1, keepdims=True) * matrix.sum(0)).clip(1)
    truth, named = linear_sum_assignment(near, maximize=True)
    kept = int((truth == named).sum())
    others = [f"{classes[i]} is taken for {classes[j]}" for i, j in zip(truth, named) if i != j]
    said = f"{kept} of {len(classes)} classes are their own best name" + "".join(f"; {text}" for text in others)
    return {"control": "label order, target test", "found": said, "holds": 2 * kept > len(classes)}


def shape_of(points):
    """Sorted distances from the centre over the largest, (n, 3) -> (n,): turning and scaling a cloud change nothing."""
    r = np.linalg.norm(points - points.mean(0), axis=1)
    return np.sort(r) / r.max()


def judge_folders(root, key, load=pointda.load):
    """A row: the first cloud of each class folder is found among those loaded, its label the place of the name."""
    points, labels = load(root, key, "train", True)
    shapes, wrong, seen = np.stack([shape_of(x) for x in points]), [], 0
    for c, name in enumerate(pointda.CLASSES):
        folder = Path(root) / "PointDA_data" / pointda.DOMAINS[key] / name / "train"
        for path in sorted(folder.glob("*.npy"))[:1]:
            own = shape_of(np.load(path, allow_pickle=False).astype(np.float64))
            same = np.flatnonzero(np.abs(shapes - own).max(1) < 1e-4) if len(own) == shapes.shape[1] else []
            seen += 1
            if c not in labels[same]:
                wrong.append(f"{name}: {'not found' if not len(same) else pointda.CLASSES[labels[same[0]]]}")
    said = f"{seen - len(wrong)} of {seen} folders" + "".join(f"; {text}" for text in wrong)
    return {
        "control": f"labels are folders' names, {pointda.DOMAINS[key]}",
        "found": said,
        "holds": seen > 0 and not wrong,
    }


def judge_log(rows):
    """A row: each step of a measured run has counted the maps without a score."""
    counted = sum("flat" in row for row in rows)
    said = f"`flat` in {counted} of {len(rows)} rows, {sum(row.get('flat', 0) for row in rows):g} maps"
    return {"control": "maps without a score are counted", "found": said, "holds": counted == len(rows) > 0}


# ---------------------------------------------------------------- command line
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--data", default="shapes", help="as in stage1_ssl.py")
    parser.add_argument("--task", default="M_S", help="a direction of PointDA-10 or of the built-in shapes")
    parser.add_argument("--steps", type=number(int, 1), default=300)
    parser.add_argument("--seed", type=number(int, 0), default=0)
    parser.add_argument("--out", type=Path, default=Path("results/reliability/controls"), help="path without an ending")
    args = parser.parse_args()
    way = data.direction(args.task)
    if way.dataset is not pointda or way.oracle:
        raise UserError(f"--task {args.task}: its classes have no fixed names; give one of M_S, M_SC, ...")
    flags = dict(task=args.task, data=args.data, steps=args.steps, seed=args.seed, device="cpu", measure="train")
    plain, log, name = short_run(flags)
    with dealt(way.source, args.seed):
        other = short_run(flags)[0]
    rows = [*judge_shuffled(plain, other), judge_order(plain["target"], pointda.CLASSES), judge_log(log)]
    if args.data != "shapes":
        rows += [judge_folders(args.data, key) for key in (way.source, way.target) if key not in pointda.SCANS]
    record, broken = provenance("cpu"), [row for row in rows if not row["holds"]]
    note = (
        f"{len(rows) - len(broken)} of {len(rows)} hold; each bound errs once in {1 / RISK:g}. {args.task}, PointNet, "
        f"DefRec, {args.steps} steps, {SHORT['points']} points, 32 + 32 clouds, seed {args.seed}, last step.\n"
        f"Data: {name}. Device: {record['device']}. Commit: {record['commit']}."
    )
    lines = [[row["control"], row["found"], "yes" if row["holds"] else "NO"] for row in rows]
    text = "\n".join([*markdown(("control", "found", "holds"), lines), "", note, ""])
    wrote = write_report(args.out, f"# Controls: `make controls`\n\n{text}", rows)
    print(f"{text}{wrote}")
    if broken:
        said = "{control}: {found}".format(**broken[0])
        raise UserError(f"{said}; see the table, and trust no run on this data until it holds")


if __name__ == "__main__":
    cli(main)
