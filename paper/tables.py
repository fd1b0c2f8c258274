"""Runs side by side, and the paper's Tables I, II and III with the paper's numbers beside ours.

    python -m paper table runs/a runs/b              # -> results/table.md, .csv and .png; all of runs/ without a folder

Rows are settings, their seeds pooled; the columns are those of eval.py. A method of Tables I to III has four lines: the
paper's number, and ours at the last step, at the step best on source validation (the headline), and at the best of the
target test set (a leak). cells.py finds their runs.
"""

import csv
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

import data
from datasets import pointda, pointsegda
from engine.base import UserError, csv_text, write_atomically
from engine.picture import save_figure
from eval import COLUMNS, FLAGS, HEAD, markdown, metrics_of, name_of, read_result, records, row, spread
from paper import command, flag

# what a selection depends on: `all` on nothing, `random` on no score
KNOBS = {"low": ("beta", "score", "alpha", "measure"), "random": ("beta",), "all": ()}
KNOBS["high"] = KNOBS["low"]


# ---------------------------------------------------------------- any runs
@command(flag("runs", type=Path, nargs="*", help="folders with a result.json; default: all of runs/"), folder="results")
def table(args):
    """Finished runs side by side: OUT.md, .csv and .png, and OUT_seg of those that segment, if there are both."""
    folders = args.runs or sorted(path.parent for path in Path("runs").glob("*/result.json"))
    if not folders:
        raise UserError("no finished run under runs/ yet; make demo, or make M_S")
    return write_tables(args.out, [read_result(run) for run in dict.fromkeys(folders)])


def write_tables(out, results):
    """Write the tables of these results, accuracy and mean IoU apart; returns what they say."""
    kinds, texts = [[r for r in results if r["per_point"] == per_point] for per_point in (False, True)], []
    for kind, end in zip(kinds, ("", "_seg" if all(kinds) else "")):
        if kind:
            write_atomically(f"{out}{end}.md", (text := side_by_side(kind)).encode())
            write_atomically(f"{out}{end}.csv", csv_text(flat(kind)).encode())
            draw_curves(f"{out}{end}.png", kind)
            texts.append(f"{text}\nwrote {out}{end}.md, .csv and .png")
    return "\n".join(texts)


def flat(results):
    """One record a run and stage."""
    return [record for result in results for record in records(result)]


def pooled(rows):
    """Records alike in all but the seed, list by list, in the order of their first."""
    groups = {}
    for record in rows:
        groups.setdefault(str([record[key] for key in ("fingerprint", "stage", *FLAGS)]), []).append(record)
    return list(groups.values())


def side_by_side(results):
    """Markdown: a row for each setting and stage, seeds pooled; overall / mean class accuracy on the target."""
    rows = flat(results)
    lines = markdown(HEAD, map(row, sorted(pooled(rows), key=lambda alike: alike[0]["stage"])))
    metric = "mean IoU" if results[0]["per_point"] else "accuracy, overall / mean class,"
    return "\n".join([*lines, "", *differences(rows), footer(results, metric)])


def pairs(rows, ours, other):
    """Records (a, b) of one stage, data, seed and setting, a selecting by `ours` and b by `other`.

    They share every knob that b's selection depends on: `all` is one run, whatever its beta says.
    """
    keys = [key for key in ("fingerprint", "stage", "seed", *FLAGS) if key not in ("select", *KNOBS["low"])]
    keys += KNOBS[other]
    found = []
    for a in rows:
        if a["select"] == ours:
            alike = [b for b in rows if b["select"] == other and all(a[key] == b[key] for key in keys)]
            found += [(a, b) for b in alike[-1:]]
    return found


def gap(a, b):
    """By how many points a is better than b at its source-validation step."""
    main = metrics_of(data.direction(a["task"]).per_point)[0]
    return 100 * (a[f"source_val_{main}"] - b[f"source_val_{main}"])


def differences(rows):
    """Does `low` beat the controls? Its score minus theirs, paired by seed: lines of markdown, none without a pair."""
    own = [r for r in rows if r["mtl"] == "sum" and not data.direction(r["task"]).oracle]
    found = {other: pairs(own, "low", other) for other in ("all", "random", "high")}
    lines = []
    for group in pooled([r for r in own if r["select"] == "low"]):
        texts = [signed([gap(a, b) for a, b in each if a in group]) for each in found.values()]
        lines += [[f"{name_of(group[0])}, stage {group[0]['stage']}", *texts]] if any(texts) else []
    for n in (1, 2):  # a run's two stages are not independent
        texts = [mean_error([gap(a, b) for a, b in each if a["stage"] == n]) for each in found.values()]
        lines += [[f"all of stage {n}, ± standard error (pairs)", *texts]] if any(texts) else []
    return [*markdown(("low minus, points, ± std over seeds", *found), lines), ""] if lines else []


def signed(gaps):
    """Mean and sample standard deviation of differences, with a sign."""
    return f"{np.mean(gaps):+.1f}" + (f" ± {np.std(gaps, ddof=1):.1f}" if len(gaps) > 1 else "") if gaps else ""


def mean_error(gaps):
    """Mean of differences with its standard error; "" below two."""
    error = np.std(gaps, ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else None
    return "" if error is None else f"{np.mean(gaps):+.1f} ± {error:.1f} ({len(gaps)})"


def footer(results, metric):
    """Where the numbers of a table are from."""
    several = lambda values: "; ".join(sorted(set(map(str, values))))
    describe = lambda r: f"{r['task']} n = {r['n_test']} test clouds, sha256 {r['data']['fingerprint'][:12]}"
    minutes = sum(r["seconds"] for r in results) / 60
    lines = [
        f"Target test {metric} in percent, mean ± std over seeds. "
        f"Points a cloud: {several(r['points'] for r in results)}.",
        f"Data: {several(r['data']['name'] for r in results)}. {several(map(describe, results))}.",
        f"Device: {several(r['device'] for r in results)}. Commit: {several(r['commit'] for r in results)}. "
        f"torch {several(r['versions']['torch'] for r in results)}. {minutes:.0f} min in all.",
    ]
    return "\n".join(lines) + "\n"


def draw_curves(path, results):
    """Target accuracy over both stages, one line for each run, one colour for each setting."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    colours, palette = {}, colormaps["tab20"].colors
    for r in results:
        begin, curve = 0, []
        for part in (r["stage1"], r["stage2"]):
            if part:
                curve += [(begin + p["step"], p["target"]) for p in part["curve"]]
                begin, name = curve[-1][0], name_of(part["flags"])
        if r["stage1"] and r["stage2"]:
            axes.axvline(r["stage1"]["curve"][-1]["step"], color="grey", lw=0.5)
        label = None if name in colours else name  # seeds share a colour and a line of the legend
        axes.plot(*zip(*curve), marker=".", color=colours.setdefault(name, palette[len(colours) * 2 % 19]), label=label)
    names = "\n".join(textwrap.wrap("; ".join(sorted({r["data"]["name"] for r in results})), 100))
    n = ", ".join(f"{task} n = {n}" for task, n in sorted({(r["task"], r["n_test"]) for r in results}))
    metric = "mean IoU" if results[0]["per_point"] else "accuracy"
    axes.set(xlabel="step (stage 2 follows stage 1 at the grey line)", ylabel=f"target test {metric}")
    axes.set_title(f"{names}\n{n}", fontsize=8)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    save_figure(figure, path)


# ---------------------------------------------------------------- what the paper prints
def reported():
    """The paper's numbers: (method, backbone, direction) -> text, in the paper's order."""
    with open(Path(__file__).with_name("reported.csv")) as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {(r["method"], r["backbone"], r["direction"]): r["value"] for r in rows}


def method_of(flags):
    """The paper's name of a setting, or None: the controls and comparators have no row in it."""
    way, ssl = data.direction(flags["task"]), flags["ssl"]
    names = {"none": "No Adaptation", "selfdist": "Self-dist GCN", "gast": "GAST", "mlsp": "MLSP"}
    names |= {"defrec": "DefRec"} if way.per_point else {"defrec+pcm": "DefRec+PCM"}
    base = flags["select"] == "all" or ssl == "none"
    if way.oracle:
        return "Oracle" if ssl == "none" else None
    if flags["mtl"] != "sum" or not (base or flags["select"] == "low"):
        return None
    if ssl not in names or (ssl == "selfdist" and flags["gcn_iters"] == 0):
        return None
    beta = 0.8 if flags["backbone"] == "pointnet" else 0.7  # Table III, Table I
    if base:
        return names[ssl]
    given = flags["beta"], flags["alpha"], flags["score"]
    return f"{names[ssl]} + SM-DSB" if given == (beta, 1, "skewness") else None


@dataclass(frozen=True)
class Table:
    """Which runs a table consists of: a method is SSL-SELECT, or `oracle`; settings are its own defaults of stage 1.

    backbone and note: of a table of the paper.
    """

    title: str
    dataset: ModuleType
    methods: tuple
    settings: dict
    backbone: str | None = None
    note: str = ""

    @property
    def directions(self):
        """Names of its columns."""
        ways = data.directions().values()
        return tuple(way.name for way in ways if way.dataset is self.dataset and not way.oracle)


both = lambda *names: tuple(f"{name}-{select}" for name in names for select in ("all", "low"))
TABLES = {
    "table1": Table(
        "Table I",
        pointda,
        ("none-all", "defrec+pcm-all", "mlsp-all", *both("gast", "selfdist")),
        {},
        "dgcnn",
        "Table I's caption says that checkpoints were selected on the test set, so that its numbers may belong beside "
        "*oracle*.",
    ),
    "table2": Table(
        "Table II",
        pointsegda,
        ("oracle", "none-all", *both("defrec", "mlsp")),
        {},
        "dgcnn-seg",
        "The paper prints 58.1 and 67.2 as the averages of DefRec and of DefRec + SM-DSB; the rows average 57.1 and "
        "58.2, as here. DefRec's author says that the column labels of its own Table 4 were permuted (DefRec_and_PCM, "
        "issue 9); whether Table II inherits that is unknown.",
    ),
    "table3": Table(
        "Table III",
        pointda,
        (
            "none-all",
            *both("defrec+pcm", "gast", "mlsp", "selfdist"),
            *(f"defrec+pcm-{select}" for select in ("random", "all+pcgrad", "all+cagrad", "all+cgdm")),
        ),
        {"backbone": "pointnet", "steps": 20_000, "beta": 0.8},
        "pointnet",
        "Of its Table III the paper's text quotes two numbers, which are the only ones given here.",
    ),
    "study": Table("study", pointda, ("none-all", *both("selfdist"), "selfdist-random"), {}),
}


# ---------------------------------------------------------------- Tables I, II, III
LINES = {"last": "last", "source_val": "**source val**", "oracle": "oracle (a leak)"}


def final(result):
    """The record of the stage that counts: the last that was run, for no adaptation the first."""
    found = records(result)
    return found[0] if result["ssl"] == "none" else found[-1]


def columns_of(record, directions):
    """The columns that a run belongs to: its own; an oracle, every one with its target."""
    way = data.direction(record["task"])
    if not way.oracle:
        return [record["task"]]
    return [name for name in directions if data.direction(name).target == way.target]


def row_name(record):
    """The paper's name of a setting, or ours without the direction."""
    stage = "" if record["ssl"] == "none" else f", stage {record['stage']}"
    return (method_of(record) or name_of(record).removeprefix(f"{record['task']} {record['backbone']} ")) + stage


def rows_of(finals, which):
    """Name -> {line: {direction: text}}: the paper's methods in its order, then what else was run."""
    directions, main = which.directions, metrics_of(which.dataset.PER_POINT)[0]
    paper = {key: value for key, value in reported().items() if key[1] == which.backbone and key[2] in directions}
    found = defaultdict(lambda: defaultdict(list))
    for record in finals:
        for name in columns_of(record, directions):
            found[row_name(record)][name].append(record)
    rows = {}
    for method in dict.fromkeys(key[0] for key in paper):
        names = [name for name in found if name.partition(", stage")[0] == method] or [method]
        for name in names:
            rows[name] = {"paper": {d: paper.get((method, which.backbone, d), "") for d in directions}}
    for name, cells in found.items():
        lines = rows.setdefault(name, {})
        for column in COLUMNS:
            text = {d: f"{spread([r[f'{column}_{main}'] for r in own])} ({len(own)})" for d, own in cells.items()}
            lines[LINES[column]] = text
    return rows


def average(cells, directions):
    """Mean of a line over the directions, where none is missing."""
    values = [float(cells[d].split()[0]) for d in directions if cells.get(d)]
    return f"{sum(values) / len(values):.1f}" if len(values) == len(directions) else ""


def paper_table(which, results):
    """Markdown of a Table of the paper; UserError when runs of different data or settings would meet in a cell."""
    title, directions, finals = which.title, which.directions, [final(result) for result in results]
    alike = {tuple(r[key] for key in ("data", "points", "batch_size", "up", "unit_sphere")) for r in finals}
    trained = [data.direction(r["task"]).source for r in finals]
    steps = {(source, r["steps"]) for source, r in zip(trained, finals)}  # epochs of what is trained on
    if len(alike) > 1 or len(steps) > len(set(trained)):
        raise UserError(f"{title}: the runs differ in data, steps, points or batch size; give those of one setting")
    n = {name: str(r["n_test"]) for r in finals for name in columns_of(r, directions)}
    metric = "mean IoU" if which.dataset.PER_POINT else "accuracy"
    names = [d.removeprefix(which.dataset.PREFIX).replace("_", "→").replace("SC", "S*") for d in directions]
    rows = [["", "n, test clouds", *(n.get(d, "") for d in directions), ""]]
    for name, parts in rows_of(finals, which).items():
        for i, (line, cells) in enumerate(parts.items()):
            texts = [cells.get(d, "") for d in directions]
            rows.append([name if i == 0 else "", line, *texts, average(cells, directions)])
    lines = [f"# {title}: target test {metric}, percent", "", *markdown(("method", "", *names, "mean"), rows), ""]
    lines.append(f"Mean ± std over seeds (how many). {which.note} A cell that was not run is empty.")
    if results:
        lines.append(footer(results, metric) + orientation(which, results))
    return "\n".join(lines)


def orientation(which, results):
    """A last line where the clouds are not the paper's."""
    name = which.dataset.NAME
    where = f"These clouds are not known to be {name}" if which.dataset.PER_POINT else f"Not {name}"
    known = {r["data"]["name"] for r in results} == {name}
    return "" if known else f"{where}: the paper's numbers are there for orientation only.\n"
