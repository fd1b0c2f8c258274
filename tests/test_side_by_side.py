"""Runs side by side: what is started for each, that failing and stopping end them all, and what is said."""

import signal
import sys

import pytest

from engine.flags import Parser
from extras import side_by_side
from fixtures import command
from paper import cells
from paper.published import TABLES

FLAGS = "--data shapes --backbone pointnet --steps 4 --points 24 --batch-size 4".split()
HEAD = """
import os, signal, sys, time
def stop(number, frame):
    print("\\rbar", "\\rstopped after step 1 of 2; run the same command to go on", file=sys.stderr)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
LOG = {log!r}
open(LOG, "w").write('{{"stage": 1, "step": 1, "cls": 0.5}}\\n{{"stage": 1, "st')
print("\\rstage 1 source 50.0%\\rstage 1 source 75.0%", end="", flush=True)
"""
WAIT = "print(flush=True)\ntime.sleep(60)"


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """main() with runs whose commands are these texts, name -> [python, ...] -> exit code, stdout, stderr."""
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def chain(name, scripts):
        made = side_by_side.Chain("none-all", FLAGS, "")
        made.method, made.folder, made.steps = name, tmp_path / name, [2]
        made.folder.mkdir()
        head = HEAD.format(log=str(made.folder / "log.jsonl"))
        made.commands = [["-c", head + script] for script in scripts]
        return made

    def start(**scripts):
        chains = {name: chain(name, texts) for name, texts in scripts.items()}
        monkeypatch.setattr(side_by_side, "Chain", lambda name, flags, stage2: chains[name])
        with pytest.raises(SystemExit) as end:
            command(side_by_side.main, "--methods", *chains)
        assert all(chain.process.poll() is not None for chain in chains.values())  # nobody is left behind
        return end.value.code, *capfd.readouterr()

    yield start
    for kind, handler in handlers.items():
        signal.signal(kind, handler)


def test_what_is_started(tmp_path):
    """Both stages and eval.py in the folder where `paper study` looks for the run; no stage 2 without adaptation."""
    stage2 = "--steps 2 --gcn-iters 1"
    parser = Parser()
    cells.sharing(parser)
    words = ["--methods", "defrec-low", "none-all", "--tasks", "M_SC", "--seeds", "3", f"--stage2={stage2}", *FLAGS]
    args = parser.parse_args(words)
    found = cells.cells_of(TABLES["study"], args, args.methods)
    flags = ["--task", "M_SC", "--seed", "3", *FLAGS]
    for cell, steps in zip(found, ([4, 2], [4])):
        chain = side_by_side.Chain({2: "defrec-low", 1: "none-all"}[len(steps)], flags, stage2)
        assert (chain.folder, chain.steps, cell.stage) == (cell.folder, steps, len(steps))
        assert [argv[0] for argv in chain.commands] == ["stage1_ssl.py", "stage2_pseudo.py", "eval.py"][
            :: 3 - len(steps)
        ]
    assert side_by_side.Chain("defrec-all", flags, "--gcn-iters 1").steps == [4, 4]


def test_all_succeed(run):
    """One command after another; few lines where nobody sits at a terminal."""
    code, out, err = run(a=["", "assert os.path.exists('nothing') is False"], b=[""])
    assert code == 0 and err == ""
    assert out.splitlines()[-2:] == [line for line in out.splitlines() if "finished" in line] and len(out) < 500
    assert "a: stage 1, step 2 of 2, source 75.0% | b: " in out


def test_a_failure_stops_the_others(run):
    """Its one line and its exit code; a traceback is shown whole."""
    code, out, err = run(a=[WAIT], b=["sys.exit(print('\\nerror: wrong; do it right', file=sys.stderr) or 2)", "never"])
    assert (code, out, err) == (2, out, "b: error: wrong; do it right\n") and "finished" not in out


def test_a_crash_shows_its_traceback(run):
    code, _, err = run(b=["print()\nraise KeyError('lost')"])
    assert code == 1 and "Traceback" in err and "KeyError: 'lost'" in err


def test_a_killed_run_has_the_shells_exit_code(run):
    assert run(a=["os.kill(os.getpid(), signal.SIGKILL)"])[0] == 137


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_stops_all(run, number):
    """Each saves and says how to go on; nothing new is started."""
    ready = 'while not os.path.exists(LOG.replace("/a/", "/b/")): time.sleep(0.01)'  # b hears the signal, too
    code, out, _ = run(a=[f"{ready}\nos.kill(os.getppid(), {int(number)})\n{WAIT}", "open('never')"], b=[WAIT])
    assert code == 128 + number
    assert [line for line in out.splitlines() if "stopped after" in line] == [
        f"{name}: stopped after step 1 of 2; run the same command to go on" for name in "ab"
    ]


def test_a_terminal_sees_one_bar(run, monkeypatch):
    """A line of steps and a line for each run, none of which stays."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    code, out, err = run(a=[""], b=[""])
    assert code == 0 and "2/4" in err or "4/4" in err
    assert out.count("\n") == 2
