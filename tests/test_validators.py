"""Label-free validators: hand-made predictions with a known best, and known values."""

import numpy as np
import pytest
from scipy import stats

from engine.validators import VALIDATORS, clusters, judge

TRUTH = np.repeat(np.arange(4), 6)


def logits(classes, sureness):
    """Predictions (n, 4) of these classes."""
    return sureness * np.eye(4)[classes]


def test_values_by_hand():
    """Even over four classes and certain: mean entropy 0, InfoMax log 4, BNM 1; uniform: log 4, 0, 1/4."""
    sure, even = judge(logits(TRUTH, 1e3), TRUTH), judge(logits(TRUTH, 0), TRUTH)
    assert sure["entropy"] == pytest.approx(0, abs=1e-9) and even["entropy"] == pytest.approx(-np.log(4))
    assert sure["infomax"] == pytest.approx(np.log(4)) and even["infomax"] == pytest.approx(0, abs=1e-9)
    assert sure["bnm"] == pytest.approx(1) and even["bnm"] == pytest.approx(0.25)
    assert sure["class_ami"] == pytest.approx(1) and even["class_ami"] == pytest.approx(0, abs=1e-9)
    # SND: five neighbours of the same class at similarity 1, eighteen others at 0
    weights = np.r_[np.full(5, np.exp(20)), np.ones(18)]
    assert sure["snd"] == pytest.approx(stats.entropy(weights), rel=1e-6)
    assert even["snd"] == pytest.approx(np.log(23))  # all alike: the largest, which is how it is fooled


@pytest.mark.parametrize("name", VALIDATORS)
def test_a_known_best_is_ranked_first(name):
    """Sure and in line with the clusters against half of the clouds undecided between two classes, each its own way."""
    mixed, i = logits(TRUTH, 8.0), np.arange(0, 24, 2)
    mixed[i, (TRUTH[i] + 1 + i // 2 % 3) % 4] += np.linspace(5, 9, 12)
    assert judge(logits(TRUTH, 8.0), TRUTH)[name] > judge(mixed, TRUTH)[name]


def test_a_collapse_fools_entropy_alone_of_the_first_three():
    """All clouds surely of one class: the best entropy, the worst InfoMax and ClassAMI."""
    good, collapsed = judge(logits(TRUTH, 5.0), TRUTH), judge(logits(0 * TRUTH, 9.0), TRUTH)
    assert collapsed["entropy"] > good["entropy"]
    assert all(collapsed[name] < good[name] for name in ("infomax", "bnm", "class_ami"))


def test_clusters_are_groups_of_directions():
    """k-means on unit length finds four directions whatever their length, the same for the same seed."""
    rng = np.random.default_rng(0)
    f = (np.eye(4)[TRUTH] + 0.01 * rng.normal(size=(24, 4))) * rng.uniform(1, 50, (24, 1))
    found = clusters(f.astype(np.float32), 4, 3)
    assert len({(a, b) for a, b in zip(TRUTH, found)}) == 4 and found.dtype == np.uint8
    assert (found == clusters(f.astype(np.float32), 4, 3)).all()
    assert clusters(np.zeros((2, 4), np.float32), 4, 0).shape == (2,)  # fewer clouds than classes, no direction
