"""What a run survives: extras/chaos.py in its smallest form, that it catches planted faults, and a damaged folder."""

import csv
import errno
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import stage1_ssl
from datasets import shapes
from engine import base, run as engine_run
from engine.run import Run, load_checkpoint, read_rows
from extras.chaos import FLAGS, PLANTS, differences
from fixtures import command, refusal

ROOT = Path(__file__).resolve().parent.parent
STEPS = 6


# ---------------------------------------------------------------- the harness
@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """Whole, and with files written in place: in one process that never trained itself, from which it may fork."""
    folder = tmp_path_factory.mktemp("harness")
    small = f"--steps {STEPS} --steps2 {STEPS} --eval-every 3 --saves 3 --faults".split()
    calls = {
        "whole": ["--kills", 2, "--seed", 4, "--stages", 1],
        "write": ["--kills", 1, "--seed", 3, "--stages", 1],
    }
    code = "import sys; sys.path.insert(0, '.')\nfrom engine.base import call\nfrom extras import chaos\n"
    for name, more in calls.items():
        plant = [] if name == "whole" else ["--plant", name]
        argv = [str(word) for word in (*more, *plant, "--out", folder / name, *small)]
        code += f"try: call(chaos.main, *{argv})\nexcept SystemExit as end: print('ended', {name!r}, end.code)\n"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return folder, dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ended"))


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_a_run_killed_twice_ends_on_the_same_bits(harness):
    """Half of the predictions, half a row of the log: nothing is lost, exit code 0."""
    folder, codes = harness
    found = [(row["fault"], row["stage"], row["outcome"]) for row in table(folder / "whole.csv")]
    assert codes["whole"] == "0" and found == [
        ("kill -9, predsN.npz half written", "1", "survived"),
        ("kill -9, log.jsonl half written", "1", "survived"),
    ]
    assert "| all |  | 2 | 2 | 0 |  |" in (folder / "whole.md").read_text()


def test_files_written_in_place_are_caught(harness):
    """Half the predictions are left: the run that cannot go on is reported as lost, and why; exit code 1."""
    folder, codes = harness
    (row,) = table(folder / "write.csv")
    assert codes["write"] == "1" and "preds1.npz: the predictions up to step" in row["outcome"]
    text = (folder / "write.md").read_text()
    assert "| all |  | 1 | 0 | 1 |" in text and "Planted fault: write" in text


# ---------------------------------------------------------------- a folder that was stopped, damaged and gone on with
MAKE = functools.cache(shapes.make)


def small(patch):
    """Few clouds, made once, and three checkpoints a stage."""
    patch.setattr(shapes, "COUNTS", {key: [2] * 10 for key in shapes.COUNTS})
    patch.setattr(shapes, "make", MAKE)
    patch.setattr(engine_run, "SAVES", 3)


@pytest.fixture(autouse=True)
def small_for_all(monkeypatch):
    small(monkeypatch)


def stage1(out, *more):
    command(stage1_ssl.main, *FLAGS, "--steps", STEPS, "--eval-every", 3, "--out", out, *more)
    return out


def die(self, step, row):
    self.unwritten.append((step, row))
    if step == 4:
        raise InterruptedError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run in peace, and one that died in step 4: last1.pt stands at 4, the log, too, predictions at 3."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        stage1(folder / "peace")
        patch.setattr(Run, "log", die)
        with pytest.raises(InterruptedError):
            stage1(folder / "dead")
    return folder


@pytest.fixture
def dead(runs, tmp_path):
    return shutil.copytree(runs / "dead", tmp_path / "run")


def cut(name):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:-100])


def flip(run):
    content = bytearray((run / "last1.pt").read_bytes())
    content[len(content) // 2] ^= 4
    (run / "last1.pt").write_bytes(content)


def another(part, key):
    def change(run):
        payload = load_checkpoint(run / "last1.pt")
        payload["config"][part][key] = 5
        torch.save(payload, run / "last1.pt")

    return change


def without_optimizer(run):
    payload = load_checkpoint(run / "last1.pt")
    torch.save({name: state for name, state in payload.items() if name != "optimizer"}, run / "last1.pt")


def without_second_row(run):
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    (run / "log.jsonl").write_bytes(b"".join([lines[0], lines[1][:20] + b"\n", *lines[2:]]))


DAMAGE = {
    "half a checkpoint": (cut("last1.pt"), "last1.pt: damaged"),
    "an empty checkpoint": (lambda run: (run / "last1.pt").write_bytes(b""), "last1.pt: damaged"),
    "one bit": (flip, "last1.pt: damaged"),
    "no optimiser": (without_optimizer, "last1.pt: damaged"),
    "another seed": (another("args", "seed"), "last1.pt: of a run with another seed"),
    "other clouds": (another("data", "name"), "last1.pt: of a run with another name"),
    "half the predictions": (cut("preds1.npz"), "preds1.npz: the predictions up to step 4"),
    "no predictions": (lambda run: (run / "preds1.npz").unlink(), "preds1.npz: the predictions up to step 4"),
    "one array": (lambda run: np.save(open(run / "preds1.npz", "wb"), np.zeros(3)), "preds1.npz: the predictions"),
    "a log without a row": (without_second_row, "log.jsonl: not every step before 4"),
    "no log": (lambda run: (run / "log.jsonl").unlink(), "log.jsonl: not every step before 4"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_cannot_go_on_to_the_same_bits_does_not_go_on(dead, kind):
    """One line with the file and the remedy; the checkpoint and the log stay as they are."""
    damage, words = DAMAGE[kind]
    damage(dead)
    before = {path.name: path.read_bytes() for path in dead.iterdir() if path.name in ("last1.pt", "log.jsonl")}
    message = refusal(lambda: stage1(dead))
    assert words in message and f"remove {dead / 'last1.pt'} to begin the stage anew" in message
    assert before == {name: (dead / name).read_bytes() for name in before}


def test_the_remedy_works(runs, dead):
    """Without last1.pt the stage begins anew, whatever predictions and log hold, and ends on the same bits."""
    (dead / "last1.pt").unlink()
    cut("preds1.npz")(dead)
    without_second_row(dead)
    with pytest.warns(UserWarning, match="1 lines that are no rows"):
        stage1(dead)
    assert differences(dead, runs / "peace", [1]) == []


def test_what_a_killed_process_leaves_is_healed(runs, dead):
    """Rows and predictions beyond the checkpoint, half a row, bytes that are no text, leftovers: the same bits."""
    with open(dead / "log.jsonl", "ab") as file:
        file.write(b'{"stage": 1, "step": 4, "cls": 7}\n3\n[[\n\0\xff\xfe\n{"stage": "1", "step": 0}\n{"stage": 1, "st')
    with np.load(dead / "preds1.npz") as old:
        more = {name: np.concatenate([old[name], old[name][:1]]) for name in old}
    np.savez(dead / "preds1.npz", **more | {"step": np.array([0, 3, 6])})
    (dead / "last1.pt.77.tmp").write_bytes(b"half")
    with pytest.warns(UserWarning, match="5 lines that are no rows"):
        stage1(dead)
    assert differences(dead, runs / "peace", [1]) == []


def test_a_forgotten_optimiser_is_caught(runs, dead, monkeypatch):
    """A run that goes on with a part of its state anew ends on other bits, of weights and of what follows from them."""
    monkeypatch.setattr(Run, "_load", Run._load)  # which the fault replaces
    PLANTS["optimiser"]()
    stage1(dead)
    assert {"stage1.pt", "last1.pt", "rows of stage 1 in log.jsonl"} <= set(differences(dead, runs / "peace", [1]))


@pytest.mark.parametrize("text", ["[]", "3", '{"stage1": 3}', '{"stage1": {"args": []}}', '{"stage1"', "\0"])
def test_a_damaged_config(dead, text):
    """One line, and nothing is changed."""
    (dead / "config.json").write_text(text)
    assert "config.json" in refusal(lambda: stage1(dead)) and (dead / "config.json").read_text() == text


def test_a_damaged_stage1_is_not_called_finished(runs, tmp_path):
    """It is named; once it is removed, the same command writes the same one again."""
    run = shutil.copytree(runs / "peace", tmp_path / "run")
    cut("stage1.pt")(run)
    assert "stage1.pt: damaged; remove it" in refusal(lambda: stage1(run))
    (run / "stage1.pt").unlink()
    stage1(run)
    assert differences(run, runs / "peace", [1]) == []


def test_asked_to_stop_after_the_last_step(runs, dead, monkeypatch):
    """While stageN.pt is written: it is, and the exit code says so, lest a script starts the next stage."""
    save = engine_run.save_checkpoint

    def ask(path, *more):
        if path.name == "stage1.pt":
            os.kill(os.getpid(), signal.SIGTERM)
        save(path, *more)

    monkeypatch.setattr(engine_run, "save_checkpoint", ask)
    with pytest.raises(SystemExit) as stop:
        stage1(dead)
    assert stop.value.code == 128 + signal.SIGTERM and differences(dead, runs / "peace", [1]) == []


# ---------------------------------------------------------------- locks
def opened(folder, module=engine_run):
    with module.Run(folder, 1, SimpleNamespace(steps=1, device="cpu")) as run:
        run.begin(("a", "b"), name="x", fingerprint="y")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    """A warning, and it goes on."""

    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(engine_run.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="no lock can be taken here, so take care"):
        opened(tmp_path)
    assert (tmp_path / "config.json").exists()


def test_a_system_without_fcntl(tmp_path, monkeypatch):
    """As on Windows: engine/run.py can be imported, warns and goes on; no file but it and clean.py asks for fcntl."""
    monkeypatch.setitem(sys.modules, "fcntl", None)  # an import of it is an ImportError
    spec = importlib.util.spec_from_file_location("run_without_fcntl", engine_run.__file__)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    with pytest.warns(UserWarning, match="no lock can be taken here"):
        opened(tmp_path, module)
    files = [*ROOT.glob("*.py"), *ROOT.glob("engine/*.py"), *ROOT.glob("datasets/*.py")]
    assert [path.name for path in files if "import fcntl" in path.read_text()] == ["run.py"]


# ---------------------------------------------------------------- memory, the disk
def more_than_there_is():
    torch.empty(1 << 60, dtype=torch.uint8)


def inside():
    try:
        raise MemoryError
    finally:
        raise RuntimeError("unexpected pos 64 vs 0")  # what torch.save makes of it


def fail(error):
    def main():
        raise error

    return main


SHORT = {
    "torch": more_than_there_is,
    "within another": inside,
    "python": fail(MemoryError()),
    "a GPU": fail(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    "cublas": fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    "the system": fail(OSError(errno.ENOMEM, "Cannot allocate memory")),
}


@pytest.mark.parametrize("kind", SHORT)
def test_out_of_memory_is_one_line(capsys, kind):
    """With the flags that help; exit code 2."""
    with pytest.raises(SystemExit) as end:
        base.cli(SHORT[kind])
    text = capsys.readouterr().err
    assert end.value.code == 2 and text.startswith("error: out of memory; ") and text.count("\n") == 1
    assert "--batch-size" in text and "--points" in text and "another --out" in text


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), OSError(errno.EIO, "I/O"), ValueError()]
)
def test_no_other_error_is_called_so(error):
    """A fault of ours keeps its traceback."""
    with pytest.raises(type(error)) as caught:
        base.cli(fail(error))
    assert caught.value is error


def test_a_checkpoint_for_which_memory_is_short_is_not_called_damaged(dead, monkeypatch):
    """On the way in, too."""
    monkeypatch.setattr(torch, "load", lambda *a, **kw: more_than_there_is())
    with pytest.raises(RuntimeError, match="allocate memory"):
        stage1(dead)


def test_log_and_predictions_are_on_the_disk_before_the_checkpoint(runs, dead, monkeypatch):
    """A machine that loses power must not keep a checkpoint that is ahead of them."""
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("sync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda old, new: order.append(Path(new).name) or replace(old, new))
    stage1(dead)
    begin, end = ["sync", "config.json", "sync", "log.jsonl"], ["sync", "config.json", "sync", "stage1.pt"]
    log = ["sync"]  # the only file that is not renamed
    assert order == [*begin, *log, "sync", "preds1.npz", "sync", "last1.pt", *end]


def test_a_log_that_cannot_be_written(dead, monkeypatch):
    """A full disk: one line that names it and the checkpoint to go on from, which stays whole."""
    rows = (dead / "log.jsonl").resolve()

    def full(path, mode):
        if Path(path).resolve() == rows:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, mode)

    monkeypatch.setattr(engine_run, "open", full, raising=False)
    message = refusal(lambda: stage1(dead))
    assert "log.jsonl: No space left" in message and f"goes on from {dead / 'last1.pt'}" in message
    assert load_checkpoint(dead / "last1.pt")["step"] == 4


def test_a_folder_removed_under_a_run(tmp_path, monkeypatch):
    """One line; nothing is left to go on from, which it says."""
    log = Run.log

    def gone(self, step, row):
        log(self, step, row)
        shutil.rmtree(self.folder)

    monkeypatch.setattr(Run, "log", gone)
    message = refusal(lambda: stage1(tmp_path / "run"))
    assert "log.jsonl: No such file" in message and "begins this stage anew" in message


def test_rows_of_a_log(tmp_path):
    """Those of both stages, and how many lines are none."""
    path = tmp_path / "log.jsonl"
    assert read_rows(path) == ([], 0)
    rows = [{"stage": 2, "step": 0, "cls": 0.1}, {"stage": 1, "step": 3}]
    path.write_text("\n".join([json.dumps(rows[0]), "[" * 10**5, json.dumps(rows[1]), ""]))
    assert read_rows(path) == (rows, 1)
