"""Figures of what finished commands have left: result.json of runs, and the numbers of fig1 and persample.

make fig3     make fig8     make anm      # what calls them, through analysis.py
"""

import csv

import numpy as np

import data
import evidence
import figures
from common import UserError
from eval import last_stage, name_of, read_json, read_result, reported


# ---------------------------------------------------------------- Fig. 3, 8, 10: from finished runs
def results_of(runs):
    """result.json of each run of classification; UserError when they are of different data or directions."""
    results = [read_result(run) for run in runs]
    if len({(r["data"]["fingerprint"], r["task"]) for r in results}) > 1 or results[0]["task"].startswith("seg_"):
        raise UserError("the runs differ in data or direction, or segment; give runs of one direction on the same data")
    return results


def seeds_of(results):
    return sorted({r["seed"] for r in results})


def about(results):
    """Direction, data, seeds and n of several runs, for a title."""
    seeds = " ".join(map(str, seeds_of(results)))
    first = results[0]
    return (
        f"{first['task']}, {first['backbone']}, {first['ssl']}, seed {seeds}, n = {first['n_test']} test clouds\n"
        + first["data"]["name"]
    )


def fig3(args):
    """Fig. 3: confusion matrices of runs side by side."""
    results = results_of(args.runs)
    names = [f"{name_of(last_stage(r)['flags'])}: {last_stage(r)['source_val']['acc']:.1%}" for r in results]
    rows = [
        {"run": name, "true": true, "predicted": predicted, "clouds": last_stage(r)["confusion"][i][j]}
        for r, name in zip(results, names)
        for i, true in enumerate(data.CLASSES)
        for j, predicted in enumerate(data.CLASSES)
    ]
    figures.save(args.out, figures.draw_fig3(results, names, f"Fig. 3: {about(results)}"))
    per_class = {name: last_stage(r)["per_class"] for r, name in zip(results, names)}
    figures.report(args, results[0]["data"]["name"], results[0]["n_test"], seeds_of(results), rows, per_class)
    return "target accuracy at best source validation: " + "; ".join(names)


def mean_curves(results):
    """beta -> steps and source-validation accuracy in stage 1, mean over seeds."""
    curves = {}
    for beta in sorted({r["beta"] for r in results}):
        own = [r["stage1"]["curve"] for r in results if r["beta"] == beta]
        curves[beta] = [p["step"] for p in own[0]], np.mean([[p["source"] for p in curve] for curve in own], 0)
    return curves


def fig8(args):
    """Fig. 8 and 10: target accuracy against alpha and beta, and source-validation curves."""
    results = results_of(args.runs)
    if len({(r["steps"], r["points"], r["ssl"], r["backbone"], len(r["stage1"]["curve"])) for r in results}) > 1:
        raise UserError("the runs differ in more than alpha, beta and seed; give runs of one setting")
    rows = [
        {key: r[key] for key in ("beta", "alpha", "seed")}
        | {column: last_stage(r)[column]["acc"] for column in ("source_val", "last", "oracle")}
        for r in results
    ]
    of_beta = [row for row in rows if row["alpha"] == 1]
    of_alpha = [row for row in rows if row["beta"] == args.beta]
    curves = mean_curves([r for r in results if r["alpha"] == 1])
    figures.save(args.out, figures.draw_fig8(of_beta, of_alpha, curves, f"Fig. 8, 10: {about(results)}"))
    mean = lambda part, knob: {
        v: float(np.mean([r["source_val"] for r in part if r[knob] == v])) for v in sorted({r[knob] for r in part})
    }
    found = {"beta": mean(of_beta, "beta"), "alpha": mean(of_alpha, "alpha")}
    found["curves"] = {f"{beta:g}": {"step": step, "source": list(acc)} for beta, (step, acc) in curves.items()}
    figures.report(args, results[0]["data"]["name"], results[0]["n_test"], seeds_of(results), rows, found)
    text = lambda knob: ", ".join(f"{v:g}: {a:.1%}" for v, a in found[knob].items())
    return f"target accuracy at best source validation, by beta {text('beta')} | by alpha {text('alpha')}"


# ---------------------------------------------------------------- ANM: which is the cause?
def read_columns(path, names):
    """Two columns of a csv that was written here, and its step, as arrays; UserError names what is missing."""
    try:
        with open(path) as file:
            rows = list(csv.DictReader(file))
        return [np.array([float(row[name] or "nan") for row in rows]) for name in (*names, "step")]
    except FileNotFoundError:
        raise UserError(f"--csv {path}: no such file; make one with `make fig1` or `make persample`") from None
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"--csv {path}: no column of numbers {error}; give the csv of fig1 or persample") from None


def anm(args):
    """Additive-noise model, skewness -> conflict and back, on the numbers of fig1, or of persample at one moment."""
    x, cos, step = read_columns(args.csv, (args.column, "cos"))
    if len(np.unique(step)) < len(step):  # persample.csv: the samples of the last moment
        x, cos = x[step == step.max()], cos[step == step.max()]
    fits = {
        "skewness -> conflict": evidence.additive_noise(x, -cos),
        "conflict -> skewness": evidence.additive_noise(-cos, x),
    }
    paper = {
        k[0].replace("->", " -> ").removesuffix(" ANM score"): float(v) for k, v in reported().items() if "ANM" in k[0]
    }
    source = args.csv.with_suffix(".json")
    made = read_json(source) if source.exists() else {"data": "data not recorded", "seed": "?", "args": {}}
    setting = " ".join(str(made["args"].get(key, "")) for key in ("task", "backbone", "ssl", "select"))
    n = fits["skewness -> conflict"]["n"]
    title = (
        f"Additive-noise model on {args.csv.name}, {args.column} and - cosine: {setting}, seed {made['seed']}, n = {n}"
    )
    figures.save(args.out, figures.draw_anm(fits, f"{title}\n{made['data']}"))
    found = {way: {"hsic": fit["hsic"], "p": fit["p"], "paper": paper[way]} for way, fit in fits.items()}
    rows = [
        {"direction": way, "cause": a, "effect": b, "fit": c}
        for way, fit in fits.items()
        for a, b, c in zip(fit["cause"].tolist(), fit["effect"].tolist(), fit["fit"].tolist())
    ]
    figures.report(args, made["data"], n, made["seed"], rows, found)
    texts = [f"{way} {f['hsic']:.3f} (p = {f['p']:.2g}; the paper {f['paper']:g})" for way, f in found.items()]
    return f"HSIC of residual and cause, lower fits better: {', '.join(texts)}, n = {n}"
