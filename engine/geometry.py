"""Operations on batches of clouds (B, N, 3) that several tasks and views share; no loop over clouds."""

import math

import torch
import torch.nn.functional as F

from engine.base import seed_of
from engine.fast import knn

VOXELS = 27  # of [-1, 1]^3


def share(generator, *words):
    """mu ~ Beta(1, 1), one a batch, from the generator's seed; drawn on the host, as sizes follow from it."""
    host = torch.Generator().manual_seed(seed_of(generator.initial_seed(), "mu", *words))
    return torch.rand((), generator=host).item()


def gather_points(x, index):
    """Rows of each cloud: (B, N, C), (B, n) -> (B, n, C); or (B, N), (B, n) -> (B, n)."""
    return x.gather(1, index) if x.ndim == 2 else x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def farthest_points(points, m):
    """Farthest-point sampling of m points from each cloud, starting at its first, (B, N, 3) -> (B, m) index."""
    index = torch.zeros(len(points), m, dtype=torch.long, device=points.device)
    nearest = points.new_full(points.shape[:2], math.inf)
    for i in range(1, m):  # over points, not clouds: each step serves the whole batch
        newest = gather_points(points, index[:, i - 1 : i])  # (B, 1, 3)
        nearest = torch.minimum(nearest, (points - newest).square().sum(-1))
        index[:, i] = nearest.argmax(-1)
    return index


def normals(points, k=20):
    """Unit normals, of either sign, by PCA of the k nearest neighbours, (B, N, 3) -> (B, N, 3)."""
    B, N, _ = points.shape
    index = knn(points, k)
    near = gather_points(points, index.flatten(1)).view(B, N, -1, 3)
    near = near - near.mean(2, keepdim=True)
    scatter = (near.transpose(2, 3) @ near).flatten(0, 1)  # (B.N, 3, 3), in parts: CUDA's solver has a limit near 2^15
    vectors = [torch.linalg.eigh(part).eigenvectors[..., 0] for part in scatter.split(1 << 14)]  # least eigenvalue
    return torch.cat(vectors).view(B, N, 3)


def masked_chamfer(predicted, truth, mask):
    """Squared Chamfer distance, both ways, between masked points, (B, N, 3) x2, (B, N) bool -> (B,)."""
    # a CPU takes as few as there are; a GPU does not wait to hear how many
    K = max(int(mask.sum(1).max()), 1) if mask.device.type == "cpu" else mask.shape[1]
    index = mask.int().argsort(dim=1, descending=True, stable=True)[:, :K]  # masked points first, (B, K)
    valid = mask.gather(1, index)
    p, q = gather_points(predicted, index), gather_points(truth, index)  # (B, K, 3)
    with torch.no_grad():  # only who is nearest; the distance itself is taken again, exactly
        d = torch.cdist(p, q).masked_fill(~(valid[:, :, None] & valid[:, None]), math.inf)  # (B, K, K)
        to_q, to_p = d.argmin(2), d.argmin(1)  # (B, K)
    there = (p - gather_points(q, to_q)).square().sum(-1)
    back = (q - gather_points(p, to_p)).square().sum(-1)
    return ((there + back) * valid).sum(1) / valid.sum(1).clamp_min(1)  # an empty mask costs nothing, not 0/0


def quarter_turns(points, k, axis):
    """Rotate each cloud by k quarter turns, exactly, about x (axis 0) or y (axis 1): (B, n, 3), (B,) -> (B, n, 3)."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    c, s = points.new_tensor([1, 0, -1, 0])[k, None], points.new_tensor([0, 1, 0, -1])[k, None]  # (B, 1)
    out = points.clone()
    out[..., i] = c * points[..., i] - s * points[..., j]
    out[..., j] = s * points[..., i] + c * points[..., j]
    return out


def grid_of(points, granularity):
    """Each cloud's own grid, nodes `granularity` apart from one below its smallest coordinate to one above its largest:
    its first node (B, 1, 3), and how many nodes an axis has (B, 3)."""
    axes = points.transpose(1, 2).contiguous()  # a minimum along the last axis is many times as fast
    low = axes.amin(2)
    return low[:, None] - granularity, ((axes.amax(2) - low) / granularity).floor() + 3


def twice_box(inside):
    """Two passes of a 3-box along an axis whose nodes are `inside` (B, D) bool, zeros elsewhere -> (B, D, D)."""
    cells = inside.shape[1]
    box = sum(torch.ones(cells - abs(o), device=inside.device).diag(o) for o in (-1, 0, 1)) / 3
    box = box * inside[:, None] * inside[:, :, None]
    return box @ box


def distort(points, noise, granularity, grid):
    """Smoothed noise, trilinear between the nodes of each cloud's own grid, (B, N, 3), (B, 3, D, D, D) -> (B, N, 3).

    D is at least the most nodes that an axis has in grid_of(points, granularity); of a shorter axis the first count.
    """
    (first, nodes), D = grid, noise.shape[-1]
    inside = torch.arange(D, device=points.device) < nodes[..., None]  # (B, 3, D)
    for axis in range(3):  # each turn puts the axis it has smoothed last: after three they stand as before
        noise = torch.einsum("bcxyz,bxi->bcyzi", noise, twice_box(inside[:, axis]).to(noise.dtype))
    at = (points - first) * (2 / granularity / (D - 1)) - 1  # (B, N, 3) in [-1, 1]
    at = at.flip(-1)[:, :, None, None]  # grid_sample wants the last axis of the grid first
    return F.grid_sample(noise, at, align_corners=True)[..., 0, 0].transpose(1, 2)


def voxel(points):
    """Which of the 27 voxels of [-1, 1]^3 each point is in or nearest to, (B, N, 3) -> (B, N)."""
    cell = ((points + 1) * 1.5).floor().clamp(0, 2).long()
    return (cell * cell.new_tensor([9, 3, 1])).sum(-1)


def choose_voxel(index, least, generator):
    """A random voxel with at least `least` points for each cloud, the fullest if none has them, (B, N) -> (B,)."""
    count = F.one_hot(index, VOXELS).sum(1)  # (B, 27)
    draw = torch.rand(count.shape, generator=generator, device=index.device)
    return torch.where(count >= least, 1 + draw, count / (index.shape[1] + 1)).argmax(-1)
