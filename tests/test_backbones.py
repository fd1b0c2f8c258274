"""extras/backbones.py: each layer against a slow loop, and both backbones through a step of every task.

tests/test_models.py takes every backbone through symmetries, shapes and repeated points, these two as well.
"""

import math
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import data
import models
import ssl_tasks
import stage1_ssl
from engine.base import generator
from engine.geometry import farthest_points, gather_points
from engine.run import load_checkpoint
from extras import backbones, contrast  # noqa: F401
from fixtures import command
from saliency import measure

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("pointnet2", "pct", "pointdan")
STEPS = [
    (backbone, ssl)
    for backbone in ("pointnet2", "pct")
    for ssl in (*ssl_tasks.TASKS, "defrec+pcm")
    if ssl != "pointdan"
]
STEPS += [("pointdan", ssl) for ssl in ("pointdan", "defrec+pcm")]


def balls(B, N, seed=0, dtype=torch.float64):
    """Clouds in the unit sphere, half of their points on it."""
    g = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(B, N, 3, generator=g, dtype=dtype), dim=-1)
    x[:, ::2] *= torch.rand(B, len(range(0, N, 2)), 1, generator=g, dtype=dtype)
    return x


def settled(module, seed=0):
    """In double precision and eval mode, with running statistics and norms of its own, so that clouds are apart."""
    g = torch.Generator().manual_seed(seed)
    for bn in module.double().eval().modules():
        if isinstance(bn, torch.nn.BatchNorm1d):
            for tensor in (bn.weight.data, bn.bias.data, bn.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=g))
    return module


# ---------------------------------------------------------------- slow loops
def slow_spread(points, m):
    """The greedy loop, one cloud at a time."""
    found = []
    for cloud in points.tolist():
        mean = [sum(axis) / len(cloud) for axis in zip(*cloud)]
        taken = [max(range(len(cloud)), key=lambda i: math.dist(cloud[i], mean))]
        while len(taken) < m:
            taken.append(max(range(len(cloud)), key=lambda i: min(math.dist(cloud[i], cloud[j]) for j in taken)))
        found.append(taken)
    return torch.tensor(found)


def slow_ball(centres, points, radius, k):
    """Sorted by distance, at most k of those nearer than the radius, filled up with the nearest."""
    found = []
    for some, cloud in zip(centres.tolist(), points.tolist()):
        rows = []
        for centre in some:
            order = sorted(range(len(cloud)), key=lambda j: math.dist(cloud[j], centre))
            inside = [j for j in order[:k] if math.dist(cloud[j], centre) < radius]
            rows.append(inside + order[:1] * (min(k, len(cloud)) - len(inside)))
        found.append(rows)
    return torch.tensor(found)


def slow_interpolate(places, points, features):
    """1/d^2 weights of three nearest, one place at a time."""
    out = features.new_zeros(*places.shape[:2], features.shape[2])
    for b in range(len(places)):
        for i, place in enumerate(places[b].tolist()):
            d = [max(math.dist(place, p) ** 2, 1e-10) for p in points[b].tolist()]
            near = sorted(range(len(d)), key=lambda j: d[j])[:3]
            out[b, i] = sum(features[b, j] / d[j] for j in near) / sum(1 / d[j] for j in near)
    return out


# ---------------------------------------------------------------- the parts of PointNet++
def test_spread_is_the_greedy_loop_from_the_point_farthest_from_the_mean():
    x = balls(3, 40)
    index = backbones.spread(x, 12)
    assert torch.equal(index, slow_spread(x, 12)) and torch.equal(index[:, :5], backbones.spread(x, 5))
    centres = gather_points(x, index)
    assert torch.equal(farthest_points(centres, 7), torch.arange(7).expand(3, -1))  # the second level is a prefix


def test_spread_of_repeated_points_takes_each_place_before_any_again():
    x = balls(2, 5).repeat(1, 2, 1)
    taken = gather_points(x, backbones.spread(x, 8))
    assert all(len({tuple(p) for p in cloud[:5].tolist()}) == 5 for cloud in taken)


@pytest.mark.parametrize("n, radius, k", ((60, 0.5, 8), (60, 0.5, 64), (400, 0.3, 16), (6, 0.2, 32)))
def test_ball_is_the_loop(n, radius, k):
    """Also where it is fuller than k, where the cloud is smaller than k, and where a centre is alone."""
    x = balls(2, n)
    centres = gather_points(x, backbones.spread(x, min(n, 20)))
    found, expected = backbones.ball(centres, x, radius, k), slow_ball(centres, x, radius, k)
    assert found.shape == (2, min(n, 20), min(k, n)) and torch.equal(found.sort(-1).values, expected.sort(-1).values)


def test_the_rim_is_outside():
    """As in the authors' code a distance must be less than the radius."""
    x = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], [0.25, 0, 0]]])
    assert sorted(backbones.ball(x[:, :1], x, 0.5, 3)[0, 0].tolist()) == [0, 0, 2]


def test_interpolate_is_the_loop():
    """Value and gradient; at a point itself its feature; with fewer than three points the mean of those; no gradient
    to where the points are."""
    places, points = balls(2, 30), balls(2, 9, 1)
    features = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    found, expected = backbones.interpolate(places, points, features), slow_interpolate(places, points, features)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(z.square().sum(), features)[0] for z in (found, expected)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(backbones.interpolate(points, points, features), features, rtol=0, atol=1e-6)
    two = backbones.interpolate(places, points[:, :2], features[:, :2])
    torch.testing.assert_close(two, slow_interpolate(places, points[:, :2], features[:, :2]))
    assert not backbones.interpolate(places.requires_grad_(), points, features.detach()).requires_grad


@pytest.mark.parametrize("with_features", (False, True))
def test_set_abstraction_is_a_small_pointnet_on_each_ball(with_features):
    """One centre at a time: its neighbours, without the filling, [x_j - c, f_j], the layers, the maximum."""
    torch.manual_seed(0)
    x, features = balls(2, 40), torch.randn(2, 40, 5, dtype=torch.float64) if with_features else None
    layer = settled(backbones.SetAbstraction(6, 8 if with_features else 3, 16, 7))
    centres = gather_points(x, backbones.spread(x, 10))
    found, index = layer(0.4, centres, x, features), slow_ball(centres, x, 0.4, 6)
    for b in range(2):
        for i in range(10):
            own = sorted(set(index[b, i].tolist()))
            edge = x[b, own] - centres[b, i]
            edge = torch.cat([edge, features[b, own]], 1) if with_features else edge
            torch.testing.assert_close(found[b, i], layer.layers(edge[None])[0].max(0).values)


@pytest.mark.parametrize("n", (24, 70))
def test_pointnet2_is_its_loops(n, monkeypatch):
    """With sampling, balls and interpolation by the loops, features and gradients at the points stay."""
    torch.manual_seed(0)
    encoder, x = settled(backbones.PointNet2()), balls(2, n).requires_grad_()
    results = []
    for loops in (False, True):
        for name, slow in (("spread", slow_spread), ("ball", slow_ball), ("interpolate", slow_interpolate)):
            if loops:
                monkeypatch.setattr(backbones, name, slow)
        points, whole = encoder(x)
        results.append([points, whole, torch.autograd.grad(points.sin().sum() + whole.sin().sum(), x)[0]])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "n, m1, m2, radius", ((1024, 512, 128, 0.2), (2048, 512, 128, 0.2), (256, 128, 32, 0.4), (25, 13, 4, 1.28))
)
def test_centres_and_radii(n, m1, m2, radius, monkeypatch):
    """The paper's for 1024 points and more; of fewer a half and an eighth, in balls that hold as many."""
    asked = []
    monkeypatch.setattr(backbones, "ball", lambda c, x, r, k: asked.append((c.shape[1], r, k)) or slow_first(c, k, x))
    with torch.no_grad():
        backbones.PointNet2().eval()(balls(1, n, dtype=torch.float32))
    assert asked == [(m1, pytest.approx(radius), 32), (m2, pytest.approx(2 * radius), 64)]


def slow_first(centres, k, points):
    return torch.zeros(1, centres.shape[1], min(k, points.shape[1]), dtype=torch.long)


# ---------------------------------------------------------------- PCT
def test_attention_by_hand():
    """Softmax over the queries, then shares over the keys, in loops: value and gradient."""
    torch.manual_seed(0)
    layer = settled(backbones.OffsetAttention(8))
    x = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    rows = []
    for cloud in x:
        q, v = cloud @ layer.query.weight.T, cloud @ layer.value.weight.T
        e = [[torch.exp(q[i] @ q[j]) for j in range(7)] for i in range(7)]
        a = [[e[i][j] / sum(e[k][j] for k in range(7)) for j in range(7)] for i in range(7)]
        a = [[a[i][j] / sum(a[i]) for j in range(7)] for i in range(7)]
        offset = torch.stack([cloud[i] - sum(a[i][j] * v[j] for j in range(7)) for i in range(7)])
        rows.append(cloud + layer.offset(offset[None])[0])
    found, expected = layer(x), torch.stack(rows)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(z.sin().sum(), x)[0] for z in (found, expected)]
    torch.testing.assert_close(*grads)


def test_attention_of_large_energies_is_finite():
    """Where exp would overflow."""
    layer = backbones.OffsetAttention(8)
    x = (1e3 * torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all() and (layer.query(x) @ layer.query(x).transpose(1, 2)).max() > 1e4


# ---------------------------------------------------------------- both
def test_parameters():
    """As docs/more-backbones.md says, of ten classes, encoder and classifier."""
    page = (ROOT / "docs/more-backbones.md").read_text()
    for name in NAMES:
        model = models.build(name, 10)
        n = sum(p.numel() for p in model.parameters())
        assert f"| `{name}` | {n:,} |" in page, n


@pytest.mark.parametrize("n", (24, 128))
@pytest.mark.parametrize("backbone", NAMES)
def test_the_saliency_map_is_finite_and_of_every_cloud(backbone, n):
    """The gradient of the classification reaches most points, and no score is that of a flat map."""
    torch.manual_seed(0)
    model, x = models.build(backbone, 10), balls(4, n, dtype=torch.float32).requires_grad_()
    F.cross_entropy(model(x), torch.arange(4)).backward()
    assert x.grad.isfinite().all() and (x.grad.norm(dim=-1) > 0).float().mean() > 0.5
    score = measure(model, x, torch.arange(4))
    assert score.isfinite().all() and (score != 0).all()


@pytest.mark.parametrize("backbone", NAMES)
def test_forty_steps_lower_the_loss(backbone):
    """Balls and discs, which every backbone must tell apart, seen at another angle in each step."""
    torch.manual_seed(0)
    model = models.build(backbone, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x, y, losses = balls(6, 24, dtype=torch.float32), torch.arange(6) % 2, []
    x[1::2, :, 2] *= 0.1
    for t in range(40):
        loss = F.cross_entropy(model(data.rotate_z(x, torch.Generator().manual_seed(t))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def built(backbone, ssl, device):
    """Flags, model, task and both domains (8 clouds of 40 points) on a device."""
    given = dict(task="M_SC", backbone=backbone, ssl=ssl, data="shapes", points=32, batch_size=8, steps=100)
    args = stage1_ssl.settle(Namespace(**stage1_ssl.SETTINGS | given | {"device": "cpu"}))
    args.device, way = device, data.direction("M_SC")
    torch.manual_seed(0)
    model = models.build(backbone, 10).to(device)
    task = ssl_tasks.build(ssl, model, args.points, way).to(device)
    if task.teacher:
        task.teacher.model.to(device)
    x, y = balls(8, 40, dtype=torch.float32).to(device), torch.arange(8).to(device)
    return args, model, task, *(data.Domain(k, way.dataset.CLASSES, False, x, x, y, y) for k in ("M", "SC"))


def one_step(args, model, task, src, tgt):
    s, u, g = stage1_ssl.views(50, args, task, src, tgt)
    row, lam = stage1_ssl.step(50, args, model, task, s, u, g)
    task.after_step(model, 50)
    return row, lam


@pytest.mark.parametrize("backbone, ssl", STEPS)
def test_a_step_of_every_task_is_finite(backbone, ssl):
    args, model, task, *domains = built(backbone, ssl, "cpu")
    row, lam = one_step(args, model, task, *domains)
    grads = [p.grad for p in (*model.parameters(), *task.parameters()) if p.grad is not None]
    assert row["loss"].isfinite() and row["flat"] == 0 and lam.sum() == 3
    assert all(g.isfinite().all() for g in grads) and any(g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("backbone, ssl", STEPS)
def test_a_step_waits_for_no_device(backbone, ssl, monkeypatch):
    """On the meta device, which has no values to ask for; draws come from the host's generators."""
    for module in (data, stage1_ssl):
        monkeypatch.setattr(module, "generator", lambda device, *words: generator("cpu", *words))
    monkeypatch.setattr(torch, "autocast", lambda *a, **kw: nullcontext())
    args, model, task, *domains = built(backbone, ssl, "meta")
    row, lam = one_step(args, model, task, *domains)
    tensors = [lam, *(value for value in row.values() if torch.is_tensor(value))]
    assert all(t.device.type == "meta" for t in tensors) and any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("backbone", NAMES)
def test_a_run_is_named_and_read_again(backbone, whole, tmp_path, monkeypatch):
    """--backbone names them, the folder's name does, and the checkpoint gives the model back."""
    monkeypatch.chdir(tmp_path)
    flags = "--task M_S --ssl contrast --points 24 --batch-size 4 --steps 2 --device cpu".split()
    command(stage1_ssl.main, *flags, "--data", whole, "--backbone", backbone)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith(f"M_S-{backbone}-contrast-low")
    model = models.model_of(load_checkpoint(run / "stage1.pt"))
    assert model(balls(2, 30, dtype=torch.float32)).shape == (2, 10)


def test_any_file_may_be_imported_first():
    """One process that forgets what it has imported of the repository in between."""
    code = """
import sys
for first in ("extras.backbones", "extras.contrast", "models", "ssl_tasks"):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("extras", "models", "ssl_tasks", "data")]:
        del sys.modules[name]
    __import__(first)
    import models, ssl_tasks
    print(first, *models.BACKBONES, *ssl_tasks.TASKS)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 4, done.stderr
    assert all({"pointnet2", "pct", "dgcnn", "selfdist"} <= {*line.split()} for line in lines)
