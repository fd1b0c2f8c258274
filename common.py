"""What the two stages share and a reader may skip: flags, seeds, the run's folder, checkpoints and the log.

A run's folder holds config.json, log.jsonl, and for stage N: lastN.pt (to resume), stageN.pt (when finished) and
predsN.npz (argmax predictions for source validation and target test at every evaluation moment).
"""

import argparse
import csv
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

PAPER_STEPS = {"dgcnn": 40_000, "pointnet": 10_000}  # per stage; Self-dist's settings, which the paper keeps
PAPER_BATCH = {"dgcnn": 64, "pointnet": 128, "dgcnn-seg": 32}  # both domains together, half from each
SEG_EPOCHS = 200  # PointSegDA counts epochs of the source
SAVES = 20  # how often a stage writes last.pt
SELECTS = ("low", "high", "random", "all", "freeze")
SSL_TASKS = ("selfdist", "defrec", "gast", "mlsp", "none")
MTL = ("sum", "pcgrad", "cagrad", "cgdm")


# ---------------------------------------------------------------- errors and flags
class UserError(Exception):
    """An error of the user's: one line that says what is wrong and what to do; exit code 2."""


def one_line(error):
    """An exception's text as one line: libraries write over several."""
    return " ".join(str(error).split())


def cli(main):
    """Run a command; an error of the user's becomes one line on stderr and exit code 2, a warning one line."""
    warnings.formatwarning = lambda message, *where: f"warning: {message}\n"
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a wrong flag."""

    def error(self, message):
        raise UserError(f"{message}; see python {self.prog} --help")


def number(kind, low, high=math.inf, even=False):
    """An argparse type: a finite number in [low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)) or (even and value % 2):
            span = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"{text!r} must be {'an even' if even else 'a'} number {span}")
        return value

    return parse


def add_flags(parser, **default):
    """The flags of both stages; stage 2 gives no defaults and takes what is not given from the checkpoint."""
    flag = lambda name, **kw: parser.add_argument(name, default=default.get(name[2:].replace("-", "_")), **kw)
    flag("--task", help="direction: M_S M_SC S_M S_SC SC_M SC_S, or of PointSegDA: seg_F_A ...")
    flag("--data", help="folder that holds PointDA_data/ or PointSegDA/, or 'shapes' for the built-in shapes")
    flag("--backbone", choices=("dgcnn", "pointnet"))
    flag("--ssl", choices=SSL_TASKS, help="self-supervised task; none = no adaptation")
    parser.add_argument(
        "--pcm",
        action=argparse.BooleanOptionalAction,
        default=default.get("pcm"),
        help="mix pairs of source clouds (with defrec in the paper)",
    )
    flag("--select", choices=SELECTS, help="whose SSL loss stays: low is SM-DSB, all is the base")
    flag("--beta", type=number(float, 0, 1), help="kept share of a batch, Eq. (6)")
    flag("--alpha", type=number(float, 0), help="radius exponent, Eq. (4)")
    flag(
        "--mtl", choices=MTL, help="how the two losses' gradients are joined; sum is the paper, the others comparators"
    )
    flag("--measure", choices=("train", "eval"), help="mode of the pass whose gradient is read")
    flag("--up", choices=("z", "y"), help="the axis that is up in PointSegDA's files; bodies are turned about z")
    parser.add_argument(
        "--unit-sphere",
        action=argparse.BooleanOptionalAction,
        default=default.get("unit_sphere"),
        help="centre and scale PointSegDA's bodies, where the domains' files differ in that",
    )
    flag("--points", type=number(int, 20), help="points a cloud")
    flag("--steps", type=number(int, 1), help="40000 for dgcnn, 10000 for pointnet, 200 epochs of bodies")
    flag(
        "--batch-size", type=number(int, 4, even=True), help="both domains together; 64 dgcnn, 128 pointnet, 32 bodies"
    )
    flag("--eval-every", type=number(int, 1), help="steps between evaluations; max(steps // 20, 100)")
    flag("--seed", type=number(int, 0, 2**32 - 1))
    flag("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="the run's folder")


def settle(args):
    """Fill in the defaults that follow from other flags, and refuse what cannot go together."""
    seg = args.task.startswith("seg_")
    if seg:
        if args.ssl not in ("defrec", "mlsp", "none") or args.pcm:
            got = "--pcm" if args.pcm else f"--ssl {args.ssl}"
            raise UserError(f"{got} with {args.task}: not for segmentation; choose --ssl defrec, mlsp or none")
        args.backbone = "dgcnn-seg"  # the only one PointSegDA is reported with
    args.batch_size = args.batch_size or PAPER_BATCH[args.backbone]
    args.points = args.points or (2048 if seg else 1024)
    args.steps = args.steps or PAPER_STEPS.get(args.backbone) or seg_steps(args)
    args.eval_every = args.eval_every or max(args.steps // 20, 100)
    args.mtl, args.up, args.unit_sphere = args.mtl or "sum", args.up or "z", bool(args.unit_sphere)
    for flag, given in (("--up y", args.up == "y"), ("--unit-sphere", args.unit_sphere)):
        if given and not seg:
            raise UserError(f"{flag} with {args.task}: PointDA-10 is put into its frame as it is read; drop the flag")
    if args.mtl in ("pcgrad", "cagrad"):
        from comparators import aggregator

        aggregator(args.mtl)  # absent? say so before a folder is made
    if args.select in ("low", "high"):
        args.measure = args.measure or "train"  # these two always measure
    if args.device in (None, "auto"):
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu or auto")


def seg_steps(args):
    """SEG_EPOCHS epochs of the source (of the target for the oracle) as steps."""
    import data

    half = args.batch_size // 2
    return SEG_EPOCHS * max(1, data.train_size(args.data, data.split_task(args.task, args.oracle)[0]) // half)


# ---------------------------------------------------------------- seeds
def seed_of(*words):
    """A 63-bit seed that is a pure function of the words, e.g. (seed, "stage1", step)."""
    text = "/".join(map(str, words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(device, *words):
    """A torch.Generator on `device`, seeded from the words: every draw of step t is a function of (seed, t)."""
    return torch.Generator(device).manual_seed(seed_of(*words))


# ---------------------------------------------------------------- what a run was
def provenance(device):
    """Commit, command, versions and device, as plain values."""
    here = Path(__file__).parent
    run = lambda *a: subprocess.run(["git", *a], cwd=here, capture_output=True, text=True).stdout.strip()
    git = run if shutil.which("git") else lambda *a: ""  # an unpacked archive on a slim machine
    dirty = "+changes" if git("status", "--porcelain", "--untracked-files=no", ".", ":!results") else ""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    return {
        "commit": (git("rev-parse", "--short=12", "HEAD") or "unknown") + dirty,
        "command": " ".join(sys.argv),
        "device": name,
        "versions": versions,
    }


def write_atomically(path, content):
    """Write bytes so that `path` holds the old or the new content whole, never half; UserError if it cannot."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another --out") from None


def csv_text(rows):
    """Dictionaries as csv with a header; a row leaves empty what only others have."""
    out = io.StringIO()
    writer = csv.DictWriter(out, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def save_checkpoint(path, payload):
    """Tensors and plain values only; serialised in memory first, so that a full disk leaves the old file whole."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_atomically(path, buffer.getvalue())


def file_hash(path):
    """sha256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load_checkpoint(path, device="cpu"):
    """A checkpoint of either stage; UserError if it is missing or is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of some files that are refused below
            payload = torch.load(path, map_location=device, weights_only=True)
            payload["config"]["args"]["task"], payload["student"]
        return payload
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train one with stage1_ssl.py first") from None
    except Exception:  # a pickle, a zip and a tensor file fail in a dozen ways
        raise UserError(f"{path}: not a checkpoint of this repository; give RUN/stage1.pt or RUN/stage2.pt") from None


def model_of(checkpoint, which="student"):
    """The model a checkpoint holds: `student` (best source validation) or `last_student`."""
    from models import build

    args = checkpoint["config"]["args"]
    model = build(args["backbone"])
    try:
        model.load_state_dict(checkpoint[which])
    except (KeyError, RuntimeError):
        raise UserError(
            f"--ckpt: the checkpoint holds no {which} that fits this version's {args['backbone']}; train it again"
        ) from None
    return model


# ---------------------------------------------------------------- the run's folder
class Run:
    """One stage in one folder: refuses a second process and other arguments, cuts what lies past a resumed step."""

    def __init__(self, folder, stage, args):
        self.folder, self.stage, self.args = Path(folder), stage, args
        self.last, self.final = self.folder / f"last{stage}.pt", self.folder / f"stage{stage}.pt"
        self.preds, self.moments, self.best = self.folder / f"preds{stage}.npz", [], None
        self.stopping, self.seconds, self.shown = [], 0.0, ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.folder / ".lock", "w")
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system when the process dies
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is training here; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise UserError(f"--out {folder}: {error.strerror}; choose a folder that can be written") from None
        try:
            self.record = self._read_config()
            self._compare("args", plain(args))
        except UserError:
            self.lock.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.lock.close()

    @property
    def finished(self):
        """True when stageN.pt was written; say so in one line and leave."""
        if self.final.exists():
            print(f"{self.final} is finished; nothing to do")
        return self.final.exists()

    def begin(self, **data):
        """Record what the run is (arguments, commit, versions, data) before its first step."""
        self._compare("data", data)
        origin, before = provenance(self.args.device), self.record.get(f"stage{self.stage}", {})
        for key in ("commit", "device"):  # a run that goes on elsewhere names all of its places
            if before.get(key, origin[key]).split(", then ")[-1] != origin[key]:
                origin[key] = f"{before[key]}, then {origin[key]}"
            else:
                origin[key] = before.get(key, origin[key])
        self.config = {"args": plain(self.args), "data": data, **origin}
        self.record[f"stage{self.stage}"] = self.config
        write_atomically(self.folder / "config.json", json.dumps(self.record, indent=1).encode())
        stopping = self.stopping

        def ask(number, frame):
            stopping.append(number)
            signal.signal(number, signal.SIG_DFL)  # asked twice, it dies at once

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, ask)

    def _read_config(self):
        path = self.folder / "config.json"
        try:
            return json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            raise UserError(f"{path}: not readable as JSON; choose another --out or remove the folder") from None

    def _compare(self, part, new):
        old = self.record.get(f"stage{self.stage}", {}).get(part, {})
        for key in sorted(old.keys() | new.keys()) if old else ():
            if key not in ("device", "out", "init") and old.get(key) != new.get(key):
                raise UserError(
                    f"{self.folder} holds a run with {key} = {old.get(key)}, not {new.get(key)}; "
                    "choose another --out, or the same arguments to go on with it"
                )

    # -- the loop; resuming is running the same command again
    def loop(self, parts, evaluate):
        """Yield t = 0 .. T-1 from where the folder stands; between steps evaluate, save, and stop when asked to.

        parts: name -> object with state_dict and load_state_dict, all that the loop needs to go on bit for bit.
        evaluate(steps done) -> text for the bar.
        """
        T, save_every = self.args.steps, max(1, self.args.steps // SAVES)
        first = self._resume(parts)
        began, text = time.time(), ""
        start = began
        with tqdm(range(first, T), f"stage {self.stage}", T, initial=first, unit="step", dynamic_ncols=True) as bar:
            for t in bar:
                yield t
                done = t + 1
                if done % self.args.eval_every == 0 or done == T:
                    text = evaluate(done)
                bar.set_postfix_str(f"{self.shown}{text}", refresh=False)
                if done - first == 10:
                    bar.write(announce((time.time() - start) / 10 * (T - done), T, self.args.device), end="")
                if done % save_every == 0 or done == T or self.stopping:
                    self.seconds, began = self.seconds + time.time() - began, time.time()
                    state = {name: part.state_dict() for name, part in parts.items()}
                    save_checkpoint(
                        self.last,
                        {"config": self.config, "step": done, "seconds": self.seconds, "best": self.best, **state},
                    )
                if self.stopping:
                    bar.close()
                    print(f"stopped after step {done} of {T}; run the same command to go on", file=sys.stderr)
                    sys.exit(128 + self.stopping[0])

    def _resume(self, parts):
        """Load last.pt into `parts`, cut what log and predictions hold beyond it, and return the first step."""
        step = 0
        if self.last.exists():
            payload = load_checkpoint(self.last, self.args.device)
            for name, part in parts.items():
                part.load_state_dict(payload[name])
            self.best, self.seconds, step = payload["best"], payload["seconds"], payload["step"]
        path = self.folder / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]  # a killed process may leave half a line
        rows = [row for row in rows if row["stage"] != self.stage or row["step"] < step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        if self.preds.exists():
            with np.load(self.preds, allow_pickle=False) as old:
                self.moments = [m for m in zip(old["step"], old["source"], old["target"]) if m[0] <= step]
        self.lines = open(path, "a", buffering=1)
        return step

    def finish(self, student):
        """Write stageN.pt: student (and teacher) at the best source-validation moment, and the last-step student."""
        self.config["seconds"] = round(self.seconds, 1)
        write_atomically(self.folder / "config.json", json.dumps(self.record, indent=1).encode())
        save_checkpoint(
            self.final,
            {"config": self.config, "seconds": self.seconds, **self.best, "last_student": student.state_dict()},
        )

    # -- log and evaluation
    def check(self, step, row):
        """Stop before a loss that is not finite reaches the weights."""
        if not math.isfinite(row["loss"]):
            kept = f"{self.last} is the last good checkpoint" if self.last.exists() else "no checkpoint was written yet"
            raise UserError(f"step {step}: the loss is {row['loss']}; {kept}; look at the data or change --seed")

    def log(self, step, row):
        """One JSON object a line."""
        self.shown = f"L_c {row['cls']:.3f} L_ssl {row['ssl_tgt']:.3f}"
        try:
            self.lines.write(json.dumps({"stage": self.stage, "step": step, **row}) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.folder}/log.jsonl: {error.strerror}; free some space") from None

    def evaluate(self, step, student, task, source, labels, target):
        """Append argmax predictions of both sets; keep the moment best on the *source*. No target label but --oracle's."""
        predicted = [predict(student, points) for points in (source, target)]
        accuracy = quality(labels.cpu().numpy(), predicted[0])
        self.moments.append((step, *predicted))
        arrays = dict(zip(("step", "source", "target"), map(np.stack, zip(*self.moments))))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(self.preds, buffer.getvalue())
        if self.best is None or accuracy > self.best["source_val"]:
            copy = lambda model: {name: t.detach().clone() for name, t in model.state_dict().items()}
            self.best = {"step": step, "source_val": accuracy, "student": copy(student), "task": copy(task)}
            if task.teacher:
                self.best["teacher"] = copy(task.teacher.model)
        return f" source {accuracy:.1%}"


def plain(args):
    """Flags as plain values, for json and for checkpoints."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


@torch.no_grad()
def predict(model, points, batch=64):
    """Argmax class of each cloud (or point) in eval mode, (n, N, 3) -> uint8 (n,) or (n, N)."""
    training = model.training
    model.eval()
    out = torch.cat([model(part).argmax(-1) for part in points.split(batch)])
    model.train(training)
    return out.to(torch.uint8).cpu().numpy()


def quality(truth, predicted):
    """What a moment is selected by: accuracy of (n,) classes, mean IoU of (n, N) parts."""
    return mean_iou(truth, predicted)[0] if truth.ndim == 2 else float((predicted == truth).mean())


def mean_iou(truth, predicted, parts=8):
    """PointSegDA's metric: per cloud the mean IoU over the parts in truth or prediction, then the mean over clouds.

    (n, N) labels in 0..parts-1 -> mean IoU, and each part's mean over the clouds where it is in either (None: nowhere).
    """
    one_hot = lambda labels: labels[..., None] == np.arange(parts)  # (n, N, parts)
    y, p = one_hot(truth), one_hot(predicted)
    both, either = (y & p).sum(1), (y | p).sum(1)  # (n, parts)
    iou = np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)
    part_iou = [float(np.nanmean(column)) if np.isfinite(column).any() else None for column in iou.T]
    return float(np.nanmean(iou, 1).mean()), part_iou


def announce(seconds, steps, device):
    """Without a GPU: what the stage will take at the measured speed, and how to shorten it; "" when that is short."""
    if device != "cpu" or seconds < 1800:
        return ""
    return (
        f"no GPU: {steps:,} steps take about {seconds / 3600:.1f} h at this speed; shorter with STEPS=300, "
        "ARGS='--points 512' or, but for bodies, BACKBONE=pointnet; going on\n"
    )
