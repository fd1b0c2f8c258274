"""Built-in shapes: procedural point clouds that need no file, for the demo, the tests and a first lesson.

    make("M", "train")      # points (400, 2048, 3), labels (400,)        M, S, SC and train, test
    make("seg_F", "val")    # points (10, 2048, 3), labels (10, 2048)     seg_F, seg_M, seg_A, seg_S; also val

They stand in for the files of PointDA-10 and PointSegDA where the data folder is called "shapes" (--data shapes).
M has clean surfaces of one style; S the same ten classes in more styles and proportions; SC simulated depth
scans of further objects of both kinds. The bodies of seg_* differ in pose, girth, sampling and noise.
A shape is a soup of triangles in metres, z up, front towards -y, all closed or two-sided and wound outwards.
Numbers made from these shapes are not PointDA-10 numbers.
"""

import math

import numpy as np

from engine.base import UserError

POINTS = 2048
# test clouds of each class; train has twice as many. S and SC lean the way ShapeNet-10 and ScanNet-10 do
COUNTS = {"M": [20] * 10, "S": [10, 7, 9, 20, 40, 25, 15, 7, 27, 40], "SC": [7, 14, 19, 24, 54, 8, 11, 7, 21, 35]}
BODIES = {"train": 40, "val": 10, "test": 20}


# -------------------------------------------------------------------------- primitives
def loft(rings):
    """Triangles between consecutive rings (..., K, n, 3), each wound left seen from the next -> (T, 3, 3)."""
    low, high = rings[..., :-1, :, :], rings[..., 1:, :, :]
    low_next, high_next = np.roll(low, -1, axis=-2), np.roll(high, -1, axis=-2)
    halves = [np.stack([low, low_next, high_next], axis=-2), np.stack([low, high_next, high], axis=-2)]
    return np.concatenate(halves).reshape(-1, 3, 3)


def circle(n, radius, z=0.0):
    """n points (n, 3) on a level circle around the z axis."""
    angle = np.arange(n) * 2 * np.pi / n
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(n, z)], axis=1)


def pair(x, y, z):
    """A point and its mirror image, left and right (2, 3)."""
    return np.array([[-x, y, z], [x, y, z]])


def lathe(radii, heights, power=2, sides=16):
    """Level rings up the z axis: radii (K,) or half-axes (K, 2); power 2 an ellipse, 8 nearly a rectangle."""
    cos, sin, _ = circle(sides, 1).T
    power, radii = np.reshape(power, (-1, 1)), np.reshape(radii, (len(heights), -1))
    reach = (np.abs(cos) ** power + np.abs(sin) ** power) ** (-1 / power)  # (K or 1, n)
    x, y = radii[:, :1] * reach * cos, radii[:, -1:] * reach * sin  # (K, n)
    return loft(np.stack([x, y, np.broadcast_to(np.reshape(heights, (-1, 1)), x.shape)], axis=-1))


def cushion(base, size, power=5):
    """A block with soft edges, (width, depth, height), standing on `base`; round for power 2."""
    half = np.outer([0, 0.88, 1, 1, 0.88, 0], size[:2]) / 2
    return lathe(half, np.array([0, 0, 0.25, 0.75, 1, 1]) * size[2], power) + base


def turn(triangles, degrees, axis=2):
    """Rotate about a coordinate axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return triangles @ rotation.T


UNIT_BOX = turn(lathe(np.array([0, 1, 1, 0]) * math.sqrt(0.5), [-0.5, -0.5, 0.5, 0.5], sides=4), 45)


def box(centre, size):
    """Closed boxes: centre and size (3,) or (K, 3)."""
    centre, size = np.array(centre, float), np.array(size, float)
    return (centre[..., None, None, :] + UNIT_BOX * size[..., None, None, :]).reshape(-1, 3, 3)


def tube(start, end, *radii):
    """Closed round bars from start to end, (3,) or (K, 3); the radii are spread evenly along the way."""
    start, end = np.broadcast_arrays(np.array(start, float, ndmin=2), np.array(end, float, ndmin=2))
    radii = np.array([0, *radii, 0] if len(radii) > 1 else [0, *radii, *radii, 0])
    along = np.array([0, *np.linspace(0, 1, len(radii) - 2), 1])
    axis = (end - start) / np.linalg.norm(end - start, axis=1, keepdims=True)
    u = np.cross(axis, np.where(np.abs(axis[:, :1]) < 0.8, [1.0, 0, 0], [0, 1.0, 0]))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    ring = circle(8, 1)[:, :2] @ np.stack([u, np.cross(axis, u)], axis=1)  # (K, 8, 3)
    spine = start[:, None] + along[:, None] * (end - start)[:, None]  # (K, rings, 3)
    return loft(spine[:, :, None] + radii[:, None, None] * ring[:, None])  # (K, rings, 8, 3)


def legs(width, depth, top, r=0.03, splay=0.0):
    """Four legs from the corners of a width x depth rectangle at z = top down to the floor."""
    corner = np.r_[pair(0.5, -0.5, 0), pair(-0.5, 0.5, 0)]
    return tube(corner * [width, depth, 0] + [0, 0, top], corner * [width + splay, depth + splay, 0], r)


def leaves(base, heading, pitch, length, width, droop):
    """Two-sided leaves: base (L, 3), heading, pitch (radians) and length (L,); droop bends them down."""
    bend = pitch[:, None] - droop * np.arange(4)  # (L, 4)
    level, along = np.cos(bend), np.stack([np.cos(heading), np.sin(heading)], axis=1)
    step = np.concatenate([level[..., None] * along[:, None], np.sin(bend)[..., None]], axis=-1)  # (L, 4, 3)
    spine = np.concatenate([0 * step[:, :1], np.cumsum(step, axis=1)], axis=1) / 4  # (L, 5, 3)
    spine = base[:, None] + spine * length[:, None, None]
    across = np.stack([-along[:, 1], along[:, 0], 0 * heading], axis=1)[:, None]  # (L, 1, 3)
    side = across * np.array([0.3, 0.9, 1, 0.7, 0.05])[:, None] * width / 2
    # rings of two points: the way there and the way back are the two sides of the leaf
    return loft(np.stack([spine - side, spine + side], axis=-2))


def sample(triangles, n, rng):
    """Uniform over the area -> points (n, 3), unit normals (n, 3), index of the triangle (n,)."""
    a, b, c = triangles.transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1)
    cumulative = np.cumsum(area)
    face = np.searchsorted(cumulative, rng.random(n) * cumulative[-1])
    u, v = rng.random((2, n, 1))
    # fold the unit square onto the triangle
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    points = (1 - u - v) * a[face] + u * b[face] + v * c[face]
    return points, normal[face] / area[face][:, None], face


class Draw:
    """The choices behind one object: M keeps to the middle of a range and the first half of the options."""

    def __init__(self, rng, wide):
        self.rng, self.wide = rng, wide

    def __call__(self, low, high):
        return (low + high) / 2 + (high - low) / (2 if self.wide else 4) * self.rng.uniform(-1, 1)

    def of(self, *options):  # all options are built and one is kept: cheap, and the code stays flat
        return options[self.rng.integers(len(options) if self.wide else (len(options) + 1) // 2)]


# -------------------------------------------------------------------------- the ten classes
def bathtub(d):
    """A hollow basin with a rim and a tap, boxed in or free-standing with sloping walls."""
    half, high, rim = np.array([d(0.7, 0.95), d(0.33, 0.48)]), d(0.42, 0.68), d(0.04, 0.1)
    power, taper = d.of((9, 0.97), (d(2, 3), d(0.75, 0.9)), (2, 0.65))
    inner = half - rim
    radii = [0 * half, taper * half, half, inner, d(0.7, 0.85) * inner, 0 * half]
    basin = lathe(radii, [0, 0, high, high, 0.09, 0.09], [power] * 3 + [max(power / 2, 2.5)] * 3, 24)
    tap = np.array([[half[0] - 0.05, 0, high], [half[0] - 0.05, 0, high + 0.16], [half[0] - 0.2, 0, high + 0.14]])
    return [basin, tube(tap[:-1], tap[1:], 0.022)]


def bed(d):
    """Frame, mattress, blanket and pillows with a headboard; four posts in the wider style."""
    w, long, frame, thick, head = d(0.9, 1.9), d(1.85, 2.15), d(0.2, 0.45), d(0.16, 0.32), d(0.75, 1.3)
    parts = [
        box((0, 0, frame - 0.08), (w, long, 0.16)),
        legs(w - 0.1, long - 0.1, d.of(frame, 1.6), 0.04),
        cushion((0, 0, frame), (w - 0.04, long - 0.04, thick), 12),
        cushion((0, -0.2 * long, frame + 0.02), (w + 0.05, 0.58 * long, thick + 0.04), 14),
        box((0, long / 2 + 0.03, head / 2), (w + 0.08, 0.06, head)),
    ]
    return parts + [
        cushion((x, long / 2 - 0.28, frame + thick - 0.02), (min(0.7, 0.46 * w), 0.4, 0.16), 3)
        for x in ([-w / 4, w / 4] if w > 1.25 else [0])
    ]


def bookshelf(d):
    """Boards between two sides and a back, open in front, with books; on bare posts in the wider style."""
    w, h, depth, n, t = d(0.6, 1.4), d(1.1, 2.2), d(0.22, 0.42), int(d(3, 7)), 0.028
    level = np.linspace(0.07, h - t / 2, n + 1)
    walls = np.r_[box(pair(w / 2, 0, h / 2), (t, depth, h)), box((0, depth / 2, h / 2), (w, 0.012, h))]
    # each board carries a run of books, from somewhere on to its right end
    wide, tall = d.rng.uniform(0.025, 0.06, (n, 30)), d.rng.uniform(0.55, 0.9, (n, 30)) * (level[1] - level[0])
    x = np.cumsum(wide, axis=1) - wide / 2 + w * d.rng.uniform(-0.5, 0.6, (n, 1))
    centre = np.stack([x, np.full_like(x, 0.08 * depth), level[:-1, None] + tall / 2], axis=-1)
    size = np.stack([0.92 * wide, np.full_like(x, 0.75 * depth), tall], axis=-1)
    stay = x + wide / 2 < w / 2 - t
    return [
        box(level[:, None] * [0, 0, 1], (w, depth, t)),
        box(centre[stay], size[stay]),
        d.of(walls, walls, legs(w, depth, h, 0.022)),
    ]


def cabinet(d):
    """A closed box on feet, with a top; doors or drawers with knobs in front."""
    w, h, depth, base = d(0.5, 1.5), d(0.6, 1.8), d(0.38, 0.6), d(0.03, 0.16)
    columns, rows = d.of((2, 1), (1, 3), (2, 2), (1, 4), (2, 3), (3, 1))
    row, column = np.divmod(np.arange(columns * rows), columns)
    wide, tall = w / columns, (h - base) / rows
    front = np.stack([(column + 0.5) * wide - w / 2, 0 * row - 0.51 * depth, base + (row + 0.5) * tall], axis=1)
    # the knobs of a pair of doors are close to the gap between them, that of a drawer in its middle
    knob = front + np.outer((1 - 2 * (column % 2)) * (wide / 2 - 0.09) * (wide < 1.2 * tall), [1, 0, 0])
    return [
        box((0, 0, (h + base) / 2), (w, depth, h - base)),
        legs(w - 0.08, depth - 0.08, base),
        box((0, 0, h), (w + 0.06, depth + 0.06, 0.035)),
        box(front, (wide - 0.06, 0.04, tall - 0.06)),
        tube(knob, knob + [0, -0.08, 0], 0.025),
    ]


def chair(d):
    """Seat, leaning back, legs or a swivel foot, armrests at times; round backs in the wider style."""
    w, depth, h, t, high = d(0.38, 0.56), d(0.38, 0.54), d(0.4, 0.52), d(0.03, 0.1), d(0.32, 0.62)
    posts, up = pair(w / 2 - 0.02, 0, 0), np.array([0, 0, high])
    slats, oval = np.outer([0.3, 0.53, 0.77, 1], up), turn(cushion((0, 0, 0), (w, 0.8 * high, 0.05), 2), 90, 0)
    back = d.of(
        box(0.5 * up, (w, 0.04, high)),
        np.r_[box(slats, (w, 0.02, high / 7)), tube(posts, posts + up, 0.018)],
        np.r_[oval + 0.6 * up, tube(posts, posts + 0.5 * up, 0.018)],
    )
    post = tube((0, 0, 0.02), (0, 0, h), 0.03)
    stand = d.of(
        legs(w - 0.04, depth - 0.04, h, d(0.014, 0.028), d(0, 0.12)),
        np.r_[post, tube((0, 0, 0.09), circle(5, 0.3, 0.03), 0.025)],
        np.r_[post, lathe([0, 0.24, 0.2, 0], [0, 0, 0.03, 0.06])],
    )
    seat = cushion((0, 0, h - t / 2), (w, depth, t), d.of(20, 4, 2))
    arm, elbow = pair(w / 2, 0, h + 0.22), pair(w / 2, -0.4 * depth, h)
    rests = [box(arm, (0.05, 0.85 * depth, 0.03)), tube(elbow, elbow + [0, 0, 0.22], 0.015)]
    return [seat, stand, turn(back, -d(2, 16), 0) + [0, depth / 2 - 0.02, h]] + rests * (d.rng.random() < 0.4)


def lamp(d):
    """Floor, table or pendant lamp; tripod and arc in the wider style."""
    r, high, tall, waist, drop, taper = d(0.13, 0.22), d(0.16, 0.3), d(1.2, 1.7), d(0.04, 0.1), d(0.2, 0.8), d(0.45, 1)
    foot, up, low = lathe([0, 0.15, 0.14, 0], [0, 0, 0.025, 0.04]), [0, 0, tall], 0.2 * tall
    vase = lathe([0, 0.1, 0.1, 0.03, waist, waist, 0.02, 0], low * np.array([0, 0, 0.06, 0.1, 0.4, 0.7, 0.95, 1.3]))
    ceiling = lathe([0, 0.06, 0.06, 0], [tall, tall, tall + 0.04, tall + 0.04])
    angle = np.linspace(0, d(2.1, 2.7), 8)
    arm = np.r_[[[0, 0, 0]], np.stack([0.5 * np.cos(angle) - 0.5, 0 * angle, 1 + 0.6 * np.sin(angle)], axis=1)]
    # each style is a stem and the place of the shade
    stem, at = d.of(
        (np.r_[foot, tube((0, 0, 0), up, 0.018)], [0, 0, tall - 0.6 * high]),
        (vase, [0, 0, low]),
        (np.r_[tube((0, 0, drop), up, 0.01), ceiling], [0, 0, drop - 0.9 * high]),
        (tube(circle(3, 0.3), up, 0.016), [0, 0, tall - 0.6 * high]),
        (np.r_[foot, tube(arm[:-1], arm[1:], 0.016)], arm[-1] - [0, 0, 0.8 * high]),
    )
    shade = lathe([r, taper * r, 0.92 * taper * r, 0.92 * r, r], [0, high, high, 0, 0])  # open at both ends
    return [stem, shade + at]


def monitor(d):
    """A framed flat screen on a neck and a foot; in the wider style also with a picture tube behind."""
    w, h, t, gap = d(0.46, 0.76), d(0.26, 0.5), d(0.02, 0.05), d(0.06, 0.16)
    picture_tube = lathe(np.outer([0, 0.5, 0.5, 0.3, 0], [w, h]), np.array([0, 0, 0.2, 0.6, 0.62]) * w, 8)
    behind = d.of(box((0, t, -0.05 * h), (0.5 * w, t + 0.02, 0.5 * h)), turn(picture_tube, -90, 0))
    screen = np.r_[
        box((0, 0, 0), (w, t, h)),
        box(pair(w / 2, 0, 0), (0.025, t + 0.02, h)),
        behind,
        box([[0, 0, -h / 2], [0, 0, h / 2]], (w, t + 0.02, 0.025)),
    ]
    neck = box((0, 0.03, (gap + 0.3 * h) / 2), (d(0.05, 0.09), 0.03, gap + 0.3 * h))
    foot = cushion((0, 0.03, 0), (0.4 * w, 0.22, 0.025), 2 if d.rng.random() < 0.5 else 20)
    return [turn(screen, d(-8, 4), 0) + [0, 0, gap + h / 2], neck, foot]


def plant(d):
    """Leaves above a pot: bush, rosette or tree; sword leaves and palm in the wider style."""
    r, deep, rng = d(0.11, 0.2), d(0.16, 0.34), d.rng
    # number of leaves, stem, radius of the crown they start in, pitch; their length, width and droop
    n, stem, crown, pitch, length, width, droop = d.of(
        (60, d(0.1, 0.2), d(0.2, 0.3), (-0.7, 1.5), 0.17, 0.09, 0.2),
        (26, 0.02, 0.06, (0.5, 1.4), d(0.4, 0.65), 0.06, 0.38),
        (70, d(0.5, 0.9), d(0.2, 0.3), (-0.9, 1.5), 0.17, 0.09, 0.2),
        (16, 0.02, 0.07, (1.2, 1.6), d(0.5, 0.8), 0.08, 0.02),
        (24, d(0.4, 0.8), 0.02, (0.1, 1.3), d(0.35, 0.55), 0.08, 0.4),
    )
    heading, pitch = rng.uniform(0, 2 * np.pi, n), rng.uniform(*pitch, n)
    away = np.stack([np.cos(heading) * np.cos(pitch), np.sin(heading) * np.cos(pitch), np.sin(pitch)], axis=1)
    top = np.array([0, 0, 0.88 * deep + stem + 0.7 * crown])
    base = top + crown * away * rng.uniform(0.3, 1, (n, 1))
    pot = lathe(
        r * np.array([0, d(0.6, 0.95), 1, 1.1, 1.1, 0.95, 0.9, 0]),
        deep * np.array([0, 0, 0.85, 0.85, 1, 1, 0.88, 0.88]),
        d.of(2, 2, 9),
    )
    return [
        pot,
        tube((0, 0, 0.8 * deep), top, 0.022, 0.016),
        leaves(base, heading, pitch, length * rng.uniform(0.7, 1.1, n), width, droop),
    ]


def sofa(d):
    """Base, back, arms and cushions on feet; with a corner seat in the wider style."""
    w, depth, arm, t, foot = d(1.4, 2.4), d(0.75, 1.0), d(0.12, 0.26), d(0.14, 0.22), d(0.08, 0.18)
    seat, high, rise, n = d(0.32, 0.4), d(0.75, 1.0), d(0.56, 0.7), 3 if w > 1.85 else 2
    each, middle = (w - 2 * arm) / n, (seat + foot) / 2
    parts = [
        box((0, 0, middle), (w - 2 * arm, depth, seat - foot)),
        legs(w - 0.1, depth - 0.1, foot),
        box((0, depth / 2 - t / 2, (high + foot) / 2), (w - 2 * arm, t, high - foot)),
        box(pair((w - arm) / 2, 0, (rise + foot) / 2), (arm, depth, rise - foot)),
    ]
    upright = turn(cushion((0, 0, 0), (0.92 * each, high - seat - 0.1, 0.14), 6), 80, 0)
    for x in each * (np.arange(n) - (n - 1) / 2):
        parts += [
            cushion((x, -t / 2, seat), (0.94 * each, depth - t, 0.14), 8),
            upright + [x, depth / 2 - t - 0.02, (high + seat) / 2 + 0.08],
        ]
    x, reach = d.of(-1, 1) * (w / 2 - 0.4), d(0.5, 0.9)
    corner = np.r_[
        box((x, -depth / 2 - reach / 2, middle), (0.8, reach, seat - foot)),
        cushion((x, -depth / 2 - reach / 2, seat), (0.78, reach, 0.14), 8),
    ]
    return parts + d.of([], [], [corner])


def table(d):
    """A rectangular or round top on legs or a pedestal; in the wider style panels, trestles or drawers."""
    w, depth, h, t, power = d(0.8, 1.7), d(0.6, 1.0), d(0.45, 0.8), d(0.025, 0.06), d.of(20, 2, 20)
    w, lw, ld = (1.2 * depth, 0.8 * depth, 0.66 * depth) if power == 2 else (w, w - 0.1, depth - 0.1)
    far, near, up, bar = pair(lw / 2, ld / 2, 0), pair(lw / 2, -ld / 2, 0), [0, 0, h], pair(lw / 2, 0, h / 2)
    four = legs(lw, ld, h, d(0.022, 0.045), d(0, 0.1))
    stand = d.of(
        four,
        four,
        np.r_[tube((0, 0, 0.02), up, d(0.04, 0.08)), lathe([0, 0.3 * w, 0], [0, 0, 0.05])],
        np.r_[box(bar, (0.035, ld, h)), box((0, ld / 2, 0.7 * h), (lw, 0.02, 0.4 * h))],
        np.r_[tube(far, near + up, 0.03), tube(near, far + up, 0.03), tube(*bar, 0.025)],
        np.r_[four, box((0.32 * lw, 0, 0.72 * h), (0.3 * lw, 0.85 * ld, 0.5 * h))],
    )
    return [lathe(np.outer([0, 0.5, 0.5, 0], [w, depth]), [h, h, h + t, h + t], power, 24), stand]


MAKERS = (bathtub, bed, bookshelf, cabinet, chair, lamp, monitor, plant, sofa, table)


# -------------------------------------------------------------------------- domains
def build(label, wide, rng):
    """One object of class `label` (0..9) -> triangles (T, 3, 3); `wide` as in S."""
    triangles = np.concatenate(MAKERS[label](Draw(rng, wide)))
    return turn(triangles * (rng.uniform(0.75, 1.3, 3) if wide else 1), rng.uniform(-2, 2))


def exposure(points, normals, eye, cells=64):
    """What a camera at `eye`, aimed at 0, gets of each sample (n,): cos / distance², 0 if hidden."""
    ray, forward = points - eye, -eye / np.linalg.norm(eye)
    right = np.cross(forward, [0, 0, 1]) / np.linalg.norm(forward[:2])
    depth, distance = ray @ forward, np.sqrt(np.einsum("ij,ij->i", ray, ray))
    x, y = ray @ right / depth, ray @ np.cross(right, forward) / depth  # (n,) in the image
    cell = max(np.ptp(x), np.ptp(y)) / cells
    # a z-buffer with a border; a point also hides behind its cell's neighbours, as the samples leave holes
    wide = cells + 3
    pixel = ((x - x.min()) / cell).astype(int) * wide + ((y - y.min()) / cell).astype(int) + wide + 1
    nearest = np.full(wide * wide, np.inf)
    np.minimum.at(nearest, pixel, distance)
    for step in (1, wide):
        nearest = np.minimum(nearest, np.minimum(np.roll(nearest, step), np.roll(nearest, -step)))
    cosine = -np.einsum("ij,ij->i", ray, normals) / distance
    # a slanted surface is itself deeper two cells further, across or askew, so it gets that much slack
    slack = 3 * cell * distance / np.clip(cosine, 0.2, 1)
    return np.where(distance < nearest[pixel] + slack, np.maximum(cosine, 0), 0) / distance**2


def scan(triangles, rng, n=POINTS, noise=0.012):
    """Simulated depth scan -> points (n, 3) of radius about 1: what one to three views see of the object."""
    low, high = triangles.min((0, 1)), triangles.max((0, 1))
    middle, radius = (low + high) / 2, np.linalg.norm(high - low) / 2
    if rng.random() < 0.5:  # a patch of floor is left in
        patch = box((*rng.uniform(-0.2, 0.2, 2), -0.5), (*rng.uniform(0.5, 1.1, 2), 0.01))
        triangles = np.concatenate([triangles, middle + patch * (high - low)])
    points, normals, _ = sample((triangles - middle) / radius, 3 * n, rng)
    if rng.random() < 0.5:  # a half-space is cropped
        along = points @ rng.normal(size=3)
        keep = along <= np.quantile(along, rng.uniform(0.75, 1))
        points, normals = points[keep], normals[keep]
    # furniture stands against walls: the views lie in front of it, and share the points between them
    views, front, clouds = rng.integers(1, 4), rng.uniform(-50, 50), []
    for count in np.diff(np.linspace(0, n, views + 1).astype(int)):
        above = turn(np.array([0, -rng.uniform(2, 4), 0]), -rng.uniform(17, 52), 0)
        eye = turn(above, front + rng.uniform(-60, 60))
        cumulative = np.cumsum(exposure(points, normals, eye))
        seen = points[np.searchsorted(cumulative, rng.random(count) * cumulative[-1])]
        ray = (seen - eye) / np.linalg.norm(seen - eye, axis=1, keepdims=True)
        # range noise along the ray, and views that are registered imperfectly
        clouds.append(seen + noise * (rng.normal(size=(count, 1)) * ray + 0.8 * rng.normal(size=3)))
    return turn(np.concatenate(clouds), rng.uniform(0, 360))


# -------------------------------------------------------------------------- bodies
# degrees: arms raised sideways, arms swung, thighs swung, knees bent; girth; thinning upwards; noise
FIGURES = {
    "seg_F": ((15, 50), (-15, 15), (-10, 10), (0, 10), (0.9, 1.2), 0, 0.002),  # subjects who stand
    "seg_M": ((5, 30), (10, 50), (10, 30), (0, 15), (1.0, 1.5), 0, 0.004),  # walking, heavier
    "seg_A": ((60, 170), (-20, 30), (-15, 15), (0, 20), (0.85, 1.1), 1.5, 0.004),  # arms up, uneven
    "seg_S": ((0, 110), (-60, 60), (-30, 30), (0, 60), (1.05, 1.06), 0, 0.008),
}  # one subject, bending


def limb(swing, spread):
    """Unit vector of a limb hanging down, swung forward (to -y), then spread to the right (+x); degrees."""
    return turn(turn(np.array([0, 0, -1.0]), -swing, 0), -spread, 1)


def body(rng, arm, reach, stride, bend, girth):
    """A posed figure, hips at the origin -> triangles (T, 3, 3), part of each (T,); ranges as in FIGURES."""
    fat, tall, ball = rng.uniform(*girth), rng.uniform(0.92, 1.08), np.linspace(0, np.pi, 8)
    bend, stride, belly, lead = rng.uniform(*bend), rng.uniform(*stride), 0.7 + 0.3 * fat, rng.choice((-1, 1))
    width, depth = [0, 0.1, 0.17, 0.15 * fat, 0.18, 0.2, 0.06, 0], [0, 0.08, 0.12, 0.11 * fat, 0.13, 0.11, 0.06, 0]
    trunk = lathe(belly * np.c_[width, depth], tall * np.array([-0.1, -0.1, 0, 0.2, 0.4, 0.53, 0.6, 0.6]))
    parts = [(3, trunk), (7, lathe(np.outer(np.sin(ball), [0.085, 0.1]), 0.71 * tall - 0.125 * np.cos(ball)))]
    for side in (-1, 1):
        spread, raised, ahead = side * rng.uniform(3, 14), side * rng.uniform(*arm), side * lead
        # an arm swings against its leg; the knee behind folds more
        thigh, forward = ahead * stride + bend, -ahead * rng.uniform(*reach)
        shin = thigh - 1.6 * bend - 0.5 * max(0, -ahead * stride) - rng.uniform(0, 10)
        hip, shoulder = np.array([side * 0.09, 0, 0]), np.array([side * 0.2 * belly, 0, 0.5 * tall])
        knee = hip + 0.4 * tall * limb(thigh, spread)
        ankle = knee + 0.38 * tall * limb(shin, spread)
        elbow = shoulder + 0.27 * limb(forward, raised)
        lower = limb(forward + rng.uniform(5, 60), raised)
        wrist = elbow + 0.24 * lower
        parts += [
            (0, tube(ankle + [0, 0.05, -0.04], ankle + [side * 0.03, -0.17, -0.05], 0.04, 0.045, 0.03)),
            (1, tube(knee, ankle, 0.055 * fat, 0.06 * fat, 0.036)),
            (2, tube(hip, knee, 0.09 * fat, 0.085 * fat, 0.06 * fat)),
            (4, tube(shoulder, elbow, 0.05 * fat, 0.05 * fat, 0.042)),
            (5, tube(elbow, wrist, 0.043, 0.045, 0.028)),
            (6, tube(wrist, wrist + 0.17 * lower, 0.03, 0.045, 0.035, 0.015)),
        ]
    # the trunk and what hangs on it lean forward with the bent knees
    pieces = [turn(piece, 0.6 * bend, 0) if part > 2 else piece for part, piece in parts]
    return np.concatenate(pieces), np.repeat([part for part, _ in parts], [len(piece) for piece in pieces])


def figure(key, rng):
    """One labelled body of a seg_* domain, centred, within [-1, 1]^3 -> points (2048, 3), labels (2048,)."""
    *ranges, thinning, noise = FIGURES[key]
    triangles, part = body(rng, *ranges)
    points, _, face = sample(triangles, 2 * POINTS, rng)
    # the smallest weighted exponentials: a draw without replacement, rarer further up
    chosen = np.argsort(rng.exponential(size=len(points)) * np.exp(thinning * points[:, 2]))[:POINTS]
    points = points[chosen] + noise * rng.normal(size=(POINTS, 3))
    middle = (points.min(0) + points.max(0)) / 2
    return turn(0.85 * (points - middle), rng.uniform(-20, 20)), part[face[chosen]]


def size(key, split):
    """How many clouds make(key, split) gives."""
    return BODIES[split] if key in FIGURES else sum(COUNTS[key]) * (2 if split == "train" else 1)


def make(key, split):
    """The clouds of one domain and split, the same on every call and in a fixed shuffled order.

    M, S, SC with train, test: points (n, 2048, 3) float32 and labels (n,) int64 of pointda.CLASSES, n = 400, 200.
    seg_F, seg_M, seg_A, seg_S with train, val, test: labels (n, 2048) of pointsegda.CLASSES, n = 40, 10, 20.
    Raises UserError for any other key or split.
    """
    keys, splits = [*COUNTS, *FIGURES], list(BODIES)
    if key not in keys or split not in splits or (key in COUNTS and split == "val"):
        raise UserError(f"no built-in shapes {key} {split}: use one of {keys}, train or test (seg_*: or val)")
    # one seed for each cloud, so that no draw is shared by two domains or splits
    seed = [keys.index(key), splits.index(split)]
    if key in FIGURES:
        clouds, labels = zip(*(figure(key, np.random.default_rng([*seed, i])) for i in range(BODIES[split])))
        return np.stack(clouds).astype(np.float32), np.stack(labels).astype(np.int64)
    clouds, labels = zip(*((points, label) for _, label, _, _, points in built([key], split)))
    return np.stack(clouds).astype(np.float32), np.array(labels)


def built(domains, split):
    """Yield (domain, label, number, triangles, points) of every object of M, S or SC; see make."""
    for key in domains:
        seed = [list(COUNTS).index(key), list(BODIES).index(split)]  # one for each cloud: no draw is shared
        labels = np.repeat(np.arange(len(MAKERS)), np.multiply(COUNTS[key], 2 if split == "train" else 1))
        for i, label in enumerate(np.random.default_rng(seed).permutation(labels)):
            rng = np.random.default_rng([*seed, i + 1])  # a trailing 0 would repeat the seed of the labels
            triangles = build(label, key == "S" or key == "SC" and rng.random() < 0.5, rng)
            yield key, label, i, triangles, scan(triangles, rng) if key == "SC" else sample(triangles, POINTS, rng)[0]
