"""Point clouds of PointDA-10, PointSegDA and the built-in shapes: loading, checks, cache, streams, augmentation.

    src = load_domain("data", "M")                    # train, test (n, P, 3) and their labels
    tgt = load_domain("data", "SC", labels=False)     # what a training loop sees of the target

A domain is one tensor (n, P, 3), z up, each cloud in the unit sphere (bodies: as in their files); every augmentation is
a batched tensor operation with a generator of its own. Nothing here reads a target label unless it is asked to.
"""

import hashlib
import io
import math
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import UserError, one_line, seed_of, write_atomically

CLASSES = ("bathtub", "bed", "bookshelf", "cabinet", "chair", "lamp", "monitor", "plant", "sofa", "table")
PARTS = ("foot", "leg", "thigh", "torso", "upper arm", "forearm", "hand", "head")
DOMAINS = {"M": "modelnet", "S": "shapenet", "SC": "scannet"}
SEG_DOMAINS = {"F": "faust", "M": "mit", "A": "adobe", "S": "scape"}
TASKS = tuple(f"{a}_{b}" for a in DOMAINS for b in DOMAINS if a != b)
CACHE = Path(__file__).resolve().parent / ".cache"
MOST_POINTS = 2048  # a domain keeps at most this many points of a cloud
GET_SEG = "get PointSegDA (github.com/IdanAchituve/DefRec_and_PCM has its address in PointSegDA/data/)"

OFFICIAL = {  # clouds of each class 0..9, train and test
    "M": ((106, 515, 572, 200, 889, 124, 465, 240, 680, 392), (50, 100, 100, 86, 100, 20, 100, 100, 100, 100)),
    "S": ((599, 167, 310, 1076, 4612, 1620, 762, 158, 2198, 5876), (85, 23, 50, 126, 662, 232, 112, 30, 330, 842)),
    "SC": ((98, 329, 464, 650, 2578, 161, 210, 88, 495, 1037), (26, 85, 146, 149, 801, 41, 61, 25, 134, 301)),
}


# ---------------------------------------------------------------- domains
@dataclass
class Domain:
    """Train, test (and val of PointSegDA), (n, P, 3); labels (n,) or (n, P), None where they were not opened."""

    key: str
    train: torch.Tensor
    test: torch.Tensor
    train_labels: torch.Tensor | None = None
    test_labels: torch.Tensor | None = None
    val: torch.Tensor | None = None
    val_labels: torch.Tensor | None = None

    def to(self, device):
        move = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **move)

    def framed(self, up="z", unit_sphere=False):
        """Bodies of PointSegDA with z up, and centred in the unit sphere if asked: its layout fixes neither."""
        if up != "y" and not unit_sphere:
            return self
        turn = lambda x: torch.from_numpy(turn_up(x.numpy())) if up == "y" else x
        fit = lambda x: normalise(turn(x)) if unit_sphere else turn(x)
        return replace(self, **{split: fit(getattr(self, split)) for split in splits_of(self.key)})

    @property
    def validation(self):
        """Points and labels that a source is validated on: its val split (PointSegDA), else its test split."""
        return (self.test, self.test_labels) if self.val is None else (self.val, self.val_labels)

    @property
    def counts(self):
        """Clouds of each split: the total and, where labels were opened, of each class."""
        out = {}
        for split in splits_of(self.key):
            points, labels = getattr(self, split), getattr(self, f"{split}_labels")
            out[split] = {"total": len(points)}
            if labels is not None and labels.ndim == 1:
                out[split]["per_class"] = torch.bincount(labels.cpu(), minlength=10).tolist()
        return out


def split_task(task, oracle=False):
    """The two domain keys of a direction: "M_SC" -> ("M", "SC"), "seg_F_A" -> ("seg_F", "seg_A"); or UserError.

    The oracle learns on the target in the source's place.
    """
    head, _, tail = str(task).removeprefix("seg_").partition("_")
    if str(task).startswith("seg_") and head in SEG_DOMAINS and tail in SEG_DOMAINS:
        return f"seg_{tail if oracle else head}", f"seg_{tail}"
    if task in TASKS:
        return tail if oracle else head, tail
    known = f"{' '.join(TASKS)}, or seg_F_A and the like over {' '.join(SEG_DOMAINS)}"
    raise UserError(f"--task {task}: unknown; choose one of {known}")


def splits_of(key):
    return ("train", "val", "test") if key.startswith("seg_") else ("train", "test")


def train_size(root, key):
    """How many clouds a domain of PointSegDA trains on, without reading them."""
    if str(root) == "shapes":
        import shapes

        return shapes.BODIES["train"]
    return len(_seg_files(_folder(Path(root) / "PointSegDA" / SEG_DOMAINS[key[4:]] / "train", GET_SEG)))


def is_synthetic_to_real(src_key, tgt_key):
    """Whether the half-space crop applies: CAD models to depth scans."""
    return src_key in ("M", "S") and tgt_key == "SC"


def load_domain(root, key, labels=True):
    """A Domain from `root`: "shapes", or a folder that holds PointDA_data/ (PointSegDA/). UserError names a bad file.

    With labels=False no label value is read. ModelNet and ShapeNet name their classes by folder, so their clouds come
    class by class; the frame of ShapeNet's plants depends on that folder, as the data set itself has it.
    """
    fields = {}
    for split in splits_of(key):
        points, y = _load_split(root, key, split, labels)
        fields[split] = torch.from_numpy(points)
        fields[f"{split}_labels"] = torch.from_numpy(y) if labels else None
    domain = Domain(key, **fields)
    if labels and key in DOMAINS:
        _check_counts(root, domain)
    return domain


def _load_split(root, key, split, labels):
    if str(root) == "shapes":
        import shapes

        points, y = shapes.make(key, split)
        return (points if key.startswith("seg_") else normalise(torch.from_numpy(points)).numpy()), y
    if key.startswith("seg_"):
        return _read_segmentation(_folder(Path(root) / "PointSegDA" / SEG_DOMAINS[key[4:]] / split, GET_SEG), labels)
    folder = _folder(Path(root) / "PointDA_data" / DOMAINS[key])
    return _read_scans(folder, split, labels) if key == "SC" else _read_models(folder, key, split, labels)


def _folder(path, remedy="get PointDA-10 with `make data`"):
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; {remedy}, or try the built-in shapes with DATA=shapes (--data shapes)"
        )
    return path


def _check_counts(root, domain):
    """The full set has known counts, a set of that size with others is damaged; a class may be absent from scans."""
    name, absent = DOMAINS[domain.key], []
    for split, official in zip(("train", "test"), OFFICIAL[domain.key]):
        got = domain.counts[split]
        if str(root) != "shapes" and got["total"] == sum(official) and got["per_class"] != list(official):
            raise UserError(
                f"{root}: {name} {split} has {got['per_class']} clouds a class, not PointDA-10's {list(official)}; "
                "fetch it again with `make data`"
            )
        missing = ", ".join(c for c, n in zip(CLASSES, got["per_class"]) if n == 0)
        absent += [f"{split} has no {missing}"] if missing else []
    if absent:
        warnings.warn(f"{name} {'; '.join(absent)}; mean class accuracy averages the classes present")


# ---------------------------------------------------------------- reading and checking files
def normalise(points):
    """Subtract the mean and divide by the largest norm, (..., N, 3): the unit sphere."""
    points = points - points.mean(-2, keepdim=True)
    return points / points.norm(dim=-1, keepdim=True).amax(-2, keepdim=True).clamp_min(1e-12)


def turn_up(points):
    """y up -> z up: (x, y, z) -> (x, -z, y), (..., 3)."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


def check_cloud(points, where):
    """Finite numbers, [n, >= 3] with n >= 2 and two different points, as float32 [n, 3]; UserError otherwise."""
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise UserError(
            f"{where}: has shape {points.shape} of {points.dtype}, not numbers [n, 3 or more]; replace the file"
        )
    with np.errstate(over="ignore"):  # too large becomes Inf
        points = points[:, :3].astype(np.float32)
    if len(points) < 2 or (points == points[0]).all():
        raise UserError(f"{where}: needs at least two different points; remove or replace it")
    if not (np.abs(points) < 1e15).all():  # beyond that a squared norm overflows
        raise UserError(f"{where}: holds NaN, Inf or a coordinate beyond 1e15; remove or replace it")
    return points


def _read_npy(path):
    try:
        with open(path, "rb") as file:  # not np.load, which would also open an .npz
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header fails in a dozen ways
        raise UserError(f"{path}: not a whole .npy array of numbers ({one_line(error)}); fetch it again") from None


def _read_models(folder, key, split, labels):
    """<class>/<split>/*.npy -> points (n, P, 3), labels (n,): file by file once, then from the cache."""
    files = []
    for c, name in enumerate(CLASSES):
        found = sorted((folder / name / split).glob("[!.]*.npy"))  # a Mac leaves ._x.npy beside x.npy
        if not found:
            raise UserError(f"{folder / name / split}: no .npy file; all ten classes need some, see `make data`")
        files += [(path, c) for path in found]

    def read():
        clouds = []
        for path, c in tqdm(files, f"reading {folder.name}/{split}", leave=False, dynamic_ncols=True):
            points = check_cloud(_read_npy(path), path)
            clouds.append(points if key == "M" or CLASSES[c] == "plant" else turn_up(points))
        P = min(max(map(len, clouds)), MOST_POINTS)
        return np.stack([_resample(p, P, seed_of("resample", i)) for i, p in enumerate(clouds)])

    points = normalise(torch.from_numpy(_cached([path for path, _ in files], read))).numpy()
    return points, np.array([c for _, c in files], dtype=np.int64)


def _resample(points, P, seed):
    """P of the points, all distinct where there are enough, with replacement where not."""
    if len(points) == P:
        return points
    rng = np.random.default_rng(seed)
    return points[rng.choice(len(points), P, replace=len(points) < P)]


def _read_scans(folder, split, labels):
    """<split>_*.h5 -> points (n, P, 3), and labels (n,) only if asked for."""
    files = sorted(folder.glob(f"{split}_*.h5"))
    if not files:
        raise UserError(f"{folder}: no {split}_*.h5 file; fetch the set again with `make data`")
    y = [_read_h5(path, lambda file, path=path: _scan_labels(file, path, labels)) for path in files]

    def read():
        clouds = []
        for path in tqdm(files, f"reading {folder.name}/{split}", leave=False, dynamic_ncols=True):
            array = _read_h5(path, lambda file: file["data"][...])
            clouds += [turn_up(check_cloud(points, f"{path}, cloud {i}")) for i, points in enumerate(array)]
        P = min(max(map(len, clouds)), MOST_POINTS)
        return np.stack([_resample(p, P, seed_of("resample", i)) for i, p in enumerate(clouds)])

    return normalise(torch.from_numpy(_cached(files, read))).numpy(), np.concatenate(y) if labels else None


def _read_h5(path, read):
    try:
        with h5py.File(path, "r") as file:
            return read(file)
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in a dozen ways
        raise UserError(f"{path}: not a whole HDF5 file ({one_line(error)}); fetch it again") from None


def _scan_labels(file, path, values):
    """Check that labels fit the clouds; read and check their values only if asked to."""
    for name in ("data", "label"):
        if not isinstance(file.get(name), h5py.Dataset):
            raise UserError(f"{path}: has no dataset `{name}`; fetch it again")
    data, label = file["data"], file["label"]
    if data.ndim != 3 or not len(data) or label.shape not in ((len(data),), (len(data), 1)):
        raise UserError(
            f"{path}: data {data.shape} and label {label.shape} do not fit, "
            "[m, n, 3 or more] and [m] with m >= 1 are needed; fetch it again"
        )
    if not values:
        return None
    y = label[...].reshape(-1)
    if y.dtype.kind not in "fiu" or not np.isin(y, np.arange(10)).all():
        raise UserError(f"{path}: labels must be whole numbers in 0..9; fetch it again")
    return y.astype(np.int64)


def _seg_files(folder):
    files = sorted(folder.glob("[!.]*.npy"))
    if not files:
        raise UserError(f"{folder}: no .npy file; {GET_SEG} again")
    return files


def _read_segmentation(folder, labels):
    """*.npy [P, 4] -> points (n, P, 3) as they are, labels (n, P) in 0..7 (1..8 in the files) if asked for."""
    files = _seg_files(folder)
    clouds = [_read_npy(path) for path in files]
    P = Counter(cloud.shape[:1] for cloud in clouds).most_common(1)[0][0]  # (P,): so the odd file is named
    for path, cloud in zip(files, clouds):
        check_cloud(cloud, path)
        if cloud.shape != (*P, 4):
            raise UserError(f"{path}: has shape {cloud.shape}, not {[*P, 4]} (x, y, z, label); replace it")
        if labels and not np.isin(cloud[:, 3], np.arange(1, 9)).all():
            raise UserError(f"{path}: labels (column 3) must be whole numbers in 1..8; replace it")
    array = np.stack(clouds)
    return array[..., :3].astype(np.float32), array[..., 3].astype(np.int64) - 1 if labels else None


def _cached(files, read):
    """`read()` as float32 (n, P, 3), kept in one file for these files as they are now, where one can be written."""
    try:
        stats = [(p.name, p.parent.parent.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    except OSError as error:  # a link that leads nowhere
        raise UserError(f"{error.filename}: {error.strerror}; fetch it again") from None
    # the name stands for the place, the key for its files and this code: a changed folder replaces its own file
    place = f"{files[0].resolve().parent} {files[0].name if files[0].suffix == '.h5' else ''}"
    key = hashlib.sha256(repr((stats, MOST_POINTS)).encode() + Path(__file__).read_bytes()).hexdigest()
    path = CACHE / f"{hashlib.sha256(place.encode()).hexdigest()[:24]}.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            if kept["key"].item() == key:
                return kept["points"]  # reading a zip member compares its checksum
    except Exception:  # absent, or damaged in one of a dozen ways: read the files
        pass
    array = read()
    try:
        CACHE.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, key=np.array(key), points=array)
        write_atomically(path, buffer.getvalue())
    except (OSError, UserError):
        pass  # a read-only checkout reads the files each time
    return array


# ---------------------------------------------------------------- what a data set is called
def data_name(root, src, tgt):
    """ "PointDA-10" only when every count that was opened is official; "built-in shapes"; else "custom: ..." """
    if str(root) == "shapes":
        return "built-in shapes"
    if all(_official(domain) for domain in (src, tgt)):
        return "PointDA-10"
    note = Path(root) / ("PointSegDA" if src.key.startswith("seg_") else "") / "NAME"
    return "custom: " + (note.read_text().partition("\n")[0].strip() if note.is_file() else Path(root).resolve().name)


def _official(domain):
    counts = domain.counts
    return domain.key in OFFICIAL and all(
        counts[split]["total"] == sum(official) and counts[split].get("per_class", list(official)) == list(official)
        for split, official in zip(("train", "test"), OFFICIAL[domain.key])
    )


def counts_text(domain):
    """The counts in one line."""
    name = {**DOMAINS, **{f"seg_{k}": v for k, v in SEG_DOMAINS.items()}}[domain.key]
    text = lambda c: f"{c['total']} {c['per_class']}" if "per_class" in c else str(c["total"])
    return f"{name}: " + ", ".join(f"{split} {text(c)}" for split, c in domain.counts.items())


def fingerprint(src, tgt):
    """sha256 of all points of both domains in fixed order; labels play no part."""
    digest = hashlib.sha256()
    for domain in (src, tgt):
        for split in splits_of(domain.key):
            digest.update(getattr(domain, split).cpu().numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- streams and fixed subsets
@lru_cache(maxsize=8)
def _permutation(n, *words):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*words)))


def stream(n, batch, step, *words):
    """Indices (batch,) of step 0, 1, ... of an endless stream of permutations of n, full batches only.

    A pure function of the step, so that resuming needs no state; a batch larger than n goes on into the next ones.
    """
    per_epoch = n // batch
    if per_epoch:
        at = step % per_epoch * batch
        return _permutation(n, *words, step // per_epoch)[at : at + batch]
    rounds = math.ceil(batch / n)
    return torch.cat([_permutation(n, *words, step * rounds + i) for i in range(rounds)])[:batch]


def gather_points(x, index):
    """Rows of each cloud: (B, N, C), (B, n) -> (B, n, C); or (B, N), (B, n) -> (B, n)."""
    return x.gather(1, index) if x.ndim == 2 else x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def subsample_index(points, n, generator):
    """A fresh random n of the N points of each cloud, without replacement unless N < n, (B, N, 3) -> (B, n)."""
    B, N, _ = points.shape
    if N < n:
        return torch.randint(N, (B, n), generator=generator, device=generator.device)
    return torch.rand(B, N, generator=generator, device=generator.device).topk(n, sorted=False).indices


def subsample(points, n, generator):
    """(B, N, 3) -> (B, n, 3): see subsample_index."""
    return gather_points(points, subsample_index(points, n, generator))


def evaluation_subset(points, n, labels=None):
    """The same n points of each cloud in every run and on every device, (m, P, 3) -> (m, n, 3); labels (m, P) alike."""
    generator = torch.Generator().manual_seed(seed_of("evaluation", n))
    index = (
        subsample_index(points, n, generator).sort(1).values.to(points.device)
    )  # topk's own order is nobody's promise
    chosen = gather_points(points, index)
    if labels is None:
        return chosen
    return chosen, gather_points(labels, index) if labels.ndim == 2 else labels


# ---------------------------------------------------------------- augmentation, (B, N, 3) -> (B, N, 3)
def _uniform(points, low, high, generator, *shape):
    return low + (high - low) * torch.rand(len(points), *shape, generator=generator, device=points.device)


def rotate_z(points, generator):
    """Each cloud by its own angle in [0, 2 pi) about the vertical."""
    a = _uniform(points, 0, 2 * math.pi, generator)
    c, s, zero, one = a.cos(), a.sin(), torch.zeros_like(a), torch.ones_like(a)
    R = torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).view(-1, 3, 3)  # (B, 3, 3)
    return points @ R.transpose(1, 2)


def scale(points, generator, low=0.7, high=1.5):
    """Each cloud by its own factor."""
    return points * _uniform(points, low, high, generator, 1, 1)


def jitter(points, generator, sigma=0.01, clip=0.05):
    """Clipped Gaussian noise on every coordinate."""
    noise = torch.randn(points.shape, generator=generator, device=points.device)
    return points + (sigma * noise).clamp(-clip, clip)


def _twice_box(cells, like):
    """Two passes of a 3-box along an axis, zeros outside, as one matrix (cells, cells)."""
    box = sum(torch.ones(cells - abs(o), device=like.device, dtype=like.dtype).diag(o) for o in (-1, 0, 1)) / 3
    return box @ box


def elastic(points, generator, p=0.95):
    """Elastic distortion by smoothed noise grids: granularity .2, magnitude .4, then .8 and 1.6; for a share p."""
    chosen = (torch.rand(len(points), 1, 1, generator=generator, device=points.device) < p).to(points.dtype)
    for granularity, magnitude in ((0.2, 0.4), (0.8, 1.6)):
        cells = math.ceil(3 / granularity) + 1  # one grid over [-1.5, 1.5]^3
        grid = torch.randn(len(points), 3, cells, cells, cells, generator=generator, device=points.device)
        grid = torch.einsum("bcxyz,xi,yj,zk->bcijk", grid, *3 * [_twice_box(cells, points)])
        at = points.flip(-1)[:, :, None, None] / 1.5  # grid_sample wants the last axis of the grid first
        noise = F.grid_sample(grid, at, padding_mode="border", align_corners=True)[..., 0, 0]  # (B, 3, N)
        points = points + chosen * magnitude * noise.transpose(1, 2)
    return points


def half_space_crop(points, generator, keep=0.7):
    """Keep the round(.7 N) points furthest along a random direction, then draw N of them with replacement."""
    B, N, _ = points.shape
    direction = F.normalize(torch.randn(B, 3, 1, generator=generator, device=points.device), dim=1)
    kept = (points @ direction)[..., 0].topk(round(keep * N), sorted=False).indices  # (B, .7 N)
    draw = torch.randint(kept.shape[1], (B, N), generator=generator, device=points.device)
    return gather_points(points, kept.gather(1, draw))


def strong_view(points, n, generator, *, source, crop=False):
    """Self-distillation's strong view, (B, P, 3) -> (B, n, 3); the source turns too, cropped for real targets."""
    if source:
        points = rotate_z(points, generator)
    points = jitter(scale(elastic(points, generator), generator), generator)
    if source and crop:
        points = half_space_crop(points, generator)
    return subsample(points, n, generator)


def weak_view(points, n, generator):
    """Self-distillation's weak view for the teacher: jitter alone."""
    return subsample(jitter(points, generator), n, generator)


def plain_view(points, n, generator):
    """The view of DefRec, GAST and MLSP: turn about z and jitter."""
    return subsample(jitter(rotate_z(points, generator), generator, clip=0.02), n, generator)


def plain_view_labelled(points, labels, n, generator):
    """plain_view with per-point labels (B, P) -> (B, n, 3), (B, n)."""
    points = jitter(rotate_z(points, generator), generator, clip=0.02)
    index = subsample_index(points, n, generator)
    return gather_points(points, index), gather_points(labels, index)
