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

import fcntl
import io
import json
import math
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from engine.base import UserError, plain, provenance, write_atomically

SAVES = 20  # how often a stage writes last.pt


# ---------------------------------------------------------------- checkpoints
def save_checkpoint(path, payload):
    """Tensors and plain values only; serialised in memory first, so that a full disk leaves the old file whole."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path, device="cpu"):
    """A checkpoint of either stage; UserError if it is missing or is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of some files that are refused below
            payload = torch.load(path, map_location=device, weights_only=True)
            payload["config"]["args"]["task"], payload["config"]["classes"], payload["student"]
        return payload
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train one with stage1_ssl.py first") from None
    except Exception:  # a pickle, a zip and a tensor file fail in a dozen ways
        raise UserError(f"{path}: not a checkpoint of this repository; give RUN/stage1.pt or RUN/stage2.pt") from None


def weights(model):
    """A copy of a module's state."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# ---------------------------------------------------------------- the folder
class Run:
    """Refuses a second process and other arguments; cuts what log and predictions hold past a resumed step."""

    def __init__(self, folder, stage, args):
        self.folder, self.stage, self.args = Path(folder), stage, args
        self.last, self.final = self.folder / f"last{stage}.pt", self.folder / f"stage{stage}.pt"
        self.preds, self.moments, self.best = self.folder / f"preds{stage}.npz", [], None
        self.stopping, self.seconds, self.shown = [], 0.0, ""
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
        self.lock.close()

    def _locked(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / ".lock", "w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system when the process dies
            return lock
        except BlockingIOError:
            raise UserError(
                f"{self.folder}: another process is training here; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise UserError(f"--out {self.folder}: {error.strerror}; choose a folder that can be written") from None

    def _read_config(self):
        path = self.folder / "config.json"
        try:
            return json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            raise UserError(f"{path}: not readable as JSON; choose another --out or remove the folder") from None

    def _compare(self, part, new):
        old = self.record.get(f"stage{self.stage}", {}).get(part, {})
        for key in sorted(old.keys() | new.keys()) if old else ():
            if key not in ("device", "out", "init", "upright") and old.get(key) != new.get(key):
                raise UserError(
                    f"{self.folder} holds a run with {key} = {old.get(key)}, not {new.get(key)}; "
                    "choose another --out, or the same arguments to go on with it"
                )

    def _write_config(self):
        write_atomically(self.folder / "config.json", json.dumps(self.record, indent=1).encode())

    @property
    def finished(self):
        """True when stageN.pt was written; say so in one line and leave."""
        if self.final.exists():
            print(f"{self.final} is finished; nothing to do")
        return self.final.exists()

    def begin(self, classes, **data):
        """Record what the run is (arguments, classes, data, commit, versions) before its first step."""
        self._compare("data", data)
        origin, before = provenance(self.args.device), self.record.get(f"stage{self.stage}", {})
        for key in ("commit", "device"):  # a run that goes on elsewhere names all of its places
            places = before.get(key, origin[key])
            origin[key] = places if places.split(", then ")[-1] == origin[key] else f"{places}, then {origin[key]}"
        self.config = {"args": plain(self.args), "data": data, "classes": list(classes), **origin}
        self.record[f"stage{self.stage}"] = self.config
        self._write_config()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask_to_stop)

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
        first = self._resume(parts)
        start = self.began = time.time()
        if not self.moments:
            text = evaluate(0)
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
                    self._save(done, parts)
                if self.stopping:
                    bar.close()
                    print(f"stopped after step {done} of {T}; run the same command to go on", file=sys.stderr)
                    sys.exit(128 + self.stopping[0])

    def _save(self, done, parts):
        now = time.time()
        self.seconds, self.began = self.seconds + now - self.began, now
        state = {name: part.state_dict() for name, part in parts.items()}
        head = {"config": self.config, "step": done, "seconds": self.seconds, "best": self.best}
        save_checkpoint(self.last, head | state)

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
                moments = [dict(zip(old, row)) for row in zip(*old.values())]
            self.moments = [moment for moment in moments if moment["step"] <= step]
        self.lines = open(path, "a", buffering=1)
        return step

    def log(self, step, row):
        """One JSON object a line."""
        self.shown = f"L_c {row['cls']:.3f} L_ssl {row['ssl_tgt']:.3f}"
        try:
            self.lines.write(json.dumps({"stage": self.stage, "step": step, **row}) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.folder}/log.jsonl: {error.strerror}; free some space") from None

    def check(self, step, row):
        """Stop before a loss that is not finite reaches the weights."""
        if not math.isfinite(row["loss"]):
            kept = f"{self.last} is the last good checkpoint" if self.last.exists() else "no checkpoint was written yet"
            raise UserError(f"step {step}: the loss is {row['loss']}; {kept}; look at the data or change --seed")

    # -- what it leaves behind
    def moment(self, step, quality, arrays, **models):
        """Append a moment's predictions, name -> array, to predsN.npz; keep the models of the best moment.

        quality: accuracy or mean IoU on the *source*, by which the best is chosen. Step 0 is kept, but never chosen.
        """
        self.moments.append({"step": step, **arrays})
        arrays = {name: np.stack([moment[name] for moment in self.moments]) for name in self.moments[0]}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(self.preds, buffer.getvalue())
        if step and (self.best is None or quality > self.best["source_val"]):
            states = {name: weights(model) for name, model in models.items()}
            self.best = {"step": step, "source_val": quality, **states}

    def finish(self, student):
        """Write stageN.pt: the models at the best source-validation moment, and the last-step student."""
        self.config["seconds"] = round(self.seconds, 1)
        self._write_config()
        head = {"config": self.config, "seconds": self.seconds, **self.best}
        save_checkpoint(self.final, head | {"last_student": student.state_dict()})


def announce(seconds, steps, device):
    """Without a GPU: what the stage will take at the measured speed, and how to shorten it; "" when that is short."""
    if device != "cpu" or seconds < 1800:
        return ""
    return (
        f"no GPU: {steps:,} steps take about {seconds / 3600:.1f} h at this speed; shorter with STEPS=300, "
        "ARGS='--points 512' or, but for bodies, BACKBONE=pointnet; going on\n"
    )
