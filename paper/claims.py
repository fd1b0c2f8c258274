"""Do the claims hold over runs? Fig. 1 and persample of several seeds, pooled; runs that were not trained are left out.

python -m paper claims results/figures/*.json    # -> results/figures/claims.md and .csv
"""

from pathlib import Path

import numpy as np

from engine.base import UserError, csv_text, markdown, read_json, write_atomically
from engine.checked import finite, fits, none, truth, whole
from engine.flags import is_text
from paper import command, flag
from paper.conflict import PREDICTORS

SERIES = ("spearman", "spearman_of_differences")
SHARES = {
    "conflict": "cosine below 0",
    "oracle_halves_cos": "halves of G_oracle, cosine",
    "same_sign_halves": "same sign with both halves",
    "same_sign_draws": "same sign in two draws of the task",
    "pseudo_right": "pseudo-labels right",
    "oracle_pseudo_cos": "G_oracle, cosine with G of pseudo-labels",
    "oracle_entropy_cos": "G_oracle, cosine with G of entropy",
}


NUMBER = (finite, none)
RECORD = {"args": {"task": is_text, "ssl": is_text}, "seed": (whole, is_text), "n": (whole, is_text)}
RECORD |= {"data": is_text, "commit": is_text}
SCORE = {"score": is_text, "step": (whole, is_text), "auc": NUMBER, "within": NUMBER}
scored = lambda rows: fits(rows, [SCORE]) and {*PREDICTORS} <= {row["score"] for row in rows if row["step"] == ""}
STATISTICS = {  # of a .json that the figure has written
    "fig1": {"source_accuracy": finite} | {mode: dict.fromkeys(SERIES, NUMBER) for mode in ("train", "eval")},
    "persample": {"source_accuracy": finite, "scores": scored, "moments": [dict.fromkeys(SHARES, NUMBER)]},
}


def number(value):
    """A number of a json file, where one that does not exist is null."""
    return np.nan if value is None else float(value)


def of_persample(record):
    """Flat numbers of one persample: each score's AUC, also within classes, and the shares, means of the moments."""
    found = record["statistics"]
    whole = {row["score"]: row for row in found["scores"] if row["step"] == ""}
    flat = {f"{kind} {name}": number(whole[name][kind]) for name in PREDICTORS for kind in ("auc", "within")}
    return flat | {name: float(np.nanmean([number(m[name]) for m in found["moments"]])) for name in SHARES}


def of_fig1(record):
    """Flat numbers of one fig1: Spearman of skewness and conflict in both modes, of the series and its differences."""
    found = record["statistics"]
    return {f"{name} {mode}": number(found[mode][name]) for mode in ("train", "eval") for name in SERIES}


def spread(values):
    """Mean ± standard error over runs, those without the number left out."""
    values = np.array([v for v in values if np.isfinite(v)])
    if not len(values):
        return ""
    error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else " (1 run)"
    return f"{values.mean():.2f}{error}"


@command(flag("files", type=Path, nargs="+", help=".json of fig1 and persample; others are passed over"))
def claims(args):
    """Fig. 1 and persample over several seeds: mean ± standard error over runs, the untrained left out."""
    kinds, rows = {"fig1": of_fig1, "persample": of_persample}, []
    for path in args.files:
        record = read_json(path)
        if fits(record, {"figure": lambda figure: figure in [*kinds], "statistics": {"trained": truth}}):
            if not fits(record, RECORD | {"statistics": STATISTICS[record["figure"]]}):
                raise UserError(f"{path}: not as {record['figure']} writes it; make it again, or leave it out")
            head = {"figure": record["figure"], "task": record["args"]["task"], "ssl": record["args"]["ssl"]}
            head |= {"seed": record["seed"], "n": record["n"], "data": record["data"], "commit": record["commit"]}
            head |= {key: record["statistics"][key] for key in ("source_accuracy", "trained")}
            rows.append(head | kinds[record["figure"]](record))
    kept = [row for row in rows if row["trained"]]
    if not kept:
        raise UserError("no trained fig1 or persample among these files; give results/figures/*.json of longer runs")
    lines = []
    for figure, text in (("persample", "Per sample"), ("fig1", "Step by step (Fig. 1)")):
        own = [row for row in kept if row["figure"] == figure]
        groups = list(dict.fromkeys((row["task"], row["ssl"]) for row in own))
        if groups:
            lines += [f"## {text}", ""] + table(figure, own, groups) + [""]
    several = lambda key: "; ".join(sorted({row[key] for row in kept}))
    apart = [f"{r['figure']} {r['task']} {r['ssl']} seed {r['seed']}" for r in rows if not r["trained"]]
    note = (
        "Mean ± standard error over runs (seeds), each a mean of its moments. AUC: does a high score predict that the "
        "cosine of a sample's own self-supervised gradient with G_oracle is below 0? Chance: .5; every score is turned "
        "so that above .5 is what would be expected of it. A moment where the halves of G_oracle have a cosine below "
        f".5 has no AUC. Not trained and left out: {', '.join(apart) or 'none'}.\n"
        f"Data: {several('data')}. Commit: {several('commit')}."
    )
    text = "\n".join([*lines, note, ""])
    write_atomically(f"{args.out}.md", text.encode())
    write_atomically(f"{args.out}.csv", csv_text(rows).encode())
    return f"{text}wrote {args.out}.md and .csv"


def table(figure, rows, groups):
    """Markdown: a column for each direction and task, a row for each number."""
    of = {group: [row for row in rows if (row["task"], row["ssl"]) == group] for group in groups}
    seeds = {g: " ".join(str(row["seed"]) for row in own) for g, own in of.items()}
    head = ("", *(f"{task} {ssl}, seed {seeds[task, ssl]}" for task, ssl in groups))
    cells = lambda key: [spread([row[key] for row in of[group]]) for group in groups]
    lines = [["source accuracy at the end", *cells("source_accuracy")]]
    lines += [["n", *("; ".join(sorted({str(row["n"]) for row in of[group]})) for group in groups)]]
    if figure == "fig1":
        for mode in ("train", "eval"):
            lines += [[f"{name.replace('_', ' ')}, {mode} mode", *cells(f"{name} {mode}")] for name in SERIES]
        return markdown(head, lines)
    lines += [[text, *cells(name)] for name, text in SHARES.items()]
    for name, text in PREDICTORS.items():
        pairs = zip(cells(f"auc {name}"), cells(f"within {name}"))
        lines.append([f"AUC / within classes: {text}", *(" / ".join(filter(None, pair)) for pair in pairs)])
    return markdown(head, lines)
