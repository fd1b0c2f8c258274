"""Pages to look at: what stands in them, and what a real Chromium, without a network, makes of them."""

import base64
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from fixtures import refusal
from PIL import Image

from engine.picture import LEVELS, three_levels
from extras import page
from saliency import skewness

HOSTILE = """</script></title><img src=x onerror="window.hacked = 1">'&lt;b>{0}"""
CLASSES = ["chair", HOSTILE, "lamp"]
N = 300


def cloud(seed=0, n=N):
    """A box of points and a map that rises towards its top."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (n, 3)) * (0.4, 0.4, 0.8)
    return points.astype(np.float32), np.exp(4 * points[:, 2]) - 1


def write_cloud(path, name="scan.ply", seed=0, saliency=None, **more):
    points, S = cloud(seed)
    probabilities = torch.tensor([0.25, 0.7, 0.05])
    page.cloud_page(path, name, points, S if saliency is None else saliency, probabilities, CLASSES, **more)
    return path


class Reader(HTMLParser):
    """The elements of a page, the texts outside of scripts, and the scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.scripts = [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        (self.scripts if self.elements[-1][0] == "script" and self.cdata_elem else self.texts).append(data)

    def numbers(self):
        """What the page hands to its script; no NaN, which browsers refuse."""
        refuse = lambda word: pytest.fail(f"{word} is no JSON")
        return json.loads(next(s for s in self.scripts if s.startswith('{"scale"')), parse_constant=refuse)


# ---------------------------------------------------------------- what stands in them
def test_what_a_user_names_is_text(tmp_path):
    """Classes, file names, notes, checkpoints that look like html are shown as they are; scripts hold none of them."""
    write_cloud(tmp_path / "one.html", HOSTILE, checkpoint=HOSTILE, notes=[HOSTILE], index=HOSTILE)
    rows = [{"file": HOSTILE, "class": HOSTILE, "note": HOSTILE}, {"file": "bad\udcff", "class": "", "note": HOSTILE}]
    page.index_page(tmp_path / "index.html", rows, {HOSTILE: (f"javascript:{HOSTILE}", "data:,")}, HOSTILE)
    for name, shown in (("one.html", 7), ("index.html", 6)):
        found = Reader(tmp_path / name)
        assert (
            sum(text.strip() in (HOSTILE, f"{HOSTILE}: {HOSTILE}") or HOSTILE in text for text in found.texts) == shown
        )
        assert all("onerror" not in attributes for _, attributes in found.elements)
        assert not any("hacked" in script for script in found.scripts)
        for address in (a["href"] for tag, a in found.elements if tag == "a"):
            assert re.fullmatch(r"[\w%/.~-]+", address)  # no scheme, nothing that ends an attribute


def test_the_numbers_of_a_page(tmp_path):
    """Colours are symmetric about 0, levels are the picture's, and the histogram counts every point."""
    points, S = cloud()
    found = Reader(write_cloud(tmp_path / "one.html", notes=["a note"], index="index.html"))
    (drawn,) = found.numbers()["panels"]
    assert drawn["level"] == three_levels(torch.from_numpy(S)).tolist() and len(drawn["s"]) == N
    assert sum(drawn["bins"]["count"]) == N and drawn["limit"] == np.quantile(np.abs(S), page.CLIP)
    assert np.linalg.norm(np.transpose(drawn["points"]), axis=1).max() <= 1.002
    above = [c for level, c in zip(drawn["bins"]["level"], drawn["bins"]["count"]) if level == 2]
    assert sum(above) == drawn["level"].count(2)
    for text in ("70.0%", "25.0%", f"Skewness {skewness(torch.tensor(S)[None]).item():+.2f}", "a note", str(N)):
        assert any(text in t for t in found.texts), text


@pytest.mark.parametrize("kind", ["flat", "zero", "nan", "tiny"])
def test_odd_maps_have_a_page(tmp_path, kind):
    S = {"flat": np.full(N, 2.0), "zero": np.zeros(N), "nan": np.full(N, np.nan), "tiny": cloud()[1] * 1e-42}[kind]
    found = Reader(write_cloud(tmp_path / "one.html", saliency=torch.tensor(S), index="index.html"))
    assert sum(found.numbers()["panels"][0]["bins"]["count"]) == N
    assert any("flat" in text for text in found.texts) == (kind != "tiny")
    page.thumbnail(np.zeros((N, 3)), S)  # nor does a cloud that is one point fail


def test_skewness_in_words():
    said = [page.in_words(sk) for sk in (3.0, 0.7, 0.1, -0.7, -3.0, 0.0)]
    assert len(set(said)) == 6
    assert all("above" in text for text in said[:2]) and all("below" in text for text in said[3:5])


def test_a_thumbnail_shows_what_stands_out():
    """Small, and the one red point is on top."""
    points, S = cloud(n=1024)
    S = np.zeros(1024)
    S[points[:, 1].argmax()] = 1  # the farthest from the eye
    address = page.thumbnail(points, S)
    picture = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")
    red = (np.asarray(picture) == page.SCALE[2]).all(-1).sum()
    assert picture.size == (page.PIXELS, page.PIXELS) and len(address) < 3000 and red == 9


def test_pages_need_plotly_and_are_written_whole(tmp_path, monkeypatch):
    """Without plotly one line with the remedy, and no file; the pages of a folder do not need it, and are small."""
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    points, S = cloud()
    calls = (
        lambda: write_cloud(tmp_path / "one.html"),
        lambda: page.share_script(tmp_path),
        lambda: page.lesson_page(tmp_path / "lesson.html", "title", [("high", points, S, "a sentence")]),
    )
    for call in calls:
        assert "pip install -r requirements-extra.txt" in refusal(call)
    assert not list(tmp_path.iterdir())
    assert write_cloud(tmp_path / "one.html", index="index.html").stat().st_size < 30_000
    refusal(lambda: write_cloud(tmp_path / "missing" / "one.html", index="index.html"))


# ---------------------------------------------------------------- what a browser makes of them
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --enable-unsafe-swiftshader --use-gl=angle
    --use-angle=swiftshader --window-size=800,600"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless Chromium that finds no host."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: requirements-extra.txt")
    pytest.importorskip("plotly", reason="needs plotly: requirements-extra.txt")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    for flag in (*FLAGS.split(), profile, "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_script_timeout(60)
    browser.get("about:blank")  # its own first page is none of ours
    yield browser
    browser.quit()


class Tab:
    """One browser, and what the tests ask of it."""

    def __init__(self, browser):
        self.browser = browser
        self.run = browser.execute_script

    def open(self, path):
        self.browser.get(path.as_uri())

    def until(self, condition, what):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 60, 0.05).until(lambda _: condition(), what)

    def eye(self, i=0):
        return self.run(f"const e = scenes[{i}].layout.scene.camera.eye; return [e.x, e.y, e.z]")

    def find(self, css):
        return self.browser.find_element("css selector", css)

    def pixels(self):
        """The scene as it is seen, (h, w, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.find(".scene").screenshot_as_png)).convert("RGB"))

    def frames(self, n=10):
        """Let n frames pass."""
        script = "let [n, end] = arguments; (function f() { n-- ? requestAnimationFrame(f) : end() })()"
        self.browser.execute_async_script(script, n)

    def drag(self):
        """Across the scene, with frames on the way, as a hand would."""
        from selenium.webdriver import ActionChains

        hand = lambda: ActionChains(self.browser, 50)
        hand().click_and_hold(self.find(".scene")).perform()
        for _ in range(3):
            hand().move_by_offset(40, 15).perform()
            self.frames()
        hand().release().perform()


@pytest.fixture
def tab(chromium):
    """A tab; after the test the page must have had no error, and have asked for nothing but files."""
    for log in ("browser", "performance"):
        chromium.get_log(log)
    yield Tab(chromium)
    assert not [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"]
    events = (json.loads(line["message"])["message"] for line in chromium.get_log("performance"))
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and all(re.match("file:|data:|blob:", url) for url in asked), asked


def colours(pixels):
    return {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}


def test_a_cloud_turns_and_is_recoloured(tab, tmp_path):
    """By itself until the button or a drag stops it; the switch changes the colours and leaves the eye where it is."""
    tab.open(write_cloud(tmp_path / "one.html"))
    start = tab.until(tab.eye, "a scene")
    tab.until(lambda: tab.eye() != start, "turning by itself")
    assert tab.eye()[2] == start[2] and np.isclose(np.linalg.norm(tab.eye()), np.linalg.norm(start))

    button = tab.find("#turn")
    assert button.text == "Stop turning"
    button.click()
    stopped = tab.eye()
    tab.frames()
    assert tab.eye() == stopped and button.text == "Turn"
    before = tab.pixels()
    marks = tab.run(
        "return [scenes[0], histograms[0]].map(plot => [plot.data[0].marker.cmin, plot.data[0].marker.cmax])"
    )
    assert all(-low == high > 0 for low, high in marks)
    assert {tuple(page.SCALE[2].tolist())} < colours(before) and len(colours(before)) > 50

    tab.run("choices[1].click()")
    assert tab.run("return scenes[0].data[0].marker.color") == three_levels(torch.from_numpy(cloud()[1])).tolist()
    tab.until(lambda: {tuple(rgb) for rgb in LEVELS.tolist()} <= colours(tab.pixels()), "three levels")
    assert tab.run("return [...document.querySelectorAll('.key')].map(key => key.hidden)") == [True, False]
    tab.run("choices[0].click()")
    tab.until(lambda: (tab.pixels() == before).all(), "the same picture as before")

    button.click()
    tab.until(lambda: tab.eye() != stopped, "turning again")
    tab.drag()
    tab.until(lambda: abs(tab.eye()[2] - stopped[2]) > 0.01, "the eye where the drag left it")
    dragged = tab.eye()
    tab.frames()
    assert tab.eye() == dragged and button.text == "Turn" and (tab.pixels() != before).any()


def test_a_folder_is_a_table_that_sorts(tab, tmp_path):
    """Numbers as numbers, what is empty below; a row leads to its page, which shares plotly, and back."""
    page.share_script(tmp_path)
    rows = [
        {"file": f"scan {i}.ply", "class": HOSTILE, "skewness": sk, "points": 8 + i, "note": HOSTILE}
        for i, sk in enumerate((-1.0, 10.25, -3.5))
    ]
    rows.append({"file": "unread", "class": "", "skewness": "", "points": "", "note": "no cloud"})
    pages = {}
    for i, row in enumerate(rows[:3]):
        name = f"100% #{i}?.html"
        write_cloud(tmp_path / name, row["file"], i, notes=[HOSTILE], index=page.INDEX)
        pages[row["file"]] = name, page.thumbnail(*cloud(i))
    page.index_page(tmp_path / page.INDEX, rows, pages, HOSTILE)
    tab.open(tmp_path / page.INDEX)
    column = lambda i: tab.run(f"return [...document.querySelectorAll('tbody tr')].map(r => r.cells[{i}].textContent)")
    heads = tab.browser.find_elements("css selector", "th button")
    for head, expected in (
        (2, ["-3.500", "-1.000", "10.250", ""]),
        (2, ["10.250", "-1.000", "-3.500", ""]),
        (3, ["8", "9", "10", ""]),
        (0, ["scan 0.ply", "scan 1.ply", "scan 2.ply", "unread"]),
    ):
        heads[head].click()
        assert column(head) == expected
    assert tab.run("return [...document.querySelectorAll('th')].map(h => h.ariaSort)") == ["ascending", *[None] * 4]
    assert tab.find("h1").text == tab.browser.title == column(4)[0] == HOSTILE
    assert tab.run(
        "return [...document.images].every(i => i.naturalWidth) && document.images.length === 3 && !window.hacked"
    )

    tab.browser.find_elements("css selector", "tbody tr")[2].click()
    tab.until(lambda: tab.find("h1").text == "scan 2.ply", "the page of the row")
    tab.until(tab.eye, "its scene")
    assert tab.find("h2").text == f"{HOSTILE}, 70.0%" and tab.run("return window.hacked") is None
    tab.find(".controls a").click()
    tab.until(lambda: tab.find("h1").text == HOSTILE, "the table again")


def test_a_lesson_turns_side_by_side(tab, tmp_path):
    (points, S), (other, _) = cloud(0), cloud(1)
    panels = [("High", points, S, "Its class rests on few points."), ("Low", other, other[:, 0], "On many.")]
    page.lesson_page(tmp_path / "lesson.html", "Where does a class rest?", panels)
    tab.open(tmp_path / "lesson.html")
    starts = tab.until(lambda: [tab.eye(0), tab.eye(1)], "two scenes")
    tab.until(lambda: tab.eye(0) != starts[0] and tab.eye(1) != starts[1], "both turning")
    left, right = tab.run("return scenes.map(scene => scene.getBoundingClientRect().top)")
    assert left == right


def test_a_phone_shows_every_page_whole_and_still_where_asked(tab, tmp_path):
    """Nothing is wider than the screen; who wants less motion has a cloud that does not turn by itself."""
    write_cloud(tmp_path / "one.html", "a_long_name_" * 9, notes=["x" * 99])
    page.index_page(tmp_path / "index.html", [{"file": "y" * 99, "note": "z" * 99, "points": 1}], {})
    wish = lambda value: {"features": [{"name": "prefers-reduced-motion", "value": value}]}
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    try:
        tab.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish("reduce"))
        for name in ("index.html", "one.html"):
            tab.open(tmp_path / name)
            assert tab.run("return document.documentElement.scrollWidth") <= 360, name
        start = tab.eye()
        tab.frames()
        assert tab.eye() == start and tab.find("#turn").text == "Turn"
    finally:
        tab.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish(""))
