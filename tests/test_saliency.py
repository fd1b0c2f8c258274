"""Section 4 against scipy, finite differences and algebra."""

import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import models
import stage1_ssl
from engine.picture import three_levels
from saliency import SCORES, gini, measure, saliency_map, select, shares, skewness, standardised_moment


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_skewness_is_scipys():
    """Eq. (5) is the biased sample skewness."""
    s = rand(6, 101) ** 3
    assert np.allclose(skewness(s), stats.skew(s.numpy(), axis=1, bias=True), atol=1e-12)


def test_skewness_algebra():
    """The sign flips with the map; shift, positive scale and point order change nothing."""
    s = rand(4, 64) ** 2
    sk = skewness(s)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(skewness(-s), -sk)
    for other in (s + 3, s * 7, s[:, order]):
        assert torch.allclose(skewness(other), sk, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_skewness_survives_tiny_and_huge_gradients(scale):
    """float32 maps of confident samples neither underflow nor overflow (denormals keep a few digits)."""
    s = torch.linspace(0, 1, 50)[None] ** 3
    assert torch.allclose(skewness(s * scale), skewness(s), rtol=0.1)


def test_flat_and_broken_maps_score_zero():
    """No spread, zero gradient, NaN or Inf: 0, never NaN."""
    s = torch.stack(
        [torch.zeros(9), torch.full((9,), 0.3), torch.full((9,), math.nan), torch.tensor([math.inf] + 8 * [1.0])]
    )
    assert skewness(s).tolist() == [0, 0, 0, 0]


def test_core_is_the_median_of_numpy():
    """With alpha = 0 and g = e_x the map is minus the offset from the per-axis median, even N included."""
    for n in (7, 8):
        x = rand(3, n, 3)
        g = torch.zeros_like(x)
        g[..., 0] = 1
        expected = -(x[..., 0].numpy() - np.median(x[..., 0].numpy(), axis=1, keepdims=True))
        assert np.allclose(saliency_map(x, g, 0.0), expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_saliency_is_the_derivative_in_the_radius(alpha):
    """Eq. (4) equals -(dL/dr) r^(1+alpha) by central differences along each point's radius."""
    x = rand(2, 9, 3)
    weight = rand(9, 3, seed=2)
    loss = lambda p: (torch.sin(p) * weight).sum((1, 2)) + p.prod(-1).sum(1)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    core = torch.from_numpy(np.median(x.numpy(), axis=1, keepdims=True))
    offset, eps = x - core, 1e-6
    r = offset.norm(dim=-1, keepdim=True)
    expected = torch.empty(2, 9, dtype=torch.float64)
    for i in range(9):
        step = torch.zeros_like(x)
        step[:, i] = (offset / r)[:, i] * eps
        expected[:, i] = -(loss(x + step) - loss(x - step)) / (2 * eps) * r[:, i, 0] ** (1 + alpha)
    assert torch.allclose(saliency_map(x, g, alpha), expected, atol=1e-6)


def test_saliency_ignores_translation_and_is_finite_at_the_core():
    """Moving the cloud changes nothing; a cloud of equal points has a zero map."""
    x, g = rand(2, 10, 3), rand(2, 10, 3, seed=3)
    assert torch.allclose(saliency_map(x + torch.tensor([1.0, -2, 3]), g), saliency_map(x, g))
    assert saliency_map(torch.ones(1, 5, 3), torch.ones(1, 5, 3)).abs().sum() == 0


@pytest.mark.parametrize("B", [1, 2, 3, 5, 16, 32, 64])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_select_keeps_floor_of_b_beta_plus_half(B, beta):
    """Without ties n = floor(B beta + .5) stay: the lowest, the highest, or as many at random."""
    score = rand(B)
    n = math.floor(B * beta + 0.5)
    low, high = (select(score, beta, keep) for keep in ("low", "high"))
    assert low.dtype == torch.bool and low.sum() == high.sum() == n
    assert select(score, beta, "random", torch.Generator().manual_seed(0)).sum() == n
    assert set(low.nonzero()[:, 0].tolist()) == set(score.argsort()[:n].tolist())
    assert set(high.nonzero()[:, 0].tolist()) == set(score.argsort()[B - n :].tolist())
    assert select(score, beta, "all").all()


def test_ties_at_the_threshold_are_dropped():
    """Eq. (7) is strict."""
    assert select(torch.tensor([0.0, 1, 1, 1]), 0.5).tolist() == [True, False, False, False]
    assert select(torch.zeros(4), 0.5).sum() == 0


def test_random_selection_is_uniform_and_from_its_generator():
    """Each sample is kept in a share beta of draws; the same seed draws the same."""
    g = torch.Generator().manual_seed(0)
    share = torch.stack([select(torch.arange(10.0), 0.7, "random", g) for _ in range(2000)]).float().mean(0)
    assert (share - 0.7).abs().max() < 0.05
    draws = [select(torch.zeros(50), 0.5, "random", torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*draws)


def test_select_refuses_nonsense():
    """Another word or a beta outside [0, 1]."""
    for bad in (dict(keep="best"), dict(beta=1.1), dict(beta=-0.1)):
        with pytest.raises(ValueError):
            select(torch.zeros(4), **bad)


@pytest.fixture(params=["pointnet", "dgcnn"])
def model(request):
    torch.manual_seed(0)
    return models.build(request.param, 10)


def snapshot(model):
    return [t.clone() for t in model.state_dict().values()], torch.get_rng_state(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_measure_leaves_no_trace(model, mode):
    """Weights, buffers, .grad, RNG state and train/eval flags are as before."""
    model.encoder.eval()  # mixed flags must come back as they were
    flags = [m.training for m in model.modules()]
    state, rng, _ = snapshot(model)
    sk = measure(model, torch.randn(4, 32, 3, generator=torch.Generator().manual_seed(1)), torch.arange(4), mode=mode)
    assert sk.shape == (4,) and sk.isfinite().all() and (sk != 0).any()
    after, rng_after, grads = snapshot(model)
    assert all(map(torch.equal, state, after)) and torch.equal(rng, rng_after)
    assert grads == [None] * len(grads) and flags == [m.training for m in model.modules()]


def test_measure_of_a_given_loss_is_the_extra_pass(model):
    """With the same dropout draw the two ways agree, and the graph can still be used."""
    x = torch.randn(6, 40, 3, generator=torch.Generator().manual_seed(2))
    y = torch.arange(6)
    torch.manual_seed(7)
    alone = measure(model, x, y)
    torch.manual_seed(7)
    leaf = x.clone().requires_grad_()
    ce = F.cross_entropy(model(leaf), y, reduction="none")
    given = measure(model, leaf, loss=ce)
    assert torch.allclose(alone, given, atol=1e-4)
    ce.mean().backward()


def test_rows_are_independent_in_eval_mode_only(model):
    """In eval mode row i ignores rows j; with batch statistics it does not."""
    for module in model.modules():  # dropout would differ between the two batches
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = torch.randn(6, 40, 3, generator=torch.Generator().manual_seed(3))
    other = torch.cat([x[:2], 2 * x[2:].flip(1)])
    y = torch.arange(6)
    assert torch.allclose(measure(model, x, y, mode="eval")[:2], measure(model, other, y, mode="eval")[:2], atol=1e-4)
    assert not torch.allclose(measure(model, x, y)[:2], measure(model, other, y)[:2], atol=1e-4)


def test_measure_without_labels_takes_the_predicted_class(model):
    """labels=None is argmax."""
    x = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        y = model.eval()(x).argmax(-1)
    assert torch.equal(measure(model, x, mode="eval"), measure(model, x, y, mode="eval"))


@pytest.mark.parametrize("B", [1, 2])
def test_small_batches_and_equal_points(B):
    """Batches of 1 and 2 and a cloud of equal points give finite scores in eval mode."""
    torch.manual_seed(0)
    x = torch.ones(B, 24, 3)
    assert measure(models.build("pointnet", 10), x, mode="eval").tolist() == [0.0] * B


def test_three_levels_cut_the_range_in_thirds():
    """Fig. 5: [0, d/3), [d/3, 2d/3), [2d/3, d] above the smallest value."""
    assert three_levels(torch.tensor([0.0, 0.9, 1.1, 1.9, 2.1, 3.0])).tolist() == [0, 0, 1, 1, 2, 2]
    assert three_levels(torch.ones(4)).tolist() == [0, 0, 0, 0]


def test_freeze_halves_both_domains_anew_and_low_never_filters_the_target():
    """Random Gradient Freezing draws half of both, each step; every other choice leaves the unlabelled batch whole."""
    args = SimpleNamespace(select="freeze", beta=0.7, seed=0, device="cpu")
    u = SimpleNamespace(x=torch.zeros(6, 20, 3))
    masks = [stage1_ssl.unlabelled_mask(t, args, u) for t in range(8)]
    assert {int(mask.sum()) for mask in masks} == {3} and len({tuple(mask.tolist()) for mask in masks}) > 1
    assert stage1_ssl.selection(args) == (0.5, "random")
    for keep in ("low", "high", "random", "all"):
        args.select = keep
        assert stage1_ssl.selection(args) == (0.7, keep) and stage1_ssl.unlabelled_mask(0, args, u) is None


# ---------------------------------------------------------------- other scores
def test_scores_of_hand_made_maps():
    """An even map and a single point: the extremes of every score of a map; a high score is an uneven map."""
    even, one = torch.ones(1, 100), torch.zeros(1, 100)
    one[0, 3] = 5.0
    loss, g = torch.tensor([2.0]), torch.Generator().manual_seed(0)
    value = lambda name, S: SCORES[name](S, loss, g).item()
    assert value("entropy", even) == pytest.approx(-math.log(100)) and value("entropy", one) == pytest.approx(0)
    assert value("gini", even) == pytest.approx(0, abs=1e-9) and value("gini", one) == pytest.approx(0.99)
    assert value("top5", even) == pytest.approx(0.05) and value("top5", one) == pytest.approx(1)
    assert value("loss", even) == 2 and 0 <= value("random", even) <= 1
    s = rand(5, 80) ** 3
    assert np.allclose(standardised_moment(s, 4), stats.kurtosis(s.numpy(), axis=1, fisher=False))
    a = np.sort(np.abs(s[0].numpy()))
    pairs = np.abs(a[:, None] - a[None]).sum() / (2 * 80 * a.sum())  # mean absolute difference over twice the mean
    assert gini(s)[0].item() == pytest.approx(pairs)
    assert torch.equal(shares(torch.zeros(1, 4)), torch.full((1, 4), 0.25).double())


@pytest.mark.parametrize("name", [name for name in SCORES if name != "random"])
def test_scores_ignore_the_order_of_points(name):
    """Shuffled points, the same score; of a map, also under a positive factor."""
    s, loss, g = rand(6, 50), rand(6), torch.Generator()
    got = SCORES[name](s, loss, g)
    assert got.shape == (6,) and torch.allclose(SCORES[name](7 * s[:, torch.randperm(50)], loss, g), got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_measure_takes_the_models_own_precision(dtype):
    """A model in another precision than the clouds is measured; double and single agree."""
    torch.manual_seed(0)
    model = models.build("pointnet", 10).eval()
    x, y = rand(3, 64, 3), torch.arange(3)
    expected = measure(model, x.float(), y, mode="eval")
    got = measure(model.to(dtype), x, y, mode="eval")
    assert got.shape == (3,) and got.isfinite().all()
    if dtype != torch.bfloat16:
        assert torch.allclose(got.float(), expected, atol=1e-3)


def test_what_would_give_a_wrong_score_silently_is_refused():
    """Channels first, an unknown mode, and eval mode asked of a pass that is already made."""
    model, x = models.build("pointnet", 10), torch.randn(3, 16, 3)
    with pytest.raises(ValueError, match="B, N, 3"):
        saliency_map(x.transpose(1, 2), x.transpose(1, 2))
    with pytest.raises(ValueError, match="'Train'"):
        measure(model, x, mode="Train")
    with pytest.raises(ValueError, match="eval"):
        measure(model, x, loss=x.sum(), mode="eval")


class Returns(torch.nn.Module):
    """A model of somebody else's: gives what `wrap` makes of the points, the model's logits and its features."""

    def __init__(self, wrap):
        super().__init__()
        self.model, self.wrap = models.build("pointnet", 10).eval(), wrap

    def forward(self, x):
        return self.wrap(x, self.model(x))


@pytest.fixture(scope="module")
def elsewhere():
    """A PointNet, four clouds, labels, and their scores in eval mode."""
    torch.manual_seed(0)
    model, x, y = models.build("pointnet", 10), rand(4, 32, 3).float(), torch.arange(4)
    return model, x, y, measure(model, x, y, mode="eval")


@pytest.mark.parametrize(
    "way", ["DataParallel", "int32", "(B, 1)", "list", "numpy", "numpy float64", "tuple", "list out"]
)
def test_other_trainers_get_the_same_score(elsewhere, way):
    """Wrapped models, labels of another type or shape, clouds from numpy: the score is the plain one, to the bit."""
    model, x, y, expected = elsewhere
    wrapped = Returns(lambda x, z: {"tuple": (z, None, x.new_zeros(4, 7, 7)), "list out": [x.mean(), z]}.get(way, z))
    wrapped.model = model
    used = {"DataParallel": torch.nn.DataParallel(model), "tuple": wrapped, "list out": wrapped}.get(way, model)
    points = {"numpy": x.numpy(), "numpy float64": x.double().numpy()}.get(way, x)
    labels = {"int32": y.int(), "(B, 1)": y[:, None], "list": y.tolist()}.get(way, y)
    state = [t.clone() for t in used.state_dict().values()]
    assert torch.equal(measure(used, points, labels, mode="eval"), expected)
    assert measure(used, points, labels).isfinite().all()  # with batch statistics, which must leave no trace either
    assert all(map(torch.equal, state, used.state_dict().values()))


@pytest.mark.parametrize(
    "wrap, labels, said",
    [
        (lambda x, z: (z, x.new_zeros(4, 1024)), [0, 1, 2, 3], "one tensor of logits"),
        (lambda x, z: {"logits": z}, [0, 1, 2, 3], "one tensor of logits"),
        (lambda x, z: z.expand(32, 4, 10).movedim(0, 2), [0, 1, 2, 3], "one tensor of logits"),  # (B, C, N)
        (lambda x, z: z, [0, 1, 2, 10], "0..9, not 0..10"),
        (lambda x, z: z, [-1, 1, 2, 3], "0..9, not -1..3"),
        (lambda x, z: z, [0, 1, 2], "batch_size"),
    ],
)
def test_what_other_trainers_must_mend_is_named(wrap, labels, said):
    """Several tensors that may be logits, none, labels out of range or too few: a ValueError, and flags as before."""
    model = Returns(wrap)
    flags = [m.training for m in model.modules()]
    with pytest.raises(ValueError, match=re.escape(said)):
        measure(model, torch.randn(4, 32, 3), torch.tensor(labels))
    assert flags == [m.training for m in model.modules()]


def test_one_cloud_has_no_batch_statistics():
    """In train mode one is refused with both remedies; in eval mode, or from a pass already made, it is measured."""
    model, x = models.build("pointnet", 10), torch.randn(1, 32, 3)
    with pytest.raises(ValueError, match="eval.*2 clouds"):
        measure(model, x)
    assert measure(model, x, mode="eval").shape == (1,)
    leaf = x.clone().requires_grad_()
    assert measure(model, leaf, loss=(leaf**2).sum((1, 2))).shape == (1,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_labels_and_points_go_where_the_weights_are(elsewhere):
    """Labels and clouds on the CPU, the model on a GPU."""
    model, x, y, expected = elsewhere
    got = measure(copy.deepcopy(model).cuda(), x, y, mode="eval")
    assert got.is_cuda and torch.allclose(got.cpu(), expected, atol=1e-3)


def test_a_half_is_rounded_up_whatever_the_float_says():
    """45 * .7 is 31.5, in floating point a little less: 32 are kept."""
    assert select(torch.arange(45.0), 0.7).sum() == 32 and select(torch.arange(45.0), 0.3).sum() == 14
