"""Fetch PointDA-10 into a folder, check it, and say how PointSegDA is obtained.

python -m datasets.download data                    # from the public archive (what `make data` runs)
python -m datasets.download data --unpack FILE      # from an archive fetched by hand
python -m datasets.download data --check            # only look at what is there
"""

import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import engine  # noqa: F401, I001 - first: how torch's threads wait
from tqdm import tqdm

from datasets import files, pointda, pointsegda
from engine.base import UserError, cli, one_line
from engine.checked import UNPACKED
from engine.flags import Parser

ARCHIVE = "1-LfJWL5geF9h0Z2QpdTL0n4lShy8wy2J"  # the Google Drive id that PointDAN's and later READMEs give
PAGE = f"https://drive.google.com/uc?id={ARCHIVE}"
SMALLEST = 100_000_000  # bytes; a quota or login page is far smaller than the archive
MOST_RATIO, MOST_MEMBERS = 100, 200_000  # of what is unpacked; coordinates hardly compress
MOST_HEADER = 1 << 16  # bytes of what describes a member of a tar, such as a long name
PLAIN = (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE)
PLAIN_MODES = (0, 0x8)  # of a zip's entry: none given, a file
BY_HAND = f"open {PAGE} in a browser, save the archive, then run: python -m datasets.download {{root}} --unpack FILE"


def download(root):
    """The archive's path inside `root`; UserError says how to go on by hand."""
    try:
        import gdown
    except ImportError:
        remedy = f"pip install -r requirements-extra.txt, or {BY_HAND.format(root=root)}"
        raise UserError(f"gdown is not installed; {remedy}") from None
    path = root / "PointDA_data.archive"
    try:
        got = gdown.download(id=ARCHIVE, output=str(path), quiet=False, resume=True)
    except Exception as error:  # quota, network and page changes all end here
        got, reason = None, one_line(error)[:200]
    else:
        reason = "nothing came"
    if not got:
        raise UserError(f"the download failed ({reason}); {BY_HAND.format(root=root)}")
    if path.stat().st_size < SMALLEST:
        path.unlink()
        raise UserError(f"the download is too small to be the archive; {BY_HAND.format(root=root)}")
    return path


class Member(tarfile.TarInfo):
    """A member of a tar that is a file, a folder or a link; what describes it is read whole and so must be short."""

    @classmethod
    def frombuf(cls, *how):
        found = super().frombuf(*how)
        if found.type == tarfile.GNUTYPE_SPARSE or found.type not in PLAIN and found.size > MOST_HEADER:
            raise tarfile.ReadError(f"has a member of type {found.type} with {found.size} bytes")
        return found


def entries(archive):
    """Yield (name, bytes, whether it is no plain file, open) of each entry of a zip or tar that is no folder."""
    if isinstance(archive, tarfile.TarFile):
        for m in archive:
            if not m.isdir():
                yield m.name, m.size, not m.isfile() or m.issparse(), lambda m=m: archive.extractfile(m)
        return
    for i in archive.infolist():
        if i.compress_type not in UNPACKED:
            raise UserError(f"{archive.filename}: {i.filename!r} is packed in an unusual way; nothing was unpacked")
        if not i.filename.replace("\\", "/").endswith("/"):  # as some programs on Windows write folders
            yield i.filename, i.file_size, i.external_attr >> 28 not in PLAIN_MODES, lambda i=i: archive.open(i)


def members(archive):
    """(name, open) of each plain file of an opened zip or tar; UserError for a name that leads outside, or for a bomb.

    No two have one name, and together they unpack to at most MOST_RATIO times the archive.
    """
    zipped = isinstance(archive, zipfile.ZipFile)
    where = archive.filename if zipped else archive.name
    left, found = MOST_RATIO * Path(where).stat().st_size, {}
    for raw, size, special, opener in entries(archive):
        name = raw.replace("\\", "/") if zipped else raw
        path, left = PurePosixPath(name), left - size
        if special or path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(raw).drive:
            raise UserError(f"{where}: member {raw!r} is a link or leads outside the folder; nothing was unpacked")
        if left < 0 or len(found) == MOST_MEMBERS:
            most = f"{MOST_RATIO} times its size or {MOST_MEMBERS} files"
            raise UserError(
                f"{where}: would unpack to over {most}, which {pointda.NAME} does not; nothing was unpacked"
            )
        if str(path) in found:
            raise UserError(f"{where}: holds {raw!r} twice; nothing was unpacked")
        found[str(path)] = opener
    # a Mac's archive has a shadow of every file under __MACOSX, in folders of the same names
    return [(name, opener) for name, opener in found.items() if not name.startswith("__MACOSX/")]


def unpack(path, root):
    """Unpack a zip or tar that holds PointDA_data/ into `root`, whole or not at all."""
    final = root / pointda.FOLDER
    if final.exists():
        raise UserError(f"{final} exists; move it away before unpacking another copy")
    if not path.is_file():
        raise UserError(f"{path}: no such file; {BY_HAND.format(root=root)}")
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as temporary:
            folder = Path(temporary, pointda.FOLDER)
            _extract(path, folder)
            domains = next((p.parent for p in folder.rglob("modelnet") if _holds_domains(p.parent)), None)
            if domains is None:
                raise UserError(
                    f"{path}: holds no modelnet, shapenet and scannet folders side by side, "
                    f"so it is not PointDA-10; {BY_HAND.format(root=root)}"
                )
            domains.rename(final)
    except UserError:
        raise
    except Exception as error:  # a damaged archive fails in a dozen ways, a full disk in one more
        raise UserError(
            f"{path}: not a whole zip or tar archive, or no room for it in {root} ({one_line(error)[:200]}); "
            + BY_HAND.format(root=root)
        ) from None


def _extract(path, folder):
    with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path, tarinfo=Member) as archive:
        for name, opener in tqdm(members(archive), "unpacking", dynamic_ncols=True):
            out = folder / name
            out.parent.mkdir(parents=True, exist_ok=True)
            with opener() as source, open(out, "wb") as sink:
                shutil.copyfileobj(source, sink)


def _holds_domains(folder):
    return all((folder / name).is_dir() for name in pointda.DOMAINS.values())


def counts_of(root, dataset, key):
    """{split: counts} of a domain, loaded with its labels and checked."""
    load = lambda split: dataset.load(root, key, split, True)
    counts = {split: files.counted(*load(split), len(dataset.CLASSES)) for split in dataset.SPLITS}
    dataset.check(root, key, counts)
    return counts


def check(root):
    """Load what is there, print the counts, and say how to get PointSegDA where it is not; UserError without either."""
    bodies = (root / pointsegda.NAME).is_dir()
    if (root / pointda.FOLDER).is_dir() or not bodies:
        counts = {key: counts_of(root, pointda, key) for key in pointda.DOMAINS}
        for key in counts:
            print(files.counts_text(pointda.DOMAINS[key], counts[key]))
        official = all(pointda.official(key, counts[key]) for key in counts)
        print("data name:", files.set_name(root, pointda.NAME, official))
    if bodies:
        for key, folder in pointsegda.DOMAINS.items():
            if (root / pointsegda.NAME / folder).is_dir():
                print(files.counts_text(folder, counts_of(root, pointsegda, key)))
    else:
        print(
            f"PointSegDA: not in {root}; IdanAchituve/DefRec_and_PCM has the address of its .rar in PointSegDA/data/; "
            f"unpack it so that {root}/PointSegDA/faust/train holds .npy files"
        )


def main():
    usage = "python %(prog)s [-h] root [--unpack FILE | --check]"
    parser = Parser(prog="-m datasets.download", usage=usage, description=__doc__)
    parser.add_argument("root", type=Path, help="the folder that shall hold PointDA_data/")
    parser.add_argument("--unpack", type=Path, metavar="FILE", help="an archive fetched by hand")
    parser.add_argument("--check", action="store_true", help="only check what is there")
    args = parser.parse_args()
    if args.unpack or not args.check and not (args.root / pointda.FOLDER).exists():
        try:
            args.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{args.root}: {error.strerror}; choose a folder that can be written") from None
        unpack(args.unpack or download(args.root), args.root)
    check(args.root)


if __name__ == "__main__":
    cli(main)
