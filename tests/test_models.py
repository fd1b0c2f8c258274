"""models.py against the plain edge-tensor form in float64, and against algebra: symmetries, EMA, shapes."""

import copy

import edge_oracle
import pytest
import torch

import models
from common import UserError

BACKBONES = ("pointnet", "dgcnn", "dgcnn-seg")


def clouds(batch, n, seed=0, dtype=torch.float64):
    return torch.randn(batch, n, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scrambled(module, seed=0):
    """The module in float64 with random batch norms, weights of both signs, and without dropout."""
    g = torch.Generator().manual_seed(seed)
    for part in module.double().modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            for tensor in (part.weight.data, part.bias.data, part.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=g, dtype=tensor.dtype))
            part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=g, dtype=torch.float64))
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module


def fresh(backbone, seed=0):
    torch.manual_seed(seed)
    return models.build(backbone)


def everything(module, *inputs):
    """Outputs, gradients to inputs and parameters, and buffers after one forward and backward, by name."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = module(*inputs)
    out = out if isinstance(out, tuple) else (out,)
    # a random direction for every output, the same for every caller
    g = torch.Generator().manual_seed(0)
    ways = [torch.randn(o.shape, generator=g, dtype=o.dtype) for o in out]
    sum((o * w).sum() for o, w in zip(out, ways)).backward()
    return {
        **{f"output {i}": o.detach() for i, o in enumerate(out)},
        **{f"input {i} grad": x.grad for i, x in enumerate(inputs)},
        **{f"{name} grad": p.grad for name, p in module.named_parameters()},
        **{name: b.clone() for name, b in module.named_buffers()},
    }


def assert_equal(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().item() + 1
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m: name + m)


# ------------------------------------------------------------------------------ the plain form
@pytest.mark.parametrize("train", (True, False))
@pytest.mark.parametrize("backbone", BACKBONES)
def test_encoder_equals_the_plain_form(backbone, train):
    """Outputs, running statistics and all gradients are those of the edge-tensor form, in both modes."""
    fast = scrambled(fresh(backbone).encoder).train(train)
    plain = edge_oracle.plain(copy.deepcopy(fast))
    x = clouds(3, 40)
    assert_equal(everything(fast, x), everything(plain, x), 1e-10)


def test_scrambled_norms_have_both_signs():
    """The proofs above do meet negative norm weights, where max and norm do not commute by themselves."""
    norms = [p for p in scrambled(fresh("dgcnn").encoder).modules() if isinstance(p, torch.nn.BatchNorm1d)]
    assert all((bn.weight < 0).any() and (bn.weight > 0).any() for bn in norms)


@pytest.mark.parametrize("train", (True, False))
@pytest.mark.parametrize(
    "name, widths", (("EdgeConv", (5, 7)), ("EdgeConv2", (5, 6, 7)), ("LinearEdgeConv", (5, 6, 7)))
)
def test_edge_layer_equals_the_plain_form(name, widths, train):
    """Each edge layer alone, on enough points for two blocks of rows and the two-step neighbour search."""
    torch.manual_seed(0)
    fast = scrambled(getattr(models, name)(*widths)).train(train)
    plain = edge_oracle.plain(copy.deepcopy(fast))
    x = torch.randn(13, 320, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2
    flat = everything(fast_on_clouds(fast), x)
    assert_equal({k.removeprefix("part."): v for k, v in flat.items()}, everything(plain, x), 1e-10)


def fast_on_clouds(part):
    """A layer on rows and graph as a layer on clouds (B, N, C), which is how the plain form takes them."""

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, x):
            return self.part(x.flatten(0, 1), models.graph(x)).view(*x.shape[:2], -1)

    return Wrapped()


def test_weights_load_across():
    """The plain form has the same parameter names, so one state_dict serves both."""
    fast, plain = fresh("dgcnn"), edge_oracle.build("dgcnn")
    plain.load_state_dict(fast.state_dict())
    x = clouds(2, 32, dtype=torch.float32)
    torch.testing.assert_close(fast.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, widths", (("EdgeConv", (3, 16)), ("EdgeConv2", (3, 8, 16))))
def test_float32_statistics_far_from_the_origin(name, widths):
    """Moments are centred first: 30 radii off the origin float32 statistics agree with float64."""
    torch.manual_seed(0)
    fast = getattr(models, name)(*widths)
    exact = edge_oracle.plain(copy.deepcopy(fast).double())
    x = clouds(4, 64) + 30
    fast(x.float().flatten(0, 1), models.graph(x))
    exact(x)
    for found, expected in zip(fast.buffers(), exact.buffers()):
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_gradients_written_by_hand():
    """The two autograd functions pass the finite-difference check for any weighting of their outputs."""
    g = torch.Generator().manual_seed(0)
    b, a, weight = (torch.randn(n, 3, generator=g, dtype=torch.float64).requires_grad_() for n in (6, 6, 4))
    idx = torch.stack([torch.randperm(6, generator=g)[:4] for _ in range(6)])
    assert torch.autograd.gradcheck(models.Moments.apply, (b,))
    assert torch.autograd.gradcheck(models.SecondLayer.apply, (b, a, weight, idx, True))


def test_covariance_of_the_second_layer_in_float32():
    """It is taken about a point near the mean: hidden values around 300 cost no digits."""
    g = torch.Generator().manual_seed(0)
    b, a, weight = (torch.randn(rows, 4, generator=g) for rows in (50, 50, 2))
    b += 300
    idx = torch.randint(50, (50, 20), generator=g)
    cov = models.SecondLayer.apply(b, a, weight, idx, True)[2]
    h = (b[idx].double() + a[:, None]).flatten(0, 1)
    torch.testing.assert_close(cov.double(), h.T.cov(correction=0), rtol=0, atol=1e-4)


def test_running_max_ties_go_to_the_first():
    """As in torch.max over an axis: resampled clouds hold points twice, and the first gets the gradient."""
    values = torch.randint(4, (20, 100), generator=torch.Generator().manual_seed(0)).float()
    best, rank = models.running_max(values)
    assert torch.equal(best, values.amax(0)) and torch.equal(rank.long(), (values == best).int().argmax(0))


def test_repeated_points_of_large_coordinates():
    """Where all neighbours are the point itself the variance is 0; rounding below 0 must not give NaN."""
    torch.manual_seed(0)
    conv = models.EdgeConv(3, 64)
    conv.linear.weight.data[:, 3:] = 0  # sees x_j - x_i alone
    x = (1e4 * clouds(2, 16)).float().repeat_interleave(20, 1)
    assert conv(x.flatten(0, 1), models.graph(x)).isfinite().all()


@pytest.mark.parametrize("train", (True, False))
def test_per_point_head_equals_the_concatenation(train):
    """W_p p + W_g g is W [p; g], gradients and running statistics included."""
    torch.manual_seed(0)
    fast = scrambled(models.PerPointHead(12, 5)).train(train)
    plain = edge_oracle.plain(copy.deepcopy(fast))
    g = torch.Generator().manual_seed(1)
    points = torch.randn(3, 17, 12, generator=g, dtype=torch.float64)
    whole = torch.randn(3, models.GLOBAL, generator=g, dtype=torch.float64)
    assert_equal(everything(fast, points, whole), everything(plain, points, whole), 1e-10)


# ---------------------------------------------------------------------------------- neighbours
@pytest.mark.parametrize("n, k", ((320, 20), (323, 20), (64, 20), (7, 20), (2, 20)))
def test_knn_against_brute_force(n, k):
    """The chosen points are the k nearest, the point itself is among them, none comes twice."""
    x = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    idx = models.knn(x, k)
    k = min(k, n)
    distance = ((x[:, :, None] - x[:, None]) ** 2).sum(-1)
    assert idx.shape == (2, n, k) and idx.dtype == torch.int64
    torch.testing.assert_close(distance.gather(2, idx).sort(-1).values, distance.sort(-1).values[..., :k])
    assert (idx == torch.arange(n)[:, None]).sum(-1).eq(1).all()
    assert (idx.sort(-1).values.diff(dim=-1) > 0).all()


def test_knn_keeps_itself_among_equal_points():
    """With every point the same, each is still its own neighbour."""
    idx = models.knn(torch.ones(2, 320, 3), 20)
    assert (idx == torch.arange(320)[:, None]).any(-1).all()


# ---------------------------------------------------------------------------------- symmetries
@pytest.mark.parametrize("backbone", BACKBONES)
def test_order_of_points(backbone):
    """Permuting points permutes point features and per-point logits, and leaves global feature and logits."""
    model = scrambled(fresh(backbone)).eval()
    x, order = clouds(2, 50), torch.randperm(50, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        (points, whole), (points_p, whole_p) = model.encoder(x), model.encoder(x[:, order])
        logits, logits_p = model(x), model(x[:, order])
    torch.testing.assert_close(points_p, points[:, order])
    torch.testing.assert_close(whole_p, whole)
    torch.testing.assert_close(logits_p, logits[:, order] if backbone == "dgcnn-seg" else logits)
    assert not torch.allclose(points[:, order], points)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_evaluation_of_a_cloud_ignores_the_others(backbone):
    """In eval mode row i of a batch is what cloud i gives alone."""
    model, x = scrambled(fresh(backbone)).eval(), clouds(3, 33)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


# ---------------------------------------------------------------------------- shapes and sizes
@pytest.mark.parametrize("n", (2, 5, 24))
@pytest.mark.parametrize("backbone", BACKBONES)
def test_shapes(backbone, n):
    """Shapes of features and logits, for clouds below k points too; training there gives finite gradients."""
    model, x = fresh(backbone), clouds(2, n, dtype=torch.float32).requires_grad_()
    points, whole = features = model.encoder(x)
    logits = model.predict(features)
    assert points.shape == (2, n, model.encoder.point_dim) and whole.shape == (2, models.GLOBAL)
    assert logits.shape == ((2, n, 8) if backbone == "dgcnn-seg" else (2, 10))
    (points.sum() + whole.sum() + logits.sum()).backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_equal_points(backbone):
    """A batch of one point repeated has no variance anywhere and still gives finite logits and gradients."""
    model, x = fresh(backbone), torch.ones(2, 30, 3, requires_grad=True)
    logits = model(x)
    logits.sum().backward()
    assert logits.isfinite().all() and x.grad.isfinite().all()


def test_unknown_backbone():
    """An unknown name is the user's error and names the choices."""
    with pytest.raises(UserError, match="resnet.*pointnet, dgcnn or dgcnn-seg"):
        models.build("resnet")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_two_runs_are_equal_bit_for_bit(backbone):
    """The same weights and clouds give the same bits, forward, backward and in the buffers."""
    first = fresh(backbone).encoder
    second, x = copy.deepcopy(first), clouds(3, 64, dtype=torch.float32)
    found, expected = everything(first, x), everything(second, x)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_state_dict_round_trip(tmp_path):
    """A saved model loads with weights_only into a fresh one and answers the same."""
    model, x = fresh("dgcnn"), clouds(2, 24, dtype=torch.float32)
    model(x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = fresh("dgcnn", seed=1)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(model.eval()(x), other.eval()(x))


# ------------------------------------------------------------------------------------- teacher
def test_ema_follows_its_formula():
    """Weights and float buffers move by min(.999, 1 - 1/(t+1)); integer buffers are copied."""
    student = scrambled(fresh("pointnet"))
    teacher = models.EMA(student)
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    for t in (0, 1, 2, 5000):
        scrambled(student, seed=t + 1)
        student(clouds(2, 16, seed=t))  # moves the buffers
        decay = min(0.999, 1 - 1 / (t + 1))
        for name, value in student.state_dict().items():
            mean = decay * expected[name] + (1 - decay) * value
            expected[name] = mean if value.is_floating_point() else value.clone()
        teacher.update(student, t)
    found = teacher.model.state_dict()
    assert_equal(found, expected, 1e-12)
    assert found["classifier.1.num_batches_tracked"] == 4
    assert not torch.equal(found["classifier.1.running_mean"], student.classifier[1].running_mean)


def test_teacher_is_apart_and_in_eval_mode():
    """The teacher needs no gradient, shares no memory with the student and stays in eval mode."""
    student = fresh("pointnet")
    teacher, x = models.EMA(student), clouds(2, 16, dtype=torch.float32)
    before = teacher.model(x)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1)
    student.train()
    assert torch.equal(teacher.model(x), before) and not before.requires_grad
    assert not any(part.training for part in teacher.model.modules())
    assert not any(p.requires_grad for p in teacher.model.parameters())
    teacher.update(student, 0)  # the first step forgets the start
    assert torch.equal(teacher.model(x), student.eval()(x))


def test_the_segmenter_has_batch_norm_in_its_head_alone():
    """DefRec's DGCNN for PointSegDA has none, T-net included; with few clouds a batch the norm of a T-net is noise."""
    model = models.build("dgcnn-seg")
    normed = [name for name, part in model.named_modules() if isinstance(part, torch.nn.BatchNorm1d)]
    assert len(normed) == 3 and all(name.startswith("classifier.") for name in normed)
