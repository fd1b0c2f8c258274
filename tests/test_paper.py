"""The instrument itself: gradients with frozen statistics that leave a run alone, statistics with a known answer, and
every figure command on a few of the built-in shapes."""

import csv
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import image
from scipy import stats

import data
import models
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from datasets import pointda
from engine import base, run
from engine.metrics import cosine
from engine.run import Run, load_checkpoint
from eval import evaluate
from fixtures import command, refusal
from paper import __main__ as paper
from paper import COMMANDS, conflict, evidence, figures, finished
from saliency import SCORES

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


# ---------------------------------------------------------------- scores of a map
def score(name, S):
    """One of SCORES of maps (B, N) as numpy (B,)."""
    return SCORES[name](S, None, None).double().numpy()


def test_map_scores_against_their_definitions():
    """kurtosis and entropy as scipy has them, Gini as the mean difference of pairs, the top 5 % counted."""
    S = torch.randn(6, 101, generator=torch.Generator().manual_seed(0)) ** 3
    a = S.abs().double().numpy()
    assert np.allclose(score("kurtosis", S), 3 + stats.kurtosis(S.double().numpy(), axis=1), rtol=1e-4)
    assert np.allclose(score("entropy", S), -stats.entropy(a, axis=1), rtol=1e-6)
    pairs = np.abs(a[:, :, None] - a[:, None]).mean((1, 2)) / (2 * a.mean(1))
    assert np.allclose(score("gini", S), pairs, rtol=1e-6)
    assert np.allclose(score("top5", S), np.sort(a, 1)[:, -6:].sum(1) / a.sum(1), rtol=1e-6)  # ceil(5.05) = 6


def test_map_scores_of_flat_and_one_point_maps_and_of_any_scale():
    """Hand values; a positive factor, however small, changes nothing."""
    flat, one = torch.zeros(1, 20), torch.eye(20)[:1]
    found = [score(name, flat).item() for name in ("skewness", "kurtosis", "entropy", "gini", "top5")]
    assert found == pytest.approx([0, 0, -np.log(20), 0, 0.05])
    assert [score(name, one).item() for name in ("entropy", "gini", "top5")] == pytest.approx([0, 0.95, 1])
    S = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    for name in conflict.OF_MAP:
        assert np.allclose(score(name, S), score(name, S * 1e-30), rtol=1e-4)


# ---------------------------------------------------------------- statistics
def brute_auc(score, positive):
    """Share of pairs in which the positive has the higher score, ties half."""
    wins = [(p > q) + (p == q) / 2 for p in score[positive] for q in score[~positive]]
    return np.mean(wins)


def test_auc_against_brute_force():
    """With ties; undefined without one of the classes."""
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.3
    assert evidence.auc(evidence.ranks(score), positive) == pytest.approx(brute_auc(score, positive))
    assert np.isnan(evidence.auc(evidence.ranks(score), np.ones(60, bool)))


def planted(effect, seed, n=500, P=150):
    """Own gradients of n samples as a real task would give them, against G along a known direction: score, cosines.

    The task's loss is W . x_i, so that its gradient over the encoder's weight W is x_i itself.
    """
    g = torch.Generator().manual_seed(seed)
    direction = torch.randn(P // 3, 3, generator=g)
    score = torch.randn(n, generator=g)
    x = torch.randn(n, P // 3, 3, generator=g) - effect * score[:, None, None] * direction / direction.norm()
    encoder = torch.nn.Linear(3, P // 3, bias=False)
    model = SimpleNamespace(encoder=encoder, modules=encoder.modules, eval=encoder.eval)

    class Toy(torch.nn.Module):
        def forward(self, model, view, features, generator):
            return (model.encoder.weight * view.x).sum((1, 2))

    cosines = [cos for (cos,) in conflict.own_cosines(model, Toy(), ssl_tasks.View(x), (direction.flatten(),), "toy")]
    assert cosines[3] == pytest.approx(torch.cosine_similarity(x[3].flatten(), direction.flatten(), 0).item(), abs=1e-5)
    return score.numpy()[None], np.array(cosines)[None]


ONE = np.zeros(500, int)  # all of one class


def test_a_small_planted_effect_is_found_and_none_is_not():
    """r = .3 between score and cosine: both intervals exclude chance. None: both hold it. Reversed: below."""
    for effect, side in ((0.3, 1), (-0.3, -1)):
        found = evidence.prediction(*planted(effect, 0), ONE, seed=0)[0]
        ends = [side * (v - c) for name, c in (("auc", 0.5), ("rho", 0)) for v in found[f"{name}_interval"]]
        assert min(ends) > 0 and 0.55 < max(found["auc"], 1 - found["auc"]) < 0.7
    none = evidence.prediction(*planted(0.0, 0), ONE, seed=0)[0]
    assert (
        none["auc_interval"][0] < 0.5 < none["auc_interval"][1]
        and none["rho_interval"][0] < 0 < none["rho_interval"][1]
    )


def test_the_interval_holds_chance_about_as_often_as_it_says():
    """Without an effect, 95 % of intervals hold .5 (here of 100 draws, n = 500)."""
    rng = np.random.default_rng(0)
    draws = [evidence.prediction(*rng.normal(size=(2, 1, 500)), ONE, seed=s)[0]["auc_interval"] for s in range(100)]
    assert 90 <= sum(low <= 0.5 <= high for low, high in draws) <= 99


def test_moments_without_a_conflict_have_no_auc():
    """nan at that moment, the mean over the others; a sample without a cosine is left out."""
    rng = np.random.default_rng(1)
    score, cosine = rng.normal(size=(2, 3, 60))
    cosine[1] = np.abs(cosine[1])
    cosine[0, 7] = np.nan
    one, two, three, mean = evidence.prediction(score, cosine, np.arange(60) % 3, 0)
    keep = np.arange(60) != 7
    assert one["auc"] == pytest.approx(brute_auc(score[0, keep], cosine[0, keep] < 0))
    assert np.isnan(two["auc"]) and np.isnan(two["auc_interval"]).all() and np.isfinite(two["rho"])
    assert mean["auc"] == pytest.approx((one["auc"] + three["auc"]) / 2)
    assert all(np.isnan(f["auc"]) for f in evidence.prediction(score, np.abs(score), np.arange(60) % 3, 0))


def test_auc_within_classes_is_free_of_their_composition():
    """One class conflicts and has high scores, within a class the score is noise: pooled .9, within .5; by pairs."""
    rng = np.random.default_rng(0)
    classes = np.arange(400) % 2
    score = rng.normal(size=(1, 400)) + 3 * classes
    cosine = np.where(rng.random((1, 400)) < 0.1 + 0.8 * classes, -1.0, 1.0)
    (found, _) = evidence.prediction(score, cosine, classes, 0)
    wins = [
        (p > q) + (p == q) / 2
        for c in (0, 1)
        for p in score[0, (classes == c) & (cosine[0] < 0)]
        for q in score[0, (classes == c) & (cosine[0] >= 0)]
    ]
    assert found["within"] == pytest.approx(np.mean(wins)) and found["auc"] > 0.8
    low, high = found["within_interval"]
    assert low < 0.5 < high and found["auc_interval"][0] > 0.8


def test_no_auc_where_the_halves_of_g_oracle_are_apart():
    """Below a cosine of .5 nothing is computed and the table says so; the mean is over the other moments."""
    rng, names = np.random.default_rng(0), (*conflict.PREDICTORS, "cos", "cos_half_0", "cos_half_1", "cos_again")
    rows = [
        {"step": t, "class": k % 2} | dict(zip(names, rng.normal(size=len(names)))) for t in (1, 2) for k in range(40)
    ]
    table = conflict.predict_conflict(rows, {1: 0.49, 2: 0.5}, 0)
    one, two, mean = (row for row in table if row["score"] == "skewness_eval")
    assert (
        np.isnan([one["auc"], one["within"], one["rho"]]).all()
        and np.isfinite(two["auc"])
        and mean["auc"] == two["auc"]
    )
    shares = conflict.conflict_shares(rows, {1: 0.49, 2: 0.5})
    cos = np.array([[row[name] for name in names[-4:]] for row in rows[:40]]) < 0
    assert shares[0]["same_sign_halves"] == np.mean(cos[:, 1] == cos[:, 2])
    assert shares[0]["same_sign_draws"] == np.mean(cos[:, 0] == cos[:, 3])
    text = figures.persample_table(table, shares, "title", {"device": "CPU", "commit": "abc"})
    assert text.count("G_oracle unknown") == 3 * len(conflict.PREDICTORS) and "within classes" in text


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


def test_the_gap_of_two_noise_models_has_an_interval():
    """x causes y = x^3 + noise: below zero with its interval, and the reverse the other way round."""
    x, y = cubic(0)
    gap, (low, high) = evidence.noise_gap(x, y, 0)
    assert low < gap < high < 0 and evidence.noise_gap(y, x, 0)[0] == pytest.approx(-gap)


def test_block_bootstrap_draws_whole_stretches():
    """Blocks of neighbours, cut to n, the same for a seed; length 1 is the ordinary bootstrap."""
    i = evidence.resamples(50, 8, 3)
    assert i.shape == (evidence.RESAMPLES, 50)
    blocks = i[:, :48].reshape(len(i), 6, 8)
    assert (np.diff(blocks) == 1).all() and i.min() == 0 and i.max() == 49
    assert (i == evidence.resamples(50, 8, 3)).all() and (i != evidence.resamples(50, 8, 4)).any()


def drift(seed, n=240):
    """Two series that both drift with time and have nothing to do with each other."""
    noise = np.random.default_rng(seed).normal(size=(2, n))
    return noise[0] + np.linspace(0, 3, n), noise[1] + np.linspace(0, 3, n)


def test_correlations_of_steps():
    """Against scipy; drift alone correlates, its differences do not; blocks widen the interval of slow series."""
    x, y = drift(0)
    found = evidence.correlations(x, y, 0)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y)[0])
    assert found["pearson_of_differences"] == pytest.approx(stats.pearsonr(np.diff(x), np.diff(y))[0])
    assert found["pearson_interval"][0] > 0.2
    assert found["spearman_of_differences_interval"][0] < 0 < found["spearman_of_differences_interval"][1]
    slow = np.random.default_rng(5).normal(size=(2, 240)).cumsum(1)
    i = evidence.resamples(240, 1, 0)
    low, high = evidence.interval(evidence.pearson(slow[0][i], slow[1][i]))
    wide = evidence.correlations(*slow, 0)["pearson_interval"]
    assert wide[1] - wide[0] > 1.5 * (high - low)
    few = evidence.correlations(x[:12], y[:12], 0)
    assert np.isfinite(few["pearson"]) and np.isnan(few["pearson_interval"]).all()
    with pytest.raises(base.UserError, match="too few"):
        evidence.correlations(x[:4], y[:4], 0)


# ---------------------------------------------------------------- additive-noise model
def cubic(seed, n=300):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, n)
    return x, x**3 + rng.uniform(-1, 1, n)


@pytest.mark.parametrize("seed", range(3))
def test_additive_noise_finds_the_cause(seed):
    """y = x^3 + noise fits from x to y and is refused from y to x, whichever way they are handed in."""
    x, y = cubic(seed)
    there, back = evidence.additive_noise(x, y), evidence.additive_noise(y, x)
    assert there["p"] > 0.05 and back["p"] < 1e-3 and back["hsic"] > 5 * there["hsic"]
    assert np.corrcoef(there["fit"], stats.zscore(x**3))[0, 1] > 0.99


def test_hsic_against_a_permutation_test():
    """The gamma approximation's p against 400 permutations, for a weak dependence; p is uniform without one."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=80)
    y = 0.25 * x + rng.normal(size=80)
    score, p = evidence.hsic(x, y)
    null = np.array([evidence.hsic(x, rng.permutation(y))[0] for _ in range(400)])
    assert p == pytest.approx((null >= score).mean(), abs=0.05) and 0 < score < 1
    ps = [evidence.hsic(*rng.normal(size=(2, 60)))[1] for _ in range(200)]
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.1 and evidence.hsic(x, x)[0] == pytest.approx(1)


def test_additive_noise_with_ties_and_with_nothing_to_fit():
    """Equal causes become one point; constant or few values are refused in one line."""
    x, y = cubic(0)
    assert evidence.additive_noise(np.round(x, 1), y)["hsic"] < 0.05
    for a, b in ((np.ones(50), y[:50]), (x[:4], y[:4]), (np.sign(x), y)):
        with pytest.raises(base.UserError, match="additive-noise"):
            evidence.additive_noise(a, b)


# ---------------------------------------------------------------- the commands
@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    """Three finished runs of stage 1, evaluated: all, low, and low with another beta."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        serve(shapes, patch)
        for name, more in (("all", ["--select", "all"]), ("low", []), ("b", ["--beta", 0.3])):
            command(stage1_ssl.main, *TINY, "--ssl", "defrec", "--eval-every", 4, "--out", folder / name, *more)
            evaluate(folder / name)
    return folder


def drawn(out):
    """The picture opens and is not blank; csv has rows, json where they are from."""
    pixels = image.imread(f"{out}.png")
    assert pixels.ndim == 3 and pixels[..., :3].std() > 0.01
    with open(f"{out}.csv") as file:
        rows = list(csv.DictReader(file))
    record = json.loads(out.with_suffix(".json").read_text())
    assert rows and record["statistics"] and record["n"] > 0 and record["figure"] in out.name
    assert {"commit", "device", "seed", "data", "args"} <= record.keys() and "built-in shapes" in record["data"]
    return rows, record


@pytest.mark.parametrize(
    "what, more",
    [
        ("fig1", ["--ssl", "selfdist"]),
        ("persample", ["--ssl", "defrec", "--samples", 10, "--oracle-clouds", 16]),
        ("fig4", ["--ssl", "defrec", "--betas", 0.3, 1, "--every", 3]),
        ("fig6", ["--ssl", "selfdist"]),
        ("lesson", ["--ssl", "defrec", "--samples", 10, "--oracle-clouds", 16, "--eval-every", 4]),
    ],
)
def test_figures_that_train(what, more, tmp_path, capsys):
    """Each ends with a picture, numbers, and one line of statistics."""
    command(paper.main, what, *TINY, *more, "--out", tmp_path / what)
    rows, record = drawn(tmp_path / what)
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("wrote ") and not said[-2].startswith("built-in")  # the statistics, the files
    if what == "persample":
        steps = {row["step"] for row in rows}
        assert len(rows) == 10 * len(steps) and set(conflict.PREDICTORS) < rows[0].keys()
        assert [m["n"] for m in record["statistics"]["moments"]] == [10] * len(steps)
        table = [line for line in (tmp_path / "persample.md").read_text().splitlines() if line.startswith("| ")]
        bars = {line.count("|") for line in table[-len(conflict.PREDICTORS) :]}
        assert bars == {len(steps) + 3}  # score, moments, mean
    if what == "fig4":
        assert set(record["statistics"]["mean_over_training"]) == {"0.3", "1"}


@pytest.mark.parametrize("what", ["fig3", "fig5", "fig7", "fig8", "anm"])
def test_figures_of_finished_runs(what, runs, tmp_path, capsys):
    """The same from what runs have left."""
    numbers = tmp_path / "numbers.csv"
    x, y = cubic(0, 60)
    lines = "".join(f"{i},{a},{b},{a % 1}\n" for i, (a, b) in enumerate(zip(x, -y)))
    numbers.write_text(f"step,skewness_train,cos,cos_cls\n{lines}")
    (tmp_path / "numbers.json").write_text('{"data": "built-in shapes", "seed": 0, "args": {"task": "M_SC"}}')
    ckpt = runs / "low" / "stage1.pt"
    more = {
        "fig3": [runs / "all", runs / "low"],
        "fig5": ["--ckpt", ckpt],
        "fig7": ["--init", ckpt, "--steps", 2, "--gcn-iters", 1, "--samples", 9],
        "fig8": [runs / "low", runs / "b"],
        "anm": ["--csv", numbers],
    }[what]
    command(paper.main, what, *more, "--out", tmp_path / what)
    _, record = drawn(tmp_path / what)
    found = record["statistics"]
    if what == "anm":
        there, back = found["G_oracle"]["skewness -> conflict"], found["G_oracle"]["conflict -> skewness"]
        assert there["p"] > back["p"] and list(found["paper"].values()) == [0.16, 0.25]
        low, high = found["G_oracle"]["gap_interval"]
        assert low < found["G_oracle"]["gap"] < high < 0 and found["G_cls"]["gap"] > found["G_oracle"]["gap"]
    if what == "fig7":
        assert found["paper"] == 0.1 and 0 <= found["share_wrong"] <= 1
    if what == "fig8":
        assert set(found["beta"]) == {"0.3", "0.7"} and found["curves"]["0.3"]["step"] == [4, 8]
    assert capsys.readouterr().out.splitlines()[-1].startswith("wrote ")


def test_measure_compares_both_modes(tmp_path, capsys):
    """Four pairs of scores at three moments of a run, in .md and .csv; it needs no self-supervised task."""
    command(paper.main, "measure", *TINY, "--ssl", "none", "--out", tmp_path / "m")
    with open(tmp_path / "m.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows[::4]] == ["0", "4", "7"]
    assert tuple(row["pair"] for row in rows[:4]) == figures.PAIRS
    assert all(-1 <= float(row["spearman"]) <= 1 and 0 <= float(row["overlap"]) <= 1 for row in rows)
    assert (tmp_path / "m.md").read_text() in capsys.readouterr().out


def test_agreement_of_scores():
    """A score agrees with itself wholly, with its negative not at all."""
    a = torch.arange(10.0)
    assert figures.agreement(a, a, 0.7) == (pytest.approx(1), 1.0)
    assert figures.agreement(a, -a, 0.3) == (pytest.approx(-1), 0.0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_place_and_says_what_it_is(name, capsys, tmp_path, monkeypatch):
    """--help of each; without --out it writes to a file named after the command."""
    monkeypatch.chdir(tmp_path)
    function, flags, folder = COMMANDS[name]
    with pytest.raises(SystemExit) as stop:
        command(paper.main, name, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and function.__doc__.splitlines()[0] in text and "path to write to" in text

    def where(args):
        """Where it would write."""
        return args.out

    monkeypatch.setitem(COMMANDS, name, (where, (), folder))
    command(paper.main, name)
    assert capsys.readouterr().out.strip() == f"{folder}/{name}" and (tmp_path / folder).is_dir()


def test_fig11_with_a_stand_in_for_tsne(runs, tmp_path, monkeypatch):
    """Features of both checkpoints reach t-SNE; without scikit-learn one line says what to install."""

    class First:
        def __init__(self, **flags):
            assert 0 < flags["perplexity"] <= 30

        def fit_transform(self, f):
            return f[:, :2]

    monkeypatch.setattr(finished, "tsne", lambda: First)
    ckpts = [runs / name / "stage1.pt" for name in ("all", "low")]
    command(paper.main, "fig11", "--ckpt", *ckpts, "--out", tmp_path / "fig11")
    rows, record = drawn(tmp_path / "fig11")
    assert len(rows) == 2 * record["n"] and len(record["statistics"]["neighbour_agreement"]) == 2


def test_neighbour_agreement_counts_neighbours():
    """Four of five have their class nearest."""
    f = torch.tensor([[0.0], [0.1], [5.0], [5.1], [5.3]])
    assert finished.neighbour_agreement(f, torch.tensor([0, 0, 1, 1, 2])) == pytest.approx(0.8)


# ---------------------------------------------------------------- errors of the user's
@pytest.mark.parametrize(
    "argv, text",
    [
        (["fig5", "--ckpt", "none/stage1.pt"], "no such checkpoint"),
        (["fig7", "--init", "none/stage1.pt"], "no such checkpoint"),
        (["fig11", "--ckpt", "a.pt", "b.pt"], "requirements-extra.txt"),
        (["fig3", "none"], "result.json"),
        (["anm", "--csv", "none.csv"], "make fig1"),
        (["anm", "--csv", __file__], "column"),
        (["fig1", *TINY, "--ssl", "none"], "--ssl none"),
        (["persample", "--task", "seg_F_A", "--data", "shapes", "--ssl", "defrec"], "seg_F_A"),
        (["fig4", *TINY, "--betas", "2"], "--betas"),
        (["fig1", *TINY, "--task", "S_S"], "S_S"),
        (["fig6", *TINY, "--ssl", "defrec+pcm"], "defrec+pcm"),
        (["lesson", *TINY, "--task", "seg_F_A"], "seg_F_A"),
        (["fig2"], "fig2"),
    ],
)
def test_errors_are_one_line_with_exit_2(argv, text, tmp_path, monkeypatch, capsys):
    """As a user sees them, in a folder of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)  # as where it is not installed
    with pytest.raises(SystemExit) as stop:
        base.cli(lambda: command(paper.main, *argv))
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1 and text in message


def test_fig7_takes_only_a_run_with_a_second_stage(runs, tmp_path):
    """Not one that segments, is not finished, or is an oracle."""
    start = torch.load(runs / "low" / "stage1.pt", weights_only=True)
    for task, missing in (("seg_F_A", "none"), ("M_SC", "last_student"), ("S_S", "none")):
        args = start["config"]["args"] | {"task": task}
        changed = {key: value for key, value in start.items() if key != missing}
        torch.save(changed | {"config": start["config"] | {"args": args}}, tmp_path / "stage1.pt")
        refusal(lambda: command(paper.main, "fig7", "--init", tmp_path / "stage1.pt", "--out", tmp_path / "fig7"))


def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path):
    """Of other data, or differing in more than alpha and beta."""
    other = json.loads((runs / "low" / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(other | {"task": "M_S"}))
    with pytest.raises(base.UserError, match="direction"):
        finished.results_of([runs / "low", tmp_path])
    flags = other["stage1"]["flags"]
    for more in ({"points": 65}, {"select": "random"}, {"measure": "eval"}, {"batch_size": 64}, {"score": "gini"}):
        (tmp_path / "result.json").write_text(json.dumps(other | {"stage1": other["stage1"] | {"flags": flags | more}}))
        with pytest.raises(base.UserError, match="more than"):
            finished.fig8(SimpleNamespace(runs=[runs / "low", tmp_path], beta=0.7))


@pytest.mark.parametrize("where, value", [("args", "M_S"), ("data", "0" * 64)])
def test_fig11_takes_one_target_and_one_data_set(runs, tmp_path, monkeypatch, where, value):
    """Two maps coloured with the labels of one target: another target or other clouds are refused."""
    monkeypatch.setattr(finished, "tsne", lambda: None)
    other = torch.load(runs / "low" / "stage1.pt", weights_only=True)
    other["config"][where] |= {"task": value} if where == "args" else {"fingerprint": value}
    torch.save(other, tmp_path / "other.pt")
    argv = "fig11", "--ckpt", runs / "low" / "stage1.pt", tmp_path / "other.pt", "--out", tmp_path / "fig11"
    assert "one target" in refusal(lambda: command(paper.main, *argv))
