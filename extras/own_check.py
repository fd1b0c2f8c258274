"""Do own clouds train as the official layout does? Six classes of the built-in shapes, both ways, several seeds.

python extras/own_check.py --seeds 0 1 2          # -> results/own/check.md and .csv; some minutes a seed on a CPU

As own clouds: meshes (.off) in class folders, scans (.ply, .txt) with y up and without labels; what is right is counted
from predictions.csv and truth.csv afterwards. Official: the same clouds in the same order as .npy and .h5, with
PointDA-10's loader cut to six classes and told that they are in the unit sphere already, scored by eval.py. So both
train on the same bits where classes, frame and split of own clouds are right, which is asserted, and what differs is
which points of a scan are predicted from.
"""

import csv
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine  # noqa: F401, I001 - first: how torch's threads wait
import h5py
import numpy as np
import torch

import eval as evaluation
import stage1_ssl
import stage2_pseudo
from datasets import files, own, pointda
from engine.base import call, cli, markdown, provenance, write_report
from engine.flags import Parser, number
from engine.run import load_checkpoint
from extras import export, my_cloud

CLASSES = 6
FLAGS = "--backbone pointnet --ssl defrec --steps 400 --points 128 --batch-size 32 --device cpu".split()
STAGE2 = "--steps 200 --gcn-iters 20".split()


def official(folder, mine):
    """The clouds of `mine` in PointDA-10's layout: models as .npy, scans, whose labels truth.csv has, as .h5, y up."""
    root = str(mine / "models"), str(mine / "scans")
    for split in ("train", "test"):
        points, y = own.load(root, "own_source", split, True)
        for i, (cloud, label) in enumerate(zip(points, y)):
            path = folder / "PointDA_data" / "modelnet" / pointda.CLASSES[label] / split / f"{i:03d}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, cloud)
        path = folder / "PointDA_data" / "scannet" / f"{split}_0.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        scans = own.load(root, "own_target", split, False)[0]
        found = own.listed(mine / "scans")
        class_of = dict(zip(map(own.digest, own.read(mine / "scans", found)), found))
        truth = {(row["split"], row["file"]): row["class"] for row in rows_of(mine / "truth.csv")}
        labels = [pointda.CLASSES.index(truth[split, class_of[own.digest(cloud)][0].name]) for cloud in scans]
        with h5py.File(path, "w") as file:
            file["data"], file["label"] = scans, np.array(labels)


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def one_seed(seed, folder):
    """Accuracy on the scans for testing, as own clouds and in the official layout."""
    run, other = folder / f"own{seed}", folder / f"official{seed}"
    where = "--source", folder / "mine" / "models", "--target", folder / "mine" / "scans", "--target-up", "y"
    call(stage1_ssl.main, *FLAGS, *where, "--seed", seed, "--out", run)
    call(stage2_pseudo.main, "--init", run / "stage1.pt", *STAGE2)
    call(my_cloud.main, folder / "mine" / "scans" / "test", "--ckpt", run / "stage2.pt", "--out", run)
    truth = {row["file"]: row["class"] for row in rows_of(folder / "mine" / "truth.csv") if row["split"] == "test"}
    right = [truth[Path(row["file"]).name] == row["class"] for row in rows_of(run / "predictions.csv")]
    assert len(right) == len(truth)
    normalise, files.normalise = files.normalise, lambda points: points
    call(stage1_ssl.main, *FLAGS, "--task", "M_SC", "--data", folder / "official", "--seed", seed, "--out", other)
    call(stage2_pseudo.main, "--init", other / "stage1.pt", *STAGE2)
    there = evaluation.evaluate(other)["stage2"]["source_val"]["acc"]
    files.normalise = normalise
    a, b = (load_checkpoint(where / "stage2.pt")["last_student"] for where in (run, other))
    assert all(torch.equal(a[name], b[name]) for name in a), "the two layouts did not train alike"
    return {"seed": seed, "n": len(right), "own": float(np.mean(right)), "official": there}


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--out", type=Path, default=Path("results/own/check"), help="path to write to, without an ending"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files.CACHE = folder / "cache"
        call(export.main, folder / "mine", "--classes", CLASSES)
        official(folder / "official", folder / "mine")
        pointda.CLASSES = pointda.CLASSES[:CLASSES]
        rows = [one_seed(seed, folder) for seed in args.seeds]
    record = provenance("cpu")
    lines = [[str(row["seed"]), str(row["n"]), f"{row['own']:.1%}", f"{row['official']:.1%}"] for row in rows]
    mine, there = (np.mean([row[key] for row in rows]) for key in ("own", "official"))
    lines.append(["mean", "", f"{mine:.1%}", f"{there:.1%}"])
    note = (
        "Target test accuracy of stage 2 at the step best on source validation. "
        f"Stage 1: {' '.join(FLAGS)}. Stage 2: {' '.join(STAGE2)}. "
        "Both layouts end with the same weights, bit for bit; own clouds are predicted from other points of a scan. "
        f"Own clouds minus official layout: {100 * (mine - there):+.1f} points.\n"
        f"Data: built-in shapes. Device: {record['device']}. Commit: {record['commit']}."
    )
    text = "\n".join([*markdown(("seed", "test scans", "own clouds", "official layout"), lines), "", note, ""])
    rows = [row | {"commit": record["commit"]} for row in rows]
    print(f"{text}{write_report(args.out, text, rows)}")


if __name__ == "__main__":
    cli(main)
