"""Score one run: the only place, with paper/, where target labels are opened.

    python eval.py --run runs/NAME                   # -> runs/NAME/result.json, pictures, its row of a table

Accuracy of classes, mean IoU of parts. Four columns for each stage: the *last* step; the step best on *source
validation*; the step that a *label-free* validator likes best (of classes alone); and *oracle*, the best on the target
test set itself, a leak that is printed because Table I's caption speaks of selection on the test set. `python -m paper
table` puts runs side by side.
"""

import engine  # noqa: F401, I001 - first: how torch's threads wait
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import data
import stage1_ssl
import stage2_pseudo
from engine.base import UserError, cli, markdown, read_json, write_atomically
from engine.checked import is_result, read_config, read_predictions
from engine.flags import Parser
from engine.metrics import confusion, quality, scores_of, spread
from engine.picture import draw_confusion, draw_parts, save_figure
from engine.validators import judge

COLUMNS = dict(last="last", source_val="source val", label_free="label-free", oracle="oracle (a leak)")
LABEL_FREE = "infomax"  # of VALIDATORS; results/validators/ compares them
SETTING = ("task", "backbone", "ssl", "select", "score", "beta", "alpha", "measure", "steps", "points")
PLACES = ("seed", "data", "out", "device")  # runs alike in every other flag are one setting, pooled over seeds
FLAGS = tuple(key for key in stage1_ssl.SETTINGS | stage2_pseudo.SETTINGS if key not in PLACES)
HEAD = ("setting", "stage", "seeds", *COLUMNS.values(), "steps")


# ---------------------------------------------------------------- one stage
def metrics_of(per_point):
    """The keys of a column that tables print, the main one first."""
    return ("miou",) if per_point else ("acc", "mean_acc")


def stage_result(path, truth_src, truth_tgt, truth_train, classes):
    """One stage: the columns, the curve, and each class's score and confusion at the source-validation step.

    path: its predsN.npz; labels (n,), of parts (n, N), of source validation, target test and target training, whose
    agreement with the pseudo-labels is part of the curve of stage 2.
    """
    kept = read_predictions(path, len(classes), source=truth_src, target=truth_tgt, pseudo=truth_train)
    target = kept["target"].astype(np.int64)
    found = [scores_of(truth_tgt, p, classes) for p in target]
    main = metrics_of(truth_tgt.ndim == 2)[0]
    curve = [{"step": int(step), "target": scores[main]} for step, (scores, _) in zip(kept["step"], found)]
    for i, row in enumerate(curve):
        row["source"] = quality(truth_src, kept["source"][i], len(classes))
        if "logits" in kept:
            row |= judge(kept["logits"][i], kept["cluster"][i])
        if "pseudo" in kept:
            row["pseudo"] = float((kept["pseudo"][i] == truth_train).mean())
    # step 0 is shown, never chosen
    best_of = lambda key: max(range(len(curve)), key=lambda i: (curve[i]["step"] > 0, curve[i][key]))
    moment = {"last": len(curve) - 1, "source_val": best_of("source"), "oracle": best_of("target")}
    moment["label_free"] = best_of(LABEL_FREE) if "logits" in kept else None
    result = {c: None if i is None else found[i][0] | {"step": curve[i]["step"]} for c, i in moment.items()}
    best = moment["source_val"]
    result["per_class"] = found[best][1]
    result["confusion"] = confusion(truth_tgt.ravel(), target[best].ravel(), len(classes)).tolist()
    result["curve"] = curve
    return result


# ---------------------------------------------------------------- one run
def evaluate(run, root=None):
    """Join a run's predictions with the labels: writes RUN/result.json and pictures, returns the result, if it can.

    root: where the clouds are now, if they moved. UserError where no stage is finished or the clouds are others.
    """
    config = read_config(run, stage1_ssl.CHOICES)
    done = [n for n in (1, 2) if f"stage{n}" in config and (run / f"stage{n}.pt").exists()]
    if not done:
        raise UserError(f"{run}: no stage is finished; run its command again, it goes on where it stopped")
    latest = config[f"stage{done[-1]}"]
    args, root = latest["args"], root or latest["args"]["data"]
    way = data.direction(args["task"])
    src, tgt = data.framed(*(data.load_domain(root, key) for key in (way.source, way.target)), args)
    fingerprint = data.fingerprint(src, tgt)
    if any(config[f"stage{n}"]["data"]["fingerprint"] != fingerprint for n in done):
        raise UserError(f"--data {root}: not the clouds that {run} was trained on; give the same data")
    if tgt.test_labels is None:
        return print(f"{run}: its target has no labels, so there is nothing to score; make predict says what it sees")

    result = {key: args[key] for key in (*SETTING, "seed")} | {"pcm": args["ssl"].endswith("+pcm")}
    result["data"] = {
        "name": data.data_name(root, src, tgt),
        "fingerprint": fingerprint,
        "counts": {domain.key: domain.counts for domain in (src, tgt)},
    }
    result |= {"classes": list(tgt.classes), "per_point": tgt.per_point, "n_test": len(tgt.test)}
    result |= {key: latest[key] for key in ("device", "commit", "versions")}
    result |= {"seconds": sum(config[f"stage{n}"]["seconds"] for n in done), "stage1": None, "stage2": None}
    for n in done:
        own = config[f"stage{n}"]["args"]
        splits = src.validation, (tgt.test, tgt.test_labels), (tgt.train, tgt.train_labels)
        truths = (labels(split, own["points"]) for split in splits)
        flags = {key: own.get(key) for key in (*FLAGS, "seed")}
        result[f"stage{n}"] = stage_result(run / f"preds{n}.npz", *truths, tgt.classes) | {"flags": flags}
        result[f"stage{n}"]["seconds"] = config[f"stage{n}"]["seconds"]
    write_atomically(run / "result.json", json.dumps(result, indent=1).encode())
    pictures(run, result, tgt)
    return result


def labels(split, n):
    """Labels of the points that a stage predicted, (m,) or (m, n), from points and labels of a split."""
    points, y = split
    return data.evaluation_subset(points, n, y)[1].numpy()


def read_result(run):
    """RUN/result.json; UserError where there is none, or another version of this code has written it."""
    result = read_json(run / "result.json")
    if not is_result(result, FLAGS, COLUMNS, data.directions()):
        raise UserError(f"{run}/result.json: of another version of this code; run python eval.py --run {run} again")
    return result


def last_stage(result):
    """The part of the last stage that a run has finished."""
    return result["stage2"] or result["stage1"]


# ---------------------------------------------------------------- its row of a table
def name_of(flags):
    """A stage's setting in words, without its seed."""
    way, scored = data.direction(flags["task"]), flags["select"] in ("low", "high", "gap")
    kept = flags["select"] if flags["select"] in ("all", "freeze") else f"{flags['select']} {flags['beta']:g}"
    parts = [flags["task"], flags["backbone"], flags["ssl"]] + ([kept] if flags["ssl"] != "none" else [])
    parts += [f"by {flags['score']}"] if scored and flags["score"] != "skewness" else []
    parts += (
        [f"measured in {flags['measure']} mode"] if flags["measure"] not in (None, "train" if scored else None) else []
    )
    parts += [f"alpha {flags['alpha']:g}"] if flags["alpha"] != 1 else []
    parts += [flags[key] for key, usual in (("mtl", "sum"), ("precision", "fp32")) if flags[key] not in (None, usual)]
    parts += ["scratch"] if flags["scratch"] else []
    paper = stage2_pseudo.SETTINGS
    parts += [f"perturbed by {flags['perturb']}"] if flags["perturb"] not in (None, paper["perturb"]) else []
    if flags["gcn_iters"] not in (None, paper["gcn_iters"]) and not way.per_point:  # segmentation has none
        parts.append(f"GCN of {flags['gcn_iters']}" if flags["gcn_iters"] else "no GCN")
    parts += ["unlabelled stream filtered"] if flags["filter_stream"] else []
    frame = [f"{flags['up']} up" if flags["up"] in ("x", "y") else "", "unit sphere" if flags["unit_sphere"] else ""]
    frame += [f"target {flags['target_up']} up" if flags["target_up"] else ""]
    parts += [f"({', '.join(filter(None, frame))})"] if any(frame) else []
    return " ".join(parts + (["ORACLE: trained with target labels"] if way.oracle else []))


def records(result):
    """A run as flat records, one a finished stage: its flags, its scores in each column, and where they are from."""
    keys, found = (*metrics_of(result["per_point"]), "step"), []
    for n in (1, 2):
        if part := result[f"stage{n}"]:
            record = {"stage": n, **part["flags"]}
            record |= {f"{column}_{key}": part[column][key] for column in COLUMNS for key in keys if part[column]}
            record["last_source"] = part["curve"][-1]["source"]
            record |= {"n_test": result["n_test"], "data": result["data"]["name"]}
            record["fingerprint"] = result["data"]["fingerprint"][:12]
            record |= {"device": result["device"], "commit": result["commit"], "torch": result["versions"]["torch"]}
            record["seconds"] = round(part["seconds"])
            found.append(record)
    return found


def row(alike):
    """The cells below HEAD of records that differ in their seed: accuracy is overall / mean class."""
    first, keys = alike[0], metrics_of(data.direction(alike[0]["task"]).per_point)
    cells = [name_of(first), str(first["stage"]), " ".join(str(seed) for seed in sorted(r["seed"] for r in alike))]
    for column in COLUMNS:
        known = f"{column}_step" in first
        cells.append(" / ".join(spread([r[f"{column}_{key}"] for r in alike]) for key in keys) if known else "–")
    return [*cells, str(first["steps"])]


# ---------------------------------------------------------------- pictures
def title_of(result):
    """A run in two lines, for its pictures."""
    setting = name_of(last_stage(result)["flags"])
    return f"{setting}, seed {result['seed']}, n = {result['n_test']}\n{result['data']['name']}"


def confusion_axes(axes, result):
    """Fig. 3: confusion matrix on the target test set at the source-validation step."""
    matrix = np.array(last_stage(result)["confusion"])
    draw_confusion(axes, matrix, result["classes"], shares=result["per_point"])  # points are too many to count
    axes.set_title(title_of(result), fontsize=8)


def pictures(run, result, tgt):
    """RUN/confusion.png, and for segmentation RUN/parts.png, of the last stage at the source-validation step."""
    figure = Figure(figsize=(5.5, 5))
    confusion_axes(figure.add_subplot(), result)
    save_figure(figure, run / "confusion.png")
    if result["per_point"]:
        stage, n = last_stage(result), 2 if result["stage2"] else 1
        points, truth = data.evaluation_subset(tgt.test, result["points"], tgt.test_labels)
        with np.load(run / f"preds{n}.npz", allow_pickle=False) as kept:
            predicted = kept["target"][list(kept["step"]).index(stage["source_val"]["step"])]
        save_figure(draw_parts(points, truth.numpy(), predicted, tgt.classes, title_of(result)), run / "parts.png")


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of one run")
    parser.add_argument("--data", nargs="+", help="where its clouds are now, if they moved; own clouds: SOURCE TARGET")
    args = parser.parse_args()
    result = evaluate(args.run, args.data if args.data is None or len(args.data) > 1 else args.data[0])
    if not result:
        return
    print("\n".join(markdown(HEAD, [row([record]) for record in records(result)])))
    fingerprint = result["data"]["fingerprint"][:12]
    print(f"{result['data']['name']}, sha256 {fingerprint}, n = {result['n_test']} test clouds; {result['device']}")
    for curve in (result[f"stage{n}"]["curve"] for n in (1, 2) if result[f"stage{n}"]):
        if "pseudo" in curve[0]:
            print(f"pseudo-labels right: {curve[0]['pseudo']:.1%} at the start, {curve[-1]['pseudo']:.1%} at the end")
    print(f"commit {result['commit']}, {result['seconds'] / 60:.0f} min\n{args.run}")


if __name__ == "__main__":
    cli(main)
