"""The instrument itself: gradients with frozen statistics that leave a run alone, and samples looked at one by one."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import models
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from datasets import pointda
from engine import run
from engine.metrics import cosine
from engine.run import Run, load_checkpoint
from fixtures import command
from paper import __main__ as paper
from paper import conflict, evidence, figures

TINY = "--task M_SC --data shapes --backbone pointnet --points 64 --batch-size 8 --steps 8 --device cpu".split()


@pytest.fixture(scope="module")
def shapes():
    """Some of the built-in shapes, every class in both splits; built once."""
    cut = {}
    for key in pointda.DOMAINS:
        whole, fields = data.load_domain("shapes", key), {}
        for split, n in (("train", 4), ("test", 2)):
            points, y = getattr(whole, split), getattr(whole, f"{split}_labels")
            i = torch.cat([(y == c).nonzero()[:n, 0] for c in range(len(whole.classes))])
            fields |= {split: points[i, :256].clone(), f"{split}_labels": y[i]}
        cut[key] = replace(whole, **fields)
    return cut


def serve(shapes, patch):
    """These shapes instead of all; one checkpoint a run."""
    hide = lambda domain: replace(domain, train_labels=None, test_labels=None)
    patch.setattr(data, "load_domain", lambda root, key, labels=True: shapes[key] if labels else hide(shapes[key]))
    patch.setattr(run, "SAVES", 1)


@pytest.fixture(autouse=True)
def quick(shapes, monkeypatch):
    """And fewer resamples."""
    serve(shapes, monkeypatch)
    monkeypatch.setattr(evidence, "RESAMPLES", 200)
    monkeypatch.setattr(figures, "BATCHES", 2)


def settings(**more):
    """Flags of a tiny run, settled."""
    flags = {"task": "M_SC", "data": "shapes", "backbone": "pointnet", "points": 64, "batch_size": 8, "steps": 6}
    return stage1_ssl.settle(SimpleNamespace(**stage1_ssl.SETTINGS | flags | {"device": "cpu", "scored": 9} | more))


def moving(ssl, seed=0):
    """A model and a task whose batch norms have seen something, in train mode."""
    torch.manual_seed(seed)
    model = models.build("pointnet", 10)
    task = ssl_tasks.build(ssl, model, 64, data.direction("M_SC"))
    model(torch.randn(8, 64, 3))
    return model, task


def plain_run(folder, args):
    """Stage 1 without anybody looking on; returns its checkpoint."""
    with Run(folder, 1, args) as r:
        stage1_ssl.train(args, r, *stage1_ssl.load(args, r))
    return load_checkpoint(folder / "stage1.pt")


# ---------------------------------------------------------------- gradients
def test_cosine_of_hand_made_gradients():
    """Parallel, opposed, orthogonal, 60 degrees; tiny ones do not underflow; a vanished one has none."""
    a = torch.tensor([3.0, 0.0])
    cos = lambda *b: cosine(a, torch.tensor(b))
    assert [cos(2.0, 0.0), cos(-1.0, 0.0), cos(0.0, 5.0)] == [1, -1, 0]
    assert cos(1.0, 3**0.5) == pytest.approx(0.5) and cosine(a * 1e-30, a * 1e-30) == pytest.approx(1)
    assert np.isnan(cos(0.0, 0.0)) and np.isnan(cos(float("nan"), 0.0))


@pytest.mark.parametrize("ssl", ["selfdist", "defrec", "gast", "mlsp"])
def test_measuring_leaves_everything_as_it_was(ssl, shapes):
    """Weights, buffers, modes, .grad and random numbers; and frozen statistics are the running ones."""
    model, task = moving(ssl)
    args, before = settings(ssl=ssl), [t.clone() for m in (model, task) for t in m.state_dict().values()]
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    live = args, model, task, shapes["M"], shapes["SC"]
    (row,) = conflict.step_conflict(0, *live)
    conflict.directions(0, *live), conflict.group_losses(0, *live)
    figures.compare_modes(model, task, shapes["M"], args)
    conflict.look_at_samples(0, SimpleNamespace(**vars(args), samples=8, oracle_clouds=8), *live[1:])
    after = [t for m in (model, task) for t in m.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert modes == [m.training for m in model.modules()] and all(modes) and task.training
    assert torch.equal(rng, torch.get_rng_state()) and all(p.grad is None for p in model.parameters())
    assert all(np.isfinite(v) for v in row.values()) and -1 <= row["cos"] <= 1


def test_frozen_statistics_are_frozen(shapes):
    """A sample's own gradient does not depend on its batch, and the mean of them is the gradient of the mean."""
    model, task = moving("selfdist")
    view = task.views(shapes["M"].train[:4], shapes["M"].train_labels[:4], True, torch.Generator().manual_seed(0))
    G = torch.randn(sum(p.numel() for p in model.encoder.parameters()), generator=torch.Generator().manual_seed(1))
    cosines = [cos for (cos,) in conflict.own_cosines(model, task, view, (G,))]
    one = ssl_tasks.View(view.x[2:3], view.y[2:3], view.weak[2:3])
    assert conflict.own_cosines(model, task, one, (G,))[0][0] == pytest.approx(cosines[2], abs=1e-5)
    with conflict.frozen(model, task):
        loss = task(model, view, None, None)
        own = torch.stack([conflict.encoder_gradient(v, model) for v in loss])
        whole = conflict.encoder_gradient(loss.mean(), model)
        still = task(model, ssl_tasks.View(view.x[:1], None, view.weak[:1]), None, None)
    assert torch.allclose(own.mean(0), whole, rtol=1e-4, atol=1e-6) and torch.allclose(still, loss[:1], rtol=1e-4)
    assert cosine(own[1], G) == pytest.approx(cosines[1], abs=1e-5)
    model.train()
    assert not torch.allclose(task(model, view, None, None)[:1], still, rtol=1e-3)  # it would show


def test_oracle_gradient_is_that_of_the_mean_loss(shapes):
    """Chunks and halves add up to the gradient of the mean cross-entropy, statistics frozen."""
    model, _ = moving("selfdist")
    x, y = shapes["SC"].train[:7, :64], shapes["SC"].train_labels[:7]
    G, halves = conflict.mean_gradient(model, x, y, batch=2)
    with conflict.frozen(model):
        whole = conflict.encoder_gradient(torch.nn.functional.cross_entropy(model(x), y), model)
    assert cosine(G, whole) == pytest.approx(1, abs=1e-5)
    assert G.norm() == pytest.approx(whole.norm().item(), rel=1e-3)
    assert torch.allclose(sum(halves) / 7, G) and not torch.allclose(*halves)
    with conflict.frozen(model):
        other = conflict.encoder_gradient(torch.nn.functional.cross_entropy(model(x[1::2]), y[1::2]), model)
    assert cosine(halves[1], other) == pytest.approx(1, abs=1e-5)
    with conflict.frozen(model):  # without labels: the entropy
        p = model(x).softmax(-1)
        whole = conflict.encoder_gradient(-(p * p.log()).sum(-1).mean(), model)
    assert torch.allclose(conflict.mean_gradient(model, x, batch=2)[0], whole, atol=1e-5)


@pytest.mark.parametrize("ssl, select", [("selfdist", "low"), ("defrec", "low"), ("defrec", "random")])
def test_a_watched_run_has_the_same_bits_and_the_same_batches(ssl, select, tmp_path, monkeypatch):
    """Observed or not, the weights are equal; what is seen of a step is what the step then does and logs."""
    args, seen, masks, step = settings(ssl=ssl, select=select), [], [], stage1_ssl.step

    def look(t, model, task, src, tgt):
        s, u, _, _ = conflict.batch_of(t, args, task, src, tgt)
        groups = conflict.group_losses(t, args, model, task, src, tgt)
        conflict.step_conflict(t, args, model, task, src, tgt)
        seen.append({name: np.mean([r[key] for r in groups]) for name, key in (("cls", "cls"), ("ssl_src", "ssl"))})
        if select == "low":
            sk = conflict.skewness_of(model, s.x, s.y, args, "train", "dropout 1", t)
            seen[-1]["skew"] = sk.mean().item()
        masks.append(conflict.masks(t, args, model, s, u)[0])
        assert sum(r["group"] == "low" for r in groups) == len(groups) - 1 == 3  # floor(4 * .7 + .5)

    def plain_step(t, *more, **kw):
        row, lam_s = step(t, *more, **kw)
        assert torch.equal(lam_s, masks[t])
        return row, lam_s

    watched = figures.watch(args, look)
    monkeypatch.setattr(stage1_ssl, "step", plain_step)
    plain = plain_run(tmp_path / "plain", args)["last_student"]
    assert all(torch.equal(plain[name], tensor) for name, tensor in watched.model.state_dict().items())
    logged = [json.loads(line) for line in (tmp_path / "plain" / "log.jsonl").read_text().splitlines()]
    for row, mine in zip(logged, seen, strict=True):
        for name in mine:
            assert mine[name] == pytest.approx(row[name], rel=1e-3), (name, row["step"])


def test_true_labels_are_those_of_the_unlabelled_view(shapes):
    """Clouds at the height of their label still tell it after turning and jitter."""
    y = shapes["SC"].train_labels
    tgt = replace(shapes["SC"], train=torch.randn(len(y), 99, 3) * 0.01 + y[:, None, None] * torch.tensor([0, 0, 1.0]))
    _, task = moving("defrec")
    for t in range(3):
        _, u, y_t, _ = conflict.batch_of(t, settings(ssl="defrec"), task, shapes["M"], tgt)
        assert torch.equal(u.x[..., 2].mean(1).round().long(), y_t)


def test_the_stage_2_that_is_watched_has_the_same_bits(tmp_path):
    """The hook of stage 2 changes nothing; true labels as pseudo-labels leave no gap, others do."""
    args = settings(ssl="defrec", select="low", steps=3)
    start = plain_run(tmp_path, args)
    two = SimpleNamespace(**vars(args) | stage2_pseudo.SETTINGS | {"gcn_iters": 2, "samples": 10})
    rows, known = [], data.load_domain("shapes", "SC")
    look = lambda t, model, task, pseudo: rows.extend(conflict.label_gaps(t, two, model, task, pseudo, known))
    for name, observe in (("a", None), ("b", look)):
        with Run(tmp_path / name, 2, two) as r:
            stage2_pseudo.train(two, r, *stage1_ssl.load(two, r), start, observe)
    a, b = (load_checkpoint(tmp_path / name / "stage2.pt")["last_student"] for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a) and len(rows) == 30
    model, task = moving("defrec")
    for label, wrong in ((known.train_labels, 0), ((known.train_labels + 1) % 10, 1)):
        rows = conflict.label_gaps(0, two, model, task, SimpleNamespace(label=label), known)
        assert all((r["wrong"], r["gap_eval"] == 0, r["gap_train"] == 0) == (wrong, not wrong, not wrong) for r in rows)


# ---------------------------------------------------------------- samples and steps that are looked at
def test_no_auc_where_the_halves_of_g_oracle_are_apart():
    """Below a cosine of .5 nothing is computed and the table says so; the mean is over the other moments."""
    rng, names = np.random.default_rng(0), (*conflict.PREDICTORS, "cos", "cos_half_0", "cos_half_1", "cos_again")
    rows = [
        {"step": t, "class": k % 2} | dict(zip(names, rng.normal(size=len(names)))) for t in (1, 2) for k in range(40)
    ]
    known = {"pseudo_right": 0.5, "oracle_pseudo_cos": 0.2, "oracle_entropy_cos": -0.1}
    agree = {step: known | {"oracle_halves_cos": halves} for step, halves in ((1, 0.49), (2, 0.5))}
    table = conflict.predict_conflict(rows, agree, 0)
    one, two, mean = (row for row in table if row["score"] == "skewness_eval")
    assert (
        np.isnan([one["auc"], one["within"], one["rho"]]).all()
        and np.isfinite(two["auc"])
        and mean["auc"] == two["auc"]
    )
    shares = conflict.conflict_shares(rows, agree)
    cos = np.array([[row[name] for name in names[-4:]] for row in rows[:40]]) < 0
    assert shares[0]["same_sign_halves"] == np.mean(cos[:, 1] == cos[:, 2])
    assert shares[0]["same_sign_draws"] == np.mean(cos[:, 0] == cos[:, 3])
    text = figures.persample_table(table, shares, "title", {"device": "CPU", "commit": "abc"})
    assert text.count("G_oracle unknown") == 3 * len(conflict.PREDICTORS) and "within classes" in text


def test_the_last_word_where_g_oracle_is_unknown(tmp_path, monkeypatch, capsys):
    """No moment has an AUC: said in the line, in every cell and above every panel."""
    look, titles = conflict.look_at_samples, []
    known = {"pseudo_right": 0.5, "oracle_pseudo_cos": 0.2, "oracle_entropy_cos": -0.1}
    monkeypatch.setattr(conflict, "look_at_samples", lambda *live: (look(*live)[0], known | {"oracle_halves_cos": 0.3}))
    page = figures.draw.page
    monkeypatch.setattr(figures.draw, "page", lambda *more: titles.append(page(*more)) or titles[-1])
    command(paper.main, "persample", *TINY, "--ssl", "defrec", "--samples", 10, "--out", tmp_path / "p")
    assert capsys.readouterr().out.count("not computed") == 4
    panels = [ax.get_title() for ax in titles[0][1][0]]
    assert len(panels) > 1 and all("G_oracle unknown" in text for text in panels[:-1])


@pytest.mark.parametrize("ssl", ["selfdist", "defrec"])
def test_a_second_draw_of_the_task_is_another_one(ssl, shapes):
    """Self-distillation, too, whose only draws are its views; the first draw stays what it was."""
    model, task = moving(ssl)
    args = SimpleNamespace(**vars(settings(ssl=ssl)), samples=8, oracle_clouds=8)
    rows, known = conflict.look_at_samples(0, args, model, task, shapes["M"], shapes["SC"])
    assert len(rows) == 8 and all(row["cos"] != row["cos_again"] for row in rows)
    assert all(row["minus_cos_cls"] == -row["cos_cls"] for row in rows) and 0 <= known["pseudo_right"] <= 1


def test_signs_that_do_not_exist_do_not_agree():
    """A gradient that vanished has no sign; with none left there is no share."""
    a, b = np.array([1.0, -1.0, np.nan, 1.0]), np.array([1.0, 1.0, 1.0, np.nan])
    assert conflict.same_sign(a, b) == 0.5 and np.isnan(conflict.same_sign(a[2:], b[2:]))


def test_fig_1_scores_the_same_clouds_at_every_step(shapes):
    """Two looks at one model give one mean, whatever the step's batch is; another set gives another."""
    model, task = moving("defrec")
    live = model, task, shapes["M"], shapes["SC"]
    rows = [conflict.step_conflict(t, settings(ssl="defrec", scored=n), *live)[0] for t, n in ((0, 9), (3, 9), (0, 16))]
    assert (
        rows[0]["skewness_eval"] == rows[1]["skewness_eval"] and rows[0]["skewness_train"] == rows[1]["skewness_train"]
    )
    assert rows[0]["cos"] != rows[1]["cos"] and rows[0]["skewness_eval"] != rows[2]["skewness_eval"]
    assert sum(len(view.x) for view in conflict.scored(settings(scored=9), task, shapes["M"])) == 8  # not one alone
