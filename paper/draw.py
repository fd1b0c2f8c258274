"""Drawing the figures, from numbers alone: what is measured is in figures.py, conflict.py and evidence.py.

Each draw_* returns a matplotlib Figure for `write`.
"""

import json
import math

import numpy as np
from matplotlib.figure import Figure

from engine.base import csv_text, plain, provenance, write_atomically
from engine.picture import LEVELS, save_figure, scatter
from eval import confusion_axes
from paper.conflict import KNOWN, PREDICTORS

COLOURS = {"low": "C0", "high": "C3"}


# ---------------------------------------------------------------- what is written
def write(args, figure, name, n, seed, rows, statistics):
    """OUT.png; OUT.csv, the numbers of the figure; OUT.json, what they are from and what they say. Says so in a line.

    name: of the data; rows: [{column: value}, ...]; statistics: of plain values.
    """
    where = ("data", "out", "init", "command")  # folders of this machine: the data has a name
    record = {"figure": args.what, "data": name, "n": n, "seed": seed}
    record["args"] = {key: value for key, value in plain(args).items() if key not in where}
    record |= {key: value for key, value in provenance(getattr(args, "device", "cpu")).items() if key not in where}
    record["statistics"] = statistics
    save_figure(figure, f"{args.out}.png")
    write_atomically(f"{args.out}.csv", csv_text([empty_nan(row) for row in rows]).encode())
    write_atomically(f"{args.out}.json", json.dumps(empty_nan(record), indent=1, default=str).encode())
    return f"wrote {args.out}.png, .csv and .json"


def empty_nan(value):
    """A value for csv and json, where a number that does not exist is empty."""
    if isinstance(value, dict):
        return {key: empty_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [empty_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def caption(args, name, n, beta=True):
    """What a figure was made from, for its title; name: of the data, n: of what, as text."""
    kept = args.select if args.select in ("all", "freeze") or not beta else f"{args.select} {args.beta:g}"
    return f"{args.task}, {args.backbone}, {args.ssl}, {kept}, seed {args.seed}, n = {n}\n{name}"


def with_interval(row, name):
    """ "0.53 [0.48, 0.58]" of a number and its interval; "" where it is not defined."""
    low, high = row[f"{name}_interval"]
    if not math.isfinite(row[name]):
        return ""
    return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]" if math.isfinite(low) else f"{row[name]:.2f}"


# ---------------------------------------------------------------- pages
def columns(rows):
    """Rows as named columns: [{"a": 1}, ...] -> {"a": array}."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def page(width, height, title, rows=1, columns=1):
    """A figure with its title and a grid of axes (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=9)
    return figure, figure.subplots(rows, columns, squeeze=False)


# ---------------------------------------------------------------- Fig. 1
def conflict_scatter(axes, series, mode, found):
    """Each step a point: mean skewness of fixed source clouds and cos(G_ssl, G_oracle), coloured by the step."""
    dots = axes.scatter(series[f"skewness_{mode}"], series["cos"], c=series["step"], s=12, cmap="viridis")
    axes.axhline(0, color="grey", lw=0.5)
    axes.set(xlabel=f"mean skewness of fixed source clouds ({mode} mode)", ylabel="cos(G_ssl, G_oracle)")
    text = f"Pearson {with_interval(found, 'pearson')}\nSpearman {with_interval(found, 'spearman')}"
    axes.set_title(f"{text}\nSpearman of differences {with_interval(found, 'spearman_of_differences')}", fontsize=8)
    axes.figure.colorbar(dots, ax=axes, label="training step")


def conflict_in_time(axes, series, mode):
    """Skewness and conflict against the step: what drifts with training correlates with whatever else does."""
    axes.plot(series["step"], series["cos"], color="C0", lw=1)
    axes.axhline(0, color="grey", lw=0.5)
    axes.set(xlabel="training step", ylabel="cos(G_ssl, G_oracle), blue")
    other = axes.twinx()
    other.plot(series["step"], series[f"skewness_{mode}"], color="C1", lw=1)
    other.set_ylabel(f"mean skewness, {mode} mode, orange")


def draw_fig1(series, found, title):
    """Skewness of both modes against conflict, and both against the step."""
    figure, axes = page(13, 4, title, 1, 3)
    for ax, mode in zip(axes[0], ("train", "eval")):
        conflict_scatter(ax, series, mode, found[mode])
    conflict_in_time(axes[0, 2], series, "train")
    return figure


# ---------------------------------------------------------------- per sample
def auc_bars(axes, rows):
    """AUC for "cosine below 0" of each score with its interval; an undefined one has no bar."""
    rows, names = {row["score"]: row for row in rows}, list(PREDICTORS)[::-1]
    for y, name in enumerate(names):
        area, (low, high) = rows[name]["auc"], rows[name]["auc_interval"]
        if math.isfinite(area):
            axes.plot([low, high], [y, y], color="C3" if name.startswith("skewness") else "C0", lw=2)
            axes.plot(area, y, "o", color="black", ms=4)
    axes.set_yticks(range(len(names)), [PREDICTORS[name] for name in names], fontsize=8)
    axes.axvline(0.5, color="grey", lw=0.5)
    axes.set(xlabel="AUC, 95 % interval over clouds")


def draw_persample(table, shares, title):
    """A panel for each moment, and one for their mean."""
    figure, axes = page(3.2 * len(shares) + 4.5, 4.5, title, 1, len(shares) + 1)
    for ax, share in zip(axes[0], shares):
        auc_bars(ax, [row for row in table if row["step"] == share["step"]])
        known = "" if share["oracle_halves_cos"] >= KNOWN else "\nG_oracle unknown: its halves are apart"
        ax.set_title(
            f"before step {share['step']}: {share['conflict']:.0%} of {share['n']} conflict{known}", fontsize=8
        )
    auc_bars(axes[0, -1], [row for row in table if row["step"] == ""])
    axes[0, -1].set_title("mean of the moments that have one", fontsize=8)
    for ax in axes[0, 1:]:
        ax.set_yticklabels([])
    return figure


# ---------------------------------------------------------------- Fig. 3
def draw_fig3(results, names, title):
    """Confusion matrices side by side, shares of each true class at the source-validation step, counts written in."""
    figure, axes = page(11, 5.5, title, 1, len(results))
    for ax, result, name in zip(axes[0], results, names):
        confusion_axes(ax, result)
        ax.set_title(name, fontsize=8)
    return figure


# ---------------------------------------------------------------- Fig. 4, 9
def running_mean(x, width):
    """Mean of the last `width` finite values at each place, (n,) -> (n,)."""
    parts = [x[max(0, i - width + 1) : i + 1] for i in range(len(x))]
    return np.array([np.nanmean(part) if np.isfinite(part).any() else np.nan for part in parts])


def draw_fig4(series, title):
    """Both cosines against the step, one line a beta: a running mean, with the single steps faint behind it."""
    figure, axes = page(11, 4, title, 1, 2)
    texts = {"cos_sum": "cos(G_sum, G_oracle)", "cos_ssl": "cos(G_ssl, G_cls)"}
    for ax, (name, text) in zip(axes[0], texts.items()):
        for k, beta in enumerate(np.unique(series["beta"])):
            own = series["beta"] == beta
            step, value = series["step"][own], series[name][own]
            ax.plot(step, value, color=f"C{k}", lw=0.5, alpha=0.3)
            width = max(1, len(step) // 10)
            ax.plot(step, running_mean(value, width), color=f"C{k}", label=f"β = {beta:g}")
        ax.axhline(0, color="grey", lw=0.5)
        ax.set(xlabel="training step", ylabel=text)
    axes[0, 0].legend(fontsize=8, title=f"mean of the last {width}", title_fontsize=8)
    return figure


# ---------------------------------------------------------------- Fig. 5
def draw_fig5(clouds, texts, title):
    """Clouds [((N, 3), levels (N,)), ...]: the high-skew half above, the low-skew half below."""
    columns = len(texts) // 2
    figure = Figure(figsize=(3.2 * columns, 7))
    figure.suptitle(title, fontsize=8)
    for k, ((points, level), text) in enumerate(zip(clouds, texts)):
        scatter(figure.add_subplot(2, columns, k + 1, projection="3d"), points, LEVELS[level] / 255, text)
    names = ["saliency in the lowest third of its range", "middle third", "highest third"]
    handles = [figure.axes[0].plot([], [], "o", color=c / 255, label=n)[0] for c, n in zip(LEVELS, names)]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=8)
    return figure


# ---------------------------------------------------------------- Fig. 6
def group_curves(axes, series, steps, loss, text, bins=20):
    """Mean and +- one standard deviation over samples of a group's loss, in `bins` equal stretches of training."""
    place = series["step"] * bins // steps
    for group, colour in COLOURS.items():
        own = series["group"] == group
        parts = [(b, series[loss][own & (place == b)]) for b in np.unique(place[own])]
        at = np.array([(b + 0.5) * steps / bins for b, _ in parts])
        mean, std = (np.array([f(values) for _, values in parts]) for f in (np.mean, np.std))
        axes.plot(at, mean, color=colour, label=f"{group} skewness")
        axes.fill_between(at, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
    axes.set(xlabel="training step", ylabel=text, title="mean ± std over samples")
    axes.title.set_fontsize(8)
    axes.legend(fontsize=8)


def draw_fig6(series, steps, title):
    """Both losses of both groups."""
    figure, axes = page(11, 4, title, 1, 2)
    group_curves(axes[0, 0], series, steps, "ssl", "self-supervised loss")
    group_curves(axes[0, 1], series, steps, "cls", "classification loss, nats")
    return figure


# ---------------------------------------------------------------- Fig. 7
def draw_fig7(series, reported, title):
    """Mean difference over the clouds with a wrong pseudo-label, with its standard error, and the histogram."""
    figure, axes = page(11, 4, title, 1, 2)
    steps, wrong = np.unique(series["step"]), series["wrong"] == 1
    for mode, colour in (("train", "C1"), ("eval", "C0")):
        gap = series[f"gap_{mode}"]
        parts = [(t, gap[wrong & (series["step"] == t)]) for t in steps]
        points = [(t, g.mean(), g.std() / len(g) ** 0.5) for t, g in parts if len(g)] or [(0, 0, 0)]
        t, mean, error = (np.array(v) for v in zip(*points))
        axes[0, 0].errorbar(t, mean, error, color=colour, marker=".", label=f"{mode} mode, wrong labels")
        axes[0, 1].hist(gap[wrong], bins=40, histtype="step", color=colour, label=f"{mode} mode")
    axes[0, 0].axhline(reported, color="grey", ls="--", lw=0.8, label=f"the paper: about {reported:g}")
    for ax in axes[0]:
        ax.legend(fontsize=8)
    axes[0, 0].set(xlabel="step of stage 2", ylabel="skewness, pseudo- minus true label (mean ± s.e.)")
    axes[0, 1].set(xlabel="skewness, pseudo- minus true label", ylabel="clouds with a wrong pseudo-label, all steps")
    return figure


# ---------------------------------------------------------------- Fig. 8, 10
def knob_curve(axes, rows, knob, text):
    """Accuracy against one setting: mean over seeds with their standard deviation, and each seed as a dot."""
    rows = sorted(rows, key=lambda row: row[knob])
    values = sorted({row[knob] for row in rows})
    texts = {"source_val": "at best source validation", "last": "last step"}
    for column, colour in (("source_val", "C0"), ("last", "C1")):
        groups = [[100 * row[column] for row in rows if row[knob] == value] for value in values]
        mean, std = [np.mean(g) for g in groups], [np.std(g, ddof=1) if len(g) > 1 else 0 for g in groups]
        axes.errorbar(values, mean, std, color=colour, marker="o", capsize=3, label=texts[column])
        axes.plot([row[knob] for row in rows], [100 * row[column] for row in rows], ".", color=colour, alpha=0.5)
    axes.set(xlabel=text, ylabel="target test accuracy, %")
    axes.legend(fontsize=8)


def draw_fig8(betas, alphas, curves, title):
    """Against beta, against alpha, and the source-validation curve of each beta, mean over seeds."""
    figure, axes = page(14, 4, title, 1, 3)
    knob_curve(axes[0, 0], betas, "beta", "β, kept share (α = 1)")
    text = f"α, radius exponent (β = {alphas[0]['beta']:g})" if alphas else "α (no run)"
    knob_curve(axes[0, 1], alphas, "alpha", text)
    for beta, (step, accuracy) in curves.items():
        axes[0, 2].plot(step, 100 * accuracy, marker=".", label=f"β = {beta:g}")
    axes[0, 2].set(xlabel="training step", ylabel="source validation accuracy, %")
    axes[0, 2].legend(fontsize=8)
    return figure


# ---------------------------------------------------------------- Fig. 11
def draw_fig11(maps, labels, classes, names, title):
    """t-SNE of target features [(n, 2), ...] side by side, coloured by true class (n,); the axes have no unit."""
    figure, axes = page(11, 5, title, 1, len(maps))
    for ax, xy, name in zip(axes[0], maps, names):
        for c in np.unique(labels):
            ax.plot(*xy[labels == c].T, "o", ms=3, color=f"C{c}", label=classes[c])
        ax.set(title=name, xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
        ax.title.set_fontsize(8)
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# ---------------------------------------------------------------- additive-noise model
def draw_anm(fits, title):
    """Both ways: data and smoothing spline above, residual against cause below; everything standardised."""
    figure, axes = page(10, 7.5, title, 2, 2)
    for (name, fit), (above, below) in zip(fits.items(), axes.T):
        cause, effect = name.split(" -> ")
        order = np.argsort(fit["cause"])
        above.plot(fit["cause"], fit["effect"], ".", ms=3)
        above.plot(fit["cause"][order], fit["fit"][order], color="C3")
        above.set(xlabel=f"{cause}, standardised", ylabel=f"{effect}, standardised")
        above.set_title(f"{name}: HSIC {fit['hsic']:.3f}, p = {fit['p']:.2g}, n = {fit['n']}", fontsize=8)
        below.plot(fit["cause"], fit["effect"] - fit["fit"], ".", ms=3)
        below.set(xlabel=f"{cause}, standardised", ylabel=f"residual of {effect}")
    return figure
