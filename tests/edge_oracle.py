"""The plain form of models.py: all edges in a (B, N, k, 2C) tensor, torch's own batch norm, max over dim 2.

Each class keeps its parent's parameters and replaces only the computation, so a state_dict loads across.
Slow and large on purpose: the oracle of the tests and the yardstick of the benchmark. `build` is as in
models.py; `plain` turns a module of models.py into this form.
"""

import torch
import torch.nn.functional as F
from torch import nn

import models


def edges(x, k=models.K):
    """[x_j - x_i, x_i] for the k nearest j of each i: (B, N, C) -> (B, N, k, 2C)."""
    idx = models.knn(x, k)
    near = x[torch.arange(len(x), device=x.device)[:, None, None], idx]  # (B, N, k, C)
    centre = x[:, :, None].expand_as(near)
    return torch.cat([near - centre, centre], 3)


def norm(bn, z):
    """Batch norm over all axes but the last."""
    out = F.batch_norm(
        z.flatten(0, -2), bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training, bn.momentum, bn.eps
    )
    if bn.training:
        bn.num_batches_tracked += 1
    return out.view(z.shape)


def layer(linear, bn, x, slope=models.SLOPE):
    return F.leaky_relu(norm(bn, linear(x)), slope)


class EdgeConv(models.EdgeConv):
    """(B, N, C_in) -> (B, N, C_out)."""

    def forward(self, x):
        return layer(self.linear, self.bn, edges(x)).max(2).values


class EdgeConv2(models.EdgeConv2):
    def forward(self, x):
        h = layer(self.linear, self.bn, edges(x))  # (B, N, k, C_mid)
        return layer(self.linear2, self.bn2, h).max(2).values


class LinearEdgeConv(models.LinearEdgeConv):
    def forward(self, x):
        h = edges(x)
        for linear in self.layers:
            h = linear(h)
        return h.max(2).values


class PointLayer(models.PointLayer):
    def forward(self, x):
        return layer(self.linear, self.bn, x, self.slope)


class PointMaxLayer(models.PointMaxLayer):
    def forward(self, x):
        return layer(self.linear, self.bn, x, self.slope).max(1).values


class LinearTop(models.LinearTop):
    def forward(self, x):
        return nn.Linear.forward(self, x).max(1).values


class TNet(models.TNet):
    def features(self, x):
        return self.front(x)


class GraphTNet(models.GraphTNet):
    def features(self, x):
        return self.front(x)


class BareTNet(models.BareTNet):
    def features(self, x):
        h = F.leaky_relu(self.edge(edges(x)), models.SLOPE)  # (B, N, k, 64)
        return F.leaky_relu(self.edge2(h), models.SLOPE).max(2).values


class DGCNN(models.DGCNN):
    def forward(self, points):
        x, features = self.tnet(points), []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
        point_features = torch.cat(features, 2)
        return point_features, self.top(point_features)


class LinearDGCNN(models.LinearDGCNN):
    forward = DGCNN.forward


class PointNet(models.PointNet):
    def forward(self, points):
        x, features = self.tnet3(points), []
        for i, conv in enumerate(self.layers):
            x = conv(self.tnet64(x) if i == 2 else x)
            features.append(x)
        return torch.cat(features, 2), self.top(x)


class PerPointHead(models.PerPointHead):
    def forward(self, point_features, global_feature):
        repeated = global_feature[:, None].expand(-1, point_features.shape[1], -1)
        h = norm(self.bn, self.linear(torch.cat([point_features, repeated], 2)))
        return self.rest(h)


PLAIN = {
    getattr(models, part.__name__): part
    for part in (
        EdgeConv,
        EdgeConv2,
        LinearEdgeConv,
        PointLayer,
        PointMaxLayer,
        LinearTop,
        TNet,
        GraphTNet,
        BareTNet,
        DGCNN,
        LinearDGCNN,
        PointNet,
        PerPointHead,
    )
}


def plain(module):
    """Turn a module of models.py, in place, into its plain form with the same weights; returns it."""
    for part in module.modules():
        part.__class__ = PLAIN.get(type(part), type(part))
    return module


def build(backbone, num_classes=10):
    return plain(models.build(backbone, num_classes))
