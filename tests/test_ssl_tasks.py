"""Each self-supervised task against a loop, a count or a formula."""

import math

import pytest
import torch

import data
import models
import ssl_tasks
from ssl_tasks import View


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def clouds(B=4, N=64, seed=0):
    x = torch.rand(B, N, 3, generator=gen(seed)) * 2 - 1
    return x / x.norm(dim=-1).amax(-1)[:, None, None]


def test_masked_chamfer_is_the_brute_force_loop():
    """Squared distances, mean over the masked points, both ways; value and gradient, masks of unequal size."""
    p, q = clouds(5, 30, 1).double().requires_grad_(), clouds(5, 30, 2).double()
    mask = torch.rand(5, 30, generator=gen(3)) < torch.linspace(0.1, 1, 5)[:, None]
    mask[:, 0] = True
    expected = []
    for b in range(5):
        d = [[(p[b, i] - q[b, j]).square().sum() for j in range(30) if mask[b, j]] for i in range(30) if mask[b, i]]
        d = torch.stack([torch.stack(row) for row in d])
        expected.append(d.min(0).values.mean() + d.min(1).values.mean())
    expected, got = torch.stack(expected), ssl_tasks.masked_chamfer(p, q, mask)
    assert torch.allclose(got, expected, atol=1e-12)
    grads = [torch.autograd.grad(loss.sum(), p, retain_graph=True)[0] for loss in (got, expected)]
    assert torch.allclose(*grads, atol=1e-12)


def test_masked_chamfer_of_nothing_is_zero():
    """An empty mask costs nothing, not 0/0."""
    assert ssl_tasks.masked_chamfer(clouds(), clouds(), torch.zeros(4, 64, dtype=torch.bool)).tolist() == [0] * 4


def test_voxels_cover_the_cube_faces_included():
    """Centres have the 27 numbers in order; points on a face or outside go to the nearest voxel."""
    centres = torch.cartesian_prod(*3 * [torch.tensor([-2 / 3, 0, 2 / 3])])
    assert ssl_tasks.voxel(centres[None])[0].tolist() == list(range(27))
    assert ssl_tasks.voxel(torch.tensor([[[1.0, 1, 1], [9, 9, 9], [-1, -1, -1], [-9, 0, 9]]]))[0].tolist() == [
        26,
        26,
        0,
        5,
    ]


def test_choose_voxel_is_uniform_over_the_full_enough():
    """Only voxels with enough points are drawn, all of them; without any, the fullest."""
    index = torch.tensor([[0] * 50 + [5] * 45 + [7] * 5]).expand(400, -1)
    drawn = ssl_tasks.choose_voxel(index, 40, gen())
    assert set(drawn.tolist()) == {0, 5} and 120 < (drawn == 0).sum() < 280
    assert ssl_tasks.choose_voxel(torch.tensor([[3, 9, 9, 4]]), 40, gen()).tolist() == [9]


def test_deform_replaces_one_voxel_by_a_blob_at_its_centre():
    """Outside the hole nothing moves; inside the points are N(centre, .001 I)."""
    x = clouds(64, 512)
    y, hole, _ = ssl_tasks.deform(x, gen(1))
    assert torch.equal(x[~hole], y[~hole]) and (hole.sum(1) > 0).all()
    for b in range(4):
        assert len(ssl_tasks.voxel(x)[b][hole[b]].unique()) == 1
    centre = ((x * 1.5 + 1.5).floor().clamp(0, 2) - 1) * (2 / 3)
    blob = (y - centre)[hole]
    assert blob.mean(0).abs().max() < 0.003 and torch.allclose(blob.var(0), torch.full((3,), 0.001), rtol=0.1)


def test_farthest_points_is_the_greedy_loop():
    """Each pick is the point farthest from those picked; every prefix is an FPS of its own."""
    x = clouds(3, 40)
    index = ssl_tasks.farthest_points(x, 12)
    for b in range(3):
        chosen = [0]
        while len(chosen) < 12:
            chosen.append(int(torch.cdist(x[b], x[b, chosen]).amin(1).argmax()))
        assert index[b].tolist() == chosen
    assert torch.equal(ssl_tasks.farthest_points(x, 5), index[:, :5])


def test_pcm_mixes_by_the_share_it_returns():
    """round(mu N) points of the cloud itself, the rest of its partner."""
    x, y = clouds(6, 50), torch.arange(6)
    mixed, partner, mu, taken = ssl_tasks.pcm(x, gen(5))
    n = round(mu * 50)
    assert mixed.shape == x.shape and 0 < n < 50 and sorted(partner.tolist()) == y.tolist()
    for b in range(6):
        mine, theirs = ({tuple(p) for p in cloud.tolist()} for cloud in (x[b], x[partner[b]]))
        assert {tuple(p) for p in mixed[b, :n].tolist()} <= mine and {tuple(p) for p in mixed[b, n:].tolist()} <= theirs
        assert torch.equal(mixed[b, :n], x[b, taken[b, :n]]) and torch.equal(mixed[b, n:], x[partner[b], taken[b, n:]])


@pytest.mark.parametrize("pooled, expected", [(True, (1 + 3 + 10 + 20) / 5), (False, (1 + 3) / 3 + (10 + 20) / 2)])
def test_masked_losses_keep_the_base_denominators(pooled, expected):
    """A masked sample leaves the sum, not the denominator."""
    s, t = torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 20])
    lam = torch.tensor([True, False, True])
    assert ssl_tasks.combine(s, lam, t, torch.tensor([True, True]), pooled).item() == pytest.approx(expected)
    s = s.masked_fill(~lam, math.inf)  # what is masked is not even looked at
    assert ssl_tasks.combine(s, lam, t, torch.tensor([True, True]), pooled).item() == pytest.approx(expected)


def test_self_distillation_is_cross_entropy_to_the_teacher():
    """-sum softmax(teacher / .1) log softmax(student / .5), per sample; no gradient reaches the teacher."""
    torch.manual_seed(0)
    model = models.build("pointnet", 10)
    task = ssl_tasks.build("selfdist", model, 32, data.direction("M_SC"))
    view = View(clouds(4, 32), weak=clouds(4, 32, 1))
    student, teacher = model.encoder(view.x)[1], task.teacher.model.encoder(view.weak)[1]
    expected = -((teacher / 0.1).softmax(1) * torch.log((student / 0.5).softmax(1))).sum(1)
    loss = task(model, view, (None, student), gen())
    assert loss.shape == (4,) and torch.allclose(loss, expected, rtol=1e-4)
    loss.sum().backward()
    assert all(p.grad is None for p in task.teacher.model.parameters()) and not list(task.parameters())


def test_weights_follow_the_bases():
    """Self-distillation ramps up as exp(-5 (1 - t/T)^2); DefRec halves both losses."""
    model = models.build("pointnet", 10)
    task = ssl_tasks.build("selfdist", model, 32, data.direction("M_S"))
    assert [task.weight(p) for p in (0, 0.5, 1)] == [math.exp(-5), math.exp(-1.25), 1] and task.cls_weight == 1
    task = ssl_tasks.build("defrec", model, 32, data.direction("M_S"))
    assert (task.weight(0.3), task.cls_weight) == (0.5, 0.5)
    for name in ("gast", "mlsp"):
        task = ssl_tasks.build(name, model, 32, data.direction("M_S"))
        assert (task.weight(0.3), task.cls_weight) == (1, 0.5)


@pytest.mark.parametrize("backbone", ["pointnet", "dgcnn"])
@pytest.mark.parametrize("name", ["selfdist", "defrec", "gast", "mlsp"])
def test_losses_are_per_sample_finite_and_trainable(backbone, name):
    """(B,) on both domains, with finite gradients in the encoder and in the task's own head."""
    torch.manual_seed(0)
    model = models.build(backbone, 10)
    task = ssl_tasks.build(name, model, 48, data.direction("M_SC"))
    for key, source in (("M", True), ("SC", False)):
        view = task.views(clouds(4, 64), None, source, gen(1))
        loss = task(model, view, None, gen(2))
        assert view.x.shape == (4, 48, 3) and loss.shape == (4,) and loss.isfinite().all() and (loss > 0).all()
        loss.mean().backward()
    grads = [p.grad for p in [*model.encoder.parameters(), *task.parameters()]]
    assert all(g is not None and g.isfinite().all() for g in grads) and any(g.abs().sum() > 0 for g in grads)


def test_no_task_costs_nothing():
    """`none` is zero for every sample."""
    task = ssl_tasks.build("none", models.build("pointnet", 10), 32, data.direction("M_SC"))
    view = task.views(clouds(4, 64), torch.arange(4), True, gen())
    assert task(None, view, None, gen()).tolist() == [0] * 4 and torch.equal(view.y, torch.arange(4))


# ---------------------------------------------------------------- GAST
def test_quarter_turns_are_rotations_about_their_axis():
    """k turns are k times the 90 degree matrix, exactly; four are none; the axis stays."""
    x, k = clouds(8, 20), torch.arange(8) % 4
    quarter = {0: [[1, 0, 0], [0, 0, -1], [0, 1, 0]], 1: [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]}
    for axis, matrix in quarter.items():
        y = ssl_tasks.quarter_turns(x, k, axis)
        for b in range(8):
            R = torch.linalg.matrix_power(torch.tensor(matrix, dtype=x.dtype), int(k[b]))
            assert torch.equal(y[b], x[b] @ R.T)
        assert torch.equal(y[..., axis], x[..., axis])
        assert torch.equal(ssl_tasks.quarter_turns(y, (4 - k) % 4, axis), x)


def test_turned_parts_carry_their_own_labels():
    """Undoing each part's turns gives points of the cloud; the two labels are drawn independently, shares are mu."""
    x = clouds(64, 40)
    turned, k_x, k_y, mu = ssl_tasks.turn_parts(x, gen(5))
    n = round(mu * 40)
    assert turned.shape == x.shape and 0 < n < 40
    back = ssl_tasks.quarter_turns(turned[:, :n], -k_x % 4, 0), ssl_tasks.quarter_turns(turned[:, n:], -k_y % 4, 1)
    for b in range(64):
        own = {tuple(p) for p in x[b].tolist()}
        assert all(tuple(p) in own for part in back for p in part[b].tolist())
    pairs = torch.bincount(k_x * 4 + k_y, minlength=16)
    assert (pairs > 0).sum() >= 12  # 64 draws of 16 pairs; aliased labels would give 4


def test_each_rotation_head_is_trained_on_its_own_label(monkeypatch):
    """The gradient of a head's bias is the softmax minus the one-hot of its own label, weighted mu and 1 - mu."""
    torch.manual_seed(0)
    model = models.build("pointnet", 10).eval()
    task = ssl_tasks.build("gast", model, 40, data.direction("M_SC"))
    view = View(clouds(6, 40))
    turned, k_x, k_y, mu = ssl_tasks.turn_parts(view.x, gen(9), True)
    assert (k_x != k_y).any()
    f = model.encoder(turned)[1].detach()
    task(model, view, None, gen(9)).sum().backward()
    for head, label, share in ((task.turns_x, k_x, mu), (task.turns_y, k_y, 1 - mu)):
        expected = 0.2 * share * (head(f).softmax(1) - torch.eye(4)[label]).sum(0)
        assert torch.allclose(head.bias.grad, expected, atol=1e-5)


def test_gast_locates_the_voxel_that_was_replaced():
    """The 27-way label is the voxel of the hole's points; 20 points are enough."""
    x = clouds(16, 256)
    _, hole, chosen = ssl_tasks.deform(x, gen(1), least=20)
    assert all((ssl_tasks.voxel(x)[b][hole[b]] == chosen[b]).all() for b in range(16))
    assert (hole.sum(1) >= 20).float().mean() > 0.9


# ---------------------------------------------------------------- MLSP
def test_normals_of_a_noisy_plane_and_sphere():
    """Within 5 degrees on average, of unit length, whatever the sign."""
    g = gen(4)
    flat = torch.cat([torch.rand(1, 800, 2, generator=g) * 2 - 1, torch.zeros(1, 800, 1)], -1)
    normal = torch.linalg.qr(torch.randn(3, 3, generator=g)).Q
    ball = torch.nn.functional.normalize(torch.randn(1, 800, 3, generator=g), dim=-1)
    for points, truth in ((flat @ normal.T, normal[:, 2].expand(1, 800, 3)), (ball, ball)):
        found = ssl_tasks.normals(points + 0.003 * torch.randn(points.shape, generator=g))
        assert torch.allclose(found.norm(dim=-1), torch.ones(1, 800), atol=1e-5)
        angle = (found * truth).sum(-1).abs().clamp(max=1).acos().rad2deg()
        assert angle.mean() < 5


def test_cardinality_of_a_counted_example():
    """A chain with steps of .1: counts by hand, itself included; odd counts share two bins; 30 is the most."""
    x = torch.zeros(1, 6, 3)
    x[0, :, 0] = torch.tensor([0.0, 0.1, 0.2, 0.3, 1.0, 2.0])
    target, number = ssl_tasks.cardinality(x, 0.15)
    assert number.tolist() == [[2, 3, 3, 2, 1, 1]]
    assert target[0, 0, 1] == 1 and target[0, 1, 1:3].tolist() == [0.5, 0.5] and target[0, 4, :2].tolist() == [0.5, 0.5]
    assert torch.equal(target.sum(-1), torch.ones(1, 6))
    target, number = ssl_tasks.cardinality(torch.zeros(1, 64, 3), 0.1)
    assert (number == 30).all() and (target[..., 15] == 1).all()


def test_cardinality_counts_as_a_loop_does():
    """Within the radius, itself included."""
    x = clouds(3, 50)
    _, number = ssl_tasks.cardinality(x, 0.35)
    for b in range(3):
        for i in range(50):
            expected = sum(math.dist(x[b, i].tolist(), p) <= 0.35 for p in x[b].tolist())
            assert number[b, i] == min(expected, 30)


def test_the_radius_is_the_targets():
    """.12 for S, .13 for M, .135 for SC, for both domains."""
    model = models.build("pointnet", 10)
    for way, radius in (("M_S", 0.12), ("S_M", 0.13), ("M_SC", 0.135), ("SC_M", 0.13)):
        assert ssl_tasks.build("mlsp", model, 32, data.direction(way)).radius == radius


def test_heads_have_the_widths_of_their_authors():
    """MLSP counts with 512, 256, 256 and three dropouts; GAST's location has a hidden layer on PointNet alone."""
    for backbone, layers in (("pointnet", [(1024, 256), (256, 27)]), ("dgcnn", [(1024, 27)])):
        model = models.build(backbone, 10)
        count = ssl_tasks.build("mlsp", model, 32, data.direction("M_SC")).count
        linears = [m for m in count.modules() if isinstance(m, torch.nn.Linear)]
        assert sorted(m.out_features for m in linears) == [16, 256, 256, 512] and count.dropped == 3
        region = ssl_tasks.build("gast", model, 32, data.direction("M_SC")).region
        assert [(m.in_features, m.out_features) for m in region.modules() if isinstance(m, torch.nn.Linear)] == layers


@pytest.mark.parametrize("name", ["defrec", "gast", "mlsp", "selfdist"])
def test_the_classifier_sees_the_tasks_passes(name, monkeypatch):
    """Its batch norm takes in every pass of the task, in train mode, without a gradient; in eval mode nothing moves."""
    torch.manual_seed(0)
    model = models.build("pointnet", 10)
    task = ssl_tasks.build(name, model, 48, data.direction("M_SC"))
    view = task.views(clouds(4, 64), None, False, gen(1))
    passes, encoder = [], model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda x: passes.append(encoder(x)[1].detach()) or encoder(x))
    norm, mean = model.classifier[1], torch.zeros(512)
    task(model, view, None, gen(2)).sum().backward()
    for f in passes:
        mean = 0.9 * mean + 0.1 * model.classifier[0](f).mean(0)
    assert len(passes) == (2 if name == "gast" else 1) and torch.allclose(norm.running_mean, mean, atol=1e-5)
    assert all(p.grad is None for p in model.classifier.parameters())
    model.eval(), task.eval()
    task(model, view, None, gen(2))
    assert torch.allclose(norm.running_mean, mean, atol=1e-5)


def test_mlsp_is_its_three_parts_by_hand():
    """.5 x 20 Chamfer, .5 (1 - abs cos), .05 (CE + .05 L1); points in the hole weigh 27; in a loop over points."""
    torch.manual_seed(0)
    model = models.build("pointnet", 10).eval()
    task = ssl_tasks.build("mlsp", model, 60, data.direction("M_SC")).eval()
    task.radius = 0.35
    view = View(clouds(2, 60))
    deformed, hole, _ = ssl_tasks.deform(view.x, gen(2))
    with torch.no_grad():
        f = model.encoder(deformed)
        truth, (target, count) = ssl_tasks.normals(view.x), ssl_tasks.cardinality(view.x, 0.35)
        normal, p, got = task.normal(*f), task.count(*f).softmax(-1), task(model, view, None, gen(2))
        for b in range(2):
            total = weights = 0.0
            for i in range(60):
                w = 27.0 if hole[b, i] else 1.0
                cos = torch.dot(normal[b, i], truth[b, i]) / normal[b, i].norm()
                mean = sum(2 * k * p[b, i, k] for k in range(16))
                ce = -sum(target[b, i, k] * p[b, i, k].log() for k in range(16))
                total += w * (0.5 * (1 - cos.abs()) + 0.05 * (ce + 0.05 * (mean - count[b, i]).abs()))
                weights += w
            chamfer = ssl_tasks.masked_chamfer(task.position(*f), view.x, hole)[b]
            assert got[b].item() == pytest.approx((10 * chamfer + total / weights).item(), rel=1e-4)


# ---------------------------------------------------------------- the EMA teacher
def test_ema_follows_its_formula():
    """Weights and float buffers move by min(.999, 1 - 1/(t+1)); integer buffers are copied."""
    torch.manual_seed(0)
    student = models.build("pointnet", 10)
    teacher = ssl_tasks.EMA(student)
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    for t in (0, 1, 2, 5000):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        student(clouds(2, 16, t))  # moves the buffers
        decay = min(0.999, 1 - 1 / (t + 1))
        for name, value in student.state_dict().items():
            mean = decay * expected[name] + (1 - decay) * value
            expected[name] = mean if value.is_floating_point() else value.clone()
        teacher.update(student, t)
    found = teacher.model.state_dict()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)
    assert found["classifier.1.num_batches_tracked"] == 4
    assert not torch.equal(found["classifier.1.running_mean"], student.classifier[1].running_mean)


def test_teacher_is_apart_and_in_eval_mode():
    """The teacher needs no gradient, shares no memory with the student and stays in eval mode."""
    torch.manual_seed(0)
    student = models.build("pointnet", 10)
    teacher, x = ssl_tasks.EMA(student), clouds(2, 16)
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
