"""Your own clouds: a labelled source folder and a target with or without labels (--source DIR --target DIR).

Source: SOURCE/<class>/*, the classes are its folders' names. Target: TARGET/<class>/*, or a flat folder, or one .h5
with `data` (and `label`, numbers of the source's classes in their order). Any format that clouds.py reads, also
meshes. train/ and test/ are taken where they are, above or below the classes; else one cloud of five is for testing, of
a source one of five of each class.

The target's order, split and points follow from the clouds' contents alone: no label plays a part in what is trained.
"""

import hashlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from datasets import files
from datasets.clouds import FORMATS, cloud_of, read_cloud
from engine.base import CONTROL, UserError, seed_of, visible

NAME = "own clouds"
DOMAINS = {"own_source": "source", "own_target": "target"}
PREFIX = "own_"
SPLITS = ("train", "test")
PER_POINT = False
POINTS = 1024
SCANS = {"own_target"}
FRAMED = False
TEST = 5  # one cloud of so many
OTHER = "give another file"


# ---------------------------------------------------------------- what is where
def folder_of(root, key):
    """The folder (or .h5 file) of a domain; root: (source, target). UserError where there is none."""
    if isinstance(root, str):
        raise UserError(f"--data {root}: own clouds are two folders; give --data SOURCE TARGET")
    path = Path(root[list(DOMAINS).index(key)]).expanduser()
    flag = f"--{DOMAINS[key]} {path}"
    if not path.exists():
        raise UserError(f"{flag}: no such folder; give the folder of your clouds")
    if path.is_file() and (path.suffix != ".h5" or key == "own_source"):
        raise UserError(f"{flag}: a file; give a folder of clouds" + (", or one .h5" if key == "own_target" else ""))
    return path


def listed(path, descend=True):
    """[(file, name of its class's folder or None, its split or None), ...] of a folder of clouds, in any layout.

    Where all lie in one folder that holds folders, that one is taken, and said. UserError where there is no cloud.
    """
    found, others = [], Counter()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        parts = file.relative_to(path).parts
        if any(part[0] in "._" for part in parts):  # a Mac leaves ._x.ply beside x.ply
            continue
        if file.suffix.lower() in FORMATS:
            found.append((file, parts[:-1]))
        else:
            others[file.suffix or file.name] += 1
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        say(f"{path}: files of other kinds are passed over: {kinds}")
    deeper = lambda: all(len(parts) > 1 for _, parts in found) and len({parts[0] for _, parts in found}) == 1
    while descend and found and deeper():
        path = path / found[0][1][0]
        found = [(file, parts[1:]) for file, parts in found]
        say(f"taking the clouds in {path}")
    if not found:
        raise UserError(f"{path}: no cloud in it; give a folder with files {' '.join(sorted(FORMATS))}")
    names = lambda parts: [part for part in parts if part not in SPLITS]
    split = lambda parts: next((part for part in parts if part in SPLITS), None)
    return [(file, next(iter(names(parts)), None), split(parts)) for file, parts in found]


def say(text):
    """What was decided, once, on stderr."""
    if text not in _said:
        print(visible(text), file=sys.stderr)
        _said.add(text)


_said = set()


# ---------------------------------------------------------------- classes
def classes(root):
    """Names of the source's class folders, sorted whatever their case; UserError below two, or for Chair and chair."""
    source = folder_of(root, "own_source")
    found = listed(source)
    loose = [file.name for file, name, _ in found if name is None]
    if loose:
        raise UserError(f"--source {source}: {loose[0]} lies in no class folder; give SOURCE/<class>/{loose[0]}")
    names = sorted({name for _, name, _ in found}, key=lambda name: (name.casefold(), name))
    folders = {p.name for p in source.iterdir() if p.is_dir() and p.name[0] not in "._"}
    empty = folders - {*names, *SPLITS} if folders & {*names} else set()
    if len(names) > 256:  # predictions are kept as uint8
        raise UserError(f"--source {source}: {len(names)} class folders; 256 at most can be told apart here, join some")
    if strange := [name for name in names if CONTROL.search(name)]:
        raise UserError(f"--source {source}: the folder {strange[0]!r} has characters that cannot be shown; rename it")
    if len(names) < 2:
        raise UserError(f"--source {source}: {len(names)} class folder; give a folder with one folder for each class")
    twins = [pair for pair in zip(names, names[1:]) if pair[0].casefold() == pair[1].casefold()]
    if twins:
        raise UserError(f"--source {source}: {' and '.join(twins[0])} differ in case alone; rename or join them")
    if empty:
        say(f"--source {source}: no cloud in {', '.join(sorted(empty))}: not a class")
    return tuple(names)


def named(root):
    """Name of a target folder -> its class, or {} where the target has no labels, which is said.

    Names match whatever their case. UserError where some folders are classes of the source and others are not.
    """
    target, known = folder_of(root, "own_target"), classes(root)
    if target.is_file():
        return {}
    folders = {name for _, name, _ in listed(target)}
    names = sorted(folders - {None})
    match = {name: c for name in names for c, own in enumerate(known) if name.casefold() == own.casefold()}
    strange = [name for name in names if name not in match]
    if not match:
        said = f"its folders ({', '.join(names)}) are no classes of the source" if names else "it is flat"
        say(f"--target {target}: {said}, so it is taken as unlabelled")
        return {}
    if strange or None in folders:
        others = ", ".join(strange) if strange else "files that lie in no folder"
        raise UserError(
            f"--target {target}: has {others} beside classes of the source ({', '.join(known)}); "
            "rename or remove them, or put all clouds into one folder, as unlabelled"
        )
    absent = [own for c, own in enumerate(known) if c not in match.values()]
    if absent:
        say(f"--target {target}: has no {', '.join(absent)}")
    return match


# ---------------------------------------------------------------- reading
def read(path, found):
    """All clouds of a folder, whose files are `found`, or of an .h5: (m, P, 3) in the unit sphere, from the cache."""
    if found is None:
        return files.cached([path], __file__, lambda: fitted(h5_clouds(path)))
    paths = [file for file, _, _ in found]
    return files.cached(paths, __file__, lambda: fitted(each_file(path, paths)))


def each_file(path, found):
    """Points (n_i, 3) of each file; UserError names what cannot be read."""
    return points_of(files.each(found, read_cloud, f"reading {visible(path.name)}"), path)


def points_of(clouds, path):
    """Points (n_i, 3) of Clouds; what was mended is said once a kind."""
    notes = Counter(note.partition(":")[0] for cloud in clouds for note in cloud.notes)
    for note, count in notes.items():
        say(f"{path}: {note} ({count} of {len(clouds)} clouds)")
    if dropped := sum(cloud.dropped for cloud in clouds):
        say(f"{path}: {dropped} points dropped in all")
    return [cloud.points for cloud in clouds]


def data_of(file, path):
    """The dataset `data` [m, n, 3 or more] of an opened .h5, if it lies in that very file; UserError otherwise."""
    array = files.own_array(file, "data", path, "copy it into this file")
    if array is None or array.ndim != 3 or not len(array):
        raise UserError(f"{path}: has no dataset `data` [m, n, 3] of its own; give one, or a folder of clouds")
    return array


def h5_clouds(path):
    """Points (n_i, 3) of the clouds of an .h5."""
    array = files.read_h5(path, lambda file: data_of(file, path)[...], OTHER)
    return points_of([cloud_of(x, f"{path}, cloud {i}") for i, x in enumerate(array)], path)


def count_h5(path):
    """How many clouds an .h5 holds: m where `data` is [m, n, 3 or more]; 1 where it is one cloud, or damaged."""
    try:
        return files.read_h5(path, lambda file: len(data_of(file, path)), OTHER)
    except UserError:
        return 1


def h5_cloud(path, i, n):
    """The Cloud i of an .h5 with several, at most n points."""
    return cloud_of(files.read_h5(path, lambda file: data_of(file, path)[i], OTHER), f"{path}, cloud {i}", n)


def digest(points):
    """A hash of a cloud's points, by which it is ordered and drawn."""
    return hashlib.sha256(np.ascontiguousarray(points).tobytes()).hexdigest()


def fitted(clouds):
    """Clouds (n_i, 3) as (m, P, 3) in the unit sphere; which points are drawn follows from the cloud, not its place."""
    P = min(max(map(len, clouds)), files.MOST_POINTS)
    few = sum(len(points) < P for points in clouds)
    if few:
        say(f"{few} of {len(clouds)} clouds have fewer than {P} points: some of theirs are taken more than once")
    array = np.stack([files.resample(points, P, seed_of("resample", digest(points))) for points in clouds])
    return files.normalise(torch.from_numpy(array)).float().numpy()


def h5_labels(path, C, m):
    """Labels (m,) of the m clouds of an .h5, or None where it has none: absent, all -1, or all alike."""

    def read(file):
        if file.get("label", getlink=True) is None:
            return None
        array = files.own_array(file, "label", path, OTHER)
        if array is None or array.shape not in ((m,), (m, 1)):
            raise UserError(f"--target {path}: `label` is not {m} numbers, one a cloud; correct it, or leave it out")
        return array[...].reshape(-1)

    y = files.read_h5(path, read, OTHER)
    if y is None or (y == y[0]).all():
        return None
    if y.dtype.kind not in "fiu" or not np.isin(y, np.arange(C)).all():
        raise UserError(
            f"--target {path}: labels must be whole numbers in 0..{C - 1}, the source's classes in their order; "
            "correct them, or leave `label` out"
        )
    return y.astype(np.int64)


def labels_of(root, key, found, match, m):
    """Label (m,) of every cloud of a domain, in the order of `found`, or None of an unlabelled target."""
    if found is None:
        return h5_labels(folder_of(root, key), len(classes(root)), m)
    match = {name: c for c, name in enumerate(classes(root))} if key == "own_source" else match
    return np.array([match[name] for _, name, _ in found], np.int64) if match else None


# ---------------------------------------------------------------- what data.py asks for
def load(root, key, split, labels):
    """Points (n, P, 3) float32, each cloud in the unit sphere, and labels (n,) int64 if asked for and there are any."""
    match = named(root)  # compared before anything is read, by the names of folders alone
    path = folder_of(root, key)
    found = None if path.is_file() else listed(path)
    points = read(path, found)
    splits = [None] * len(points) if found is None else [s for _, _, s in found]
    y = labels_of(root, key, found, match, len(points)) if labels or key == "own_source" else None
    groups = y if key == "own_source" else [0] * len(points)  # a source comes class by class
    order = sorted(range(len(points)), key=lambda i: (groups[i], digest(points[i])))
    if set(SPLITS) <= set(splits):
        chosen = [i for i in order if splits[i] == split or (splits[i] is None and split == "train")]
    else:
        place, chosen = Counter(), []
        for i in order:
            place[groups[i]] += 1
            if (place[groups[i]] % TEST == 2) == (split == "test"):  # the second of five: two clouds have one each
                chosen.append(i)
    if not chosen:
        raise UserError(f"--{DOMAINS[key]} {path}: {len(points)} clouds are too few to test on; give {TEST} at least")
    return points[chosen], y[chosen] if labels and y is not None else None


def size(root, key, split):
    """How many clouds a split has."""
    return len(load(root, key, split, False)[0])


def check(root, key, counts):
    """Nothing: there are no published counts to compare with."""


def official(key, counts):
    """Never."""
    return False
