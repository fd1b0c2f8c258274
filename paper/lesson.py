"""What a lecturer shows, on one sheet: clouds, maps, skewness; conflict step by step, in groups, per sample; accuracy.

make lesson        # built-in shapes, a CPU, minutes -> results/lesson/lesson.png
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

import data
from engine.base import UserError
from engine.picture import LEVELS, scatter
from paper import command, conflict, draw, evidence
from paper.figures import CLOUDS, EVERY, SAMPLES, SCORED, settled, training, watch
from paper.finished import eval_skewness, extremes

NAMES = {"M": "M: clean models", "S": "S: other models", "SC": "SC: simulated scans"}


@command(training(select="all"), EVERY, SCORED, SAMPLES, CLOUDS, folder="results/lesson")
def lesson(args):
    """What a lecturer shows, from one watched run without SM-DSB and a second one with it."""
    settled(args, pcm=False)
    domains = data.direction(args.task).dataset.DOMAINS
    if domains.keys() != NAMES.keys():
        raise UserError(f"--task {args.task}: the sheet shows PointDA-10's domains; choose M_SC or another of them")
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
    masked = argparse.Namespace(**vars(args) | {"select": "low", "measure": "train"})
    ours = watch(masked, lambda *live: None)
    src = base.src
    clouds = {key: src if key == src.key else data.load_domain(args.data, key) for key in domains}
    series, table = draw.columns(steps), conflict.predict_conflict(samples, agree, args.seed)
    found = evidence.correlations(series["skewness_eval"], series["cos"], args.seed)
    points = data.evaluation_subset(src.test, args.points)
    sk, _ = eval_skewness(base.model, points, src.test_labels, args.alpha)
    maps, texts = extremes(base.model, points, src.test_labels, src.classes, args.alpha, (0.1,))
    curves = {"all": target_curve(base), f"low {args.beta:g}": target_curve(ours)}
    n = f"{len(steps)} steps, {len(samples) // len(agree)} samples, {len(sk)} and {len(base.tgt.test)} test clouds"
    panels = clouds, (maps, texts), sk.cpu().numpy(), (series, found), draw.columns(groups), curves, table
    figure = draw_lesson(panels, args.steps, draw.caption(args, base.name, n))
    statistics = {"fig1": found, "persample": table}
    statistics |= {"moments": conflict.conflict_shares(samples, agree), "target_accuracy": curves}
    wrote = draw.write(args, figure, base.name, len(steps), args.seed, steps, statistics)
    whole = next(row for row in table if row["score"] == "skewness_eval" and row["step"] == "")
    ends = ", ".join(f"{name} {accuracy[-1]:.1%}" for name, (_, accuracy) in curves.items())
    rho, area = draw.with_interval(found, "spearman_of_differences"), draw.with_interval(whole, "auc") or "not computed"
    return f"Spearman of differences {rho}; AUC of skewness, eval, {area}; target accuracy {ends}\n{wrote}"


def target_curve(seen):
    """Steps and target test accuracy of a watched run."""
    truth = seen.tgt.test_labels.cpu().numpy()
    return [m["step"] for m in seen.moments], [float((m["target"] == truth).mean()) for m in seen.moments]


# ---------------------------------------------------------------- the sheet
def draw_lesson(panels, steps, title):
    """Clouds and accuracy; maps, skewness, groups; the claim step by step, in time and per sample."""
    clouds, (maps, texts), skewness, (series, found), groups, curves, table = panels
    figure = Figure(figsize=(18, 13), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.add_gridspec(3, 4)
    for k, (key, domain) in enumerate(clouds.items()):
        chair = int((domain.test_labels == domain.classes.index("chair")).nonzero()[0])
        points = domain.test[chair].cpu()
        scatter(figure.add_subplot(grid[0, k], projection="3d"), points, points[:, 2], f"{NAMES[key]}, a chair", 2)
    accuracy_curves(figure.add_subplot(grid[0, 3]), curves, "without SM-DSB (all) and with it")
    for k, ((points, level), text) in enumerate(zip(maps, texts)):
        scatter(figure.add_subplot(grid[1, k], projection="3d"), points, LEVELS[level] / 255, f"saliency: {text}")
    skewness_histogram(figure.add_subplot(grid[1, 2]), skewness, "source test clouds, eval mode")
    draw.group_curves(figure.add_subplot(grid[1, 3]), groups, steps, "ssl", "self-supervised loss", 10)
    draw.conflict_scatter(figure.add_subplot(grid[2, 0]), series, "eval", found)
    draw.conflict_in_time(figure.add_subplot(grid[2, 1]), series, "eval")
    bars = figure.add_subplot(grid[2, 2:])
    draw.auc_bars(bars, [row for row in table if row["step"] == ""])
    bars.set_title("does a score predict that a sample's own gradient conflicts? (right of .5: yes)", fontsize=9)
    return figure


def skewness_histogram(axes, skewness, text):
    """How wide the score spreads (n,), with its median."""
    axes.hist(skewness, bins=30, color="C0")
    axes.axvline(np.median(skewness), color="black", lw=1, label=f"median {np.median(skewness):+.2f}")
    axes.set(xlabel="skewness of the saliency map", ylabel="clouds", title=text)
    axes.legend(fontsize=8)


def accuracy_curves(axes, curves, text):
    """Target accuracy of several runs, name -> (steps, accuracy)."""
    for name, (step, accuracy) in curves.items():
        axes.plot(step, 100 * np.asarray(accuracy), marker=".", label=name)
    axes.set(xlabel="training step", ylabel="target test accuracy, %", title=text)
    axes.legend(fontsize=8)
