"""Clouds as pictures and as coloured .ply files."""

import io

import numpy as np

from engine.base import write_atomically

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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    scatter(figure.add_subplot(projection="3d"), points, colours / 255, title)
    save_figure(figure, path)
