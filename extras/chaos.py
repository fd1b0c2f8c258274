"""Does a run survive what kills or hinders it? Both stages on built-in shapes, against a run that was left in peace.

python extras/chaos.py                # -> results/reliability/chaos.md and .csv; some ten minutes on one core
python extras/chaos.py --plant write  # the same with a fault planted in this repository: it must be caught

Killed: one folder, kill -9 at moments drawn from the seed, in steps and inside writes; each time the same command goes
on. Hindered: a run of its own for each fault and stage; it must end with the exit code and the one line that are
promised, keep a checkpoint that loads, and go on with the same command once the fault is gone. At the end every tensor,
prediction and log row must be equal, bit for bit, to those of the run in peace. Exit code 1 where anything is lost.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine  # noqa: F401, I001 - first: how torch's threads wait
import functools
import io
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import traceback
from contextlib import contextmanager

import numpy as np
import sklearn.linear_model  # noqa: F401 - this and the next once here, and not in every child
import torch
import torch._dynamo  # noqa: F401

import stage1_ssl
import stage2_pseudo
from datasets import shapes
from engine import base, run as engine_run
from engine.base import UserError, call, cli, markdown, provenance, write_report
from engine.flags import Parser, number
from engine.run import Run, load_checkpoint

FLAGS = "--task M_SC --data shapes --backbone pointnet --ssl defrec --points 32 --batch-size 8 --device cpu".split()
CLOUDS = (
    2  # for testing, of each class and domain, and twice as many for training: few, so that steps are what it takes
)
MAINS = {1: stage1_ssl.main, 2: stage2_pseudo.main}
NOBODY = 65534


def few_clouds():
    """Cut the built-in shapes, and make them once, here, and not in every child."""
    shapes.COUNTS = {key: [CLOUDS] * len(counts) for key, counts in shapes.COUNTS.items()}
    shapes.make = functools.cache(shapes.make)
    for key, split in (("M", "train"), ("M", "test"), ("SC", "train"), ("SC", "test")):
        shapes.make(key, split)


# ---------------------------------------------------------------- one attempt: the stage's command in a process
def attempt(folder, stage, args, fault=None):
    """Run a stage's command in a child process, which meets `fault` -> exit code, minus the signal; lines of stderr."""
    steps = args.steps if stage == 1 else args.steps2
    argv = [*FLAGS, "--out", folder] if stage == 1 else ["--init", folder / "stage1.pt", "--gcn-iters", 2]
    with tempfile.NamedTemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            run_child(stage, [*argv, "--steps", steps, "--eval-every", args.eval_every], args.plant, fault, errors)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = [line.rpartition("\r")[2].strip() for line in Path(errors.name).read_text().split("\n")]
    bars = f"stage {stage}:", "warning:"
    return code, [line for line in lines if line and not line.startswith(bars)]


def run_child(stage, argv, plant, fault, errors):
    """What the child does: no bytes of the parent's state but the imported modules; it never returns."""
    code = 1
    try:
        sys.stdout, sys.stderr = open(os.devnull, "w"), errors
        for name in engine_run.SIGNALS:  # whatever the shell that started us ignores
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        if fault:
            fault.arm()
        if plant:
            PLANTS[plant]()
        cli(lambda: call(MAINS[stage], *argv))
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    try:
        errors.flush()
    finally:
        os._exit(code)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Fault:
    """Something that happens to a run after `step` of its stage, once that is behind the optimiser."""

    def __init__(self, step, happen):
        self.step, self.happen, self.met = step, happen, False

    def arm(self):
        log = Run.log

        def hooked(run, step, row):
            log(run, step, row)
            if step >= self.step and not self.met:
                self.met = True
                self.happen(run)

        Run.log = hooked


class Kill(Fault):
    """kill -9 in a step, some time after it, or at the next write of a file: half written, written, renamed."""

    def __init__(self, stage, step, moment, file="", delay=0.0):
        super().__init__(step, self.start)
        self.stage, self.moment, self.file, self.delay = stage, moment, file, delay
        self.name = f"{file} {moment}".strip()

    def start(self, run):
        if self.moment == "in a step":
            die()
        if self.moment == "at any time":
            threading.Timer(self.delay, die).start()

    def arm(self):
        super().arm()
        self.met = self.step < 0  # from the start: what is written before the first step
        base.open = engine_run.open = lambda path, mode: File(self, path, mode)
        replace = os.replace

        def hooked(old, new):
            self.due("written", new)
            replace(old, new)
            self.due("renamed", new)

        os.replace = hooked

    def due(self, moment, path, before=lambda: None):
        """Die if this is the moment and the file."""
        if self.met and moment == self.moment and Path(path).name.startswith(self.file.replace("N", str(self.stage))):
            before()
            die()


class File(io.FileIO):
    """A file that may be left half written."""

    def __init__(self, kill, path, mode):
        super().__init__(path, mode)
        self.kill = kill

    def write(self, content):
        half = lambda: super(File, self).write(content[: len(content) // 2])
        self.kill.due("half written", self.name, half)
        return super().write(content)


# ---------------------------------------------------------------- faults in this repository, which must be caught
def plain_writes():
    """Files are written in place."""

    def write(path, content, *remedy):
        with getattr(engine_run, "open", open)(path, "wb") as file:
            file.write(content)

    engine_run.write_atomically = write


def forgotten_optimiser():
    """A resumed run has a fresh optimiser."""
    load = Run._load
    Run._load = lambda run, parts, anew: load(run, {name: parts[name] for name in parts if name != "optimizer"}, anew)


PLANTS = {"write": plain_writes, "optimiser": forgotten_optimiser}


# ---------------------------------------------------------------- the same bits
def tensors(name, value):
    """Every tensor in nested dictionaries and lists, by name."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {key: tensor for part, inner in items for key, tensor in tensors(f"{name}/{part}", inner).items()}


def same(a, b):
    """Equal names and equal bits."""
    bits = lambda value: (value.dtype, tuple(value.shape), np.asarray(value).tobytes())
    return a.keys() == b.keys() and all(bits(a[name]) == bits(b[name]) for name in a)


def differences(folder, peace, stages):
    """Names of the files of these stages that are not equal to those of the run in peace, and what is left behind."""
    found = [path.name for path in folder.glob("*.tmp")]
    for stage in stages:
        for name in (f"stage{stage}.pt", f"last{stage}.pt"):
            a, b = (tensors("", load_checkpoint(run / name)) for run in (folder, peace))
            found += [] if same(a, b) and len(a) > 50 else [name]
        with np.load(folder / f"preds{stage}.npz") as a, np.load(peace / f"preds{stage}.npz") as b:
            found += [] if same(dict(a), dict(b)) else [f"preds{stage}.npz"]
        a, b = ([row for row in rows_of(run) if row["stage"] == stage] for run in (folder, peace))
        found += [] if a == b and len(a) > 0 else [f"rows of stage {stage} in log.jsonl"]
    return found


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- killed
FILES = "config.json", "log.jsonl", "predsN.npz", "lastN.pt", "stageN.pt"
MOMENTS = "half written", "written", "renamed"


def drawn(args):
    """Kills over both stages in the order in which they come: each kind once, as far as there are as many, then any."""
    draw = random.Random(args.seed)
    kinds = [("in a step", ""), ("at any time", ""), *((moment, file) for file in FILES for moment in MOMENTS)]
    draw.shuffle(kinds)
    kinds += draw.choices([kind for kind in kinds if kind[1] != "stageN.pt"], k=max(0, args.kills - len(kinds)))
    kills = []
    for i, (moment, file) in enumerate(kinds[: args.kills]):
        stage = args.stages[i % len(args.stages)]
        step = draw.randrange(args.steps if stage == 1 else args.steps2)
        kills.append(Kill(stage, step, moment, file, delay=draw.random()))
    last = lambda kill: 1 + MOMENTS.index(kill.moment) if kill.file == "stageN.pt" else 0
    kills.sort(key=lambda kill: (kill.stage, last(kill), kill.step))
    for kill in kills:  # what is written before the first step, or after the last, waits for no step
        if last(kill) or kill.file == "config.json" or kill.file == "log.jsonl" and kill.moment != "half written":
            kill.step = -1
    return kills


def killed(folder, peace, args):
    """The run that is killed again and again -> a row for each kill."""
    rows, lost = [], ""
    for kill in drawn(args):
        row = {"fault": f"kill -9, {kill.name}", "stage": kill.stage, "step": kill.step}
        code, lines = attempt(folder, 1, args) if kill.stage == 2 and not (folder / "stage1.pt").exists() else (0, [])
        if not code:
            code, lines = attempt(folder, kill.stage, args, kill)
        rows.append(row | ({} if code else {"outcome": "not met: the stage was finished before"}))
        print(f"killed: {rows[-1]}", flush=True)
        if code not in (0, -signal.SIGKILL):
            lost = f"the command could not go on after the kill before: exit code {code}, {lines[-1:]}"
            break
    stages = range(1, max(args.stages) + 1)
    for stage in stages:
        code, lines = attempt(folder, stage, args) if not lost else (0, [])
        if code:
            lost = f"the same command could not go on: exit code {code}, {lines[-1:]}"
    lost = lost or ", ".join(differences(folder, peace, stages))
    return [{"outcome": f"lost: {lost}" if lost else "survived"} | row for row in rows]


# ---------------------------------------------------------------- hindered
def remove(run):
    shutil.rmtree(run.folder)


def make_read_only(run):
    """No more right to write in the folder; root has every right, and gives itself up."""
    run.folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)


def fill_disk(run):
    """Fill the file system of the run, a small one of its own; without that no file may pass 1 MB (ulimit -f)."""
    if not run.folder.is_mount():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        return
    with open(run.folder / "filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass


def take_memory(run):
    """No more memory than the process has now (ulimit -v)."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), resource.RLIM_INFINITY))


def send(number):
    return lambda run: os.kill(os.getpid(), number)


# what happens, the exit code and words of the line
HINDRANCES = {
    "full disk": (fill_disk, 2, "cannot write"),
    "folder read-only": (make_read_only, 2, "cannot write"),
    "folder removed": (remove, 2, "begins this stage anew"),
    "out of memory": (take_memory, 2, "out of memory"),
}
HINDRANCES |= {
    name: (send(getattr(signal, name)), 128 + getattr(signal, name), "run the same command to go on")
    for name in engine_run.SIGNALS
    if hasattr(signal, name)
}


@contextmanager
def small_disk(folder, wanted):
    """A file system of 400 MB at `folder` where it is wanted and can be mounted -> whether it is there."""
    argv = ["mount", "-t", "tmpfs", "-o", "size=400m", "chaos", folder]
    able = wanted and os.geteuid() == 0 and shutil.which("mount")
    mounted = bool(able) and not subprocess.run(argv, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def hindered(name, stage, folder, peace, args):
    """One fault in one stage -> a row."""
    happen, expected, words = HINDRANCES[name]
    steps = args.steps if stage == 1 else args.steps2
    step = random.Random(f"{args.seed} {name} {stage}").randrange(steps // 3, steps * 2 // 3)
    row = {"fault": name, "stage": stage, "step": step}
    folder.mkdir()
    with small_disk(folder, name == "full disk") as mounted:
        lay_stage1(folder, peace, stage)
        code, lines = attempt(folder, stage, args, Fault(step, happen))
        wrong = [] if code == expected else [f"exit code {code}"]
        wrong += [] if len(lines) == 1 and words in lines[0] else [f"printed {lines}"]
        row["said"] = lines[-1].replace(str(folder), "RUN") if lines else ""
        if folder.exists():
            folder.chmod(0o755)
            (folder / "filler").unlink(missing_ok=True)
            wrong += loads(folder / f"last{stage}.pt")
        else:
            folder.mkdir()
            lay_stage1(folder, peace, stage)
        code, lines = attempt(folder, stage, args)
        wrong += [f"did not go on: {lines[-1:]}"] if code else differences(folder, peace, (stage,))
        row["by"] = "tmpfs" if mounted else "ulimit -f" if name == "full disk" else ""
    shutil.rmtree(folder)
    print(f"hindered: {row}, {wrong or 'survived'}", flush=True)
    return {"outcome": f"lost: {', '.join(wrong)}" if wrong else "survived"} | row


def lay_stage1(folder, peace, stage):
    """What stage 2 starts from."""
    for name in ("stage1.pt", "config.json", "log.jsonl") if stage == 2 else ():
        shutil.copy(peace / name, folder)


def loads(path):
    """What is wrong with a checkpoint, [] if it is whole."""
    try:
        load_checkpoint(path)
        return []
    except UserError as error:
        return [str(error)]


# ---------------------------------------------------------------- the table
def report(rows, args):
    """The table and what it is about, as markdown."""
    record, lines = provenance("cpu"), []
    for fault in dict.fromkeys(row["fault"] for row in rows):
        mine = [row for row in rows if row["fault"] == fault and not row["outcome"].startswith("not met")]
        survived = sum(row["outcome"] == "survived" for row in mine)
        stages = ", ".join(sorted({str(row["stage"]) for row in mine}))
        said = next((row["said"] for row in mine if row.get("said")), "")
        lines.append([fault, stages, str(len(mine)), str(survived), str(len(mine) - survived), said])
    total = [sum(int(line[i]) for line in lines) for i in (2, 3, 4)]
    lines.append(["all", "", *map(str, total), ""])
    lost = [f"- {row['fault']}, stage {row['stage']}: {row['outcome']}" for row in rows if "lost" in row["outcome"]]
    by = {row["by"] for row in rows if row.get("by")}
    root = "" if os.geteuid() else "; where the folder is read-only, root gave itself up"
    note = (
        "Survived: the exit code and the one line that are promised, a last checkpoint that loads (unless the folder "
        "was removed), and after the same command every tensor of stageN.pt and lastN.pt, every prediction and every "
        "log row equal to those of a run in peace, bit for bit. The kills hit one folder, one after another, and count "
        "as lost together if it ends on other bits. Half written, written, renamed: of the temporary file, of a row of "
        "the log, after its rename. "
        f"Stage 1: {' '.join(FLAGS)} --steps {args.steps}. Stage 2: --steps {args.steps2} --gcn-iters 2. Both: "
        f"--eval-every {args.eval_every}, last.pt written {args.saves} times. The disk was filled by "
        f"{' and '.join(sorted(by)) or 'nothing'}{root}.\n"
        f"Planted fault: {args.plant or 'none'}. Seed {args.seed}. Data: built-in shapes, {CLOUDS} clouds a class for "
        f"testing and {2 * CLOUDS} for training. Device: {record['device']}. Commit: {record['commit']}."
    )
    head = ("fault", "stages", "tried", "survived", "lost", "what the user reads")
    return "\n".join(
        ["# What a run survives: `make chaos`", "", *markdown(head, lines), "", *lost, "", note, ""]
    ), total


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=number(int, 0, 1000), default=25)
    parser.add_argument("--faults", nargs="*", choices=HINDRANCES, default=list(HINDRANCES), help="all but kills")
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2), default=[1, 2], help="that are hit")
    parser.add_argument("--steps", type=number(int, 6, 10**6), default=60, help="of stage 1")
    parser.add_argument("--steps2", type=number(int, 6, 10**6), default=30, help="of stage 2")
    parser.add_argument("--eval-every", type=number(int, 1, 10**6), default=10)
    parser.add_argument("--saves", type=number(int, 1, 10**6), default=10, help="how often a stage writes last.pt")
    parser.add_argument("--seed", type=number(int, 0), default=0)
    parser.add_argument("--plant", choices=PLANTS, help="a fault in this repository that must be caught")
    parser.add_argument("--out", type=Path, default=Path("results/reliability/chaos"), help="path without an ending")
    args = parser.parse_args()
    if not sys.platform.startswith("linux"):
        raise UserError("this needs fork and /proc; run it on Linux")
    torch.set_num_threads(1)
    few_clouds()
    engine_run.SAVES = args.saves
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # for who is not root any more
        for stage in range(1, max(args.stages) + 1):
            code, lines = attempt(folder / "peace", stage, args)
            if code:
                raise UserError(f"a run in peace ends with exit code {code}: {lines[-1:]}; mend that first")
        rows = killed(folder / "killed", folder / "peace", args)
        for name in args.faults:
            rows += [hindered(name, stage, folder / "hindered", folder / "peace", args) for stage in args.stages]
    text, (tried, survived, lost) = report(rows, args)
    print(f"{text}{tried} tried, {survived} survived, {lost} lost; {write_report(args.out, text, rows)}")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    cli(main)
