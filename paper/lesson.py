"""What a lecturer shows, on one sheet: the domains, two maps, accuracy, the score, and what it claims to predict.

make lesson        # built-in shapes, a CPU, ten minutes -> results/lesson/lesson.png
make lesson HTML=1 # and lesson.html, in which both clouds turn
"""

import argparse
import io
import textwrap

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

import data
from engine.base import UserError, write_atomically
from engine.metrics import classes_of, describe
from engine.picture import LEVELS, scatter, three_levels
from paper import command, conflict, draw, evidence
from paper.figures import CLOUDS, EVERY, SAMPLES, SCORED, settled, training, watch
from paper.finished import eval_skewness, extremes

DOMAINS = {"M": "a clean model", "S": "a model of another style", "SC": "a simulated scan"}
TRAINED = 0.9  # source accuracy at the end, below which the sheet warns
MAP_POINTS = 1024  # the network takes any number; of fewer a map is hard to see
BARS = {"skewness_eval": "skewness", "loss": "loss", "minus_confidence": "- confidence"}
BARS |= {"minus_cos_pseudo": "- cosine, G of pseudo-labels", "random": "random"}


@command(training(select="all"), EVERY, SCORED, SAMPLES, CLOUDS, folder="results/lesson")
def lesson(args):
    """What a lecturer shows, from one watched run without SM-DSB and a second one with it."""
    settled(args, pcm=False)
    if data.direction(args.task).dataset.DOMAINS.keys() != DOMAINS.keys():
        raise UserError(f"--task {args.task}: the sheet shows PointDA-10's domains; choose M_SC or another of them")
    steps, samples, agree, last_two = [], [], {}, conflict.moments_of(args)[-2:]

    def look(t, *live):
        if t % args.every == 0:
            steps.extend(conflict.step_conflict(t, args, *live))
        if t in last_two:
            found, agree[t] = conflict.look_at_samples(t, args, *live)
            samples.extend(found)

    masked = argparse.Namespace(**vars(args) | {"select": "low", "measure": "train"})
    base, ours = watch(args, look), watch(masked, lambda *live: None)
    src, tgt, truth = base.src, base.tgt, base.src.test_labels
    source, target = (
        [accuracy_curve(seen, which, labels) for seen in (base, ours)]
        for which, labels in (("source", truth), ("target", tgt.test_labels))
    )
    series, table = draw.columns(steps), conflict.predict_conflict(samples, agree, args.seed)
    found = evidence.correlations(series["skewness_eval"], series["cos"], args.seed)
    points = data.evaluation_subset(src.test, MAP_POINTS)
    sk, _ = eval_skewness(base.model, points, truth, args.alpha)
    maps, texts = extremes(base.model, points, truth, src.classes, args.alpha, (0.1,))
    known = float((classes_of(describe(base.model, points)[0]) == truth.cpu().numpy()).mean())

    ends = [curve[1][-1] for curve in source]
    state = f"Source accuracy {ends[0]:.0%} without and {ends[1]:.0%} with SM-DSB"
    if trained := min(ends) >= TRAINED:
        state += f"; {known:.0%} on the maps' {MAP_POINTS} points"
    else:
        state = f"NOT TRAINED, this sheet shows nothing: {state[0].lower()}{state[1:]}, below {TRAINED:.0%}"
    n = f"{len(steps)} steps, {len(samples) // len(agree)} samples, {len(truth)} and {len(tgt.test)} test clouds"
    whole = {row["score"]: row for row in table if row["step"] == ""}
    with rc_context({"font.size": 14}):
        title = draw.caption(args, base.name, n).replace("\n", ", ")
        panels = (
            (src, tgt),
            ([(points, three_levels(S)) for points, S in maps], texts),
            target,
            sk.cpu().numpy(),
            (series, found),
            whole,
        )
        figure = draw_lesson(panels, args.beta, f"{title}\n{state}", "black" if trained else "red")
        statistics = {"fig1": found, "persample": table, "moments": conflict.conflict_shares(samples, agree)}
        statistics |= {"source_accuracy": ends, "target_accuracy": target, "accuracy_on_the_maps_points": known}
        wrote = draw.write(args, figure, base.name, len(steps), args.seed, steps, statistics)
    keep_maps(f"{args.out}-maps.npz", maps, texts, title)
    rho = draw.with_interval(found, "spearman_of_differences")
    area = draw.with_interval(whole["skewness_eval"], "auc") or "not computed"
    return f"{state}\nSpearman of differences {rho}; AUC of skewness, eval, {area}\n{wrote}"


def keep_maps(path, maps, texts, title):
    """Both clouds and their maps as they are, for a page in which they turn."""
    points, S = (torch.stack(parts).numpy() for parts in zip(*maps))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, points=points, saliency=S, texts=np.array(texts), title=np.array(title))
    write_atomically(path, buffer.getvalue())


def accuracy_curve(seen, which, truth):
    """Steps and accuracy of a watched run on "source" validation or on "target" test, labels (n,)."""
    truth = truth.cpu().numpy()
    return [m["step"] for m in seen.moments], [float((m[which] == truth).mean()) for m in seen.moments]


# ---------------------------------------------------------------- the sheet
def draw_lesson(panels, beta, title, colour):
    """Both domains and two maps; accuracy, the spread of the score, its claim by step and by sample: a slide."""
    domains, (maps, texts), target, skewness, (series, found), bars = panels
    figure = Figure(figsize=(16, 9), layout="constrained")
    figure.suptitle(title, fontsize=14, color=colour)
    grid = figure.add_gridspec(4, 4, height_ratios=(4, 1, 4, 1))

    def panel(row, column, text, **kind):
        """Axes with a sentence below."""
        below = figure.add_subplot(grid[2 * row + 1, column])
        below.set_axis_off()
        below.text(0.5, 1, textwrap.fill(text, 36), ha="center", va="top")
        return figure.add_subplot(grid[2 * row, column], **kind)

    solid = {"projection": "3d", "computed_zorder": False}  # what is drawn last is in front
    words = "labels are given.", "no label is used."
    for column, (name, domain, text) in enumerate(zip(("Source", "Target"), domains, words)):
        axes = panel(0, column, f"A chair, {DOMAINS[domain.key]}: here {text}", **solid)
        points = domain.test[(domain.test_labels == domain.classes.index("chair")).nonzero()[0, 0]].cpu()
        draw_cloud(axes, [(points, points[:, 2], 3)], name)
    for column, (name, (points, level), text) in enumerate(zip(("High skewness", "Low skewness"), maps, texts), 2):
        n = np.bincount(level, minlength=3)
        text = f"A {text}. Top third of its range (red): {n[2]} of {len(level)} points; bottom third (blue): {n[0]}."
        common = n.argsort()[::-1]  # the rarer a level, the later and the larger it is drawn
        parts = [(points[level == k], LEVELS[[k]] / 255, 4 if k == common[0] else 90) for k in common if n[k]]
        draw_cloud(panel(0, column, text, **solid), parts, name)
    accuracy_curves(panel(1, 0, gap_text(target)), target)
    skewness_histogram(panel(1, 1, f"SM-DSB would mask the {1 - beta:.0%} right of the line."), skewness, beta)
    conflict_by_step(panel(1, 2, trend_text(found)), series)
    conflict_by_sample(panel(1, 3, chance_text(bars["skewness_eval"])), bars)
    return figure


def draw_cloud(axes, parts, name):
    """Parts [(points (n, 3), colours, size), ...] of one cloud, each in front of those before it."""
    for points, colours, size in parts:
        scatter(axes, points, colours, name, size)
    axes.set_box_aspect((1, 1, 1), zoom=1.3)
    axes.title.set_fontsize(16)


def accuracy_curves(axes, target):
    """Target accuracy without and with SM-DSB, [(steps, accuracy), ...]."""
    for (step, accuracy), name in zip(target, ("without SM-DSB", "with SM-DSB")):
        axes.plot(step, 100 * np.asarray(accuracy), marker=".", label=name)
    axes.set(xlabel="training step", ylabel="target accuracy, %", ylim=(0, None))
    axes.set_title("Does it help?", fontsize=16)
    axes.legend(loc="lower right", handlelength=1)


def gap_text(target):
    """What the end of both curves says: nothing, of one seed."""
    ends = [100 * accuracy[-1] for _, accuracy in target]
    return f"At the end {ends[0]:.0f} % and {ends[1]:.0f} %. One seed cannot say which is better."


def skewness_histogram(axes, skewness, beta):
    """How wide the score (n,) spreads; right of the line are those that are not among the beta lowest."""
    axes.hist(skewness, bins=30, color="C0")
    axes.axvline(np.quantile(skewness, beta), color="black")
    axes.set(xlabel="skewness of the map", ylabel="source clouds")
    axes.set_title("The score", fontsize=16)


def conflict_by_step(axes, series):
    """Each step a dot: mean skewness of fixed source clouds and cos(G_ssl, G_oracle), early ones dark."""
    axes.scatter(series["skewness_eval"], series["cos"], c=series["step"], s=30, cmap="viridis")
    axes.axhline(0, color="grey", lw=0.8)
    axes.set(xlabel="mean skewness", ylabel="cos(G_ssl, G_oracle)")
    axes.set_title("The claim, by step", fontsize=16)


def trend_text(found):
    """What the dots say, and their changes from look to look: what only drifts with training does not show in these."""
    say = lambda name: f"{found[name]:+.2f}, {verdict(found, name, 0, 'falls', 'rises', 'no trend seen')}"
    return f"Claimed to fall. Spearman {say('spearman')}; of changes {say('spearman_of_differences')}. Dark is early."


def conflict_by_sample(axes, bars):
    """AUC for "this sample's gradient opposes the oracle's" with its interval, by score; no bar where undefined."""
    for y, (name, text) in enumerate(reversed(BARS.items())):
        axes.plot(bars[name]["auc_interval"], [y, y], color="C3" if name.startswith("skewness") else "C0", lw=3)
        axes.plot(bars[name]["auc"], y, "o", color="black")
        axes.text(0.02, y + 0.2, text, transform=axes.get_yaxis_transform(), bbox={"color": "white", "pad": 1})
    axes.axvline(0.5, color="grey", lw=0.8, zorder=0)
    axes.set(xlabel="AUC; .5 is chance", yticks=[], ylim=(-0.4, len(BARS) - 0.2))
    axes.set_title("The claim, by sample", fontsize=16)


def chance_text(row):
    """Whether the score predicts which sample's gradient conflicts."""
    if not np.isfinite(row["auc"]):
        return "Not computed: the oracle gradient is not known well enough."
    found = verdict(row, "auc", 0.5, "worse than chance", "better than chance", "not seen to beat chance")
    return f"Does it find samples whose gradient opposes the oracle? Skewness: {found}."


def verdict(row, name, none, below, above, neither):
    """Which of three texts a number says: its interval is below `none`, above it, or on both sides (or unknown)."""
    low, high = row[f"{name}_interval"]
    return below if high < none else above if low > none else neither
