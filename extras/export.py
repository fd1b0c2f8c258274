"""Built-in shapes as files of one's own, to try own clouds with: labelled meshes, and scans without labels, y up.

python extras/export.py DIR [--classes 6]     # DIR/models/<class>/*.off, DIR/scans/*.ply and .txt, DIR/truth.csv

truth.csv has the class of each scan, for whoever wants to see how many were right; nothing else opens it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm import tqdm

from datasets import shapes
from datasets.pointda import CLASSES
from engine.base import cli, csv_text, write_atomically
from engine.flags import Parser, number


def off(triangles):
    """Triangles (T, 3, 3) as an .off mesh."""
    lines = ["OFF", f"{3 * len(triangles)} {len(triangles)} 0"]
    lines += [f"{x:.6f} {y:.6f} {z:.6f}" for x, y, z in triangles.reshape(-1, 3)]
    return "\n".join([*lines, *(f"3 {i} {i + 1} {i + 2}" for i in range(0, 3 * len(triangles), 3)), ""])


def ply(points):
    """Points (N, 3) as a binary .ply."""
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    head += [*(f"property float {axis}" for axis in "xyz"), "end_header", ""]
    return "\n".join(head).encode() + points.astype("<f4").tobytes()


def text(points):
    """Points (N, 3) as a table with a header, separated by semicolons."""
    return "\n".join(["x;y;z", *(f"{x};{y};{z}" for x, y, z in points.astype(np.float32)), ""])


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--classes", type=number(int, 2, len(CLASSES)), default=6, help="so many of the ten")
    args = parser.parse_args()
    truth = []
    for split in ("train", "test"):
        for key, label, i, triangles, points in tqdm(shapes.built(("M", "SC"), split), split, dynamic_ncols=True):
            if label >= args.classes:
                continue
            if key == "M":
                path, content = Path("models") / CLASSES[label] / split / f"{i:03d}.off", off(triangles).encode()
            else:
                y_up = np.stack([points[:, 0], points[:, 2], -points[:, 1]], 1)
                end = "ply" if i % 2 else "txt"
                path = Path("scans") / split / f"{i:03d}.{end}"
                content = ply(y_up) if i % 2 else text(y_up).encode()
                truth.append({"file": path.name, "split": split, "class": CLASSES[label]})
            (args.folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.folder / path, content)
    write_atomically(args.folder / "truth.csv", csv_text(truth).encode())
    print(f"wrote {args.folder}/models, {args.folder}/scans (y up, without labels) and {args.folder}/truth.csv")


if __name__ == "__main__":
    cli(main)
