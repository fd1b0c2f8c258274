"""Does `low` beat the controls? Pairs, errors clustered by seed, and what cannot be seen."""

import re

import numpy as np
from scipy import stats

import eval as evaluation
from paper import tables


def record(select, seed, acc, stage=1, **more):
    """A record as far as pairs and differences read it."""
    flags = {key: None for key in evaluation.FLAGS} | dict(task="M_S", backbone="pointnet", ssl="defrec", mtl="sum")
    flags |= dict(beta=0.7, alpha=1.0, score="skewness", select=select, seed=seed, last_source=0.9)
    return {"fingerprint": "f", "stage": stage, "start": "", "last_acc": acc, "source_val_acc": acc, **flags, **more}


def test_pairs_share_what_the_other_depends_on():
    """`all` is found whatever its beta, and once; `random` with the same beta; `high` with the same score, too."""
    ours = [record("low", 0, 0.5, beta=0.3), record("low", 1, 0.6, beta=0.3, score="gini")]
    others = [record("all", 0, 0.1), record("all", 0, 0.2, beta=0.9), record("all", 1, 0.3, stage=2)]
    others += [record("random", 0, 0.3), record("random", 1, 0.4, beta=0.3)]
    others += [record("high", 1, 0.5, beta=0.3), record("high", 1, 0.6, beta=0.3, score="gini")]
    accs = lambda other: [(a["seed"], b["source_val_acc"]) for a, b in tables.pairs([*others, *ours], "low", other)]
    assert accs("all") == [(0, 0.2)] and accs("random") == [(1, 0.4)] and accs("high") == [(1, 0.6)]


def test_differences_pair_runs_by_seed():
    """low minus random, all and high by hand, in both columns; a comparator and an oracle have no part in it."""
    runs = [record("low", 0, 0.5), record("low", 1, 0.6), record("random", 1, 0.5), record("random", 0, 0.3)]
    runs += [record("all", 1, 0.7), record("all", 0, 0.9, mtl="pcgrad"), record("high", 5, 0.1)]
    runs += [record("low", 0, 0.5, task="S_S"), record("all", 0, 0.9, task="S_S")]
    lines = [line for line in tables.differences(runs) if "source_val" in line]
    one, two = "-10.0 (1 seed, 1 pairs: says nothing)", "+15.0 ± 5.0 (2 seeds, 2 pairs): not seen, smallest visible"
    assert lines[0].startswith(f"| M_S pointnet defrec low 0.7, stage 1, source_val | {one} | {two}")
    assert len(lines) == 1 and tables.differences(runs[:2]) == []
    stages = [record(*each, stage=n) for each in (("low", 0, 0.5), ("all", 0, 0.4)) for n in (1, 2)]
    assert sum("+10.0" in line for line in tables.differences(stages)) == 2 * 2  # a stage is a row of its own

    # a beta and a measuring mode have a row of their own, beside the controls that share them
    knobs = [("low", 0.3, 0.2), ("random", 0.3, 0.1), ("random", 0.7, 0.4)]
    modes = [("low", "eval", 0.8), ("high", "eval", 0.6), ("high", "x", 0)]
    runs = [record(select, 0, acc, beta=beta) for select, beta, acc in knobs]
    runs += [record(select, 0, acc, measure=mode) for select, mode, acc in modes]
    lines = tables.differences([*runs, record("low", 0, 0.5), record("all", 0, 0.6, beta=0.9)])
    numbers = {line.split(" | ")[0]: re.findall(r"[+-]\d+\.\d", line) for line in lines if ", last" in line}
    assert numbers["| M_S pointnet defrec low 0.3, stage 1, last"] == ["-40.0", "+10.0"]
    assert numbers["| M_S pointnet defrec low 0.7 measured in eval mode, stage 1, last"] == ["+20.0", "+40.0", "+20.0"]
    assert numbers["| M_S pointnet defrec low 0.7, stage 1, last"] == ["-10.0", "+10.0"]


def test_errors_are_clustered_by_seed():
    """Four pairs of two seeds are two numbers: directions and bases are averaged first; one seed has no error."""
    assert tables.by_seed([(0, 1.0), (0, 3.0), (1, 5.0), (1, 7.0)]).startswith("+4.0 ± 2.0 (2 seeds, 4 pairs)")
    assert tables.by_seed([(0, 2.0)] * 4) == "+2.0 (1 seed, 4 pairs: says nothing)"
    runs = [
        record(select, seed, acc, task=task)
        for seed, task, low in ((0, "M_S", 0.51), (0, "M_SC", 0.53), (1, "M_S", 0.55), (1, "M_SC", 0.57))
        for select, acc in (("low", low), ("all", 0.5))
    ]
    lines = {line.split(" | ")[0]: line for line in tables.differences(runs)}
    family = lines["| all directions and bases, pointnet low 0.7, stage 1, last"]
    assert (
        "+4.0 ± 2.0 (2 seeds, 4 pairs)" in family
        and "2 seeds, 2 pairs" in lines["| M_S pointnet defrec low 0.7, stage 1, last"]
    )


def test_a_run_is_counted_once_in_a_difference():
    """One `all` run beside four betas of low: four lines of one pair, none that pools the betas."""
    same = [record("low", 0, 0.5, beta=beta) for beta in (0.3, 0.5, 0.7, 0.9)] + [record("all", 0, 0.4)]
    lines = [line for line in tables.differences(same) if ", last" in line]
    assert len(lines) == 4 and all("(1 seed, 1 pairs" in line and "±" not in line for line in lines)
    other = [record("low", 0, 0.5, task="M_SC"), record("all", 0, 0.4, task="M_SC")]
    (line,) = [line for line in tables.differences([*same, *other]) if "all directions" in line and ", last" in line]
    assert line.startswith("| all directions and bases, pointnet low 0.7,") and "(1 seed, 2 pairs" in line


def test_what_cannot_be_seen_is_called_that():
    """Against the t-test by hand: four seeds around 1 are not seen, around 9 they are."""
    small, large = [(s, v) for s, v in enumerate((3, -1, 2, 0))], [(s, v) for s, v in enumerate((9, 10, 8, 9))]
    error = np.std([3, -1, 2, 0], ddof=1) / 2
    visible = (stats.t.ppf(0.975, 3) + stats.t.ppf(0.8, 3)) * error
    assert tables.by_seed(small) == f"+1.0 ± {error:.1f} (4 seeds, 4 pairs): not seen, smallest visible {visible:.1f}"
    assert "not seen" not in tables.by_seed(large) and stats.ttest_1samp([9, 10, 8, 9], 0).pvalue < 0.05
