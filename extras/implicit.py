"""The implicit task of ImplicitPCDA (Shen et al., CVPR 2022), which extras/tasks.py pulls in.

    python stage1_ssl.py --ssl implicit             # and with SM-DSB: it has a loss for each cloud

How far is a place from the shape? The global feature alone has to know. docs/comparators.md says what differs.
"""

import torch
import torch.nn.functional as F
from torch import nn

from engine.fast import linear_of_pair
from extras.backbones import EXACT
from models import GLOBAL
from ssl_tasks import TASKS, Task

PLACES, NEAREST, SPARSEST = 2048, 3, 20  # of its authors' code


def gap(points):
    """Half the distance of points where a cloud is sparsest, (B, N, 3) -> (B,).

    A point's is the root of its mean squared distance to its three nearest; of the twenty largest the mean is taken.
    """
    distance = torch.cdist(points, points, compute_mode=EXACT)  # (B, N, N)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # not to itself
    near = distance.topk(min(NEAREST, points.shape[1] - 1), largest=False).values  # (B, N, 3)
    own = near.square().mean(-1).sqrt()  # (B, N)
    return own.topk(min(SPARSEST, points.shape[1])).values.mean(-1) / 2


def unsigned_distance(places, points):
    """From places to the shape that a cloud is a sample of: to the nearest point, less `gap`, at least 0.

    (B, M, 3), (B, N, 3) -> (B, M).
    """
    nearest = torch.cdist(places, points, compute_mode=EXACT).amin(-1)  # (B, M)
    return (nearest - gap(points)[:, None]).clamp_min(0)


class Implicit(Task):
    """A decoder of places and the global feature is to give the unsigned distance, at random places of the cube."""

    reuses = True

    def __init__(self, model, n, direction):
        super().__init__(n, direction)
        self.first = nn.Linear(3 + GLOBAL, 512)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())
        self.out = nn.Linear(128, 1)

    def decode(self, places, f):
        """(B, M, 3), (B, 1024) -> (B, M)."""
        h = linear_of_pair(places, f, self.first) + self.first.bias
        return F.relu(self.out(self.rest(h)))[..., 0]

    def forward(self, model, view, features, generator):
        f = (features or self.encode(model, view.x))[1]  # (B, 1024)
        places = 2 * torch.rand(len(f), PLACES, 3, generator=generator, device=f.device) - 1
        with torch.no_grad():
            truth = unsigned_distance(places, view.x)
        return (self.decode(places, f) - truth).abs().mean(-1)


TASKS["implicit"] = Implicit
