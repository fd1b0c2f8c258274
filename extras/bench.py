"""Speed and memory on this machine, as ratios within one run: `make bench` -> results/speed/bench.md.

python extras/bench.py [--device cpu|cuda] [--repeats 5] [--only tasks]
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from argparse import SUPPRESS, Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine  # noqa: F401, I001 - first: how torch's threads wait
import torch

import data
import models
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from engine.base import ROOT, cli, provenance, write_atomically
from engine.flags import Parser, number

TASK = "M_SC"


def clouds(B, N, device):
    """Random clouds on the unit sphere: the cost of a step does not depend on what they show."""
    x = torch.randn(B, N, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(x, dim=-1).to(device)


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call, device):
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def side_by_side(calls, repeats, device):
    """Median seconds of each call, taken in turns so that a busy machine slows all of them."""
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {name: statistics.median(t) for name, t in times.items()}


def peak_mb(device):
    """Most memory this process has held, MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- DGCNN without edge tensors (models.py)
def encoder_cost(form, device, repeats):
    """Forward + backward of the DGCNN encoder, T-net included, B = 16, N = 1024, k = 20 -> seconds, peak MB."""
    torch.manual_seed(0)
    models.PLAIN = form == "plain"
    encoder = models.build("dgcnn", len(data.direction(TASK).dataset.CLASSES)).encoder.to(device)
    x = clouds(16, 1024, device)
    before = peak_mb(device)
    times = [seconds(lambda: encoder(x)[1].sum().backward(), device) for _ in range(repeats + 1)]
    return statistics.median(times[1:]), peak_mb(device) - before


def encoder_table(device, repeats):
    cost = {}
    for form in ("plain", "ours"):  # a process each, because a peak cannot be reset
        argv = [sys.executable, __file__, "--device", device, "--repeats", str(repeats), "--encoder", form]
        cost[form] = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    (t0, m0), (t1, m1) = cost["plain"], cost["ours"]
    return [
        "| DGCNN encoder, forward + backward, B = 16, N = 1024, k = 20 | seconds | peak memory, MB |",
        "|---|---|---|",
        f"| each layer by its formula, edge tensors (models.PLAIN) | {t0:.2f} | {m0:.0f} |",
        f"| as it runs (engine/fast.py) | {t1:.2f} | {m1:.0f} |",
        f"| ratio | **{t0 / t1:.1f} times faster** | **{m1 / m0:.2f} of the memory** |",
    ]


# ---------------------------------------------------------------- one step of each stage
def flags(backbone, ssl, measure, B, device):
    """A run's flags as stage 1 has them, unmasked where nothing is measured."""
    here = dict(task=TASK, backbone=backbone, ssl=ssl, select="low" if measure else "all", measure=measure)
    sizes = dict(points=1024, batch_size=B, steps=100, device=device)
    return stage1_ssl.settle(Namespace(**stage1_ssl.SETTINGS | stage2_pseudo.SETTINGS | here | sizes))


def step_of(stage, backbone, ssl, measure, B, device):
    """A function that takes one optimiser step of a stage on random clouds, half of B from each domain -> log row."""
    torch.manual_seed(0)
    args, way = flags(backbone, ssl, measure, B, device), data.direction(TASK)
    model = models.build(backbone, len(way.dataset.CLASSES)).to(device)
    task = ssl_tasks.build(ssl, model, args.points, way).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *task.parameters()], lr=1e-3, fused=True)
    x, y = clouds(B, args.points, device), torch.arange(B, device=device) % len(way.dataset.CLASSES)
    src, tgt = (data.Domain(key, way.dataset.CLASSES, False, x, x, y, y) for key in (way.source, way.target))
    pseudo = stage2_pseudo.PseudoLabels(torch.eye(len(way.dataset.CLASSES), device=device)[y])

    def step(t=50):
        optimizer.zero_grad()
        if stage == 1:
            s, u, g = stage1_ssl.views(t, args, task, src, tgt)
            row, _ = stage1_ssl.step(t, args, model, task, s, u, g)
        else:
            s, u, g, w_y, who, _ = stage2_pseudo.views(t, args, task, src, tgt, pseudo)
            shift = stage2_pseudo.perturbation(t, args, who >= 0)
            row, _ = stage1_ssl.step(t, args, model, task, s, u, g, w_y, shift)
        optimizer.step()
        task.after_step(model, t)
        return row

    return step


def measure_table(device, repeats):
    """A multi-task step with and without the measurer."""
    lines = ["| one step, N = 1024 | select all | with `--measure train` | more | `--measure eval` | more |"]
    lines += ["|---|---|---|---|---|---|"]
    for backbone, B in (("pointnet", 32), ("dgcnn", 16)):
        for ssl in ("selfdist", "defrec"):
            steps = {m: step_of(1, backbone, ssl, m, B, device) for m in (None, "train", "eval")}
            base, train, calm = side_by_side(steps, repeats, device).values()
            cells = [
                f"{backbone}, {ssl}, B = {B} in all",
                f"{base:.2f} s",
                f"{train:.2f} s",
                f"**{train / base - 1:+.1%}**",
            ]
            lines.append("| " + " | ".join([*cells, f"{calm:.2f} s", f"{calm / base - 1:+.1%}"]) + " |")
    return lines


def task_table(device, repeats):
    """A step of each self-supervised task beside no adaptation: all of it, SM-DSB's measuring included."""
    names = [name for name in ssl_tasks.TASKS if name != "none"]
    steps = {name: step_of(1, "pointnet", name, "train", 32, device) for name in names}
    steps["none"] = step_of(1, "pointnet", "none", None, 32, device)
    t = side_by_side(steps, repeats, device)
    lines = [
        "| one step of SM-DSB, PointNet, B = 32 in all, N = 1024 | seconds | times no adaptation |",
        "|---|---|---|",
    ]
    return lines + [f"| {name} | {t[name]:.2f} | **{t[name] / t['none']:.1f}** |" for name in ("none", *names)]


def stage_table(device, repeats):
    """Steps a second at the paper's batch sizes, and what a run of the paper would take."""
    lines = [
        "| SM-DSB, the paper's batch size, N = 1024 | steps a second | the paper's steps, both stages | peak memory |",
        "|---|---|---|---|",
    ]
    for backbone, B, T in (("pointnet", 128, 10_000), ("dgcnn", 64, 40_000)):
        steps = {n: step_of(n, backbone, "selfdist", "train", B, device) for n in (1, 2)}
        t = side_by_side(steps, max(2, repeats // 2), device)
        rates = ", ".join(f"stage {n} {1 / s:.2f}" for n, s in t.items())
        hours = T * (t[1] + t[2]) / 3600
        cells = [f"{backbone}, B = {B}", rates, f"{T:,} + {T:,}: {hours:.1f} h without the GCN"]
        lines.append("| " + " | ".join([*cells, f"{peak_mb(device):.0f} MB"]) + " |")
    return lines


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=number(int, 1), default=5)
    parts = {"encoder": encoder_table, "measure": measure_table, "tasks": task_table, "stages": stage_table}
    parser.add_argument("--only", choices=parts, help="one of the tables, into a file of its own")
    parser.add_argument("--encoder", choices=("ours", "plain"), help=SUPPRESS)
    args = parser.parse_args()
    if args.encoder:
        print(json.dumps(encoder_cost(args.encoder, args.device, args.repeats)))
        return
    record = provenance(args.device)
    note = f"{record['device']}, torch {record['versions']['torch']}, commit {record['commit']}; "
    note += f"median of {args.repeats}, taken in turns."
    lines = []
    for part in [parts[args.only]] if args.only else parts.values():
        rows = [*part(args.device, args.repeats), ""]
        print("\n".join(rows), flush=True)
        lines += rows
    gpu, only = "-gpu" if args.device == "cuda" else "", f"-{args.only}" if args.only else ""
    path = ROOT / "results" / "speed" / f"bench{only}{gpu}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(["# Speed and memory: `make bench`", "", note, "", *lines]).encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    cli(main)
