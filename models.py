"""Backbones: points (B, N, 3) -> point features, global feature, logits. PointNet, DGCNN, linear DGCNN.

    model = build("dgcnn")                 # or "pointnet", "dgcnn-seg"
    features = model.encoder(points)       # (point_features (B, N, C), global_feature (B, 1024))
    logits = model.predict(features)       # (B, 10); model(points) does both

Widths as in DefRec and Self-distillation (PointNet: Qi et al. 2017; DGCNN: Wang et al. 2019).
The edge tensor (B, N, k, 2C) of DGCNN is never formed. Three facts replace it:

1. Edge (i, j) carries [x_j - x_i, x_i]. With W = [W_n, W_c], W.edge = W_n x_j + (W_c - W_n) x_i = b_j + a_i:
   two products on N points replace one on N.k edges, and max_j (b_j + a_i) = a_i + max_j b_j.
2. Batch norm of W.u needs only the mean m and covariance C of its input u: W m and diag(W C W^T). Both are
   known before W.u is, so the norm, its sign included, is folded into W and the maximum may come after it.
3. Only the winner of a maximum has a gradient: it is looked for without autograd, then read again with it.

Inside this file points lie flat, (M, C) with M = B.N rows, and idx (M, k) holds row numbers. Layers before a
batch norm have no bias, which the norm would cancel.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from common import UserError

K = 20  # neighbours in the graph, the point itself included
GLOBAL = 1024  # width of the global feature
SLOPE = 0.2  # LeakyReLU of DGCNN; PointNet has slope 0, which is ReLU


# ---------------------------------------------------------------------------------- neighbours
def smallest(distance, k):
    """The columns of the k smallest of each row: (B, N, M) -> (B, N, k). Exact: they lie in the k groups of 8
    columns with the smallest minima, and two short searches cost half of a long one."""
    if distance.shape[-1] % 8 or distance.shape[-1] < 16 * k:
        return distance.topk(k, largest=False, sorted=False).indices
    groups = distance.unflatten(-1, (8, -1))  # (B, N, 8, M/8)
    group = groups.amin(2).topk(k, largest=False, sorted=False).indices  # (B, N, k)
    candidates = groups.gather(3, group[:, :, None].expand(-1, -1, 8, -1)).flatten(2)  # (B, N, 8k)
    choice = candidates.topk(k, largest=False, sorted=False).indices  # (B, N, k)
    return choice // k * groups.shape[3] + group.gather(2, choice % k)


@torch.no_grad()
def knn(x, k):
    """The min(k, N) nearest points of each by squared distance, itself included, in no particular order:
    (B, N, C) -> (B, N, k) int64. No gradient."""
    x = x - x.mean(1, keepdim=True)  # less cancellation below
    square = (x * x).sum(-1)
    # |x_j|^2 - 2 x_i.x_j orders the j of one i as the distance does
    distance = torch.baddbmm(square[:, None], x, x.transpose(1, 2), alpha=-2)  # (B, N, N)
    distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # itself, whatever the rounding
    return smallest(distance, min(k, x.shape[1]))


def graph(x, k=K):
    """The row numbers of the neighbours: (B, N, C) -> idx (B.N, k) for x flattened to (B.N, C)."""
    first = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return (knn(x, k) + first[:, None, None]).flatten(0, 1)


def row_blocks(n, device):
    """Slices of at most 4096 rows, which stay in a CPU's cache; on a GPU one slice of all."""
    size = 4096 if device.type == "cpu" else n
    return [slice(start, start + size) for start in range(0, n, size)]


def running_max(values):
    """Maximum over an iterable of at most 256 tensors, and the number (uint8) of the first to reach it. Two
    tensors at a time: on a CPU this vectorises, which a maximum with indices does not."""
    values = iter(values)
    best = next(values)
    rank = torch.zeros_like(best, dtype=torch.uint8)
    for j, value in enumerate(values, start=1):
        rank = torch.maximum(rank, (value > best).view(torch.uint8).mul_(j), out=rank)
        best = torch.maximum(best, value)
    return best, rank


def neighbour_max(b, idx):
    """max_j b_j over the neighbours j of each row: (M, C), (M, k) -> (M, C)."""
    winner = torch.empty(b.shape, dtype=torch.int64, device=b.device)
    with torch.no_grad():
        for rows in row_blocks(len(b), b.device):
            _, rank = running_max(b.index_select(0, j) for j in idx[rows].T.contiguous())
            winner[rows] = idx[rows].gather(1, rank.long())
    return b.gather(0, winner)


def point_max(x, weight):
    """max_n weight.x_n over the points n of each cloud: (B, N, C), (O, C) -> (B, O)."""
    best = lambda some: (weight @ some.transpose(-1, -2)).argmax(-1)  # (O,) of a cloud, (B, O) of several
    with torch.no_grad():  # a CPU's cache holds one cloud; a GPU wants few launches
        one_by_one = x.device.type == "cpu"
        winner = torch.stack(list(map(best, x))) if one_by_one else torch.cat(list(map(best, x.split(16))))  # (B, O)
    winner = winner + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    rows = x.flatten(0, 1).index_select(0, winner.flatten())  # (B.O, C)
    return (rows.view(len(x), *weight.shape) * weight).sum(-1)


# -------------------------------------------------------------------------- batch norm, folded
class Moments(torch.autograd.Function):
    """Mean (C,) and covariance (C, C) of the rows of x (M, C), centred first. Backward is one product."""

    @staticmethod
    def forward(ctx, x):
        mean = x.mean(0)
        ctx.save_for_backward(x, mean)
        centred = x - mean
        return mean, centred.T @ centred / len(x)

    @staticmethod
    def backward(ctx, g_mean, g_cov):
        x, mean = ctx.saved_tensors
        return torch.addmm(g_mean / len(x), x - mean, (g_cov + g_cov.T) / len(x))


def edge_moments(x, idx):
    """Mean (2C,) and covariance (2C, 2C) of [x_j, x_i] over all edges (i, j), from sums over points alone."""
    centre = x.detach().mean(0)  # a shift: it leaves the covariance as it is
    x = x - centre
    m, k = idx.shape
    near = F.embedding_bag(idx, x, mode="sum") / k  # (M, C) mean neighbour
    degree = torch.bincount(idx.flatten(), minlength=m).to(x.dtype)[:, None] / k  # (M, 1) in-degree / k
    mean = torch.cat([near.mean(0), x.mean(0)])  # (2C,)
    jj, ij, ii = (x.T @ torch.cat([degree * x, near, x], 1) / m).chunk(3, 1)  # (C, C) each
    cov = torch.cat([torch.cat([jj, ij.T], 1), torch.cat([ij, ii], 1)]) - mean.outer(mean)
    return mean + torch.cat([centre, centre]), cov


def fold(bn, weight, moments, count):
    """Batch norm of weight.u as scale * (weight.u) + shift, both (O,). In training the moments (mean,
    covariance) of the `count` rows u give its statistics and move the running ones, as torch's own norm does;
    in evaluation they are ignored."""
    if not bn.training:
        mean, var = bn.running_mean, bn.running_var
    else:
        mean = weight @ moments[0]
        var = ((weight @ moments[1]) * weight).sum(1).clamp_min(0)  # diag(W C W^T)
        with torch.no_grad():
            bn.num_batches_tracked += 1
            bn.running_mean.lerp_(mean, bn.momentum)
            bn.running_var.lerp_(var * (count / (count - 1)), bn.momentum)
    scale = bn.weight * torch.rsqrt(var + bn.eps)
    return scale, bn.bias - mean * scale


class PointLayer(nn.Module):
    """Linear, batch norm, (Leaky)ReLU on each point: (M, C_in) -> (M, C_out)."""

    def __init__(self, c_in, c_out, slope=SLOPE):
        super().__init__()
        self.linear = nn.Linear(c_in, c_out, bias=False)
        self.bn = nn.BatchNorm1d(c_out)
        self.slope = slope

    def folded(self, x):
        """Weight (C_out, C_in) and bias (C_out,) of linear and norm in one."""
        moments = Moments.apply(x) if self.training else None
        scale, shift = fold(self.bn, self.linear.weight, moments, len(x))
        return scale[:, None] * self.linear.weight, shift

    def forward(self, x):
        return F.leaky_relu(F.linear(x, *self.folded(x)), self.slope, inplace=True)


class PointMaxLayer(PointLayer):
    """A PointLayer and the maximum over the points of each cloud: (B, N, C_in) -> (B, C_out)."""

    def forward(self, x):
        weight, shift = self.folded(x.flatten(0, 1))
        return F.leaky_relu(point_max(x, weight) + shift, self.slope)


# --------------------------------------------------------------------------------------- edges
def pair_weight(weight):
    """The weight [W_n, W_c] on [x_j - x_i, x_i] as a weight on [x_j, x_i]."""
    near, centre = weight.chunk(2, 1)
    return torch.cat([near, centre - near], 1)


class EdgeConv(nn.Module):
    """Linear, batch norm, LeakyReLU on every edge, max over neighbours: (M, C_in), (M, k) -> (M, C_out)."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.linear = nn.Linear(2 * c_in, c_out, bias=False)
        self.bn = nn.BatchNorm1d(c_out)

    def split(self, x, idx):
        """b and a, (M, C_out) each: before its LeakyReLU an edge (i, j) is b_j + a_i."""
        weight = pair_weight(self.linear.weight)
        moments = edge_moments(x, idx) if self.training else None
        scale, shift = fold(self.bn, weight, moments, idx.numel())
        near, centre = (scale[:, None] * weight).chunk(2, 1)
        return F.linear(x, near), F.linear(x, centre, shift)

    def forward(self, x, idx):
        b, a = self.split(x, idx)
        return F.leaky_relu(neighbour_max(b, idx) + a, SLOPE, inplace=True)


class SecondLayer(torch.autograd.Function):
    """max_j W.h_ij over the neighbours, with h_ij = LeakyReLU(b_j + a_i), and mean and covariance of h over
    all edges: (M, H), (M, H), (O, H), (M, k) -> (M, O), (H,), (H, H). Forward and backward take one neighbour
    of every point at a time and compute h anew. With measure=False mean and covariance are not computed."""

    @staticmethod
    def edges(b, a, j):
        return F.leaky_relu_(b.index_select(0, j).add_(a), SLOPE)

    @staticmethod
    def forward(ctx, b, a, weight, idx, measure):
        top = b.new_empty(len(b), len(weight))
        rank = torch.empty_like(top, dtype=torch.uint8)
        shift = SecondLayer.edges(b, a, idx[:, 0]).mean(0)  # near the mean: the squares do not cancel
        total, square = torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift))
        for rows in row_blocks(len(b), b.device):

            def values():
                for j in idx[rows].T.contiguous():
                    h = SecondLayer.edges(b, a[rows], j)
                    yield h @ weight.T
                    if measure:
                        h -= shift
                        total.add_(h.sum(0))
                        square.addmm_(h.T, h)

            top[rows], rank[rows] = running_max(values())
        offset = total / idx.numel()
        mean = shift + offset
        ctx.save_for_backward(b, a, weight, idx, rank, mean)
        return top, mean, square / idx.numel() - offset.outer(offset)

    @staticmethod
    def backward(ctx, g_top, g_mean, g_cov):
        b, a, weight, idx, rank, mean = ctx.saved_tensors
        g_b, g_a, g_weight = torch.zeros_like(b), torch.zeros_like(a), torch.zeros_like(weight)
        g_cov = (g_cov + g_cov.T) / idx.numel()
        g_mean = g_mean / idx.numel() - mean @ g_cov
        for rows in row_blocks(len(b), b.device):
            for n, j in enumerate(idx[rows].T.contiguous()):
                h = SecondLayer.edges(b, a[rows], j)
                g_win = g_top[rows] * (rank[rows] == n)  # only the winner has a gradient
                g_weight.addmm_(g_win.T, h)
                g_h = torch.addmm(g_mean, h, g_cov).addmm_(g_win, weight)
                g_h = torch.where(h > 0, g_h, SLOPE * g_h)
                g_a[rows] += g_h
                g_b.index_add_(0, j, g_h)
        return g_b, g_a, g_weight, None, None


class EdgeConv2(EdgeConv):
    """Two layers on every edge before the max over the neighbours: (M, C_in), idx -> (M, C_out)."""

    def __init__(self, c_in, c_mid, c_out):
        super().__init__(c_in, c_mid)
        self.linear2 = nn.Linear(c_mid, c_out, bias=False)
        self.bn2 = nn.BatchNorm1d(c_out)

    def forward(self, x, idx):
        b, a = self.split(x, idx)
        # here the max comes before the statistics are known, so the sign of the norm's weight goes along
        sign = torch.where(self.bn2.weight < 0, -1.0, 1.0).to(x.dtype)
        weight = self.linear2.weight
        top, mean, cov = SecondLayer.apply(b, a, sign[:, None] * weight, idx, self.training)  # (M, C_out)
        scale, shift = fold(self.bn2, weight, (mean, cov), idx.numel())
        return F.leaky_relu(sign * scale * top + shift, SLOPE)


class LinearEdgeConv(nn.Module):
    """One or two linear layers with bias on every edge, nothing between, then max over the neighbours."""

    def __init__(self, c_in, *widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(c, o) for c, o in zip((2 * c_in, *widths), widths))

    def forward(self, x, idx):
        weight, bias = self.layers[0].weight, self.layers[0].bias
        for layer in self.layers[1:]:  # linear after linear is linear
            weight, bias = layer.weight @ weight, F.linear(bias, layer.weight, layer.bias)
        near, centre = pair_weight(weight).chunk(2, 1)
        return neighbour_max(F.linear(x, near), idx) + F.linear(x, centre, bias)


# ------------------------------------------------------------------------------------ encoders
def dense(widths, slope):
    """Linear, BN, (Leaky)ReLU for each pair of neighbouring widths, on (B, C)."""
    layers = []
    for c_in, c_out in zip(widths, widths[1:]):
        layers += [nn.Linear(c_in, c_out, bias=False), nn.BatchNorm1d(c_out), nn.LeakyReLU(slope)]
    return layers


class TNet(nn.Module):
    """A K x K matrix for each cloud, identity plus a learned part, applied to it: (B, N, K) -> (B, N, K)."""

    def __init__(self, k, slope):
        super().__init__()
        self.front = self.make_front(k, slope)
        self.top = PointMaxLayer(128, GLOBAL, slope)
        self.dense = nn.Sequential(*dense((GLOBAL, 512, 256), slope), nn.Linear(256, k * k))

    def make_front(self, k, slope):
        return nn.Sequential(PointLayer(k, 64, slope), PointLayer(64, 128, slope))

    def features(self, x):
        return self.front(x.flatten(0, 1))  # (B.N, 128)

    def forward(self, x):
        batch, n, k = x.shape
        h = self.top(self.features(x).view(batch, n, 128))  # (B, 1024)
        return x @ (self.dense(h).view(batch, k, k) + torch.eye(k, dtype=x.dtype, device=x.device))


class GraphTNet(TNet):
    """The T-net of DGCNN: its first two layers act on the edges of the input graph."""

    def make_front(self, k, slope):
        return EdgeConv2(k, 64, 128)

    def features(self, x):
        return self.front(x.flatten(0, 1), graph(x))


class BareTNet(TNet):
    """The T-net of PointSegDA's DGCNN: as GraphTNet, without batch norm."""

    def __init__(self, k, slope):
        nn.Module.__init__(self)
        self.edge, self.edge2 = nn.Linear(2 * k, 64, bias=False), nn.Linear(64, 128, bias=False)
        self.top = nn.Sequential(LinearTop(128, GLOBAL, bias=False), nn.LeakyReLU(slope))
        hidden = nn.Linear(GLOBAL, 512), nn.LeakyReLU(slope), nn.Linear(512, 256), nn.LeakyReLU(slope)
        self.dense = nn.Sequential(*hidden, nn.Linear(256, k * k))

    def features(self, x):
        flat = x.flatten(0, 1)
        b, a = (F.linear(flat, weight) for weight in pair_weight(self.edge.weight).chunk(2, 1))
        top, _, _ = SecondLayer.apply(b, a, self.edge2.weight, graph(x), False)
        return F.leaky_relu(top, SLOPE)  # (B.N, 128)


class PointNet(nn.Module):
    """(B, N, 3) -> (point features (B, N, 320), all layers but the widest; global feature (B, 1024))."""

    point_dim = 64 + 64 + 64 + 128

    def __init__(self):
        super().__init__()
        self.tnet3, self.tnet64 = TNet(3, 0.0), TNet(64, 0.0)
        widths = (3, 64, 64, 64, 128)
        self.layers = nn.ModuleList(PointLayer(c, o, 0.0) for c, o in zip(widths, widths[1:]))
        self.top = PointMaxLayer(128, GLOBAL, 0.0)

    def forward(self, points):
        batch, n, _ = points.shape
        x, features = self.tnet3(points).flatten(0, 1), []  # (B.N, 3)
        for i, layer in enumerate(self.layers):
            if i == 2:
                x = self.tnet64(x.view(batch, n, 64)).flatten(0, 1)
            x = layer(x)
            features.append(x)
        point_features = torch.cat(features, 1).view(batch, n, -1)  # (B, N, 320)
        return point_features, self.top(x.view(batch, n, -1))


class DGCNN(nn.Module):
    """(B, N, 3) -> (point features (B, N, 512), all four EdgeConvs; global feature (B, 1024)). The graph is
    recomputed in feature space before each EdgeConv."""

    point_dim = 64 + 64 + 128 + 256

    def __init__(self):
        super().__init__()
        self.tnet = self.make_tnet(3, SLOPE)
        self.convs = self.make_convs()
        self.top = self.make_top()

    make_tnet = GraphTNet

    def make_convs(self):
        return nn.ModuleList([EdgeConv(3, 64), EdgeConv(64, 64), EdgeConv(64, 128), EdgeConv(128, 256)])

    def make_top(self):
        return PointMaxLayer(self.point_dim, GLOBAL, SLOPE)

    def forward(self, points):
        x, features = self.tnet(points), []
        for conv in self.convs:
            x = conv(x.flatten(0, 1), graph(x)).view(*points.shape[:2], -1)  # (B, N, C)
            features.append(x)
        point_features = torch.cat(features, 2)  # (B, N, 512)
        return point_features, self.top(point_features)


class LinearTop(nn.Linear):
    """A linear layer on each point and the maximum over the points: (B, N, C_in) -> (B, C_out)."""

    def forward(self, x):
        return point_max(x, self.weight) + (0 if self.bias is None else self.bias)


class LinearDGCNN(DGCNN):
    """The DGCNN of PointSegDA: no norm anywhere, no activation after the T-net; point features (B, N, 192)."""

    point_dim = 64 + 64 + 64
    make_tnet = BareTNet

    def make_convs(self):
        return nn.ModuleList([LinearEdgeConv(3, 64, 64), LinearEdgeConv(64, 64, 64), LinearEdgeConv(64, 64)])

    def make_top(self):
        return LinearTop(self.point_dim, GLOBAL)


# -------------------------------------------------------------------------------- heads, model
class PerPointHead(nn.Module):
    """Layers 256, 256, 128, out on point features (B, N, C) and the global feature (B, 1024): (B, N, out)."""

    def __init__(self, point_dim, out):
        super().__init__()
        self.linear = nn.Linear(point_dim + GLOBAL, 256, bias=False)
        self.bn = nn.BatchNorm1d(256)
        self.rest = nn.Sequential(
            nn.ReLU(),
            nn.Dropout(0.5),
            PointLayer(256, 256, 0.0),
            nn.Dropout(0.5),
            PointLayer(256, 128, 0.0),
            nn.Linear(128, out),
        )

    def forward(self, point_features, global_feature):
        # W [p; g] = W_p p + W_g g: the global feature is never repeated N times
        w_point, w_global = self.linear.weight.split([point_features.shape[-1], GLOBAL], 1)
        h = F.linear(point_features, w_point) + F.linear(global_feature, w_global)[:, None]  # (B, N, 256)
        return self.rest(self.bn(h.flatten(0, 1))).view(*point_features.shape[:2], -1)


def classifier(num_classes, slope):
    """1024 -> 512 -> 256 -> classes, with dropout after each hidden layer: (B, 1024) -> (B, num_classes)."""
    return nn.Sequential(
        *dense((GLOBAL, 512), slope),
        nn.Dropout(0.5),
        *dense((512, 256), slope),
        nn.Dropout(0.5),
        nn.Linear(256, num_classes),
    )


class Model(nn.Module):
    """Encoder, classifier: points (B, N, 3) -> logits (B, classes); (B, N, classes) with a PerPointHead."""

    def __init__(self, encoder, classifier):
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def predict(self, features):
        """Logits from what the encoder returned, so that one forward serves several heads."""
        point_features, global_feature = features
        if isinstance(self.classifier, PerPointHead):
            return self.classifier(point_features, global_feature)
        return self.classifier(global_feature)

    def forward(self, points):
        return self.predict(self.encoder(points))


def build(backbone, num_classes=None):
    """A fresh Model: "pointnet", "dgcnn" (10 classes) or "dgcnn-seg" (8 parts a point). UserError for another name."""
    num_classes = num_classes or (8 if backbone == "dgcnn-seg" else 10)
    if backbone == "pointnet":
        return Model(PointNet(), classifier(num_classes, 0.0))
    if backbone == "dgcnn":
        return Model(DGCNN(), classifier(num_classes, SLOPE))
    if backbone == "dgcnn-seg":
        return Model(LinearDGCNN(), PerPointHead(LinearDGCNN.point_dim, num_classes))
    raise UserError(f"--backbone {backbone}: unknown; choose pointnet, dgcnn or dgcnn-seg")


class EMA:
    """The teacher: moving average of a student's weights and float buffers, always in eval mode."""

    def __init__(self, student):
        self.model = copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, student, t):
        """Move towards the student of step t = 0, 1, ...; a small decay at first forgets the random start."""
        decay = min(0.999, 1 - 1 / (t + 1))
        for mine, theirs in zip(self.model.state_dict().values(), student.state_dict().values()):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)  # the step count of a batch norm
