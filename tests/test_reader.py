"""datasets/clouds.py: one cloud in many forms reads as the same points, or is refused in one line with what helps."""

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from fixtures import refusal

from datasets import clouds, formats, text
from datasets.clouds import FORMATS, cloud_of, read_cloud
from engine.base import ROOT, UserError

N = 40
RNG = np.random.default_rng(2)
RAW = np.random.default_rng(0).normal(size=(N, 3)).round(3) * [1, 2, 3] + [5, 0, -1]
RAW = RAW.round(4)
MORE = np.column_stack([RAW, np.random.default_rng(1).normal(size=(N, 3)).round(4)])


def kinds(cloud):
    """Notes of a cloud without what is this file's alone."""
    return [note.partition(":")[0] for note in cloud.notes]


# ---------------------------------------------------------------- text
def lines(array=RAW, sep=" ", form="{:.4f}", head="", end="\n", tail=""):
    """Rows of text: form of a number, what stands between, before, and at the end of each."""
    return head + "".join(sep.join(form.format(v) for v in row) + tail + end for row in array)


def comma(text):
    return text.replace(".", ",")


COUNTED = np.column_stack([np.arange(N), RAW])
indexed = lambda sep, head: (
    head + "".join(f"{i}{sep}" + sep.join(f"{v:.4f}" for v in row) + "\n" for i, row in enumerate(RAW))
)
JSON = "[\n" + ",\n".join(json.dumps(row) for row in RAW.tolist()) + "\n]\n"
GAP = RAW.tolist()
NO_HEADER = "no header names x, y, z, these columns are taken"
TEXT = {  # name: (text or bytes, kinds of notes)
    "spaces.txt": (lines(), []),
    "aligned.xyz": (lines(form="{:>12.4f}"), []),
    "tabs.txt": (lines(sep="\t"), []),
    "tabs-and-spaces.txt": (lines(sep=" \t "), []),
    "commas.csv": (lines(sep=","), []),
    "comma-space.csv": (lines(sep=", "), []),
    "semicolons.csv": (lines(sep=";"), []),
    "bars.txt": (lines(sep="|"), []),
    "mixed.txt": ("".join(f"{x}, {y}; {z}\n" for x, y, z in RAW), []),
    "comma-then-space.txt": ("".join(f"{x},{y} {z}\n" for x, y, z in RAW), []),
    "mixed-by-line.txt": (
        "".join(f"{x} {y} {z}\n" if i % 2 else f"{x},{y},{z}\n" for i, (x, y, z) in enumerate(RAW)),
        [],
    ),
    "trailing-comma.csv": (lines(sep=",", tail=","), []),
    "trailing-commas.csv": (lines(sep=",", tail=",,", head="x,y,z\n"), []),
    "trailing-blanks.txt": (lines(tail="  \t"), []),
    "leading-comma.csv": ("".join(f",{x},{y},{z}\n" for x, y, z in RAW), [NO_HEADER]),
    "crlf.csv": (lines(sep=",", end="\r\n"), []),
    "old-mac.txt": (lines(end="\r", head="x y z\r"), []),
    "no-last-end.txt": (lines().rstrip("\n"), []),
    "blank-lines.txt": (lines(end="\n\n", head="\n\n"), []),
    "end-of-file-mark.txt": (lines() + "\x1a", []),
    "scientific.txt": (lines(form="{:.7e}"), []),
    "capital-exponents.txt": (lines(form="{:.7E}"), []),
    "fortran.txt": (lines(form="{:.7E}").replace("E", "D"), []),
    "plus-signs.txt": (lines(form="{:+.4f}"), []),
    "typographic-minus.txt": (lines().replace("-", "\u2212"), []),
    "brackets.txt": (lines(sep=", ").replace("\n", "]\n").replace("\n", "\n[", N - 1).join(["[", ""]), []),
    "parentheses.txt": ("".join(f"({x} {y} {z})\n" for x, y, z in RAW), []),
    "rows.json": (JSON, []),
    "quoted-numbers.csv": (lines(sep=",", form='"{:.4f}"'), []),
    "quoted-all.csv": (lines(sep=";", form='"{:.4f}"', head='"x";"y";"z"\n'), []),
    "header.csv": (lines(sep=",", head="x,y,z\n"), []),
    "capital-header.csv": (lines(MORE, sep=",", head="X,Y,Z,R,G,B\n"), []),
    "quoted-header.csv": (lines(sep=",", head='"X","Y","Z"\n'), []),
    "spaced-header.csv": (lines(sep=",", head=" x , y , z \n"), []),
    "units.csv": (lines(sep=",", head="x [m],y [m],z [m]\n"), []),
    "units-round.csv": (lines(sep=";", head="X(mm);Y(mm);Z(mm)\n"), []),
    "prefixed.csv": (lines(sep=",", head="pos_x,pos_y,pos_z\n"), []),
    "paraview.csv": (lines(MORE[:, [3, 0, 1, 2]], sep=",", head='"v","Points:0","Points:1","Points:2"\n'), []),
    "named-last.csv": (lines(MORE[:, [3, 4, 5, 0, 1, 2]], sep=",", head="r,g,b,x,y,z\n"), []),
    "named-order.txt": (lines(RAW[:, [2, 0, 1]], head="z x y\n"), []),
    "normals-too.txt": (lines(MORE, head="# x y z nx ny nz\n"), []),
    "cloudcompare.asc": (lines(MORE, head="//X Y Z Rf Gf Bf\n"), []),
    "cloudcompare-count.asc": (lines(MORE, head=f"//X Y Z Rf Gf Bf\n{N}\n"), []),
    "comments.txt": (lines(head="# made by hand\n; of a chair\n// 2024\n% or so\n"), []),
    "comment-between.txt": (lines(RAW[:9]) + "# half\n" + lines(RAW[9:]), []),
    "comment-behind.txt": (lines(tail=" # a point"), []),
    "comment-then-commas.txt": (lines(sep=",", head="# my scanner, 3 passes\n"), []),
    "prose.txt": (lines(head="A chair in the hall\n"), ["a line that is no row of numbers is skipped"]),
    "count.pts": (lines(MORE, head=f"{N}\n"), [NO_HEADER]),
    "count-crlf.pts": (lines(head=f"{N}\r\n", end="\r\n"), []),
    "count-comma.csv": (lines(sep=",", head=f"{N}\n"), []),
    "chemistry.xyz": (f"{N}\nin angstrom\n" + "".join(f"C {x} {y} {z}\n" for x, y, z in RAW), None),
    "chemistry-blank.xyz": (
        f"{N}\n\n" + "".join(f"H{x:10.4f}{y:10.4f}{z:10.4f}\n".replace("H", "H ") for x, y, z in RAW),
        None,
    ),
    "names-first.csv": ("".join(f"p{i},{x},{y},{z}\n" for i, (x, y, z) in enumerate(RAW)), [NO_HEADER]),
    "class-last.csv": ("".join(f"{x},{y},{z},chair\n" for x, y, z in RAW), [NO_HEADER]),
    "four.txt": (lines(MORE[:, :4]), [NO_HEADER]),
    "six.txt": (lines(MORE), [NO_HEADER]),
    "seven.xyz": (lines(np.column_stack([MORE, MORE[:, 0]])), [NO_HEADER]),
    "bytes-after.pts": ("".join(f"{x} {y} {z} -128 255 0 7\n" for x, y, z in RAW), [NO_HEADER]),
    "pandas.csv": (indexed(",", ",x,y,z\n"), []),
    "pandas-tabs.tsv": (indexed("\t", "\tx\ty\tz\n"), []),
    "pandas-spaces.txt": (indexed(" ", " x y z\n"), []),
    "pandas-no-names.csv": (lines(sep=",", head="0,1,2\n"), ["a line that is no row of numbers is skipped"]),
    "pandas-index-no-names.csv": (indexed(",", ",0,1,2\n"), None),
    "r-table.txt": ('"x" "y" "z"\n' + "".join(f'"{i + 1}" {x} {y} {z}\n' for i, (x, y, z) in enumerate(RAW)), []),
    "index-column.csv": (indexed(",", "id,x,y,z\n"), []),
    "index-no-header.csv": (indexed(",", ""), ["a column that counts the rows is skipped", NO_HEADER]),
    "decimal-comma.csv": (comma(lines(sep=";")), ["commas are taken as decimal"]),
    "decimal-comma-header.csv": ("x;y;z\n" + comma(lines(sep=";")), ["commas are taken as decimal"]),
    "decimal-comma-spaces.txt": (comma(lines()), ["commas are taken as decimal"]),
    "decimal-comma-tabs.txt": (comma(lines(sep="\t")), ["commas are taken as decimal"]),
    "decimal-comma-quoted.csv": (
        comma(lines(form='"{:.4f}"')).replace(" ", ","),
        ["commas within numbers are taken as decimal"],
    ),
    "decimal-comma-comma-space.csv": (
        comma(lines()).replace(" ", ", "),
        ["commas within numbers are taken as decimal"],
    ),
    "bom.csv": (b"\xef\xbb\xbf" + lines(sep=",").encode(), []),
    "bom-header.csv": (b"\xef\xbb\xbf" + lines(sep=";", head="X;Y;Z\n").encode(), []),
    "utf-16.txt": (lines(head="x y z\n").encode("utf-16"), []),
    "utf-16-be.csv": (b"\xfe\xff" + lines(sep=",", end="\r\n").encode("utf-16-be"), []),
    "utf-16-no-mark.txt": (lines().encode("utf-16-le"), []),
    "utf-32.txt": (lines().encode("utf-32"), []),
    "latin-1.txt": ("# ch\xe2teau, cr\xe9\xe9\n".encode("latin-1") + lines().encode(), []),
    "turned.txt": (lines(RAW.T), ["turned, a line each of x, y, z"]),
    "turned.csv": (lines(RAW.T, sep=","), ["turned, a line each of x, y, z"]),
    "no-extension": (lines(), []),
    "SHOUTING.XYZ": (lines(), []),
    "odd.ending": (lines(sep=","), []),
    "a space and \u00fcml\u00e4ut \u6905\u5b50.txt": (lines(), []),
    "nan-rows.txt": ("nan nan nan\n" + lines(), ["points that are NaN, Inf or beyond 1e15 are dropped"]),
    "nan-words.csv": ("NaN,1,2\n" + lines(sep=",") + "1,N/A,2\n-1.#IND,0,0\n1,2,null\n", None),
    "left-out.csv": (lines(RAW[:9], sep=",") + "1,,2\n,,3\n1,2,\n" + lines(RAW[9:], sep=","), None),
    "inf.txt": (lines() + "inf 1 2\n1 -Infinity 2\n1 2 1e300\n", None),
    "empty-rows.csv": (lines(sep=",") + ",,\n,,\n", []),
}


@pytest.mark.parametrize("name", TEXT)
def test_text_in_any_form_is_the_same_cloud(tmp_path, name):
    """Whatever separates, precedes and surrounds the numbers; what was decided is noted, and nothing else."""
    content, notes = TEXT[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    cloud = read_cloud(tmp_path / name)
    assert cloud.points.dtype == np.float64 and np.allclose(cloud.points, RAW, atol=1e-6)
    assert notes is None or kinds(cloud) == notes


# ---------------------------------------------------------------- arrays
def npy(array):
    return lambda path: path.write_bytes(bytes_of(np.save, array))  # np.save would add .npy


def bytes_of(save, *arrays, **named):
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def npz(save=np.savez, **arrays):
    return lambda path: path.write_bytes(bytes_of(save, **arrays))


def h5(**arrays):
    def write(path):
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name.replace("__", "/"), data=array)

    return write


def packed_h5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("points", data=RAW, chunks=(8, 3), compression="gzip")


def record(names="xyz", kind="<f8", more=()):
    array = np.zeros(N, [(name, kind) for name in names] + list(more))
    for name in names:
        array[name] = RAW[:, "xyz".index(name.lower())]
    return array


EXACT = (RAW * 100).round()  # as integers
FIRST, TURNED = "the first three columns are taken as x, y, z", "turned, x, y, z come first"
SEVERAL, SCAN = "one of several arrays is taken", "taken as one scan of rows and columns, not as many clouds"
ARRAYS = {  # name: (how it is written, kinds of notes)
    "float64.npy": (npy(RAW), []),
    "float32.npy": (npy(RAW.astype(np.float32)), []),
    "big-endian.npy": (npy(RAW.astype(">f8")), []),
    "fortran.npy": (npy(np.asfortranarray(RAW)), []),
    "longdouble.npy": (npy(RAW.astype(np.longdouble)), []),
    "turned.npy": (npy(RAW.T.copy()), [TURNED]),
    "turned-view.npy": (npy(RAW.T), [TURNED]),
    "turned-six.npy": (npy(np.concatenate([MORE, MORE]).T), [TURNED, FIRST]),
    "one-before.npy": (npy(RAW[None]), []),
    "one-between.npy": (npy(RAW[:, None]), []),
    "one-turned.npy": (npy(RAW.T[None]), [TURNED]),
    "organised.npy": (npy(RAW.reshape(8, 5, 3)), [SCAN]),
    "six.npy": (npy(MORE), [FIRST]),
    "with-label.npy": (npy(np.column_stack([RAW, np.arange(N) % 5])), [FIRST]),
    "fields.npy": (npy(record()), []),
    "capital-fields.npy": (npy(record("XYZ", ">f4")), []),
    "fields-and-colour.npy": (npy(record("zxy", more=[("rgb", "u1", (3,))])), []),
    "CAPITAL.NPY": (npy(RAW), []),
    "named-npz.npy": (npz(points=RAW), []),
    "nan.npy": (
        npy(np.concatenate([RAW, RAW[:2] * np.nan, RAW[:1] * np.inf])),
        ["points that are NaN, Inf or beyond 1e15 are dropped"],
    ),
    "no-extension": (npy(RAW), []),
    "points.npz": (npz(points=RAW), []),
    "xyz.npz": (npz(xyz=RAW), []),
    "pos.npz": (npz(pos=RAW.astype(np.float32)), []),
    "arr_0.npz": (npz(arr_0=RAW), []),
    "packed.npz": (npz(np.savez_compressed, points=RAW), []),
    "odd-name.npz": (npz(my_chair=RAW), []),
    "with-normals.npz": (npz(normals=RAW * 2, points=RAW, label=np.int64(3)), [SEVERAL]),
    "with-label.npz": (npz(chair=RAW, label=np.arange(N)), [SEVERAL]),
    "axes.npz": (npz(x=RAW[:, 0], y=RAW[:, 1], z=RAW[:, 2]), []),
    "turned.npz": (npz(points=RAW.T), [TURNED]),
    "data.h5": (h5(data=RAW), []),
    "points.hdf5": (h5(points=RAW.astype(np.float32)), []),
    "batch-of-one.h5": (h5(data=RAW[None], label=np.array([[3]])), [SEVERAL]),
    "turned.h5": (h5(data=RAW.T), [TURNED]),
    "six.h5": (h5(data=MORE), [FIRST]),
    "in-a-group.h5": (h5(scan__points=RAW), []),
    "axes.h5": (h5(x=RAW[:, 0], y=RAW[:, 1], z=RAW[:, 2], intensity=RAW[:, 0]), [SEVERAL]),
    "fields.h5": (h5(cloud=record()), []),
    "packed.h5": (packed_h5, []),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_in_any_layout_is_the_same_cloud(tmp_path, name):
    """.npy, .npz and .h5: types, orders, names; turned where only one axis can be x, y, z, and said."""
    write, notes = ARRAYS[name]
    write(tmp_path / name)
    cloud = read_cloud(tmp_path / name)
    assert np.allclose(cloud.points[:N], RAW, atol=1e-5) and len(cloud.points) in (N, 2 * N)
    assert notes is None or kinds(cloud) == notes


def test_integers_and_half_precision(tmp_path):
    """Any real numbers."""
    for kind in ("i2", "<i4", ">i8", "f2"):
        npy(EXACT.astype(kind))(tmp_path / "a.npy")
        assert np.allclose(read_cloud(tmp_path / "a.npy").points, EXACT, rtol=1e-3)
    npy((EXACT - EXACT.min()).astype("u2"))(tmp_path / "a.npy")
    assert np.array_equal(read_cloud(tmp_path / "a.npy").points, EXACT - EXACT.min())


def test_an_array_of_a_set_is_read_likewise():
    """cloud_of: one cloud of an .h5 of many."""
    assert np.array_equal(cloud_of(RAW, "a.h5, cloud 0").points, RAW)
    cloud = cloud_of(RAW.T.astype(np.float32), "a.h5, cloud 1")
    assert np.allclose(cloud.points, RAW) and kinds(cloud) == [TURNED]
    assert "a.h5, cloud 2" in refusal(lambda: cloud_of(RAW[:, :2], "a.h5, cloud 2"))


# ---------------------------------------------------------------- .ply and .pcd
F3 = [("x", "float"), ("y", "float"), ("z", "float")]
CODES = {"float": "f4", "double": "f8", "uchar": "u1", "int": "i4", "short": "i2"}


def ply(
    form="ascii",
    fields=F3,
    before=(),
    after=(),
    comments=(),
    end="\n",
    lists=None,
    raw=RAW,
    faces=None,
    name="vertex_indices",
):
    """A .ply; properties that are not x, y or z count up; `before` and `after`: other elements (name, type, n)."""
    order = "<" if "little" in form else ">"

    def write(path):
        head, body, ascii_body = ["ply", f"format {form} 1.0", *comments], [], []

        def other(name, kind, n):
            head.extend([f"element {name} {n}", f"property {kind} a", f"property {kind} b"])
            body.append(np.ones((n, 2), order + CODES[kind]).tobytes())
            ascii_body.extend(["1 1"] * n)

        for each in before:
            other(*each)
        head.append(f"element vertex {len(raw)}")
        for field, kind in fields:
            head.append(f"property {kind} {field}")
        if lists:
            head.append("property list uchar int seen_by")
        for i, point in enumerate(raw):
            values = [point["xyz".index(f.lower())] if f.lower() in "xyz" else i % 100 for f, _ in fields]
            one = b"".join(np.array(v).astype(order + CODES[k]).tobytes() for v, (_, k) in zip(values, fields))
            seen = list(range(lists(i))) if lists else []
            body.append(one + (bytes([len(seen)]) + np.array(seen, order + "i4").tobytes() if lists else b""))
            ascii_body.append(" ".join(map(str, [*values, *([len(seen), *seen] if lists else [])])))
        if faces is not None:
            head.extend([f"element face {len(faces)}", f"property list uchar int {name}"])
            for face in faces:
                body.append(bytes([len(face)]) + np.array(face, order + "i4").tobytes())
                ascii_body.append(" ".join(map(str, [len(face), *face])))
        for each in after:
            other(*each)
        start = end.join([*head, "end_header", ""]).encode("latin-1")
        path.write_bytes(start + (end.join([*ascii_body, ""]).encode() if form == "ascii" else b"".join(body)))

    return write


def pcd(form="ascii", fields="x y z", kinds="f4 f4 f4", counts=None, height=1, points=True):
    def write(path):
        names, types = fields.split(), kinds.split()
        many = [int(c) for c in (counts or "1 " * len(names)).split()]
        table = np.zeros(N, [(f"{i}", f"<{k}", (c,) if c > 1 else ()) for i, (k, c) in enumerate(zip(types, many))])
        for i, name in enumerate(names):
            if name.lower() in "xyz":
                table[str(i)] = RAW[:, "xyz".index(name.lower())]
        head = ["# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", f"FIELDS {fields}"]
        head += ["SIZE " + " ".join(k[1:] for k in types), "TYPE " + " ".join(k[0].upper() for k in types)]
        head += [
            "COUNT " + " ".join(map(str, many)),
            f"WIDTH {N // height}",
            f"HEIGHT {height}",
            "VIEWPOINT 0 0 0 1 0 0 0",
        ]
        head += [f"POINTS {N}"] * points + [f"DATA {form}", ""]
        if form == "ascii":
            body = "".join(" ".join(str(v) for cell in row for v in np.ravel(cell)) + "\n" for row in table).encode()
        elif form == "binary":
            body = table.tobytes()
        else:
            plain = b"".join(np.ascontiguousarray(table[name]).tobytes() for name in table.dtype.names)
            body = lzf(plain)
            body = struct.pack("<II", len(body), len(plain)) + body
        path.write_bytes("\n".join(head).encode() + body)

    return write


def lzf(data):
    """Packed as libLZF does: literals, and the longest run seen among the last 8 KiB."""
    out, at, plain = bytearray(), 0, bytearray()

    def flush():
        for a in range(0, len(plain), 32):
            out.extend(bytes([len(plain[a : a + 32]) - 1]) + plain[a : a + 32])
        plain.clear()

    while at < len(data):
        start = data.rfind(data[at : at + 3], max(0, at - 8191), at + 2) if at + 3 <= len(data) else -1
        length = 0
        while (
            0 <= start < at and length < 264 and at + length < len(data) and data[start + length] == data[at + length]
        ):
            length += 1
        if length < 3:
            plain.append(data[at])
            at += 1
            continue
        flush()
        back = at - start - 1
        out.append(min(length - 2, 7) << 5 | back >> 8)
        if length >= 9:
            out.append(length - 9)
        out.append(back & 255)
        at += length
    flush()
    return bytes(out)


MIXED = [("red", "uchar"), ("z", "float"), ("nx", "double"), ("y", "double"), ("x", "double"), ("id", "int")]
POINTS = {
    "ascii.ply": ply(),
    "little.ply": ply("binary_little_endian"),
    "big.ply": ply("binary_big_endian"),
    "ascii-mixed.ply": ply(fields=MIXED),
    "little-mixed.ply": ply("binary_little_endian", MIXED),
    "big-mixed.ply": ply("binary_big_endian", MIXED),
    "capitals.ply": ply(fields=[("X", "float"), ("Y", "float"), ("Z", "float")]),
    "double.ply": ply("binary_little_endian", [(c, "double") for c in "xyz"]),
    "crlf.ply": ply(end="\r\n"),
    "crlf-binary.ply": ply("binary_little_endian", end="\r\n"),
    "old-mac.ply": ply(end="\r"),
    "latin-1.ply": ply(comments=["comment ch\xe2teau de Besan\xe7on", "obj_info cr\xe9\xe9"]),
    "texture.ply": ply("binary_little_endian", comments=["comment TextureFile /etc/passwd"]),
    "camera-first.ply": ply(before=[("camera", "float", 2)]),
    "camera-first-binary.ply": ply("binary_little_endian", before=[("camera", "float", 2)]),
    "camera-after.ply": ply("binary_big_endian", after=[("camera", "double", 1)]),
    "edges-after.ply": ply(after=[("edge", "int", 5)]),
    "no-faces.ply": ply(faces=[]),
    "no-faces-binary.ply": ply("binary_little_endian", faces=[]),
    "one-face.ply": ply(faces=[[0, 1, 2]]),  # a scan with a stray face is no surface
    "one-face-binary.ply": ply("binary_big_endian", MIXED, faces=[[0, 1, 2]]),
    "lists.ply": ply(lists=lambda i: 2),
    "lists-differ.ply": ply(lists=lambda i: i % 3),
    "lists-binary.ply": ply("binary_little_endian", lists=lambda i: 2),
    "lists-differ-binary.ply": ply("binary_little_endian", MIXED, lists=lambda i: i % 3),
    "lists-and-camera.ply": ply("binary_big_endian", lists=lambda i: i % 3, before=[("camera", "float", 2)]),
    "UPPER.PLY": ply(),
    "a-ply.txt": ply(),
    "ascii.pcd": pcd(),
    "binary.pcd": pcd("binary"),
    "compressed.pcd": pcd("binary_compressed"),
    "fields.pcd": pcd("ascii", "intensity z rgb x y", "f4 f4 u4 f4 f4"),
    "fields-binary.pcd": pcd("binary", "x y z _ intensity _", "f4 f4 f4 u1 f4 u1", "1 1 1 4 1 12"),
    "fields-compressed.pcd": pcd("binary_compressed", "rgb x y z normal", "u4 f8 f8 f8 f4", "1 1 1 1 3"),
    "histogram-first.pcd": pcd("ascii", "h x y z", "f4 f4 f4 f4", "3 1 1 1"),
    "organised.pcd": pcd("binary", height=4),
    "no-points.pcd": pcd("ascii", points=False),
    "a-pcd.dat": pcd(),
}


@pytest.mark.parametrize("name", POINTS)
def test_vertices_in_any_form_are_the_same_cloud(tmp_path, name):
    """.ply and .pcd: encodings, properties in any order and of any type, other elements and lists beside them."""
    POINTS[name](tmp_path / name)
    cloud = read_cloud(tmp_path / name)
    assert np.allclose(cloud.points, RAW, atol=1e-5) and cloud.points.dtype == np.float64
    assert bool(cloud.notes) == ("one-face" in name)


@pytest.mark.parametrize("data", [b"", b"a", b"abc" * 500, bytes(9000), RNG.bytes(300), RAW.tobytes()], ids=range(6))
def test_lzf(data):
    """What is packed unpacks, also a run that repeats itself; a cut is refused."""
    assert formats.unpack_lzf(lzf(data), len(data)) == data
    if data:
        with pytest.raises((text.NoCloud, IndexError)):
            formats.unpack_lzf(lzf(data)[:-1], len(data))


# ---------------------------------------------------------------- meshes
# a box of 1 x 2 x 3: six quads, none of whose corners is shared with another box
BOX = np.array([[x, y, z] for x in (0, 1) for y in (0, 2) for z in (0, 3)], float) + 10
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
TRIANGLES = [[q[0], q[i], q[i + 1]] for q in QUADS for i in (1, 2)]
SOME = [TRIANGLES[0], TRIANGLES[1], *QUADS[1:]]  # two triangles and five quads


def on_the_box(points):
    """Whether all points lie on the box, each side having its share of them by area."""
    sides = np.abs(np.concatenate([points - BOX[0], BOX[-1] - points], 1)) < 1e-4
    inside = (points > BOX[0] - 1e-4).all() and (points < BOX[-1] + 1e-4).all()
    share = sides.mean(0) / (np.tile([6, 3, 2], 2) / 22)
    return inside and sides.any(1).all() and (abs(share - 1) < 0.25).all()


def off(head="OFF\n{} {} 0\n", faces=QUADS, more="", colour="", end="\n", comment=""):
    rows = "".join(" ".join(map(str, v)) + more + "\n" for v in BOX)
    rows += comment + "".join(" ".join(map(str, [len(f), *f])) + colour + "\n" for f in faces)
    return (head.format(len(BOX), len(faces)) + rows).replace("\n", end)


def obj(faces=QUADS, form="{}", relative=False, head="", tail="", more=""):
    rows = head + "".join(f"v {x} {y} {z}{more}\n" for x, y, z in BOX)
    ref = lambda i: form.format(i - len(BOX) if relative else i + 1)
    return rows + "".join("f " + " ".join(map(ref, f)) + tail + "\n" for f in faces)


def relative_obj():
    """Each quad after its own four corners, counted from there backwards."""
    return "".join("".join("v {} {} {}\n".format(*BOX[i]) for i in f) + "f -4 -3 -2 -1\n" for f in QUADS)


def stl(name="box", case=str, solids=1, end="\n"):
    parts = [TRIANGLES[i::solids] for i in range(solids)]
    corner = lambda i: "vertex {} {} {}\n".format(*BOX[i])
    facet = lambda f: "facet normal 0 0 0\nouter loop\n" + "".join(map(corner, f)) + "endloop\nendfacet\n"
    return "".join(case(f"solid {name}\n{''.join(map(facet, p))}endsolid {name}\n") for p in parts).replace("\n", end)


def binary_stl(head=b"made by hand"):
    facets = [struct.pack("<12fH", 0, 0, 0, *BOX[f].ravel(), 0) for f in TRIANGLES]
    return head.ljust(80, b" ") + struct.pack("<I", len(facets)) + b"".join(facets)


def box_ply(*args, **kw):
    def make(path):
        ply(*args, raw=BOX, **kw)(path)
        return path.read_bytes()

    return make


SPREAD = "{0} {0} {0}"
MESHES = {
    "quads.off": off(),
    "triangles.off": off(faces=TRIANGLES),
    "mixed.off": off(faces=SOME),
    "one-line.off": off("OFF {} {} 0\n"),
    "glued.off": off("OFF{} {} 0\n"),  # as some of ModelNet's
    "no-edges.off": off("OFF\n{} {}\n"),
    "lower.off": off("off\n{} {} 0\n"),
    "no-keyword.off": off("{} {} 0\n"),
    "colours.off": off("COFF\n{} {} 0\n", more=" 255 0 0 255"),
    "face-colours.off": off(colour=" 0.5 0.25 1.0"),
    "normals.off": off("NOFF\n{} {} 0\n", more=" 0 0 1"),
    "comments.off": off("# OFF by hand\nOFF # a box\n\n# counts\n{} {} 0 # so many\n", comment="# faces\n\n"),
    "crlf.off": off(end="\r\n"),
    "old-mac.off": off(end="\r"),
    "bom.off": "\ufeff" + off(),
    "off-without-ending": off(),
    "quads.obj": obj(),
    "triangles.obj": obj(TRIANGLES),
    "mixed.obj": obj(SOME),
    "texture.obj": obj(form="{}/1"),
    "texture-normal.obj": obj(form="{}/1/1", head="vt 0 0\nvn 0 0 1\n"),
    "normal.obj": obj(form="{}//1", head="vn 0 0 1\n"),
    "relative.obj": obj(relative=True),
    "relative-between.obj": relative_obj(),
    "colours.obj": obj(more=" 0.5 0.5 0.5"),
    "materials.obj": obj(
        head="# by hand\nmtllib /etc/passwd\nmtllib http://localhost/a.mtl\no box\ng side\nusemtl wood\ns off\n"
    ),
    "indented.obj": obj().replace("v ", " v\t").replace("f ", "  f\t"),
    "comments-behind.obj": obj(tail=" # a side"),
    "crlf.obj": obj().replace("\n", "\r\n"),
    "old-mac.obj": obj().replace("\n", "\r"),
    "ascii.stl": stl(),
    "capitals.stl": stl(case=str.upper),
    "crlf.stl": stl(end="\r\n"),
    "old-mac.stl": stl(end="\r"),
    "two-solids.stl": stl(solids=2),
    "latin-1.stl": stl("ch\xe2teau").encode("latin-1"),
    "binary.stl": binary_stl(),
    "binary-solid.stl": binary_stl(b"solid made by a program that writes this first"),
    "quads.ply": box_ply(faces=QUADS),
    "triangles.ply": box_ply(faces=TRIANGLES),
    "mixed.ply": box_ply(faces=SOME),
    "triangles-little.ply": box_ply("binary_little_endian", faces=TRIANGLES),
    "quads-big.ply": box_ply("binary_big_endian", MIXED, faces=QUADS),
    "mixed-binary.ply": box_ply("binary_little_endian", MIXED, faces=SOME),  # as Blender writes them
    "mixed-big.ply": box_ply("binary_big_endian", faces=SOME, before=[("camera", "float", 2)]),
    "vertex-index.ply": box_ply(faces=QUADS, name="vertex_index"),
    "other-name.ply": box_ply("binary_little_endian", faces=QUADS, name="corners"),
    "capitals.ply": box_ply("binary_little_endian", [(c, "double") for c in "XYZ"], faces=QUADS),
    "texture.ply": box_ply(faces=QUADS, comments=["comment TextureFile /etc/passwd", "comment \xe9"]),
    "uv.ply": box_ply(fields=[*F3, ("s", "float"), ("t", "float")], faces=QUADS),
    "faces-and-edges.ply": box_ply(faces=QUADS, after=[("edge", "int", 3)]),
}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_in_any_form_is_sampled_by_area(tmp_path, name):
    """Every side of the box has its share; the same file gives the same points; no other file is opened."""
    make, path = MESHES[name], tmp_path / name
    content = make(path) if callable(make) else make
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    opened = set()
    WATCHING.append(opened)
    cloud = read_cloud(path)
    WATCHING.clear()
    assert cloud.points.shape == (2048, 3) and on_the_box(cloud.points)
    assert kinds(cloud) == ["a mesh, 2048 points are drawn by area"]
    assert np.array_equal(read_cloud(path).points, cloud.points)
    assert len(read_cloud(path, 100).points) == 100
    assert not [
        file
        for file in opened
        if file not in (str(path), str(path.parent)) and not file.endswith((".py", ".pyc", ".so"))
    ]


WATCHING = []
sys.addaudithook(lambda event, args: WATCHING and event == "open" and WATCHING[0].add(str(args[0])))


def test_a_mesh_without_faces_is_its_vertices(tmp_path):
    """.off and .obj of a cloud; and faces without any area."""
    row = "".join(f"{x} {y} {z}\n" for x, y, z in RAW)
    (tmp_path / "a.off").write_text(f"OFF\n{N} 0 0\n{row}")
    (tmp_path / "b.off").write_text(f"COFF {N} 0 0\n" + row.replace("\n", " 255 255 255 255\n"))
    (tmp_path / "c.obj").write_text("# cloud\n" + "".join(f"v {line}\n" for line in row.splitlines()))
    (tmp_path / "d.obj").write_text(
        "".join(f"v {line} 0.1 0.2 0.3\np {i + 1}\n" for i, line in enumerate(row.splitlines()))
    )
    for path in sorted(tmp_path.iterdir()):
        cloud = read_cloud(path)
        assert np.allclose(cloud.points, RAW, atol=1e-6) and not cloud.notes, path
    (tmp_path / "flat.off").write_text(f"OFF\n{N} {N} 0\n{row}" + "".join(f"3 {i} {i} {i}\n" for i in range(N)))
    cloud = read_cloud(tmp_path / "flat.off")
    assert np.allclose(cloud.points, RAW, atol=1e-6) and "are no surface" in cloud.notes[0]


def test_faces_of_lost_vertices_are_dropped_and_counted(tmp_path):
    """A vertex that is NaN takes its faces with it, no others."""
    (tmp_path / "a.off").write_text(off(faces=TRIANGLES).replace("10.0 10.0 10.0", "nan 10.0 10.0"))
    cloud = read_cloud(tmp_path / "a.off")
    gone = sum(0 in face for face in TRIANGLES)
    assert any(note.startswith("faces with a vertex") and f"{gone} of 12" in note for note in cloud.notes)
    assert np.isfinite(cloud.points).all() and len(cloud.points) == 2048


# ---------------------------------------------------------------- a sample is all that is kept
BIG = np.column_stack([np.arange(100_000), RNG.normal(size=(100_000, 2)).round(3)])


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """One cloud of 200,000 points in every format that may be sampled while it is read."""
    folder = tmp_path_factory.mktemp("big")
    npy(BIG)(folder / "a.npy")
    npy(BIG.T)(folder / "turned.npy")
    npy(BIG.reshape(200, 500, 3))(folder / "organised.npy")
    npz(points=BIG)(folder / "a.npz")
    h5(points=BIG)(folder / "a.h5")
    h5(x=BIG[:, 0], y=BIG[:, 1], z=BIG[:, 2])(folder / "axes.h5")
    np.savetxt(folder / "a.txt", BIG, "%.3f")
    rows = (folder / "a.txt").read_text()
    (folder / "a.csv").write_text("x,y,z,\n" + rows.replace(" ", ",").replace("\n", ",\n"))
    head = "ply\nformat {} 1.0\nelement vertex 100000\n" + "property double {}\n" * 3 + "end_header\n"
    (folder / "a.ply").write_bytes(head.format("ascii", *"xyz").encode() + rows.encode())
    (folder / "b.ply").write_bytes(head.format("binary_big_endian", *"xyz").encode() + BIG.astype(">f8").tobytes())
    head = "VERSION .7\nFIELDS x y z\nSIZE 8 8 8\nTYPE F F F\nWIDTH 100000\nHEIGHT 1\nDATA {}\n"
    (folder / "a.pcd").write_bytes(head.format("ascii").encode() + rows.encode())
    (folder / "b.pcd").write_bytes(head.format("binary").encode() + BIG.tobytes())
    return folder


def test_every_format_gives_the_same_sample(big):
    """n points in their order, spread evenly, the same in each format, and said; all if n is large."""
    first = read_cloud(big / "a.npy", 1000).points
    for path in sorted(big.iterdir()):
        cloud = read_cloud(path, 1000)
        assert np.array_equal(cloud.points, first), path
        assert "points are drawn at random" in kinds(cloud)
    rows = first[:, 0].astype(int)
    assert len(set(rows)) == 1000 and (np.diff(rows) > 0).all() and np.array_equal(first, BIG[rows])
    assert np.histogram(rows, 10, (0, 100_000))[0].min() > 60
    assert not np.array_equal(read_cloud(big / "a.npy", 999).points, first[:999])
    assert np.array_equal(read_cloud(big / "b.ply", 10**6).points, BIG)


def test_memory_is_bounded_by_the_sample(big, monkeypatch):
    """What Python holds at a time is a part of the file, here with chunks of 1,000 points."""
    for module in (clouds, formats, text):
        monkeypatch.setattr(module, "CHUNK", 1000)
    monkeypatch.setattr(text, "LONGEST", 1 << 14)
    rows = (big / "a.txt").read_text().splitlines(keepends=True)[:10_000]
    (big / "short.txt").write_text("".join(rows))
    for name in ("a.npy", "turned.npy", "a.h5", "b.ply", "b.pcd", "short.txt"):
        clouds.read_cloud(big / name, 100)  # what is imported and kept at first use
        tracemalloc.start()
        clouds.read_cloud(big / name, 100)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.8e6, (name, peak)


# ---------------------------------------------------------------- what is refused
def header_only(shape, kind="<f8"):
    def write(path):
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
            file.write(bytes(600))

    return write


def npz_bomb(path):
    """A member that announces 8 PB and holds 600 bytes."""
    header_only((2**50,))(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("points.npy", content)


def npz_of_zeros(path):
    """3 GB of zeros in 3 MB: more than is unpacked, and nothing is allocated."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 3)})
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("points.npy")
        file.writestr(info, header.getvalue())


def h5_bomb(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("points", (2**50, 3), chunks=(1000, 3), compression="gzip", dtype="f4")[:5] = 1


def h5_linked(path):
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["points"] = RAW
    with h5py.File(path, "w") as file:
        file["points"] = h5py.ExternalLink("other.h5", "points")
        file["data"] = h5py.SoftLink("/points")


def h5_virtual(path):
    h5_linked(path)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((N, 3), "f8")
        layout[...] = h5py.VirtualSource(path.with_name("other.h5"), "points", (N, 3))
        file.create_virtual_dataset("points", layout)


def h5_external(path):
    path.with_name("raw").write_bytes(RAW.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("points", (N, 3), "f8", external=str(path.with_name("raw")))


class Touch:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return os.system, (f"touch {ROOT}/unpickled",)


OBJECTS = np.array([[Touch()] * 3] * 4, dtype=object)
PLY = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
OFF = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 1\n"
BIN = PLY.replace(b"ascii", b"binary_little_endian")
LINE, SHAPE = "line {}", "shape"
BAD = {  # name: (content or how it is written, what the refusal says)
    "empty.txt": (b"", "is empty"),
    "empty.ply": (b"", "is empty"),
    "blank.txt": (b"\n \n\n", "no row of x, y, z"),
    "comments.txt": (b"# x y z\n# nothing\n", "no row of x, y, z"),
    "header.csv": (b"x,y,z\n", "line 1"),
    "words.txt": (b"a chair\nof wood\n", "line 1"),
    "two-columns.txt": (b"1 2\n3 4\n", "line 1"),
    "one-point.xyz": (b"1 2 3\n", "no two different points"),
    "equal.txt": (b"1 2 3\n" * 9, "no two different points"),
    "all-nan.txt": (b"nan nan nan\n" * 9, "no two different points"),
    "short-row.txt": (b"1.5 2 3\n" * 4 + b"4 5\n" + b"1 2 3\n" * 4, "line 5: has 2 columns, not 3"),
    "long-row.csv": (b"1.5,2,3\n" * 4 + b"1,2,3,4\n", "line 5: has 4 columns, not 3"),
    "late-word.txt": (lines().encode() * 10 + b"1 zwei 3\n", f"line {10 * N + 1}: 'zwei' is no number"),
    "second-header.csv": (lines(sep=",", head="x,y,z\n").encode() * 2, f"line {N + 2}: 'x' is no number"),
    "cut.pts": (f"{N + 1}\n{lines()}".encode(), f"announces {N + 1} points and has {N}"),
    "alike.csv": (comma(lines()).replace(" ", ",").encode(), "both between columns and in numbers"),
    "grid.asc": (b"ncols 3\nnrows 2\n1 2 3\n4 5 6\n", "grid"),
    "legacy.txt": (b"# vtk DataFile Version 3.0\na\nASCII\n1 2 3\n4 5 6\n", "VTK"),
    "wide.txt": (lines(np.ones((50, 20))).encode(), "has 20 columns and no header"),
    "no-line-ends.txt": (b"1 2 3 " * 400_000, "write one point a line"),
    "binary.xyz": (bytes(range(256)), "is binary"),
    "kitti.bin": (MORE.astype(np.float32).tobytes(), "is binary"),
    "noise": (RNG.bytes(5000).replace(b"\0", b"\1"), "no row of x, y, z"),
    "a.laz": (b"LASF" + bytes(300), "is binary"),
    "page.txt": (b"<html><body>404 Not Found</body></html>", "no row of x, y, z"),
    "pointer.ply": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12\n", "header of a .ply"),
    "packed.txt.gz": (gzip.compress(lines().encode()), "gunzip"),
    "packed.npy.gz": (gzip.compress(bytes_of(np.save, RAW)), "gunzip"),
    "cut.npy": (bytes_of(np.save, RAW)[:-100], "announces more"),
    "header.npy": (bytes_of(np.save, RAW).replace(b"}", b" ", 1), "damaged"),
    "text.npy": (b"1 2 3\n4 5 6\n", "magic"),
    "huge.npy": (header_only((2**50, 3)), "announces"),
    "huge-turned.npy": (header_only((3, 2**58)), "announces"),
    "huge-records.npy": (header_only((9,), [("x", "<f8"), ("y", "<f8"), ("z", "<f8", 2**40)]), "damaged"),
    "negative.npy": (header_only((-9, 3)), "no two different points"),
    "objects.npy": (npy(OBJECTS), "Python objects"),
    "pickle.npy": (pickle.dumps(Touch()), "damaged"),
    "pickle.pkl": (pickle.dumps(Touch()), ""),
    "half-zip.npy": (b"PK\x03\x04 no zip", "damaged"),
    "strings.npy": (npy(RAW.astype(str)), "not numbers"),
    "complex.npy": (npy(RAW * 1j), "not numbers"),
    "truth.npy": (npy(RAW > 0), "not numbers"),
    "flat.npy": (npy(RAW.ravel()), f"({3 * N},)"),
    "scalar.npy": (npy(np.float64(1)), "()"),
    "none.npy": (npy(RAW[:0]), "no two different points"),
    "one.npy": (npy(RAW[:1]), "(1, 3)"),
    "equal.npy": (npy(np.ones((9, 3))), "no two different points"),
    "nan.npy": (npy(RAW * np.nan), "no two different points"),
    "two-columns.npy": (npy(RAW[:, :2]), f"({N}, 2)"),
    "square.npy": (npy(RAW[:3]), "(3, 3)"),
    "either-way.npy": (npy(MORE[:4]), "(4, 6)"),
    "triangles.npy": (npy(RAW[:36].reshape(12, 3, 3)), "(12, 3, 3)"),
    "few-clouds.npy": (npy(RAW.reshape(2, 20, 3)), "(2, 20, 3)"),
    "matrix.npy": (npy(np.ones((500, 300))), "(500, 300)"),
    "picture.npy": (npy(np.zeros((40, 50, 3), np.uint8)), "picture"),
    "no-array.npz": (npz(), "no array of numbers"),
    "two-clouds.npz": (npz(a=RAW, b=RAW), "name that array `points`"),
    "unequal.npz": (npz(x=RAW[:, 0], y=RAW[:, 0], z=RAW[:5, 0]), "x, y and z have the shapes"),
    "objects.npz": (npz(points=OBJECTS), "no array of numbers"),
    "bomb.npz": (npz_bomb, "announces"),
    "zeros.npz": (npz_of_zeros, "announces"),
    "cut.npz": (bytes_of(np.savez, points=RAW)[:-200], "damaged"),
    "model.pt": (
        lambda path: zipfile.ZipFile(path, "w").writestr("a/data.pkl", pickle.dumps(Touch())),
        "no array of numbers",
    ),
    "many.h5": (h5(data=np.ones((4, N, 3))), "(4, 40, 3), not one"),
    "labels.h5": (h5(label=np.arange(9)), "label"),
    "two-clouds.h5": (h5(a__points=RAW, b__points=RAW), "a/points"),
    "bomb.h5": (h5_bomb, "announces"),
    "linked.h5": (h5_linked, "no array of numbers"),
    "virtual.h5": (h5_virtual, "lies in other files"),
    "external.h5": (h5_external, "lies in other files"),
    "cut.h5": (lambda path: (h5(points=RAW)(path), path.write_bytes(path.read_bytes()[:-300])), "damaged"),
    "text.h5": (b"1 2 3\n", "damaged"),
    "huge.ply": (PLY.replace(b"vertex 3", b"vertex 99999999999999") + b"1 2 3\n", "announces"),
    "huge-binary.ply": (BIN.replace(b"vertex 3", b"vertex 99999999999999") + bytes(36), "announces"),
    "huge-faces.ply": (
        BIN[:-11] + b"element face 9999999999\nproperty list uchar int v\nend_header\n" + bytes(36),
        "announces",
    ),
    "negative.ply": (PLY.replace(b"vertex 3", b"vertex -3") + b"1 2 3\n", "negative"),
    "cut.ply": (PLY + b"0 0 0\n1 0 0\n", "announces 3 points and has 2"),
    "cut-row.ply": (PLY + b"0 0 0\n1 0 0\n0 1", "line 10: has 2 columns, not 3"),
    "cut-binary.ply": (BIN + bytes(35), "announces more"),
    "cut-faces.ply": (box_ply(faces=QUADS), None),
    "word.ply": (PLY + b"0 0 0\n1 zwei 0\n0 1 1\n", "line 9: 'zwei' is no number"),
    "list-z.ply": (PLY.replace(b"float z", b"list uchar int z") + b"0 0 0\n" * 3, "but not one"),
    "no-z.ply": (PLY.replace(b"property float z\n", b"") + b"0 0 0\n" * 3, "but not one"),
    "far-face.ply": (box_ply(faces=[*QUADS, [0, 1, 8]]), "vertex that is not among its 8"),
    "far-face-binary.ply": (box_ply("binary_little_endian", faces=[[0, 1, -2]] * 9), "not among its 8"),
    "cut.off": (OFF, "announces more"),
    "cut-vertices.off": (OFF.replace("3 1 0", "9 1 0") + "3 0 1 2\n" * 4, "announces more"),
    "huge.off": (OFF.replace("3 1 0", "99999999999999 1 0"), "announces more"),
    "negative.off": (OFF.replace("3 1 0", "-3 1 0"), "line 2"),
    "word.off": (OFF.replace("1 0 0", "1 zwei 0") + "3 0 1 2\n", "line 4: 'zwei' is no number"),
    "far-face.off": (OFF + "3 0 1 3\n", "not among its 3"),
    "short-face.off": (OFF + "3 0 1\n", "line 6"),
    "binary.off": (b"OFF BINARY\n" + bytes(99), "line 1"),
    "word.obj": ("v 0 0 0\nv 1 zwei 3\n", "line 2: 'zwei' is no number"),
    "short.obj": ("v 0 0 0\nv 1 2\n", "line 2: has 2 columns, not 3"),
    "far-face.obj": (obj() + "f 1 2 9\n", "not among its 8"),
    "zero-face.obj": (obj() + "f 0 1 2\n", "not among its 8"),
    "word-face.obj": (obj() + "f 1 a 2\n", "line 15"),
    "no-vertices.obj": ("f 1 2 3\n", "not among its 0"),
    "nothing.obj": ("o chair\n", "no two different points"),
    "cut.stl": (stl()[:-300], "its end is missing"),
    "cut-binary.stl": (binary_stl()[:-10], "its end is missing"),
    "huge-binary.stl": (binary_stl()[:80] + b"\xff" * 4 + binary_stl()[84:], "its end is missing"),
    "word.stl": (stl().replace("10.0 10.0", "10.0 zehn", 1), "damaged"),
    "no-fields.pcd": (b"VERSION .7\nDATA ascii\n1 2 3\n", "no FIELDS"),
    "no-z.pcd": (pcd(fields="x y w"), "but not one"),
    "cut-binary.pcd": (lambda path: (pcd("binary")(path), path.write_bytes(path.read_bytes()[:-1])), "announces"),
    "cut-ascii.pcd": (lambda path: (pcd()(path), path.write_bytes(path.read_bytes()[:-60])), ""),
    "cut-compressed.pcd": (
        lambda path: (pcd("binary_compressed")(path), path.write_bytes(path.read_bytes()[:-9])),
        "announces",
    ),
    "huge.pcd": (
        lambda path: (
            pcd("binary_compressed")(path),
            path.write_bytes(path.read_bytes().replace(b"POINTS 40", b"POINTS 99999999999")),
        ),
        "announces",
    ),
    "other.pcd": (b"VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 3\nDATA zipped\n", "DATA zipped"),
}
BAD["cut-faces.ply"] = (lambda path: path.write_bytes(box_ply(faces=QUADS)(path)[:-13]), "announces more")


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_cloud_is_refused_in_one_line(tmp_path, name):
    """The file, the line of a text file, what is wrong, and what can be read; nothing is executed or followed."""
    content, says = BAD[name]
    path = tmp_path / name
    made = content(path) if callable(content) else content
    if not callable(content) or isinstance(made, bytes):
        path.write_bytes(made if isinstance(made, bytes) else made.encode())
    message = refusal(lambda: read_cloud(path))
    assert message.startswith(str(path)) and says in message and ".ply" in message.partition("(read are")[2]
    assert len(message) < len(str(path)) + 500 and not (ROOT / "unpickled").exists()


def test_what_is_no_file_is_refused(tmp_path):
    """Absent, a folder of that name, a pipe that would never end, a link to nothing, no permission."""
    (tmp_path / "a.ply").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.npy").symlink_to("nowhere.npy")
    for name, says in (
        ("b.ply", "no such file"),
        ("a.ply", "is a folder"),
        ("pipe.txt", "is no file"),
        ("link.npy", "no such"),
    ):
        assert f"{tmp_path / name}: {says}" in refusal(lambda: read_cloud(tmp_path / name))
    assert "\\n" not in refusal(lambda: read_cloud(tmp_path / "a\nb.txt"))


def test_without_permission_a_file_is_refused(tmp_path, monkeypatch):
    """With how to change that (root reads all, so it is played here)."""
    (tmp_path / "a.txt").write_text(lines())

    def forbidden(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", forbidden)
    message = refusal(lambda: read_cloud(tmp_path / "a.txt"))
    monkeypatch.undo()
    assert "no permission" in message and "chmod" in message


def test_home_is_understood(tmp_path, monkeypatch):
    """~, as a flag DATA=~/clouds gives it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    npy(RAW)(tmp_path / "a.npy")
    assert np.array_equal(read_cloud("~/a.npy").points, RAW)


def test_an_h5_that_another_program_holds_is_read(tmp_path):
    """A lock is no reason not to read."""
    h5(points=RAW)(tmp_path / "a.h5")
    hold = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / "a.h5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    try:
        assert np.array_equal(read_cloud(tmp_path / "a.h5").points, RAW)
    finally:
        holder.communicate("")


DAMAGED = {name: ARRAYS[name][0] for name in ("float64.npy", "packed.npz", "packed.h5", "fields.npy")}
DAMAGED |= {
    name: POINTS[name] for name in ("little-mixed.ply", "lists-differ-binary.ply", "binary.pcd", "compressed.pcd")
}
DAMAGED |= {
    name: MESHES[name]
    for name in ("mixed-binary.ply", "mixed.ply", "binary.stl", "mixed.obj", "mixed.off", "ascii.stl")
}
DAMAGED |= {name: TEXT[name][0] for name in ("header.csv", "utf-16.txt", "decimal-comma-quoted.csv")}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_never_ends_in_a_traceback(tmp_path, capsys, name):
    """Stretches overwritten, cut out or doubled anywhere: finite points or a refusal in one line, and no log."""
    make, path = DAMAGED[name], tmp_path / name
    made = make(path) if callable(make) else make
    whole = path.read_bytes() if path.exists() else made if isinstance(made, bytes) else made.encode()
    rng = np.random.default_rng(len(name))
    for i in range(24):
        at = int(rng.integers(min(len(whole), 300) if i % 2 else len(whole)))
        size = int(rng.integers(1, 20))
        part = (rng.bytes(size), b"", whole[at : at + size] * 2, b"9" * size)[i % 4]
        path.write_bytes(whole[:at] + part + whole[at + size :])
        try:
            assert np.isfinite(read_cloud(path).points).all()
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert capsys.readouterr() == ("", "")


def test_every_format_that_is_named_has_its_reader():
    """The endings that a folder is searched for; those of text fall to the reader of text."""
    binary = set(clouds.BY_NAME)
    assert binary < set(FORMATS) and {".xyz", ".txt", ".pts", ".csv", ".asc"} <= set(FORMATS) - binary
    assert all(name == name.lower() and name.startswith(".") for name in FORMATS)
