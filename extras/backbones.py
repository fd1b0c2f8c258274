"""Further backbones, which models.py looks up here: PointNet++, the point cloud transformer, PointDAN's PointNet.

    python stage1_ssl.py --backbone pointnet2       # also pct, pointdan

All take points (B, N, 3) in the unit sphere and are of the order of points independent, centres and balls included.
docs/more-backbones.md has their papers, and where they differ from their authors' code.
"""

import math

import torch
from torch import nn

from engine.fast import smallest
from engine.geometry import farthest_points, gather_points
from models import BACKBONES, GLOBAL, GlobalHead, Model, PointLayer, PointMaxLayer, PointNet

EXACT = "donot_use_mm_for_euclid_dist"  # distances by products are no better than 1e-3 near 0


def point_layers(*widths):
    """ReLU(BN(W .)) for each pair of neighbouring widths: (B, N, first) -> (B, N, last)."""
    return nn.Sequential(*(PointLayer(c_in, c_out, 0.0) for c_in, c_out in zip(widths, widths[1:])))


# ---------------------------------------------------------------- PointNet++ (Qi et al., NeurIPS 2017)
@torch.no_grad()
def spread(points, m):
    """m points of each cloud, (B, N, 3) -> (B, m): the farthest from its mean, then the farthest from those taken.

    The order of points does not matter, and any prefix is what a smaller m would give.
    """
    start = (points - points.mean(1, keepdim=True)).square().sum(-1).argmax(1, keepdim=True)  # (B, 1)
    index = farthest_points(torch.cat([gather_points(points, start), points], 1), m)  # which starts at the first
    return start.where(index == 0, index - 1)


@torch.no_grad()
def ball(centres, points, radius, k):
    """The min(k, N) points nearest to each centre; instead of one `radius` away or more, the nearest once more.

    (B, M, 3), (B, N, 3) -> (B, M, min(k, N)), in no particular order.
    """
    distance = torch.cdist(centres, points, compute_mode=EXACT)  # (B, M, N)
    index = smallest(distance, min(k, points.shape[1]))
    distance = distance.gather(2, index)
    return index.where(distance < radius, index.gather(2, distance.argmin(2, keepdim=True)))


def take(x, index):
    """Rows of each cloud by a table of them: (B, N, C), (B, M, k) -> (B, M, k, C)."""
    return gather_points(x, index.flatten(1)).unflatten(1, index.shape[1:])


def nearest_three(places, points):
    """The three nearest points of each place, and their weights, the inverse squared distances divided by their sum.

    (B, N, 3), (B, M, 3) -> (B, N, 3), (B, N, 3). The weights have a gradient.
    """
    with torch.no_grad():
        index = smallest(torch.cdist(places, points, compute_mode=EXACT), min(3, points.shape[1]))
    weight = 1 / (places[:, :, None] - take(points, index)).square().sum(-1).clamp_min(1e-10)
    return index, weight / weight.sum(2, keepdim=True)


def interpolate(places, points, features):
    """Features at `places`: of the three nearest points the mean, weighted by the inverse squared distance.

    (B, N, 3), (B, M, 3), (B, M, C) -> (B, N, C). The weights have no gradient.
    """
    index, weight = nearest_three(places.detach(), points.detach())
    return (weight[..., None] * take(features, index)).sum(2)


class SetAbstraction(nn.Module):
    """A small PointNet on the ball of at most k points about each centre.

    Centres (B, M, 3), points (B, N, 3), their features (B, N, C) or None -> (B, M, last width).
    """

    def __init__(self, k, *widths):
        super().__init__()
        self.k, self.layers = k, point_layers(*widths)

    def forward(self, radius, centres, points, features=None):
        index = ball(centres, points, radius, self.k)  # (B, M, k)
        x = take(points, index) - centres[:, :, None]  # (B, M, k, 3)
        if features is not None:
            x = torch.cat([x, take(features, index)], 3)
        return self.layers(x.flatten(1, 2)).unflatten(1, index.shape[1:]).max(2).values


class PointNet2(nn.Module):
    """(B, N, 3) -> (point features (B, N, 128), which know of the whole cloud; global feature (B, 1024)).

    Two levels of centres, 512 and 128 of 1024 points or more, in balls of radius 0.2 and 0.4. Of fewer points a half
    and an eighth, in larger balls, so that these hold as many: alone in its ball, a point tells the layers nothing.
    """

    point_dim = 128

    def __init__(self):
        super().__init__()
        self.level1 = SetAbstraction(32, 3, 64, 64, 128)
        self.level2 = SetAbstraction(64, 3 + 128, 128, 128, 256)
        self.level3, self.top = point_layers(3 + 256, 256, 512), PointMaxLayer(512, GLOBAL, 0.0)
        self.back2 = point_layers(256 + GLOBAL, 256, 256)
        self.back1 = point_layers(128 + 256, 256, 128)
        self.back0 = point_layers(3 + 128, 128, 128, 128)

    def forward(self, points):
        n = points.shape[1]
        m1, m2 = min(512, -(-n // 2)), min(128, -(-n // 8))
        radius = 0.2 * max(1, math.sqrt(1024 / n))  # on a surface
        c1 = gather_points(points, spread(points, m1))  # (B, m1, 3)
        c2 = c1[:, :m2]  # what farthest points of c1 would be
        f1 = self.level1(radius, c1, points)  # (B, m1, 128)
        f2 = self.level2(2 * radius, c2, c1, f1)  # (B, m2, 256)
        whole = self.top(self.level3(torch.cat([c2, f2], 2)))  # (B, 1024)

        f2 = self.back2(torch.cat([f2, whole[:, None].expand(-1, m2, -1)], 2))  # (B, m2, 256)
        f1 = self.back1(torch.cat([f1, interpolate(c1, c2, f2)], 2))  # (B, m1, 128)
        return self.back0(torch.cat([points, interpolate(points, c1, f1)], 2)), whole


# ---------------------------------------------------------------- PCT (Guo et al., Computational Visual Media 2021)
class OffsetAttention(nn.Module):
    """x_i + ReLU(BN(W (x_i - sum_j a_ij V x_j))): (B, N, C) -> (B, N, C).

    a is exp(q_i.q_j) divided by its sum over i, then by what is left of its sum over j. Queries are keys.
    """

    def __init__(self, c):
        super().__init__()
        self.query, self.value = nn.Linear(c, c // 4, bias=False), nn.Linear(c, c, bias=False)
        self.offset = PointLayer(c, c, 0.0)

    def forward(self, x):
        q = self.query(x)
        energy = q @ q.transpose(1, 2)  # (B, N, N)
        share = (energy - energy.logsumexp(1, keepdim=True)).softmax(2)
        return x + self.offset(x - share @ self.value(x))


class PCT(nn.Module):
    """(B, N, 3) -> (point features (B, N, 512), all four attentions; global feature (B, 1024))."""

    point_dim = 4 * 128

    def __init__(self):
        super().__init__()
        self.embedding = point_layers(3, 128, 128)
        self.attentions = nn.ModuleList(OffsetAttention(128) for _ in range(4))
        self.top = PointMaxLayer(self.point_dim, GLOBAL)

    def forward(self, points):
        x, found = self.embedding(points), []
        for attention in self.attentions:
            found.append(x := attention(x))
        x = torch.cat(found, 2)  # (B, N, 512)
        return x, self.top(x)


# ---------------------------------------------------------------- PointDAN's PointNet (Qin et al., NeurIPS 2019)
NODES, GROUP, RADIUS, WIDTH = 64, 64, 0.3, 64


class Nodes(nn.Module):
    """Self-adaptive nodes: farthest points, moved by what their neighbours' features say: (B, N, C), (B, N, 3) -> two.

    The features of points with those of their nodes beside them (B, N, C + 64), and the nodes' own (B, 64, 64).
    """

    def __init__(self, c):
        super().__init__()
        self.offset, self.own = nn.Linear(c, 3, bias=False), PointLayer(c, WIDTH, 0.0)

    def forward(self, x, points):
        m, k = min(NODES, points.shape[1]), min(GROUP, points.shape[1])
        start = spread(points, m)  # (B, m)
        place, feature = gather_points(points, start), gather_points(x, start)
        index = ball(place, points, RADIUS, k)  # (B, m, k)
        towards = take(points, index) - place[:, :, None]  # (B, m, k, 3)
        weight = torch.tanh(self.offset(take(x, index) - feature[:, :, None]))  # (B, m, k, 3)
        place = place + (weight * towards).mean(2)
        index = smallest(torch.cdist(place.detach(), points, compute_mode=EXACT), k)
        nodes = take(self.own(x), index).amax(2)  # (B, m, 64)
        index, weight = nearest_three(points, place)  # by which the offset learns
        return torch.cat([x, (weight[..., None] * take(nodes, index)).sum(2)], 2), nodes


class PointDANEncoder(nn.Module):
    """PointNet with nodes in the place of its third layer: point features (B, N, 256), global feature (B, 1024)."""

    point_dim = 128 + 128

    def __init__(self):
        super().__init__()
        plain = PointNet()
        self.tnet3, self.tnet64, self.mlp1, self.mlp2 = plain.tnet3, plain.tnet64, plain.mlp1, plain.mlp2
        self.nodes, self.mlp4 = Nodes(64), PointLayer(64 + WIDTH, 128, 0.0)
        self.top = PointMaxLayer(128, GLOBAL, 0.0)

    def up_to_nodes(self, points):
        x = self.tnet64(self.mlp2(self.mlp1(self.tnet3(points))))
        return self.nodes(x, points)  # (B, N, 128), (B, 64, 64)

    def forward(self, points):
        x, _ = self.up_to_nodes(points)
        x4 = self.mlp4(x)
        return torch.cat([x, x4], 2), self.top(x4)


BACKBONES |= {
    "pointnet2": lambda classes: Model(PointNet2(), GlobalHead(classes, 0.0)),
    "pct": lambda classes: Model(PCT(), GlobalHead(classes, 0.0)),
    "pointdan": lambda classes: Model(PointDANEncoder(), GlobalHead(classes, 0.0)),
}
