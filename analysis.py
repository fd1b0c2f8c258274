"""Look inside a run. Only here and in eval.py may target labels be opened; nothing trained here is reported.

    python analysis.py measure --task M_SC --data data --backbone pointnet --steps 200 --out results/measure

measure: how far the two modes of the measuring pass (`--measure train`, `--measure eval`) rank the same source samples
alike, at three moments of a run, and how far each agrees with itself on another augmentation of the same clouds.
"""

import argparse
import copy
import csv
import io
import tempfile

import numpy as np
import torch
from scipy import stats

import data
import stage1_ssl
from common import Parser, Run, UserError, add_flags, cli, generator, provenance, seed_of, settle, write_atomically
from saliency import measure, select

BATCHES = 32  # labelled batches a moment
PAIRS = ("train ~ eval", "train ~ train, dropout again", "train ~ train, another view", "eval ~ eval, another view")


# ---------------------------------------------------------------- train mode against eval mode
def scores(model, view, args, mode, draw):
    """Skewness of one view in one mode; `draw` seeds the dropout of train mode."""
    torch.manual_seed(seed_of(args.seed, "analysis dropout", draw))
    return measure(model, view.x, view.y, alpha=args.alpha, mode=mode)


def agreement(a, b, beta):
    """Spearman's rho of two scores of one batch, and the overlap of the sets they keep (by chance: about beta)."""
    kept_a, kept_b = select(a, beta), select(b, beta)
    both = int((kept_a & kept_b).sum()) / max(int(kept_a.sum()), 1)
    return float(stats.spearmanr(a.cpu(), b.cpu()).statistic), both


def compare_modes(model, task, src, args):
    """Mean and standard error over batches of `agreement`, for four pairs of scores of the same clouds."""
    model = copy.deepcopy(model)  # looks, never touches
    rows = {name: [] for name in PAIRS}
    for b in range(BATCHES):
        i = data.stream(len(src.train), args.batch_size // 2, b, args.seed, "analysis").to(args.device)
        draws = (generator(args.device, args.seed, "analysis", b, v) for v in (0, 1))
        view, other = (task.views(src.train[i], src.train_labels[i], src.key, True, g) for g in draws)
        train, again = (scores(model, view, args, "train", draw) for draw in (0, 1))
        train_other, calm = scores(model, other, args, "train", 0), scores(model, view, args, "eval", 0)
        pairs = (train, calm), (train, again), (train, train_other), (calm, scores(model, other, args, "eval", 0))
        for name, (x, y) in zip(PAIRS, pairs):
            rows[name].append(agreement(x, y, args.beta))
    return {name: (np.mean(r, 0), np.std(r, 0, ddof=1) / len(r) ** 0.5) for name, r in rows.items()}


def measure_modes(args):
    """Train one run and compare the modes at a tenth, half and the end of it; writes OUT.md and OUT.csv."""
    moments, found = {args.steps // 10, args.steps // 2, args.steps - 1}, []
    with tempfile.TemporaryDirectory() as folder, Run(folder, 1, args) as run:
        src, tgt = stage1_ssl.load(args, run)

        def observe(t, model, task):
            if t in moments:
                for pair, (mean, error) in compare_modes(model, task, src, args).items():
                    found.append((t, pair, *mean, *error))

        stage1_ssl.train(args, run, src, tgt, observe)
        name = run.config["data"]["name"]
    record = provenance(args.device)
    lines = ["| step | scores compared | Spearman | overlap of the kept |", "|---|---|---|---|"]
    for t, pair, rho, overlap, rho_se, overlap_se in found:
        lines.append(f"| {t} | {pair} | {rho:+.2f} ± {rho_se:.2f} | {overlap:.2f} ± {overlap_se:.2f} |")
    note = (
        f"{args.task}, {args.backbone}, {args.ssl}, seed {args.seed}, {args.steps} steps, {args.points} points; "
        f"a moment is n = {BATCHES} batches of {args.batch_size // 2} source clouds, mean ± standard error over them. "
        f"By chance the overlap is about {args.beta:g}.\n"
        f"Data: {name}. Device: {record['device']}. Commit: {record['commit']}."
    )
    out = io.StringIO()
    head = ("step", "pair", "spearman", "overlap", "spearman_se", "overlap_se")
    csv.writer(out, lineterminator="\n").writerows([head, *found])
    write_atomically(f"{args.out}.md", "\n".join(lines + ["", note, ""]).encode())
    write_atomically(f"{args.out}.csv", out.getvalue().encode())
    print("\n".join(lines) + f"\n\n{note}\nwrote {args.out}.md and .csv")


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure",))
    add_flags(parser, **stage1_ssl.DEFAULTS)
    args = parser.parse_args()
    if args.out is None:
        raise UserError("--out: say where the result goes, e.g. --out results/measure")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.oracle = False
    settle(args)
    {"measure": measure_modes}[args.what](args)


if __name__ == "__main__":
    cli(main)
