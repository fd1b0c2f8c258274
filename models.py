"""Backbones: points (B, N, 3) -> point features, global feature, logits. PointNet, DGCNN, linear DGCNN.

    model = build("dgcnn", classes=10)     # a name in BACKBONES
    features = model.encoder(points)       # (point_features (B, N, C), global_feature (B, 1024))
    logits = model.predict(features)       # (B, classes); model(points) does both

PointNet: Qi et al., CVPR 2017, Fig. 2. DGCNN: Wang et al., ACM TOG 2019, Fig. 3. Widths as in DefRec and
Self-distillation. Layers take and give points (B, N, C). `if PLAIN` states the formula of a layer; engine/fast.py
computes the same without the edge tensor (B, N, k, 2C). A layer before a batch norm has no bias: BN would cancel it.
"""

import importlib

import torch
import torch.nn.functional as F
from torch import nn

from engine import fast
from engine.base import UserError

K = 20  # neighbours in the graph, the point itself included
GLOBAL = 1024  # width of the global feature
SLOPE = 0.2  # LeakyReLU of DGCNN; PointNet has slope 0, which is ReLU
PLAIN = False  # models.PLAIN = True: every layer by its formula, same parameters; for tests and the benchmark


# ---------------------------------------------------------------- layers on points
def norm(bn, z):
    """Batch norm over all axes but the last; bn=None is no norm."""
    return z if bn is None else bn(z.flatten(0, -2)).view(z.shape)


class PointLayer(nn.Module):
    """LeakyReLU(BN(W x_n)) of each point n: (B, N, C_in) -> (B, N, C_out)."""

    def __init__(self, c_in, c_out, slope=SLOPE):
        super().__init__()
        self.linear, self.bn, self.slope = nn.Linear(c_in, c_out, bias=False), nn.BatchNorm1d(c_out), slope

    def forward(self, x):
        if PLAIN:
            return F.leaky_relu(norm(self.bn, self.linear(x)), self.slope)
        return fast.point_layer(x, self.linear, self.bn, self.slope)


class PointMaxLayer(PointLayer):
    """A PointLayer and the maximum over the points n of a cloud: (B, N, C_in) -> (B, C_out)."""

    def forward(self, x):
        if PLAIN:
            return super().forward(x).max(1).values
        return fast.point_max_layer(x, self.linear, self.bn, self.slope)


class LinearMaxLayer(nn.Linear):
    """max_n (W x_n + bias) over the points n of a cloud: (B, N, C_in) -> (B, C_out)."""

    def forward(self, x):
        if PLAIN:
            return super().forward(x).max(1).values
        return fast.linear_max_layer(x, self.weight, self.bias)


# ---------------------------------------------------------------- layers on edges
def edges(x, idx):
    """The edge tensor [x_j - x_i, x_i] for the neighbours j of each i: (B, N, C), (B, N, k) -> (B, N, k, 2C)."""
    near = x[torch.arange(len(x), device=x.device)[:, None, None], idx]  # (B, N, k, C)
    centre = x[:, :, None].expand_as(near)
    return torch.cat([near - centre, centre], 3)


class EdgeConv(PointLayer):
    """A PointLayer on the edges [x_j - x_i, x_i] to the K nearest j of i, and max_j: (B, N, C_in) -> (B, N, C_out)."""

    def __init__(self, c_in, c_out):
        super().__init__(2 * c_in, c_out)

    def forward(self, x):
        idx = fast.knn(x, K)  # (B, N, k) in the layer's own input: the graph is dynamic
        if PLAIN:
            return super().forward(edges(x, idx)).max(2).values
        return fast.edge_conv(x, idx, self.linear, self.bn, self.slope)


class EdgeConv2(nn.Module):
    """Two layers LeakyReLU(BN(W .)), normed or not, on every edge before max_j: (B, N, C_in) -> (B, N, C_out)."""

    def __init__(self, c_in, c_mid, c_out, normed=True):
        super().__init__()
        self.linear, self.bn = nn.Linear(2 * c_in, c_mid, bias=False), nn.BatchNorm1d(c_mid) if normed else None
        self.linear2, self.bn2 = nn.Linear(c_mid, c_out, bias=False), nn.BatchNorm1d(c_out) if normed else None

    def forward(self, x):
        idx = fast.knn(x, K)
        if PLAIN:
            h = F.leaky_relu(norm(self.bn, self.linear(edges(x, idx))), SLOPE)  # (B, N, k, C_mid)
            return F.leaky_relu(norm(self.bn2, self.linear2(h)), SLOPE).max(2).values
        return fast.edge_conv2(x, idx, self.linear, self.bn, self.linear2, self.bn2, SLOPE)


class LinearEdgeConv(nn.Module):
    """One or two linear layers with bias on every edge, nothing between, then max_j: (B, N, C_in) -> (B, N, C_out)."""

    def __init__(self, c_in, *widths):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(c, o) for c, o in zip((2 * c_in, *widths), widths)))

    def forward(self, x):
        idx = fast.knn(x, K)
        if PLAIN:
            return self.layers(edges(x, idx)).max(2).values
        return fast.linear_edge_conv(x, idx, self.layers)


# ---------------------------------------------------------------- encoders
def dense(widths, slope, normed=True):
    """Linear, BN, LeakyReLU for each pair of neighbouring widths, on (B, C)."""
    layers = []
    for c_in, c_out in zip(widths, widths[1:]):
        layers += [nn.Linear(c_in, c_out, bias=not normed)] + [nn.BatchNorm1d(c_out)] * normed + [nn.LeakyReLU(slope)]
    return layers


class TNet(nn.Module):
    """A matrix for each cloud, I + dense(top(front(x))), applied to its points: (B, N, C) -> (B, N, C)."""

    def __init__(self, c, front, top, slope, normed=True):
        super().__init__()
        self.front, self.top = front, top
        self.dense = nn.Sequential(*dense((GLOBAL, 512, 256), slope, normed), nn.Linear(256, c * c))

    def forward(self, x):
        batch, _, c = x.shape
        x = x.view_as(x)  # a view a branch: fixes the order in which autograd adds gradients, hence their last bit
        h = self.dense(self.top(self.front(x.view_as(x))))
        return x @ (h.view(batch, c, c) + torch.eye(c, dtype=x.dtype, device=x.device))


class PointNet(nn.Module):
    """(B, N, 3) -> (point features (B, N, 320), all layers but the widest; global feature (B, 1024))."""

    point_dim = 64 + 64 + 64 + 128

    def __init__(self):
        super().__init__()
        front = lambda c: nn.Sequential(PointLayer(c, 64, 0.0), PointLayer(64, 128, 0.0))
        tnet = lambda c: TNet(c, front(c), PointMaxLayer(128, GLOBAL, 0.0), 0.0)
        self.tnet3, self.tnet64 = tnet(3), tnet(64)
        self.mlp1, self.mlp2 = PointLayer(3, 64, 0.0), PointLayer(64, 64, 0.0)
        self.mlp3, self.mlp4 = PointLayer(64, 64, 0.0), PointLayer(64, 128, 0.0)
        self.top = PointMaxLayer(128, GLOBAL, 0.0)

    def forward(self, points):
        x1 = self.mlp1(self.tnet3(points))
        x2 = self.mlp2(x1)
        x3 = self.mlp3(self.tnet64(x2))
        x4 = self.mlp4(x3)
        return torch.cat([x1, x2, x3, x4], 2), self.top(x4)


class DGCNN(nn.Module):
    """(B, N, 3) -> (point features (B, N, 512), all four EdgeConvs; global feature (B, 1024))."""

    point_dim = 64 + 64 + 128 + 256

    def __init__(self):
        super().__init__()
        self.tnet = TNet(3, EdgeConv2(3, 64, 128), PointMaxLayer(128, GLOBAL), SLOPE)
        self.conv1, self.conv2 = EdgeConv(3, 64), EdgeConv(64, 64)
        self.conv3, self.conv4 = EdgeConv(64, 128), EdgeConv(128, 256)
        self.top = PointMaxLayer(self.point_dim, GLOBAL)

    def forward(self, points):
        x1 = self.conv1(self.tnet(points))
        x2 = self.conv2(x1)
        x3 = self.conv3(x2)
        x4 = self.conv4(x3)
        x = torch.cat([x1, x2, x3, x4], 2)  # (B, N, 512)
        return x, self.top(x)


class LinearDGCNN(nn.Module):
    """DefRec's for PointSegDA, no norm, no activation after the T-net: as DGCNN, point features (B, N, 192)."""

    point_dim = 64 + 64 + 64

    def __init__(self):
        super().__init__()
        front, top = EdgeConv2(3, 64, 128, normed=False), LinearMaxLayer(128, GLOBAL, bias=False)
        self.tnet = TNet(3, front, nn.Sequential(top, nn.LeakyReLU(SLOPE)), SLOPE, normed=False)
        self.conv1, self.conv2 = LinearEdgeConv(3, 64, 64), LinearEdgeConv(64, 64, 64)
        self.conv3 = LinearEdgeConv(64, 64)
        self.top = LinearMaxLayer(self.point_dim, GLOBAL)

    def forward(self, points):
        x1 = self.conv1(self.tnet(points))
        x2 = self.conv2(x1)
        x3 = self.conv3(x2)
        x = torch.cat([x1, x2, x3], 2)  # (B, N, 192)
        return x, self.top(x)


# ---------------------------------------------------------------- heads, model
class GlobalHead(nn.Sequential):
    """Layers 512, 256, out on the global feature, with dropout after each hidden one: (B, 1024) -> (B, out)."""

    def __init__(self, out, slope):
        first, second = dense((GLOBAL, 512), slope), dense((512, 256), slope)
        super().__init__(*first, nn.Dropout(0.5), *second, nn.Dropout(0.5), nn.Linear(256, out))

    def forward(self, point_features, global_feature):
        return super().forward(global_feature)


class PerPointHead(nn.Module):
    """Three layers and out on [p_n; g], features of point and cloud: (B, N, C), (B, 1024) -> (B, N, out).

    Dropout follows the first `dropped` layers.
    """

    def __init__(self, point_dim, out, widths=(256, 256, 128), dropped=2):
        super().__init__()
        first, second, third = widths
        self.linear, self.bn = nn.Linear(point_dim + GLOBAL, first, bias=False), nn.BatchNorm1d(first)
        self.layer2, self.layer3 = PointLayer(first, second, 0.0), PointLayer(second, third, 0.0)
        self.out, self.dropout, self.dropped = nn.Linear(third, out), nn.Dropout(0.5), dropped

    def forward(self, p, g):
        if PLAIN:
            h = self.linear(torch.cat([p, g[:, None].expand(-1, p.shape[1], -1)], 2))  # (B, N, first)
        else:
            h = fast.linear_of_pair(p, g, self.linear)
        h = self.dropout(F.relu(norm(self.bn, h)))
        h = self.layer3(self.dropout(self.layer2(h)))
        return self.out(self.dropout(h) if self.dropped == 3 else h)


class Model(nn.Module):
    """Encoder and classifier: points (B, N, 3) -> logits (B, classes); (B, N, classes) with a PerPointHead."""

    def __init__(self, encoder, classifier):
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def predict(self, features):
        """Logits from what the encoder returned, so that one forward serves several heads."""
        return self.classifier(*features)

    def forward(self, points):
        return self.predict(self.encoder(points))


BACKBONES = {  # name -> a fresh Model for so many classes; the one place where a backbone is entered
    "dgcnn": lambda classes: Model(DGCNN(), GlobalHead(classes, SLOPE)),
    "pointnet": lambda classes: Model(PointNet(), GlobalHead(classes, 0.0)),
    "dgcnn-seg": lambda classes: Model(LinearDGCNN(), PerPointHead(LinearDGCNN.point_dim, classes)),
}
importlib.import_module("extras.backbones")  # further ones, which add themselves


def build(backbone, classes):
    """A fresh Model of a name in BACKBONES for this number of classes. UserError for another name."""
    if backbone not in BACKBONES:
        raise UserError(f"--backbone {backbone}: unknown; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[backbone](classes)


def model_of(checkpoint, which="student"):
    """The Model of a checkpoint's `student` (best source validation) or `last_student`. UserError if none fits."""
    config, backbone = checkpoint["config"], checkpoint["config"]["args"]["backbone"]
    model = build(backbone, len(config["classes"]))
    try:
        model.load_state_dict(checkpoint[which])
    except (KeyError, RuntimeError):
        raise UserError(f"--ckpt: it holds no {which} that fits this version's {backbone}; train it again") from None
    return model
