"""Figures of what finished commands have left: result.json and checkpoints of runs, the numbers of fig1 and persample.

make fig3     make fig5     make fig8     make fig11     make anm      # train what is missing, then call these
"""

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import data
from engine.base import MOST_TEXT, UserError, read_json
from engine.checked import finite, fits, none, whole
from engine.flags import is_text, number
from engine.metrics import describe
from engine.picture import three_levels
from engine.run import load_checkpoint
from eval import last_stage, name_of
from models import model_of
from paper import command, draw, evidence, flag
from paper.conflict import frozen, maps
from paper.published import reported
from paper.tables import KEYS, flat, one_a_seed, pooled, trained, whole_result
from saliency import skewness
from stage1_ssl import CHOICES

RUNS = flag("runs", type=Path, nargs="+", help="folders with a result.json")
STAGE = ({"confusion": [[whole]], "per_class": {}}, none)
SHOWN = {"classes": [is_text], "seed": whole, "backbone": is_text, "select": is_text, "beta": finite, "alpha": finite}
SHOWN |= {"stage1": STAGE, "stage2": STAGE}  # of result.json, in these figures
MOVED = flag("--data", help="where the clouds are now, if they moved")


# ---------------------------------------------------------------- Fig. 3, 8, 10: from finished runs
def results_of(folders):
    """result.json of each run of classification; UserError when they are of different data or directions."""
    results = [whole_result(run, is_shown) for run in dict.fromkeys(folders)]
    if len({(r["data"]["fingerprint"], r["task"]) for r in results}) > 1 or results[0]["per_point"]:
        raise UserError("the runs differ in data or direction, or segment; give runs of one direction on the same data")
    return results


def is_shown(result):
    """Whether a result.json has what these figures show, and confusion matrices of its classes."""
    if not fits(result, SHOWN) or result["per_point"]:
        return result["per_point"]
    matrices = [part["confusion"] for part in (result["stage1"], result["stage2"]) if part]
    return all(len(row) == len(result["classes"]) for matrix in matrices for row in (matrix, *matrix))


def untrained(result):
    """ " (not trained)" where a run's last stage does not pass the gate."""
    return "" if trained(flat([result])[-1]) else " (not trained)"


def seeds_of(results):
    return sorted({r["seed"] for r in results})


def about(results):
    """Direction, data, seeds and n of several runs, for a title."""
    first, seeds = results[0], " ".join(map(str, seeds_of(results)))
    setting = f"{first['task']}, {first['backbone']}, {first['ssl']}, seed {seeds}"
    return f"{setting}, n = {first['n_test']} test clouds\n{first['data']['name']}"


@command(RUNS)
def fig3(args):
    """Fig. 3: confusion matrices of runs side by side."""
    results = results_of(args.runs)
    first, classes = results[0], results[0]["classes"]
    names = [
        f"{name_of(last_stage(r)['flags'])}: {last_stage(r)['source_val']['acc']:.1%}{untrained(r)}" for r in results
    ]
    rows = [
        {"run": name, "true": true, "predicted": predicted, "clouds": last_stage(r)["confusion"][i][j]}
        for r, name in zip(results, names)
        for i, true in enumerate(classes)
        for j, predicted in enumerate(classes)
    ]
    figure = draw.draw_fig3(results, names, f"Fig. 3: {about(results)}")
    per_class = {name: last_stage(r)["per_class"] for r, name in zip(results, names)}
    wrote = draw.write(args, figure, first["data"]["name"], first["n_test"], seeds_of(results), rows, per_class)
    return f"target accuracy at best source validation: {'; '.join(names)}\n{wrote}"


def mean_curves(results):
    """beta -> steps and source-validation accuracy in stage 1, mean over seeds."""
    curves = {}
    for beta in sorted({r["beta"] for r in results}):
        own = [r["stage1"]["curve"] for r in results if r["beta"] == beta]
        curves[beta] = [p["step"] for p in own[0]], np.mean([[p["source"] for p in curve] for curve in own], 0)
    return curves


@command(RUNS, flag("--beta", type=number(float, 0, 1), default=0.7, help="beta of the runs that differ in alpha"))
def fig8(args):
    """Fig. 8 and 10: target accuracy against alpha and beta, and source-validation curves."""
    results = results_of(args.runs)
    finals, fixed = [flat([r])[-1] for r in results], [key for key in KEYS if key not in ("beta", "alpha")]
    if len(pooled(finals, fixed)) > 1 or results[0]["select"] != "low":
        raise UserError(
            "the runs differ in more than alpha, beta and seed, or are not of low; give runs of one setting"
        )
    for own in pooled(finals):
        one_a_seed(own)
    rows = [
        {key: r[key] for key in ("beta", "alpha", "seed")}
        | {column: last_stage(r)[column]["acc"] for column in ("source_val", "last", "oracle")}
        | {"trained": trained(final)}
        for r, final in zip(results, finals)
    ]
    of_beta = [row for row in rows if row["alpha"] == 1]
    of_alpha = [row for row in rows if row["beta"] == args.beta]
    curves = mean_curves([r for r in results if r["alpha"] == 1])
    below = sum(not row["trained"] for row in rows)
    below = f" | not trained, in no mean: {below} of {len(rows)} runs" if below else ""
    figure = draw.draw_fig8(of_beta, of_alpha, curves, f"Fig. 8, 10: {about(results)}{below}")

    def mean(part, knob):
        kept = [r for r in part if r["trained"]]
        values = sorted({r[knob] for r in kept})
        return {v: float(np.mean([r["source_val"] for r in kept if r[knob] == v])) for v in values}

    found = {"beta": mean(of_beta, "beta"), "alpha": mean(of_alpha, "alpha")}
    found["curves"] = {f"{beta:g}": {"step": step, "source": list(acc)} for beta, (step, acc) in curves.items()}
    first, text = results[0], lambda knob: ", ".join(f"{v:g}: {a:.1%}" for v, a in found[knob].items())
    wrote = draw.write(args, figure, first["data"]["name"], first["n_test"], seeds_of(results), rows, found)
    return (
        f"target accuracy at best source validation, by beta {text('beta')} | by alpha {text('alpha')}{below}\n{wrote}"
    )


# ---------------------------------------------------------------- Fig. 5, 11: from checkpoints
def domains_of(checkpoint, root):
    """Both domains of a checkpoint with labels, its arguments, and the data's name; UserError on other data."""
    config = checkpoint["config"]
    args = SimpleNamespace(**config["args"])
    way = data.direction(args.task)
    if way.per_point:
        raise UserError("--ckpt: a checkpoint that segments; give one of M_S, M_SC, ..., which classifies")
    src, tgt = (data.load_domain(root or args.data, key) for key in (way.source, way.target))
    if data.fingerprint(src, tgt) != config["data"]["fingerprint"]:
        raise UserError(f"--data {root or args.data}: not the clouds that --ckpt was trained on; give the same data")
    return src, tgt, args, config["data"]["name"]


def eval_skewness(model, points, labels, alpha):
    """Skewness (n,) of each cloud's map in eval mode, and confidence in the label (n,)."""
    parts = []
    with frozen(model):
        for x, y in zip(points.split(64), labels.split(64)):
            S, logits = maps(model, x, y, alpha)
            parts.append((skewness(S), logits.softmax(-1).gather(1, y[:, None])[:, 0]))
    return tuple(torch.cat(part) for part in zip(*parts))


def extremes(model, points, labels, classes, alpha, tails=(0.02, 0.05, 0.1)):
    """Clouds of high and of low skewness, at these quantiles from either end: [(points, map)], a text for each.

    Not the very extremes: their maps hold one point and nothing else.
    """
    sk, _ = eval_skewness(model, points, labels, alpha)
    order = sk.argsort()
    last = len(order) - 1
    chosen = [int(order[round(last * q)]) for q in (*(1 - q for q in tails), *reversed(tails))]
    with frozen(model):
        S, _ = maps(model, points[chosen], labels[chosen], alpha)
    texts = [f"{classes[labels[i]]}, skewness {sk[i]:+.2f}" for i in chosen]
    return list(zip(points[chosen].cpu(), S.cpu())), texts


@command(flag("--ckpt", type=Path, required=True, help="RUN/stage1.pt or RUN/stage2.pt"), MOVED)
def fig5(args):
    """Fig. 5: saliency in three levels on the most and the least skewed source test clouds."""
    checkpoint = load_checkpoint(args.ckpt, choices=CHOICES)
    src, _, config, name = domains_of(checkpoint, args.data)
    model, points, y = model_of(checkpoint), data.evaluation_subset(src.test, config.points), src.test_labels
    sk, confidence = eval_skewness(model, points, y, config.alpha)
    clouds, texts = extremes(model, points, y, src.classes, config.alpha)
    n = f"{len(sk)} source test clouds, 98, 95, 90 % quantile of skewness above, 10, 5, 2 % below"
    clouds = [(each, three_levels(S)) for each, S in clouds]
    figure = draw.draw_fig5(clouds, texts, f"Fig. 5: {draw.caption(config, name, n)}")
    rows = [
        {"cloud": i, "class": src.classes[c], "skewness": s, "confidence": p}
        for i, (c, s, p) in enumerate(zip(y.tolist(), sk.tolist(), confidence.tolist()))
    ]
    q = np.quantile([row["skewness"] for row in rows], (0, 0.25, 0.5, 0.75, 1)).tolist()
    wrote = draw.write(args, figure, name, len(rows), config.seed, rows, {"quartiles": q})
    return f"skewness of {len(rows)} clouds: min, quartiles, max {' '.join(f'{v:+.2f}' for v in q)}\n{wrote}"


def tsne():
    """scikit-learn's t-SNE; UserError where it is not installed."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        remedy = "pip install -r requirements-extra.txt"
        raise UserError(f"fig11: needs scikit-learn, which is not installed; {remedy}") from None
    return TSNE


def neighbour_agreement(f, y):
    """Share of samples whose nearest neighbour in the features (n, C) has their class: t-SNE shows, this counts."""
    distance = torch.cdist(f, f).fill_diagonal_(math.inf)
    return (y[distance.argmin(1)] == y).float().mean().item()


@command(
    flag("--ckpt", type=Path, nargs="+", required=True, help="checkpoints to set side by side"),
    flag("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of t-SNE"),
    MOVED,
)
def fig11(args):
    """Fig. 11: t-SNE of the target test set's features of two checkpoints."""
    TSNE, rows, flat, names, found = tsne(), [], [], [], {}
    checkpoints = {path: load_checkpoint(path, choices=CHOICES) for path in args.ckpt}
    configs = [checkpoint["config"] for checkpoint in checkpoints.values()]
    if len({(data.direction(c["args"]["task"]).target, c["data"]["fingerprint"]) for c in configs}) > 1:
        raise UserError("--ckpt: checkpoints of different targets or data; give those of one target on the same data")
    for path, checkpoint in checkpoints.items():
        _, tgt, config, name = domains_of(checkpoint, args.data)
        _, f = describe(model_of(checkpoint), data.evaluation_subset(tgt.test, config.points))
        xy = TSNE(perplexity=min(30, (len(f) - 1) / 3), random_state=args.seed, init="pca").fit_transform(f.numpy())
        names.append(f"{config.select}{'' if config.select == 'all' else f' {config.beta:g}'}, seed {config.seed}")
        found[str(path)] = neighbour_agreement(f, tgt.test_labels)
        flat.append(xy)
        for cloud, (c, (x, y)) in enumerate(zip(tgt.test_labels.tolist(), xy.tolist())):
            rows.append({"ckpt": str(path), "cloud": cloud, "class": tgt.classes[c], "x": x, "y": y})
    setting = f"{config.task}, {config.backbone}, {config.ssl}, t-SNE seed {args.seed}"
    title = f"Fig. 11: {setting}, n = {len(f)} target test clouds\n{name}"
    figure = draw.draw_fig11(flat, tgt.test_labels.numpy(), tgt.classes, names, title)
    wrote = draw.write(args, figure, name, len(f), args.seed, rows, {"neighbour_agreement": found})
    texts = ", ".join(f"{n} {share:.1%}" for n, share in zip(names, found.values()))
    return f"nearest neighbour of the same class in feature space: {texts}\n{wrote}"


# ---------------------------------------------------------------- ANM: which is the cause?
GRADIENTS = {"cos": "G_oracle", "cos_cls": "G_cls"}  # column of fig1 and persample: whose cosine with G_ssl it holds


def read_columns(path, names):
    """Columns of a csv that was written here, and its step, as arrays; UserError names what is missing."""
    try:
        if path.stat().st_size > MOST_TEXT:
            raise ValueError(f"in so large a file, over {MOST_TEXT} bytes")
        with open(path) as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError("with a row")
        return [np.array([float(row[name] or "nan") for row in rows]) for name in (*names, "step")]
    except FileNotFoundError:
        raise UserError(f"--csv {path}: no such file; make one with `make fig1` or `make persample`") from None
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror}; give the csv of fig1 or persample") from None
    except (KeyError, ValueError, csv.Error) as error:
        raise UserError(f"--csv {path}: no column of numbers {error}; give the csv of fig1 or persample") from None


@command(
    flag("--csv", type=Path, required=True, help="the csv of fig1 or persample"),
    flag("--column", default="skewness_train", help="its column for skewness"),
    flag("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of the bootstrap"),
)
def anm(args):
    """Additive-noise model, skewness -> conflict and back, for G_oracle and G_cls: fig1, or persample's last moment."""
    x, *cosines, step = read_columns(args.csv, (args.column, *GRADIENTS))
    if len(np.unique(step)) < len(step):  # persample.csv: the samples of the last moment
        last = step == step.max()
        x, cosines = x[last], [cos[last] for cos in cosines]
    printed = {method: float(value) for (method, *_), value in reported().items() if "ANM" in method}
    source = args.csv.with_suffix(".json")
    made = read_json(source) if source.exists() else {"data": "data not recorded", "seed": "?", "args": {}}
    if not fits(made, {"data": is_text, "seed": (whole, is_text), "args": {}}):
        raise UserError(f"{source}: not what fig1 or persample writes beside --csv; remove it, or make both again")
    setting = " ".join(str(made["args"].get(key, "")) for key in ("task", "backbone", "ssl", "select"))
    found, rows, texts, first = {}, [], [], None
    for gradient, cos in zip(GRADIENTS.values(), cosines):
        ways = {"skewness -> conflict": (x, -cos), "conflict -> skewness": (-cos, x)}
        both = {way: evidence.additive_noise(*pair) for way, pair in ways.items()}
        gap, interval = evidence.noise_gap(x, -cos, args.seed)
        first = first or both
        found[gradient] = {way: {"hsic": fit["hsic"], "p": fit["p"]} for way, fit in both.items()}
        found[gradient] |= {"gap": gap, "gap_interval": interval}
        scores = ", ".join(f"{way} {fit['hsic']:.3f} (p = {fit['p']:.2g})" for way, fit in both.items())
        texts.append(f"with {gradient}: {scores}, difference {draw.with_interval(found[gradient], 'gap')}")
        for way, fit in both.items():
            columns = zip(fit["cause"].tolist(), fit["effect"].tolist(), fit["fit"].tolist())
            head = {"gradient": gradient, "direction": way}
            rows += [head | dict(zip(("cause", "effect", "fit"), values)) for values in columns]
    found["paper"] = {way: printed[f"{way.replace(' -> ', '->')} ANM score"] for way in first}
    n = first["skewness -> conflict"]["n"]
    title = f"Additive-noise model on {args.csv.name}, {args.column} and - cos(G_ssl, G_oracle): {setting}"
    figure = draw.draw_anm(first, f"{title}, seed {made['seed']}, n = {n}\n{made['data']}")
    wrote = draw.write(args, figure, made["data"], n, made["seed"], rows, found)
    theirs = ", ".join(f"{way} {value:g}" for way, value in found["paper"].items())
    said = f"HSIC of residual and cause, lower fits better; {'; '.join(texts)}; n = {n}; intervals over points"
    return f"{said}; the paper: {theirs}\n{wrote}"
