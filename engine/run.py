"""One stage in one folder: who may train there, where it goes on, what it leaves behind.

A run's folder holds config.json, log.jsonl, and for stage N: lastN.pt (to resume), stageN.pt (when finished) and
predsN.npz (what was predicted for source validation and target test at every evaluation moment).

    with Run(folder, 1, args) as run:
        run.begin(classes, name=..., fingerprint=...)
        for t in run.loop(parts, evaluate):     # from step 0, or from where the folder stands
            ...
            run.log(t, row)
        run.finish(model)
"""

import io
import json
import math
import os
import signal
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from engine import parallel
from engine.base import UserError, out_of_memory, plain, provenance, write_atomically
from engine.checked import fits, whole, wrong_in

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SIGNALS = "SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"  # each asks a stage to stop
SAVES = 20  # how often a stage writes last.pt
UNREAD = 20  # steps after which a GPU is asked what they gave, for the bar


# ---------------------------------------------------------------- checkpoints
def save_checkpoint(path, payload, *remedy):
    """Tensors and plain values only; serialised in memory first, so that a full disk leaves the old file whole."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_atomically(path, buffer.getvalue(), *remedy)


def load_checkpoint(path, device="cpu", choices=None):
    """A checkpoint of either stage; UserError if it is missing, or is not one as Run writes it.

    choices: of --ssl, --backbone and --score, where a run goes on from it; without them it can but predict.
    """
    wrong = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of some files that are refused below
            with zipfile.ZipFile(path) as parts:  # which Run does not compress: it unpacks to no more than it is
                wrong = any(part.compress_type for part in parts.infolist()) and "it is compressed"
                wrong = wrong or parts.testzip() and "bytes of it have changed"  # torch does not look
            payload = None if wrong else torch.load(path, map_location=device, weights_only=True)
        wrong = wrong or wrong_in(payload, choices)
        if not wrong:
            return payload
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train one with stage1_ssl.py first") from None
    except Exception as error:  # a pickle, a zip and a tensor file fail in a dozen ways
        if out_of_memory(error):
            raise
    more = f" ({wrong})" if wrong else ""
    raise UserError(f"{path}: not a checkpoint of this repository{more}; give RUN/stage1.pt or RUN/stage2.pt")


def weights(model):
    """A copy of a module's state."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# ---------------------------------------------------------------- the folder
def take_lock(file):
    """Held until the process dies; BlockingIOError where another holds it, OSError where none can be taken."""
    if fcntl is None:
        raise OSError("no locks on this system")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Run:
    """Refuses a second process and other arguments; cuts what log and predictions hold past a resumed step.

    Killed at any moment, it goes on to the same bits: each file but the log is replaced as a whole, log and predictions
    are on the disk before the checkpoint that counts on them, and stageN.pt comes last.
    """

    def __init__(self, folder, stage, args):
        self.elsewhere = parallel.begin(args)
        self.folder, self.stage, self.args = Path(self.elsewhere.name if self.elsewhere else folder), stage, args
        self.last, self.final = self.folder / f"last{stage}.pt", self.folder / f"stage{stage}.pt"
        self.preds, self.moments, self.best = self.folder / f"preds{stage}.npz", [], None
        self.rows = self.folder / "log.jsonl"
        self.stopping, self.seconds, self.shown, self.unwritten = [], 0.0, "", []
        self.bar, self.handlers = None, {}
        self.lock = self._locked()
        try:
            self.record = self._read_config()
            self._compare("args", plain(args))
        except UserError:
            self.lock.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar:
            self.bar.close()
        for number, old in self.handlers.items():
            signal.signal(number, old)
        self.lock.close()
        parallel.end()

    def _locked(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / ".lock", "w")
        except OSError as error:
            raise UserError(f"--out {self.folder}: {error.strerror}; choose a folder that can be written") from None
        try:
            take_lock(lock)
        except BlockingIOError:
            raise UserError(
                f"{self.folder}: another process is training here; wait for it or choose another --out"
            ) from None
        except OSError:
            warnings.warn(f"{self.folder}: no lock can be taken here, so take care that no second process trains in it")
        return lock

    def _read_config(self):
        path = self.folder / "config.json"
        try:
            record = json.loads(path.read_text()) if path.exists() else {}
            record.get(f"stage{self.stage}", {}).get("args", {}).keys()
            return record
        except (AttributeError, OSError, ValueError):
            raise UserError(f"{path}: not readable as JSON; choose another --out or remove the folder") from None

    def _compare(self, part, new):
        old = self.record.get(f"stage{self.stage}", {}).get(part, {})
        for key in differing(old, new) if old else ():
            raise UserError(
                f"{self.folder} holds a run with {key} = {old.get(key)}, not {new.get(key)}; "
                "choose another --out, or the same arguments to go on with it"
            )

    def _write_config(self):
        write_atomically(self.folder / "config.json", json.dumps(self.record, indent=1).encode(), self._kept())

    def _kept(self):
        """The remedy of a run that ends in an error: what it leaves, and how to go on."""
        if os.path.exists(self.last):
            return f"put that right, and the same command goes on from {self.last}, the last good checkpoint"
        return f"put that right, and the same command begins this stage anew, as there is no {self.last}"

    @property
    def finished(self):
        """True when stageN.pt was written; say so in one line and leave."""
        if not parallel.told(self.final.exists()):
            return False
        try:
            if not self.elsewhere:
                load_checkpoint(self.final)
        except UserError:
            raise UserError(
                f"{self.final}: damaged; remove it, and the same command goes on from {self.last}"
            ) from None
        print(f"{self.final} is finished; nothing to do")
        return True

    def begin(self, classes, **data):
        """Record what the run is (arguments, classes, data, commit, versions) before its first step."""
        self._compare("data", data)
        origin, before = provenance(self.args.device), self.record.get(f"stage{self.stage}", {})
        origin["device"] += f", {parallel.size()} processes" if parallel.size() > 1 else ""
        for key in ("commit", "device"):  # a run that goes on elsewhere names all of its places
            places = before.get(key, origin[key])
            origin[key] = places if places.split(", then ")[-1] == origin[key] else f"{places}, then {origin[key]}"
        self.config = {"args": plain(self.args), "data": data, "classes": list(classes), **origin}
        self.record[f"stage{self.stage}"] = self.config
        self._write_config()
        for path in self.folder.glob("*.[0-9]*.tmp"):  # of a killed process
            path.unlink(missing_ok=True)
        for number in [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does with SIGHUP
                self.handlers[number] = signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, number, frame):
        self.stopping.append(number)
        signal.signal(number, signal.SIG_DFL)  # asked twice, it dies at once

    # -- the loop; resuming is running the same command again
    def loop(self, parts, evaluate):
        """Yield t = 0 .. T-1 from where the folder stands; between steps evaluate, save, and stop when asked to.

        parts: name -> object with state_dict and load_state_dict, all that the loop needs to go on bit for bit.
        evaluate(steps done) -> text for the bar.
        """
        T, save_every, text = self.args.steps, max(1, self.args.steps // SAVES), ""
        known = self._resume(parts), self.best, self.seconds
        first, self.best, self.seconds = parallel.join(parts, self.args.device, known)
        start = self.began = time.time()
        if not first:
            text = evaluate(0)
        own = {"dynamic_ncols": True, "disable": self.elsewhere is not None}
        self.bar = bar = tqdm(range(first, T), f"stage {self.stage}", T, initial=first, unit="step", **own)
        for t in bar:
            yield t
            stop = parallel.agree(self.stopping, parts.get("pseudo"))  # who asks later is heard after the next step
            done = t + 1
            evaluating = done % self.args.eval_every == 0 or done == T
            saving = done % save_every == 0 or done == T or stop
            if evaluating or saving or self.args.device == "cpu" or done % UNREAD == 0:
                self.flush(durable=saving)
            if evaluating:
                text = evaluate(done)
            bar.set_postfix_str(f"{self.shown}{text}", refresh=False)
            if done - first == 10:
                bar.write(announce((time.time() - start) / 10 * (T - done), T, self.args.device), end="")
            if saving:
                self._save(done, parts)
            if stop:
                self._stop(done, stop)

    def _stop(self, done, number):
        self.bar.close()
        parallel.wait()
        print(f"stopped after step {done} of {self.args.steps}; run the same command to go on", file=sys.stderr)
        sys.exit(128 + number)

    def _save(self, done, parts):
        now = time.time()
        self.seconds, self.began = self.seconds + now - self.began, now
        state = {name: part.state_dict() for name, part in parts.items()}
        head = {"config": self.config, "step": done, "seconds": self.seconds, "best": self.best}
        save_checkpoint(self.last, head | state, self._kept())

    def _resume(self, parts):
        """Load last.pt into `parts`, cut what log and predictions hold beyond it, and return the first step.

        UserError where one of the three is damaged: a run goes on to the same bits, or not at all.
        """
        anew = f"put back a whole copy, or remove {self.last} to begin the stage anew"
        step = self._load(parts, anew) if self.last.exists() else 0
        rows, unread = read_rows(self.rows)
        rows = [row for row in rows if row["stage"] != self.stage or row["step"] < step]
        if [row["step"] for row in rows if row["stage"] == self.stage] != list(range(step)):
            raise UserError(f"{self.rows}: not every step before {step}, where {self.last} stands, is in it; {anew}")
        if unread:
            warnings.warn(f"{self.rows}: {unread} lines that are no rows of a log are dropped")
        moments = read_moments(self.preds) if step else []  # without a checkpoint, all are predicted anew
        self.moments = [moment for moment in moments if moment["step"] <= step]
        due = [t for t in range(step + 1) if t % self.args.eval_every == 0 or t == self.args.steps]
        if step and [moment["step"] for moment in self.moments] != due:
            raise UserError(
                f"{self.preds}: the predictions up to step {step}, where {self.last} stands, are damaged; {anew}"
            )
        write_atomically(self.rows, "".join(json.dumps(row) + "\n" for row in rows).encode(), self._kept())
        return step

    def _load(self, parts, anew):
        """last.pt into `parts` -> steps done; UserError where it is damaged or of another run."""
        wrong = "damaged"
        try:
            payload = load_checkpoint(self.last, self.args.device)
            others = [key for part in ("args", "data") for key in differing(payload["config"][part], self.config[part])]
            if not others:
                for name, part in parts.items():
                    part.load_state_dict(payload[name])
                self.best, self.seconds = payload["best"], payload["seconds"]
                return payload["step"]
            wrong = f"of a run with another {others[0]}"
        except Exception as error:  # a state that is not whole fails in a dozen ways
            if out_of_memory(error):
                raise
        raise UserError(f"{self.last}: {wrong}; {anew}")

    def log(self, step, row):
        """A step's row of numbers and tensors (), which are read later, so that no step waits for a GPU."""
        self.unwritten.append((step, row))

    def flush(self, durable=False):
        """One JSON object a line; UserError at a loss that is not finite, before what came of it is kept.

        durable: on the disk, not only with the system, as a checkpoint must not be ahead of the log.
        """
        rows, self.unwritten = self.unwritten, []
        try:
            with open(self.rows, "ab") as file:
                for step, row in rows:
                    row = {name: value.item() if torch.is_tensor(value) else value for name, value in row.items()}
                    self.shown = f"L_c {row['cls']:.3f} L_ssl {row['ssl_tgt']:.3f}"
                    if not math.isfinite(row["loss"]):
                        loss, last = row["loss"], f"{self.last} is the last good checkpoint"
                        kept = last if self.last.exists() else "no checkpoint was written yet"
                        raise UserError(f"step {step}: the loss is {loss}; {kept}; look at the data or change --seed")
                    file.write(json.dumps({"stage": self.stage, "step": step, **row}).encode() + b"\n")
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.rows}: {error.strerror}; {self._kept()}") from None

    # -- what it leaves behind
    def moment(self, step, quality, arrays, **models):
        """Append a moment's predictions, name -> array, to predsN.npz; keep the models of the best moment.

        quality: accuracy or mean IoU on the *source*, by which the best is chosen. Step 0 is kept, but never chosen.
        """
        self.moments.append({"step": step, **arrays})
        arrays = {name: np.stack([moment[name] for moment in self.moments]) for name in self.moments[0]}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(self.preds, buffer.getvalue(), self._kept())
        if step and (self.best is None or quality > self.best["source_val"]):
            states = {name: weights(model) for name, model in models.items()}
            self.best = {"step": step, "source_val": quality, **states}

    def finish(self, student):
        """Write stageN.pt: the models at the best source-validation moment, and the last-step student."""
        self.config["seconds"] = round(self.seconds, 1)
        self._write_config()
        head = {"config": self.config, "seconds": self.seconds, **self.best}
        save_checkpoint(self.final, head | {"last_student": student.state_dict()}, self._kept())
        if number := parallel.agree(self.stopping, None):  # asked too late for a step
            self._stop(self.args.steps, number)


def differing(old, new):
    """Which arguments, or facts of the data, make another run."""
    apart = ("device", "out", "init", "upright")
    return [key for key in sorted(old.keys() | new.keys()) if key not in apart and old.get(key) != new.get(key)]


def read_rows(path):
    """Rows of a log.jsonl, and how many of its lines are none: a killed process, or a full disk, leaves half a line."""
    rows, lines = [], path.read_bytes().splitlines() if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        rows += [row] if fits(row, {"stage": whole, "step": whole}) else []
    return rows, len(lines) - len(rows)


def read_moments(path):
    """What predsN.npz holds, a dict of arrays for each moment; [] where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as old:
            return [dict(zip(old, row)) for row in zip(*old.values())] if "step" in old else []
    except Exception:  # a zip and an array fail in a dozen ways
        return []


def announce(seconds, steps, device):
    """Without a GPU: what the stage will take at the measured speed, and how to shorten it; "" when that is short."""
    if device != "cpu" or seconds < 1800:
        return ""
    return (
        f"no GPU: {steps:,} steps take about {seconds / 3600:.1f} h at this speed; shorter with STEPS=300, "
        "ARGS='--points 512' or, but for bodies, BACKBONE=pointnet; going on\n"
    )
