"""Wrong pseudo-labels, a known share of them: what they do to the score, to who is selected, and to accuracy.

The pseudo-labels of stage 2 are replaced by the true labels, of which a share is made wrong, each any other class with
equal chance. They stay as they are, and all are confident, so that the share is known throughout.
"""

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch

import data
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from engine.base import generator
from engine.flags import add_flags, number
from engine.metrics import describe
from engine.run import Run
from models import model_of
from paper import command, draw, evidence, flag
from paper.conflict import skewness_of
from paper.figures import stage1_of
from paper.tables import GATE
from saliency import select

BATCHES = 64  # labelled batches that are scored at each rate
RATES = (0.0, 0.2, 0.4, 0.6)
GROUPS = ("source", "right", "wrong")
SETTINGS = {"low": ("low", None), "low, not perturbed": ("low", [0.0, 0.0]), "all": ("all", None)}  # select, perturb


def noisy(truth, rate, classes, seed):
    """Labels (n,) of which floor(rate n + 1/2) are any other class with equal chance; nested: a higher rate adds."""
    g = generator("cpu", seed, "label noise")
    order, shift = torch.randperm(len(truth), generator=g), torch.randint(1, classes, truth.shape, generator=g)
    wrong = order[: int(rate * len(truth) + 0.5)]
    labels = truth.clone()
    labels[wrong] = (truth.cpu()[wrong] + shift[wrong]).to(truth.device) % classes
    return labels


# ---------------------------------------------------------------- scores and masks, nothing is trained
def scores_at(rate, args, model, task, src, tgt):
    """Each labelled sample of BATCHES batches of stage 2 as a row: group, skewness in both modes, kept or not."""
    pseudo = stage2_pseudo.PseudoLabels(describe(model, data.evaluation_subset(tgt.train, args.points))[0].softmax(-1))
    pseudo.label = noisy(tgt.train_labels, rate, len(src.classes), args.seed)
    rows = []
    for t in range(BATCHES):
        s, _, _, _, who, _ = stage2_pseudo.views(t, args, task, src, tgt, pseudo)
        right = pseudo.label[who] == tgt.train_labels[who]
        group = torch.where(who < 0, 0, 2 - right.long())
        row = {"group": group, "shift": stage2_pseudo.perturbation(t, args, who >= 0)}
        for mode in ("train", "eval"):
            row[f"skewness_{mode}"] = skewness_of(model, s.x, s.y, args, mode, "analysis dropout", t)
        for name, shift in (("kept", row["shift"]), ("kept_unperturbed", 0.0)):
            row[name] = select(row["skewness_train"] + shift, args.beta).long()
        rows += [dict(zip(row, values)) for values in zip(*(v.tolist() for v in row.values()))]
    return [{"seed": args.seed, "rate": rate} | row | {"group": GROUPS[row["group"]]} for row in rows]


def summary(rows):
    """Of one seed and rate: mean skewness and kept shares of each group, AUC of the skewness for a wrong label."""
    table = draw.columns(rows)
    found = {}
    for group in GROUPS:
        own = table["group"] == group
        for name in ("skewness_train", "skewness_eval", "kept", "kept_unperturbed"):
            found[f"{name}_{group}"] = float(table[name][own].mean()) if own.any() else math.nan
    labelled = table["group"] != "source"
    for mode in ("train", "eval"):
        rank = evidence.ranks(table[f"skewness_{mode}"][labelled])
        found[f"auc_{mode}"] = float(evidence.auc(rank, table["group"][labelled] == "wrong"))
    return found


# ---------------------------------------------------------------- accuracy, stage 2 trained to its end
def accuracies_at(rate, setting, args, start, src, tgt):
    """Source and target test accuracy at the last step of a stage 2 whose pseudo-labels are wrong at this rate."""
    keep, perturb = SETTINGS[setting]
    one = {"select": keep, "perturb": perturb or args.perturb, "measure": "train" if keep == "low" else None}
    one = argparse.Namespace(**vars(args) | one | {"gcn_iters": 0})

    def observe(t, model, task, pseudo):
        if t == 0:
            pseudo.label = noisy(tgt.train_labels, rate, len(src.classes), args.seed)
            pseudo.confident[:] = True

    with tempfile.TemporaryDirectory() as folder, Run(folder, 2, one) as run:
        blind = stage1_ssl.load(one, run, start["config"]["data"]["fingerprint"])
        stage2_pseudo.train(one, run, *blind, start, observe)
        last = run.moments[-1]
    truths = {"source": src.validation[1], "target": tgt.test_labels}
    return [float((last[key] == labels.cpu().numpy()).mean()) for key, labels in truths.items()]


# ---------------------------------------------------------------- the command
def flags(parser):
    """The flags of stage 2: what is not given comes from each checkpoint."""
    parser.add_argument("--init", type=Path, nargs="+", required=True, help="RUN/stage1.pt, one a seed")
    parser.set_defaults(**stage2_pseudo.SETTINGS)
    add_flags(parser, *stage1_ssl.CHOICES)


def of_one(path, args):
    """One row a rate from one checkpoint, its settled flags, and the name of its data."""
    start = stage1_of(path)
    one, rows = argparse.Namespace(**vars(args) | {"init": path}), []
    stage2_pseudo.inherit(one, start)
    way = data.direction(one.task)
    src, tgt = (data.load_domain(one.data, key).to(one.device) for key in (way.source, way.target))
    model = model_of(start).to(one.device).train()
    task = ssl_tasks.build(one.ssl, model, one.points, way).to(one.device)
    for rate in args.rates:
        rows.append({"seed": one.seed, "rate": rate} | summary(scores_at(rate, one, model, task, src, tgt)))
        for name in SETTINGS if args.train else ():
            source, target = accuracies_at(rate, name, one, start, src, tgt)
            rows[-1] |= {f"source, {name}": source, f"target, {name}": target if source >= GATE else math.nan}
    return rows, one, data.data_name(one.data, src, tgt)


@command(
    flags,
    flag("--rates", type=number(float, 0, 1), nargs="+", default=list(RATES), help="shares of wrong labels"),
    flag("--train", action="store_true", help="train stage 2 at each rate, too: low, low without perturbation, all"),
)
def noise(args):
    """A known share of wrong pseudo-labels: the score, who is selected, with --train the accuracy."""
    found = [of_one(path, args) for path in args.init]
    rows, (_, one, name) = [row for rows, *_ in found for row in rows], found[-1]
    seeds = " ".join(dict.fromkeys(str(row["seed"]) for row in rows))
    n = BATCHES * (one.batch_size // 2)
    pooled = argparse.Namespace(**vars(one) | {"out": args.out, "seed": seeds})
    title = f"Noise: {draw.caption(pooled, name, f'{n} labelled samples at each rate')}"
    wrote = draw.write(pooled, draw_noise(rows, title), name, n, seeds, rows, means(rows))
    return "\n".join([*map(sentence, means(rows)), wrote])


def means(rows):
    """The rows of each rate as one: means over seeds."""
    found = []
    for rate in dict.fromkeys(row["rate"] for row in rows):
        own = [row for row in rows if row["rate"] == rate]
        found.append({key: float(np.mean([row[key] for row in own])) for key in own[0] if key != "seed"})
    return found


def sentence(row):
    """One rate in words."""
    groups = [group for group in GROUPS if math.isfinite(row[f"kept_{group}"])]
    kept = ", ".join(f"{g} {row[f'kept_{g}']:.0%} ({row[f'kept_unperturbed_{g}']:.0%})" for g in groups)
    text = f"{row['rate']:.0%} wrong: kept (without perturbation) {kept}"
    if math.isfinite(row["auc_train"]):
        text += f"; AUC of the skewness for a wrong label {row['auc_train']:.2f}, eval mode {row['auc_eval']:.2f}"
    trained = {name: row[f"target, {name}"] for name in SETTINGS if f"target, {name}" in row}
    texts = [f"{name} {x:.1%}" if math.isfinite(x) else f"{name} not trained" for name, x in trained.items()]
    return text + (f"; target accuracy {'; '.join(texts)}" if texts else "")


def draw_noise(rows, title):
    """Against the share of wrong labels: mean skewness, kept share, and accuracy; dots are seeds, lines their means."""
    figure, axes = draw.page(14, 4, title, 1, 3)
    mean, rates = draw.columns(means(rows)), sorted({row["rate"] for row in rows})
    each = draw.columns(rows)

    def line(ax, key, scale=1, **style):
        if key in mean:
            ax.plot(100 * each["rate"], scale * each[key], ".", color=style["color"], alpha=0.4)
            ax.plot(100 * mean["rate"], scale * mean[key], **style)

    for k, group in enumerate(GROUPS):
        text = group if group == "source" else f"pseudo-label {group}"
        line(axes[0, 0], f"skewness_train_{group}", color=f"C{k}", label=text)
        line(axes[0, 1], f"kept_{group}", 100, color=f"C{k}", label=text)
        line(axes[0, 1], f"kept_unperturbed_{group}", 100, color=f"C{k}", ls="--")
    for k, name in enumerate(SETTINGS):
        line(axes[0, 2], f"target, {name}", 100, color=f"C{k + 3}", label=name)
    texts = "skewness, train mode", "kept, % (dashed: not perturbed)", "target test accuracy at the end, %"
    for ax, text in zip(axes[0], texts):
        ax.set(xlabel="wrong pseudo-labels, %", ylabel=text, xticks=[100 * rate for rate in rates])
        if ax.lines:
            ax.legend(fontsize=8)
    return figure
