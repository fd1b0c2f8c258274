"""Score a cloud of your own: class, confidence, skewness of its saliency map, a picture and a coloured .ply (Fig. 5).

python saliency.py cloud.npy --ckpt runs/NAME/stage1.pt [--label chair]      # .npy, .ply, .txt or .xyz; z up
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine  # noqa: F401, I001 - first: how torch's threads wait
import torch
import torch.nn.functional as F

from data import direction, evaluation_subset
from datasets.files import MOST_POINTS, read_cloud
from engine.base import UserError, cli
from engine.flags import Parser
from engine.picture import draw, three_levels, write_ply
from engine.run import load_checkpoint
from models import model_of
from saliency import saliency_map, skewness


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("cloud", type=Path, help="a cloud of points: .npy, .ply, .txt or .xyz, z up")
    parser.add_argument("--ckpt", type=Path, required=True, help="RUN/stage1.pt or RUN/stage2.pt")
    parser.add_argument("--label", help="class whose loss is explained (default: the predicted one)")
    args = parser.parse_args()

    checkpoint = load_checkpoint(args.ckpt)
    config, classes = checkpoint["config"]["args"], checkpoint["config"]["classes"]
    if args.label not in (None, *classes):
        raise UserError(f"--label {args.label}: {args.ckpt} knows {', '.join(classes)}; give one of them")
    points = read_cloud(args.cloud)  # (N, 3), unit sphere
    if len(points) > MOST_POINTS:  # a scan of a million points is sampled as the training clouds were
        points = evaluation_subset(points[None], MOST_POINTS)[0]
    if direction(config["task"]).per_point:
        raise UserError(f"{args.ckpt} segments; give a checkpoint of M_S, M_SC, ..., which classifies")
    model = model_of(checkpoint).eval()

    x = points[None].requires_grad_()
    logits = model(x)
    label = logits.argmax(-1) if args.label is None else torch.tensor([classes.index(args.label)])
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, label), x)
    S = saliency_map(x, grad, config["alpha"])  # Eq. (4)
    sk, level = skewness(S).item(), three_levels(S)[0]

    confidence, predicted = logits[0].softmax(-1).max(-1)
    title = f"{classes[predicted]} ({confidence:.0%}), saliency for {classes[label]}: skewness {sk:+.3f}"
    picture, ply = (Path(f"{args.cloud.stem}-saliency{end}") for end in (".png", ".ply"))  # where you stand
    draw(picture, points, write_ply(ply, points, level), title)
    print(f"{args.cloud}: {title}\nwrote {picture} and {ply}")


if __name__ == "__main__":
    cli(main)
