"""One cloud at a time: read a file of one's own, write a coloured .ply, draw a picture. Not used in training."""

import io

import numpy as np
import torch

from common import UserError, one_line, write_atomically
from data import normalise

LEVELS = np.array([[70, 110, 180], [235, 190, 70], [200, 45, 45]], np.uint8)  # low, middle, high saliency (Fig. 5)
PLY_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}


def read_cloud(path):
    """Points (N, 3) of a .npy, .ply, .txt or .xyz file, columns 0..2, in the unit sphere; or UserError."""
    readers = {".npy": lambda: np.load(path, allow_pickle=False), ".ply": lambda: _read_ply(path)}
    try:
        array = readers.get(path.suffix.lower(), lambda: np.loadtxt(path, ndmin=2, delimiter=_delimiter(path)))()
        points = np.asarray(array[:, :3], dtype=np.float64)  # map coordinates outgrow the seven digits of float32
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a .npy, .ply, .txt or .xyz cloud") from None
    except Exception as error:  # a damaged file fails in a dozen ways
        raise UserError(
            f"{path}: not a cloud of numbers, one point a row ({one_line(error)}); give another file"
        ) from None
    sound = points.ndim == 2 and points.shape[1] == 3 and len(points) >= 2 and np.isfinite(points).all()
    if not sound or (points == points[0]).all():
        raise UserError(
            f"{path}: needs finite x, y, z of two different points at least, not an array {points.shape}; "
            "give another file"
        )
    return normalise(torch.from_numpy(points)).float()


def _delimiter(path):
    return "," if "," in path.read_text().partition("\n")[0] else None


def _read_ply(path):
    """x, y, z of the vertices of an ascii or binary .ply whose vertex element comes first."""
    head, end, body = path.read_bytes().partition(b"end_header")
    lines = [line.split() for line in head.decode("ascii").splitlines()]
    form = next((line[1] for line in lines if line[:1] == ["format"]), None)
    elements = [i for i, line in enumerate(lines) if line[:1] == ["element"]]
    if not end or form is None or not elements or lines[elements[0]][1] != "vertex":
        raise ValueError("its header is not that of a .ply with the vertices first")
    n, stop = int(lines[elements[0]][2]), elements[1] if len(elements) > 1 else len(lines)
    order = "<" if "little" in form else ">"
    fields = [(line[-1], order + PLY_TYPES[line[1]]) for line in lines[elements[0] + 1 : stop] if line[0] == "property"]
    body = body[body.index(b"\n") + 1 :]
    if form == "ascii":
        rows = [line.split()[: len(fields)] for line in body.decode("ascii").splitlines()[:n]]
        if len(rows) < n:
            raise ValueError(f"{len(rows)} of {n} vertices")
        vertex = {name: column for (name, _), column in zip(fields, np.array(rows, dtype=np.float64).T)}
    else:
        vertex = np.frombuffer(body, dtype=fields, count=n)
    return np.stack([vertex["x"], vertex["y"], vertex["z"]], 1)


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
