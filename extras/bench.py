"""Speed and memory on this machine, as ratios within one run: `make bench` -> results/speed/bench.md.

python extras/bench.py [--device cpu|cuda] [--repeats 5] [--only tasks]
"""

import copy
import importlib.util
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
import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

import data
import models
import ssl_tasks
import stage1_ssl
import stage2_pseudo
from engine.base import ROOT, cli, provenance, write_atomically
from engine.flags import Parser, number
from engine.metrics import describe
from engine.picture import save_figure
from extras import surgery, tasks

TASK = "M_SC"


def clouds(B, N, device):
    """Random clouds on the unit sphere: the cost of a step does not depend on what they show."""
    x = torch.randn(B, N, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(x, dim=-1).to(device)


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call, device, clock=time.perf_counter):
    wait(device)
    began = clock()
    call()
    wait(device)
    return clock() - began


def side_by_side(calls, repeats, device, clock=time.perf_counter):
    """Median seconds of each call, taken in turns so that a busy machine slows all of them."""
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, device, clock))
    return {name: statistics.median(t) for name, t in times.items()}


def peak_mb(device):
    """Most memory this process has held, MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- encoders: formula, as it runs, and the floor
def matmul_rate(device, n=2048, tries=5):
    """Floating-point operations a second of one large product, the best of a few."""
    a, b = torch.randn(2, n, n, device=device)
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(tries))


def encoder_cost(backbone, form, device, repeats):
    """Forward + backward of an encoder, T-net included, B = 16, N = 1024: seconds, peak MB, and the floor in seconds,
    which is what its products take at the rate of one large product."""
    torch.manual_seed(0)
    models.PLAIN = form == "plain"
    encoder = models.build(backbone, 10).encoder.to(device)
    x, before = clouds(16, 1024, device), peak_mb(device)
    once = lambda: encoder(x)[1].sum().backward()
    times = [seconds(once, device) for _ in range(repeats + 1)]
    peak = peak_mb(device) - before
    with FlopCounterMode(display=False) as counter:
        once()
    return statistics.median(times[1:]), peak, counter.get_total_flops() / matmul_rate(device)


def encoder_table(device, repeats):
    lines = [
        "| encoder, forward + backward, B = 16, N = 1024 | by its formula, s | as it runs, s | times faster "
        "| matmul floor, s | of the floor | peak memory, MB | of the formula's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for backbone in models.BACKBONES:
        (t0, m0, _), (t1, m1, floor) = (in_a_process("--encoder", backbone, form, device, repeats) for form in FORMS)
        cells = [backbone, f"{t0:.2f}", f"{t1:.3f}", f"**{t0 / t1:.1f}**", f"{floor:.3f}", f"{t1 / floor:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{m1:.0f}", f"**{m1 / m0:.2f}**"]) + " |")
    return lines


def by_pyg(layer):
    """An EdgeConv of ours as torch_geometric's, with the same weights, on clouds (B, N, C) -> (B, N, C_out)."""
    from torch_geometric.nn import EdgeConv

    own = copy.deepcopy(torch.nn.Sequential(layer.linear, layer.bn, torch.nn.LeakyReLU(layer.slope)))
    conv = EdgeConv(own, aggr="max")  # begins with weights of its own
    near, centre = layer.linear.weight.chunk(2, 1)
    own[0].weight.data = torch.cat([centre, near], 1).detach()  # its edges are [x_i, x_j - x_i]

    def forward(x):
        rows, idx = models.fast.flat(x, models.fast.knn(x, models.K))
        to = torch.arange(len(rows), device=x.device)[:, None].expand_as(idx)
        return conv(rows, torch.stack([idx.flatten(), to.flatten()])).view(*x.shape[:2], -1)

    return forward


def edge_table(device, repeats):
    """One EdgeConv, forward + backward: ours, by its formula, and torch_geometric's where that is installed."""
    lines = [
        "| one EdgeConv, B = 16, N = 1024, k = 20 | as it runs, s | its formula | torch_geometric |",
        "|---|---|---|---|",
    ]
    for c_in, c_out in ((64, 64), (128, 256)):
        layer, x = models.EdgeConv(c_in, c_out).to(device), torch.randn(16, 1024, c_in, device=device)

        def by_formula(x, layer=layer):
            models.PLAIN = True
            try:
                return layer(x)
            finally:
                models.PLAIN = False

        forms = {"ours": layer, "formula": by_formula}
        if importlib.util.find_spec("torch_geometric"):
            forms["pyg"] = by_pyg(layer)
            assert torch.allclose(forms["pyg"](x), layer(x), atol=1e-3)  # its norm sums 300,000 rows in float32
        calls = {name: lambda form=form: form(x.requires_grad_()).sum().backward() for name, form in forms.items()}
        t = side_by_side(calls, repeats, device)
        cells = [f"{c_in} to {c_out}", f"{t['ours']:.3f}", f"**{t['formula'] / t['ours']:.1f}** times as long"]
        pyg = f"**{t['pyg'] / t['ours']:.1f}** times as long" if "pyg" in t else "not installed"
        lines.append("| " + " | ".join([*cells, pyg]) + " |")
    return lines


FORMS = ("plain", "ours")  # models.PLAIN: each layer by its formula, edge tensors and all; engine/fast.py


def in_a_process(flag, *words):
    """The numbers that this script prints for a hidden flag; a process each, because a peak cannot be reset."""
    *what, device, repeats = map(str, words)
    argv = [sys.executable, __file__, "--device", device, "--repeats", repeats, flag, *what]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


# ---------------------------------------------------------------- one step of each stage
def flags(backbone, ssl, measure, B, device, N=1024, mtl="sum"):
    """A run's flags as stage 1 has them, unmasked where nothing is measured."""
    here = dict(task=TASK, backbone=backbone, ssl=ssl, select="low" if measure else "all", measure=measure, mtl=mtl)
    sizes = dict(points=N, batch_size=B, steps=100, device=device)
    return stage1_ssl.settle(Namespace(**stage1_ssl.SETTINGS | stage2_pseudo.SETTINGS | here | sizes))


def domains(way, B, N, device):
    """Source and target of B random clouds each."""
    x, y = clouds(B, N, device), torch.arange(B, device=device) % len(way.dataset.CLASSES)
    return [data.Domain(key, way.dataset.CLASSES, False, x, x, y, y) for key in (way.source, way.target)]


def step_of(stage, backbone, ssl, measure, B, device, N=1024, mtl="sum"):
    """A function that takes one optimiser step of a stage on random clouds, half of B from each domain -> log row."""
    torch.manual_seed(0)
    args, way = flags(backbone, ssl, measure, B, device, N, mtl), data.direction(TASK)
    descend = stage1_ssl.joining(mtl)
    model = models.build(backbone, len(way.dataset.CLASSES)).to(device)
    task = ssl_tasks.build(ssl, model, args.points, way).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *task.parameters()], lr=1e-3, fused=True)
    src, tgt = domains(way, B, args.points, device)
    y = src.train_labels
    pseudo = stage2_pseudo.PseudoLabels(torch.eye(len(way.dataset.CLASSES), device=device)[y])

    def step(t=50):
        optimizer.zero_grad()
        if stage == 1:
            s, u, g = stage1_ssl.views(t, args, task, src, tgt)
            row, _ = stage1_ssl.step(t, args, model, task, s, u, g, descend=descend)
        else:
            s, u, g, w_y, who, _ = stage2_pseudo.views(t, args, task, src, tgt, pseudo)
            shift = stage2_pseudo.perturbation(t, args, who >= 0)
            row, _ = stage1_ssl.step(t, args, model, task, s, u, g, w_y, shift, descend=descend)
        optimizer.step()
        task.after_step(model, t)
        return row

    return step


def plain_deform(points, generator, least=40):
    """DefRec's deformation cloud by cloud, as its authors' code goes: a full voxel is searched for and replaced."""
    out, hole = points.clone(), torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    for b in range(len(points)):
        inside = ssl_tasks.voxel(points[b : b + 1])[0]
        full = [v for v in range(ssl_tasks.VOXELS) if (inside == v).sum() >= least] or [int(inside.mode().values)]
        v = full[int(torch.randint(len(full), (), generator=generator))]
        centre = points.new_tensor([v // 9 - 1, v // 3 % 3 - 1, v % 3 - 1]) * 2 / 3
        hole[b] = inside == v
        noise = torch.randn(int(hole[b].sum()), 3, generator=generator, device=points.device)
        out[b, hole[b]] = centre + 0.001**0.5 * noise
    return out, hole


def plain_chamfer(predicted, truth, mask):
    """Squared Chamfer distance between masked points from all differences (B, N, N, 3)."""
    d = (predicted[:, :, None] - truth[:, None]).square().sum(-1)
    d = d.masked_fill(~(mask[:, :, None] & mask[:, None]), torch.inf)
    there, back = d.min(2).values.where(mask, 0), d.min(1).values.where(mask, 0)
    return (there + back).sum(1) / mask.sum(1).clamp_min(1)


def plain_step(backbone, B, device):
    """The loss and gradients of one step of DefRec without SM-DSB, written the plain way -> function of t."""
    args, way = flags(backbone, "defrec", None, B, device), data.direction(TASK)
    model = models.build(backbone, 10).to(device)
    task = ssl_tasks.build("defrec", model, args.points, way).to(device)
    src, tgt = domains(way, B, args.points, device)

    def step(t=50):
        models.PLAIN = True
        try:
            s, u, g = stage1_ssl.views(t, args, task, src, tgt)
            torch.nn.functional.cross_entropy(model(s.x), s.y).mul(task.cls_weight).backward()
            for view in (s, u):
                deformed, hole = plain_deform(view.x, g)
                rebuilt = task.head(*model.encoder(deformed))
                (task.share * 20 * plain_chamfer(rebuilt, view.x, hole).mean()).backward()
        finally:
            models.PLAIN = False

    return step


def plain_table(device, repeats):
    """DefRec's step without SM-DSB against the same step written the plain way."""
    lines = [
        "| one step of DefRec, both domains, N = 1024 | plain, s | as it runs, s | times faster |",
        "|---|---|---|---|",
    ]
    for backbone, B in (("pointnet", 32), ("dgcnn", 16)):
        steps = {"plain": plain_step(backbone, B, device), "ours": step_of(1, backbone, "defrec", None, B, device)}
        t = side_by_side(steps, repeats, device)
        cells = [f"{backbone}, B = {B} in all", f"{t['plain']:.2f}", f"{t['ours']:.2f}"]
        lines.append("| " + " | ".join([*cells, f"**{t['plain'] / t['ours']:.1f}**"]) + " |")
    return lines


def measure_table(device, repeats):
    """A multi-task step with and without the measurer."""
    lines = ["| one step, N = 1024 | select all | with `--measure train` | more | `--measure eval` | more |"]
    lines += ["|---|---|---|---|---|---|"]
    for backbone, B in (("pointnet", 32), ("dgcnn", 16)):
        for ssl in ("selfdist", "defrec"):
            steps = {m: step_of(1, backbone, ssl, m, B, device) for m in (None, "train", "eval")}
            base, train, calm = side_by_side(steps, 4 * repeats, device).values()  # a few percent are looked for
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
    names = [name for name in ssl_tasks.TASKS if name not in ("none", "pointdan")]  # the latter has its own backbone
    steps = {name: step_of(1, "pointnet", name, "train", 32, device) for name in names}
    steps["none"] = step_of(1, "pointnet", "none", None, 32, device)
    t = side_by_side(steps, repeats, device)
    lines = [
        "| one step of SM-DSB, PointNet, B = 32 in all, N = 1024 | seconds | times no adaptation |",
        "|---|---|---|",
    ]
    return lines + [f"| {name} | {t[name]:.2f} | **{t[name] / t['none']:.1f}** |" for name in ("none", *names)]


def comparator_table(device, repeats):
    """A step of each comparator: ways to join on DefRec's step, tasks of their own, as they are trained."""
    own = [(ssl, "sum") for ssl in (*tasks.COMPARATORS, "implicit")] + [("paretoda", "paretoda"), ("cgdm", "cgdm")]
    found = {
        ("defrec", mtl): step_of(1, "pointnet", "defrec", None, 32, device, mtl=mtl)
        for mtl in ("sum", *surgery.METHODS)
    }
    found |= {
        (ssl, mtl): step_of(1, "pointnet", ssl, None, 32, device, mtl=mtl) for ssl, mtl in [("none", "sum"), *own]
    }
    found["pointdan", "sum"] = step_of(1, "pointdan", "pointdan", None, 32, device)  # its own PointNet, with nodes
    clock = time.perf_counter if device == "cuda" else time.process_time  # which other programs do not disturb
    t = side_by_side(found, repeats, device, clock)
    lines = [
        "| one step, PointNet, B = 32 in all, N = 1024 | processor seconds | times DefRec's | times no adaptation's |"
    ]
    lines += ["|---|---|---|---|"]
    for (ssl, mtl), s in t.items():
        ratios = s / t["defrec", "sum"], s / t["none", "sum"]
        lines.append(f"| --ssl {ssl} --mtl {mtl} | {s:.2f} | **{ratios[0]:.2f}** | {ratios[1]:.2f} |")
    return lines


def stage_table(device, repeats):
    """Steps a second at the paper's batch sizes, and what a run of the paper would take."""
    lines = [
        "| SM-DSB, the paper's batch size, N = 1024 | steps a second | the paper's steps, both stages | peak memory "
        "| evaluation, clouds a second |",
        "|---|---|---|---|---|",
    ]
    for backbone, B, T in (("pointnet", 128, 10_000), ("dgcnn", 64, 40_000)):
        steps = {n: step_of(n, backbone, "selfdist", "train", B, device) for n in (1, 2)}
        t = side_by_side(steps, max(2, repeats // 2), device)
        rates = ", ".join(f"stage {n} {1 / s:.2f}" for n, s in t.items())
        hours = T * (t[1] + t[2]) / 3600
        cells = [f"{backbone}, B = {B}", rates, f"{T:,} + {T:,}: {hours:.1f} h without the GCN"]
        model, x = models.build(backbone, 10).to(device), clouds(256, 1024, device)
        looks = seconds(lambda: describe(model, x), device)
        lines.append("| " + " | ".join([*cells, f"{peak_mb(device):.0f} MB", f"{256 / looks:.0f}"]) + " |")
    return lines


# ---------------------------------------------------------------- how cost grows
NS, BS = (256, 512, 1024, 2048, 4096, 8192), (8, 16, 32, 64, 128)


def step_cost(backbone, N, B, device):
    """Seconds and peak MB of a step of DefRec with SM-DSB, the second of two."""
    step, before = step_of(1, backbone, "defrec", "train", B, device, N), peak_mb(device)
    step()
    return seconds(step, device), peak_mb(device) - before


def growth_table(device, repeats):
    """Exponents of time and memory by N at the least B, by B at the least N; the figure is bench-growth.png."""
    lines = ["| one step of DefRec with SM-DSB grows | time | memory |", "|---|---|---|"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for backbone in ("pointnet", "dgcnn"):
        for axes, name, sizes in zip(panels, ("N, points a cloud", "B, clouds of both domains"), (NS, BS)):
            where = [(n, BS[0]) if sizes is NS else (NS[0], n) for n in sizes]
            found = [in_a_process("--step", backbone, N, B, device, 1) for N, B in where]
            time_by, memory_by = (np.polyfit(np.log(sizes), np.log(column), 1)[0] for column in zip(*found))
            lines.append(f"| {backbone}, with {name}, {sizes[0]} to {sizes[-1]} | {time_by:.2f} | {memory_by:.2f} |")
            axes.loglog(sizes, [s for s, _ in found], marker="o", label=f"{backbone}, exponent {time_by:.2f}")
            axes.set(xlabel=name, xticks=sizes, xticklabels=sizes)
    panels[0].set_ylabel("seconds a step")
    for axes, fixed in zip(panels, (f"B = {BS[0]}", f"N = {NS[0]}")):
        axes.set_title(fixed)
        axes.minorticks_off()
        axes.legend()
    save_figure(figure, ROOT / "results" / "speed" / "bench-growth.png")
    return lines


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=number(int, 1), default=5)
    parts = {"encoder": encoder_table, "edges": edge_table, "plain": plain_table, "measure": measure_table}
    parts |= {"tasks": task_table}
    parts |= {"comparators": comparator_table, "stages": stage_table, "growth": growth_table}
    parser.add_argument("--only", choices=parts, help="one of the tables, into a file of its own")
    parser.add_argument("--encoder", nargs=2, help=SUPPRESS)
    parser.add_argument("--step", nargs=3, help=SUPPRESS)
    args = parser.parse_args()
    if args.encoder:
        print(json.dumps(encoder_cost(*args.encoder, args.device, args.repeats)))
        return
    if args.step:
        print(json.dumps(step_cost(args.step[0], *map(int, args.step[1:]), args.device)))
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
