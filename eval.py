"""Score a run, and put runs side by side: the only place, with analysis.py, where target labels are opened.

    python eval.py --run runs/mine                   # -> runs/mine/result.json, pictures, its row of the table
    python eval.py --table results/table runs/a ...  # -> results/table.md, .csv and .png; mean and std over seeds

Accuracy of classes, on PointSegDA mean IoU of parts. Three columns for each stage: the *last* step; the step best on
*source validation*, the headline; and *oracle*, the best on the target test set itself, a leak that is printed because
Table I's caption speaks of selection on the test set.
"""

import argparse
import csv
import json
import textwrap
from collections import defaultdict
from pathlib import Path

import numpy as np

import data
from clouds import save_figure, scatter
from common import Parser, UserError, cli, csv_text, mean_iou, quality, write_atomically

COLUMNS = ("last", "source_val", "oracle")
SETTING = ("task", "backbone", "ssl", "pcm", "select", "beta", "alpha", "measure", "steps", "points")
# runs alike in all of these are pooled over seeds
FLAGS = (*SETTING, "mtl", "oracle", "batch_size", "perturb", "gcn_iters", "scratch", "up", "unit_sphere")


# ---------------------------------------------------------------- metrics
def confusion(truth, predicted, C=10):
    """Counts (C, C), rows the truth, columns the prediction."""
    return np.bincount(truth * C + predicted, minlength=C * C).reshape(C, C)


def accuracies(matrix):
    """Overall accuracy, mean class accuracy over the classes present in the truth, and each class's (None: absent)."""
    n = matrix.sum(1)
    per_class = [float(matrix[c, c] / n[c]) if n[c] else None for c in range(len(n))]
    return float(np.trace(matrix) / n.sum()), float(np.mean([a for a in per_class if a is not None])), per_class


def scores_of(truth, predicted):
    """The metrics of one moment, and a score of each class or part: accuracies of (n,), IoU of (n, N)."""
    if truth.ndim == 2:
        miou, part_iou = mean_iou(truth, predicted)
        return {"miou": miou, "part_iou": dict(zip(data.PARTS, part_iou))}, dict(zip(data.PARTS, part_iou))
    acc, mean_acc, per_class = accuracies(confusion(truth, predicted))
    return {"acc": acc, "mean_acc": mean_acc}, dict(zip(data.CLASSES, per_class))


def stage_result(path, truth_src, truth_tgt):
    """One stage: the three columns, the curve, and each class's score and confusion at the source-validation step."""
    with np.load(path, allow_pickle=False) as preds:
        steps, source, target = preds["step"], preds["source"], preds["target"].astype(np.int64)
    found = [scores_of(truth_tgt, p) for p in target]
    main = metrics_of(truth_tgt.ndim == 2)[0]
    on_source = np.array([quality(truth_src, p) for p in source])
    on_target = np.array([scores[main] for scores, _ in found])
    moment = {"last": len(steps) - 1, "source_val": int(on_source.argmax()), "oracle": int(on_target.argmax())}
    result = {name: found[i][0] | {"step": int(steps[i])} for name, i in moment.items()}
    best = moment["source_val"]
    result["per_class"] = found[best][1]
    result["confusion"] = confusion(truth_tgt.ravel(), target[best].ravel(), len(found[best][1])).tolist()
    result["curve"] = [
        {"step": int(s), "source": float(a), "target": float(b)} for s, a, b in zip(steps, on_source, on_target)
    ]
    return result


def last_stage(result):
    """The part of the last stage that a run has finished."""
    return result["stage2"] or result["stage1"]


def metrics_of(seg):
    """The keys of a column that tables print, the main one first."""
    return ("miou",) if seg else ("acc", "mean_acc")


def truths(args, src, tgt):
    """Labels of the points that a stage predicted: source validation and target test, (n,) or (n, N)."""
    chosen = src.validation, (tgt.test, tgt.test_labels)
    return [data.evaluation_subset(x, args["points"], y)[1].numpy() for x, y in chosen]


# ---------------------------------------------------------------- one run
def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or not JSON; give the folder of a run of stage1_ssl.py") from None


def read_result(run):
    """RUN/result.json; UserError where there is none, or another version of this code has written it."""
    result = read_json(run / "result.json")
    try:
        known = set(FLAGS) <= last_stage(result)["flags"].keys()
    except (KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{run}/result.json: of another version of this code; run python eval.py --run {run} again")
    return result


def evaluate(run, root=None):
    """Join a run's predictions with the labels: writes RUN/result.json and pictures, returns the result."""
    config = read_json(run / "config.json")
    done = [n for n in (1, 2) if f"stage{n}" in config and (run / f"stage{n}.pt").exists()]
    if not done:
        raise UserError(f"{run}: no stage is finished; run its command again, it goes on where it stopped")
    first, latest = config[f"stage{done[0]}"], config[f"stage{done[-1]}"]
    args, root = latest["args"], root or latest["args"]["data"]
    src, tgt = (data.load_domain(root, key) for key in data.split_task(args["task"], first["args"]["oracle"]))
    src, tgt = (domain.framed(args.get("up"), args.get("unit_sphere")) for domain in (src, tgt))
    fingerprint = data.fingerprint(src, tgt)
    if any(config[f"stage{n}"]["data"]["fingerprint"] != fingerprint for n in done):
        raise UserError(f"--data {root}: not the clouds that {run} was trained on; give the same data")
    result = {key: args[key] for key in (*SETTING, "seed")}
    result["data"] = {
        "name": data.data_name(root, src, tgt),
        "fingerprint": fingerprint,
        "counts": {domain.key: domain.counts for domain in (src, tgt)},
    }
    result |= {key: latest[key] for key in ("device", "commit", "versions")}
    result["n_test"] = len(tgt.test)
    result["seconds"] = sum(config[f"stage{n}"]["seconds"] for n in done)
    for n in (1, 2):
        result[f"stage{n}"] = None
        if n in done:
            stage_args = config[f"stage{n}"]["args"]
            flags = {key: stage_args.get(key) for key in (*FLAGS, "seed")}
            result[f"stage{n}"] = stage_result(run / f"preds{n}.npz", *truths(stage_args, src, tgt)) | {"flags": flags}
    write_atomically(run / "result.json", json.dumps(result, indent=1).encode())
    draw_confusion(run / "confusion.png", result)
    if src.val is not None:
        draw_parts(run / "parts.png", run / f"preds{done[-1]}.npz", result, tgt)
    return result


def draw_confusion(path, result):
    """Confusion matrix of one run on the target test set, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5))
    confusion_axes(figure.add_subplot(), result)
    save_figure(figure, path)


def confusion_axes(axes, result):
    """Confusion matrix on the target test set (Fig. 3), share of each true class, at the source-validation step."""
    stage = last_stage(result)
    matrix, names = np.array(stage["confusion"]), list(stage["per_class"])
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{name_of(stage['flags'])}, n = {result['n_test']}\n{result['data']['name']}", fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    text = lambda i, j: f"{share[i, j]:.0%}" if len(names) == 8 else matrix[i, j]  # points are too many to count
    for i, j in zip(*matrix.nonzero()):
        colour = "white" if share[i, j] > 0.5 else "black"
        axes.text(j, i, text(i, j), ha="center", va="center", fontsize=7, color=colour)


def draw_parts(path, preds, result, tgt):
    """True and predicted parts of three test clouds side by side, at the source-validation step."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    stage = last_stage(result)
    points, truth = data.evaluation_subset(tgt.test, result["points"], tgt.test_labels)
    with np.load(preds, allow_pickle=False) as kept:
        predicted = kept["target"][list(kept["step"]).index(stage["source_val"]["step"])]
    chosen = np.linspace(0, len(points) - 1, min(3, len(points))).astype(int)
    figure = Figure(figsize=(3 * len(chosen), 7))
    for column, i in enumerate(chosen):
        x = data.normalise(points[i])
        x = x.roll(2 - int((x.amax(0) - x.amin(0)).argmax()), 1)  # upright, whichever axis is up
        iou = mean_iou(truth[i : i + 1].numpy(), predicted[i : i + 1])[0]
        pair = (truth[i], f"test cloud {i}: true"), (predicted[i], f"predicted, mean IoU {iou:.2f}")
        for row, (labels, title) in enumerate(pair):
            axes = figure.add_subplot(2, len(chosen), row * len(chosen) + column + 1, projection="3d")
            scatter(axes, x, colormaps["tab10"](np.asarray(labels)), title)
    handles = [figure.axes[0].plot([], [], "o", color=f"C{c}", label=name)[0] for c, name in enumerate(data.PARTS)]
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{name_of(stage['flags'])}, seed {result['seed']}\n{result['data']['name']}", fontsize=8)
    save_figure(figure, path)


# ---------------------------------------------------------------- tables
def name_of(flags):
    """A stage's setting in words, without its seed."""
    ssl = flags["ssl"] + ("+pcm" if flags["pcm"] else "")
    kept = flags["select"] if flags["select"] in ("all", "freeze") else f"{flags['select']} {flags['beta']:g}"
    parts = [flags["task"], flags["backbone"], ssl] + ([kept] if ssl != "none" else [])
    if flags["measure"] == "eval":
        parts.append("measured in eval mode")
    parts += [f"alpha {flags['alpha']:g}"] if flags["alpha"] != 1 else []
    parts += [] if flags["mtl"] in ("sum", None) else [flags["mtl"]]
    parts += ["scratch"] if flags["scratch"] else []
    parts += ["no GCN"] if flags["gcn_iters"] == 0 and not flags["task"].startswith("seg_") else []  # it has none
    frame = [text for text, given in (("y up", flags["up"] == "y"), ("unit sphere", flags["unit_sphere"])) if given]
    parts += [f"({', '.join(frame)})"] if frame else []
    return " ".join(parts + (["ORACLE: trained with target labels"] if flags["oracle"] else []))


def method_of(flags):
    """The paper's name of a setting, or None: the controls and comparators have no row in it."""
    names = {"none": "No Adaptation", "selfdist": "Self-dist GCN", "gast": "GAST", "mlsp": "MLSP"}
    seg = flags["task"].startswith("seg_")
    defrec = "DefRec" if seg else "DefRec+PCM" if flags["pcm"] else None
    method = names.get(flags["ssl"], defrec)
    beta = 0.8 if flags["backbone"] == "pointnet" else 0.7  # Table III, Table I
    base = flags["select"] == "all" or flags["ssl"] == "none"
    if seg and flags["oracle"]:
        return "Oracle"
    if flags["oracle"] or flags["mtl"] not in ("sum", None) or not (base or flags["select"] == "low"):
        return None
    if flags["ssl"] == "selfdist" and (flags["pcm"] or flags["gcn_iters"] == 0):
        return None
    if base or method is None:
        return method
    return f"{method} + SM-DSB" if (flags["beta"], flags["alpha"]) == (beta, 1) else None


def reported():
    """The paper's numbers: (method, backbone, direction) -> text, in the paper's order."""
    with open(Path(__file__).with_name("reported.csv")) as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {(r["method"], r["backbone"], r["direction"]): r["value"] for r in rows}


def paper_number(flags):
    """What the paper prints for this direction, backbone and method, or ""."""
    return reported().get((method_of(flags), flags["backbone"], flags["task"]), "")


def spread(values):
    """Percent: mean and, from two values on, the sample standard deviation over seeds."""
    values = 100 * np.array(values)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def stages_of(results):
    """(result, stage number, that stage's part) of every finished stage."""
    return [(r, n, r[f"stage{n}"]) for r in results for n in (1, 2) if r[f"stage{n}"]]


def table(results):
    """Markdown: a row for each setting and stage, seeds pooled; overall / mean class accuracy on the target."""
    groups = defaultdict(list)
    for result, n, part in stages_of(results):
        setting = [part["flags"][key] for key in FLAGS]
        groups[json.dumps([result["data"]["fingerprint"], setting, n])].append((n, part))
    head = ["setting", "stage", "seeds", "last", "source val", "oracle (a leak)", "paper", "steps"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group in sorted(groups.values(), key=lambda group: group[0][0]):
        lines.append("| " + " | ".join(table_row(group[0][0], [part for _, part in group])) + " |")
    return "\n".join([*lines, "", *differences(results), footer(results)])


def differences(results):
    """Does `low` beat the controls? Its score at the source-validation step minus theirs, paired by seed."""
    others, scores, lines, pooled = ("all", "random", "high"), {}, [], {}
    for result, n, part in stages_of(results):
        flags = part["flags"]
        if not flags["oracle"] and flags["mtl"] in ("sum", None):
            alike = [flags[key] for key in FLAGS if key not in ("select", *KNOBS)]
            setting = json.dumps([result["data"]["fingerprint"], alike, n])
            main = metrics_of(flags["task"].startswith("seg_"))[0]
            found = 100 * part["source_val"][main], flags, n
            scores.setdefault((setting, *chosen_by(flags, flags["select"])), {})[flags["seed"]] = found
    for (setting, select, *_), ours in scores.items():
        _, flags, n = next(iter(ours.values()))
        theirs = {o: scores.get((setting, *chosen_by(flags, o)), {}) for o in others}
        gaps = {o: [ours[seed][0] - t[seed][0] for seed in sorted(ours) if seed in t] for o, t in theirs.items()}
        if select == "low" and any(gaps.values()):
            lines.append(f"| {name_of(flags)}, stage {n} | " + " | ".join(signed(gaps[o]) for o in others) + " |")
            for other in others:
                pooled.setdefault(n, defaultdict(list))[other] += gaps[other]
    error = lambda v: f"{np.mean(v):+.1f} ± {np.std(v, ddof=1) / len(v) ** 0.5:.1f} ({len(v)})" if len(v) > 1 else ""
    for n, gaps in pooled.items():  # a run's two stages are not independent
        texts = [error(gaps[o]) for o in others]
        lines += [f"| all of stage {n}, ± standard error (pairs) | {' | '.join(texts)} |"] if any(texts) else []
    head = ["| low minus, points, ± std over seeds | all | random | high |", "|---|---|---|---|"]
    return [*head, *lines, ""] if lines else []


KNOBS = ("beta", "measure", "alpha")


def chosen_by(flags, select):
    """A selection and the knobs it depends on: `all` has none, `random` no score."""
    knobs = {"all": (), "random": ("beta",)}.get(select, KNOBS)
    return select, *(flags[knob] for knob in knobs)


def signed(gaps):
    """Mean and sample standard deviation of differences, with a sign."""
    return f"{np.mean(gaps):+.1f}" + (f" ± {np.std(gaps, ddof=1):.1f}" if len(gaps) > 1 else "") if gaps else ""


def table_row(n, parts):
    """The cells of one setting and stage; the paper's number stands beside stage 2, which it reports."""
    flags = parts[0]["flags"]
    cells = [name_of(flags), str(n), " ".join(str(s) for s in sorted(p["flags"]["seed"] for p in parts))]
    for column in COLUMNS:
        keys = metrics_of(flags["task"].startswith("seg_"))
        cells.append(" / ".join(spread([p[column][key] for p in parts]) for key in keys))
    return [*cells, paper_number(flags) if n == 2 or flags["ssl"] == "none" else "", str(flags["steps"])]


def footer(results):
    """Where the numbers of a table are from."""
    several = lambda values: "; ".join(sorted(set(map(str, values))))
    describe = lambda r: f"{r['task']} n = {r['n_test']} test clouds, sha256 {r['data']['fingerprint'][:12]}"
    minutes = sum(r["seconds"] for r in results) / 60
    seg = any(r["task"].startswith("seg_") for r in results)
    metric = "mean IoU" if seg else "accuracy, overall / mean class,"
    lines = [
        f"Target test {metric} in percent, mean ± std over seeds. "
        f"Points a cloud: {several(r['points'] for r in results)}.",
        f"Data: {several(r['data']['name'] for r in results)}. {several(map(describe, results))}.",
        f"Device: {several(r['device'] for r in results)}. Commit: {several(r['commit'] for r in results)}. "
        f"torch {several(r['versions']['torch'] for r in results)}. {minutes:.0f} min in all.",
    ]
    if any(r["data"]["name"] != "PointDA-10" for r in results):
        where = "These clouds are not known to be PointSegDA" if seg else "Not PointDA-10"
        lines.append(f"{where}: the paper's numbers are there for orientation only.")
    return "\n".join(lines) + "\n"


def as_csv(results):
    """One line for each run and stage, everything a table was made from."""
    rows = []
    for r, n, part in stages_of(results):
        row = {"stage": n, **part["flags"]}
        keys = (*metrics_of(r["task"].startswith("seg_")), "step")
        row |= {f"{c}_{m}": round(part[c][m], 4) for c in COLUMNS for m in keys}
        row["last_source"] = round(part["curve"][-1]["source"], 4)
        row |= {"n_test": r["n_test"], "data": r["data"]["name"], "fingerprint": r["data"]["fingerprint"][:12]}
        rows.append(row | {"device": r["device"], "commit": r["commit"], "seconds": round(r["seconds"])})
    return csv_text(rows)


def draw_curves(path, results):
    """Target accuracy over both stages, one line for each run, one colour for each setting."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    colours, palette = {}, colormaps["tab20"].colors
    for r in results:
        begin, curve = 0, []
        for _, n, part in stages_of([r]):
            curve += [(begin + p["step"], p["target"]) for p in part["curve"]]
            begin = curve[-1][0]
            if n == 1 and r["stage2"]:
                axes.axvline(begin, color="grey", lw=0.5)
        name = name_of(part["flags"])
        label = None if name in colours else name  # seeds share a colour and a line of the legend
        axes.plot(*zip(*curve), marker=".", color=colours.setdefault(name, palette[len(colours) * 2 % 19]), label=label)
    names = "\n".join(textwrap.wrap("; ".join(sorted({r["data"]["name"] for r in results})), 100))
    n = ", ".join(f"{task} n = {n}" for task, n in sorted({(r["task"], r["n_test"]) for r in results}))
    metric = "mean IoU" if results[0]["task"].startswith("seg_") else "accuracy"
    axes.set(xlabel="step (stage 2 follows stage 1 at the grey line)", ylabel=f"target test {metric}")
    axes.set_title(f"{names}\n{n}", fontsize=8)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    save_figure(figure, path)


def write_table(path, results):
    """PATH.md, PATH.csv and PATH.png of runs of one kind."""
    text = table(results)
    write_atomically(f"{path}.md", text.encode())
    write_atomically(f"{path}.csv", as_csv(results).encode())
    draw_curves(f"{path}.png", results)
    print(f"{text}\nwrote {path}.md, .csv and .png")


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of one run")
    parser.add_argument("--data", help="where its clouds are now, if they moved")
    parser.add_argument(
        "--table", type=Path, help="write TABLE.md, .csv and .png (and TABLE_seg) from the folders named"
    )
    parser.add_argument("runs", type=Path, nargs="*", help="folders with a result.json, for --table")
    args = parser.parse_args()
    if bool(args.run) == bool(args.table) or bool(args.table) != bool(args.runs):
        raise UserError("give either --run RUN, or --table FILE and the folders of the runs that go into it")
    if args.run:
        print(table([evaluate(args.run, args.data)]) + f"\n{args.run}")
        return
    results = [read_result(run) for run in args.runs]
    kinds = [[r for r in results if r["task"].startswith("seg_") == seg] for seg in (False, True)]
    args.table.parent.mkdir(parents=True, exist_ok=True)
    for kind, end in zip(kinds, ("", "_seg" if all(kinds) else "")):  # accuracy and IoU do not share a table
        if kind:
            write_table(f"{args.table}{end}", kind)


if __name__ == "__main__":
    cli(main)
