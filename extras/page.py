"""Something to look at in a browser: a cloud that turns, coloured by its saliency map, and a table of many clouds.

cloud_page(path, name, points, saliency, probabilities, classes)    # one cloud; plotly is inside, 5 MB
index_page(folder / INDEX, rows, {file: (page, thumbnail)})         # many, whose pages read plotly from the folder
lesson_page(path, title, panels)                                    # a few side by side, for a lecture
python -m extras.page lesson-maps.npz lesson.html                   # that of `make lesson HTML=1`

A page loads nothing from a network. File names, classes and notes may hold anything: they pass `text` or `link` and
never reach a script, which is given numbers alone.
"""

import base64
import html
import io
import json
import math
import os
from pathlib import Path
from urllib.parse import quote

import engine  # noqa: F401, I001 - first: how torch's threads wait
import numpy as np
import torch
from PIL import Image

from engine.base import UserError, cli, write_atomically
from engine.flags import Parser
from engine.picture import LEVELS, three_levels
from saliency import skewness

INDEX, SCRIPT = "index.html", "plotly.min.js"  # what the pages of a folder share
SCALE = np.array([[33, 92, 175], [214, 214, 214], [205, 32, 40]])  # below 0, 0, above 0
CLIP = 0.98  # colours end at this quantile of |s|: one point far out would leave all others grey
BINS, PIXELS = 45, 72  # of a histogram, a multiple of three; of a thumbnail
VIEW = np.array([[0.866, 0.5, 0], [-0.171, 0.296, 0.94]])  # right and up, seen as in engine/picture.scatter

STYLE = """
*{box-sizing:border-box} [hidden]{display:none!important} a{color:#0b57a4} dt{color:#525b66} body{background:#fff}
body{margin:0 auto;padding:.8rem 1.2rem;max-width:1500px;font:15px/1.4 system-ui,sans-serif;color:#1c2128}
h1{font-size:1.25rem} h2{font-size:1.1rem} h1,h2,p,dd{margin:0} body{overflow-wrap:anywhere} .n{text-align:right}
button{font:inherit;padding:.2rem .8rem;border:1px solid #6b7480;border-radius:4px;background:#f4f6f8;color:inherit}
.controls{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;align-items:center;margin:.4rem 0 .6rem} #turn{min-width:8rem}
.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:4px;margin:0 .4rem 0 .8rem} .key .scale{width:8rem}
.cloud{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:.6rem 1.5rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem 1.5rem}
.scene{height:calc(100vh - 6.5rem);min-height:280px;background:#f4f6f8} .panels .scene{height:calc(100vh - 21rem)}
.bars{display:grid;grid-template-columns:fit-content(45%) 1fr 4rem;gap:0 .6rem;max-height:15rem;overflow-y:auto}
.bars i{background:#3f6ea8;height:.7rem;align-self:center} .bars{margin:.3rem 0 .7rem} .histogram{height:165px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:0 .8rem;margin:.5rem 0}
.wide{overflow-x:auto} table{border-collapse:collapse;width:100%} td{min-width:7rem} th{white-space:nowrap}
td.n{min-width:0} td:first-child{min-width:min(18rem,45vw)}
td,th{padding:.2rem .6rem;border-bottom:1px solid #d5dae0} :is(td,th):not(.n){text-align:left}
td img{vertical-align:middle;margin-right:.8rem} tr:hover,tr:focus-within{background:#eef3f9}
tbody tr{position:relative} td a::after{content:"";position:absolute;inset:0}
th button{border:0;background:none;padding:.2rem 0;font-weight:600}
th button::after{content:" \\2195"} [aria-sort=ascending] button::after{content:" \\2191"}
[aria-sort=descending] button::after{content:" \\2193"}
@media(max-width:820px){.cloud{grid-template-columns:minmax(0,1fr)} .scene,.panels .scene{height:55vh}}
"""
SCENE = '<div class="scene" role="img" aria-label="The cloud in 3D, coloured by saliency; drag to turn it"></div>'
HISTOGRAM = '<div class="histogram" role="img" aria-label="Histogram of the saliency of all points"></div>'

CLOUDS = """
const {scale, levels, panels} = JSON.parse(document.getElementById("numbers").textContent);
const scenes = [...document.querySelectorAll(".scene")], histograms = document.querySelectorAll(".histogram");
const button = document.getElementById("turn"), choices = document.querySelectorAll("[name=colours]");
const config = {displayModeBar: false, responsive: true}, line = {width: 0.5, color: "#59626d"};
const axis = {visible: false, range: [-1, 1]}, eye = {x: 0.7, y: -1.22, z: 0.48};
const xaxis = {title: {text: "saliency s"}, exponentformat: "power", fixedrange: true, zerolinecolor: "#1c2128"};
const yaxis = {title: {text: "points (log)"}, type: "log", range: [-0.4, null], fixedrange: true};
yaxis.tickvals = [1, 3, 10, 30, 100, 300, 1000, 10000, 100000];
let turning, last = 0;

function draw() {
  const cut = choices[1].checked;
  document.querySelectorAll(".key").forEach((key, i) => key.hidden = cut !== (i === 1));
  panels.forEach(({points: [x, y, z], s, level, limit, bins}, i) => {
    const marker = cut ? of => ({line, color: of.level, colorscale: levels, cmin: 0, cmax: 2})
                       : of => ({line, color: of.s, colorscale: scale, cmin: -limit, cmax: limit});
    const usual = s.length > 3000 ? 4 : s.length > 600 ? 7 : 11;
    const rare = [0, 1, 2].map(l => cut && level.filter(k => k === l).length < s.length / 10);
    const size = level.map(l => rare[l] ? 1.5 * usual : usual);
    const cloud = {type: "scatter3d", mode: "markers", x, y, z, marker: {...marker({s, level}), size, opacity: 1},
      customdata: s, hovertemplate: "s = %{customdata}<extra></extra>"};
    const bars = {type: "bar", x: bins.s, y: bins.count, marker: marker(bins), hovertemplate: "%{y}<extra></extra>"};
    Plotly.react(scenes[i], [cloud], scenes[i].layout || {margin: {l: 0, r: 0, t: 0, b: 0}, paper_bgcolor: "#f4f6f8",
      scene: {xaxis: axis, yaxis: axis, zaxis: axis, aspectmode: "cube", camera: {eye}}}, config);
    Plotly.react(histograms[i], [bars], {margin: {l: 46, r: 8, t: 8, b: 36}, bargap: 0, dragmode: false,
      xaxis: {...xaxis}, yaxis: {...yaxis}}, config);
  });
}
function turn(on) {
  turning = on;
  button.textContent = on ? "Stop turning" : "Turn";
}
function frame(now) {
  const angle = Math.min(now - last, 100) / 5000, c = Math.cos(angle), s = Math.sin(angle);
  last = now;
  if (turning) for (const scene of scenes) {
    const {x, y, z} = scene.layout.scene.camera.eye;
    Plotly.relayout(scene, {"scene.camera.eye": {x: x * c - y * s, y: x * s + y * c, z}});
  }
  requestAnimationFrame(frame);
}
if (window.Plotly) {
  draw();
  turn(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  requestAnimationFrame(frame);
  button.onclick = () => turn(!turning);
  choices.forEach(choice => choice.onchange = draw);
  for (const touch of ["pointerdown", "wheel"])
    scenes.forEach(scene => scene.addEventListener(touch, () => turn(false), true));
} else scenes[0].textContent = "plotly.min.js is missing: it lies beside the pages of a folder and goes where they go.";
"""

TABLE = """
const body = document.querySelector("tbody");
const value = cell => cell.dataset.n === undefined ? cell.textContent : Number(cell.dataset.n);
const order = (a, b) => typeof a + typeof b === "numbernumber" ? a - b : `${a}`.localeCompare(b, "en", {numeric: true});
document.querySelectorAll("th button").forEach(button => button.onclick = () => {
  const head = button.parentNode, up = head.ariaSort !== "ascending";
  const rows = [...body.rows].map(row => [value(row.cells[head.cellIndex]), row]);
  rows.sort(([a], [b]) => (a === "") - (b === "") || (up ? order(a, b) : order(b, a)));  // what is empty stays below
  body.append(...rows.map(([, row]) => row));
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.ariaSort = up ? "ascending" : "descending";
});
"""


# ---------------------------------------------------------------- the pages
def cloud_page(
    path, name, points, saliency, probabilities, classes, explained=None, checkpoint="", notes=(), index=None
):
    """A cloud: points (N, 3), its map (N,) for class number `explained` (default: the predicted), probabilities (C,).

    index: relative name of a folder's table; the page then reads plotly from the file that `share_script` lays there.
    """
    p = np.asarray(probabilities)
    order = np.argsort(-p, kind="stable")
    best, sk = order[0], skewness(torch.as_tensor(saliency)[None]).item()
    bar = '<span>{}</span><i style="width:{:.2%}"></i><span class="n">{:.1%}</span>'
    bars = "".join(bar.format(text(classes[c]), p[c], p[c]) for c in order)
    facts = [("checkpoint", checkpoint), ("points", len(points))]
    facts.append(("saliency for", classes[best if explained is None else explained]))
    facts = "".join(f"<dt>{key}</dt><dd>{text(value)}</dd>" for key, value in [*facts, *(("note", n) for n in notes)])
    body = f"""<h1>{text(name)}</h1>{controls(index)}<main class="cloud">{SCENE}<div>
<h2>{text(classes[best])}, {p[best]:.1%}</h2>
<div class="bars" tabindex="0" role="group" aria-label="Probability of each class">{bars}</div>
<h2>Skewness {sk:+.2f}</h2><p>{in_words(sk)}</p>{HISTOGRAM}<dl>{facts}</dl></div></main>"""
    write_page(path, f"{name}: {classes[best]}", body, scripts([(points, saliency)], index))


def lesson_page(path, title, panels):
    """A few clouds side by side: panels (heading, points (N, 3), map (N,), a sentence)."""
    part = f"<section><h2>{{}}</h2>{SCENE}<p>{{}}</p>{HISTOGRAM}</section>"
    parts = "".join(part.format(text(heading), text(sentence)) for heading, _, _, sentence in panels)
    body = f'<h1>{text(title)}</h1>{controls()}<main class="panels">{parts}</main>'
    write_page(path, title, body, scripts([cloud for _, *cloud, _ in panels]))


def index_page(path, rows, pages, title="Clouds"):
    """A table to sort, of dictionaries with "file"; pages: {file: (relative name of its page, its thumbnail)}."""
    names = dict.fromkeys(name for row in rows for name in row)
    lines = [{name: cell(row.get(name, "")) for name in names} for row in rows]
    for row, line in zip(rows, lines):
        if page := pages.get(row["file"]):
            picture = f'<img src="{text(page[1])}" alt="" width="{PIXELS}" height="{PIXELS}" loading="lazy">'
            line["file"] = f'<td>{picture}<a href="{link(page[0])}">{text(row["file"])}</a></td>'
    right = {name: ' class="n"' if any('<td class="n"' in line[name] for line in lines) else "" for name in names}
    head = "".join(f"<th{right[name]}><button>{text(name)}</button></th>" for name in names)
    body = "".join(f"<tr>{''.join(line.values())}</tr>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    write_page(path, title, f'<h1>{text(title)}</h1><main class="wide">{table}</main>', f"<script>{TABLE}</script>")


def cell(value):
    """A value of the table; a number is sorted as it is and shown short."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return f'<td class="n" data-n="{value}">{f"{value:.3f}" if isinstance(value, float) else value}</td>'
    return f"<td>{text(value)}</td>"


def thumbnail(points, saliency):
    """A cloud (N, 3) in the colours of its map (N,) as a small picture, a data: address for `index_page`; 1 to 2 KB."""
    s = finite(saliency)
    colour = np.stack([np.interp(s / limit(s), (-1, 0, 1), channel) for channel in SCALE.T], 1)
    column, row = ((framed(points) @ VIEW.T * (1, -1) + 1) / 2 * (PIXELS - 3)).astype(int).T
    picture, order = np.full((PIXELS, PIXELS, 3), 255, np.uint8), np.abs(s).argsort()  # what stands out lies on top
    down, across = np.indices((3, 3)).reshape(2, 9)  # the pixels of a point
    picture[row[order, None] + down, column[order, None] + across] = colour[order, None]
    out = io.BytesIO()
    Image.fromarray(picture).quantize(16).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


# ---------------------------------------------------------------- their parts
def controls(index=None):
    """The button that stops the turning, the switch of the colours, and what these mean."""
    scale = f'<i class="scale" style="background:linear-gradient(90deg,{",".join(map(css, SCALE))})"></i>'
    levels = (f'<i style="background:{css(rgb)}"></i>{name}' for rgb, name in zip(LEVELS, ("low", "middle", "high")))
    choice = '<label><input type="radio" name="colours" autocomplete="off"{}> {}</label> '
    return f"""<div class="controls"><button id="turn"></button>
<span>{choice.format(" checked", "saliency")}{choice.format("", "three levels")}</span>
<span class="key">the loss falls{scale}rises when the point moves to the core</span>
<span class="key" hidden>{"".join(levels)}</span>{f'<a href="{link(index)}">all clouds</a>' if index else ""}</div>"""


def in_words(sk):
    """What a skewness says about a map."""
    if sk == 0:
        return "The map is flat, or not finite: it says nothing."
    if abs(sk) < 0.5:
        return "The map is about symmetric: no few points stand out on one side."
    if sk > 0:
        side, found = "right", "above the rest, and the class rests on them"
    else:
        side, found = "left", "below the rest, and the class would gain if they lay at the core"
    much = "Strongly" if abs(sk) > 1 else "Moderately"
    return f"{much} skewed to the {side}: a few points stand out {found}."


def scripts(panels, index=None):
    """What draws clouds [(points (N, 3), saliency (N,)), ...]: plotly, their numbers, CLOUDS."""
    steps = lambda colours: [[k / 2, css(rgb)] for k, rgb in enumerate(colours)]
    content = {"scale": steps(SCALE), "levels": steps(LEVELS), "panels": [numbers(*panel) for panel in panels]}
    content = json.dumps(content, separators=(",", ":"), allow_nan=False)
    plotly = f' src="{SCRIPT}">' if index else f">{plotly_js()}"
    return f"""<script{plotly}</script>
<script type="application/json" id="numbers">{content}</script><script>{CLOUDS}</script>"""


def numbers(points, saliency):
    """What the script draws of one cloud: points, map, levels, and the bars of the map's histogram."""
    s = finite(saliency)
    count, edges = np.histogram(s.astype(float), BINS)
    short = lambda values: [float(f"{v:.4g}") for v in values]
    cloud = {"points": framed(points).T.round(3).tolist(), "s": short(s), "limit": float(limit(s))}
    cloud["level"] = three_levels(torch.from_numpy(s)).tolist()
    level = [3 * k // BINS for k in range(BINS)]
    return cloud | {"bins": {"s": short((edges[1:] + edges[:-1]) / 2), "level": level, "count": count.tolist()}}


def framed(points):
    """Points (N, 3) around the middle of their box, within a ball of radius 1."""
    points = np.asarray(points, float)
    points = points - (points.max(0) + points.min(0)) / 2
    return points / max(np.linalg.norm(points, axis=1).max(), 1e-30)


def finite(saliency):
    """A map (N,), 0 where it is not finite."""
    return np.nan_to_num(np.asarray(saliency), posinf=0, neginf=0)


def limit(s):
    """The saliency at which the colours end; of a flat map any."""
    return np.quantile(np.abs(s), CLIP) or np.abs(s).max() or 1.0


def css(rgb):
    """A colour (3,) in 0..255 as css and plotly write it."""
    return f"rgb({','.join(map(str, rgb))})"


def text(value):
    """Anything of the user's, shown as it is."""
    return html.escape(str(value))


def link(name):
    """A relative name as an address, whatever its bytes."""
    return quote(os.fsencode(name))


def plotly_js():
    """The text of plotly's script, which its Python package brings; UserError where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("a page needs plotly, which is not installed; pip install -r requirements-extra.txt") from None
    return get_plotlyjs()


def share_script(folder):
    """Lay plotly's script beside the pages of a folder, once for all of them."""
    write_atomically(folder / SCRIPT, plotly_js().encode())


def write_page(path, title, body, scripts):
    """One page, whole or not at all, which may load nothing but files beside it."""
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy" content="default-src 'self' file: data: blob: 'unsafe-inline'">
<style>{STYLE}</style></head><body>{body}{scripts}</body></html>\n"""
    write_atomically(path, page.encode(errors="replace"))  # a file name may hold bytes that are no text


def main():
    parser = Parser(prog="-m extras.page", description="The page of a lesson: two clouds that turn.")
    parser.add_argument("maps", type=Path, help="OUT-maps.npz of `make lesson`")
    parser.add_argument("page", type=Path, help="the page to write, .html")
    args = parser.parse_args()
    try:
        with np.load(args.maps, allow_pickle=False) as kept:
            headings = ("High skewness", "Low skewness")
            sentences = [f"A {words}." for words in kept["texts"]]
            panels = list(zip(headings, kept["points"], kept["saliency"], sentences))
            title = str(kept["title"])
    except (OSError, ValueError, KeyError):
        raise UserError(f"{args.maps}: missing or no maps of a lesson; write them with `make lesson`") from None
    lesson_page(args.page, title, panels)
    print(f"wrote {args.page}; open it in a browser")


if __name__ == "__main__":
    cli(main)
