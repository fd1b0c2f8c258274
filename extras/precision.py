"""What bfloat16 products cost: one training in each precision, its accuracy, and whom SM-DSB keeps in either.

python extras/precision.py --data shapes --backbone pointnet --ssl defrec --steps 400 --points 64 --batch-size 64
                                                 # -> results/speed/precision.md and .csv; minutes on a CPU

Kept sets are compared on the same weights and the same batch: of the fp32 run, every K steps, each map once in either
precision. Two fp32 maps of one batch are equal, so all that differs is the products.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine  # noqa: F401, I001 - first: how torch's threads wait
import numpy as np
import torch

import stage1_ssl
from engine import fast
from engine.base import cli, generator, markdown, provenance, write_report
from engine.flags import Parser, add_flags, number
from paper.figures import settled, watch
from saliency import measure, select


def scores(args, model, s, precision):
    """Skewness of each map of the batch (B,) in a precision, of the pass that trains; the model stays as it is."""
    fast.set_precision(precision)
    try:
        state = torch.get_rng_state()  # dropout must be the same in both
        return measure(model, s.x, s.y, alpha=args.alpha, generator=generator(args.device, args.seed, "precision"))
    finally:
        torch.set_rng_state(state)
        fast.set_precision("fp32")


def one_run(args, precision, rows=None):
    """Train in a precision -> accuracies and seconds; rows gets a comparison of kept sets at every K-th step."""

    def look(t, model, task, src, tgt):
        if rows is not None and t % args.every == 0:
            s, _, _ = stage1_ssl.views(t, args, task, src, tgt)
            full, low = (scores(args, model, s, name) for name in ("fp32", args.low))
            kept = [select(sk, args.beta) for sk in (full, low)]
            rho = np.corrcoef(full.argsort().argsort().cpu(), low.argsort().argsort().cpu())[0, 1]
            rows.append({"step": t, "same": (kept[0] == kept[1]).float().mean().item(), "spearman": float(rho)})

    began, run = time.time(), argparse.Namespace(**vars(args) | {"precision": precision})
    seen = watch(run, look)
    target = (seen.moments[-1]["target"] == seen.tgt.test_labels.cpu().numpy()).mean()
    return seen.name, {
        "precision": precision,
        "seed": args.seed,
        "source": seen.end["source_accuracy"],
        "target": float(target),
        "seconds": round(time.time() - began, 1),
    }


def main():
    parser = Parser(description=__doc__)
    add_flags(parser, *stage1_ssl.CHOICES, **stage1_ssl.SETTINGS)
    parser.add_argument("--low", choices=fast.PRECISIONS[1:], default="bf16", help="what fp32 is compared with")
    parser.add_argument("--every", type=number(int, 1), help="compare at every K-th step")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0], help="one training of each, twice")
    args, kept, runs = parser.parse_args(), [], []
    args.what, args.out = "precision", args.out or Path("results/speed/precision")
    settled(args)
    for args.seed in args.seeds:
        for precision in ("fp32", args.low):
            name, row = one_run(args, precision, kept if precision == "fp32" else None)
            runs.append(row)
    record = provenance(args.device)
    cells = lambda row: [row["precision"], str(row["seed"]), f"{row['source']:.1%}", f"{row['target']:.1%}"]
    lines = markdown(("precision", "seed", "source", "target, last"), map(cells, runs))
    same, rho = (float(np.mean([row[key] for row in kept])) for key in ("same", "spearman"))
    note = (
        f"{args.task}, {args.backbone}, {args.ssl}, select {args.select} {args.beta:g}, {args.steps} steps, "
        f"{args.points} points, {args.batch_size} clouds. On the same weights and batches {same:.1%} of the samples "
        f"have the same fate in fp32 and {args.low} (mean of {len(kept)} batches); rank correlation of their scores "
        f"{rho:.3f}.\nData: {name}. Device: {record['device']}. Commit: {record['commit']}."
    )
    text = "\n".join([*lines, "", note, ""])
    rows = [row | {"commit": record["commit"]} for row in [*runs, *kept]]
    print(f"{text}{write_report(args.out, text, rows)}")


if __name__ == "__main__":
    cli(main)
