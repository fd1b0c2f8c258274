"""A step on torch's meta device, which has shapes and no values: a tensor made elsewhere, or a value that the host asks
for, fails there on every machine, as it would cost a wait on a GPU. Draws come from a CPU's generator."""

from argparse import Namespace
from contextlib import nullcontext

import pytest
import torch

import data
import models
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from engine.base import generator
from saliency import SCORES

BODIES = [name for name, task in ssl_tasks.TASKS.items() if task.bodies]
CASES = [("M_SC", backbone, ssl) for backbone in ("pointnet", "dgcnn") for ssl in ssl_tasks.TASKS if ssl != "pointdan"]
CASES += [("M_SC", "pointdan", "pointdan")]
CASES.append(("M_SC", "dgcnn", "defrec+pcm"))
CASES += [("seg_F_A", "dgcnn-seg", ssl) for ssl in (*BODIES, "defrec+pcm")]


@pytest.fixture(autouse=True)
def meta(monkeypatch):
    """Generators of the host stand in, autocast, which meta lacks, is left out."""
    for module in (data, stage1_ssl, stage2_pseudo):
        monkeypatch.setattr(module, "generator", lambda device, *words: generator("cpu", *words))
    monkeypatch.setattr(torch, "autocast", lambda *a, **kw: nullcontext())


def built(task="M_SC", backbone="pointnet", ssl="selfdist", **flags):
    """Flags, model, task and both domains (16 clouds of 80 points), all on the meta device."""
    given = dict(task=task, backbone=backbone, ssl=ssl, data="shapes", points=64, batch_size=8, steps=100, device="cpu")
    args = stage1_ssl.settle(Namespace(**stage1_ssl.SETTINGS | stage2_pseudo.SETTINGS | given | flags))
    args.device, way = "meta", data.direction(task)
    model = models.build(args.backbone, len(way.dataset.CLASSES)).to("meta")
    task = ssl_tasks.build(ssl, model, args.points, way).to("meta")
    if task.teacher:
        task.teacher.model.to("meta")
    x = torch.empty(16, 80, 3, device="meta")
    y = torch.empty((16, 80) if way.per_point else (16,), dtype=torch.long, device="meta")
    src, tgt = (data.Domain(k, way.dataset.CLASSES, way.per_point, x, x, y) for k in (way.source, way.target))
    return args, model, task, src, tgt


def on_meta(row, model, *tensors):
    assert all(p.grad.device.type == "meta" for p in model.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in model.parameters())
    assert all(t.device.type == "meta" for t in (*row.values(), *tensors) if torch.is_tensor(t))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_step_of_stage_1_waits_for_no_device(case):
    args, model, task, src, tgt = built(*case)
    s, u, g = stage1_ssl.views(50, args, task, src, tgt)
    row, lam = stage1_ssl.step(50, args, model, task, s, u, g)
    task.after_step(model, 50)
    on_meta(row, model, lam)
    assert lam.shape == (4,) and {"cls", "ssl_tgt", "loss", "kept", "skew", "flat"} <= row.keys()


@pytest.mark.parametrize("score", SCORES)
def test_every_score_waits_for_no_device(score):
    args, model, task, src, tgt = built(score=score)
    s, u, g = stage1_ssl.views(50, args, task, src, tgt)
    on_meta(*stage1_ssl.step(50, args, model, task, s, u, g)[:1], model)


@pytest.mark.parametrize("select", ["high", "random", "all", "freeze"])
def test_every_selection_waits_for_no_device(select):
    args, model, task, src, tgt = built(ssl="defrec", select=select)
    s, u, g = stage1_ssl.views(50, args, task, src, tgt)
    lam_t = stage1_ssl.unlabelled_mask(50, args, u)
    on_meta(*stage1_ssl.step(50, args, model, task, s, u, g, lam_t=lam_t)[:1], model)


@pytest.mark.parametrize("ssl", ssl_tasks.TASKS)
def test_a_step_of_stage_2_waits_for_no_device(ssl):
    """Also when one domain alone is in the labelled batch, and with the unlabelled stream filtered."""
    backbone = "pointdan" if ssl == "pointdan" else "pointnet"
    args, model, task, src, tgt = built(ssl=ssl, backbone=backbone, batch_size=4)
    pseudo = stage2_pseudo.PseudoLabels(torch.empty(16, 10, device="meta"))
    for t in range(3):
        s, u, g, w_y, who, i_u = stage2_pseudo.views(t, args, task, src, tgt, pseudo)
        shift = stage2_pseudo.perturbation(t, args, who >= 0)
        row, lam = stage1_ssl.step(t, args, model, task, s, u, g, w_y, shift, ~pseudo.masked[i_u])
        pseudo.masked[who] = ~lam
        on_meta(row, model, lam, who, w_y, pseudo.masked)


def test_what_waits_is_seen():
    """The check itself: a value asked for, and a tensor of another device."""
    x = torch.empty(3, device="meta")
    with pytest.raises(RuntimeError):
        x.sum().item()
    with pytest.raises(RuntimeError):
        x + torch.zeros(3)
