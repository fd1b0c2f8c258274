""".ply, .pcd, .off, .obj and .stl: chunks of points (m, 3) float64, of a mesh n points drawn by area.

Each reader takes the path, n and a list of notes, which gains what was decided, and raises NoCloud or whatever the
library raises on a damaged file. Meshes of .ply and .stl are trimesh's work; its readers of .off and .obj take a cut
file for a whole one and count relative indices from the file's end, so these two are read here. No reader opens a file
that another one names.
"""

import io
import logging
import re
import struct
from array import array
from itertools import islice

import numpy as np

from datasets.text import CHUNK, Form, NoCloud, lines_of, row, rows, xyz_columns
from engine.base import seed_of

HEADER = 1 << 18  # bytes
TOO_FAR = 1e15  # beyond that a squared norm overflows float32
TOO_NEAR = 1e-9  # below that a norm is no longer told from none
PLY_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
logging.getLogger("trimesh").addHandler(logging.NullHandler())  # or it prints tracebacks of normals that are not used
CUT = "announces more than the file holds: its end is missing"


def from_disk(path, dtype, offset, count, columns):
    """x, y, z of `count` records from a byte on, in chunks (m, 3); NoCloud if the file is shorter."""
    if offset + count * dtype.itemsize > path.stat().st_size:
        raise NoCloud(CUT)
    for a in range(0, count, CHUNK):
        part = np.fromfile(path, dtype, min(CHUNK, count - a), offset=offset + a * dtype.itemsize)
        yield np.stack([part[dtype.names[c]].astype(np.float64) for c in columns], 1)


def from_text(path, offset, skip, count, width, columns):
    """The same of lines of text: `count` of them, after `skip` others, from a byte on."""
    with open(path, "rb") as file:
        first = 1 + len(file.read(offset).splitlines())
        text = io.TextIOWrapper(file, encoding="latin-1")
        lines = (pair for pair in lines_of(text, first) if pair[1].strip())
        total = 0
        for chunk in rows(islice(lines, skip, skip + count), Form(str.split, width, width, columns)):
            total += len(chunk)
            yield chunk
    if total < count:
        raise NoCloud(f"announces {count} points and has {total}: its end is missing")


def surface(vertices, faces, n, notes):
    """n points (n, 3) drawn by area from triangles (F, 3); the vertices (V, 3) where they make no surface."""
    if not len(faces):
        return vertices
    if not 0 <= faces.min() <= faces.max() < len(vertices):
        raise NoCloud(f"has a face with a vertex that is not among its {len(vertices)}")
    import trimesh  # half a second, for meshes alone

    sound = (np.abs(vertices) < TOO_FAR).all(1)[faces].all(1)
    if not sound.all():
        notes.append(
            f"faces with a vertex that is NaN, Inf or beyond 1e15 are dropped: {(~sound).sum()} of {len(faces)}"
        )
    mesh = trimesh.Trimesh(vertices, faces[sound], process=False)
    if 2 * len(np.unique(mesh.faces)) < len(vertices) or not mesh.area > 0:
        notes.append(f"faces are no surface of these vertices, which are taken: {len(faces)} of {len(vertices)}")
        return vertices
    notes.append(f"a mesh, {n} points are drawn by area: {len(mesh.faces)} triangles")
    return trimesh.sample.sample_surface(mesh, n, seed=seed_of("surface", n, len(mesh.faces)))[0]


def triangles(polygons):
    """Polygons of any lengths, or an array of them, as triangles (F, 3); what has two corners is none."""
    from trimesh.geometry import triangulate_quads

    return np.reshape(triangulate_quads(polygons), (-1, 3))


# ---------------------------------------------------------------- .ply
def ply(path, n, notes):
    """The vertices, whatever stands before and beside them; if there are faces, their surface."""
    form, elements, offset = _ply_header(path)
    names = [name for name, _, _ in elements]
    if names.count("vertex") != 1:
        raise NoCloud(f"has elements {names}, not one that is called vertex")
    if "tristrips" in names:
        notes.append("strips of triangles are passed over, the vertices are taken")
    before = elements[: names.index("vertex")]
    _, count, properties = elements[len(before)]
    columns = xyz_columns([name if length is None else "" for name, length, _ in properties])
    if columns is None:
        known = ", ".join(f"a list {name}" if length else name for name, length, _ in properties)
        raise NoCloud(f"its vertices have {known}, but not one number x, one y and one z")
    faces = sum(count for name, count, _ in elements if name == "face")
    lists = [length for _, _, each in (*before, elements[len(before)]) for _, length, _ in each if length]
    if faces or lists:
        yield _ply_mesh(path, form, elements, offset, columns, n, notes)
    elif form == "ascii":
        yield from from_text(path, offset, sum(count for _, count, _ in before), count, len(properties), columns)
    else:
        order = "<" if "little" in form else ">"
        dtypes = [np.dtype([(str(i), order + kind) for i, (_, _, kind) in enumerate(each)]) for _, _, each in elements]
        offset += sum(count * dtype.itemsize for (_, count, _), dtype in zip(before, dtypes))
        yield from from_disk(path, dtypes[len(before)], offset, count, columns)


def _ply_header(path):
    """Form, [(element, count, [(property, type of a list's length or None, type)])] and where the body begins."""
    with open(path, "rb") as file:
        start = file.read(HEADER)
    end = re.search(rb"[\r\n]end_header[ \t]*(\r\n|\n|\r)", start)
    if not start.startswith((b"ply\n", b"ply\r", b"ply ")) or not end:
        raise NoCloud("has no header of a .ply, from ply to end_header")
    form, elements = None, []
    for line in start[: end.start()].splitlines()[1:]:
        if line.split()[:1] in ([], [b"comment"], [b"obj_info"]):
            continue
        try:
            match line.decode("ascii").split():
                case ["format", ("ascii" | "binary_little_endian" | "binary_big_endian") as form, _]:
                    pass
                case ["element", name, count]:
                    elements.append((name, int(count), []))
                case ["property", kind, name]:
                    elements[-1][2].append((name, None, PLY_TYPES[kind]))
                case ["property", "list", length, kind, name]:
                    elements[-1][2].append((name, PLY_TYPES[length], PLY_TYPES[kind]))
                case _:
                    raise ValueError
        except (ValueError, KeyError, IndexError):
            raise NoCloud(f"has {line[:40].decode('latin-1')!r} in its header") from None
    if form is None:
        raise NoCloud("does not say in its header whether it is ascii or binary")
    if min((count for _, count, _ in elements), default=0) < 0:
        raise NoCloud("announces a negative number of elements")
    if sum(count * max(1, len(properties)) for _, count, properties in elements) > path.stat().st_size:
        raise NoCloud(CUT)
    return form, elements, end.end()


def _ply_mesh(path, form, elements, offset, columns, n, notes):
    """The surface of a .ply (n, 3), or its vertices, by trimesh with a header that has nothing to stumble over."""
    from trimesh.exchange.ply import load_ply

    body = path.read_bytes()[offset:]
    if form == "ascii":
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) < sum(count for _, count, _ in elements):
            raise NoCloud(CUT)
        body = b"\n".join(lines)
    head, codes = ["ply", f"format {form} 1.0"], {code: name for name, code in PLY_TYPES.items()}
    for e, (element, count, properties) in enumerate(elements):
        known = element in ("vertex", "face")
        head.append(f"element {element if known else f'other{e}'} {count}")
        for p, (name, length, kind) in enumerate(properties):
            if element == "vertex" and p in columns:
                name = "xyz"[columns.index(p)]
            elif element == "face" and p == _corners(properties):
                name = "vertex_indices"
            else:
                name = f"other{p}"
            head.append(f"property {f'list {codes[length]} ' if length else ''}{codes[kind]} {name}")
    whole = "\n".join([*head, "end_header", ""]).encode() + body
    try:
        read = load_ply(io.BytesIO(whole), skip_materials=True, fix_texture=False)
        vertices, faces = read["vertices"].astype(np.float64), read.get("faces", [])
    except ValueError:
        if form == "ascii":
            raise
        vertices, faces = _ply_lists(body, form, elements, columns)
    return surface(vertices, triangles(faces), n, notes)


def _corners(properties):
    """Which property of a face lists its vertices."""
    lists = [p for p, (name, length, _) in enumerate(properties) if length]
    named = [p for p in lists if properties[p][0] in ("vertex_indices", "vertex_index")]
    return (named or lists or [None])[0]


def _ply_lists(body, form, elements, columns):
    """Vertices (V, 3) and polygons of a binary body whose lists differ in length, which trimesh does not read."""
    order, at, vertices, polygons = "<" if "little" in form else ">", 0, array("d"), []
    for element, count, properties in elements:
        corners, codes = _corners(properties), []
        for _, length, kind in properties:
            codes.append((length and struct.Struct(order + np.dtype(length).char), np.dtype(kind).char))
        for _ in range(count):
            values = []
            for length, code in codes:
                m = 1
                if length:
                    (m,) = length.unpack_from(body, at)
                    at += length.size
                values.append(struct.unpack_from(f"{order}{m}{code}", body, at))
                at += struct.calcsize(f"{order}{m}{code}")
            if element == "vertex":
                vertices.extend(values[c][0] for c in columns)
            elif element == "face":
                polygons.append(values[corners])
    return np.reshape(vertices, (-1, 3)), polygons


# ---------------------------------------------------------------- .pcd
def pcd(path, n, notes):
    """The points of PCL's format: ascii, binary or binary_compressed."""
    with open(path, "rb") as file:
        start = file.read(HEADER)
    end = re.search(rb"(?m)^DATA[ \t]+(\w+)[ \t]*(\r\n|\n|\r)", start)
    if not end:
        raise NoCloud("has no header of a .pcd, which ends with DATA")
    lines = [line.split() for line in start[: end.end()].decode("latin-1").splitlines()]
    head = {cells[0]: cells[1:] for cells in lines if cells}
    if not {"FIELDS", "SIZE", "TYPE"} <= set(head):
        raise NoCloud("has no FIELDS, SIZE or TYPE in its header")
    names = head["FIELDS"]
    counts = [int(k) for k in head.get("COUNT", ["1"] * len(names))]
    kinds = [{"F": "f", "I": "i", "U": "u"}[kind] + size for kind, size in zip(head["TYPE"], head["SIZE"])]
    dtype = np.dtype([(str(i), f"<{kind}", (k,) if k > 1 else ()) for i, (kind, k) in enumerate(zip(kinds, counts))])
    total = int(head["POINTS"][0]) if "POINTS" in head else int(head["WIDTH"][0]) * int(head["HEIGHT"][0])
    if min(total, *counts) < 1:
        raise NoCloud("announces no points, or fields of no numbers")
    columns = xyz_columns(names)
    if columns is None or len(dtype) != len(names):
        raise NoCloud(f"its fields are {', '.join(names)}, but not one x, one y and one z")
    form = end[1].decode()
    if form == "ascii":
        at = np.cumsum([0, *counts])
        yield from from_text(path, end.end(), 0, total, at[-1], tuple(at[c] for c in columns))
    elif form == "binary":
        yield from from_disk(path, dtype, end.end(), total, columns)
    elif form == "binary_compressed":
        with open(path, "rb") as file:
            file.seek(end.end())
            packed, size = struct.unpack("<II", file.read(8))
            body = file.read(min(packed, path.stat().st_size))
        if len(body) < packed or size != total * dtype.itemsize or size > 200 * packed:  # a run of 3 bytes gives 264
            raise NoCloud(CUT)
        body = unpack_lzf(body, size)
        at = total * np.cumsum([0, *(dtype[i].itemsize for i in range(len(dtype)))])  # field by field
        fields = [np.frombuffer(body, dtype[c].base, total, at[c]).astype(np.float64) for c in columns]
        yield np.stack(fields, 1)
    else:
        raise NoCloud(f"has DATA {form}, not ascii, binary or binary_compressed")


def unpack_lzf(data, size):
    """The `size` bytes that LZF has packed; NoCloud if these are others."""
    out, at = bytearray(), 0
    while at < len(data):
        first, at = data[at], at + 1
        if first < 32:  # that many and one bytes as they are
            out += data[at : at + first + 1]
            at += first + 1
            continue
        length, at = (first >> 5, at) if first < 224 else (7 + data[at], at + 1)
        start, at, length = len(out) - ((first & 31) << 8) - data[at] - 1, at + 1, length + 2
        if start < 0 or len(out) > size:
            break
        piece = bytes(out[start : start + length])
        out += (piece * (length // len(piece) + 1))[:length]  # may repeat what it is writing
    if len(out) != size or at != len(data):
        raise NoCloud("is damaged: its packed points do not unpack")
    return out


# ---------------------------------------------------------------- .off, .obj, .stl
THREE = Form(lambda line: line.split()[:3], 3, 3, (0, 1, 2))  # what follows x, y, z is a normal or a colour


def off(path, n, notes):
    """The surface of an .off, or its vertices where it has no faces; the counts may stand beside the keyword."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        lines = ((at, line.partition("#")[0]) for at, line in lines_of(file))
        lines = (pair for pair in lines if pair[1].strip())
        at, line = next(lines, (1, ""))
        keyword = re.match(r"\s*((ST)?C?N?OFF(?=\s|\d|$)|(?=\d))", line, re.I)
        if not keyword:
            raise NoCloud(f"begins with {line.strip()[:20]!r}, not with OFF", at)
        if not line[keyword.end() :].strip():
            at, line, keyword = *next(lines, (at, "")), re.match("", "")
        counts = line[keyword.end() :].split()
        if not 2 <= len(counts) <= 3 or not all(map(str.isdecimal, counts)):
            raise NoCloud(f"has {line.strip()[:30]!r} for the numbers of its vertices and faces", at)
        V, F = int(counts[0]), int(counts[1])
        if 2 * (V + F) > path.stat().st_size:
            raise NoCloud(CUT)
        vertices = np.concatenate([np.empty((0, 3)), *rows(islice(lines, V), THREE)])
        polygons = []
        for at, line in islice(lines, F):
            cells = line.split()
            (k,) = whole_numbers(cells[:1], at)
            polygons.append(whole_numbers(cells[1 : k + 1], at))  # a colour may follow
            if k < 1 or len(polygons[-1]) < k:
                raise NoCloud(f"has {len(polygons[-1])} corners of a face with {k}", at)
    if len(vertices) < V or len(polygons) < F:
        raise NoCloud(CUT)
    yield surface(vertices, triangles(polygons), n, notes)


def obj(path, n, notes):
    """The surface of an .obj, or its vertices where it has no faces; materials and all else are passed over."""
    vertices, polygons = array("d"), []
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for at, line in lines_of(file):
            cells = line.partition("#")[0].split()
            if cells[:1] == ["v"]:
                vertices.extend(row(cells[1:4], 3, (0, 1, 2), at))
            elif cells[:1] == ["f"]:
                corners = whole_numbers([cell.partition("/")[0] for cell in cells[1:]], at)
                polygons.append([c - 1 if c > 0 else len(vertices) // 3 + c if c else -1 for c in corners])
    yield surface(np.reshape(vertices, (-1, 3)), triangles(polygons), n, notes)


def whole_numbers(cells, at):
    """The cells of a face as integers; NoCloud names the line."""
    try:
        return [int(cell) for cell in cells]
    except ValueError:
        raise NoCloud(f"has a face {' '.join(cells)[:30]!r}", at) from None


def stl(path, n, notes):
    """The surface of an .stl, ascii or binary."""
    from trimesh.exchange.stl import load_stl

    body = path.read_bytes()
    if b"\0" not in body[:HEADER]:  # ascii, with any line ends and a name in any encoding
        body = body.decode("latin-1").replace("\r", "\n").encode()
    read = load_stl(io.BytesIO(body))
    solids = [solid for solid in read.get("geometry", {"": read}).values() if len(solid["vertices"])]
    vertices = np.concatenate([np.empty((0, 3)), *(solid["vertices"] for solid in solids)])
    if not len(vertices) or b"\0" not in body and 3 * body.lower().count(b"endfacet") != len(vertices):
        raise NoCloud("is no whole .stl: it has no triangle, or its end is missing")
    yield surface(vertices, np.arange(len(vertices)).reshape(-1, 3), n, notes)  # a corner is a vertex of its own
