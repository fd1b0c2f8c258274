"""--precision: bfloat16 in the products on points, float32 in all that is made of them."""

import pytest
import torch

import models
import stage1_ssl
from engine import fast
from extras import precision
from fixtures import command
from saliency import measure


@pytest.fixture(autouse=True)
def afterwards():
    yield
    fast.set_precision("fp32")


def passed(backbone, name):
    """Global features, gradients and running statistics of a training pass in a precision."""
    torch.manual_seed(0)
    model = models.build(backbone, 10)
    x = torch.randn(8, 64, 3, requires_grad=True)
    fast.set_precision(name)
    features = model.encoder(x)
    torch.nn.functional.cross_entropy(model.predict(features).flatten(0, -2), torch.arange(8)).backward()
    grad = torch.cat([p.grad.flatten() for p in model.encoder.parameters() if p.grad is not None])
    running = torch.cat([b.flatten().float() for b in model.encoder.buffers()])
    return features[1].detach(), running, grad, x.grad


@pytest.mark.parametrize("backbone", ["pointnet", "dgcnn"])
def test_bf16_is_close_and_stays_float32(backbone):
    """All is float32 and near fp32, which stays; gradients of random weights are ill-conditioned: .4 to .6."""
    full, low, again = (passed(backbone, name) for name in ("fp32", "bf16", "fp32"))
    for a, b, c, least in zip(full, low, again, (0.99, 0.99, 0.3, 0.3)):
        assert a.dtype == b.dtype == torch.float32 and torch.equal(a, c)
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > least
    assert not torch.equal(full[0], low[0])


def test_the_graph_of_the_points_is_that_of_fp32():
    """Neighbours are searched for in float32, whatever the products."""
    x = torch.randn(2, 200, 3)
    fast.set_precision("bf16")
    low = fast.knn(x, 10).sort().values
    fast.set_precision("fp32")
    assert torch.equal(low, fast.knn(x, 10).sort().values)


def test_a_run_trains_in_its_precision(tmp_path, monkeypatch):
    """From the flag to the products, in both stages' loads; settling another run's flags changes nothing."""
    seen = []
    monkeypatch.setattr(stage1_ssl, "train", lambda args, run, *domains: seen.append(fast.low(torch.ones(1)).dtype))
    where = "--task", "M_S", "--data", "shapes", "--backbone", "pointnet", "--ssl", "defrec", "--steps", 2
    for name in ("bf16", "fp32"):
        command(stage1_ssl.main, *where, "--precision", name, "--out", tmp_path / name)
    assert seen == [torch.bfloat16, torch.float32]


def test_the_study_compares_maps_of_equal_weights(tmp_path, monkeypatch):
    """Both precisions see the same batch, dropout and weights: fp32 against itself keeps the same samples."""
    torch.manual_seed(0)
    model, flags = models.build("pointnet", 10), stage1_ssl.argparse.Namespace(alpha=1.0, device="cpu", seed=0)
    s = stage1_ssl.ssl_tasks.View(torch.randn(8, 64, 3), torch.arange(8))
    full, low = (precision.scores(flags, model, s, name) for name in ("fp32", "bf16"))
    assert torch.equal(full, precision.scores(flags, model, s, "fp32")) and not torch.equal(full, low)
    assert fast.low(torch.ones(1)).dtype == torch.float32 and len(measure(model, s.x, s.y)) == 8
