"""Rows of numbers in text: x, y, z of each, whatever separates, precedes or surrounds them.

What a row looks like is learnt from the first lines; a later line that looks otherwise is refused by its number.
"""

import codecs
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from operator import methodcaller

import numpy as np

CHUNK = 1 << 16  # rows held at a time
HEAD = 100  # lines from which the form is learnt
LONGEST = 1 << 20  # characters of a line
WIDE = 16  # columns of a table that no header explains

BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
COMMENT = re.compile(r"\s*(#|//|%|!|;)")
LEFT_OUT = re.compile(r"[+-]?(nan(\(.*\))?|\d*\.?#(qnan|snan|ind|inf).*|#?n/?a|null|none|-)?", re.I)
DECIMAL = r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?"  # with a comma
NAME = re.compile(  # x, pos_x, Coord.X, x [mm], X(m), Points:0
    r"(?:(?:p|pos|position|coords?|coordinates?|points?|loc|location)?[\s_.:-]*([xyz])"
    r"(?:[\s_-]*(?:mm|cm|m|coords?|coordinates?|pos))?|points?[\s_.:]*([012]))(?:\s*[\[({].*)?",
    re.I,
)


class NoCloud(Exception):
    """Why a file is no cloud; `line` where it is text, `remedy` where not just another file helps."""

    def __init__(self, what, line=None, remedy=None):
        super().__init__(what)
        self.line, self.remedy = line, remedy


@dataclass
class Form:
    """What a row looks like: `split` makes `cells` of it, of which `width` are filled; x, y, z stand in `columns`."""

    split: Callable
    cells: int
    width: int
    columns: tuple
    named: bool = True  # by a header
    first: int = 1  # line of the first row
    count: int | None = None  # of points, where a line announces it


def xyz_columns(names):
    """Where x, y and z are among the names of columns, or None unless each is named once."""
    found = [(NAME.fullmatch(name.strip()), i) for i, name in enumerate(names)]
    axes = [((match[1] or "xyz"[int(match[2])]).lower(), i) for match, i in found if match]
    return tuple(i for _, i in sorted(axes)) if sorted(axis for axis, _ in axes) == ["x", "y", "z"] else None


def number(cell):
    """The number in a cell, NaN where it is left out; ValueError if there is a word."""
    cell = cell.strip().replace("\u2212", "-")
    try:
        return float(cell)
    except ValueError:
        return np.nan if LEFT_OUT.fullmatch(cell) else float(re.sub("[dD]", "e", cell))  # Fortran's 1.0D+00


def is_number(cell):
    try:
        number(cell)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- lines and rows
def encoding_of(start):
    """The encoding of a text file from its first bytes; NoCloud if it is binary."""
    for bom, name in BOMS.items():
        if start.startswith(bom):
            return name
    if b"\0" not in start:
        return "utf-8"
    for odd, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # of a file without a mark
        if not any(start[odd::2]) and all(start[1 - odd :: 2]):
            return name
    raise NoCloud("is binary and of no kind known here")


def lines_of(file, first=1):
    """(number, line) of a text file, read in blocks, numbers from `first`; NoCloud where a line has no end."""
    at, rest = first, ""
    while block := file.read(LONGEST):
        *lines, rest = (rest + block).split("\n")
        yield from enumerate(lines, at)
        at += len(lines)
        if len(rest) > LONGEST:
            raise NoCloud(f"has a line of more than {LONGEST} characters", at, "write one point a line")
    yield at, rest


def rows(lines, form):
    """x, y, z of (number, line) pairs in chunks (m, 3) float64, none of blank lines and comments; NoCloud if unlike."""
    chunk, (i, j, k), split, n = [], form.columns, form.split, form.cells
    for at, line in lines:
        try:
            cells = split(line)
            if len(cells) != n:
                raise ValueError
            chunk.append((float(cells[i]), float(cells[j]), float(cells[k])))
        except ValueError:
            if any(cells := cells_of(split, line)):
                chunk.append(row(cells, form.width, form.columns, at))
        if len(chunk) == CHUNK:
            yield np.array(chunk)
            chunk = []
    if chunk:
        yield np.array(chunk)


def bare(line):
    """A line without its comment."""
    return "" if COMMENT.match(line) else re.split(r"\s#|\s//|[\x1a\0]", line)[0]


def cells_of(split, line):
    """Stripped cells of a line without its comment."""
    return [cell.strip() for cell in split(bare(line))]


def row(cells, width, columns, at):
    """Numbers in these columns, NaN where left out; NoCloud names line `at` if they are not or too many or few."""
    if len(cells) < width or any(cells[width:]):
        raise NoCloud(f"has {len(cells)} columns, not {width}", at)
    for c in columns:
        if not is_number(cells[c]):
            raise NoCloud(f"{cells[c][:20]!r} is no number", at)
    return tuple(number(cells[c]) for c in columns)


# ---------------------------------------------------------------- a file
def read_text(path, notes):
    """x, y, z of a file of rows in chunks (m, 3) float64; notes gain what was decided. NoCloud if it has none."""
    with open(path, "rb") as file:
        encoding = encoding_of(file.read(4096))
    with open(path, encoding=encoding, errors="replace") as file:
        lines = lines_of(file)
        head = list(_start(lines))
        form = learn(head, notes)
        body = chain((pair for pair in head if pair[0] >= form.first), lines)
        if form.width > WIDE and not form.named:
            yield _turned(body, form, notes)
            return
        total = 0
        for chunk in rows(body, form):
            total += len(chunk)
            yield chunk
        if total < (form.count or 0):
            raise NoCloud(f"announces {form.count} points and has {total}: its end is missing")
        if form.count and total > form.count:
            notes.append(f"more points than announced, all are taken: {total}, not {form.count}")


def _start(lines):
    """The first (number, line) pairs, HEAD of them beside blank lines and comments, or fewer that are very long."""
    told, size = 0, 0
    for pair in islice(lines, 50 * HEAD):
        yield pair
        told, size = told + bool(bare(pair[1]).strip()), size + len(pair[1])
        if told == HEAD or size > 4 * LONGEST:
            return


def _turned(body, form, notes):
    """(N, 3) of lines that are all x, all y, all z and perhaps more; NoCloud if they are no such lines."""
    lines = ((at, cells) for at, line in body if any(cells := cells_of(form.split, line)))
    lines = list(islice(lines, WIDE + 1))
    if not 3 <= len(lines) <= WIDE or len(lines) > 3 and form.width <= 4 * WIDE:
        raise NoCloud(f"has {form.width} columns and no header with x, y, z", form.first, "write one point a line")
    notes.append(f"turned, a line each of x, y, z: {form.width} points")
    return np.array([row(cells, form.width, range(form.width), at) for at, cells in lines[:3]]).T


# ---------------------------------------------------------------- the form of its rows
def learn(head, notes):
    """The Form of a file from its first (number, line) pairs; notes gain what had to be decided."""
    at, line = next(((at, line) for at, line in head if bare(line).strip()), (1, ""))
    if re.match(r"\s*(ncols\b|# vtk )", head[0][1], re.I):
        raise NoCloud("is a grid or a VTK file, not rows of x, y, z", 1, "export it as .ply or .csv")
    sample = [(at, line) for at, line in head if _is_row(line)]
    if not sample:
        what = f"has no row of x, y, z at its beginning, but {line.strip()[:30] or 'nothing'!r}"
        raise NoCloud(what, at, "write one point a line")
    split = _splitter([line for _, line in sample], notes)
    table = [cells_of(split, line) for _, line in sample]
    names = [cell for cell in table[0] if cell]
    if names == [str(i) for i in range(len(names))] and any("." in line for _, line in sample[1:]):
        sample, table = sample[1:], table[1:]  # how pandas names columns that have no names
    n = Counter(map(len, table)).most_common(1)[0][0]
    first = sample[len(table) > 1 and len(table[0]) != n == len(table[1])][0]  # the header may end with numbers
    table = [cells for cells in table if len(cells) == n]
    width = max(c + 1 for cells in table for c in range(n) if cells[c])
    header = [(at, line) for at, line in head if at < first and line.strip()]
    columns, names = _columns(table, width, [line for _, line in header], split, notes)
    form = Form(split, n, width, columns, names is not None, first)
    for at, line in header:
        if re.fullmatch(r"[\s\"]*\d+[\s,;\"]*", line):
            form.count = int(re.sub(r"\D", "", line))
        elif line != names and re.search(r"\w", bare(line)):
            notes.append(f"a line that is no row of numbers is skipped: {at}, {line.strip()[:30]!r}")
    return form


def _is_row(line):
    """Three numbers beside fewer words, or any number between separators with nothing between them."""
    line = bare(line)
    cells = [cell for cell in re.split(r"[\s,;|\[\](){}\"']+", line) if cell]
    numbers, marks = sum(map(is_number, cells)), len(re.findall("[,;|\t]", line))
    return numbers > 2 and 2 * numbers > len(cells) or 0 < numbers == len(cells) and marks > 1


def _splitter(lines, notes):
    """A function line -> cells that suits all of these rows."""
    no_points = not any("." in line for line in lines)
    quoted, spaced = rf"(?<=[\"']){DECIMAL}(?=[\"'])", rf"\s*{DECIMAL}(,\s+{DECIMAL})+[,\s]*"
    for inside, suits in ((quoted, re.search), (DECIMAL, lambda _, line: re.fullmatch(spaced, line))):
        if no_points and all(suits(inside, line) for line in lines):  # "0,5","1,5" or 0,5, 1,5
            notes.append("commas within numbers are taken as decimal")
            mend = partial(re.sub, inside, lambda match: match[0].replace(",", "."))
            split = _splitter([mend(line) for line in lines], notes)
            return lambda line: split(mend(line))

    cells = [[cell for cell in re.split(r"[\s;|\"']+", line) if cell] for line in lines]
    decimal = no_points and all(
        len(each) > 2 and all("," not in cell or re.fullmatch(DECIMAL, cell) for cell in each) for each in cells
    )
    if decimal and any("," in line for line in lines):
        notes.append("commas are taken as decimal")
    drop = str.maketrans(dict.fromkeys("\"'") | dict.fromkeys("[](){}", " ") | ({",": "."} if decimal else {}))
    kept = [bare(line).translate(drop) for line in lines]
    separator = next((s for s in ";,|\t" if all(_separates(s, line) for line in kept)), None)
    if separator is None:  # spaces, or several
        drop = str.maketrans(dict.fromkeys(",;|", " ")) | drop
    if separator == "," and no_points and any(re.search(r"(?<!\d)0\d|-0,", line) for line in lines):
        raise NoCloud("has commas both between columns and in numbers", 1, "write decimal points")
    if separator == "," and any(re.search(r"[\"']\d{1,3}(,\d{3})+(\.\d*)?[\"']", line) for line in lines):
        raise NoCloud("has commas between thousands", 1, "write numbers without them")
    split = methodcaller("split", separator)
    plain = all(line.translate(drop) == line for line in lines)
    return split if plain else lambda line: split(line.translate(drop))


def _separates(mark, line):
    """Whether three cells or more stand between these marks, none of them several numbers."""
    cells = line.split(mark)
    return len(cells) > 2 and not any(len(parts := cell.split()) > 1 and is_number(parts[0]) for cell in cells)


def _columns(table, width, header, split, notes):
    """Columns of x, y, z in these rows and the line of the header that names them, if one does."""
    numeric = []
    for c in range(width):
        column = [cells[c] for cells in table]
        numeric += [c] if all(map(is_number, column)) and not set(column) <= {"", "-"} else []
    counts = len(numeric) > 3 and _counts([cells[numeric[0]] for cells in table])
    counts = counts and not all(cells[c].isdecimal() for cells in table for c in numeric[1:4])
    for line in reversed(header):
        mark_off = re.sub(r"^[\s#/%!;]+", "", line)
        for names in (split(line), split(mark_off), re.split(r"[\s,;|\"']+", mark_off.strip("\"' \t,;|"))):
            while names and not names[-1].strip():
                names.pop()
            at = xyz_columns(names)
            if at and (len(names) == width or at == (0, 1, 2)):
                # tables of R and of pandas with spaces have no name for their first column
                shift = len(names) == width - 1 and (counts or 0 not in numeric)
                return tuple(c + shift for c in at), line
    if counts:
        notes.append(f"a column that counts the rows is skipped: {numeric[0] + 1}")
        numeric = numeric[1:]
    if len(numeric) < 3:
        raise NoCloud(f"only {len(numeric)} of its {width} columns hold numbers")
    if 3 < width <= WIDE:
        taken = ", ".join(str(c + 1) for c in numeric[:3])
        notes.append(f"no header names x, y, z, these columns are taken: {taken} of {width}")
    return tuple(numeric[:3]), None


def _counts(column):
    """Whether cells are whole numbers, each one more than the one before."""
    return len(column) > 2 and all(map(str.isdecimal, column)) and set(np.diff([int(c) for c in column])) == {1}
