"""PointSegDA through the same two stages: labels, loss and metric of points, and no target label."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import data
import eval as evaluation
import models
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from datasets import pointsegda
from engine import run as engine_run
from engine.metrics import mean_iou, quality
from engine.run import Run
from paper import tables
from fixtures import command, make_pointsegda, refusal

ROOT = Path(__file__).resolve().parent.parent
TINY = "--points 32 --batch-size 8 --steps 4 --eval-every 2 --device cpu".split()


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    return make_pointsegda(tmp_path_factory.mktemp("bodies"), per_split=4, domains=("faust", "mit"))


def both_stages(bodies, out, *more, task="seg_F_M", ssl="defrec"):
    command(stage1_ssl.main, "--task", task, "--data", bodies, "--ssl", ssl, "--out", out, *TINY, *more)
    if not data.direction(task).oracle:
        command(stage2_pseudo.main, "--init", out / "stage1.pt")
    return out


def weights(out):
    return {
        (n, name): tensor
        for n in (1, 2)
        for name, tensor in torch.load(out / f"stage{n}.pt", weights_only=True)["last_student"].items()
    }


# ---------------------------------------------------------------- the metric
def test_mean_iou_is_the_loop_over_clouds_and_parts():
    """Sets of points, one cloud and part at a time; parts in neither truth nor prediction do not count."""
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (6, 40)), rng.integers(1, 7, (6, 40)).astype(np.uint8)
    truth[2] = predicted[2]
    clouds, of_part = [], {c: [] for c in range(8)}
    for y, p in zip(truth, predicted):
        ious = []
        for c in range(8):
            is_c, said_c = set(np.flatnonzero(y == c)), set(np.flatnonzero(p == c))
            if is_c | said_c:
                ious.append(len(is_c & said_c) / len(is_c | said_c))
                of_part[c].append(ious[-1])
        clouds.append(sum(ious) / len(ious))
    miou, part_iou = mean_iou(truth, predicted, 8)
    assert miou == pytest.approx(np.mean(clouds)) and 0 < miou < 1
    assert part_iou[7] is None and not of_part[7]
    assert part_iou[:7] == pytest.approx([np.mean(of_part[c]) for c in range(7)])
    assert quality(truth, truth.astype(np.uint8), 8) == 1 and quality(truth, predicted, 8) == miou


# ---------------------------------------------------------------- the loss
def test_a_clouds_loss_is_the_mean_over_its_points():
    """L_i against a loop over points, in double precision; classes are as they were."""
    torch.manual_seed(0)
    model = models.build("dgcnn-seg", 8).eval()
    view = ssl_tasks.View(torch.rand(3, 24, 3), torch.randint(8, (3, 24)))
    ce = stage1_ssl.cross_entropy(model(view.x), view.y)
    log_p = model(view.x).double().log_softmax(-1)
    expected = [-sum(log_p[b, i, view.y[b, i]] for i in range(24)) / 24 for b in range(3)]
    assert torch.allclose(ce.double(), torch.stack(expected), atol=1e-5)
    model = models.build("pointnet", 10).eval()
    view.y = torch.arange(3)
    ce = stage1_ssl.cross_entropy(model(view.x), view.y)
    assert torch.allclose(ce, F.cross_entropy(model(view.x), view.y, reduction="none"))


@pytest.mark.parametrize("name", ["none", "defrec", "mlsp"])
def test_labels_go_where_their_points_go(name):
    """A label that tells the height still does after turning, jitter and the draw of points."""
    points = torch.rand(4, 64, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    labels = ((points[..., 2] + 0.5) * 8).long().clamp(0, 7)
    task = ssl_tasks.build(name, models.build("dgcnn-seg", 8), 32, data.direction("seg_F_M"))
    view = task.views(points, labels, True, torch.Generator().manual_seed(1))
    height = ((view.x[..., 2] + 0.5) * 8 - 0.5 - view.y).abs()  # half a band, and the jitter
    assert view.y.shape == (4, 32) and height.max() < 0.5 + 8 * 0.021


def test_weights_of_segmentation():
    """DefRec .05 with classification .95, MLSP .02 with .98, and its wider bins."""
    model = models.build("dgcnn-seg", 8)
    defrec, mlsp = (ssl_tasks.build(name, model, 32, data.direction("seg_F_M")) for name in ("defrec", "mlsp"))
    assert (defrec.weight(0.5), defrec.cls_weight) == (0.05, 0.95)
    assert (mlsp.shares, mlsp.cls_weight, mlsp.k, mlsp.per_bin, mlsp.spare) == ((0.02,) * 3, 0.98, 10, 5, 10)
    assert mlsp.hole_weight == 2 and mlsp.radius == 0.124
    target, number = ssl_tasks.cardinality(torch.zeros(1, 23, 3), 0.1, per_bin=5, spare=10)
    assert (number == 13).all() and target[0, 0].tolist() == pytest.approx([0, 0, 0.5, 0.5] + [0] * 12)


def test_a_ball_about_a_point_of_the_body_collapses():
    """All points within .5 of one of them, and no other, lie close to it; the ball has 20 points where there is one."""
    points = torch.rand(6, 400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 2.0])
    points[5] *= 40  # nobody has neighbours within .5 there: the fullest of the balls tried is taken
    deformed, hole = ssl_tasks.deform_ball(points, torch.Generator().manual_seed(1))
    for b in range(6):
        assert torch.equal(deformed[b][~hole[b]], points[b][~hole[b]])
        inside = points[b][hole[b]]
        centre = next(p for p in inside if torch.equal((points[b] - p).norm(dim=1) <= 0.5, hole[b]))
        assert (deformed[b][hole[b]] - centre).norm(dim=1).max() < 0.25 and (len(inside) >= 20) == (b < 5)


def test_mixed_bodies_keep_each_points_label_and_weight():
    """PCM: labels go with their points, and a point weighs as the cloud that it is from; by a loop over points."""
    g = torch.Generator().manual_seed(0)
    points = torch.rand(4, 40, 3, generator=g)
    labels = (points[..., 2] * 8).long()  # a label tells the height
    x, mixture = ssl_tasks.mixup(ssl_tasks.View(points, labels), torch.Generator().manual_seed(5))
    (_, mine, _), (_, theirs, partner) = mixture
    own = mine >= 0
    assert (own ^ (theirs >= 0)).all() and 0 < own.sum() < own.numel()
    assert torch.equal(torch.where(own, mine, theirs), (x[..., 2] * 8).long())
    w, logits = torch.tensor([1.0, 0.2, 1.0, 0.2]), torch.randn(4, 40, 8, generator=g)
    ce = sum(mu * (w[i] * stage1_ssl.cross_entropy(logits, y)) for mu, y, i in mixture)
    for b in range(4):
        each = F.cross_entropy(logits[b], (x[b, :, 2] * 8).long(), reduction="none")
        weights = torch.where(own[b], w[b], w[partner[b]])
        assert ce[b].item() == pytest.approx((weights * each).mean().item(), rel=1e-5)


def test_pcm_on_bodies_runs_both_stages(bodies, tmp_path):
    """Table II's row is DefRec+PCM: it trains, is measured on the clean bodies, and differs from DefRec."""
    runs = [both_stages(bodies, tmp_path / ssl, ssl=ssl) for ssl in ("defrec", "defrec+pcm")]
    rows = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in runs]
    assert (
        all(np.isfinite(row["loss"]) and row["kept"] == 3 for row in rows[1]) and rows[0][0]["cls"] != rows[1][0]["cls"]
    )


# ---------------------------------------------------------------- both stages
def test_both_stages_and_their_result(bodies, tmp_path):
    """miou and part_iou in place of the accuracies, against the predictions; the source is its val split."""
    out = both_stages(bodies, tmp_path / "a")
    result = evaluation.evaluate(out)
    preds, tgt = np.load(out / "preds2.npz"), data.load_domain(bodies, "seg_M")
    src = data.load_domain(bodies, "seg_F")
    truth = data.evaluation_subset(tgt.test, 32, tgt.test_labels)[1].numpy()
    val = data.evaluation_subset(src.val, 32, src.val_labels)[1].numpy()
    assert preds["target"].shape == (3, 4, 32) and preds["source"].shape == (3, 4, 32)  # step 0, and two
    last = result["stage2"]["last"]
    miou, part_iou = mean_iou(truth, preds["target"][-1], 8)
    assert last["miou"] == miou and list(last["part_iou"].values()) == part_iou and "acc" not in last
    assert result["stage2"]["curve"][-1]["source"] == mean_iou(val, preds["source"][-1], 8)[0]
    assert np.sum(result["stage2"]["confusion"]) == truth.size and list(last["part_iou"]) == list(pointsegda.CLASSES)
    assert (out / "parts.png").stat().st_size > 10_000 and (out / "confusion.png").stat().st_size > 10_000
    text = tables.side_by_side(tables.flat([result]))
    assert f"{100 * miou:.1f}" in text and "mean IoU" in text and "seg_F_M dgcnn-seg defrec low 0.7" in text
    flags = result["stage2"]["flags"]
    assert flags["gcn_iters"] == 0 and flags["backbone"] == "dgcnn-seg"


@pytest.mark.parametrize("task", ["seg_F_M", "seg_F_F"])
def test_the_stages_ask_for_no_target_label(task, bodies, tmp_path, monkeypatch):
    """Labels are asked of the source alone, also where the two domains are one: the oracle."""
    asked, load = [], data.load_domain
    monkeypatch.setattr(data, "load_domain", lambda r, k, labels=True: asked.append((k, labels)) or load(r, k, labels))
    both_stages(bodies, tmp_path / "a", task=task)
    assert asked == (1 if task == "seg_F_F" else 2) * [("seg_F", True), (f"seg_{task[-1]}", False)]


def test_the_oracle_learns_on_the_target(bodies, tmp_path):
    """Its steps follow the target's size, and it trains on the target's labels."""
    few = tmp_path / "few"
    shutil.copytree(bodies, few)
    (few / "PointSegDA/mit/train/0.npy").unlink()
    (few / "PointSegDA/mit/train/1.npy").unlink()
    assert settled(few, batch_size=4).steps == 200 * (2 // 2)  # an epoch is the smaller domain's
    assert settled(few, batch_size=4, task="seg_M_M").steps == 200 * (2 // 2)
    assert settled(few, batch_size=4, task="seg_F_F").steps == 200 * (4 // 2)
    out = tmp_path / "run"
    argv = "--task", "seg_M_M", "--data", few, "--ssl", "mlsp", "--out", out, *TINY
    command(stage1_ssl.main, *argv)
    result = evaluation.evaluate(out)
    assert "ORACLE" in tables.side_by_side(tables.flat([result])) and set(result["data"]["counts"]) == {"seg_M"}


def test_stage_2_stays_with_the_bodies_of_stage_1(bodies, tmp_path):
    """Another frame or other clouds than the checkpoint's: one line, and the folder can still be finished."""
    out = both_stages(bodies, tmp_path / "a")
    (out / "stage2.pt").unlink()
    other = make_pointsegda(tmp_path / "other", per_split=4, domains=("faust", "mit"), seed=1)
    for flags in (["--up", "y"], ["--unit-sphere"], ["--data", other]):
        fresh = tmp_path / f"fresh{flags[0]}"
        call = lambda: command(stage2_pseudo.main, "--init", out / "stage1.pt", "--out", fresh, *flags)
        assert flags[0] in refusal(call) and not (fresh / "config.json").exists()


def test_gradient_surgery_of_parts(bodies, tmp_path):
    """CGDM on labels of points: it runs, and is not the plain sum."""
    losses = []
    for mtl in ("sum", "cgdm"):
        out = tmp_path / mtl
        argv = "--task", "seg_F_M", "--data", bodies, "--ssl", "defrec", "--mtl", mtl, "--out", out, *TINY
        command(stage1_ssl.main, *argv)
        losses.append([json.loads(line)["cls"] for line in (out / "log.jsonl").read_text().splitlines()])
    assert losses[0][0] == losses[1][0] and losses[0] != losses[1]


def test_within_a_domain_without_adaptation(bodies, tmp_path):
    """seg_F_F trains on F's train labels and is scored on F's test."""
    out = both_stages(bodies, tmp_path / "a", task="seg_F_F", ssl="none")
    result = evaluation.evaluate(out)
    assert 0 <= result["stage1"]["last"]["miou"] <= 1 and result["n_test"] == 4


def test_bodies_with_y_up_are_turned(bodies, tmp_path):
    """--up y: (x, y, z) -> (x, -z, y) in all splits, in training and in eval.py; another fingerprint."""
    a = data.load_domain(bodies, "seg_F")
    b = a.framed("y")
    assert a.framed("z") is a and torch.equal(b.train_labels, a.train_labels)
    for split in ("train", "val", "test"):
        x, y, z = getattr(a, split).unbind(-1)
        assert torch.equal(getattr(b, split), torch.stack([x, -z, y], -1))
    out = both_stages(bodies, tmp_path / "a", "--up", "y", ssl="none")
    result = evaluation.evaluate(out)
    assert result["data"]["fingerprint"] == data.fingerprint(b, data.load_domain(bodies, "seg_M").framed("y"))


def test_a_unit_sphere_makes_scale_and_place_alike(bodies, tmp_path):
    """--unit-sphere: the target twice as large and elsewhere is the same run; without the flag it is another."""
    far = tmp_path / "far"
    shutil.copytree(bodies, far)
    for path in far.glob("PointSegDA/mit/*/*.npy"):
        np.save(path, np.load(path, allow_pickle=False) * np.float32([2, 2, 2, 1]) + np.float32([8, 4, 2, 0]))
    moved = data.load_domain(far, "seg_M").framed(unit_sphere=True)
    for split in ("train", "val", "test"):
        x = getattr(moved, split)
        assert x.mean(1).abs().max() < 1e-5 and x.norm(dim=-1).amax(1).allclose(torch.ones(len(x)))
        y = getattr(data.load_domain(bodies, "seg_M").framed(unit_sphere=True), split)
        assert torch.allclose(x, y, atol=1e-5)
    losses = {}
    for folder, flags in ((bodies, ["--unit-sphere"]), (far, ["--unit-sphere"]), (far, [])):
        out = both_stages(folder, tmp_path / f"{folder.name}{len(flags)}", *flags)
        config = json.loads((out / "config.json").read_text())
        assert config["stage1"]["args"]["unit_sphere"] == config["stage2"]["args"]["unit_sphere"] == bool(flags)
        assert config["stage2"]["data"] == config["stage1"]["data"]
        result = evaluation.evaluate(out)
        assert ("(unit sphere)" in tables.side_by_side(tables.flat([result]))) == bool(flags)
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses[folder, len(flags)] = [row["ssl_tgt"] for row in rows[:2]]
    assert losses[bodies, 1] == pytest.approx(losses[far, 1], rel=1e-3)
    assert losses[far, 0] != pytest.approx(losses[far, 1], rel=1e-1)


def test_mlsp_and_measuring_in_eval_mode(bodies, tmp_path):
    """The other base, and the other mode: finite losses, and as many samples kept as asked."""
    out = both_stages(bodies, tmp_path / "a", "--measure", "eval", ssl="mlsp")
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(np.isfinite(row["loss"]) and row["kept"] == 3 for row in rows)


def test_a_killed_segmentation_run_goes_on_to_the_same_bits(bodies, tmp_path, monkeypatch):
    """Each stage dies once at its step 2; the same command goes on."""
    base, log = weights(both_stages(bodies, tmp_path / "a")), Run.log
    died = set()

    def die_once(self, step, row):
        log(self, step, row)
        if step == 2 and self.stage not in died:
            died.add(self.stage)
            raise MemoryError

    monkeypatch.setattr(Run, "log", die_once)
    monkeypatch.setattr(engine_run, "SAVES", 4)  # every step
    for _ in range(2):
        with pytest.raises(MemoryError):
            both_stages(bodies, tmp_path / "b")
    other = weights(both_stages(bodies, tmp_path / "b"))
    assert all(torch.equal(base[name], other[name]) for name in base)


# ---------------------------------------------------------------- flags and errors
def settled(bodies, **more):
    here = {"task": "seg_F_M", "data": str(bodies), "ssl": "defrec", **more}
    return stage1_ssl.settle(SimpleNamespace(**stage1_ssl.SETTINGS | here))


def test_defaults_of_segmentation(bodies):
    """2048 points, 16 + 16 clouds, 200 epochs of the smaller domain, the linear DGCNN whatever --backbone says."""
    args = settled(bodies, backbone="pointnet")
    assert (args.points, args.batch_size, args.steps, args.backbone) == (2048, 32, 200, "dgcnn-seg")
    assert settled(bodies, batch_size=4).steps == 200 * (4 // 2)
    assert settled("shapes", batch_size=8).steps == 200 * (40 // 4)


@pytest.mark.parametrize("more", [{"ssl": "selfdist"}, {"ssl": "gast"}, {"ssl": "selfdist+pcm"}])
def test_what_segmentation_has_not_is_refused(bodies, more):
    """One line that names the flag and what there is."""
    assert "defrec, mlsp, none" in refusal(lambda: settled(bodies, **more))


def test_a_domain_without_val_is_one_line(tmp_path):
    """Exit code 2, the folder's name, no traceback."""
    make_pointsegda(tmp_path, per_split=2, domains=("faust", "mit"))
    shutil.rmtree(tmp_path / "PointSegDA/mit/val")
    argv = ["--task", "seg_F_M", "--data", tmp_path, "--ssl", "defrec", "--out", tmp_path / "run", *TINY]
    done = subprocess.run([sys.executable, ROOT / "stage1_ssl.py", *argv], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]  # behind the bars of reading
    assert done.returncode == 2 and last.startswith("error: ") and "mit/val" in last and "Traceback" not in done.stderr
