"""The built-in shapes: the promised arrays, closed surfaces, true self-occlusion, a shift between domains."""

import functools

import numpy as np
import pytest

from datasets import shapes
from datasets.pointda import CLASSES
from engine.base import UserError

make = functools.cache(shapes.make)
SETS = [(key, split) for key in shapes.COUNTS for split in ("train", "test")]
BODIES = [(key, split) for key in shapes.FIGURES for split in shapes.BODIES]


def ball(radius=1.0, rings=25):
    """A closed sphere of triangles."""
    angle = np.linspace(0, np.pi, rings)
    return shapes.lathe(radius * np.sin(angle), -radius * np.cos(angle), sides=32)


@pytest.mark.parametrize("key, split", SETS)
def test_objects_have_the_promised_arrays(key, split):
    """400 or 200 clouds of 2048 finite points, every class present, at least five of each in test."""
    points, labels = make(key, split)
    n = 400 if split == "train" else 200
    assert points.shape == (n, 2048, 3) and points.dtype == np.float32
    assert labels.shape == (n,) and labels.dtype == np.int64
    assert np.isfinite(points).all() and np.ptp(points, axis=1).min() > 0.01
    assert np.array_equal(np.bincount(labels), np.array(shapes.COUNTS[key]) * (n // 200))
    assert np.bincount(labels, minlength=len(CLASSES)).min() >= 5
    assert [maker.__name__ for maker in shapes.MAKERS] == list(CLASSES) and shapes.size(key, split) == n


def test_only_m_is_balanced():
    """M has as many of each class; S and SC differ from it and from each other."""
    counts = {key: np.bincount(make(key, "test")[1]) for key in shapes.COUNTS}
    assert np.ptp(counts["M"]) == 0 and np.ptp(counts["S"]) > 20 and np.ptp(counts["SC"]) > 20
    assert not np.array_equal(counts["S"], counts["SC"])


@pytest.mark.parametrize("key, split", BODIES)
def test_bodies_show_all_eight_parts(key, split):
    """Every figure fits in [-1, 1]^3 and has points of each part."""
    points, labels = make(key, split)
    assert points.shape == (shapes.size(key, split), 2048, 3) and points.dtype == np.float32
    assert labels.shape == points.shape[:2] and labels.dtype == np.int64
    assert np.isfinite(points).all() and np.abs(points).max() <= 1
    assert all(np.bincount(body, minlength=8).min() >= 10 and body.max() == 7 for body in labels)


def test_standing_bodies_have_their_parts_in_order():
    """From the floor up: foot, leg, thigh, torso, head."""
    points, labels = make("seg_F", "val")
    for body, part in zip(points, labels):
        height = [body[part == p, 2].mean() for p in (0, 1, 2, 3, 7)]
        assert np.all(np.diff(height) > 0)


@pytest.mark.parametrize("key, split", [("M", "test"), ("SC", "test"), ("seg_A", "val")])
def test_every_call_gives_the_same_clouds(key, split):
    """Nothing depends on earlier calls or on numpy's global generator."""
    points, labels = make(key, split)
    np.random.seed(7)
    again, labels_again = shapes.make(key, split)
    assert np.array_equal(points, again) and np.array_equal(labels, labels_again)


def test_no_cloud_is_drawn_twice():
    """Splits and domains are disjoint draws, also up to scale and place."""
    seen = set()
    for key, split in SETS:
        clouds = make(key, split)[0]
        extent = np.ptp(clouds, axis=1)
        seen |= {tuple(np.round(e / e.max(), 5)) for e in extent.astype(float)}
    assert len(seen) == sum(len(make(*names)[1]) for names in SETS)


@pytest.mark.parametrize("key, split", [("X", "train"), ("M", "val"), ("seg_F", "all")])
def test_unknown_names_are_refused(key, split):
    """The message names what was asked for."""
    with pytest.raises(UserError, match=f"{key} {split}"):
        shapes.make(key, split)


def volume(triangles):
    """Enclosed volume, positive where the faces are wound outwards (divergence theorem)."""
    a, b, c = triangles.transpose(1, 0, 2)
    return (a * np.cross(b, c)).sum() / 6


def test_primitives_enclose_their_volume():
    """Box, bar, prism and sphere against their formulas: closed, and wound outwards."""
    octagon = 8 / 2 * np.sin(2 * np.pi / 8)
    assert np.isclose(volume(shapes.box((3, -1, 2), (1, 2, 3))), 6)
    assert np.isclose(volume(shapes.tube((1, 2, 3), (1, 5, 7), 0.2)), octagon * 0.2**2 * 5)
    bars = shapes.tube([[0, 0, 0], [4, 0, 0]], [[0, 0, 1], [4, 3, 0]], 0.1)
    assert np.isclose(volume(bars), octagon * 0.1**2 * (1 + 3))
    assert np.isclose(volume(ball()), 4 / 3 * np.pi, rtol=0.02)
    assert np.isclose(volume(shapes.turn(shapes.box((1, 2, 3), (1, 2, 3)), 40, 0)), 6)


@pytest.mark.parametrize("label", range(10))
@pytest.mark.parametrize("wide", [False, True])
def test_every_surface_is_closed(label, wide):
    """The area vectors of a closed or two-sided surface sum to zero: no object misses a wall."""
    for seed in range(8):
        a, b, c = shapes.build(label, wide, np.random.default_rng(seed)).transpose(1, 0, 2)
        area = np.cross(b - a, c - a)
        assert np.abs(area.sum(0)).max() < 1e-9 * np.abs(area).sum()


def test_samples_are_uniform_over_the_area():
    """The six faces of a box get points by their area, with the normals of their faces."""
    points, normals, _ = shapes.sample(shapes.box((0, 0, 0), (1, 2, 4)), 20000, np.random.default_rng(0))
    half = np.array([0.5, 1, 2])
    for axis, area in enumerate((8, 4, 2)):
        for sign in (-1, 1):
            on = np.isclose(points[:, axis], sign * half[axis])
            share = area / 28
            assert abs(on.mean() - share) < 5 * np.sqrt(share / 20000)
            assert np.allclose(normals[on & (normals[:, axis] != 0), axis], sign)
    assert np.all(np.abs(points) <= half + 1e-9)


@pytest.mark.parametrize("solid", [ball(), shapes.box((0, 0, 0), (1.5, 0.7, 1))], ids=["sphere", "box"])
@pytest.mark.parametrize("eye", [(0, -3, 1), (2, -2, 2), (2.5, 1, 0.5)])
def test_a_convex_solid_shows_exactly_the_side_that_faces_the_camera(solid, eye):
    """Points that face away get nothing; points that clearly face the camera are hidden by nothing."""
    points, normals, _ = shapes.sample(solid, 6000, np.random.default_rng(1))
    distance = np.linalg.norm(eye - points, axis=1)
    facing = ((eye - points) * normals).sum(1) / distance
    weight = shapes.exposure(points, normals, np.array(eye, float))
    assert np.all(weight[facing <= 0] == 0)
    assert (weight[facing > 0.3] > 0).mean() > 0.99
    assert np.allclose(weight[weight > 0], (facing / distance**2)[weight > 0])


def test_a_plate_hides_what_is_behind_it():
    """A ball in the shadow of a plate gets nothing, and is seen once the plate is gone."""
    plate = shapes.sample(shapes.box((0, -1, 0), (2, 0.05, 2)), 4000, np.random.default_rng(2))
    hidden = shapes.sample(ball(0.3), 2000, np.random.default_rng(3))
    points, normals = (np.concatenate([p, h]) for p, h in zip(plate[:2], hidden[:2]))
    eye = np.array([0, -4.0, 0.1])
    assert np.all(shapes.exposure(points, normals, eye)[4000:] == 0)
    assert (shapes.exposure(*hidden[:2], eye) > 0).mean() > 0.3


def test_a_scan_misses_the_back_that_a_clean_cloud_has():
    """Around a sphere's waist a noiseless scan leaves a wide gap; what it returns lies on the surface."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scanned, clean = shapes.scan(ball(), rng, noise=0.0), shapes.sample(ball() / np.sqrt(3), 2048, rng)[0]
        gaps = []
        for cloud in (scanned, clean):
            waist = cloud[np.abs(cloud[:, 2]) < 0.2]  # the floor patch is lower
            azimuth = np.sort(np.arctan2(waist[:, 1], waist[:, 0]))
            gaps.append(np.degrees(np.diff(azimuth, append=azimuth[0] + 2 * np.pi).max()))
            assert np.allclose(np.linalg.norm(waist, axis=1), 1 / np.sqrt(3), rtol=0.02)
        assert gaps[0] > 60 > 10 > gaps[1]


def descriptor(points):
    """Sorted heights and sorted distances from the vertical axis (n, 128): blind to rotation about z."""
    points = points - points.mean(1, keepdims=True)
    points = points / np.linalg.norm(points, axis=2).max(1)[:, None, None]
    radius = np.linalg.norm(points[..., :2], axis=2)
    return np.concatenate([np.sort(points[..., 2])[:, ::32], np.sort(radius)[:, ::32]], axis=1)


def test_the_domains_are_shifted_apart():
    """Nearest neighbours in M name M's test clouds, fewer of S's and fewer still of the scans."""
    train, labels = descriptor(make("M", "train")[0]), make("M", "train")[1]
    accuracy = {}
    for key in shapes.COUNTS:
        points, truth = make(key, "test")
        distance = ((descriptor(points)[:, None] - train) ** 2).sum(-1)
        accuracy[key] = (labels[distance.argmin(1)] == truth).mean()
    assert accuracy["M"] > 0.95 > accuracy["S"] > accuracy["SC"] > 0.3
