"""What a run has left, before it is used again: anyone may have edited or damaged it.

fits(value, {"step": whole, "curve": [{"source": finite}]})     # of plain values
read_config(run, ...), read_npz(path), read_predictions(path, ...)   # UserError names the file
"""

import math
import struct
import zipfile

import numpy as np
import torch

from engine import upright
from engine.base import UserError, one_line, read_json
from engine.flags import is_text, recorded

MOST_HEADER = 1 << 16  # bytes of a .npy
MOST_BYTES = 1 << 29  # of an array that a file unpacks to
UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of a zip; other ways unpack more than was asked for


# ---------------------------------------------------------------- the form of plain values
def whole(value):
    return type(value) is int and 0 <= value < 2**63


def finite(value):
    return type(value) in (int, float) and abs(value) < math.inf


def none(value):
    return value is None


def anything(value):
    return True


def truth(value):
    return isinstance(value, bool)


def fits(value, form):
    """Whether plain values have a form: a test, (one of these forms), [form of each], {key: form of what is there}."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], each) for key, each in form.items())
    if isinstance(form, list):
        return isinstance(value, (list, tuple)) and all(fits(each, form[0]) for each in value)
    if isinstance(form, tuple):
        return any(fits(value, each) for each in form)
    return form(value)


# ---------------------------------------------------------------- checkpoints and config.json
UPRIGHT = len(upright.QUANTILES) + upright.BINS + 1  # weights of what is upright
STAGE = {"args": {"task": is_text}, "classes": [is_text], "data": {}}
KNOWN = {"data": {"name": is_text, "fingerprint": is_text}}  # of a stage whose clouds are read again
ORIGIN = {"device": is_text, "commit": is_text, "versions": {"torch": is_text}, "seconds": finite}


def wrong_in(payload, choices=None):
    """What is wrong with the content of a checkpoint, in words, or ""; choices: see flags.recorded."""
    states = [state for name, state in payload.items() if name.endswith("student")] if isinstance(payload, dict) else []
    if not states or not all(isinstance(state, dict) for state in states) or "student" not in payload:
        return "it has no weights"
    if not all(is_weight(tensor) for state in states for tensor in state.values()):
        return "its weights are no finite numbers"
    return wrong_stage(payload.get("config"), choices)


def is_weight(x):
    """Whether a value is a tensor of finite numbers that are all there: a view may claim any shape."""
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided or x.device.type == "meta" or x.is_quantized:
        return False
    held = x.untyped_storage().nbytes() >= x.numel() * x.element_size()
    return held and not x.is_complex() and bool(x.isfinite().all())


def wrong_stage(config, choices=None):
    """What is wrong with the record of a stage, in words, or ""."""
    if not fits(config, STAGE) or choices and not fits(config, KNOWN):
        return "it has no record of its task, classes and data"
    if not 0 < len(config["classes"]) <= 256 or len(set(config["classes"])) < len(config["classes"]):
        return "its classes are none, over 256 or named twice"
    height = config["data"].get("upright", [0.0] * UPRIGHT)
    if not fits(height, [finite]) or len(height) != UPRIGHT:
        return "its weights of what is upright are none"
    flag = recorded(config["args"], choices)
    return f"its --{flag.replace('_', '-')} is none that could be given" if flag else ""


def read_config(run, choices):
    """RUN/config.json: the records of the stages that were begun, with all their flags; UserError where one is none."""
    path = run / "config.json"
    config = read_json(path)
    for name in {"stage1", "stage2"} & config.keys():
        wrong = wrong_stage(config[name], choices)
        if not wrong and (run / f"{name}.pt").exists() and not fits(config[name], ORIGIN):
            wrong = "it does not say where it was trained"
        if wrong:
            raise UserError(f"{path}: {name} is damaged, {wrong}; train this run again")
    return config


# ---------------------------------------------------------------- result.json
FLAGS = {"task": is_text, "backbone": is_text, "ssl": is_text, "select": is_text, "beta": finite, "alpha": finite}
FLAGS |= {
    "seed": whole,
    "steps": whole,
    "points": whole,
    "batch_size": whole,
    "score": is_text,
    "mtl": is_text,
}
FLAGS |= dict.fromkeys(("measure", "up", "target_up", "precision"), (is_text, none))
FLAGS |= {"perturb": ([finite], none), "gcn_iters": (whole, none)}
FLAGS |= dict.fromkeys(("scratch", "filter_stream", "unit_sphere"), (truth, none))
SCORES = {False: {"acc": finite, "mean_acc": finite, "step": whole}, True: {"miou": finite, "step": whole}}
RESULT = {"task": is_text, "per_point": truth, "n_test": whole, "points": whole, "ssl": is_text, "steps": whole}
RESULT |= {"data": {"name": is_text, "fingerprint": is_text}, **ORIGIN}


def is_result(result, flags, columns, ways):
    """Whether plain values are a result.json of one of these directions, with these flags, columns, and a stage."""
    if not fits(result, RESULT):
        return False
    scores, moment = SCORES[result["per_point"]], {"step": whole, "source": finite, "target": finite}
    known = lambda task: is_text(task) and task in ways and ways[task].per_point == result["per_point"]
    stage = {"flags": dict.fromkeys(flags, anything) | FLAGS | {"task": known}, "curve": [moment]}
    stage |= {name: (scores, none) if name == "label_free" else scores for name in columns} | {"seconds": finite}
    parts = [result[name] for name in ("stage1", "stage2") if result.get(name, False) is not None]
    return known(result["task"]) and bool(parts) and all(fits(part, stage) and part["curve"] for part in parts)


def is_record(record, flags, columns, ways):
    """Whether plain values are a line of a table's csv: a stage of a run, see eval.records."""
    if not fits(record, {"task": is_text}) or record["task"] not in ways:
        return False
    scores = SCORES[ways[record["task"]].per_point]
    form = dict.fromkeys(flags, anything) | FLAGS | {"stage": whole, "seed": whole, "last_source": finite}
    form |= {f"{name}_{key}": finite for name in columns if name != "label_free" for key in scores}
    form |= {"n_test": whole, "seconds": finite}
    return fits(record, form | dict.fromkeys(("data", "fingerprint", "device", "commit", "torch", "start"), is_text))


# ---------------------------------------------------------------- arrays
def npy_header(file):
    """Shape and type of the array in an opened .npy file, which is left behind its header; ValueError if it is none."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        (length,) = struct.unpack("<I", file.read(4))
        file.seek(-4, 1)
        if length > MOST_HEADER:  # it would be read whole
            raise ValueError(f"a header of {length} bytes")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def size_of(shape, dtype):
    """Bytes of an array."""
    return math.prod(shape) * dtype.itemsize


def read_npz(path):
    """{name: array} of an .npz that a run has written; UserError where it is none, or unpacks to over MOST_BYTES."""
    try:
        with zipfile.ZipFile(path) as parts:
            infos = parts.infolist()
            if any(info.compress_type not in UNPACKED for info in infos):
                raise ValueError("packed in an unusual way")
            if sum(info.file_size for info in infos) > MOST_BYTES:
                raise ValueError(f"unpacks to over {MOST_BYTES} bytes")
            for info in infos:
                with parts.open(info) as file:
                    if size_of(*npy_header(file)) > info.file_size:
                        raise ValueError(f"{info.filename} announces more than it holds")
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except Exception as error:  # a damaged zip fails in a dozen ways
        raise UserError(f"{path}: missing or damaged ({one_line(error)[:200]}); train this run again") from None


def read_predictions(path, C, **truths):
    """predsN.npz of a stage, M moments: step (M,), and source, target and perhaps pseudo, (M, ...) classes below C.

    truths: name -> labels (...). UserError where an array is missing or fits neither them nor C.
    """
    kept = read_npz(path)
    steps = kept.get("step", np.empty(0))
    sound = steps.ndim == 1 and len(steps) and steps.dtype.kind in "iu" and (np.diff(steps, prepend=-1) > 0).all()
    for name, truth in truths.items():
        if name in kept or name != "pseudo":
            found = kept.get(name, np.empty(0))
            sound = sound and found.shape == (len(steps), *truth.shape) and found.dtype.kind in "iu"
            sound = sound and 0 <= found.min() <= found.max() < C
    if "logits" in kept:
        logits, cluster = kept["logits"], kept.get("cluster", np.empty(0))
        sound = sound and logits.shape == (*kept["target"].shape, C) and logits.dtype.kind == "f"
        sound = sound and cluster.shape == kept["target"].shape and np.isfinite(logits).all()
    if not sound:
        raise UserError(f"{path}: not the predictions for these clouds and classes; train this run again")
    return kept
