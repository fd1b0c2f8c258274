"""Does every task learn, on both backbones, alone and under SM-DSB? A short run of each, and what must hold of it.

    python extras/learns.py --data data                    # 4 tasks x 2 backbones x {all, low}, 30 steps each
    python extras/learns.py --data data --task seg_F_M     # bodies: DefRec, DefRec+PCM, MLSP

A run passes when the classification loss is lower in its last third than in its first, every SSL loss and every
gradient is finite, and each step kept as many samples as it was asked to. No accuracy is measured here.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine  # noqa: F401, I001 - first: how torch's threads wait
import torch

import data
import stage1_ssl
from engine.base import cli, provenance, write_atomically
from engine.flags import Parser, number
from engine.run import Run

TASKS, BACKBONES, SELECTS = ("selfdist", "defrec", "gast", "mlsp"), ("pointnet", "dgcnn"), ("all", "low")
BODIES = ("defrec", "defrec+pcm", "mlsp"), ("dgcnn-seg",), SELECTS  # the same for PointSegDA
HEAD = ["task", "backbone", "select", "L_c, first third", "last third", "L_ssl, first", "last", "kept", "gradients", ""]


def short_run(flags):
    """Train stage 1 in a temporary folder: log rows, and whether the gradients of each step were finite."""
    args = stage1_ssl.settle(argparse.Namespace(**stage1_ssl.SETTINGS | {"eval_every": flags["steps"]} | flags))
    finite, models = [], []

    def observe(t, model, task):
        models[:] = [model, task]
        if t:  # the gradients of the step before are still there
            finite.append(finite_gradients(model, task))

    with tempfile.TemporaryDirectory() as folder:
        args.out = Path(folder)
        with Run(folder, 1, args) as run:
            src, tgt = stage1_ssl.load(args, run)
            stage1_ssl.train(args, run, src, tgt, observe)
            name = run.config["data"]["name"]
        rows = [json.loads(line) for line in (args.out / "log.jsonl").read_text().splitlines()]
    return rows, [*finite, finite_gradients(*models)], name


def finite_gradients(*modules):
    grads = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    return bool(grads) and all(bool(g.isfinite().all()) for g in grads)


def verdict(rows, finite, asked):
    """Means of the first and last third of a run, and what must hold of it -> dict with `ok`."""
    n = max(len(rows) // 3, 1)
    mean = lambda key, part: sum(row[key] for row in part) / len(part)
    found = {"cls": (mean("cls", rows[:n]), mean("cls", rows[-n:]))}
    found["ssl"] = (mean("ssl_tgt", rows[:n]), mean("ssl_tgt", rows[-n:]))
    found["kept"] = sorted({int(row["kept"]) for row in rows})
    found["finite"] = all(finite)
    ssl_finite = all(math.isfinite(row[key]) for row in rows for key in ("ssl_src", "ssl_tgt"))
    found["ok"] = found["cls"][1] < found["cls"][0] and ssl_finite and found["finite"] and found["kept"] == [asked]
    return found


def asked_for(select, beta, B):
    """How many of B samples a step is to keep."""
    return B if select == "all" else min(B, math.floor(round(B * beta, 9) + 0.5))


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--data", default="data", help="as in stage1_ssl.py")
    parser.add_argument("--task", default="M_SC")
    parser.add_argument("--points", type=number(int, 20), default=128)
    parser.add_argument("--batch-size", type=number(int, 4, even=True), default=128)
    parser.add_argument("--steps", type=number(int, 3), default=30)
    parser.add_argument("--seed", type=number(int, 0), default=0)
    parser.add_argument("--up", choices=("z", "y"), default="z", help="of bodies, as in stage1_ssl.py")
    parser.add_argument("--unit-sphere", action="store_true", help="likewise")
    parser.add_argument("--out", type=Path, default=Path("results/small/learns"))
    args = parser.parse_args()
    lines, passed = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)], []
    shared = {key: value for key, value in vars(args).items() if key != "out"}
    cells = BODIES if data.direction(args.task).per_point else (TASKS, BACKBONES, SELECTS)
    for ssl, backbone, select in itertools.product(*cells):
        rows, finite, name = short_run({**shared, "ssl": ssl, "backbone": backbone, "select": select})
        found = verdict(rows, finite, asked_for(select, stage1_ssl.SETTINGS["beta"], args.batch_size // 2))
        passed.append(found["ok"])
        numbers = [f"{value:.3f}" for value in (*found["cls"], *found["ssl"])]
        kept = f"{'/'.join(map(str, found['kept']))} of {args.batch_size // 2}"
        finite = "finite" if found["finite"] else "NOT FINITE"
        lines.append(
            "| " + " | ".join([ssl, backbone, select, *numbers, kept, finite, "ok" if found["ok"] else "FAILS"]) + " |"
        )
        print(lines[-1], flush=True)
    record = provenance("cuda" if torch.cuda.is_available() else "cpu")
    note = (
        f"{sum(passed)} of {len(passed)} pass. {args.task}, {args.steps} steps, {args.points} points, "
        f"{args.batch_size // 2} + {args.batch_size // 2} clouds, seed {args.seed}; means over thirds of the run.\n"
        f"Data: {name}. Device: {record['device']}. Commit: {record['commit']}."
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        f"{args.out}.md", "\n".join(["# Does every task learn? `make trains`", "", *lines, "", note, ""]).encode()
    )
    print(f"{note}\nwrote {args.out}.md")


if __name__ == "__main__":
    cli(main)
