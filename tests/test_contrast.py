"""extras/contrast.py: the loss by hand, its two views, and what a masked sample still does."""

import math

import pytest
import torch
import torch.nn.functional as F

import data
import models
import ssl_tasks
from extras.contrast import TEMPERATURE, Contrast, info_nce


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def clouds(B=4, N=64, seed=0):
    return F.normalize(torch.randn(B, N, 3, generator=gen(seed)), dim=-1)


def test_two_samples_by_hand():
    """Unit vectors at 0, 90, 60 and 90 degrees: for each view one positive and two negatives."""
    at = lambda *degrees: torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])
    cos = lambda d: math.cos(math.radians(d)) / 0.5
    first = -cos(60) + math.log(math.exp(cos(60)) + math.exp(cos(90)) + math.exp(cos(90)))  # view at 0, positive at 60
    again = -cos(60) + math.log(math.exp(cos(60)) + math.exp(cos(30)) + math.exp(cos(30)))  # view at 60, positive at 0
    other = -cos(0) + math.log(math.exp(cos(0)) + math.exp(cos(90)) + math.exp(cos(30)))  # both views at 90
    found = info_nce(at(0, 90), at(60, 90), temperature=0.5)
    assert found.tolist() == pytest.approx([(first + again) / 2, other])
    torch.testing.assert_close(info_nce(3 * at(0, 90), 0.1 * at(60, 90), 0.5), found)  # lengths do not count


def test_info_nce_is_the_loop():
    a, b = torch.randn(2, 5, 8, dtype=torch.float64, generator=gen())
    z = [v / v.norm() for v in (*a, *b)]
    expected = []
    for i in range(5):
        parts = []
        for me, other in ((i, i + 5), (i + 5, i)):
            all_others = sum(torch.exp(z[me] @ z[k] / TEMPERATURE) for k in range(10) if k != me)
            parts.append(-torch.log(torch.exp(z[me] @ z[other] / TEMPERATURE) / all_others))
        expected.append(sum(parts) / 2)
    torch.testing.assert_close(info_nce(a, b), torch.stack(expected))


def test_equal_clouds_cost_the_chance_of_a_guess():
    """log(2B - 1), with a finite gradient; one cloud alone costs nothing."""
    z = torch.ones(4, 3, requires_grad=True)
    loss = info_nce(z, z)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.log(7)] * 4) and z.grad.isfinite().all()
    assert info_nce(z[:1], z[:1]).tolist() == pytest.approx([0])


def test_a_masked_sample_is_a_negative_of_the_others_and_no_more():
    """Its own attraction is gone; what is left of its gradient is that of the kept losses' denominators, by hand."""
    a, b = torch.randn(2, 2, 6, dtype=torch.float64, generator=gen(1)).requires_grad_()
    loss = info_nce(a, b, 1.0)
    (grad,) = torch.autograd.grad(loss[0], a, retain_graph=True)  # sample 1 is masked
    u, v, w, m = (F.normalize(x.detach(), dim=0) for x in (a[0], b[0], a[1], b[1]))
    share = lambda view, other: torch.exp(view @ w) / sum(torch.exp(view @ x) for x in (other, w, m))
    pushed = (share(u, v) * u + share(v, u) * v) / 2  # d loss / d w
    expected = (pushed - (pushed @ w) * w) / a[1].norm()  # through the normalisation
    torch.testing.assert_close(grad[1], expected.detach())
    (both,) = torch.autograd.grad(loss.sum(), a)
    assert grad[1].norm() > 0 and not torch.allclose(both[1], grad[1])


def built(backbone="pointnet"):
    torch.manual_seed(0)
    model = models.build(backbone, 10)
    return model, Contrast(model, 48, data.direction("M_SC"))


@pytest.mark.parametrize("source", (True, False))
def test_two_strong_views_of_the_same_clouds(source):
    """Each is what strong_view draws next; labels go with the first, and both are of the size asked for."""
    _, task = built()
    g, labels = gen(3), torch.arange(4) if source else None
    view, expected = task.views(clouds(), labels, source, gen(3)), []
    for _ in range(2):
        expected.append(data.strong_view(clouds(), 48, g, source=source, crop=True))
    assert torch.equal(view.x, expected[0]) and torch.equal(view.weak, expected[1]) and view.y is labels
    assert view.x.shape == (4, 48, 3) and not torch.equal(view.x, view.weak)


def test_the_labelled_pass_is_used_again():
    """With its features the loss is that of the task's own pass, in eval mode; pcm takes that away."""
    model, task = built()
    model.eval(), task.eval()
    view = task.views(clouds(), None, True, gen())
    one, two = (model.encoder(x)[1] for x in (view.x, view.weak))
    expected = info_nce(task.head(one), task.head(two))
    torch.testing.assert_close(task(model, view, model.encoder(view.x), gen()), expected)
    torch.testing.assert_close(task(model, view, None, gen()), expected)
    assert task.reuses and not task.bodies and task.teacher is None


@pytest.mark.parametrize("backbone", ("pointnet", "pct"))
def test_losses_are_per_sample_finite_and_trainable(backbone):
    model, task = built(backbone)
    for source in (True, False):
        loss = task(model, task.views(clouds(), None, source, gen(1)), None, gen(2))
        assert loss.shape == (4,) and loss.isfinite().all() and (loss > 0).all()
        loss.mean().backward()
    grads = [p.grad for p in [*model.encoder.parameters(), *task.parameters()]]
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in grads)


def test_ten_steps_bring_views_together():
    """Six shapes of their own heights, turned and jittered: the loss falls well below that of a guess."""
    model, task = built()
    optimizer = torch.optim.AdamW([*model.parameters(), *task.parameters()], lr=1e-3, fused=True)
    x, losses = clouds(6, 32) * torch.linspace(0.1, 1, 6)[:, None, None], []
    for t in range(10):
        one, two = (data.plain_view(x, 32, gen(2 * t + i)) for i in range(2))
        loss = task(model, ssl_tasks.View(one, weak=two), None, None).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.5 * math.log(11)
