"""models.py: engine/fast.py against the formula of every layer (models.PLAIN), and algebra: symmetries, shapes."""

import copy

import pytest
import torch

import models
from engine import fast
from engine.base import UserError

BACKBONES = tuple(models.BACKBONES)
CLASSES = 10


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
    return models.build(backbone, CLASSES)


@pytest.fixture
def by_formula(monkeypatch):
    """by_formula(f, *args) is f(*args) with every layer computed by its formula."""

    def call(f, *args):
        with monkeypatch.context() as patch:
            patch.setattr(models, "PLAIN", True)
            return f(*args)

    return call


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


# ---------------------------------------------------------------- fast.py against the formulas
@pytest.mark.parametrize("train", (True, False))
@pytest.mark.parametrize("backbone", BACKBONES)
def test_encoder_equals_its_formulas(backbone, train, by_formula):
    """Outputs, running statistics and all gradients are those of the edge-tensor form, in both modes."""
    encoder, x = scrambled(fresh(backbone).encoder).train(train), clouds(3, 40)
    expected = by_formula(everything, copy.deepcopy(encoder), x)
    assert_equal(everything(encoder, x), expected, 1e-10)


def test_scrambled_norms_have_both_signs():
    """The proofs above do meet negative norm weights, where max and norm do not commute by themselves."""
    norms = [p for p in scrambled(fresh("dgcnn").encoder).modules() if isinstance(p, torch.nn.BatchNorm1d)]
    assert all((bn.weight < 0).any() and (bn.weight > 0).any() for bn in norms)


LAYERS = {
    "point": lambda: models.PointLayer(5, 7),
    "point, max": lambda: models.PointMaxLayer(5, 7),
    "linear, max": lambda: models.LinearMaxLayer(5, 7),
    "edge": lambda: models.EdgeConv(5, 7),
    "edge 2": lambda: models.EdgeConv2(5, 6, 7),
    "edge 2, bare": lambda: models.EdgeConv2(5, 6, 7, normed=False),
    "linear edge": lambda: models.LinearEdgeConv(5, 7),
    "linear edge 2": lambda: models.LinearEdgeConv(5, 6, 7),
}


@pytest.mark.parametrize("train", (True, False))
@pytest.mark.parametrize(
    "dtype, batch, n, tolerance", ((torch.float64, 13, 320, 1e-10), (torch.float32, 3, 40, 1e-5)), ids=("f64", "f32")
)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_its_formula(name, dtype, batch, n, tolerance, train, by_formula):
    """Each layer alone; in float64 on enough points for two blocks of rows and the two-step neighbour search."""
    torch.manual_seed(0)
    layer = scrambled(LAYERS[name]()).to(dtype).train(train)
    x = torch.randn(batch, n, 5, generator=torch.Generator().manual_seed(1), dtype=dtype) + 2
    expected = by_formula(everything, copy.deepcopy(layer), x)
    assert_equal(everything(layer, x), expected, tolerance)


@pytest.mark.parametrize("train", (True, False))
def test_per_point_head_equals_the_concatenation(train, by_formula):
    """W_p p + W_g g is W [p; g], gradients and running statistics included."""
    torch.manual_seed(0)
    head = scrambled(models.PerPointHead(12, 5)).train(train)
    g = torch.Generator().manual_seed(1)
    points = torch.randn(3, 17, 12, generator=g, dtype=torch.float64)
    whole = torch.randn(3, models.GLOBAL, generator=g, dtype=torch.float64)
    expected = by_formula(everything, copy.deepcopy(head), points, whole)
    assert_equal(everything(head, points, whole), expected, 1e-10)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_formulas_and_fast_forms_share_the_graph_alone(backbone, by_formula, monkeypatch):
    """Under PLAIN a model calls nothing of fast.py but knn, otherwise it forms no edges: neither proves itself."""

    def forbidden(*args):
        raise AssertionError("the other form was called")

    model, x = fresh(backbone), clouds(2, 24, dtype=torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(models, "edges", forbidden)
        model(x)
    for name in ("flat", "fold", "pair_weight", "PointMax", "neighbour_max", "linear_of_pair"):
        monkeypatch.setattr(fast, name, forbidden)
    by_formula(model, x)
    with pytest.raises(AssertionError, match="other form"):
        model(x)


@pytest.mark.parametrize("name, widths", (("EdgeConv", (3, 16)), ("EdgeConv2", (3, 8, 16))))
def test_float32_statistics_far_from_the_origin(name, widths, by_formula):
    """Moments are centred first: 30 radii off the origin float32 statistics agree with float64."""
    torch.manual_seed(0)
    layer = getattr(models, name)(*widths)
    exact = copy.deepcopy(layer).double()
    x = clouds(4, 64) + 30
    layer(x.float())
    by_formula(exact, x)
    for found, expected in zip(layer.buffers(), exact.buffers()):
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_gradients_written_by_hand():
    """The autograd functions pass the finite-difference check for any weighting of their outputs."""
    g = torch.Generator().manual_seed(0)
    b, a, weight = (torch.randn(n, 3, generator=g, dtype=torch.float64).requires_grad_() for n in (6, 6, 4))
    idx = torch.stack([torch.randperm(6, generator=g)[:4] for _ in range(6)])
    assert torch.autograd.gradcheck(fast.Moments.apply, (b.view(2, 3, 3),))
    assert torch.autograd.gradcheck(fast.PointMax.apply, (b.view(2, 3, 3), weight))
    assert torch.autograd.gradcheck(fast.SecondLayer.apply, (b, a, weight, idx, 0.2, True))


def test_covariance_of_the_second_layer_in_float32():
    """It is taken about a point near the mean: hidden values around 300 cost no digits."""
    g = torch.Generator().manual_seed(0)
    b, a, weight = (torch.randn(rows, 4, generator=g) for rows in (50, 50, 2))
    b += 300
    idx = torch.randint(50, (50, 20), generator=g)
    cov = fast.SecondLayer.apply(b, a, weight, idx, 0.2, True)[2]
    h = (b[idx].double() + a[:, None]).flatten(0, 1)
    torch.testing.assert_close(cov.double(), h.T.cov(correction=0), rtol=0, atol=1e-4)


def test_ties_go_to_the_first():
    """As in torch.max over an axis: resampled clouds hold points twice, and the first gets the gradient."""
    values = torch.randint(4, (20, 100), generator=torch.Generator().manual_seed(0)).float()
    best, rank = torch.full((100,), -torch.inf), torch.zeros(100, dtype=torch.uint8)
    for n, value in enumerate(values):
        fast.keep_larger(best, rank, value, n)
    first = (values == best).int().argmax(0)
    assert torch.equal(best, values.amax(0)) and torch.equal(rank.long(), first)
    points = values.T.reshape(100, 20, 1).requires_grad_()  # a hundred clouds of twenty points in one dimension
    fast.PointMax.apply(points, torch.ones(1, 1)).sum().backward()
    assert torch.equal(points.grad[..., 0].argmax(1), first) and points.grad.sum() == 100


def test_repeated_points_of_large_coordinates():
    """Where all neighbours are the point itself the variance is 0; rounding below 0 must not give NaN."""
    torch.manual_seed(0)
    conv = models.EdgeConv(3, 64)
    conv.linear.weight.data[:, 3:] = 0  # sees x_j - x_i alone
    x = (1e4 * clouds(2, 16)).float().repeat_interleave(20, 1)
    assert conv(x).isfinite().all()


# ---------------------------------------------------------------- neighbours
@pytest.mark.parametrize("n, k", ((320, 20), (323, 20), (64, 20), (7, 20), (2, 20)))
def test_knn_against_brute_force(n, k):
    """The chosen points are the k nearest, the point itself is among them, none comes twice."""
    x = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    idx = fast.knn(x, k)
    k = min(k, n)
    distance = ((x[:, :, None] - x[:, None]) ** 2).sum(-1)
    assert idx.shape == (2, n, k) and idx.dtype == torch.int64
    torch.testing.assert_close(distance.gather(2, idx).sort(-1).values, distance.sort(-1).values[..., :k])
    assert (idx == torch.arange(n)[:, None]).sum(-1).eq(1).all()
    assert (idx.sort(-1).values.diff(dim=-1) > 0).all()


def test_knn_keeps_itself_among_equal_points():
    """With every point the same, each is still its own neighbour."""
    idx = fast.knn(torch.ones(2, 320, 3), 20)
    assert (idx == torch.arange(320)[:, None]).any(-1).all()


# ---------------------------------------------------------------- symmetries
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


# ---------------------------------------------------------------- shapes and sizes
@pytest.mark.parametrize("n", (2, 5, 24))
@pytest.mark.parametrize("backbone", BACKBONES)
def test_shapes(backbone, n):
    """Shapes of features and logits, for clouds below k points too; training there gives finite gradients."""
    model, x = fresh(backbone), clouds(2, n, dtype=torch.float32).requires_grad_()
    points, whole = features = model.encoder(x)
    logits = model.predict(features)
    assert points.shape == (2, n, model.encoder.point_dim) and whole.shape == (2, models.GLOBAL)
    assert logits.shape == ((2, n, CLASSES) if backbone == "dgcnn-seg" else (2, CLASSES))
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
    with pytest.raises(UserError, match="resnet.*dgcnn, pointnet, dgcnn-seg"):
        models.build("resnet", CLASSES)


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


def checkpoint(backbone, classes, state):
    return {"config": {"args": {"backbone": backbone}, "classes": classes}, "student": state}


@pytest.mark.parametrize("classes", (("chair", "lamp", "sofa"), ("head", "arm")))
def test_model_of_a_checkpoint(classes):
    """The model answers as the one that was saved, with as many outputs as the checkpoint has classes."""
    saved, x = models.build("pointnet", len(classes)).eval(), clouds(2, 16, dtype=torch.float32)
    found = models.model_of(checkpoint("pointnet", classes, saved.state_dict())).eval()
    assert torch.equal(found(x), saved(x)) and found(x).shape == (2, len(classes))


@pytest.mark.parametrize(
    "backbone, n, which", (("dgcnn", 3, "student"), ("pointnet", 4, "student"), ("pointnet", 3, "last_student"))
)
def test_model_of_what_does_not_fit(backbone, n, which):
    """Another backbone, another number of classes or a missing state is the user's error."""
    state = models.build("pointnet", 3).state_dict()
    with pytest.raises(UserError, match=f"no {which} that fits this version's {backbone}; train it again"):
        models.model_of(checkpoint(backbone, "abcdef"[:n], state), which)


def test_the_segmenter_has_batch_norm_in_its_head_alone():
    """DefRec's DGCNN for PointSegDA has none, T-net included; with few clouds a batch the norm of a T-net is noise."""
    model = fresh("dgcnn-seg")
    normed = [name for name, part in model.named_modules() if isinstance(part, torch.nn.BatchNorm1d)]
    assert len(normed) == 3 and all(name.startswith("classifier.") for name in normed)
