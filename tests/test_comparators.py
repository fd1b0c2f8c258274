"""What SM-DSB is compared with: each against an answer known beforehand, and each trains in both stages."""

import json
import math
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

import data
import models
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from extras import backbones, implicit, surgery, tasks
from fixtures import command, refusal
from ssl_tasks import View
from test_surgery import Toy, needs, toy_losses


def join(mtl, g_c, g_ssl):
    """The toy encoder's gradient, where its losses have these two, and its classifier's, which L_c gives 1."""
    needs(mtl)
    model = Toy()
    surgery.method(mtl)(model, torch.nn.Linear(1, 1), *toy_losses(model, g_c, g_ssl), None)
    return model.encoder.weight.grad[0], model.classifier.weight.grad.item()


def at(degrees, length=1.0):
    return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]


# ---------------------------------------------------------------- ways to join two gradients
@pytest.mark.parametrize("g, h", [((2, 0), (0, 1)), ((1, 0), (-1, 2)), ((1, 1), (3, 0)), ((0.1, 0), (0.3, 0.4))])
def test_mgda_is_the_shortest_between_two_gradients(g, h):
    """The point of the segment that is nearest to 0, in closed form, ends included; twice, on the scale of a sum."""
    a, b = torch.tensor(g, dtype=torch.float), torch.tensor(h, dtype=torch.float)
    share = ((b - a) @ b / (b - a).square().sum()).clamp(0, 1)
    assert torch.allclose(join("mgda", list(a), list(b))[0], 2 * (share * a + (1 - share) * b), atol=1e-5)


@pytest.mark.parametrize("degrees", [30, 100, 150, 175])
def test_upgrad_opposes_neither_and_is_pcgrad_for_two(degrees):
    """Each gradient is projected to where it opposes none, which for two is what PCGrad does; agreeing ones stay."""
    g, h = at(0, 2), at(degrees)
    got = join("upgrad", g, h)[0]
    assert (torch.tensor([g, h]) @ got > -1e-3).all()
    assert torch.allclose(got, join("pcgrad", g, h)[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("degrees", [30, 100, 170])
def test_aligned_mtl_evens_out_the_singular_values(degrees):
    """All become the least, directions stay: the sum of the rows of least U V^T."""
    G = torch.tensor([at(0, 3), at(degrees, 0.5)])
    U, values, Vt = torch.linalg.svd(G)
    assert torch.allclose(join("alignedmtl", *G.tolist())[0], (values.min() * U @ Vt).sum(0), atol=1e-4)


@pytest.mark.parametrize("degrees", [100, 150, 175])
def test_gh_makes_the_angle_acute_and_weighs_the_heads_too(degrees):
    """By hand: each gradient less its part along the other; those two agree, and neither is opposed by their sum."""
    g, h = torch.tensor(at(0, 2)), torch.tensor(at(degrees))
    dot = g @ h
    apart = g - dot / (h @ h) * h, h - dot / (g @ g) * g
    assert apart[0] @ apart[1] > 0 > dot
    got, head = join("gh", g.tolist(), h.tolist())
    assert torch.allclose(got, sum(apart), atol=1e-5) and head == pytest.approx(1 - dot.item() / 4)
    assert (torch.stack([g, h]) @ got > -1e-5).all()


@pytest.mark.parametrize("lengths", [(1, 1), (2, 0.5)])
def test_ghpp_turns_two_gradients_to_a_right_angle(lengths):
    """150 degrees: each turns by 30, to 30 and 120, and keeps its length."""
    got, head = join("ghpp", at(0, lengths[0]), at(150, lengths[1]))
    expected = torch.tensor([at(30, lengths[0]), at(120, lengths[1])])
    assert expected[0] @ expected[1] == pytest.approx(0, abs=1e-6) and head == 1
    assert torch.allclose(got, expected.sum(0), atol=1e-5)


@pytest.mark.parametrize("mtl", ["gh", "ghpp", "upgrad"])
@pytest.mark.parametrize("degrees", [0, 60, 90])
def test_without_a_conflict_it_is_the_sum(mtl, degrees):
    got, head = join(mtl, at(0, 2), at(degrees))
    assert torch.allclose(got, torch.tensor([at(0, 2), at(degrees)]).sum(0), atol=1e-3)
    assert head == pytest.approx(1)


@pytest.mark.parametrize("mtl", surgery.METHODS)
@pytest.mark.parametrize("h", [(-1.0, 0.0), (0.0, 0.0)])
def test_opposed_and_vanished_gradients_leave_numbers(mtl, h):
    if mtl in ("cgdm", "paretoda"):
        pytest.skip("looks at clouds")
    assert join(mtl, [1.0, 0.0], list(h))[0].isfinite().all()


@pytest.mark.parametrize("mtl", ["ghpp", "mgda", "upgrad"])
def test_a_loss_that_is_no_number_is_left_to_the_run_to_say(mtl):
    """It looks at the logged loss; a solver must not fail before that."""
    assert join(mtl, [math.nan, 0.0], [1.0, 0.0])[0].isnan().any()


# ---------------------------------------------------------------- ParetoDA
def test_paretoda_agrees_most_with_the_held_out_gradient():
    """Against all weights in steps of 1/60: none that keeps the limits agrees more. Random gradients, all cases."""
    torch.manual_seed(0)
    grid = torch.tensor([(i, j, 60 - i - j) for i in range(61) for j in range(61 - i)]) / 60
    some = 0
    for _ in range(40):
        G = torch.randn(4, 3)
        C, a = G[:3] @ G[:3].T, G[:3] @ G[3]
        least = torch.where(a > 0, -math.inf, a if a.max() > 0 else 0)
        least[a.argmax()] = 0
        got = surgery.preferred(G) / 3
        assert (G[:3] @ got >= least - 1e-4).all()
        allowed = (grid @ C >= least).all(1)
        if allowed.any():
            assert G[3] @ got >= (grid[allowed] @ a).max() - 1e-4
            some += 1
    assert some > 30


def test_paretoda_does_not_oppose_the_gradient_that_agrees_best():
    """The third agrees best; by the limit that the first sets alone, the second would outvote it."""
    G = torch.tensor([[-3.0, 4.0, 0.0], [1.0, -2.0, 4.0], [0.0, -4.0, -3.0], [1.0, -1.0, 0.0]])
    outvoted = (G[0] + 8 * G[1]) / 9
    assert (G[:3] @ G[3]).argmax() == 2 and G[0] @ outvoted > G[0] @ G[3] - 1e-4 and G[2] @ outvoted < -5
    assert G[2] @ surgery.preferred(G) > -1e-4


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_paretoda_does_not_depend_on_the_size_of_gradients(size):
    """Only the third agrees with the held-out one and opposes nobody: it alone is followed."""
    G = size * torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    assert torch.allclose(surgery.preferred(G), 3 * G[2], rtol=1e-4)


class Fixed(torch.nn.Module):
    """A model whose predictions are written into the clouds: x (B, 1, C) are its logits and its features."""

    def encoder(self, x):
        return x, x[:, 0]

    def predict(self, features):
        return features[1]


def test_the_stand_in_for_target_classification():
    """Minus mutual information: -log 2 for sure and even, 0 for sure and all alike, 0 for undecided; by halves."""
    sure, undecided = torch.tensor([[99.0, 0.0], [0.0, 99.0]]), torch.zeros(2, 2)
    look = lambda first, second: surgery.surrogates(Fixed(), None, View(torch.cat([first, second])[:, None]))
    assert [L.item() for L in look(sure, undecided)] == pytest.approx([-math.log(2), 0], abs=1e-5)
    assert [L.item() for L in look(sure[[0, 0]], sure)] == pytest.approx([0, -math.log(2)], abs=1e-5)


class Given(torch.nn.Module):
    """An encoder that has these features for any clouds."""

    def __init__(self, *features):
        super().__init__()
        self.features = features

    def forward(self, points):
        return self.features


def built(ssl):
    torch.manual_seed(0)
    model = models.build("pointnet", 10).eval()  # no dropout: the same pass twice
    return model, ssl_tasks.build(ssl, model, 32, data.direction("M_SC")).eval()


def view(labelled):
    x = torch.randn(4, 32, 3, generator=torch.Generator().manual_seed(3 + labelled))
    return View(x, torch.tensor([1, 0, 3, 2]) if labelled else None)


def test_paretoda_refines_by_bayes():
    """.5, .3, .2 of classes that are target with 1/2, 1/2 and 0: .625, .375, 0; the discriminators feel nothing."""
    _, task = built("paretoda")
    last = task.by_class[-1]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([0.0, 0.0, 999.0, *[0.0] * 7])  # log-odds of being labelled
    p = torch.tensor([[0.5, 0.3, 0.2, *[0.0] * 7]], requires_grad=True)
    f = torch.ones(1, 1024, requires_grad=True)
    q = task.refine(p, f)
    assert q[0].tolist() == pytest.approx([0.625, 0.375, *[0] * 8])
    gradients = torch.autograd.grad(q[0, 0], [p, f, last.bias], allow_unused=True)
    assert gradients[0].abs().sum() > 0 and gradients[1:] == (None, None)


def test_the_stand_in_is_of_refined_predictions():
    """With a task that can refine them, here by turning each into its opposite."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    other = Namespace(refine=lambda p, f: 1 - p)
    found = [surgery.surrogates(Fixed(), task, View(q.log()[:, None])) for task, q in ((other, p), (None, 1 - p))]
    assert [L.item() for L in found[0]] == pytest.approx([L.item() for L in found[1]]) and found[0][1] < -0.1


@pytest.mark.parametrize("labelled", [True, False])
def test_paretoda_discriminators_of_classes(labelled):
    """A labelled cloud teaches its class's alone, an unlabelled one all, by its refined prediction; no feature does."""
    model, task = built("paretoda")
    v = view(labelled)
    features = model.encoder(v.x)
    f = features[1].detach().requires_grad_()
    model.encoder = Given(features[0], f)
    more = task(model, v, None, None) - tasks.DANN.forward(task, model, v, None, None)
    p = task.by_class(f).sigmoid()  # of being labelled
    rows = torch.arange(4)
    hard = (
        -p[rows, v.y].log()
        if labelled
        else -(task.refine(model.predict((None, f)).softmax(1), f) * (1 - p).log()).sum(1)
    )
    assert torch.allclose(more, hard, atol=1e-5)
    assert torch.autograd.grad(more.sum(), f)[0].abs().max() < 1e-6


# ---------------------------------------------------------------- DANN
@pytest.mark.parametrize("labelled", [True, False])
def test_dann_reverses_the_gradient_at_the_features(labelled):
    """Exactly -lambda times what the discriminator alone gives; its own weights get the plain gradient."""
    model, task = built("dann")
    f = torch.randn(4, 1024, requires_grad=True)
    v = view(labelled)
    model.encoder = Given(None, f)
    logit = task.discriminator(f)[:, 0]
    plain = F.binary_cross_entropy_with_logits(logit, torch.full((4,), float(labelled)), reduction="none")
    loss = task(model, v, None, None)
    task.weight(0.3)  # after the forward pass, as in the step
    assert torch.allclose(loss, plain) and loss.shape == (4,)
    wanted, got = (torch.autograd.grad(L.sum(), [f, *task.parameters()], retain_graph=True) for L in (plain, loss))
    strength = 2 / (1 + math.exp(-10 * 0.3)) - 1
    assert torch.allclose(got[0], -strength * wanted[0], rtol=1e-4, atol=1e-8) and wanted[0].abs().sum() > 0
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-8) for a, b in zip(got[1:], wanted[1:]))
    masked = torch.autograd.grad((loss * torch.tensor([1, 0, 1, 1])).sum(), f)[0]
    assert (masked.abs().sum(1) > 0).tolist() == [True, False, True, True]  # a sample's loss is its own


def test_dann_schedule():
    _, task = built("dann")
    found = [(task.weight(p), task.strength) for p in (0, 0.1, 1)]
    assert found == [(1, 0), (1, pytest.approx(math.tanh(0.5))), (1, pytest.approx(math.tanh(5)))]


# ---------------------------------------------------------------- MCC
def test_class_confusion_by_hand():
    """Two clouds of .8 and .2, equally sure: they share .32 of a class's predictions. Nothing for sure predictions."""
    p = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    assert tasks.class_confusion(2.5 * p.log()).item() == pytest.approx(2 * 0.8 * 0.2)
    assert tasks.class_confusion(torch.tensor([[999.0, 0, 0], [0, 999.0, 0]])).item() == 0  # nobody predicts the third
    assert tasks.class_confusion(torch.zeros(5, 4)).item() == pytest.approx(3 / 4)


def test_class_confusion_weighs_a_sure_cloud_more():
    """By a loop over clouds and classes."""
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * 4
    p = (logits / 2.5).softmax(1)
    w = [1 + math.exp(sum(q * math.log(q) for q in row)) for row in p.tolist()]
    C = [[sum(w[i] * p[i, a] * p[i, b] for i in range(6)) for b in range(3)] for a in range(3)]
    expected = sum(C[a][b] / sum(C[a]) for a in range(3) for b in range(3) if a != b) / 3
    assert tasks.class_confusion(logits).item() == pytest.approx(float(expected), rel=1e-5)


def test_mcc_is_of_the_unlabelled_batch_alone():
    model, task = built("mcc")
    assert task(model, view(True), None, None).tolist() == [0] * 4 and not list(task.parameters())
    found = task(model, view(False), None, None)
    assert found.shape == (4,) and torch.allclose(found, tasks.class_confusion(model(view(False).x)))
    assert torch.autograd.grad(found.mean(), model.encoder.mlp1.linear.weight)[0].abs().sum() > 0


# ---------------------------------------------------------------- CGDM
def test_cgdm_classifiers_part_and_the_encoder_brings_them_together(monkeypatch):
    """Without its other terms: classifiers climb mean |p1 - p2|, features descend it, at full strength."""
    monkeypatch.setattr(tasks, "CGDM_ENTROPY", 0)
    monkeypatch.setattr(tasks, "CGDM_PSEUDO", 0)
    model, task = built("cgdm")
    f = torch.randn(4, 1024, requires_grad=True)
    model.encoder = Given(None, f)
    gap = (model.predict((None, f)).softmax(1) - task.second(None, f).softmax(1)).abs().mean(1)
    loss = task(model, view(False), None, None)
    assert torch.allclose(loss, -gap) and gap.min() > 0
    heads = [*model.classifier.parameters(), *task.second.parameters()]
    up, got = (torch.autograd.grad(L.sum(), [f, *heads], retain_graph=True) for L in (gap, loss))
    assert torch.allclose(got[0], up[0]) and all(torch.allclose(a, -b) for a, b in zip(got[1:], up[1:]))
    task.second.load_state_dict(model.classifier.state_dict())
    assert task(model, view(False), None, None).tolist() == [0] * 4  # equal classifiers


def test_cgdm_second_classifier_learns_the_labels():
    model, task = built("cgdm")
    v = view(True)
    found = task(model, v, model.encoder(v.x), None)
    assert torch.allclose(found, F.cross_entropy(task.second(*model.encoder(v.x)), v.y, reduction="none"))
    start = zip(task.second.parameters(), model.classifier.parameters())
    assert not all(torch.equal(a, b) for a, b in start)  # two classifiers, not one twice


def test_cgdm_terms_by_hand():
    """Entropies and weighted cross-entropy of one classifier, sample by sample."""
    _, task = built("cgdm")
    logits, task.label = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 2, 0, 1])
    p = logits.softmax(1)
    H = -(p * p.log()).sum(1)
    m, w = p.mean(0), 1 + torch.exp(-H)
    ce = -p[torch.arange(5), task.label].log()
    expected = 0.01 * (H + (m * m.log()).sum()) + 0.01 * 5 * w / w.sum() * ce
    assert torch.allclose(task.settled(logits), expected, atol=1e-6)


def test_cgdm_clusters_mend_a_wrong_prediction():
    """Ten clouds a class about three directions, two of each predicted wrongly: the clusters' labels are right."""
    _, task = built("cgdm")
    truth = torch.arange(3).repeat_interleave(10)
    f = torch.eye(1024)[truth] + 0.01 * torch.randn(30, 1024, generator=torch.Generator().manual_seed(4))
    guess = torch.where(torch.arange(30) % 10 < 2, (truth + 1) % 3, truth)
    assert torch.equal(task.clustered(f, 0.8 * F.one_hot(guess, 10) + 0.02), truth)
    late = f[:1], torch.full((1, 10), 0.1)  # alone and undecided, it is told by what was seen before
    assert task.clustered(*late).tolist() == [0]


def test_cgdm_way_to_join_takes_the_clusters_labels():
    """With --ssl cgdm the discrepancy is that of the clusters' labels, with any other task of the predicted ones."""
    model, _ = built("none")
    v, x_s = view(False), view(True)
    gap = lambda label: surgery.target_discrepancy(model, F.cross_entropy(model(x_s.x), x_s.y), v.x, label).item()
    guess = model(v.x).argmax(1)
    assert gap(None) == pytest.approx(gap(guess)) and gap(None) != pytest.approx(gap((guess + 1) % 10), rel=1e-3)


# ---------------------------------------------------------------- PointDAN
def test_mmd_by_hand():
    """Two points and two, a kernel at a time; 0 between a sample and itself."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    k = lambda a, b: sum(math.exp(-((a - b) ** 2) / (2 * s * s)) for s in (0.01, 0.1, 1, 10, 100))
    mean = lambda u, v: sum(k(a, b) for a in u for b in v) / 4
    expected = mean((0, 1), (0, 1)) + mean((0, 3), (0, 3)) - 2 * mean((0, 1), (0, 3))
    assert tasks.squared_mmd(x, y).item() == pytest.approx(expected, rel=1e-5)
    assert tasks.squared_mmd(x, x).item() == pytest.approx(0, abs=1e-6)


def test_attention_by_hand():
    layer = tasks.Attention(8).eval()
    x = torch.randn(3, 8)
    gate = torch.sigmoid(layer.gate[2](layer.gate[0](x).clamp_min(0)))
    assert torch.allclose(layer(x), (x * (gate + 1)) / math.sqrt(1 + 1e-5), atol=1e-6)


def pointdan():
    torch.manual_seed(0)
    model = models.build("pointdan", 10).eval()
    return model, ssl_tasks.build("pointdan", model, 32, data.direction("M_SC")).eval()


def test_nodes_move_towards_where_their_weights_point(monkeypatch):
    """Weights near 1: a node moves by the mean of what leads to its ball's points; near -1, away; at 0 it stays."""
    layer, places, nearest = backbones.Nodes(4).eval(), [], backbones.nearest_three
    points = F.normalize(torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0)), dim=2)
    monkeypatch.setattr(backbones, "nearest_three", lambda p, place: places.append(place) or nearest(p, place))
    for sign in (0, 1, -1):
        monkeypatch.setattr(layer.offset, "forward", lambda difference: difference[..., :3] * 0 + 9 * sign)
        layer(torch.zeros(1, 40, 4), points)
    own = points[0, backbones.spread(points, 40)[0]]
    near = torch.cdist(own, points[0]) < 0.3
    towards = torch.stack([(points[0, row] - node).sum(0) / 40 for node, row in zip(own, near)])
    assert towards.norm(dim=1).max() > 0.01
    for place, sign in zip(places, (0, 1, -1), strict=True):
        assert torch.allclose(place[0], own + sign * towards, atol=1e-5)


def test_the_offset_learns_by_the_weights_of_interpolation():
    model, _ = pointdan()
    model(view(True).x).square().sum().backward()
    assert model.encoder.nodes.offset.weight.grad.abs().sum() > 0


def test_pointdan_is_two_discrepancies_and_a_second_classifier():
    """Term by term; features get the classifiers' discrepancy reversed; equal nodes and classifiers give 0."""
    model, task = pointdan()
    s, u = view(True), view(False)
    labelled = task(model, s, None, None)
    assert torch.allclose(labelled, F.cross_entropy(task.second(*model.encoder(s.x)), s.y, reduction="none"))
    found = task(model, u, None, None)
    nodes = lambda v: model.encoder.up_to_nodes(v.x)[1].flatten(1)
    mmd = tasks.squared_mmd(task.of_labelled(nodes(s)), task.of_unlabelled(nodes(u)))
    features = model.encoder(u.x)
    gap = (model.predict(features).softmax(1) - task.second(*features).softmax(1)).abs().mean(1)
    assert torch.allclose(found, mmd - gap, atol=1e-6) and gap.min() > 0 and mmd > 0
    task.second.load_state_dict(model.classifier.state_dict())
    task.of_unlabelled.load_state_dict(task.of_labelled.state_dict())
    task(model, s, None, None)
    assert torch.allclose(task(model, View(s.x), None, None), torch.zeros(4), atol=1e-5)
    assert [task.weight(0.5), task.strength] == [1, pytest.approx(math.sqrt(0.5))]


def test_pointdan_needs_its_backbone():
    model = models.build("pointnet", 10)
    text = refusal(lambda: ssl_tasks.build("pointdan", model, 32, data.direction("M_SC")))
    assert "--backbone pointdan" in text


# ---------------------------------------------------------------- ImplicitPCDA
def test_unsigned_distance_by_hand():
    """Points on a line at 0, 1, 2 and 4: the gap is the mean of their distances; places near a point are at 0."""
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]]])
    own = [math.sqrt(sum(d * d for d in row) / 3) for row in ((1, 2, 4), (1, 1, 3), (2, 1, 2), (4, 3, 2))]
    gap = sum(own) / 4 / 2
    places = torch.tensor([[[0.0, 9, 0], [1, gap - 0.1, 0], [4, 0, gap + 0.25], [1, 0, 0]]])
    assert implicit.gap(points).item() == pytest.approx(gap, rel=1e-6)
    assert implicit.unsigned_distance(places, points)[0].tolist() == pytest.approx([9 - gap, 0, 0.25, 0], abs=1e-6)


def test_the_gap_is_of_the_twenty_sparsest_points():
    points = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    for cloud, found in zip(points.tolist(), implicit.gap(points)):
        own = []
        for i, p in enumerate(cloud):
            near = sorted(math.dist(p, q) for j, q in enumerate(cloud) if j != i)[:3]
            own.append(math.sqrt(sum(d * d for d in near) / 3))
        assert found.item() == pytest.approx(sum(sorted(own)[-20:]) / 20 / 2, rel=1e-5)


def test_implicit_is_the_decoders_error_of_each_cloud():
    """One layer on place and feature side by side, then the rest; 0 for a decoder that knows; one loss a cloud."""
    model, task = built("implicit")
    v, f = view(True), torch.randn(4, 1024)
    places = torch.rand(4, 7, 3) * 2 - 1
    joint = task.first(torch.cat([places, f[:, None].expand(-1, 7, -1)], 2))
    assert torch.allclose(task.decode(places, f), F.relu(task.out(task.rest(joint)))[..., 0], atol=1e-5)
    g = lambda: torch.Generator().manual_seed(5)
    features = model.encoder(v.x)
    places = 2 * torch.rand(4, 2048, 3, generator=g()) - 1
    truth = implicit.unsigned_distance(places, v.x)
    expected = (task.decode(places, features[1]) - truth).abs().mean(1)
    assert torch.allclose(task(model, v, features, g()), expected) and torch.allclose(
        task(model, v, None, g()), expected
    )
    task.decode = lambda places, f: implicit.unsigned_distance(places, v.x)
    assert task(model, v, features, g()).tolist() == [0] * 4


# ---------------------------------------------------------------- all of them
OWN = "dann", "mcc", "paretoda", "cgdm", "pointdan", "implicit"
RUNS = [(ssl, "sum") for ssl in OWN] + [("paretoda", "paretoda"), ("cgdm", "cgdm")]
RUNS += [("defrec", mtl) for mtl in surgery.METHODS if mtl not in ("pcgrad", "cagrad", "cgdm")]


@pytest.mark.parametrize("ssl, mtl", RUNS)
def test_trains_in_both_stages(ssl, mtl, whole, tmp_path):
    """Two steps and one; the flags go from stage to stage, the task's own weights are kept and move on."""
    needs(mtl) if mtl != "sum" else None
    backbone = "pointdan" if ssl == "pointdan" else "pointnet"
    small = f"--backbone {backbone} --points 24 --batch-size 4 --device cpu".split()
    words = ["--task", "M_SC", "--data", whole, "--select", "all", "--ssl", ssl, "--mtl", mtl, "--steps", "2"]
    command(stage1_ssl.main, *words, *small, "--out", tmp_path)
    more = "--gcn-iters 0 --steps 1 --device cpu".split()
    command(stage2_pseudo.main, "--init", tmp_path / "stage1.pt", *more)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [1, 1, 2] and all(math.isfinite(row["loss"]) for row in rows)
    config = json.loads((tmp_path / "config.json").read_text())
    assert all((config[s]["args"]["ssl"], config[s]["args"]["mtl"]) == (ssl, mtl) for s in ("stage1", "stage2"))
    one, two = (torch.load(tmp_path / f"stage{n}.pt", weights_only=True)["task"] for n in (1, 2))
    moved = [name for name in one if name.endswith("weight") and not torch.equal(one[name], two[name])]
    assert one.keys() == two.keys() and bool(moved) == (ssl != "mcc")  # which has none


@pytest.mark.parametrize("ssl", OWN)
def test_none_is_for_segmentation(ssl):
    args = Namespace(**stage1_ssl.SETTINGS | {"task": "seg_F_A", "ssl": ssl, "data": "shapes"})
    assert f"--ssl {ssl}" in refusal(lambda: stage1_ssl.settle(args))


def test_names_can_be_words_of_make():
    """SELECT=all+NAME and run-TASK-SSL-SELECT-SEED are split at + and -."""
    assert all(name.isalnum() for name in (*surgery.METHODS, *ssl_tasks.TASKS))
