"""Do own clouds train as well as the official layout? Six classes of the built-in shapes, both ways, several seeds.

python extras/own_check.py --seeds 0 1 2          # -> results/own/check.md and .csv; some minutes a seed on a CPU

As own clouds: meshes (.off) in class folders, scans (.ply, .txt) with y up and without labels; what is right is counted
from predictions.csv and truth.csv afterwards. Official: the same objects as .npy and .h5, with PointDA-10's loader cut
to six classes. Points of a mesh are drawn anew, and the clouds come in another order, so the two differ as two seeds do.
"""

import csv
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine  # noqa: F401, I001 - first: how torch's threads wait
import h5py
import numpy as np

import eval as evaluation
import stage1_ssl
import stage2_pseudo
from datasets import files, pointda, shapes
from engine.base import cli, csv_text, markdown, provenance, write_atomically
from engine.flags import Parser, number
from extras import export, my_cloud

CLASSES = 6
FLAGS = "--backbone pointnet --ssl defrec --steps 400 --points 128 --batch-size 32 --device cpu".split()
STAGE2 = "--steps 200 --gcn-iters 20".split()


def call(main, *argv):
    """A script's main with these arguments."""
    old, sys.argv = sys.argv, [main.__module__, *map(str, argv)]
    try:
        main()
    finally:
        sys.argv = old


def official(folder):
    """The same objects in PointDA-10's layout: models as .npy, scans as .h5, which is y up."""
    for split in ("train", "test"):
        scans, labels = [], []
        for key, label, i, _, points in shapes.built(("M", "SC"), split):
            if label >= CLASSES:
                continue
            if key == "M":
                path = folder / "PointDA_data" / "modelnet" / pointda.CLASSES[label] / split / f"{i:03d}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, points.astype(np.float32))
            else:
                scans.append(np.stack([points[:, 0], points[:, 2], -points[:, 1]], 1))
                labels.append(label)
        path = folder / "PointDA_data" / "scannet" / f"{split}_0.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["data"], file["label"] = np.float32(scans), np.array(labels)


def one_seed(seed, folder):
    """Accuracy on the scans for testing, as own clouds and in the official layout."""
    run, other = folder / f"own{seed}", folder / f"official{seed}"
    own = "--source", folder / "mine" / "models", "--target", folder / "mine" / "scans", "--target-up", "y"
    call(stage1_ssl.main, *FLAGS, *own, "--seed", seed, "--out", run)
    call(stage2_pseudo.main, "--init", run / "stage1.pt", *STAGE2)
    try:
        call(my_cloud.main, folder / "mine" / "scans" / "test", "--ckpt", run / "stage2.pt", "--out", run)
    except SystemExit as stop:
        assert not stop.code, "a scan was not read"
    with open(folder / "mine" / "truth.csv") as file:
        truth = {row["file"]: row["class"] for row in csv.DictReader(file) if row["split"] == "test"}
    with open(run / "predictions.csv") as file:
        right = [truth[Path(row["file"]).name] == row["class"] for row in csv.DictReader(file)]
    assert len(right) == len(truth)
    call(stage1_ssl.main, *FLAGS, "--task", "M_SC", "--data", folder / "official", "--seed", seed, "--out", other)
    call(stage2_pseudo.main, "--init", other / "stage1.pt", *STAGE2)
    there = evaluation.evaluate(other)["stage2"]["source_val"]["acc"]
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
        official(folder / "official")
        pointda.CLASSES = pointda.CLASSES[:CLASSES]
        rows = [one_seed(seed, folder) for seed in args.seeds]
    record = provenance("cpu")
    lines = [[str(row["seed"]), str(row["n"]), f"{row['own']:.1%}", f"{row['official']:.1%}"] for row in rows]
    own, there = (np.mean([row[key] for row in rows]) for key in ("own", "official"))
    lines.append(["mean", "", f"{own:.1%}", f"{there:.1%}"])
    note = (
        "Target test accuracy of stage 2 at the step best on source validation. "
        f"Stage 1: {' '.join(FLAGS)}. Stage 2: {' '.join(STAGE2)}. "
        f"Own clouds minus official layout: {100 * (own - there):+.1f} points.\n"
        f"Data: built-in shapes. Device: {record['device']}. Commit: {record['commit']}."
    )
    text = "\n".join([*markdown(("seed", "test scans", "own clouds", "official layout"), lines), "", note, ""])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(f"{args.out}.md", text.encode())
    write_atomically(f"{args.out}.csv", csv_text([row | {"commit": record["commit"]} for row in rows]).encode())
    print(f"{text}wrote {args.out}.md and .csv")


if __name__ == "__main__":
    cli(main)
