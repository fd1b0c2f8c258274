"""data.py: streams, augmentation and the evaluation subset."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import uniform_filter1d
from scipy.optimize import linprog

import data
from engine.geometry import distort, grid_of
from datasets.files import normalise


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


# ---------------------------------------------------------------- streams
@pytest.mark.parametrize("n, batch", [(10, 3), (12, 4), (5, 5), (7, 1)])
def test_an_epoch_shows_no_index_twice(n, batch):
    """Full batches of one permutation; the tail is dropped, and the next epoch has another order."""
    per_epoch = n // batch
    epochs = [torch.cat([data.stream(n, batch, e * per_epoch + i, 3, "x") for i in range(per_epoch)]) for e in range(6)]
    assert all(len(e.unique()) == per_epoch * batch and e.min() >= 0 and e.max() < n for e in epochs)
    assert len({tuple(e.tolist()) for e in epochs}) > 1


@pytest.mark.parametrize("n, batch", [(3, 8), (2, 4), (1, 4), (5, 6)])
def test_a_batch_larger_than_the_domain_wraps(n, batch):
    """Every index appears at least floor(batch / n) and at most ceil(batch / n) times in a step."""
    for step in range(5):
        index = data.stream(n, batch, step, "w")
        count = torch.bincount(index, minlength=n)
        assert len(index) == batch and count.min() >= batch // n and count.max() <= -(-batch // n)
    assert n == 1 or len({tuple(data.stream(n, batch, step, "w").tolist()) for step in range(20)}) > 3


def test_a_step_depends_on_nothing_but_itself():
    """Any order of calls gives the same batches; other seed words give others."""
    forward = [data.stream(100, 8, t, 0, "source") for t in range(40)]
    data._permutation.cache_clear()
    for t in reversed(range(40)):
        assert torch.equal(data.stream(100, 8, t, 0, "source"), forward[t])
    assert not torch.equal(data.stream(100, 8, 0, 1, "source"), forward[0])
    assert not torch.equal(data.stream(100, 8, 0, 0, "target"), forward[0])


def test_over_many_epochs_nobody_is_left_out():
    """Whom the dropped tail of an epoch holds changes: 800 of the 1000 draws reach each index about 80 times."""
    seen = torch.cat([data.stream(10, 4, step, 0) for step in range(200)]).bincount(minlength=10)
    assert seen.sum() == 800 and seen.min() > 60


# ---------------------------------------------------------------- augmentation
@pytest.fixture
def x():
    points = torch.randn(16, 200, 3, generator=torch.Generator().manual_seed(1))
    return normalise(points)


VIEWS = {
    "rotate_z": data.rotate_z,
    "elastic": data.elastic,
    "scale": data.scale,
    "jitter": data.jitter,
    "crop": data.half_space_crop,
    "strong source": lambda p, g: data.strong_view(p, 50, g, source=True, crop=True),
    "strong target": lambda p, g: data.strong_view(p, 50, g, source=False),
    "weak": lambda p, g: data.weak_view(p, 50, g),
    "plain": lambda p, g: data.plain_view(p, 50, g),
    "more": lambda p, g: data.plain_view(p, 300, g),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_is_a_function_of_its_generator(x, view):
    """Equal generators give equal views, others do not; the global generator is left alone."""
    seeded, state, copy = torch.Generator().manual_seed, torch.get_rng_state(), x.clone()
    one, two, three = view(x, seeded(1)), view(x, seeded(1)), view(x, seeded(2))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, copy)
    assert one.isfinite().all() and one.shape[0] == 16 and one.shape[2] == 3


def test_rotation_keeps_height_and_turns_each_cloud_rigidly(x, g):
    """z and inner products stay; a cloud turns by one angle, and the angles fill the circle."""
    y = data.rotate_z(x, g)
    assert torch.allclose(y[..., 2], x[..., 2]) and torch.allclose(y @ y.mT, x @ x.mT, atol=1e-5)
    cross = x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]
    angle = torch.atan2(cross.sum(1), (x[..., :2] * y[..., :2]).sum((1, 2)))
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    assert torch.allclose(y[..., 0], c * x[..., 0] - s * x[..., 1], atol=1e-5)
    many = data.rotate_z(torch.tensor([[[1.0, 0, 0]]]).expand(4000, 1, 3), g)[:, 0]
    assert many.mean(0).norm() < 0.05 and (many[:, 0].sign() * many[:, 1].sign()).mean().abs() < 0.05


def test_scale_is_one_factor_a_cloud_in_its_range(x, g):
    """Each cloud is multiplied by one number of U[.7, 1.5]."""
    factor = data.scale(x.repeat(100, 1, 1), g) / x.repeat(100, 1, 1)
    mine = factor[:, 0, 0]
    assert torch.allclose(factor, mine[:, None, None].expand_as(factor), rtol=1e-4)
    assert 0.7 <= mine.min() < 0.71 and 1.49 < mine.max() <= 1.5 and abs(mine.mean() - 1.1) < 0.03


@pytest.mark.parametrize("sigma, clip", [(0.01, 0.05), (0.01, 0.02), (0.1, 0.05)])
def test_jitter_is_clipped_noise(g, sigma, clip):
    """No coordinate moves further than the clip; the spread is sigma where the clip allows it."""
    moved = data.jitter(torch.zeros(100, 200, 3), g, sigma, clip)
    assert moved.abs().max() <= clip
    if clip >= 5 * sigma:
        assert abs(moved.std() - sigma) < 0.02 * sigma
    else:
        assert (moved.abs() == clip).float().mean() > 0.01


def test_crop_keeps_a_half_space(x, g):
    """Exactly round(.7 N) points, each once, and a plane parts them from all the others."""
    for n in (200, 64, 15, 2):
        for whole, kept_points in zip(x[:4, :n], data.half_space_crop(x[:4, :n], g)):
            kept = (whole[:, None] == kept_points).all(-1).any(1).numpy()
            assert kept_points.shape == (round(0.7 * n), 3) and kept.sum() == round(0.7 * n)
            side = np.where(kept, -1, 1)[:, None] * np.column_stack([whole.double().numpy(), np.ones(n)])
            plane = linprog(np.zeros(4), side, np.full(n, -1), bounds=(None, None))  # w p + b >= 1, or <= -1
            assert plane.status == 0


@pytest.mark.parametrize("n, distinct", [(64, 64), (140, 140), (141, 130)])
def test_a_cropped_view_has_distinct_points_where_there_are_enough(x, g, n, distinct):
    """140 of 200 points survive the crop: up to so many are drawn once each, beyond that with replacement."""
    view = data.strong_view(x, n, g, source=True, crop=True)
    numbers = [len(cloud.unique(dim=0)) for cloud in view]
    assert view.shape == (16, n, 3) and (set(numbers) == {n} if distinct == n else max(numbers) < distinct)


def test_crop_cuts_in_every_direction(x, g):
    """Different clouds lose different sides."""
    y = data.half_space_crop(x[:1].expand(400, -1, -1), g)
    shift = torch.nn.functional.normalize(y.mean(1), dim=1)
    assert shift.mean(0).norm() < 0.15 and (shift @ shift.T).min() < -0.9


def test_elastic_leaves_a_share_of_clouds_alone(g):
    """With probability 1 - p a cloud is unchanged: 5 % of many by default, all for p = 0, none for p = 1."""
    points = torch.randn(1000, 4, 3, generator=g) / 2
    same = lambda p: (data.elastic(points, g, **p) == points).all(-1).all(-1).float().mean().item()
    assert abs(same({}) - 0.05) < 0.02 and same({"p": 0.0}) == 1 and same({"p": 1.0}) == 0


def plain_distortion(points, noise, granularity):
    """Self-dist's rule for one cloud (N, 3), by scipy: noise on its own grid, box filters, linear lookup."""
    low = points.min(0)
    nodes = ((points.max(0) - low) // granularity).astype(int) + 3
    noise = noise[:, : nodes[0], : nodes[1], : nodes[2]]
    for axis in (1, 2, 3, 1, 2, 3):
        noise = uniform_filter1d(noise, 3, axis=axis, mode="constant")
    axes = [np.linspace(a - granularity, a + granularity * (n - 2), n) for a, n in zip(low, nodes)]
    look = RegularGridInterpolator(axes, noise.transpose(1, 2, 3, 0), bounds_error=False, fill_value=0)
    return look(points)


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("granularity", [0.2, 0.8])
def test_distortion_is_scipys_on_each_clouds_own_grid(g, granularity, more):
    """Clouds of different sizes in one batch, against RegularGridInterpolator on the same noise; also in more room."""
    points = torch.randn(6, 300, 3, generator=g).double() * torch.tensor([0.1, 0.3, 0.5, 0.2, 0.4, 0.6])[:, None, None]
    points = points * torch.tensor([1.0, 0.5, 2.0]) + 0.3
    D = int(grid_of(points, granularity)[1].max()) + more
    noise = torch.randn(6, 3, D, D, D, generator=g).double()
    got = distort(points, noise, granularity, grid_of(points, granularity))
    want = [plain_distortion(p, n, granularity) for p, n in zip(points.numpy(), noise.numpy())]
    np.testing.assert_allclose(got.numpy(), np.stack(want), atol=1e-6)  # the box is made in float32
    got = distort(points.float(), noise.float(), granularity, grid_of(points.float(), granularity))
    np.testing.assert_allclose(got.numpy(), np.stack(want), atol=1e-5)


def test_elastic_is_two_distortions(g):
    """Granularity .2 with magnitude .4, then .8 with 1.6 of what came out; the grids hold any unit sphere."""
    points, state = torch.randn(200, 300, 3, generator=g), g.get_state()
    points = points / points.norm(dim=-1, keepdim=True).amax(1, keepdim=True)  # in the unit sphere
    got = data.elastic(points, g, p=1.0)
    g.set_state(state)
    torch.rand(200, 1, 1, generator=g)
    want = points
    for granularity, magnitude, D in ((0.2, 0.4, 13), (0.8, 1.6, 6)):
        assert grid_of(want, granularity)[1].max() <= D  # the box holds every cloud's grid
        want = want + magnitude * distort(
            want, torch.randn(200, 3, D, D, D, generator=g), granularity, grid_of(want, granularity)
        )
    assert torch.equal(got, want)


def test_elastic_bends_each_cloud_in_its_own_way(g):
    """Equal clouds are moved differently, close points alike."""
    point = torch.tensor([[[0.3, -0.2, 0.1], [0.3001, -0.2, 0.1], [-0.5, 0.4, 0.0]]])
    moved = data.elastic(point.expand(64, -1, -1), g, p=1.0) - point
    near, far = (moved[:, 0] - moved[:, 1]).norm(dim=1), (moved[:, 0] - moved[:, 2]).norm(dim=1)
    assert near.max() < 0.01 < 0.05 < far.median() and moved[:, 0].std(0).min() > 0.05


@pytest.mark.parametrize("n", [1, 50, 200])
def test_subsample_takes_distinct_points_of_each_cloud(x, g, n):
    """n <= N: without replacement, fresh for each cloud and call, every point equally likely."""
    index = data.subsample_index(x, n, g)
    assert index.shape == (16, n) and all(len(row.unique()) == n for row in index)
    assert torch.equal(data.gather_points(x, index), torch.stack([p[i] for p, i in zip(x, index)]))
    if n == 50:
        assert not torch.equal(index[0].sort()[0], index[1].sort()[0])
        share = torch.bincount(data.subsample_index(x[:1].expand(4000, -1, -1), n, g).flatten(), minlength=200) / 4000
        assert (share - 0.25).abs().max() < 0.04


def test_a_short_cloud_is_drawn_with_replacement(x, g):
    """n > N: every point drawn is one of the cloud's own."""
    y = data.subsample(x[:, :7], 30, g)
    assert y.shape == (16, 30, 3) and all((p[:, None] == q).all(-1).any(1).all() for p, q in zip(y, x[:, :7]))


def test_strong_views_follow_the_table(x, g, monkeypatch):
    """Source: turn, elastic, scale, jitter, crop on request; target: no turn, no crop; then a subsample."""
    called = []
    for name in ("rotate_z", "elastic", "scale", "jitter", "half_space_crop", "subsample"):
        real = getattr(data, name)
        monkeypatch.setattr(data, name, lambda *a, real=real, name=name, **k: called.append(name) or real(*a, **k))
    steps = lambda view: called.clear() or view() is None or list(called)
    middle = ["elastic", "scale", "jitter"]
    assert steps(lambda: data.strong_view(x, 9, g, source=True)) == ["rotate_z", *middle, "subsample"]
    assert steps(lambda: data.strong_view(x, 9, g, source=True, crop=True)) == [
        "rotate_z",
        *middle,
        "half_space_crop",
        "subsample",
    ]
    assert steps(lambda: data.strong_view(x, 9, g, source=False, crop=True)) == [*middle, "subsample"]
    assert steps(lambda: data.weak_view(x, 9, g)) == ["jitter", "subsample"]
    assert steps(lambda: data.plain_view(x, 9, g)) == ["rotate_z", "jitter", "subsample"]


def test_weak_and_plain_views_stay_close_to_the_cloud(x, g):
    """The weak view moves a coordinate at most .05; the plain view, up to its turn, at most .02."""
    near = lambda a, b: (a[:, :, None] - b[:, None]).abs().amax(-1).amin(-1).max().item()
    assert near(data.weak_view(x, 50, g), x) <= 0.05 + 1e-6
    assert near(data.plain_view(x, 50, g)[..., 2:], x[..., 2:]) <= 0.02 + 1e-6


def test_labels_follow_their_points(x, g):
    """Labels that tell a point's height still do so after the labelled view and the evaluation subset."""
    labels = (x[..., 2] * 1000).round().long()
    for points, y in (data.plain_view_labelled(x, labels, 60, g), data.evaluation_subset(x, 60, labels)):
        assert points.shape == (16, 60, 3) and y.shape == (16, 60)
        assert (points[..., 2] * 1000 - y).abs().max() <= 21
        assert len(y.unique()) > 100


def test_only_cad_to_scans_is_cropped():
    """The crop belongs to M -> SC and S -> SC, and to own models whose target is scans."""
    assert [name for name, way in data.directions().items() if way.crop] == ["M_SC", "S_SC", "own_source_target"]


def test_the_evaluation_subset_is_fixed(x):
    """Distinct points of each cloud, the same whatever was drawn before and however many clouds follow."""
    one = data.evaluation_subset(x, 64)
    torch.rand(5)
    assert torch.equal(one, data.evaluation_subset(x, 64)) and torch.equal(one[:5], data.evaluation_subset(x[:5], 64))
    assert one.shape == (16, 64, 3) and all(len(p.unique(dim=0)) == 64 for p in one)
    index = [{tuple(q) for q in p.tolist()} for p in data.evaluation_subset(x[:1].expand(2, -1, -1), 64)]
    assert index[0] != index[1]
