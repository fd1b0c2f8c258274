"""Several processes are as one: gradients, the kept set, running statistics, a run's files, a stop in between."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stage1_ssl
import stage2_pseudo
from eval import evaluate
from fixtures import command

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"
SMALL = "--data shapes --backbone pointnet --points 32 --batch-size 8 --steps 2 --eval-every 2".split()

# one step in double precision, by as many processes as there are; the first writes all that came of it
STEP = """
import sys, types, torch
import data, models, ssl_tasks, stage1_ssl
from engine import parallel
from engine.base import generator

def step(ssl, backbone, mtl):
    more = dict(ssl=ssl, measure="train", batch_size=16, steps=10, device="cpu")
    args = types.SimpleNamespace(**stage1_ssl.SETTINGS | more)
    parallel.begin(args)
    torch.manual_seed(0)
    model = models.build(backbone, 10).double()
    task = ssl_tasks.build(ssl, model, 64, data.direction("M_SC")).double()
    optimizer, schedule = stage1_ssl.optimisation(args, [*model.parameters(), *task.parameters()])
    parts = {"student": model, "task": task, "optimizer": optimizer, "schedule": schedule}
    parallel.join(parts | ({"teacher": task.teacher.model} if task.teacher else {}), "cpu", 0)
    clouds = torch.rand(16, 64, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    g = generator("cpu", 3, "views")
    wide = lambda v: ssl_tasks.View(v.x.double(), v.y, None if v.weak is None else v.weak.double())
    # not cropped: a cropped cloud has points twice, and which of the two is a neighbour is a matter of rounding
    s, u = wide(task.views(clouds[:8], torch.arange(8), False, g)), wide(task.views(clouds[8:], None, False, g))
    torch.manual_seed(7)
    row, kept = stage1_ssl.step(4, args, model, task, s, u, g, descend=stage1_ssl.joining(mtl))
    grads = {n: p.grad for n, p in [*model.named_parameters(), *task.named_parameters()] if p.grad is not None}
    found = {"grads": grads, "kept": kept, "row": {k: float(v) for k, v in row.items()}, "state": model.state_dict()}
    return found | {"logits": model.eval()(clouds[:7].double()).detach()}

settings = ("selfdist dgcnn sum", "defrec+pcm pointnet sum", "selfdist pointnet2 cgdm", "pointdan pointdan sum")
found = [step(*words.split()) for words in settings]
rows = 100 + torch.randn(64, 4, generator=torch.Generator().manual_seed(2)) / 2  # float32, far from 0
if parallel.size() > 1:
    own = rows.chunk(parallel.size())[parallel.rank()]
    (_, cov), count = parallel.pool((own.mean(0), own.T.cov(correction=0)), len(own))
else:
    cov, count = rows.double().T.cov(correction=0).float(), 64
found.append({"cov": cov, "count": count})
if parallel.rank() == 0:
    torch.save(found, sys.argv[1])
parallel.end()
"""


def python(*words, **more):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, **more)


def test_a_step_of_two_processes_is_that_of_one(tmp_path, monkeypatch):
    """Double precision: the kept set, losses, gradients, running statistics, and predictions of seven clouds."""
    (script := tmp_path / "one_step.py").write_text(STEP)
    ended = python(*TORCHRUN, script, tmp_path / "two.pt")
    assert ended.returncode == 0, ended.stderr
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "one.pt")])
    runpy.run_path(str(script))
    (*one, pooled), (*two, found) = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert found["count"] == pooled["count"]
    torch.testing.assert_close(found["cov"], pooled["cov"], rtol=1e-3, atol=1e-4)
    for one, two in zip(one, two, strict=True):
        assert torch.equal(one["kept"], two["kept"]) and 0 < one["kept"].sum() < 8
        assert one["row"] == pytest.approx(two["row"], rel=1e-9)
        largest = max(float(grad.abs().max()) for grad in one["grads"].values())
        assert one["grads"].keys() == two["grads"].keys() and largest > 0
        for name, grad in one["grads"].items():
            torch.testing.assert_close(two["grads"][name], grad, rtol=1e-7, atol=1e-10 * largest, msg=name)
        for name, tensor in one["state"].items():
            torch.testing.assert_close(two["state"][name], tensor, rtol=1e-9, atol=1e-12, msg=name)
        torch.testing.assert_close(two["logits"], one["logits"], rtol=1e-8, atol=1e-10)


def test_two_processes_go_on_where_one_ended_and_one_where_two_were_stopped(tmp_path):
    """A finished stage is said once; stage 2 is stopped by a signal and saved; files are those of one process."""
    run = tmp_path / "run"
    command(stage1_ssl.main, "--task", "M_SC", *SMALL, "--out", run)
    again = python(*TORCHRUN, ROOT / "stage1_ssl.py", "--task", "M_SC", *SMALL, "--out", run)
    assert again.returncode == 0 and again.stdout.count("is finished; nothing to do") == 1

    second = [ROOT / "stage2_pseudo.py", "--init", run / "stage1.pt", "--gcn-iters", "0", "--steps", "12"]
    words = [sys.executable, *TORCHRUN, *second, "--eval-every", "12"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*map(str, words)], env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (run / "last2.pt").exists():
        process.stderr.readline()
    process.send_signal(signal.SIGTERM)  # torchrun sends it on, to each process at a moment of its own
    text = process.communicate(timeout=120)[1]
    assert "run the same command to go on" in text and not (run / "stage2.pt").exists()
    command(stage2_pseudo.main, *second[1:], "--eval-every", "12")
    assert (run / "stage2.pt").exists() and "2 processes, then CPU" in (run / "config.json").read_text()
    assert evaluate(run)["stage2"]


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path):
    """Six clouds for two processes: three of each domain."""
    words = ["--task", "M_SC", *SMALL, "--batch-size", "6", "--out", tmp_path / "run"]
    ended = python(*TORCHRUN, ROOT / "stage1_ssl.py", *words)
    assert ended.returncode and "error: --batch-size 6" in ended.stderr and "multiple of 4" in ended.stderr
    assert not (tmp_path / "run").exists()
