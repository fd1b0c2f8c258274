"""Class, confidence and skewness of the saliency map (Eq. 4, 5) of clouds of your own, in any common format.

    python saliency.py scan.ply --ckpt runs/NAME/stage1.pt [--label chair]    # one cloud: a picture and a coloured .ply
    python extras/my_cloud.py scans/ more/*.npy --ckpt runs/NAME/stage2.pt --out predictions    # predictions.csv

A cloud is measured on as many of its points as the network was trained with, or --points. Files that cannot be read
have a row with the reason, and the exit code is 2.
"""

import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine  # noqa: F401, I001 - first: how torch's threads wait
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import direction
from datasets import own
from datasets.clouds import read_cloud
from datasets.files import normalise, turn_up
from engine import upright
from engine.base import UserError, cli, csv_text, write_atomically
from engine.flags import Parser, number
from engine.picture import draw, three_levels, write_ply
from engine.run import load_checkpoint
from models import model_of
from saliency import saliency_map, skewness


def files_of(paths):
    """The files named, and of each folder all that could be clouds; UserError for what is not there."""
    found = []
    for path in paths:
        if path.is_dir():
            found += [file for file, _, _ in own.listed(path, descend=False)]
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder; give clouds, or folders that hold some")
    return list(dict.fromkeys(found))


def names_of(paths):
    """A name for the pictures of each file, none twice, whatever the folders: {path: name}."""
    names, used = {}, Counter()
    for path in paths:
        name = "_".join(part for part in path.with_suffix("").parts if part not in ("..", ".", path.anchor))
        used[name.casefold()] += 1  # some file systems do not tell A from a
        names[path] = name if used[name.casefold()] == 1 else f"{name}-{used[name.casefold()]}"
    return names


def measured(model, points, alpha, label=None):
    """One cloud (N, 3) in eval mode -> predicted class, its confidence, the class explained, skewness, map (N,)."""
    x = points[None].requires_grad_()
    logits = model(x)
    confidence, predicted = logits[0].detach().softmax(-1).max(-1)
    y = predicted[None] if label is None else torch.tensor([label])
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), x)
    S = saliency_map(x, grad, alpha)  # Eq. (4)
    return int(predicted), confidence.item(), int(y), skewness(S).item(), S[0]


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("clouds", type=Path, nargs="+", help="files of clouds or meshes, or folders that hold some")
    parser.add_argument("--ckpt", type=Path, required=True, help="RUN/stage1.pt or RUN/stage2.pt")
    parser.add_argument("--out", type=Path, help="a folder for predictions.csv; needed for more than one cloud")
    parser.add_argument("--pictures", action="store_true", help="a picture and a coloured .ply of each cloud, too")
    parser.add_argument("--label", help="class whose loss is explained (default: the predicted one)")
    parser.add_argument(
        "--up", choices=("z", "y", "x"), help="the axis that is up in the files (default: as in training)"
    )
    parser.add_argument("--points", type=number(int, 20), help="points measured (default: as in training)")
    args = parser.parse_args()

    checkpoint = load_checkpoint(args.ckpt)
    config, classes = checkpoint["config"]["args"], checkpoint["config"]["classes"]
    if args.label not in (None, *classes):
        raise UserError(f"--label {args.label}: {args.ckpt} knows {', '.join(classes)}; give one of them")
    if direction(config["task"]).per_point:
        raise UserError(f"{args.ckpt} segments; give a checkpoint of M_S, M_SC, ..., which classifies")
    model, label = model_of(checkpoint).eval(), None if args.label is None else classes.index(args.label)
    up = args.up or config.get("target_up") or config["up"]
    paths = files_of(args.clouds)
    single = len(paths) == 1 and args.out is None
    out = Path(".") if single else args.out or Path("predictions")
    out.mkdir(parents=True, exist_ok=True)
    names = {paths[0]: paths[0].stem} if single else names_of(paths)

    rows, profiles = [], []
    for path in tqdm(paths, "clouds", disable=single, dynamic_ncols=True):
        row = {"file": str(path), "class": "", "confidence": "", "skewness": "", "points": "", "note": ""}
        rows.append(row)
        try:
            cloud = read_cloud(path, args.points or config["points"])
        except UserError as error:
            row["note"] = str(error)
            continue
        points = normalise(torch.from_numpy(turn_up(cloud.points, up).copy())).float()  # (N, 3), unit sphere
        predicted, confidence, explained, sk, S = measured(model, points, config["alpha"], label)
        row |= {"class": classes[predicted], "confidence": confidence, "skewness": sk, "points": len(points)}
        row["note"] = "; ".join(cloud.notes)
        if len(profiles) < upright.MOST_CLOUDS:
            profiles.append(upright.profiles(points[None]))
        if single or args.pictures:
            title = f"{classes[predicted]} ({confidence:.0%}), saliency for {classes[explained]}: skewness {sk:+.3f}"
            picture, ply = (out / f"{names[path]}-saliency{end}" for end in (".png", ".ply"))
            draw(picture, points, write_ply(ply, points, three_levels(S[None])[0]), title)
        if single:
            for note in cloud.notes:
                warnings.warn(f"{path}: {note}")
            print(f"{path}: {title}\nwrote {picture} and {ply}")

    if profiles and "upright" in checkpoint["config"]["data"]:
        upright.warn("these clouds", profiles, checkpoint["config"]["data"]["upright"], "--up")
    bad = [row for row in rows if not row["class"]]
    if single:
        if bad:
            raise UserError(bad[0]["note"])
        return
    write_atomically(out / "predictions.csv", csv_text(rows).encode())
    print(f"wrote {out / 'predictions.csv'}: {len(rows) - len(bad)} clouds")
    if bad:
        raise UserError(f"{len(bad)} of {len(rows)} files were not read; the column `note` says why")


if __name__ == "__main__":
    cli(main)
