"""Is a run what its files say? Its numbers from its weights and the data, or the run itself trained again.

python -m extras.verify --run runs/NAME             # or make verify: result.json and predictions against forward passes
python -m extras.verify --run runs/NAME --again     # or make rerun: every stage again from config.json, bit for bit

Forward passes are made on the CPU, with the weights that a run keeps: of the moment best on source validation and of
the last step. On the machine, threads and versions of the record predictions must be the same to the bit; elsewhere, as
after a GPU, a stored prediction may have lost to another by TOLERANCE of the cloud's span of logits. Other moments'
weights are not kept: their numbers are compared with the stored predictions. Exit code 2 names what disagrees.
"""

import engine  # noqa: F401, I001 - first: how torch's threads wait
import json
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

import data
import stage1_ssl
import stage2_pseudo
from engine.base import UserError, cli, file_hash, markdown, provenance, read_json, write_atomically
from engine.flags import Parser
from engine.metrics import classes_of, confusion, describe, quality, scores_of
from engine.run import Run, load_checkpoint
from eval import labels, read_result, stage_result
from models import model_of

TOLERANCE = 1e-3
MODELS = {"source_val": "student", "last": "last_student"}  # the moments whose weights are kept
STATES = ("student", "last_student", "task", "teacher")
TIMES = ("seconds", "time")  # columns of a log that no second run repeats


def elsewhere(record, device="cpu"):
    """What of this machine is not as a stage has recorded it, in words."""
    here = provenance(device)
    pairs = [("device", record["device"], here["device"])]
    pairs += [(name, record["versions"].get(name), version) for name, version in here["versions"].items()]
    return [f"{name} {new} here, {old} in the record" for name, old, new in pairs if old != new]


def finished(run):
    """The records of the stages that a run has finished, {1: ..., 2: ...}; UserError where there is none."""
    config = read_json(run / "config.json")
    found = {n: config[f"stage{n}"] for n in (1, 2) if f"stage{n}" in config and (run / f"stage{n}.pt").exists()}
    if not found:
        raise UserError(f"{run}: no stage is finished; run its command again, it goes on where it stopped")
    return found


# ---------------------------------------------------------------- numbers from weights
def settled(logits, stored, tolerance):
    """Predictions by logits (..., C), but the stored ones (...) where theirs is the highest to within the tolerance."""
    stored = torch.from_numpy(stored.astype(np.int64))
    behind = logits.amax(-1) - logits.gather(-1, stored[..., None])[..., 0]
    near = behind <= tolerance * (logits.amax(-1) - logits.amin(-1))
    return np.where(near, stored.to(torch.uint8), classes_of(logits))


def same(a, b):
    """Whether two values of a result.json are one; numbers to rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-9
    return a == b


def stage_rows(run, n, record, stated, src, tgt):
    """One stage: a row (what, in the files, recomputed, from what, whether they agree) for each of its claims."""
    checkpoint, points = load_checkpoint(run / f"stage{n}.pt"), record["args"]["points"]
    with np.load(run / f"preds{n}.npz", allow_pickle=False) as stored:
        kept = dict(stored)
    tolerance = TOLERANCE if elsewhere(record) else 0.0
    (val, y_val), rows = src.validation, []
    sides = {
        "source": (val, labels((val, y_val), points)),
        "target": (tgt.test, labels((tgt.test, tgt.test_labels), points)),
    }

    def claim(what, files, own, source="weights"):
        rows.append((f"stage {n}, {what}", files, own, source, same(files, own)))

    for moment, which in MODELS.items():
        model, step = (
            model_of(checkpoint, which),
            checkpoint["step"] if moment == "source_val" else record["args"]["steps"],
        )
        claim(f"{moment}, step", stated[moment]["step"], step)
        at, found = list(kept["step"]).index(step), {}
        for side, (clouds, truth) in sides.items():
            logits = describe(model, data.evaluation_subset(clouds, points))[0]
            found[side] = settled(logits, kept[side][at], tolerance)
            claim(f"{moment}, {side} predictions that differ", 0, int((found[side] != kept[side][at]).sum()))
            if side == "target" and "logits" in kept:
                span = float(logits.amax() - logits.amin())
                gap = float((logits - torch.from_numpy(kept["logits"][at])).abs().max())
                claim(f"{moment}, target logits that differ", 0, 0 if gap <= tolerance * span else gap)
        scores, per_class = scores_of(sides["target"][1], found["target"], tgt.classes)
        for key, value in scores.items():
            claim(f"{moment}, {key}", stated[moment][key], value)
        in_curve = next(row for row in stated["curve"] if row["step"] == step)
        claim(
            f"{moment}, source validation",
            in_curve["source"],
            quality(sides["source"][1], found["source"], len(src.classes)),
        )
        if moment == "source_val":
            claim("per_class", stated["per_class"], per_class)
            matrix = confusion(sides["target"][1].ravel(), found["target"].ravel().astype(np.int64), len(tgt.classes))
            claim("confusion", stated["confusion"], matrix.tolist())
    truths = (sides["source"][1], sides["target"][1], labels((tgt.train, tgt.train_labels), points))
    for key, value in stage_result(run / f"preds{n}.npz", *truths, tgt.classes).items():
        claim(key, stated[key], value, "stored predictions")
    return rows


def verify(run, root):
    """Rows of every finished stage, and of what the run says of its data; UserError where there is no result.json."""
    records, result = finished(run), read_result(run)
    args = records[max(records)]["args"]
    way, root = data.direction(args["task"]), root or args["data"]
    src, tgt = data.framed(*(data.load_domain(root, key) for key in (way.source, way.target)), args)
    facts = {"fingerprint": data.fingerprint(src, tgt), "name": data.data_name(root, src, tgt)}
    rows = [
        (f"data, {key}", result["data"][key], own, "data", result["data"][key] == own) for key, own in facts.items()
    ]
    rows += [
        (key, result[key], own, "data", result[key] == own)
        for key, own in {"n_test": len(tgt.test), "classes": list(tgt.classes)}.items()
    ]
    for n, record in records.items():
        if not result[f"stage{n}"]:
            raise UserError(f"{run}/result.json: without stage {n}; run python eval.py --run {run} again")
        rows += stage_rows(run, n, record, result[f"stage{n}"], src, tgt)
    return rows


# ---------------------------------------------------------------- the run again
def tensors(path):
    """The tensors of a checkpoint that say what was trained, by name."""
    payload = load_checkpoint(path)
    return {f"{part}/{name}": x for part in STATES if part in payload for name, x in payload[part].items()}


def log_rows(run, n):
    """Rows of a stage's log without its times."""
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return {row["step"]: {k: v for k, v in row.items() if k not in TIMES} for row in rows if row["stage"] == n}


def arrays(path):
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def compared(run, other, n):
    """Rows of one stage of two runs: how many tensors, arrays of predictions and rows of the log differ."""
    kinds = {
        "tensors": [tensors(folder / f"stage{n}.pt") for folder in (run, other)],
        "arrays of predictions": [arrays(folder / f"preds{n}.npz") for folder in (run, other)],
        "rows of the log": [log_rows(folder, n) for folder in (run, other)],
    }
    equal = {"tensors": torch.equal, "arrays of predictions": np.array_equal, "rows of the log": lambda a, b: a == b}
    rows = []
    for kind, (old, new) in kinds.items():
        differ = [
            name
            for name in old.keys() | new.keys()
            if name not in old or name not in new or not equal[kind](old[name], new[name])
        ]
        rows.append((f"stage {n}, {kind} that differ", 0, len(differ), f"{len(old)} trained again", not differ))
    return rows


def train_again(run, root):
    """Every finished stage from its record, in a temporary folder; rows as above."""
    rows, start = [], None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n, record in finished(run).items():
            args = Namespace(**stage1_ssl.SETTINGS | record["args"] | {"out": folder})
            args.data, args.device = root or args.data, args.device if torch.cuda.is_available() else "cpu"
            for text in elsewhere(record, args.device):
                print(f"stage {n}: {text}; bits may differ")
            if n == 2:
                start = load_checkpoint(folder / "stage1.pt") if rows else first_stage(args)
            with Run(folder, n, args) as new:
                domains = stage1_ssl.load(args, new)
                if new.config["data"]["fingerprint"] != record["data"]["fingerprint"]:
                    raise UserError(f"--data {args.data}: not the clouds that {run} was trained on; give the same data")
                stage1_ssl.train(args, new, *domains) if n == 1 else stage2_pseudo.train(args, new, *domains, start)
            rows += compared(run, folder, n)
    return rows


def first_stage(args):
    """The checkpoint that a stage 2 in a folder of its own has started from; UserError where it is another one now."""
    start = load_checkpoint(args.init)
    if file_hash(args.init) != args.init_hash:
        raise UserError(f"{args.init}: not the stage 1 that this stage 2 has started from; put that one back")
    return start


def short(value):
    """A value for a table."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    long = (
        f"{text[:12]}..." if isinstance(value, str) else f"{len(value)} values" if hasattr(value, "__len__") else text
    )
    return text if len(text) <= 40 else long


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of one run")
    parser.add_argument("--data", nargs="+", help="where its clouds are now, if they moved; own clouds: SOURCE TARGET")
    parser.add_argument("--again", action="store_true", help="train it again")
    parser.add_argument("--out", type=Path, help="a table to write, a path without an ending")
    args = parser.parse_args()
    root = args.data if args.data is None or len(args.data) > 1 else args.data[0]
    rows = (train_again if args.again else verify)(args.run, root)
    wrong = [row for row in rows if not row[-1]]
    lines = [[row[0], short(row[1]), short(row[2]), row[3], "yes" if row[4] else "NO"] for row in rows]
    record, last = provenance("cpu"), finished(args.run)[max(finished(args.run))]
    away = [] if args.again else elsewhere(last)
    near = f" within {TOLERANCE:g} of a cloud's span of logits, as {'; '.join(away)}" if away else " to the bit"
    note = (
        f"{len(rows) - len(wrong)} of {len(rows)} agree,{near}. Run: {args.run.name}, seed {last['args']['seed']}. "
        f"Data: {last['data']['name']}. Device: {record['device']}. "
        f"Commit: {record['commit']}, of the run {last['commit']}."
    )
    head = ("what", "in the files", "recomputed", "from", "agrees")
    text = "\n".join([*markdown(head, lines), "", note, ""])
    print(text, end="")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        command = "rerun" if args.again else "verify"
        write_atomically(f"{args.out}.md", f"# `make {command} RUN=runs/{args.run.name}`\n\n{text}".encode())
        print(f"wrote {args.out}.md")
    if wrong:
        what, old, new = wrong[0][:3]
        remedy = (
            "train on the machine of the record, or do not trust it"
            if args.again
            else f"run python eval.py --run {args.run}, or do not trust it"
        )
        raise UserError(f"{args.run}: {what}: {short(old)} in the files, {short(new)} recomputed; {remedy}")


if __name__ == "__main__":
    cli(main)
