"""Gradient surgery against hand-made gradients, and each comparator against the plain sum on one step."""

import json
import sys
from argparse import Namespace

import pytest
import torch
from torch import nn

import data
import models
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from engine.base import UserError
from extras import surgery
from fixtures import command, refusal


class Toy(nn.Module):
    """An encoder of two numbers and a classifier of one, so that gradients can be written down."""

    def __init__(self):
        super().__init__()
        self.encoder, self.classifier = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)


def needs(mtl):
    """Skip where the library behind a way to join the losses is not installed."""
    try:
        surgery.method(mtl)
    except UserError as error:
        pytest.skip(str(error))


def toy_losses(model, g_c, g_ssl):
    """Two losses whose gradients over the encoder are the given ones."""
    w = model.encoder.weight[0]
    return torch.tensor(g_c) @ w + model.classifier.weight.sum(), torch.tensor(g_ssl) @ w


def descend(mtl, model, task, L_c, L_ssl):
    surgery.method(mtl)(model, task, L_c, L_ssl, None)


def test_pcgrad_projects_conflicting_gradients():
    """(1, 0) and (-1, 1): each loses its part along the other, (.5, .5) + (0, 1); the head keeps its own."""
    pytest.importorskip("torchjd")
    model, task = Toy(), nn.Linear(1, 1)
    L_c, L_ssl = toy_losses(model, [1.0, 0.0], [-1.0, 1.0])
    descend("pcgrad", model, task, L_c, L_ssl)
    assert model.encoder.weight.grad[0].tolist() == pytest.approx([0.5, 1.5])
    assert model.classifier.weight.grad.item() == 1


@pytest.mark.parametrize("mtl", ["pcgrad", "cagrad"])
def test_surgery_leaves_agreeing_gradients_alone(mtl):
    """Equal gradients have no conflict: the result is their sum (CAGrad lengthens it by 1 + c, as its ball allows)."""
    pytest.importorskip("torchjd")
    model, task = Toy(), nn.Linear(1, 1)
    descend(mtl, model, task, *toy_losses(model, [1.0, 2.0], [1.0, 2.0]))
    longer = 1 + surgery.CAGRAD_C if mtl == "cagrad" else 1
    assert model.encoder.weight.grad[0].tolist() == pytest.approx([2 * longer, 4 * longer], rel=1e-3)


def test_cagrad_helps_the_worse_task():
    """Of two conflicting gradients the joined one has a larger least product with either than their sum has."""
    pytest.importorskip("torchjd")
    g = torch.tensor([[1.0, 0.0], [-0.9, 0.3]])
    model = Toy()
    descend("cagrad", model, nn.Linear(1, 1), *toy_losses(model, *g.tolist()))
    joined = model.encoder.weight.grad[0]
    assert (g @ joined).min() > (g @ g.sum(0)).min()


def test_discrepancy_of_equal_and_opposite_gradients():
    """0 for equal, 2 for opposite, 1 for orthogonal, whatever their length."""
    g, h = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 3.0])
    got = [surgery.gradient_discrepancy(g, other).item() for other in (g, 5 * g, -g, -0.1 * g, h)]
    assert got == pytest.approx([0, 0, 2, 2, 1], abs=1e-6)


def test_target_discrepancy_is_one_minus_the_cosine_by_hand():
    """Against gradients taken one by one, and its gradient reaches the encoder."""
    torch.manual_seed(0)
    model = models.build("pointnet", 10).eval()  # no dropout: the same forward pass twice
    x_s, x_t, y = torch.randn(6, 32, 3), torch.randn(6, 32, 3), torch.arange(6)
    L_c = nn.functional.cross_entropy(model(x_s), y)
    gap = surgery.target_discrepancy(model, L_c, x_t)
    logits = model(x_t)
    p = logits.softmax(1).detach()
    w = 1 + torch.exp((p * p.log()).sum(1))
    L_t = (w * nn.functional.cross_entropy(logits, logits.argmax(1), reduction="none")).sum() / w.sum()
    heads = list(model.classifier.parameters())
    flat = [torch.cat([g.flatten() for g in torch.autograd.grad(L, heads, retain_graph=True)]) for L in (L_c, L_t)]
    cos = (flat[0] @ flat[1]) / flat[0].norm() / flat[1].norm()
    assert gap.item() == pytest.approx(1 - cos.item(), abs=1e-5)
    grads = torch.autograd.grad(gap, list(model.encoder.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("ssl", ["selfdist", "defrec"])
@pytest.mark.parametrize("mtl", [name for name in surgery.METHODS if name != "gh"])
def test_heads_get_the_gradient_of_the_sum(mtl, ssl):
    """On a whole step the heads' gradients are those of the plain sum (GH weighs them); the encoder's are not."""
    needs(mtl)
    grads = {}
    for how in ("sum", mtl):
        torch.manual_seed(0)
        model = models.build("pointnet", 10)
        task = ssl_tasks.build(ssl, model, 32, data.direction("M_SC"))
        here = {"ssl": ssl, "mtl": how, "select": "all", "task": "M_SC", "points": 32, "steps": 4, "device": "cpu"}
        args = stage1_ssl.settle(Namespace(**stage1_ssl.SETTINGS | here))
        g = torch.Generator().manual_seed(1)
        x = torch.randn(8, 40, 3, generator=g)
        s, u = task.views(x[:4], torch.arange(4), True, g), task.views(x[4:], None, False, g)
        stage1_ssl.step(3, args, model, task, s, u, g, descend=stage1_ssl.joining(how))
        named = [*model.named_parameters(), *task.named_parameters()]
        grads[how] = {name: p.grad.clone() for name, p in named if p.grad is not None}
    assert grads["sum"].keys() == grads[mtl].keys()
    heads = [name for name in grads["sum"] if not name.startswith("encoder.")]
    assert heads and all(torch.allclose(grads["sum"][n], grads[mtl][n], rtol=1e-3, atol=1e-5) for n in heads)
    encoder = [name for name in grads["sum"] if name.startswith("encoder.")]
    assert all(grads[mtl][n].isfinite().all() for n in encoder)
    same = all(torch.allclose(grads["sum"][n], grads[mtl][n], rtol=1e-3, atol=1e-6) for n in encoder)
    assert mtl in ("pcgrad", "upgrad", "ghpp") or not same  # without a conflict these are the sum


def test_surgery_is_a_flag_of_both_stages(whole, tmp_path):
    """--mtl is recorded, stage 2 takes it from the checkpoint, and the weights differ from those of the sum."""
    base = (
        f"--task M_SC --data {whole} --backbone pointnet --ssl defrec --select all --points 20 --batch-size 4 --steps 2"
    )
    weights = []
    for mtl in ("sum", "cgdm"):
        out = tmp_path / mtl
        command(stage1_ssl.main, *base.split(), "--mtl", mtl, "--out", out, "--device", "cpu")
        more = "--gcn-iters 0 --steps 1 --device cpu".split()
        command(stage2_pseudo.main, "--init", out / "stage1.pt", *more)
        config = json.loads((out / "config.json").read_text())
        assert config["stage1"]["args"]["mtl"] == config["stage2"]["args"]["mtl"] == mtl
        student = torch.load(out / "stage1.pt", weights_only=True)["last_student"]
        weights.append(student["encoder.mlp1.linear.weight"])
    assert not torch.equal(*weights)


@pytest.mark.parametrize("mtl", surgery.TORCHJD)
def test_without_torchjd_one_line_says_what_to_install(mtl, monkeypatch):
    """No traceback; the remedy is a command."""
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    assert f"--mtl {mtl}" in (text := refusal(lambda: surgery.method(mtl)))
    assert "pip install -r requirements-extra.txt" in text


def test_without_an_extra_of_torchjd_the_remedy_is_the_same(monkeypatch):
    """UPGrad's solver is an extra, which TorchJD asks for when the aggregator is made."""

    def lacking():
        raise ImportError("install quadprog")

    monkeypatch.setattr(pytest.importorskip("torchjd.aggregation"), "UPGrad", lacking)
    assert "pip install -r requirements-extra.txt" in refusal(lambda: surgery.method("upgrad"))
