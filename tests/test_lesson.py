"""The sheet for a lecture: it says what the numbers say, and can be read from the last row."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures import command, refusal
from matplotlib import rc_context
from matplotlib.text import Text

from datasets.pointda import CLASSES
from extras import page
from paper import lesson

ACROSS, BELOW, ABOVE, UNKNOWN = (-0.2, 0.3), (-0.4, -0.1), (0.1, 0.4), (math.nan, math.nan)


def trend(interval):
    found = {"spearman": 0.1, "spearman_interval": interval}
    return lesson.trend_text(
        found | {f"spearman_of_differences{end}": v for end, v in (("", 0), ("_interval", ACROSS))}
    )


def test_a_sentence_follows_its_interval():
    """On one side of zero or of chance, or not seen; without an interval nothing is claimed."""
    assert "+0.10, falls;" in trend(BELOW) and "+0.10, rises;" in trend(ABOVE)
    assert trend(ACROSS).count("no trend seen") == trend(UNKNOWN).count("no trend seen") == 2
    says = lambda low, high: lesson.chance_text({"auc": (low + high) / 2, "auc_interval": (low, high)})
    assert "better than chance" in says(0.51, 0.6) and "worse than chance" in says(0.3, 0.49)
    assert "not seen to beat chance" in says(0.4, 0.6) and "Not computed" in says(math.nan, math.nan)


@pytest.fixture
def sheet():
    """A figure of made-up numbers with the longest sentences."""
    clouds = torch.randn(10, 2048, 3, generator=torch.Generator().manual_seed(0)) / 4
    domains = [
        SimpleNamespace(key=key, test=clouds, test_labels=torch.arange(10), classes=CLASSES) for key in ("S", "SC")
    ]
    level = torch.zeros(1024, dtype=torch.long)
    level[:3], level[3:9] = 2, 1
    maps = (
        [(clouds[0, :1024], level), (clouds[1, :1024], 2 - level)],
        ["bookshelf, skewness +19.47", "monitor, skewness -17.53"],
    )
    target = [([0, 175, 350], [0.1, 0.5, accuracy]) for accuracy in (0.55, 0.61)]
    steps = np.arange(35)
    series = {"step": steps, "skewness_eval": steps / 10, "cos": np.sin(steps)}
    found = {f"spearman{end}": -0.12 for end in ("", "_of_differences")}
    found |= {f"{name}_interval": ACROSS for name in found}
    bars = {name: {"auc": 0.5, "auc_interval": (0.42, 0.58)} for name in lesson.BARS}
    with rc_context({"font.size": 14}):
        figure = lesson.draw_lesson(
            (domains, maps, target, steps - 9.0, (series, found), bars), 0.7, "one line\ntwo lines", "red"
        )
        figure.draw_without_rendering()
    return figure


def test_the_sheet_can_be_projected(sheet):
    """16:9, no text below 14 pt, no sentence over another or out of the page."""
    assert tuple(sheet.get_size_inches()) == (16, 9)
    texts = [text for text in sheet.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 14 and len(texts) > 30
    sentences = [text for axes in sheet.axes for text in (*axes.texts, axes.title) if text.get_text()]
    boxes = [text.get_window_extent() for text in (sheet._suptitle, *sentences)]
    assert all(sheet.bbox.containsx(box.x0) and sheet.bbox.containsx(box.x1) for box in boxes)
    assert all(sheet.bbox.containsy(box.y0) and sheet.bbox.containsy(box.y1) for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_rare_levels_are_large_and_in_front(sheet):
    """Three red points of 1024 are found from afar, and so are three blue ones among red."""
    high, low = (axes for axes in sheet.axes if axes.get_title() in ("High skewness", "Low skewness"))
    for axes, rare in ((high, 2), (low, 0)):
        *_, last = axes.collections
        assert np.allclose(last.get_facecolor()[0, :3], lesson.LEVELS[rare] / 255)
        assert last.get_sizes()[0] > 10 * axes.collections[0].get_sizes()[0]


def test_the_maps_become_a_page(tmp_path, monkeypatch):
    """Both clouds with their captions, from the file that the lesson leaves; any other file is refused."""
    clouds = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    lesson.keep_maps(tmp_path / "maps.npz", [(c, c[:, 0]) for c in clouds], ["a <chair>", "a lamp"], "built-in shapes")
    monkeypatch.setattr(page, "plotly_js", lambda: "")
    command(page.main, tmp_path / "maps.npz", tmp_path / "lesson.html")
    html = (tmp_path / "lesson.html").read_text()
    assert "A a &lt;chair&gt;" in html and html.count('class="scene"') == 2 and "built-in shapes" in html
    assert "no maps of a lesson" in refusal(lambda: command(page.main, tmp_path / "lesson.html", tmp_path / "x.html"))
