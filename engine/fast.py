"""The layers of models.py computed without what their formulas would form; models.PLAIN computes the formulas.

The edge tensor (B, N, k, 2C) of DGCNN is never made. Three facts replace it:

1. Edge (i, j) carries [x_j - x_i, x_i]. With W = [W_n, W_c], W.edge = W_n x_j + (W_c - W_n) x_i = b_j + a_i:
   two products on N points replace one on N.k edges, and max_j (b_j + a_i) = a_i + max_j b_j.
2. Batch norm of W.u needs only the mean m and covariance C of its input u: W m and diag(W C W^T). Both are
   known before W.u is, so the norm, its sign included, is folded into W and the maximum may come after it.
3. Only the winner of a maximum has a gradient: it is looked for without autograd, then read again with it.

Layers take points (B, N, C) and, on a graph, idx (B, N, k) from knn, with their parameters as the modules `linear`
and `bn`; running statistics move as torch's own norm moves them. Below the layers points lie flat, (M, C) with
M = B.N rows, and idx (M, k) holds row numbers.
"""

import torch
import torch.nn.functional as F


# ---------------------------------------------------------------- products
PRECISIONS = "fp32", "tf32", "bf16"
_bf16 = False


def set_precision(name):
    """How the layers' products on points are computed from now on, forwards and backwards; their results, statistics,
    graphs, maps and losses stay in the model's own type. tf32 is a GPU's, and concerns all products of a process."""
    global _bf16
    _bf16 = name == "bf16"
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")


def low(x):
    """An operand as the products take it."""
    return x.bfloat16() if _bf16 else x


def product(x, weight, bias=None):
    """weight.x_n + bias, as F.linear, in the chosen precision."""
    if not _bf16:
        return F.linear(x, weight, bias)
    y = F.linear(low(x), low(weight)).to(x.dtype)
    return y if bias is None else y + bias


# ---------------------------------------------------------------- neighbours
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

    def nearest(x, square):
        # |x_j|^2 - 2 x_i.x_j orders the j of one i as the distance does
        distance = torch.baddbmm(square[:, None], x, x.transpose(1, 2), alpha=-2)  # (B, N, N)
        distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # itself, whatever the rounding
        return smallest(distance, min(k, x.shape[1]))

    size = 1 if x.device.type == "cpu" else len(x)  # a CPU's cache holds the distances of one cloud
    return torch.cat([nearest(*some) for some in zip(x.split(size), square.split(size))])


def flat(x, idx):
    """Points (B, N, C) as rows (B.N, C), and the graph idx (B, N, k) as numbers of these rows (B.N, k)."""
    first = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return x.flatten(0, 1), (idx + first[:, None, None]).flatten(0, 1)


# ---------------------------------------------------------------- maxima
def row_blocks(n, width, device):
    """Slices of rows that take a megabyte in float32, which stay in a CPU's cache; on a GPU one slice of all."""
    size = max(256, 2**18 // width) if device.type == "cpu" else n
    return [slice(start, start + size) for start in range(0, n, size)]


def keep_larger(best, rank, value, n):
    """best <- max(best, value) and, where value is larger, rank (uint8) <- n, in place: ties stay with the first. Two
    tensors at a time: on a CPU this vectorises, which a maximum with indices does not. n counts up, below 256."""
    torch.maximum(rank, (value > best).view(torch.uint8).mul_(n), out=rank)
    torch.maximum(best, value, out=best)


def neighbour_max(b, idx):
    """max_j b_j over the neighbours j of each row: (M, C), (M, k) -> (M, C)."""
    winner = torch.empty(b.shape, dtype=torch.int64, device=b.device)
    with torch.no_grad():
        for rows in row_blocks(*b.shape, b.device):
            best = torch.full_like(b[rows], -torch.inf)
            rank = torch.zeros_like(best, dtype=torch.uint8)
            for n, j in enumerate(idx[rows].T.contiguous()):
                keep_larger(best, rank, b.index_select(0, j), n)
            winner[rows] = idx[rows].gather(1, rank.long())
    return b.gather(0, winner)


class PointMax(torch.autograd.Function):
    """max_n weight.x_n over the points n of each cloud: (B, N, C), (O, C) -> (B, O)."""

    @staticmethod
    def forward(ctx, x, weight):
        best = lambda some: (low(weight) @ low(some).transpose(-1, -2)).max(-1)  # (O,) of a cloud, (B, O) of several
        one_by_one = x.device.type == "cpu"  # a CPU's cache holds one cloud; a GPU wants few launches
        found = zip(*map(best, x if one_by_one else x.split(16)))
        top, winner = (torch.stack(part) if one_by_one else torch.cat(part) for part in found)
        winner = winner + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
        if _bf16:  # the winner's value is read again, as it was
            top = (x.flatten(0, 1)[winner] * weight).sum(-1)
        ctx.save_for_backward(x, weight, winner)
        return top

    @staticmethod
    def backward(ctx, g):
        x, weight, winner = ctx.saved_tensors
        rows, g_x, g_weight = x.flatten(0, 1), None, None
        if ctx.needs_input_grad[0]:
            g_rows = (g[..., None] * weight).flatten(0, 1)  # (B.O, C)
            g_x = torch.zeros_like(rows).index_add_(0, winner.flatten(), g_rows).view(x.shape)
        if ctx.needs_input_grad[1]:  # sum_b g_bo x_winner
            g_weight = F.embedding_bag(winner.T, rows, per_sample_weights=g.T, mode="sum")
        return g_x, g_weight


# ---------------------------------------------------------------- batch norm, folded
pool = None  # the moments of several processes' rows, while engine/parallel.py has it so


class Moments(torch.autograd.Function):
    """Mean (C,) and covariance (C, C) of the points x (B, N, C), centred first. Backward is one product."""

    @staticmethod
    def forward(ctx, x):
        rows = x.flatten(0, -2)
        mean = rows.mean(0)
        ctx.save_for_backward(x, mean)
        centred = rows - mean
        return mean, centred.T @ centred / len(rows)

    @staticmethod
    def backward(ctx, g_mean, g_cov):
        x, mean = ctx.saved_tensors
        rows = x.flatten(0, -2)
        return torch.addmm(g_mean / len(rows), rows - mean, (g_cov + g_cov.T) / len(rows)).view(x.shape)


def edge_moments(x, idx):
    """Mean (2C,) and covariance (2C, 2C) of [x_j, x_i] over all edges (i, j), from sums over points alone."""
    centre = x.detach().mean(0)  # a shift: it leaves the covariance as it is
    x = x - centre
    m, k = idx.shape
    near = F.embedding_bag(idx, x, mode="sum") / k  # (M, C) mean neighbour
    ones = torch.ones(idx.numel(), dtype=x.dtype, device=x.device)
    degree = x.new_zeros(m).scatter_add_(0, idx.flatten(), ones)[:, None] / k  # (M, 1) in-degree / k
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
        moments, count = pool(moments, count) if pool else (moments, count)
        mean = weight @ moments[0]
        var = ((weight @ moments[1]) * weight).sum(1).clamp_min(0)  # diag(W C W^T)
        with torch.no_grad():
            bn.num_batches_tracked += 1
            bn.running_mean.lerp_(mean, bn.momentum)
            bn.running_var.lerp_(var * (count / (count - 1)), bn.momentum)
    scale = bn.weight * torch.rsqrt(var + bn.eps)
    return scale, bn.bias - mean * scale


# ---------------------------------------------------------------- layers on points
def folded(x, linear, bn):
    """Weight (C_out, C_in) and bias (C_out,) of linear and norm in one, for points x (B, N, C_in)."""
    moments = Moments.apply(x) if bn.training else None
    scale, shift = fold(bn, linear.weight, moments, x[..., 0].numel())
    return scale[:, None] * linear.weight, shift


def point_layer(x, linear, bn, slope):
    """LeakyReLU(BN(W x_n)): (B, N, C_in) -> (B, N, C_out)."""
    weight, shift = folded(x, linear, bn)
    return F.leaky_relu(product(x.flatten(0, 1), weight, shift), slope, inplace=True).view(*x.shape[:2], -1)


def point_max_layer(x, linear, bn, slope):
    """max_n LeakyReLU(BN(W x_n)): (B, N, C_in) -> (B, C_out)."""
    weight, shift = folded(x, linear, bn)
    return F.leaky_relu(PointMax.apply(x, weight) + shift, slope)


def linear_max_layer(x, weight, bias):
    """max_n (W x_n + bias), bias (C_out,) or None: (B, N, C_in) -> (B, C_out)."""
    top = PointMax.apply(x, weight)
    return top if bias is None else top + bias


def linear_of_pair(x, y, linear):
    """W [x_n; y] = W_x x_n + W_y y: (B, N, C), (B, D) -> (B, N, C_out). y is never repeated N times."""
    w_x, w_y = linear.weight.split([x.shape[-1], y.shape[-1]], 1)
    return product(x, w_x) + F.linear(y, w_y)[:, None]


# ---------------------------------------------------------------- layers on edges
def pair_weight(weight):
    """The weight [W_n, W_c] on [x_j - x_i, x_i] as a weight on [x_j, x_i]."""
    near, centre = weight.chunk(2, 1)
    return torch.cat([near, centre - near], 1)


def split(x, idx, linear, bn):
    """b and a, (M, C_out) each, of rows x (M, C_in): BN(W.edge) of the edge (i, j) is b_j + a_i; bn=None: no norm."""
    weight, shift = pair_weight(linear.weight), None
    if bn is not None:
        moments = edge_moments(x, idx) if bn.training else None
        scale, shift = fold(bn, weight, moments, idx.numel())
        weight = scale[:, None] * weight
    near, centre = weight.chunk(2, 1)
    return product(x, near), product(x, centre, shift)


def edge_conv(x, idx, linear, bn, slope):
    """max_j LeakyReLU(BN(W [x_j - x_i, x_i])): (B, N, C_in) -> (B, N, C_out)."""
    rows, idx = flat(x, idx)
    b, a = split(rows, idx, linear, bn)
    return F.leaky_relu(neighbour_max(b, idx) + a, slope, inplace=True).view(*x.shape[:2], -1)


class SecondLayer(torch.autograd.Function):
    """max_j W.h_ij over the neighbours, with h_ij = LeakyReLU(b_j + a_i), and mean and covariance of h over
    all edges: (M, H), (M, H), (O, H), (M, k) -> (M, O), (H,), (H, H). Forward and backward take one neighbour
    of every point at a time and compute h anew. With measure=False mean and covariance are not computed."""

    @staticmethod
    def hidden(b, a, j, slope):
        return F.leaky_relu_(b.index_select(0, j).add_(a), slope)

    @staticmethod
    def forward(ctx, b, a, weight, idx, slope, measure):
        top = b.new_full((len(b), len(weight)), -torch.inf)
        rank = torch.zeros_like(top, dtype=torch.uint8)
        shift = SecondLayer.hidden(b, a, idx[:, 0], slope).mean(0)  # near the mean: the squares do not cancel
        total, square = torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift))
        for rows in row_blocks(*top.shape, b.device):
            for n, j in enumerate(idx[rows].T.contiguous()):
                h = SecondLayer.hidden(b, a[rows], j, slope)
                keep_larger(top[rows], rank[rows], h @ weight.T, n)
                if measure:
                    h -= shift
                    total += h.sum(0)
                    square.addmm_(h.T, h)
        offset = total / idx.numel()
        mean = shift + offset
        ctx.slope = slope
        ctx.save_for_backward(b, a, weight, idx, rank, mean)
        return top, mean, square / idx.numel() - offset.outer(offset)

    @staticmethod
    def backward(ctx, g_top, g_mean, g_cov):
        b, a, weight, idx, rank, mean = ctx.saved_tensors
        g_b, g_a, g_weight = torch.zeros_like(b), torch.zeros_like(a), torch.zeros_like(weight)
        g_cov = (g_cov + g_cov.T) / idx.numel()
        g_mean = g_mean / idx.numel() - mean @ g_cov
        for rows in row_blocks(*g_top.shape, b.device):
            for n, j in enumerate(idx[rows].T.contiguous()):
                h = SecondLayer.hidden(b, a[rows], j, ctx.slope)
                g_win = g_top[rows] * (rank[rows] == n)  # only the winner has a gradient
                g_weight.addmm_(g_win.T, h)
                g_h = torch.addmm(g_mean, h, g_cov).addmm_(g_win, weight)
                g_h = torch.where(h > 0, g_h, ctx.slope * g_h)
                g_a[rows] += g_h
                g_b.index_add_(0, j, g_h)
        return g_b, g_a, g_weight, None, None, None


def edge_conv2(x, idx, linear, bn, linear2, bn2, slope):
    """max_j of two layers LeakyReLU(BN(W .)) on [x_j - x_i, x_i], bn=None and bn2=None: no norm:
    (B, N, C_in) -> (B, N, C_out)."""
    rows, idx = flat(x, idx)
    b, a = split(rows, idx, linear, bn)
    if bn2 is None:
        top, _, _ = SecondLayer.apply(b, a, linear2.weight, idx, slope, False)  # (M, C_out)
    else:  # the max comes before the statistics are known, so the sign of the norm's weight goes along
        sign = torch.where(bn2.weight < 0, -1.0, 1.0).to(x.dtype)
        top, *moments = SecondLayer.apply(b, a, sign[:, None] * linear2.weight, idx, slope, bn2.training)
        scale, shift = fold(bn2, linear2.weight, moments, idx.numel())
        top = sign * scale * top + shift
    return F.leaky_relu(top, slope).view(*x.shape[:2], -1)


def linear_edge_conv(x, idx, layers):
    """max_j of linear layers with bias, one after another, on [x_j - x_i, x_i]: (B, N, C_in) -> (B, N, C_out)."""
    rows, idx = flat(x, idx)
    weight, bias = layers[0].weight, layers[0].bias
    for layer in layers[1:]:  # linear after linear is linear
        weight, bias = layer.weight @ weight, F.linear(bias, layer.weight, layer.bias)
    near, centre = pair_weight(weight).chunk(2, 1)
    return (neighbour_max(product(rows, near), idx) + product(rows, centre, bias)).view(*x.shape[:2], -1)
