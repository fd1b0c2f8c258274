"""Runs side by side.

    python -m paper table runs/a runs/b              # -> results/table.md, .csv and .png; all of runs/ without a folder
    python -m paper table runs/c results/study.csv   # and the runs of an earlier table, whose folders may be gone

Rows are settings, their seeds pooled; the columns are those of eval.py. Differences are paired by seed, their errors
clustered by seed, and runs that were not trained are left out of them.
"""

import ast
import csv
import textwrap
from pathlib import Path

import numpy as np
from scipy import stats

import data
import stage1_ssl
from engine.base import UserError, csv_text, markdown, one_line, write_atomically
from engine.checked import fits, is_record
from engine.picture import save_figure
from eval import COLUMNS, FLAGS, HEAD, metrics_of, name_of, read_result, records, row
from paper import command, flag

GATE = 0.8  # source accuracy at the end, below which a run says nothing about the method
KEYS = ("fingerprint", "stage", "start", *FLAGS)  # records alike in all of them are one setting, pooled over seeds
# what a selection depends on: `all` on nothing, `random` on no score
KNOBS = {"low": ("beta", "score", "alpha", "measure"), "random": ("beta",), "all": ()}
KNOBS["high"] = KNOBS["low"]


# ---------------------------------------------------------------- any runs
RUNS = flag("runs", type=Path, nargs="*", help="folders with a result.json; default: all of runs/")
KEPT = flag("runs", type=Path, nargs="*", help="folders with a result.json, .csv of tables; default: all of runs/")


@command(KEPT, folder="results")
def table(args):
    """Finished runs side by side: OUT.md, .csv and .png, and OUT_seg of those that segment, if there are both."""
    kept = [path for path in args.runs if path.suffix == ".csv"]
    folders = [path for path in args.runs if path not in kept]
    results = results_of(folders) if folders or not kept else []
    return write_tables(args.out, results, [record for path in kept for record in read_rows(path)])


def results_of(runs, form={}):
    """Results of these folders, or of all of runs/ that are finished, of this form beside what all have."""
    folders = runs or sorted(path.parent for path in Path("runs").glob("*/result.json"))
    if not folders:
        raise UserError("no finished run under runs/ yet; make demo, or make M_S")
    return [whole_result(run, form) for run in dict.fromkeys(folders)]


def whole_result(run, form):
    """RUN/result.json with all that a figure needs, see engine.checked.fits; UserError where it lacks some."""
    result = read_result(run)
    if not fits(result, form):
        raise UserError(f"{run}/result.json: lacks what this figure shows; run python eval.py --run {run} again")
    return result


def read_rows(path):
    """The records that a table was written from, of its .csv; UserError where it is not one of this version."""
    try:
        with open(path, newline="") as file:
            rows = [read_row(row) for row in csv.DictReader(file)]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {one_line(error)}; give the .csv that make table or make study has written") from None
    if (
        not rows
        or any(None in record for record in rows)
        or not all(is_record(record, FLAGS, COLUMNS, data.directions()) for record in rows)
    ):
        raise UserError(f"{path}: no runs of a table of this version; give the .csv that make table has written")
    return rows


def read_row(row):
    """A line of a csv as the record it was: a flag that is empty is None, another empty cell was not there."""
    values = {key: plain(key, text or "") for key, text in row.items()}
    return {key: value for key, value in values.items() if value is not None or key in FLAGS}


def plain(key, text):
    """What csv_text wrote: numbers, lists and truths as they were, an empty cell None, the rest text."""
    if key in ("start", "data", "fingerprint", "device", "commit", "torch"):  # a sum in hex may look like a number
        return text
    try:
        value = ast.literal_eval(text) if text else None
    except (ValueError, SyntaxError):
        return text
    return float(value) if isinstance(stage1_ssl.SETTINGS.get(key), float) else value  # alpha 1.0 is written as 1


def write_tables(out, results, kept=()):
    """Write the tables of these results and records, accuracy and mean IoU apart; returns what they say."""
    kinds, texts = [], []
    for per_point in (False, True):
        own = [r for r in results if r["per_point"] == per_point]
        kinds.append((own, [*(r for r in kept if data.direction(r["task"]).per_point == per_point), *flat(own)]))
    both = all(rows for _, rows in kinds)
    for (own, rows), end in zip(kinds, ("", "_seg" if both else "")):
        if rows:
            write_atomically(f"{out}{end}.md", (text := side_by_side(rows)).encode())
            write_atomically(f"{out}{end}.csv", csv_text(rows).encode())
            if kept or len({record["seed"] for record in rows}) > 1:
                draw_seeds(f"{out}{end}.png", rows)
            else:
                draw_curves(f"{out}{end}.png", own)
            texts.append(f"{text}\nwrote {out}{end}.md, .csv and .png")
    return "\n".join(texts)


def flat(results):
    """One record a run and stage, with what a stage 2 started from."""
    return [record | {"start": start_of(result, record)} for result in results for record in records(result)]


def start_of(result, record):
    """In words, the flags in which the stage 1 behind a record of stage 2 differs from it; "" where none does."""
    if record["stage"] == 1:
        return ""
    if not result["stage1"]:
        return "from a stage 1 elsewhere"
    first = result["stage1"]["flags"]
    other = [f"{key} {first[key]}" for key in FLAGS if key in stage1_ssl.SETTINGS and first[key] != record[key]]
    return f"from a stage 1 with {' '.join(other)}" if other else ""


def pooled(rows, keys=KEYS):
    """Records alike in these keys, list by list, in the order of their first."""
    groups = {}
    for record in rows:
        groups.setdefault(str([record[key] for key in keys]), []).append(record)
    return list(groups.values())


def ordered(rows):
    """The settings of rows, pooled over seeds: by stage, direction and base, then in the order of their first."""
    return sorted(pooled(rows), key=lambda alike: [alike[0][key] for key in ("stage", "task", "ssl")])


def one_a_seed(group):
    """UserError when a seed would be counted twice in one cell."""
    seeds = [record["seed"] for record in group]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{name_of(group[0])}: two runs of one setting and seed; give each of them once")


def named(groups, text, keys=KEYS):
    """A text for each group: text(record) of its first, and each key in which groups of one text differ."""
    firsts, found = [group[0] for group in groups], []
    for record in firsts:
        twins = [r for r in firsts if (text(r), r["stage"]) == (text(record), record["stage"])]
        apart = [key for key in keys if len({str(r[key]) for r in twins}) > 1]
        found.append(", ".join([text(record), *(f"{key} {record[key]}" for key in apart)]))
    return found


def setting_of(record):
    """A record's setting in words, with what it started from."""
    return " ".join(filter(None, (name_of(record), record["start"])))


def trained(record):
    """Whether a record's source accuracy at its end passes the GATE; segmentation has none."""
    return data.direction(record["task"]).per_point or record["last_source"] >= GATE


def not_trained(rows):
    """ " **not trained** (seed 0 2)" of those records that do not pass the gate, "" where all do."""
    seeds = sorted(r["seed"] for r in rows if not trained(r))
    return f" **not trained** (seed {' '.join(map(str, seeds))})" if seeds else ""


def side_by_side(rows):
    """Markdown: a row for each setting and stage, seeds pooled; overall / mean class accuracy on the target."""
    lines = []
    groups = ordered(rows)
    for alike, name in zip(groups, named(groups, setting_of)):
        one_a_seed(alike)
        lines.append([name + not_trained(alike), *row(alike)[1:]])
    metric = "mean IoU" if data.direction(rows[0]["task"]).per_point else "accuracy, overall / mean class,"
    return "\n".join([*markdown(HEAD, lines), "", *differences(rows), footer(rows, metric)])


def pairs(rows, ours, other):
    """Records (a, b) of one stage, data, seed and setting, a selecting by `ours` and b by `other`.

    They share every knob that b's selection depends on: `all` is one run, whatever its beta says.
    """
    keys = [key for key in (*KEYS, "seed") if key not in ("select", *KNOBS["low"])]
    keys += KNOBS[other]
    found = []
    for a in rows:
        if a["select"] == ours:
            alike = [b for b in rows if b["select"] == other and all(a[key] == b[key] for key in keys)]
            found += [(a, b) for b in alike[-1:]]
    return found


def gap(a, b, column):
    """By how many points a is better than b in a column of eval.py."""
    main = metrics_of(data.direction(a["task"]).per_point)[0]
    return 100 * (a[f"{column}_{main}"] - b[f"{column}_{main}"])


def differences(rows):
    """Does `low` beat the controls? Its score minus theirs, paired by seed, trained runs alone: lines of markdown.

    A line for each setting of low, and one for each that was run in several directions or on several bases. In a line
    a run of the controls has one partner.
    """
    own = [r for r in rows if r["mtl"] == "sum" and not data.direction(r["task"]).oracle and trained(r)]
    found = {other: pairs(own, "low", other) for other in ("all", "random", "high")}
    ours, free = [r for r in own if r["select"] == "low"], ["task", "ssl", "fingerprint"]
    if own and data.direction(own[0]["task"]).per_point:
        free += ["steps", "eval_every"]  # there both follow from how many bodies a direction has
    settings, kept = pooled(ours), [key for key in KEYS if key not in free]
    families = [group for group in pooled(ours, kept) if len(pooled(group)) > 1]
    names = [*named(settings, setting_of), *named(families, family_of, kept)]
    lines = []
    for column in ("last", "source_val"):
        for group, name in zip([*settings, *families], names):
            part = {id(a) for a in group}
            of = lambda each: [(a["seed"], gap(a, b, column)) for a, b in each if id(a) in part]
            texts = [by_seed(of(each)) for each in found.values()]
            lines += [[f"{name}, stage {group[0]['stage']}, {column}", *texts]] if any(texts) else []
    head = ("low minus, points ± standard error over seeds", *found)
    note = f"Runs below the gate ({GATE:.0%} source accuracy) are left out."
    return [*markdown(head, lines), "", note, ""] if lines else []


def family_of(record):
    """A record's setting in words, but for its direction and base."""
    _, backbone, _, more = setting_of(record).split(" ", 3)
    return f"all directions and bases, {backbone} {more}"


def by_seed(gaps):
    """(seed, difference) pairs as text: the mean, its standard error clustered by seed, and what could have been seen.

    Pairs of one seed share initial weights, order and test clouds, so they are averaged first; n is of seeds. A mean
    inside the 95 % interval of zero is called too small to see, with the smallest effect that n seeds would have shown
    four times in five: (t(.975) + t(.8)) standard errors with n - 1 degrees of freedom, 2.8 of them for many seeds.
    """
    if not gaps:
        return ""
    seeds = sorted({seed for seed, _ in gaps})
    means = np.array([np.mean([value for s, value in gaps if s == seed]) for seed in seeds])
    n, mean = len(seeds), means.mean()
    if n == 1:
        return f"{mean:+.1f} (1 seed, {len(gaps)} pairs: says nothing)"
    error = means.std(ddof=1) / n**0.5
    text = f"{mean:+.1f} ± {error:.1f} ({n} seeds, {len(gaps)} pairs)"
    if abs(mean) > stats.t.ppf(0.975, n - 1) * error:
        return text
    visible = (stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) * error
    return f"{text}: not seen, smallest visible {visible:.1f}"


def footer(rows, metric):
    """Where the numbers of a table are from."""
    several = lambda key: "; ".join(sorted({str(r[key]) for r in rows}))
    clouds = {f"{r['task']} n = {r['n_test']} test clouds, sha256 {r['fingerprint']}" for r in rows}
    minutes = sum(r["seconds"] for r in rows) / 60
    lines = [
        f"Target test {metric} in percent, mean ± std over seeds. Points a cloud: {several('points')}.",
        f"Data: {several('data')}. {'; '.join(sorted(clouds))}.",
        f"Device: {several('device')}. Commit: {several('commit')}. torch {several('torch')}. "
        f"{minutes:.0f} min in all.",
    ]
    return "\n".join(lines) + "\n"


def heading(rows, word):
    """A figure's title: data, test clouds and seeds of its records."""
    several = lambda texts: ", ".join(sorted(set(texts)))
    n = several(f"{r['task']} n = {r['n_test']} test clouds" for r in rows)
    seeds = " ".join(map(str, sorted({r["seed"] for r in rows})))
    return "\n".join([*textwrap.wrap(several(r["data"] for r in rows), 150), f"{n}; {word} {seeds}"])


def draw_seeds(path, rows):
    """A line for each setting and stage: its seeds' scores on the target, their mean, and on source validation.

    Over seeds a method shows itself, where a curve shows a run. The hollow dots are the best moment of a run on the
    target's own labels, a leak: how far they lie off says how much a choice of the checkpoint could win.
    """
    from matplotlib.figure import Figure

    groups = ordered(rows)
    names = [f"{text}, stage {alike[0]['stage']}" for alike, text in zip(groups, named(groups, setting_of))]
    main = metrics_of(per_point := data.direction(rows[0]["task"]).per_point)[0]
    metric = "mean IoU" if per_point else "accuracy"
    figure = Figure(figsize=(11, 1.8 + 0.3 * len(groups)), layout="constrained")
    target, source = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for line, alike in enumerate(groups):
        percent = lambda key: [100 * r[key] for r in alike]
        last = percent(f"last_{main}")
        target.plot(percent(f"oracle_{main}"), [line] * len(alike), "o", mfc="none", color="grey", ms=5)
        target.plot(last, [line] * len(alike), "o", color="C0", ms=5, alpha=0.7)
        target.plot(np.mean(last), line, "|", color="C3", ms=16, mew=2)
        source.plot(percent("last_source"), [line] * len(alike), "o", color="C2", ms=5, alpha=0.7)
    target.plot([], [], "C0o", label="a seed at its last step")
    target.plot([], [], "C3|", ms=12, mew=2, label="their mean")
    target.plot([], [], "o", mfc="none", color="grey", label="a seed at its best step by target labels, a leak")
    if not per_point:
        source.axvline(100 * GATE, color="black", lw=0.5, label=f"gate: {GATE:.0%}")
    target.set(xlabel=f"target test {metric}, %", yticks=range(len(groups)))
    target.set_yticklabels([f"{name}, {len(alike)} seeds" for name, alike in zip(names, groups)], fontsize=8)
    target.invert_yaxis()
    source.set(xlabel=f"source validation {metric} at the end, %")
    for axes in (target, source):
        axes.grid(axis="y", lw=0.3)
    figure.suptitle(heading(rows, "seeds"), fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    save_figure(figure, path)


def draw_curves(path, results):
    """Over both stages: on the target, with the share of right pseudo-labels dashed, and on source validation.

    A line for each run; seeds share their setting's colour and its line of the legend.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    target, source = figure.subplots(1, 2, sharex=True)
    colours, palette, finals = {}, colormaps["tab20"].colors, [flat([r])[-1] for r in results]
    for r, name in zip(results, named([[record] for record in finals], setting_of)):
        label = None if name in colours else name
        colour = colours.setdefault(name, palette[len(colours) * 2 % 19])
        curves = [part["curve"] for part in (r["stage1"], r["stage2"]) if part]
        moments = [(begin + p["step"], p) for begin, curve in zip((0, curves[0][-1]["step"]), curves) for p in curve]
        for axes, key, style in ((target, "target", ".-"), (source, "source", ".-"), (target, "pseudo", "--")):
            points = np.reshape([(step, 100 * p[key]) for step, p in moments if key in p], (-1, 2))
            lines = axes.plot(*points.T, style, color=colour, ms=4, lw=0.8 if key == "pseudo" else 1.2)
            lines[0].set_label(label if key == "target" else None)
        for axes in (target, source) if len(curves) > 1 else ():
            axes.axvline(curves[0][-1]["step"], color="grey", lw=0.5)
    handles, _ = target.get_legend_handles_labels()
    if any("pseudo" in p for r in results if r["stage2"] for p in r["stage2"]["curve"]):
        handles += target.plot([], [], "--", lw=0.8, color="grey", label="share of right pseudo-labels")
    if not results[0]["per_point"]:
        text = f"gate: {GATE:.0%} on source validation"
        handles.append(source.axhline(100 * GATE, color="black", lw=0.5, label=text))
    figure.suptitle(heading(finals, "seed"), fontsize=9)
    metric = "mean IoU" if results[0]["per_point"] else "accuracy"
    for axes, text in ((target, "target test"), (source, "source validation")):
        axes.set(xlabel="step (stage 2 follows stage 1 at the grey line)", ylabel=f"{text} {metric}, %")
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    save_figure(figure, path)
