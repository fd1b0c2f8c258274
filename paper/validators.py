"""Which criterion finds a good moment of a run, without target labels? Over all trained runs and their moments."""

import numpy as np
from scipy import stats

from engine.base import UserError, csv_text, markdown, write_atomically
from engine.checked import finite, fits, none, whole
from engine.picture import save_figure
from engine.validators import VALIDATORS
from eval import LABEL_FREE
from paper import command, draw
from paper.tables import RUNS, flat, footer, results_of, setting_of, trained

CRITERIA = ("last", "source", *VALIDATORS)
MOMENT = {"step": whole} | dict.fromkeys(VALIDATORS, finite)
STAGE = {"curve": lambda curve: fits(curve, [MOMENT]) and any(moment["step"] for moment in curve)}
JUDGED = ({"per_point": lambda per_point: per_point}, {"stage1": (STAGE, none), "stage2": (STAGE, none)})
TEXTS = {"last": "last step", "source": "source validation"}


def spearman(a, b):
    """Spearman's rho of two series (n,); nan where one does not vary."""
    return float(stats.spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else np.nan


def stages(result):
    """(number, record, moments but for step 0) of each stage of a run."""
    numbers = [n for n in (1, 2) if result[f"stage{n}"]]
    return [(n, r, [m for m in result[f"stage{n}"]["curve"] if m["step"]]) for n, r in zip(numbers, flat([result]))]


def judged(result):
    """One dict a stage, criterion and run: what was lost against the best moment, and Spearman over the moments.

    lost: points of target accuracy between the oracle's moment and the criterion's; rho: of the criterion with target
    accuracy over the moments of the run, nan for the last step, whose criterion is the step.
    """
    rows = []
    for n, record, moments in stages(result):
        target = np.array([row["target"] for row in moments])
        head = {"task": record["task"], "stage": n, "seed": record["seed"], "setting": setting_of(record)}
        head |= {"source": record["last_source"], "moments": len(moments), "trained": trained(record)}
        for name in CRITERIA:
            value = np.array([row["step" if name == "last" else name] for row in moments])
            lost = 100 * (target.max() - target[value.argmax()])
            rows.append(head | {"criterion": name, "lost": float(lost), "rho": spearman(value, target)})
    return rows


def pooled_rho(results, task, name):
    """Spearman of a criterion with target accuracy over all moments of all trained runs of a direction."""
    found = [each for result in results for each in stages(result)]
    moments = [m for _, record, own in found if record["task"] == task and trained(record) for m in own]
    return spearman(*(np.array([moment[key] for moment in moments]) for key in (name, "target")))


def over_seeds(rows, key):
    """Mean and standard error, clustered by seed, of finite values; nan for an error from one seed."""
    values = {}
    for row in rows:
        if np.isfinite(row[key]):
            values.setdefault(row["seed"], []).append(row[key])
    means = [np.mean(v) for v in values.values()]
    error = np.std(means, ddof=1) / len(means) ** 0.5 if len(means) > 1 else np.nan
    return (float(np.mean(means)), float(error)) if means else (np.nan, np.nan)


@command(RUNS, folder="results/validators")
def validators(args):
    """Label-free choice of the checkpoint: Spearman with target accuracy, points lost against the oracle."""
    results = [result for result in results_of(args.runs, JUDGED) if not result["per_point"]]  # they are of classes
    every = [row for result in results for row in judged(result)]
    rows = [row for row in every if row["trained"]]
    if not rows:
        raise UserError("none of these runs passes the gate; train them longer")
    tasks, table = sorted({row["task"] for row in rows}), []
    for name in CRITERIA:
        own = [row for row in rows if row["criterion"] == name]
        lost = {task: over_seeds([row for row in own if row["task"] == task], "lost") for task in tasks}
        rho = {task: over_seeds([row for row in own if row["task"] == task], "rho") for task in tasks}
        across = {task: pooled_rho(results, task, name) if name != "last" else np.nan for task in tasks}
        table.append((name, lost, rho, across, over_seeds(own, "lost")[0]))
    best = min((row for row in table if row[0] in VALIDATORS), key=lambda row: row[-1])[0]
    lines, number = [], lambda pair: f"{pair[0]:.1f} ± {pair[1]:.1f}"
    for name, lost, rho, across, mean in table:
        text = TEXTS.get(name, name) + (", the column *label-free*" if name == LABEL_FREE else "")
        cells = [f"{rho[t][0]:+.2f} / {across[t]:+.2f}" if name != "last" else "–" for t in tasks]
        lines.append([text, *(number(lost[t]) for t in tasks), f"{mean:.1f}", *cells])
    n = {task: len({(r["setting"], r["stage"], r["seed"]) for r in rows if r["task"] == task}) for task in tasks}
    head = ["criterion", *(f"points lost, {t}" for t in tasks), "mean", *(f"Spearman, {t}" for t in tasks)]
    counts = ", ".join(f"{task} {n[task]} stages of runs" for task in tasks)
    left = len(every) // len(CRITERIA) - sum(n.values())
    note = (
        "Points lost: target accuracy at the best moment of a run (a leak) less that at the moment which the criterion "
        "likes best, mean ± standard error clustered by seed. Spearman with target accuracy: over the moments of a "
        f"run, mean of the runs / over all moments of all runs of a direction. {counts}; {left} not trained and left "
        f"out. Least lost without labels: {best}.\n"
    )
    seeds = f"Seeds: {' '.join(map(str, sorted({row['seed'] for row in rows})))}. "
    text = "\n".join([*markdown(head, lines), "", note, seeds + footer(flat(results), "accuracy")])
    write_atomically(f"{args.out}.md", text.encode())
    write_atomically(f"{args.out}.csv", csv_text(every).encode())
    save_figure(draw_validators(rows, tasks), f"{args.out}.png")
    return f"{text}\nwrote {args.out}.md, .csv and .png"


def draw_validators(rows, tasks):
    """Points lost by each criterion, a panel a direction: a dot for each stage of a run, a bar at their mean."""
    figure, axes = draw.page(5 * len(tasks) + 1, 4, "What a choice of the checkpoint costs", 1, len(tasks))
    rng = np.random.default_rng(0)
    for ax, task in zip(axes[0], tasks):
        for y, name in enumerate(CRITERIA[::-1]):
            lost = np.array([row["lost"] for row in rows if (row["task"], row["criterion"]) == (task, name)])
            ax.plot(lost, y + rng.uniform(-0.2, 0.2, len(lost)), ".", color="C0", alpha=0.5)
            ax.plot([lost.mean()] * 2, [y - 0.35, y + 0.35], color="black", lw=2)
        ax.set_yticks(range(len(CRITERIA)), [TEXTS.get(name, name) for name in CRITERIA[::-1]])
        ax.set(xlabel="points of target accuracy lost against the best moment")
        ax.set_title(f"{task}, n = {len(lost)} stages of runs", fontsize=9)
    return figure
