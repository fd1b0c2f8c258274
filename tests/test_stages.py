"""Both stages on a tiny data set: determinism, resuming, no target label, equivalences, and errors of the user's."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import data
import models
import saliency
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from datasets import files
from engine import base, run as engine_run
from engine.run import Run, announce, load_checkpoint
from extras import bench
from fixtures import command, make_pointda
from saliency import SCORES

ROOT = Path(__file__).resolve().parent.parent
TINY = "--backbone pointnet --points 32 --batch-size 8 --steps 12 --eval-every 5 --device cpu".split()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(engine_run, "SAVES", 1)  # checkpoints cost more than steps here


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    make_pointda(folder, per_class=2, n_points=64)
    return folder


def stage1(root, out, *more, task="M_SC"):
    command(stage1_ssl.main, "--task", task, "--data", root, "--out", out, *TINY, *more)
    return out


def stage2(out, *more):
    command(stage2_pseudo.main, "--init", out / "stage1.pt", "--gcn-iters", 3, *more)
    return out


def tensors(path):
    """Every tensor of a checkpoint by name."""
    flat = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}/{key}", inner)
        elif isinstance(value, torch.Tensor):
            flat[name] = value

    walk("", torch.load(path, weights_only=True))
    return flat


def same(a, b, names=("stage1.pt", "stage2.pt")):
    """Whether all tensors of both folders are equal to the bit, and so are their predictions."""
    for name in names:
        x, y = tensors(a / name), tensors(b / name)
        assert x.keys() == y.keys() and len(x) > 50
        if not all(torch.equal(x[k], y[k]) for k in x):
            return False
    for n in range(1, len(names) + 1):
        x, y = np.load(a / f"preds{n}.npz"), np.load(b / f"preds{n}.npz")
        if not all(np.array_equal(x[k], y[k]) for k in ("step", "source", "target")):
            return False
    return True


def rows(out, stage):
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row for row in lines if row["stage"] == stage]


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """Both stages once; the other tests compare with it."""
    folder = tmp_path_factory.mktemp("run") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CACHE", folder.parent / "cache")
        patch.setattr(engine_run, "SAVES", 1)
        return stage2(stage1(root, folder))


# ---------------------------------------------------------------- the same bits
def test_same_seed_same_bits_other_seed_other_bits(root, run, tmp_path):
    """Weights and predictions of both stages are a function of the seed."""
    assert same(run, stage2(stage1(root, tmp_path / "b")))
    assert not same(run, stage2(stage1(root, tmp_path / "c", "--seed", 1)))


@pytest.mark.parametrize("crash_at", [3, 10])
def test_a_killed_run_resumes_to_the_same_bits(root, run, tmp_path, monkeypatch, crash_at):
    """Dying between two checkpoints, in either stage, changes neither weights nor predictions nor the log."""
    out, log = tmp_path / "b", Run.log

    def die(self, step, row):
        log(self, step, row)
        if step == crash_at:
            raise MemoryError

    for stage in (lambda: stage1(root, out), lambda: stage2(out)):
        monkeypatch.setattr(Run, "log", die)
        monkeypatch.setattr(engine_run, "SAVES", 3)  # every 4 steps
        with pytest.raises(MemoryError):
            stage()
        (out / "log.jsonl").write_text((out / "log.jsonl").read_text() + '{"stage": 1, "step": 1')  # half a line
        monkeypatch.setattr(Run, "log", log)
        stage()
    assert same(run, out)
    assert rows(out, 1) == rows(run, 1) and rows(out, 2) == rows(run, 2)


@pytest.mark.parametrize("name", engine_run.SIGNALS)
def test_a_signal_saves_and_the_same_command_goes_on(root, run, tmp_path, monkeypatch, name):
    """Each that asks to stop ends the step, writes last.pt and exits; the run then ends on the same bits.

    Before and after the training it does what it did, and one that was ignored, as under nohup, stays so.
    """
    number, log, seen = getattr(signal, name), Run.log, []
    outer = signal.signal(number, signal.SIG_DFL)  # whatever the suite was started under
    before = {number: signal.getsignal(number), signal.SIGWINCH: signal.SIG_IGN}

    def ask(self, step, row):
        log(self, step, row)
        seen.append(signal.getsignal(signal.SIGWINCH))
        if step == 6:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "log", ask)
    monkeypatch.setattr(engine_run, "SIGNALS", (*engine_run.SIGNALS, "SIGWINCH", "SIG_OF_ANOTHER_SYSTEM"))
    old = signal.signal(signal.SIGWINCH, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as stop:
            stage1(root, tmp_path / "b")
        assert before == {number: signal.getsignal(number) for number in before}
    finally:
        signal.signal(signal.SIGWINCH, old)
        signal.signal(number, outer)
    assert stop.value.code == 128 + number and set(seen) == {signal.SIG_IGN}
    assert torch.load(tmp_path / "b" / "last1.pt", weights_only=True)["step"] == 7
    monkeypatch.setattr(Run, "log", log)
    assert same(run, stage1(root, tmp_path / "b"), ["stage1.pt"])


# ---------------------------------------------------------------- no target label
def test_labels_permuted_inside_the_h5_change_nothing(run, tmp_path):
    """The same with the labels of the file itself, train and test."""
    make_pointda(tmp_path / "set", per_class=2, n_points=64)
    for path in (tmp_path / "set/PointDA_data/scannet").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            y = file["label"][...]
            file["label"][...] = np.random.default_rng(0).permutation(y.reshape(-1)).reshape(y.shape)
            assert (file["label"][...] != y).any()
    assert same(run, stage2(stage1(tmp_path / "set", tmp_path / "b")))


def test_the_stages_ask_for_no_target_label(root, tmp_path, monkeypatch):
    """load_domain is called with labels for the source alone, which only in an oracle direction is the target."""
    asked, load = [], data.load_domain
    monkeypatch.setattr(
        data, "load_domain", lambda r, k, labels=True: asked.append((k, labels)) or load(r, k, labels=labels)
    )
    stage2(stage1(root, tmp_path / "b"))
    assert set(asked) == {("M", True), ("SC", False)}
    asked.clear()
    stage1(root, tmp_path / "o", "--ssl", "none", task="SC_SC")
    assert set(asked) == {("SC", True), ("SC", False)}


# ---------------------------------------------------------------- equivalences
@pytest.mark.parametrize("ssl", ["selfdist", "defrec", "defrec+pcm", "none"])
def test_measuring_changes_no_bit(root, tmp_path, ssl):
    """`--select all` with either measure equals `--select all` without; beta = 1 equals the base."""
    base = stage1(root, tmp_path / "base", "--ssl", ssl, "--select", "all")
    for i, more in enumerate((["all", "--measure", "train"], ["all", "--measure", "eval"], ["low", "--beta", "1"])):
        assert same(base, stage1(root, tmp_path / str(i), "--ssl", ssl, "--select", *more), ["stage1.pt"])
    assert "skew" not in rows(base, 1)[0] and "skew" in rows(tmp_path / "0", 1)[0]
    assert same(stage2(base), stage2(tmp_path / "0"))


def test_selection_changes_the_weights_and_keeps_what_was_asked(root, run, tmp_path):
    """low, high, random and freeze differ from each other; the log has the kept count, floor(4 * .7 + .5) = 3."""
    outs = [run] + [stage1(root, tmp_path / s, "--select", s) for s in ("high", "random", "freeze", "all")]
    assert not any(same(a, b, ["stage1.pt"]) for i, a in enumerate(outs) for b in outs[:i])
    kept = [{row["kept"] for row in rows(out, 1)} for out in outs]
    assert kept == [{3}, {3}, {3}, {2}, {4}]


@pytest.mark.parametrize("score", SCORES)
def test_every_score_trains_and_is_what_is_selected_by(root, run, tmp_path, score):
    """--score NAME keeps three of four by that score, which is not skewness, in both stages; stage 2 inherits it."""
    out = stage2(stage1(root, tmp_path / "b", "--score", score))
    assert {row["kept"] for row in rows(out, 1)} == {3} and len(rows(out, 2)) == 12
    assert json.loads((out / "config.json").read_text())["stage2"]["args"]["score"] == score
    assert same(run, out) == (score == "skewness")


def one_step(t=3, B=32, **flags):
    """A step of a fresh PointNet on random clouds: model, labelled clouds and labels, lam_s, mask of the unlabelled."""
    here = {"task": "M_SC", "backbone": "pointnet", "ssl": "none", "points": 32, "batch_size": 2 * B, "device": "cpu"}
    args = stage1_ssl.settle(SimpleNamespace(**stage1_ssl.SETTINGS | here | flags))
    torch.manual_seed(0)
    model = models.build("pointnet", 10)
    task = ssl_tasks.build(args.ssl, model, args.points, data.direction(args.task))
    x, y, g = torch.randn(2 * B, 32, 3), torch.arange(B) % 10, torch.Generator().manual_seed(1)
    s, u = ssl_tasks.View(x[:B].clone(), y), ssl_tasks.View(x[B:])
    lam_t = stage1_ssl.unlabelled_mask(t, args, u)
    torch.manual_seed(2)  # dropout
    row, lam_s = stage1_ssl.step(t, args, model, task, s, u, g, lam_t=lam_t)
    assert row["kept"] == lam_s.sum()
    return x[:B], y, lam_s, lam_t


def test_the_step_selects_by_the_score_that_is_named():
    """Under each score it keeps those that `measure` and `select` keep, half of them; no two scores keep the same."""
    kept = {}
    for score in SCORES:
        x, y, lam, _ = one_step(score=score, beta=0.5)
        torch.manual_seed(0)
        model = models.build("pointnet", 10)
        torch.manual_seed(2)
        own = base.generator("cpu", 0, "select", 3)
        found = saliency.measure(model, x, y, score=score, generator=own)
        assert torch.equal(lam, saliency.select(found, 0.5)), score
        kept[score] = tuple(lam.tolist())
    assert {sum(lam) for lam in kept.values()} == {16} and len(set(kept.values())) == len(kept) == 7


def test_a_step_under_freeze_masks_half_of_both_domains_anew():
    """Of the labelled and of the unlabelled; each step draws others, and not the same of both."""
    masks = [one_step(t, select="freeze")[2:] for t in range(3)]
    assert all(lam.sum() == 16 for pair in masks for lam in pair)
    assert len({tuple(lam.tolist()) for pair in masks for lam in pair}) == 6


def test_stage2_inherits_and_overrides(root, run, tmp_path):
    """What is not given comes from the checkpoint; ssl, seed and steps may differ; --scratch starts afresh."""
    stage2(run, "--out", tmp_path / "b", "--ssl", "defrec", "--seed", 5, "--steps", 4, "--scratch", "--points", 24)
    args = json.loads((tmp_path / "b" / "config.json").read_text())["stage2"]["args"]
    assert (args["task"], args["backbone"], args["select"], args["beta"]) == ("M_SC", "pointnet", "low", 0.7)
    assert (args["ssl"], args["seed"], args["steps"], args["points"], args["eval_every"]) == ("defrec", 5, 4, 24, 100)


# ---------------------------------------------------------------- pseudo-labels and the GCN
def test_adjacency_is_the_dense_formula():
    """The ten most correlated neighbours above .95 at most, self included; i sends to those it chose; D: in-degree."""
    g = torch.Generator().manual_seed(0)
    f = torch.randn(5, 64, generator=g).repeat_interleave(8, 0) + 0.1 * torch.randn(40, 64, generator=g)
    r = np.corrcoef(f.numpy())
    A = np.zeros((40, 40))
    for i in range(40):
        top = np.argsort(-r[i])[:10]
        A[top[r[i, top] > 0.95], i] = 1
    d = A.sum(1) ** -0.5
    assert A.sum() > 60 and np.allclose(stage2_pseudo.adjacency(f).to_dense(), d[:, None] * A * d, atol=1e-6)


def test_messages_follow_pygs_rule_on_an_asymmetric_graph(monkeypatch):
    """Edge by edge: for a pair (i, j), node j adds x_i / sqrt(d_i d_j), d counting what arrives; not the transpose."""
    monkeypatch.setattr(stage2_pseudo, "NEIGHBOURS", 3)
    g = torch.Generator().manual_seed(1)
    f = torch.randn(1, 64, generator=g) + 0.25 * torch.randn(30, 64, generator=g)
    f[:5] = f[:1] + 0.02 * torch.randn(5, 64, generator=g)  # a hub that others choose and that chooses itself
    r = torch.from_numpy(np.corrcoef(f.numpy()))
    pairs = [(i, int(j)) for i in range(30) for j in r[i].argsort(descending=True)[:3] if r[i, j] > 0.95]
    degree = [sum(to == j for _, to in pairs) for j in range(30)]
    x, out = torch.randn(30, 8, generator=g), torch.zeros(30, 8)
    for i, j in pairs:
        out[j] += x[i] / (degree[i] * degree[j]) ** 0.5
    A = stage2_pseudo.adjacency(f).to_dense()
    assert torch.allclose(A @ x, out, atol=1e-5) and ((A - A.T).norm() / A.norm()) > 0.1


def test_filter_stream_masks_whom_the_scores_masked(root, run, tmp_path, monkeypatch):
    """Off, the unlabelled stream is whole; on, a cloud stays out of L_ssl after its pseudo-label's score was masked."""
    seen, step = [], stage2_pseudo.step

    def spy(t, args, model, task, s, u, g, w_y, shift, lam_t, descend):
        row, lam_s = step(t, args, model, task, s, u, g, w_y, shift, lam_t, descend)
        seen.append((lam_t, lam_s))
        return row, lam_s

    monkeypatch.setattr(stage2_pseudo, "step", spy)
    stage2(run, "--out", tmp_path / "off", "--steps", 20)
    assert all(lam_t is None for lam_t, _ in seen)
    seen.clear()
    watched, out = [], tmp_path / "on"
    views = stage2_pseudo.views
    monkeypatch.setattr(stage2_pseudo, "views", lambda *a: watched.append(views(*a)[-2:]) or views(*a))
    stage2(run, "--out", out, "--steps", 20, "--filter-stream")
    masked = set()
    for (who, i_u), (lam_t, lam_s) in zip(watched, seen):
        assert lam_t.tolist() == [int(i) not in masked for i in i_u]
        for i, kept in zip(who.tolist(), lam_s.tolist()):
            if i >= 0:
                (masked.discard if kept else masked.add)(i)
    assert any(not lam_t.all() for lam_t, _ in seen)


def test_confident_pseudo_labels_grow_class_by_class(root, run, monkeypatch):
    """After step t each class has floor(n_c t / T) confident samples, and who was confident stays so."""
    args = SimpleNamespace(seed=0, gcn_iters=2, steps=20)
    model = models.model_of(load_checkpoint(run / "stage1.pt"))
    clouds = data.load_domain(root, "SC", labels=False).train[:, :32]
    pseudo = stage2_pseudo.PseudoLabels(torch.eye(10)[torch.arange(len(clouds)) % 10])
    assert not pseudo.confident.any() and pseudo.weight(torch.arange(3)).tolist() == pytest.approx([0.2] * 3)
    before = pseudo.confident.clone()
    for done in (5, 10, 20):
        stage2_pseudo.refine(args, model, clouds, pseudo, done)
        assert pseudo.confident[before].all() and pseudo.confident.sum() >= before.sum()
        before = pseudo.confident.clone()
    assert before.all()  # floor(n_c T / T) is everybody


def test_the_union_stream_labels_who_is_who(root, run):
    """Source samples come first, weight 1 and their labels, pseudo-labelled ones with .2; one pass sees all once."""
    src, tgt = data.load_domain(root, "M"), data.load_domain(root, "SC", labels=False)
    task = ssl_tasks.build("defrec", models.build("pointnet", 10), 32, data.direction("M_SC"))
    pseudo = stage2_pseudo.PseudoLabels(torch.eye(10)[torch.full((len(tgt.train),), 7)])
    args = SimpleNamespace(batch_size=8, seed=0, device="cpu")
    n_pseudo = 0
    for t in range((len(src.train) + len(tgt.train)) // 4):
        s, u, _, w, who, i_u = stage2_pseudo.views(t, args, task, src, tgt, pseudo)
        is_pseudo = who >= 0
        assert u.x.shape == (4, 32, 3) and u.y is None and len(i_u) == 4
        assert s.x.shape == (4, 32, 3) and (s.y[is_pseudo] == 7).all()
        assert torch.allclose(w, torch.where(is_pseudo, 0.2, 1.0)) and is_pseudo.sort().values.equal(is_pseudo)
        n_pseudo += int(is_pseudo.sum())
    assert n_pseudo == len(tgt.train)


# ---------------------------------------------------------------- errors of the user's
def error_of(call):
    with pytest.raises(base.UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--beta", "1.5"),
        ("--beta", "nan"),
        ("--alpha", "-1"),
        ("--alpha", "inf"),
        ("--steps", "0"),
        ("--points", "19"),
        ("--batch-size", "7"),
        ("--batch-size", "2"),
        ("--task", "M_X"),
        ("--select", "best"),
        ("--seed", "x"),
        ("--nonsense", "1"),
    ],
)
def test_a_flag_out_of_range_is_named(root, tmp_path, flag, value):
    """One line with the flag; nothing is created."""
    assert flag in error_of(lambda: stage1(root, tmp_path / "b", flag, value))
    assert not (tmp_path / "b").exists()


def test_exit_code_two_one_line_no_traceback(tmp_path):
    """As a user sees it: no data folder, its remedy, exit code 2."""
    done = subprocess.run(
        [sys.executable, "stage1_ssl.py", "--task", "M_S", "--data", tmp_path / "none", "--out", tmp_path / "b"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and "make data" in done.stderr and "none" in done.stderr
    )


def test_other_arguments_in_a_used_folder(root, run):
    """The difference is named; the folder is left as it was."""
    before = (run / "config.json").read_bytes()
    assert "beta = 0.7, not 0.5" in error_of(lambda: stage1(root, run, "--beta", "0.5"))
    assert (run / "config.json").read_bytes() == before


def test_a_finished_run_says_so(root, run, capsys):
    """One line, nothing trained."""
    stage2(stage1(root, run))
    out = capsys.readouterr().out
    assert out.count("nothing to do") == 2 and len(out.splitlines()) == 2


def test_two_processes_in_one_folder(root, tmp_path):
    """flock keeps the second one out."""
    import fcntl

    (tmp_path / "b").mkdir()
    with open(tmp_path / "b" / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another process" in error_of(lambda: stage1(root, tmp_path / "b"))


def test_a_folder_that_cannot_be_written(root, tmp_path):
    """A path through a file."""
    (tmp_path / "file").write_text("")
    assert "--out" in error_of(lambda: stage1(root, tmp_path / "file" / "b"))


def test_a_full_disk_keeps_the_last_checkpoint(root, tmp_path, monkeypatch):
    """Running out of space while saving is one line, and the older last1.pt is whole."""
    monkeypatch.setattr(engine_run, "SAVES", 3)  # every 4 steps
    out = tmp_path / "b"

    def full(path, mode):
        if "last1" in path.name and (out / "last1.pt").exists():
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return open(path, mode)

    monkeypatch.setattr(base, "open", full, raising=False)
    message = error_of(lambda: stage1(root, out))
    assert "No space left" in message and f"goes on from {out / 'last1.pt'}" in message
    assert load_checkpoint(out / "last1.pt")["step"] == 4
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("stage", [1, 2])
def test_the_bench_takes_whole_steps(stage):
    """With and without measuring, with flags as the stages have them now."""
    for measure, kept in (("train", 1), (None, 2)):
        row = bench.step_of(stage, "pointnet", "defrec", measure, 4, "cpu")()
        assert row["kept"] == kept and math.isfinite(row["loss"])


def test_a_run_that_goes_on_elsewhere_names_both_places(tmp_path, monkeypatch):
    """Commit and device of every part of a run that was stopped and resumed."""
    for commit, device in (("a", "CPU"), ("a", "CPU"), ("b", "CPU"), ("b", "GPU"), ("b", "GPU")):
        monkeypatch.setattr(engine_run, "provenance", lambda _, c=commit, d=device: {"commit": c, "device": d})
        with Run(tmp_path, 1, SimpleNamespace(steps=1, device="cpu")) as run:
            run.begin(("a", "b"), name="x", fingerprint="y")
    config = json.loads((tmp_path / "config.json").read_text())["stage1"]
    assert config["commit"] == "a, then b" and config["device"] == "CPU, then GPU"


def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(root, tmp_path, monkeypatch):
    """The step is named; last1.pt holds finite weights."""
    monkeypatch.setattr(engine_run, "SAVES", 3)  # every 4 steps
    step = stage1_ssl.step

    def broken(t, *a, **kw):
        row, lam = step(t, *a, **kw)
        return row | ({"loss": float("nan")} if t == 5 else {}), lam

    monkeypatch.setattr(stage1_ssl, "step", broken)
    message = error_of(lambda: stage1(root, tmp_path / "b"))
    assert "step 5" in message and "last1.pt" in message
    payload = load_checkpoint(tmp_path / "b" / "last1.pt")
    assert payload["step"] == 4 and all(t.isfinite().all() for t in payload["student"].values())


def test_checkpoints_that_do_not_fit(root, run, tmp_path):
    """Another task, another backbone, garbage, a pickle, nothing there, an oracle run."""
    assert "--task" in error_of(lambda: stage2(run, "--out", tmp_path / "b", "--task", "M_S"))
    assert "--backbone" in error_of(lambda: stage2(run, "--out", tmp_path / "b", "--backbone", "dgcnn"))
    torch.save({"model": Path("x")}, tmp_path / "stage1.pt")
    assert "not a checkpoint" in error_of(lambda: stage2(tmp_path, "--out", tmp_path / "b"))
    (tmp_path / "stage1.pt").write_bytes(b"garbage")
    assert "not a checkpoint" in error_of(lambda: stage2(tmp_path, "--out", tmp_path / "b"))
    (tmp_path / "stage1.pt").unlink()
    assert "no such checkpoint" in error_of(lambda: stage2(tmp_path, "--out", tmp_path / "b"))
    stage1(root, tmp_path / "o", "--ssl", "none", task="SC_SC")
    assert "oracle" in error_of(lambda: stage2(tmp_path / "o"))
    assert not (tmp_path / "b").exists()


def test_another_stage1_or_other_data_is_another_run(root, run, tmp_path):
    """Stage 2 in a folder refuses a new stage 1; a changed data set is noticed when a stopped run goes on."""
    import shutil

    shutil.copytree(run, tmp_path / "b")
    shutil.copy(stage1(root, tmp_path / "c", "--seed", 3) / "stage1.pt", tmp_path / "b" / "stage1.pt")
    assert "init_hash" in error_of(lambda: stage2(tmp_path / "b", "--seed", 0))
    (tmp_path / "c" / "stage1.pt").unlink()
    make_pointda(tmp_path / "set", per_class=3, n_points=64)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    config["stage1"]["args"]["data"] = str(tmp_path / "set")
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    assert "fingerprint" in error_of(lambda: stage1(tmp_path / "set", tmp_path / "c", "--seed", 3))


def test_slow_cpu_runs_are_announced():
    """Half an hour and more on a CPU: what it takes and how to shorten it; silent on a GPU or when it is short."""
    text = announce(7200, 40000, "cpu")
    assert "2.0 h" in text and "BACKBONE=pointnet" in text and text.count("\n") == 1
    assert announce(7200, 40000, "cuda") == announce(60, 100, "cpu") == ""


# ---------------------------------------------------------------- the command line
def printed(capsys, *argv):
    command(stage1_ssl.main, *argv, "--print-out", "")
    return capsys.readouterr().out.strip()


def test_a_run_names_its_folder_after_what_differs(capsys, tmp_path, monkeypatch):
    """No two settings share a name, what equals a default is left out, and the run goes where --print-out says."""
    base = "--backbone pointnet --data shapes --device cpu".split()
    plain = printed(capsys, *base)
    assert plain == "runs/M_S-pointnet-selfdist-low-b0.7-s0-shapes"
    assert (
        printed(capsys, *base, "--steps", 10000, "--points", 1024, "--measure", "train", "--eval-every", 500) == plain
    )
    others = ("--steps 9", "--score gini", "--alpha 2", "--measure eval", "--mtl cgdm", "--points 99", "--seed 1",
              "--batch-size 8", "--eval-every 7", "--beta .5", "--ssl defrec", "--ssl defrec+pcm", "--select high",
              "--data elsewhere", "--task S_M", "--backbone dgcnn")  # fmt: skip
    names = [plain] + [printed(capsys, *base, *other.split()) for other in others]
    command(stage1_ssl.main, *base, "--print-out", "--gcn-iters 20")
    names.append(capsys.readouterr().out.strip())
    assert len(set(names)) == len(names) and not any(" " in name for name in names)
    monkeypatch.chdir(tmp_path)
    tiny = "--steps 1 --points 20 --batch-size 4 --ssl none --select all".split()
    folder = printed(capsys, *base, *tiny)
    command(stage1_ssl.main, *base, *tiny)
    assert (tmp_path / folder / "stage1.pt").exists()


def folder_named(more="", **flags):
    args = SimpleNamespace(**stage1_ssl.SETTINGS | {"device": "cpu"} | flags)
    return str(stage1_ssl.folder_of(stage1_ssl.settle(args), more))


def test_no_two_settings_share_a_folder():
    """Every setting but the folder and the device is in the name, alone and together with any other."""
    others = dict(data="x", backbone="pointnet", select="all", beta=0.5, steps=9, seed=1, score="gini", alpha=2.0)
    others |= dict(measure="eval", mtl="cgdm", points=99, batch_size=8, eval_every=7, precision="bf16")
    classes, bodies = others | dict(task="S_M", ssl="gast"), others | dict(task="seg_F_M", ssl="mlsp", up="y")
    bodies = {k: v for k, v in bodies.items() if k not in ("data", "backbone")} | {
        "unit_sphere": True,
        "target_up": "x",
    }
    assert classes.keys() | bodies.keys() | {"out", "device"} == stage1_ssl.SETTINGS.keys()
    for base_flags, flags in (({}, classes), ({"task": "seg_F_A", "data": "shapes", "ssl": "defrec"}, bodies)):
        sets = [dict(chosen) for n in range(3) for chosen in itertools.combinations(flags.items(), n)]
        names = [folder_named(**base_flags | chosen) for chosen in sets]
        assert len(set(names)) == len(names) > 90


@pytest.mark.parametrize(
    "one, other",
    [
        ({"data": "../x"}, {"data": "x"}),
        ({"data": "x/y"}, {"data": "x_y"}),
        ({"data": "x y"}, {"data": "x_y"}),
        ({"alpha": 1e16}, {"alpha": 1e-16}),
        ({"beta": 0.12345678}, {"beta": 0.12345679}),
        ({"more": "--perturb 0.1 -0.05"}, {"more": "--perturb 0.1 0.05"}),
    ],
)
def test_what_a_name_cannot_hold_is_told_apart(one, other):
    """Signs, slashes and spaces, which are not in a name; the same flags of stage 2 have one name, however spaced."""
    assert folder_named(**one) != folder_named(**other) == folder_named(**other)
    assert not set(folder_named(**one)[len("runs/") :]) & set("/ ")
    assert folder_named(" --gcn-iters  20") == folder_named("--gcn-iters 20") and folder_named(" ") == folder_named()


@pytest.mark.parametrize("script", ["stage1_ssl.py", "stage2_pseudo.py"])
def test_help_has_two_groups(script):
    """What a reader needs, and the protocol."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    text = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, env=env).stdout
    method, protocol = text.partition("\nmethod:")[2].split("\nprotocol:")
    reader = ("--task", "--data", "--backbone", "--ssl", "--select", "--beta", "--steps", "--seed", "--out")
    assert all(flag in method for flag in reader) and all(f in protocol for f in ("--score", "--alpha", "--device"))


@pytest.mark.parametrize("module", ["saliency", "stage1_ssl", "stage2_pseudo", "eval", "paper.__main__"])
@pytest.mark.parametrize("own", [None, "active"])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(module, own):
    """OMP_WAIT_POLICY is set before torch is loaded; a setting of one's own wins."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    code = (
        "import builtins, os, sys; real, seen = builtins.__import__, []\n"
        "def spy(name, *a, **kw):\n"
        "    if name == 'torch' and 'torch' not in sys.modules: seen.append(os.environ.get('OMP_WAIT_POLICY'))\n"
        "    return real(name, *a, **kw)\n"
        f"builtins.__import__ = spy; import {module}; print(seen)"
    )
    argv = [sys.executable, "-c", code]
    out = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, env=env | ({"OMP_WAIT_POLICY": own} if own else {})
    )
    assert out.stdout.strip() == f"['{own or 'passive'}']", out.stderr


def test_importing_a_script_leaves_the_policy_set():
    """Those, too, that are read rather than run, each in an interpreter of its own."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    for module in ("ssl_tasks", "models", "data"):
        argv = [sys.executable, "-c", f"import {module}, os; print(os.environ['OMP_WAIT_POLICY'])"]
        assert subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=env).stdout == "passive\n", module
