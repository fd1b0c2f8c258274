"""Figures that train, in a temporary folder, and look on: the hook is called before each step and changes nothing.

Only in paper/ and eval.py may target labels be opened: `watch` hands them to what looks on, never to what trains.
"""

import argparse
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy import stats

import data
import stage1_ssl
import stage2_pseudo
from engine.base import UserError, csv_text, generator, provenance, write_atomically
from engine.flags import add_flags, number
from engine.run import Run, load_checkpoint
from paper import command, conflict, draw, evidence, flag
from paper.published import reported
from paper.tables import GATE
from saliency import select

BETAS = (0.3, 0.5, 0.7, 0.9, 1.0)  # Fig. 4, 9
LOOKS = 200  # about so many steps of a run are looked at
BATCHES = 32  # labelled batches a moment of `measure`
PAIRS = ("train ~ eval", "train ~ train, dropout again", "train ~ train, another view", "eval ~ eval, another view")


# ---------------------------------------------------------------- looking at a run
def training(**default):
    """The flags of stage 1; a mask would change the very gradients that it is judged by: select="all" has none."""
    return lambda parser: add_flags(parser, *stage1_ssl.CHOICES, **stage1_ssl.SETTINGS | default)


EVERY = flag("--every", type=number(int, 1), help="look at every K-th step")
SCORED = flag(
    "--scored", type=number(int, 2), default=256, help="source clouds whose mean skewness is a point of Fig. 1"
)
SAMPLES = flag("--samples", type=number(int, 8), default=512, help="clouds looked at one by one")
CLOUDS = flag("--oracle-clouds", type=number(int, 2), default=1024, help="target clouds behind G_oracle, at most")


def settled(args, *, none=False, pcm=True):
    """Settle the flags of a figure that trains. UserError where it has no meaning: none, pcm tell if these have."""
    way, (base, _, mixed) = data.direction(args.task), args.ssl.partition("+")
    if way.per_point or way.oracle:
        raise UserError(f"--task {args.task}: the paper's figures are of adapted classifiers; choose M_S, M_SC, ...")
    if base in ("none", "mcc") and not none:
        raise UserError(f"--ssl {base}: no gradient of its own on the source, so no conflict; choose another task")
    if mixed and not pcm:
        fault = "it looks at the step's own losses, not at mixtures"
        raise UserError(f"--ssl {args.ssl} with {args.what}: {fault}; choose {base}")
    stage1_ssl.settle(args)
    if "every" in args:
        args.every = args.every or max(1, args.steps // LOOKS)


def watch(args, look):
    """Train stage 1 where nothing is kept; look(t, model, task, src, tgt) before each step, tgt with its labels.

    Returns name of the data, src, tgt, moments (step, source and target predictions), the trained model and task, and
    of its end the source accuracy, whether that passes the gate, and a text of both beside the name.
    """
    seen = {}
    with tempfile.TemporaryDirectory() as folder, Run(folder, 1, args) as run:
        src, tgt = stage1_ssl.load(args, run)
        known = data.load_domain(args.data, tgt.key).to(args.device)  # the training loop gets `tgt`, without labels
        if known.train_labels is None:
            raise UserError(f"{args.what}: the target has no labels to judge by; give clouds in class folders")

        def observe(t, model, task):
            seen.update(model=model, task=task)
            look(t, model, task, src, known)

        stage1_ssl.train(args, run, src, tgt, observe)
        name = run.config["data"]["name"]
    truth = src.validation[1].cpu().numpy()
    end = {"source_accuracy": float((run.moments[-1]["source"] == truth).mean())}
    end["trained"] = end["source_accuracy"] >= GATE
    text = f"{name}\nsource accuracy {end['source_accuracy']:.1%} at the end{'' if end['trained'] else ': NOT TRAINED'}"
    return SimpleNamespace(name=name, text=text, end=end, src=src, tgt=known, moments=run.moments, **seen)


def sampled(args, rows, look):
    """A look that adds to `rows` at every K-th step."""
    return lambda t, *live: rows.extend(look(t, args, *live)) if t % args.every == 0 else None


# ---------------------------------------------------------------- Fig. 1: skewness and conflict, step by step
@command(training(select="all"), EVERY, SCORED)
def fig1(args):
    """Fig. 1 of the paper as a test of it, with intervals, and again on differences from step to step."""
    settled(args)
    rows = []
    return write_fig1(args, watch(args, sampled(args, rows, conflict.step_conflict)), rows)


def write_fig1(args, seen, rows):
    """Fig. 1 from its points -> what it says, in words."""
    series = draw.columns(rows)
    found = {m: evidence.correlations(series[f"skewness_{m}"], series["cos"], args.seed) for m in ("train", "eval")}
    title = f"Fig. 1: {draw.caption(args, seen.text, f'{len(rows)} steps')}"
    figure = draw.draw_fig1(series, found, title)
    wrote = draw.write(args, figure, seen.name, len(rows), args.seed, rows, found | seen.end)
    return " | ".join(f"{mode} mode: {correlation_text(f)}" for mode, f in found.items()) + f"\n{wrote}"


def correlation_text(found):
    """Both correlations with intervals, of the series and of its differences, in one line."""
    text = [f"{kind} {draw.with_interval(found, kind)}" for kind in ("pearson", "spearman")]
    differences = draw.with_interval(found, "spearman_of_differences")
    return f"{', '.join(text)}, of differences {differences}, n = {found['n']}"


# ---------------------------------------------------------------- per sample: what the selector really asks
@command(training(select="all"), SAMPLES, CLOUDS)
def persample(args):
    """Does a sample's score predict that its own SSL gradient opposes G_oracle?"""
    settled(args)
    rows, agree = [], {}
    return write_persample(args, watch(args, at_moments(args, rows, agree)), rows, agree)


def at_moments(args, rows, agree):
    """A look that adds the samples of a few moments to `rows`, and what is known of their G_oracle to `agree`."""
    steps = conflict.moments_of(args)

    def look(t, *live):
        if t in steps:
            found, agree[t] = conflict.look_at_samples(t, args, *live)
            rows.extend(found)

    return look


@command(training(select="all"), EVERY, SCORED, SAMPLES, CLOUDS)
def both(args):
    """Fig. 1 and persample of one training run: OUT-fig1.* and OUT-persample.*"""
    settled(args)
    steps, samples, agree = [], [], {}
    looks = sampled(args, steps, conflict.step_conflict), at_moments(args, samples, agree)
    seen = watch(args, lambda *live: [look(*live) for look in looks])
    of = lambda what: argparse.Namespace(**vars(args) | {"what": what, "out": Path(f"{args.out}-{what}")})
    said = write_fig1(of("fig1"), seen, steps), write_persample(of("persample"), seen, samples, agree)
    return "\n".join(said)


def write_persample(args, seen, rows, agree):
    """The tables and the figure of persample from its samples -> what it says, in words."""
    table, shares = conflict.predict_conflict(rows, agree, args.seed), conflict.conflict_shares(rows, agree)
    n, used = shares[0]["n"], min(args.oracle_clouds, len(seen.tgt.train))
    title = f"Per sample: {draw.caption(args, seen.text, f'{n} source clouds')}"
    found = {"oracle_clouds": used, "moments": shares, "scores": table} | seen.end
    wrote = draw.write(args, draw.draw_persample(table, shares, title), seen.name, n, args.seed, rows, found)
    text = persample_table(table, shares, title, provenance(args.device))
    write_atomically(f"{args.out}.md", text.encode())
    whole = {row["score"]: row for row in table if row["step"] == ""}
    named = ("skewness_train", "skewness_eval", "minus_cos_pseudo", "random")
    areas = [draw.with_interval(whole[name], "auc") or "not computed" for name in named]
    texts = ", ".join(f"{conflict.PREDICTORS[name]} {area}" for name, area in zip(named, areas))
    return f"mean AUC of the moments, intervals over clouds: {texts}\n{wrote}"


def persample_table(table, shares, title, record):
    """Markdown: shares of conflicts, then AUC and Spearman with intervals, a row for each score."""
    head = "| before step | samples | cosine below 0 | median cosine | halves of G_oracle, cosine "
    head += "| same sign with both halves | same sign in two draws of the task "
    head += "| pseudo-labels right | G_oracle's cosine with G of pseudo-labels | with G of entropy |"
    lines = [f"# {title}", "", head, "|---" * 10 + "|"]
    for s in shares:
        cells = [s["step"], s["n"], f"{s['conflict']:.1%}", f"{s['median_cos']:+.3f}", f"{s['oracle_halves_cos']:+.2f}"]
        cells += [f"{s['same_sign_halves']:.0%}", f"{s['same_sign_draws']:.0%}", f"{s['pseudo_right']:.0%}"]
        cells += [f"{s['oracle_pseudo_cos']:+.2f}", f"{s['oracle_entropy_cos']:+.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    moments = list(dict.fromkeys(row["step"] for row in table))
    names = [f"step {m}" if m != "" else "mean" for m in moments]
    unknown = {s["step"] for s in shares if not s["oracle_halves_cos"] >= conflict.KNOWN}
    kinds = {"auc": 'AUC for "cosine below 0" (chance: .5)', "within": "the same AUC within classes (chance: .5)"}
    for kind, head in (kinds | {"rho": "Spearman with - cosine (chance: 0)"}).items():
        lines += ["", f"{head}, 95 % intervals over clouds:", "", f"| score | {' | '.join(names)} |"]
        lines.append("|---" * (len(names) + 1) + "|")
        for score, text in conflict.PREDICTORS.items():
            own = [row for row in table if row["score"] == score]
            cells = ["G_oracle unknown" if row["step"] in unknown else draw.with_interval(row, kind) for row in own]
            lines.append(f"| {text} | {' | '.join(cells)} |")
    note = (
        "Scores are turned so that high predicts conflict. A cell is empty where all samples conflict or none does. "
        f"Where the halves of G_oracle have a cosine below {conflict.KNOWN} nothing is computed. Intervals vary the "
        "source clouds of one run, not the run; signs that agree in half of the cases agree by chance.\n"
        f"Device: {record['device']}. Commit: {record['commit']}."
    )
    return "\n".join([*lines, "", note, ""])


# ---------------------------------------------------------------- Fig. 4, 9: do the losses point the same way?
@command(training(), EVERY, flag("--betas", type=number(float, 0, 1), nargs="+", default=list(BETAS)))
def fig4(args):
    """Fig. 4 and 9: cos(G_sum, G_oracle) and cos(G_ssl, G_cls) through training, one run for each beta."""
    settled(args, pcm=False)
    rows, ends = [], []
    for beta in args.betas:
        one = argparse.Namespace(**vars(args) | {"beta": beta})
        ends.append(watch(one, sampled(one, rows, conflict.directions)))
    seen, means = min(ends, key=lambda seen: seen.end["source_accuracy"]), {}
    for beta in args.betas:
        series = draw.columns([row for row in rows if row["beta"] == beta])
        means[f"{beta:g}"] = {name: float(np.nanmean(series[name])) for name in ("cos_sum", "cos_ssl")}
    n = f"{len(series['step'])} steps of each run"
    figure = draw.draw_fig4(draw.columns(rows), f"Fig. 4, 9: {draw.caption(args, seen.text, n, beta=False)}")
    found = {"mean_over_training": means} | seen.end
    wrote = draw.write(args, figure, seen.name, len(rows), args.seed, rows, found)
    texts = [f"beta {beta} {m['cos_sum']:+.3f} / {m['cos_ssl']:+.3f}" for beta, m in means.items()]
    return f"mean cos(G_sum, G_oracle) / cos(G_ssl, G_cls): {', '.join(texts)}\n{wrote}"


# ---------------------------------------------------------------- Fig. 6: losses of the high- and low-skew groups
@command(training(select="all"), EVERY)
def fig6(args):
    """Fig. 6: SSL and classification loss of the samples of high and of low skewness."""
    settled(args, pcm=False)
    rows = []
    seen = watch(args, sampled(args, rows, conflict.group_losses))
    found = {
        f"{group}_{loss}": float(np.mean([row[loss] for row in rows if row["group"] == group]))
        for group in ("high", "low")
        for loss in ("ssl", "cls")
        if any(row["group"] == group for row in rows)
    }
    title = f"Fig. 6: {draw.caption(args, seen.text, f'{len(rows)} samples')}"
    figure = draw.draw_fig6(draw.columns(rows), args.steps, title)
    wrote = draw.write(args, figure, seen.name, len(rows), args.seed, rows, found | seen.end)
    texts = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.items()]
    return f"mean over training: {', '.join(texts)}\n{wrote}"


# ---------------------------------------------------------------- Fig. 7: what a wrong pseudo-label does to the score
def stage1_of(path):
    """A checkpoint of stage 1 that classifies; UserError otherwise."""
    start = load_checkpoint(path, choices=stage1_ssl.CHOICES)
    if data.direction(start["config"]["args"]["task"]).per_point:
        raise UserError(f"--init {path}: give RUN/stage1.pt of a run that classifies; this one segments")
    return start


def second_stage(parser):
    """The flags of stage 2: what is not given comes from the checkpoint."""
    parser.add_argument("--init", type=Path, required=True, help="RUN/stage1.pt")
    parser.add_argument("--gcn-iters", type=number(int, 0), help="a refinement; 0 = off")
    parser.set_defaults(**stage2_pseudo.SETTINGS)
    add_flags(parser, *stage1_ssl.CHOICES)


@command(second_stage, EVERY, SAMPLES)
def fig7(args):
    """Fig. 7: over stage 2, the skewness of pseudo-labelled target clouds less that with their true labels."""
    start = stage1_of(args.init)
    stage2_pseudo.inherit(args, start)
    args.every, rows = args.every or max(1, args.steps // 20), []
    with tempfile.TemporaryDirectory() as folder, Run(folder, 2, args) as run:
        src, tgt = stage1_ssl.load(args, run, start["config"]["data"]["fingerprint"])
        known = data.load_domain(args.data, tgt.key).to(args.device)
        gaps = lambda *seen: conflict.label_gaps(*seen, known)
        stage2_pseudo.train(args, run, src, tgt, start, sampled(args, rows, gaps))
        name = run.config["data"]["name"]
    series = draw.columns(rows)
    wrong, steps = series["wrong"] == 1, len(np.unique(series["step"]))
    paper = float(next(value for (method, *_), value in reported().items() if method == "pseudo-label skewness offset"))
    found = {"share_wrong": float(wrong.mean()), "paper": paper}
    for mode in ("train", "eval"):
        gap = series[f"gap_{mode}"]
        clouds = gap.reshape(steps, -1).mean(0)  # a cloud at several steps is one sample
        i = evidence.resamples(len(clouds), 1, args.seed)
        found[f"gap_{mode}"], found[f"gap_{mode}_interval"] = float(gap.mean()), evidence.interval(clouds[i].mean(1))
        found[f"gap_{mode}_where_wrong"] = float(gap[wrong].mean()) if wrong.any() else math.nan
    title = f"Fig. 7: stage 2, {draw.caption(args, name, f'{len(clouds)} target clouds at {steps} steps')}"
    wrote = draw.write(args, draw.draw_fig7(series, paper, title), name, len(rows), args.seed, rows, found)
    texts = ", ".join(f"{mode} mode {draw.with_interval(found, f'gap_{mode}')}" for mode in ("train", "eval"))
    share = f"{found['share_wrong']:.0%} wrong; the paper: about {paper:g}"
    return f"pseudo- minus true-label skewness: {texts} ({share})\n{wrote}"


# ---------------------------------------------------------------- train mode against eval mode
def agreement(a, b, beta):
    """Spearman's rho of two scores of one batch, and the overlap of the sets they keep (by chance: about beta)."""
    kept_a, kept_b = select(a, beta), select(b, beta)
    both = int((kept_a & kept_b).sum()) / max(int(kept_a.sum()), 1)
    return float(stats.spearmanr(a.cpu(), b.cpu()).statistic), both


def compare_modes(model, task, src, args):
    """Mean and standard error over batches of `agreement`, for four pairs of scores of the same clouds."""
    rows = {name: [] for name in PAIRS}
    for b in range(BATCHES):
        i = data.stream(len(src.train), args.batch_size // 2, b, args.seed, "analysis").to(args.device)
        draws = (generator(args.device, args.seed, "analysis", b, v) for v in (0, 1))
        view, other = (task.views(src.train[i], src.train_labels[i], True, g) for g in draws)
        looks = (view, "train", 0), (view, "eval", 0), (view, "train", 1), (other, "train", 0), (other, "eval", 0)
        train, calm, again, train_other, calm_other = (
            conflict.skewness_of(model, v.x, v.y, args, mode, "analysis dropout", k) for v, mode, k in looks
        )
        pairs = (train, calm), (train, again), (train, train_other), (calm, calm_other)
        for name, (x, y) in zip(PAIRS, pairs):
            rows[name].append(agreement(x, y, args.beta))
    return {name: (np.mean(r, 0), np.std(r, 0, ddof=1) / len(r) ** 0.5) for name, r in rows.items()}


@command(training())
def measure(args):
    """Do the two modes of the measuring pass agree, at a tenth, half and the end of a run? Writes OUT.md and .csv."""
    settled(args, none=True)
    moments, rows = {args.steps // 10, args.steps // 2, args.steps - 1}, []

    def look(t, model, task, src, tgt):
        if t in moments:
            for pair, ((rho, overlap), (rho_se, overlap_se)) in compare_modes(model, task, src, args).items():
                row = {"step": t, "pair": pair, "spearman": rho, "overlap": overlap}
                rows.append(row | {"spearman_se": rho_se, "overlap_se": overlap_se})

    name, record = watch(args, look).name, provenance(args.device)
    lines = ["| step | scores compared | Spearman | overlap of the kept |", "|---|---|---|---|"]
    for r in rows:
        rho, overlap = f"{r['spearman']:+.2f} ± {r['spearman_se']:.2f}", f"{r['overlap']:.2f} ± {r['overlap_se']:.2f}"
        lines.append(f"| {r['step']} | {r['pair']} | {rho} | {overlap} |")
    note = (
        f"{args.task}, {args.backbone}, {args.ssl}, seed {args.seed}, {args.steps} steps, {args.points} points; "
        f"a moment is n = {BATCHES} batches of {args.batch_size // 2} source clouds, mean ± standard error over them. "
        f"By chance the overlap is about {args.beta:g}.\n"
        f"Data: {name}. Device: {record['device']}. Commit: {record['commit']}."
    )
    text = "\n".join([*lines, "", note, ""])
    write_atomically(f"{args.out}.md", text.encode())
    write_atomically(f"{args.out}.csv", csv_text(rows).encode())
    return f"{text}wrote {args.out}.md and .csv"
