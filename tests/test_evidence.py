"""The statistics behind the figures, with a known answer: scores of a map, AUC, correlations, additive noise."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import ssl_tasks
from engine import base
from paper import conflict, evidence
from saliency import SCORES


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer resamples."""
    monkeypatch.setattr(evidence, "RESAMPLES", 200)


# ---------------------------------------------------------------- scores of a map
def score(name, S):
    """One of SCORES of maps (B, N) as numpy (B,)."""
    return SCORES[name](S, None, None).double().numpy()


def test_map_scores_against_their_definitions():
    """kurtosis and entropy as scipy has them, Gini as the mean difference of pairs, the top 5 % counted."""
    S = torch.randn(6, 101, generator=torch.Generator().manual_seed(0)) ** 3
    a = S.abs().double().numpy()
    assert np.allclose(score("kurtosis", S), 3 + stats.kurtosis(S.double().numpy(), axis=1), rtol=1e-4)
    assert np.allclose(score("entropy", S), -stats.entropy(a, axis=1), rtol=1e-6)
    pairs = np.abs(a[:, :, None] - a[:, None]).mean((1, 2)) / (2 * a.mean(1))
    assert np.allclose(score("gini", S), pairs, rtol=1e-6)
    assert np.allclose(score("top5", S), np.sort(a, 1)[:, -6:].sum(1) / a.sum(1), rtol=1e-6)  # ceil(5.05) = 6


def test_map_scores_of_flat_and_one_point_maps_and_of_any_scale():
    """Hand values; a positive factor, however small, changes nothing."""
    flat, one = torch.zeros(1, 20), torch.eye(20)[:1]
    found = [score(name, flat).item() for name in ("skewness", "kurtosis", "entropy", "gini", "top5")]
    assert found == pytest.approx([0, 0, -np.log(20), 0, 0.05])
    assert [score(name, one).item() for name in ("entropy", "gini", "top5")] == pytest.approx([0, 0.95, 1])
    S = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    for name in conflict.OF_MAP:
        assert np.allclose(score(name, S), score(name, S * 1e-30), rtol=1e-4)


# ---------------------------------------------------------------- statistics
def brute_auc(score, positive):
    """Share of pairs in which the positive has the higher score, ties half."""
    wins = [(p > q) + (p == q) / 2 for p in score[positive] for q in score[~positive]]
    return np.mean(wins)


def test_auc_against_brute_force():
    """With ties; undefined without one of the classes."""
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.3
    assert evidence.auc(evidence.ranks(score), positive) == pytest.approx(brute_auc(score, positive))
    assert np.isnan(evidence.auc(evidence.ranks(score), np.ones(60, bool)))


def planted(effect, seed, n=500, P=150):
    """Own gradients of n samples as a real task would give them, against G along a known direction: score, cosines.

    The task's loss is W . x_i, so that its gradient over the encoder's weight W is x_i itself.
    """
    g = torch.Generator().manual_seed(seed)
    direction = torch.randn(P // 3, 3, generator=g)
    score = torch.randn(n, generator=g)
    x = torch.randn(n, P // 3, 3, generator=g) - effect * score[:, None, None] * direction / direction.norm()
    encoder = torch.nn.Linear(3, P // 3, bias=False)
    model = SimpleNamespace(encoder=encoder, modules=encoder.modules, eval=encoder.eval)

    class Toy(torch.nn.Module):
        def forward(self, model, view, features, generator):
            return (model.encoder.weight * view.x).sum((1, 2))

    cosines = [cos for (cos,) in conflict.own_cosines(model, Toy(), ssl_tasks.View(x), (direction.flatten(),), "toy")]
    assert cosines[3] == pytest.approx(torch.cosine_similarity(x[3].flatten(), direction.flatten(), 0).item(), abs=1e-5)
    return score.numpy()[None], np.array(cosines)[None]


ONE = np.zeros(500, int)  # all of one class


def test_a_small_planted_effect_is_found_and_none_is_not():
    """r = .3 between score and cosine: both intervals exclude chance. None: both hold it. Reversed: below."""
    for effect, side in ((0.3, 1), (-0.3, -1)):
        found = evidence.prediction(*planted(effect, 0), ONE, seed=0)[0]
        ends = [side * (v - c) for name, c in (("auc", 0.5), ("rho", 0)) for v in found[f"{name}_interval"]]
        assert min(ends) > 0 and 0.55 < max(found["auc"], 1 - found["auc"]) < 0.7
    none = evidence.prediction(*planted(0.0, 0), ONE, seed=0)[0]
    assert (
        none["auc_interval"][0] < 0.5 < none["auc_interval"][1]
        and none["rho_interval"][0] < 0 < none["rho_interval"][1]
    )


def test_the_interval_holds_chance_about_as_often_as_it_says():
    """Without an effect, 95 % of intervals hold .5 (here of 100 draws, n = 500)."""
    rng = np.random.default_rng(0)
    draws = [evidence.prediction(*rng.normal(size=(2, 1, 500)), ONE, seed=s)[0]["auc_interval"] for s in range(100)]
    assert 90 <= sum(low <= 0.5 <= high for low, high in draws) <= 99


def test_moments_without_a_conflict_have_no_auc():
    """nan at that moment, the mean over the others; a sample without a cosine is left out."""
    rng = np.random.default_rng(1)
    score, cosine = rng.normal(size=(2, 3, 60))
    cosine[1] = np.abs(cosine[1])
    cosine[0, 7] = np.nan
    one, two, three, mean = evidence.prediction(score, cosine, np.arange(60) % 3, 0)
    keep = np.arange(60) != 7
    assert one["auc"] == pytest.approx(brute_auc(score[0, keep], cosine[0, keep] < 0))
    assert np.isnan(two["auc"]) and np.isnan(two["auc_interval"]).all() and np.isfinite(two["rho"])
    assert mean["auc"] == pytest.approx((one["auc"] + three["auc"]) / 2)
    assert all(np.isnan(f["auc"]) for f in evidence.prediction(score, np.abs(score), np.arange(60) % 3, 0))


def test_auc_within_classes_is_free_of_their_composition():
    """One class conflicts and has high scores, within a class the score is noise: pooled .9, within .5; by pairs."""
    rng = np.random.default_rng(0)
    classes = np.arange(400) % 2
    score = rng.normal(size=(1, 400)) + 3 * classes
    cosine = np.where(rng.random((1, 400)) < 0.1 + 0.8 * classes, -1.0, 1.0)
    (found, _) = evidence.prediction(score, cosine, classes, 0)
    wins = [
        (p > q) + (p == q) / 2
        for c in (0, 1)
        for p in score[0, (classes == c) & (cosine[0] < 0)]
        for q in score[0, (classes == c) & (cosine[0] >= 0)]
    ]
    assert found["within"] == pytest.approx(np.mean(wins)) and found["auc"] > 0.8
    low, high = found["within_interval"]
    assert low < 0.5 < high and found["auc_interval"][0] > 0.8


def test_the_gap_of_two_noise_models_has_an_interval(monkeypatch):
    """x causes y = x^3 + noise: below zero with its interval, and the reverse the other way round."""
    monkeypatch.setattr(evidence, "GAP_RESAMPLES", 40)
    x, y = cubic(0)
    gap, (low, high) = evidence.noise_gap(x, y, 0)
    assert low < gap < high < 0 and evidence.noise_gap(y, x, 0)[0] == pytest.approx(-gap)


def test_block_bootstrap_draws_whole_stretches():
    """Blocks of neighbours, cut to n, the same for a seed; length 1 is the ordinary bootstrap."""
    i = evidence.resamples(50, 8, 3)
    assert i.shape == (evidence.RESAMPLES, 50)
    blocks = i[:, :48].reshape(len(i), 6, 8)
    assert (np.diff(blocks) == 1).all() and i.min() == 0 and i.max() == 49
    assert (i == evidence.resamples(50, 8, 3)).all() and (i != evidence.resamples(50, 8, 4)).any()


def drift(seed, n=240):
    """Two series that both drift with time and have nothing to do with each other."""
    noise = np.random.default_rng(seed).normal(size=(2, n))
    return noise[0] + np.linspace(0, 3, n), noise[1] + np.linspace(0, 3, n)


def test_correlations_of_steps():
    """Against scipy; drift alone correlates, its differences do not; blocks widen the interval of slow series."""
    x, y = drift(0)
    found = evidence.correlations(x, y, 0)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y)[0])
    assert found["pearson_of_differences"] == pytest.approx(stats.pearsonr(np.diff(x), np.diff(y))[0])
    assert found["pearson_interval"][0] > 0.2
    assert found["spearman_of_differences_interval"][0] < 0 < found["spearman_of_differences_interval"][1]
    slow = np.random.default_rng(5).normal(size=(2, 240)).cumsum(1)
    i = evidence.resamples(240, 1, 0)
    low, high = evidence.interval(evidence.pearson(slow[0][i], slow[1][i]))
    wide = evidence.correlations(*slow, 0)["pearson_interval"]
    assert wide[1] - wide[0] > 1.5 * (high - low)
    few = evidence.correlations(x[:12], y[:12], 0)
    assert np.isfinite(few["pearson"]) and np.isnan(few["pearson_interval"]).all()
    with pytest.raises(base.UserError, match="too few"):
        evidence.correlations(x[:4], y[:4], 0)


# ---------------------------------------------------------------- additive-noise model
def cubic(seed, n=300):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, n)
    return x, x**3 + rng.uniform(-1, 1, n)


@pytest.mark.parametrize("seed", range(3))
def test_additive_noise_finds_the_cause(seed):
    """y = x^3 + noise fits from x to y and is refused from y to x, whichever way they are handed in."""
    x, y = cubic(seed)
    there, back = evidence.additive_noise(x, y), evidence.additive_noise(y, x)
    assert there["p"] > 0.05 and back["p"] < 1e-3 and back["hsic"] > 5 * there["hsic"]
    assert np.corrcoef(there["fit"], stats.zscore(x**3))[0, 1] > 0.99


def test_hsic_against_a_permutation_test():
    """The gamma approximation's p against 400 permutations, for a weak dependence; p is uniform without one."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=80)
    y = 0.25 * x + rng.normal(size=80)
    score, p = evidence.hsic(x, y)
    null = np.array([evidence.hsic(x, rng.permutation(y))[0] for _ in range(400)])
    assert p == pytest.approx((null >= score).mean(), abs=0.05) and 0 < score < 1
    ps = [evidence.hsic(*rng.normal(size=(2, 60)))[1] for _ in range(200)]
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.1 and evidence.hsic(x, x)[0] == pytest.approx(1)


def test_additive_noise_with_ties_and_with_nothing_to_fit():
    """Equal causes become one point; constant or few values are refused in one line."""
    x, y = cubic(0)
    assert evidence.additive_noise(np.round(x, 1), y)["hsic"] < 0.05
    for a, b in ((np.ones(50), y[:50]), (x[:4], y[:4]), (np.sign(x), y)):
        with pytest.raises(base.UserError, match="additive-noise"):
            evidence.additive_noise(a, b)
