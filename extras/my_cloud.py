"""Class, confidence and skewness of the saliency map (Eq. 4, 5) of clouds of your own, in any common format.

    python saliency.py scan.ply --ckpt runs/NAME/stage1.pt [--label chair]    # one cloud: a picture and a coloured .ply
    python extras/my_cloud.py scans/ more/*.npy --ckpt runs/NAME/stage2.pt --out predictions    # predictions.csv
    ... --html                                                               # pages for a browser, in which clouds turn

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
from engine.base import UserError, cli, csv_text, visible, write_atomically
from engine.flags import Parser, number
from engine.picture import draw, three_levels, write_ply
from engine.run import load_checkpoint
from extras import page
from models import model_of
from saliency import saliency_map, skewness


def files_of(paths):
    """The files named, and of each folder all that could be clouds; UserError for what is not there."""
    found = []
    for path in map(Path.expanduser, paths):
        if path.is_dir():
            found += [file for file, _, _ in own.listed(path, descend=False)]
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder; give clouds, or folders that hold some")
    return list(dict.fromkeys(found))


def clouds_in(path, n):
    """(name, function that reads the Cloud) of each cloud of a file: one, but for an .h5 of several."""
    if path.suffix.lower() == ".h5" and (count := own.count_h5(path)) > 1:
        return [(f"{path}[{i}]", lambda i=i: own.h5_cloud(path, i, n)) for i in range(count)]
    return [(str(path), lambda: read_cloud(path, n))]


def measured(model, points, alpha, label=None):
    """One cloud (N, 3) in eval mode -> probabilities (C,), the class explained, skewness, map (N,)."""
    x = points[None].requires_grad_()
    logits = model(x)
    y = logits.argmax(-1) if label is None else torch.tensor([label])
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), x)
    S = saliency_map(x, grad, alpha)  # Eq. (4)
    return logits[0].detach().softmax(-1), int(y), skewness(S).item(), S[0]


class Looks:
    """The files that go with a cloud: a picture, a coloured .ply, a page of its own and one of them all."""

    def __init__(self, out, ckpt, classes, pictures, html):
        self.out, self.ckpt, self.classes, self.pictures, self.html = out, ckpt, classes, pictures, html
        self.pages, self.used = {}, Counter()

    def name(self, path):
        """A name for this cloud's files, none twice, whatever the folders."""
        name = "_".join(part for part in Path(path).with_suffix("").parts if part not in ("..", ".", Path(path).anchor))
        self.used[name.casefold()] += 1  # some file systems do not tell A from a
        return name if self.used[name.casefold()] == 1 else f"{name}-{self.used[name.casefold()]}"

    def write(self, name, shown, points, S, probabilities, explained, sk, notes, alone=False):
        """What was asked for; returns what was written, as text."""
        wrote = []
        if self.pictures:
            picture, ply = (self.out / f"{name}-saliency{end}" for end in (".png", ".ply"))
            title = said(self.classes, probabilities, explained, sk)
            draw(picture, points, write_ply(ply, points, three_levels(S[None])[0]), title)
            wrote += [str(picture), str(ply)]
        if self.html:
            if not alone and not self.pages:
                page.share_script(self.out)
            path, index = self.out / f"{name}.html", None if alone else page.INDEX
            page.cloud_page(
                path, shown, points, S, probabilities, self.classes, explained, str(self.ckpt), notes, index
            )
            self.pages[shown] = path.name, page.thumbnail(points, S)
            wrote.append(str(path))
        return " and ".join(wrote)


def said(classes, probabilities, explained, sk):
    """A prediction in words."""
    confidence, predicted = probabilities.max(-1)
    return f"{classes[predicted]} ({confidence:.0%}), saliency for {classes[explained]}: skewness {sk:+.3f}"


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("clouds", type=Path, nargs="+", help="files of clouds or meshes, or folders that hold some")
    parser.add_argument("--ckpt", type=Path, required=True, help="RUN/stage1.pt or RUN/stage2.pt")
    parser.add_argument("--out", type=Path, help="a folder for predictions.csv and the rest")
    parser.add_argument("--pictures", action="store_true", help="a picture and a coloured .ply of each cloud, too")
    parser.add_argument(
        "--html", action="store_true", help="a page of each cloud, in which it turns, and a table of all"
    )
    parser.add_argument("--label", help="class whose loss is explained (default: the predicted one)")
    parser.add_argument("--up", choices=("z", "y", "x"), help="axis that is up in the files (default: as in training)")
    parser.add_argument("--points", type=number(int, 20), help="points measured (default: as in training)")
    args = parser.parse_args()

    checkpoint = load_checkpoint(args.ckpt)
    config, classes = checkpoint["config"]["args"], checkpoint["config"]["classes"]
    if args.label not in (None, *classes):
        raise UserError(f"--label {args.label}: {args.ckpt} knows {', '.join(classes)}; give one of them")
    if direction(config["task"]).per_point:
        raise UserError(f"{args.ckpt} segments; give a checkpoint of M_S, M_SC, ..., which classifies")
    model, label = model_of(checkpoint).eval(), None if args.label is None else classes.index(args.label)
    up, n = args.up or config.get("target_up") or config["up"], args.points or config["points"]
    found = [cloud for path in files_of(args.clouds) for cloud in clouds_in(path, n)]
    alone = len(found) == 1 and args.out is None
    out = Path(".") if alone else args.out or Path("predictions")
    out.mkdir(parents=True, exist_ok=True)
    looks = Looks(out, args.ckpt, classes, args.pictures or alone, args.html)

    rows, profiles = [], []
    for shown, read in tqdm(found, "clouds", unit="cloud", disable=alone, dynamic_ncols=True):
        rows.append({"file": shown, "class": "", "confidence": "", "skewness": "", "points": "", "note": ""})
        try:
            cloud = read()
        except UserError as error:
            if alone:
                raise
            rows[-1]["note"] = str(error)
            continue
        points = normalise(torch.from_numpy(turn_up(cloud.points, up).copy())).float()  # (N, 3), unit sphere
        probabilities, explained, sk, S = measured(model, points, config["alpha"], label)
        confidence, predicted = probabilities.max(-1)
        rows[-1] |= {"class": classes[predicted], "confidence": confidence.item(), "skewness": sk}
        rows[-1] |= {"points": len(points), "note": "; ".join(cloud.notes)}
        if len(profiles) < upright.MOST_CLOUDS:
            profiles.append(upright.profiles(points[None]))
        name = Path(shown).stem if alone else looks.name(shown)
        wrote = looks.write(name, shown, points, S, probabilities, explained, sk, cloud.notes, alone)

    if profiles and "upright" in checkpoint["config"]["data"]:
        upright.warn("these clouds", profiles, checkpoint["config"]["data"]["upright"], "--up")
    if alone:
        for note in cloud.notes:
            warnings.warn(f"{shown}: {note}")
        print(f"{visible(shown)}: {said(classes, probabilities, explained, sk)}\nwrote {visible(wrote)}")
        return
    write_atomically(out / "predictions.csv", csv_text(rows).encode(errors="surrogateescape"))
    bad = sum(not row["class"] for row in rows)
    print(f"wrote {out / 'predictions.csv'}: {len(rows) - bad} clouds")
    if args.html and looks.pages:
        page.index_page(out / page.INDEX, rows, looks.pages, f"Clouds seen by {args.ckpt}")
        print(f"wrote {out / page.INDEX}; open it in a browser")
    if bad:
        raise UserError(f"{bad} of {len(rows)} clouds were not read; the column `note` says why")


if __name__ == "__main__":
    cli(main)
