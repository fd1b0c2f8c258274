"""Clouds as pictures and as coloured .ply files."""

import io

import numpy as np
from matplotlib.figure import Figure

from engine.base import write_atomically
from engine.metrics import mean_iou

LEVELS = np.array([[70, 110, 180], [235, 190, 70], [200, 45, 45]], np.uint8)  # low, middle, high saliency (Fig. 5)


def three_levels(saliency):
    """Fig. 5: each map cut into three levels, at d/3 and 2d/3 of its range d, (..., N) -> (..., N) in {0, 1, 2}."""
    low, high = saliency.amin(-1, keepdim=True), saliency.amax(-1, keepdim=True)
    return ((saliency - low) / (high - low).clamp_min(1e-30) * 3).long().clamp(0, 2)


def write_ply(path, points, level):
    """Write points (N, 3) as a .ply coloured by saliency level (N,) in {0, 1, 2}; returns the colours (N, 3) uint8."""
    colours = LEVELS[np.asarray(level)]
    vertex = np.zeros(len(points), dtype=[("p", "<f4", 3), ("c", "u1", 3)])
    vertex["p"], vertex["c"] = np.asarray(points), colours
    properties = [f"property float {c}" for c in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header", ""]
    write_atomically(path, "\n".join(head).encode() + vertex.tobytes())
    return colours


def scatter(axes, points, colours, title, size=6):
    """One cloud (N, 3) in a 3D axes of matplotlib, z up, without a frame."""
    axes.scatter(*np.asarray(points).T, c=np.asarray(colours), s=size, depthshade=False, linewidths=0)
    axes.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), zlim=(-0.75, 0.75))
    axes.set_box_aspect((1, 1, 1))
    axes.view_init(20, -60)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)


def save_figure(figure, path):
    """Write a matplotlib figure as a .png, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, bbox_inches="tight")
    write_atomically(path, buffer.getvalue())


def draw(path, points, colours, title):
    """One coloured cloud as a picture."""
    figure = Figure(figsize=(5, 5))
    scatter(figure.add_subplot(projection="3d"), points, colours / 255, title)
    save_figure(figure, path)


def draw_confusion(axes, matrix, names, shares):
    """Counts (C, C), rows the truth, as shares of each row in colour; counts, or shares, written in."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    for i, j in zip(*matrix.nonzero()):
        text, colour = f"{share[i, j]:.0%}" if shares else matrix[i, j], "white" if share[i, j] > 0.5 else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)


def draw_parts(points, truth, predicted, names, title):
    """True and predicted parts of up to three clouds, (m, N, 3), (m, N) x2, side by side -> figure."""
    from matplotlib import colormaps

    chosen = np.linspace(0, len(points) - 1, min(3, len(points))).astype(int)
    figure = Figure(figsize=(3 * len(chosen), 7))
    for column, i in enumerate(chosen):
        x = points[i] - points[i].mean(0)
        x = (x / x.norm(dim=-1).amax()).roll(2 - int((x.amax(0) - x.amin(0)).argmax()), 1)  # upright, whichever is up
        iou = mean_iou(truth[i : i + 1], predicted[i : i + 1], len(names))[0]
        pair = (truth[i], f"test cloud {i}: true"), (predicted[i], f"predicted, mean IoU {iou:.2f}")
        for line, (part, text) in enumerate(pair):
            axes = figure.add_subplot(2, len(chosen), line * len(chosen) + column + 1, projection="3d")
            scatter(axes, x, colormaps["tab10"](part), text)
    handles = [figure.axes[0].plot([], [], "o", color=f"C{c}", label=name)[0] for c, name in enumerate(names)]
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=8)
    return figure
