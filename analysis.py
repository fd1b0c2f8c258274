"""The paper's figures, and what they leave open. Only here and in eval.py may target labels be opened; nothing trained
here is reported elsewhere.

    python analysis.py fig1 --task M_SC --data data --backbone pointnet --steps 240 --out results/fig1
    python analysis.py persample --task M_SC --data shapes --backbone pointnet --steps 120 --points 200 --batch-size 32
    python analysis.py fig5 --ckpt runs/NAME/stage1.pt
    python analysis.py --help                    # all of them; `make help` has the make targets

Each writes OUT.png, the numbers behind it as OUT.csv, settings and statistics as OUT.json, and prints one line.
fig1, fig4, fig6 and persample train stage 1 in a temporary folder, fig7 stage 2, and measure before every K-th step:
conflict.py measures, figures.py draws, evidence.py has the statistics. fig3, fig5, fig8, fig11 read finished runs, anm
the csv of fig1 or persample (finished.py); lesson trains twice and puts most of them on one sheet.
measure compares the two modes of the measuring pass (`--measure train`, `--measure eval`) at three moments of a run.
"""

import argparse
import copy
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from scipy import stats

import conflict
import data
import evidence
import figures
import finished
import stage1_ssl
import stage2_pseudo
from common import Parser, Run, UserError, add_flags, cli, generator, load_checkpoint, model_of, number
from common import csv_text, provenance, seed_of, settle, write_atomically
from eval import reported
from saliency import measure, select, skewness, three_levels

BETAS = (0.3, 0.5, 0.7, 0.9, 1.0)  # Fig. 4, 8, 9, 10
SAMPLES, ORACLE = 512, 1024  # at a moment: source clouds, and at most so many target clouds behind G_oracle
LOOKS = 200  # about so many steps of a run are looked at
BATCHES = 32  # labelled batches a moment of `measure`
PAIRS = ("train ~ eval", "train ~ train, dropout again", "train ~ train, another view", "eval ~ eval, another view")


# ---------------------------------------------------------------- looking at a run
def watch(args, look):
    """Train stage 1 where nothing is kept; look(t, model, task, src, tgt) before each step, tgt with its labels.

    Returns name of the data, src, tgt, moments (step, source and target predictions), and the trained model and task.
    """
    seen = {}
    with tempfile.TemporaryDirectory() as folder, Run(folder, 1, args) as run:
        src, tgt = stage1_ssl.load(args, run)
        known = data.load_domain(args.data, tgt.key).to(args.device)  # the training loop gets `tgt`, without labels

        def observe(t, model, task):
            seen.update(model=model, task=task)
            look(t, model, task, src, known)

        stage1_ssl.train(args, run, src, tgt, observe)
        name = run.config["data"]["name"]
    return SimpleNamespace(name=name, src=src, tgt=known, moments=run.moments, **seen)


def sampled(args, rows, look):
    """A look that adds to `rows` at every K-th step."""
    return lambda t, *live: rows.extend(look(t, args, *live)) if t % args.every == 0 else None


# ---------------------------------------------------------------- Fig. 1: skewness and conflict, step by step
def fig1(args):
    """Fig. 1 of the paper as a test of it, with intervals, and again on differences from step to step."""
    rows = []
    seen = watch(args, sampled(args, rows, conflict.step_conflict))
    series = figures.columns(rows)
    found = {m: evidence.correlations(series[f"skewness_{m}"], series["cos"], args.seed) for m in ("train", "eval")}
    title = f"Fig. 1: {figures.caption(args, seen.name, f'{len(rows)} steps')}"
    figures.save(args.out, figures.draw_fig1(series, found, title))
    figures.report(args, seen.name, len(rows), args.seed, rows, found)
    return " | ".join(f"{mode} mode: {figures.correlation_text(f)}" for mode, f in found.items())


# ---------------------------------------------------------------- per sample: what the selector really asks
def persample(args):
    """Does a sample's score predict that its own SSL gradient opposes G_oracle?"""
    rows, agree, steps = [], {}, conflict.moments_of(args)

    def look(t, *live):
        if t in steps:
            found, agree[t] = conflict.look_at_samples(t, args, *live)
            rows.extend(found)

    seen = watch(args, look)
    table, shares = conflict.predict_conflict(rows, args.seed), conflict.conflict_shares(rows, agree)
    n = shares[0]["n"]
    title = f"Per sample: {figures.caption(args, seen.name, f'{n} source clouds')}"
    figures.save(args.out, figures.draw_persample(table, shares, title))
    used = min(args.oracle_clouds, len(seen.tgt.train))
    figures.report(args, seen.name, n, args.seed, rows, {"oracle_clouds": used, "moments": shares, "scores": table})
    text = figures.persample_table(table, shares, title, provenance(args.device))
    write_atomically(f"{args.out}.md", text.encode())
    whole = {row["score"]: row for row in table if row["step"] == ""}
    return "mean AUC of the moments: " + ", ".join(
        f"{figures.SCORES[name]} {figures.with_interval(whole[name], 'auc')}"
        for name in ("skewness_train", "skewness_eval", "loss", "random")
    )


# ---------------------------------------------------------------- Fig. 4, 9: do the losses point the same way?
def fig4(args):
    """Fig. 4 and 9: one run for each beta."""
    rows = []
    for beta in args.betas:
        one = argparse.Namespace(**{**vars(args), "beta": beta})
        seen = watch(one, sampled(one, rows, conflict.directions))
    means = {}
    for beta in args.betas:
        series = figures.columns([row for row in rows if row["beta"] == beta])
        means[f"{beta:g}"] = {name: float(np.nanmean(series[name])) for name in ("cos_sum", "cos_ssl")}
    n = f"{len(series['step'])} steps of each run"
    title = f"Fig. 4, 9: {figures.caption(args, seen.name, n, beta=False)}"
    figures.save(args.out, figures.draw_fig4(figures.columns(rows), title))
    figures.report(args, seen.name, len(rows), args.seed, rows, {"mean_over_training": means})
    return "mean cos(G_sum, G_oracle) / cos(G_ssl, G_cls): " + ", ".join(
        f"beta {beta} {m['cos_sum']:+.3f} / {m['cos_ssl']:+.3f}" for beta, m in means.items()
    )


# ---------------------------------------------------------------- Fig. 6: losses of the high- and low-skew groups
def fig6(args):
    """Fig. 6: SSL and classification loss of both groups."""
    rows = []
    seen = watch(args, sampled(args, rows, conflict.group_losses))
    found = {
        f"{group}_{loss}": float(np.mean([row[loss] for row in rows if row["group"] == group]))
        for group in ("high", "low")
        for loss in ("ssl", "cls")
        if any(row["group"] == group for row in rows)
    }
    title = f"Fig. 6: {figures.caption(args, seen.name, f'{len(rows)} samples')}"
    figures.save(args.out, figures.draw_fig6(figures.columns(rows), args.steps, title))
    figures.report(args, seen.name, len(rows), args.seed, rows, found)
    return "mean over training: " + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.items())


# ---------------------------------------------------------------- Fig. 7: what a wrong pseudo-label does to the score
def stage2_args(args, start):
    """The arguments of a stage 2 from this checkpoint, with what was given here."""
    first = start["config"]["args"]
    if "last_student" not in start or first["oracle"] or first["task"].startswith("seg_"):
        raise UserError(f"--init {args.init}: give RUN/stage1.pt of a finished run that classifies, without --oracle")
    given = {key: value for key, value in vars(args).items() if value is not None}
    merged = {**first, "eval_every": None, "perturb": list(stage2_pseudo.PERTURB), "scratch": False, **given}
    merged = argparse.Namespace(**merged)
    settle(merged)
    merged.every = args.every or max(1, merged.steps // 20)
    return merged


def fig7(args):
    """Fig. 7: over stage 2, the skewness of pseudo-labelled target clouds less that with their true labels."""
    start = load_checkpoint(args.init)
    args = stage2_args(args, start)
    rows = []
    with tempfile.TemporaryDirectory() as folder, Run(folder, 2, args) as run:
        src, tgt = stage1_ssl.load(args, run)
        known = data.load_domain(args.data, tgt.key).to(args.device)
        gaps = lambda *seen: conflict.label_gaps(*seen, known)
        stage2_pseudo.train(args, run, src, tgt, start, sampled(args, rows, gaps))
        name = run.config["data"]["name"]
    series = figures.columns(rows)
    wrong = series["wrong"] == 1
    paper = float(next(v for k, v in reported().items() if k[0] == "pseudo-label skewness offset"))
    found = {"share_wrong": float(wrong.mean()), "paper": paper}
    for mode in ("train", "eval"):
        gap = series[f"gap_{mode}"]
        clouds = gap.reshape(len(np.unique(series["step"])), -1).mean(0)  # a cloud at several steps is one sample
        i = evidence.resamples(len(clouds), 1, args.seed)
        found[f"gap_{mode}"], found[f"gap_{mode}_interval"] = float(gap.mean()), evidence.interval(clouds[i].mean(1))
        found[f"gap_{mode}_where_wrong"] = float(gap[wrong].mean()) if wrong.any() else math.nan
    n = f"{len(np.unique(series['cloud']))} target clouds at {len(np.unique(series['step']))} steps"
    figures.save(args.out, figures.draw_fig7(series, paper, f"Fig. 7: stage 2, {figures.caption(args, name, n)}"))
    figures.report(args, name, len(rows), args.seed, rows, found)
    gaps = ", ".join(f"{m} mode {figures.with_interval(found, f'gap_{m}')}" for m in ("train", "eval"))
    return f"pseudo- minus true-label skewness: {gaps} ({found['share_wrong']:.0%} wrong; the paper: about {paper:g})"


# ---------------------------------------------------------------- Fig. 5, 11: from checkpoints
def domains_of(checkpoint, root):
    """Both domains of a checkpoint with labels, its arguments, and the data's name; UserError on other data."""
    config = checkpoint["config"]
    args = SimpleNamespace(**config["args"])
    if args.task.startswith("seg_"):
        raise UserError("--ckpt: a checkpoint that segments; give one of M_S, M_SC, ..., which classifies")
    src, tgt = (data.load_domain(root or args.data, key) for key in data.split_task(args.task, args.oracle))
    if data.fingerprint(src, tgt) != config["data"]["fingerprint"]:
        raise UserError(f"--data {root or args.data}: not the clouds that --ckpt was trained on; give the same data")
    return src, tgt, args, config["data"]["name"]


def skew_of(model, points, labels, alpha):
    """Skewness (n,) of each cloud's map in eval mode, and confidence in the label (n,)."""
    parts = []
    with conflict.frozen(model):
        for x, y in zip(points.split(64), labels.split(64)):
            S, logits = conflict.maps(model, x, y, alpha)
            parts.append((skewness(S), logits.softmax(-1).gather(1, y[:, None])[:, 0]))
    return tuple(torch.cat(part) for part in zip(*parts))


def extremes(model, points, labels, alpha, tails=(0.02, 0.05, 0.1)):
    """Clouds of high and of low skewness, at these quantiles from either end: [(points, levels)], a text for each.

    Not the very extremes: their maps hold one point and nothing else.
    """
    sk, _ = skew_of(model, points, labels, alpha)
    order = sk.argsort()
    last = len(order) - 1
    chosen = [int(order[round(last * q)]) for q in (*(1 - q for q in tails), *reversed(tails))]
    with conflict.frozen(model):
        S, _ = conflict.maps(model, points[chosen], labels[chosen], alpha)
    texts = [f"{data.CLASSES[labels[i]]}, skewness {sk[i]:+.2f}" for i in chosen]
    return list(zip(points[chosen].cpu(), three_levels(S).cpu())), texts  # Fig. 5


def fig5(args):
    """Fig. 5: saliency in three levels on the most and the least skewed source test clouds."""
    checkpoint = load_checkpoint(args.ckpt)
    src, _, config, name = domains_of(checkpoint, args.data)
    model, points = model_of(checkpoint), data.evaluation_subset(src.test, config.points)
    sk, confidence = skew_of(model, points, src.test_labels, config.alpha)
    clouds, texts = extremes(model, points, src.test_labels, config.alpha)
    n = f"{len(sk)} source test clouds, 98, 95, 90 % quantile of skewness above, 10, 5, 2 % below"
    figures.save(args.out, figures.draw_fig5(clouds, texts, f"Fig. 5: {figures.caption(config, name, n)}"))
    rows = [
        {"cloud": i, "class": data.CLASSES[c], "skewness": s, "confidence": p}
        for i, (c, s, p) in enumerate(zip(src.test_labels.tolist(), sk.tolist(), confidence.tolist()))
    ]
    q = np.quantile([row["skewness"] for row in rows], (0, 0.25, 0.5, 0.75, 1)).tolist()
    figures.report(args, name, len(rows), config.seed, rows, {"quartiles": q})
    return f"skewness of {len(rows)} clouds: min, quartiles, max {' '.join(f'{v:+.2f}' for v in q)}"


def tsne():
    """scikit-learn's t-SNE; UserError where it is not installed."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        remedy = "pip install -r requirements-extra.txt"
        raise UserError(f"fig11: needs scikit-learn, which is not installed; {remedy}") from None
    return TSNE


def neighbour_agreement(f, labels):
    """Share of samples whose nearest neighbour in the features (n, C) has their class: t-SNE shows, this counts."""
    distance = torch.cdist(f, f).fill_diagonal_(math.inf)
    return (labels[distance.argmin(1)] == labels).float().mean().item()


def fig11(args):
    """Fig. 11: t-SNE of the target test set's features of two checkpoints."""
    TSNE, rows, flat, names, found = tsne(), [], [], [], {}
    for path in args.ckpt:
        checkpoint = load_checkpoint(path)
        _, tgt, config, name = domains_of(checkpoint, args.data)
        f, _ = stage2_pseudo.describe(model_of(checkpoint), data.evaluation_subset(tgt.test, config.points))
        xy = TSNE(perplexity=min(30, (len(f) - 1) / 3), random_state=args.seed, init="pca").fit_transform(f.numpy())
        names.append(f"{config.select}{'' if config.select == 'all' else f' {config.beta:g}'}, seed {config.seed}")
        found[str(path)] = neighbour_agreement(f, tgt.test_labels)
        flat.append(xy)
        for cloud, (c, (x, y)) in enumerate(zip(tgt.test_labels.tolist(), xy.tolist())):
            rows.append({"ckpt": str(path), "cloud": cloud, "class": data.CLASSES[c], "x": x, "y": y})
    setting = f"{config.task}, {config.backbone}, {config.ssl}, t-SNE seed {args.seed}"
    title = f"Fig. 11: {setting}, n = {len(f)} target test clouds\n{name}"
    figures.save(args.out, figures.draw_fig11(flat, tgt.test_labels.numpy(), names, title))
    figures.report(args, name, len(f), args.seed, rows, {"neighbour_agreement": found})
    texts = (f"{n} {a:.1%}" for n, a in zip(names, found.values()))
    return "nearest neighbour of the same class in feature space: " + ", ".join(texts)


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

    def look(t, model, task, src, tgt):
        if t in moments:
            for pair, (mean, error) in compare_modes(model, task, src, args).items():
                found.append((t, pair, *mean, *error))

    name = watch(args, look).name
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
    head = ("step", "pair", "spearman", "overlap", "spearman_se", "overlap_se")
    write_atomically(f"{args.out}.md", "\n".join(lines + ["", note, ""]).encode())
    write_atomically(f"{args.out}.csv", csv_text([dict(zip(head, row)) for row in found]).encode())
    print("\n".join(lines) + f"\n\n{note}\nwrote {args.out}.md and .csv")


# ---------------------------------------------------------------- the lesson: one contact sheet
def target_curve(seen):
    """Steps and target test accuracy of a watched run."""
    truth = seen.tgt.test_labels.cpu().numpy()
    return [m[0] for m in seen.moments], [float((m[2] == truth).mean()) for m in seen.moments]


def lesson(args):
    """What a lecturer shows, from one watched run without SM-DSB and a second one with it."""
    steps, samples, groups, agree = [], [], [], {}
    last_two = conflict.moments_of(args)[-2:]

    def look(t, *live):
        if t % args.every == 0:
            steps.extend(conflict.step_conflict(t, args, *live))
            groups.extend(conflict.group_losses(t, args, *live))
        if t in last_two:
            found, agree[t] = conflict.look_at_samples(t, args, *live)
            samples.extend(found)

    base = watch(args, look)
    ours = watch(argparse.Namespace(**{**vars(args), "select": "low", "measure": "train"}), lambda *live: None)
    clouds = {key: base.src if key == base.src.key else data.load_domain(args.data, key) for key in data.DOMAINS}
    series, table = figures.columns(steps), conflict.predict_conflict(samples, args.seed)
    found = evidence.correlations(series["skewness_eval"], series["cos"], args.seed)
    points = data.evaluation_subset(base.src.test, args.points)
    sk, _ = skew_of(base.model, points, base.src.test_labels, args.alpha)
    maps, texts = extremes(base.model, points, base.src.test_labels, args.alpha, (0.1,))
    curves = {"all": target_curve(base), f"low {args.beta:g}": target_curve(ours)}
    n = f"{len(steps)} steps, {len(samples) // len(agree)} samples, {len(sk)} and {len(base.tgt.test)} test clouds"
    title = figures.caption(args, base.name, n)
    panels = clouds, (maps, texts), sk.cpu().numpy(), (series, found), figures.columns(groups), curves, table
    figures.save(args.out, figures.draw_lesson(panels, args.steps, title))
    statistics = {
        "fig1": found,
        "persample": table,
        "moments": conflict.conflict_shares(samples, agree),
        "target_accuracy": curves,
    }
    figures.report(args, base.name, len(steps), args.seed, steps, statistics)
    whole = {row["score"]: row for row in table if row["step"] == ""}["skewness_eval"]
    ends = ", ".join(f"{name} {accuracy[-1]:.1%}" for name, (_, accuracy) in curves.items())
    rho, area = figures.with_interval(found, "spearman_of_differences"), figures.with_interval(whole, "auc")
    return f"Spearman of differences {rho}; AUC of skewness, eval, {area}; target accuracy {ends}"


# ---------------------------------------------------------------- command line
TRAINS = {"measure": measure_modes, "fig1": fig1, "persample": persample, "fig4": fig4, "fig6": fig6, "lesson": lesson}
READS = {"fig3": finished.fig3, "fig5": fig5, "fig7": fig7, "fig8": finished.fig8, "fig11": fig11, "anm": finished.anm}


def parser_of():
    """A subcommand for each figure; those that train have the flags of stage 1, unmasked unless asked for."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    flags = {name: commands.add_parser(name, help=f.__doc__.partition("\n")[0]) for name, f in (TRAINS | READS).items()}
    for name in TRAINS:
        masked = name in ("measure", "fig4")
        add_flags(flags[name], **stage1_ssl.DEFAULTS | ({} if masked else {"select": "all"}))
    for name in ("fig1", "fig4", "fig6", "fig7", "lesson"):
        flags[name].add_argument("--every", type=number(int, 1), help="look at every K-th step")
    for name in ("persample", "lesson", "fig7"):
        flags[name].add_argument("--samples", type=number(int, 8), default=SAMPLES, help="clouds looked at one by one")
    for name in ("persample", "lesson"):
        flags[name].add_argument(
            "--oracle-clouds", type=number(int, 2), default=ORACLE, help="target clouds behind G_oracle"
        )
    flags["fig4"].add_argument("--betas", type=number(float, 0, 1), nargs="+", default=list(BETAS))
    flags["fig7"].add_argument("--init", type=Path, required=True, help="RUN/stage1.pt")
    flags["fig7"].add_argument("--gcn-iters", type=number(int, 0), default=stage2_pseudo.GCN_ITERS)
    flags["fig7"].add_argument("--steps", type=number(int, 1), help="of stage 2; those of stage 1 unless given")
    flags["fig7"].add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for name in ("fig5", "fig7", "fig11"):
        flags[name].add_argument("--data", help="where the clouds are now, if they moved")
    for name in ("fig7", "fig11"):
        flags[name].add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0)
    flags["fig5"].add_argument("--ckpt", type=Path, required=True, help="RUN/stage1.pt or RUN/stage2.pt")
    flags["fig11"].add_argument("--ckpt", type=Path, nargs="+", required=True, help="checkpoints to set side by side")
    for name in ("fig3", "fig8"):
        flags[name].add_argument("runs", type=Path, nargs="+", help="folders with a result.json")
    flags["fig8"].add_argument(
        "--beta", type=number(float, 0, 1), default=0.7, help="beta of the runs that differ in alpha"
    )
    flags["anm"].add_argument("--csv", type=Path, required=True, help="the csv of fig1 or persample")
    flags["anm"].add_argument("--column", default="skewness_train", help="its column for skewness")
    for name in READS:
        flags[name].add_argument("--out", type=Path, help="path of the figure without .png")
    return parser


def main():
    args = parser_of().parse_args()
    args.out = args.out or Path("results") / args.what
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.what in TRAINS:
        if args.task.startswith("seg_"):
            raise UserError(f"--task {args.task}: the paper's figures are of classification; choose M_S, M_SC, ...")
        if args.ssl == "none" and args.what != "measure":
            raise UserError("--ssl none: without a self-supervised gradient there is no conflict; choose another task")
        if args.pcm and args.what in ("fig4", "fig6", "lesson"):
            raise UserError(
                f"--pcm with {args.what}: it looks at the step's own losses, not at mixtures; drop the flag"
            )
        args.oracle = False
        settle(args)
        if "every" in args:
            args.every = args.every or max(1, args.steps // LOOKS)
    text = (TRAINS | READS)[args.what](args)
    if text:
        print(f"{text}\nwrote {args.out}.png, .csv and .json")


if __name__ == "__main__":
    cli(main)
