"""The house: which file may import which, how long the root is, and that the docs name what exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("saliency", "stage1_ssl", "stage2_pseudo", "ssl_tasks", "models", "data", "eval")
ROOMS = ("engine", "datasets", "paper", "extras")
# whom each may import: arrows point one way
ALLOWED = {"engine": {"engine"}, "datasets": {"datasets", "engine"}, "saliency": set()}
ALLOWED["data"] = {"engine", "datasets"}
ALLOWED["models"] = {"engine"}
ALLOWED["ssl_tasks"] = {"engine", "data", "models"}
ALLOWED["stage1_ssl"] = ALLOWED["ssl_tasks"] | {"saliency", "ssl_tasks"}
ALLOWED["stage2_pseudo"] = ALLOWED["stage1_ssl"] | {"stage1_ssl"}
ALLOWED["eval"] = ALLOWED["stage2_pseudo"] | {"stage2_pseudo", "datasets"}
ALLOWED["paper"] = ALLOWED["eval"] | {"eval", "paper"}
ALLOWED["extras"] = ALLOWED["eval"] | {"eval", "extras", "paper"}
PYTHON = sorted(p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] in (*ROOMS, p.name))


def imports(path):
    """Modules of this repository that a file imports anywhere in it, dotted."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in (*SCRIPTS, *ROOMS)}


def place(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    """No import against the order of the rooms, not even inside a function."""
    wrong = {name for name in imports(path) if name.split(".")[0] not in ALLOWED[place(path)]}
    assert not wrong, f"{path} imports {wrong}"


def test_five_files_are_looked_up_by_name_and_no_more():
    """What the root finds in extras/: ways to join the losses, scoring a cloud of one's own, and what adds itself."""
    found = set()
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func if isinstance(node, ast.Call) else None
            if getattr(name, "attr", getattr(name, "id", "")) in (
                "import_module",
                "run_module",
                "run_path",
                "__import__",
            ):
                found.add((place(path), ast.unparse(node.args[0])))
    wanted = {("saliency", "my_cloud"), ("ssl_tasks", "tasks"), ("models", "backbones")}
    wanted |= {("stage1_ssl", "surgery"), ("stage1_ssl", "beta")}
    assert found == {(place, f"'extras.{name}'") for place, name in wanted}


def test_no_import_runs_in_a_circle():
    """Also within a room."""
    name = lambda p: ".".join(p.relative_to(ROOT).with_suffix("").parts)
    arrows = {name(p): {n for n in imports(p)} for p in PYTHON}

    def walk(at, way):
        assert at not in way, f"a circle: {' -> '.join([*way, at])}"
        for to in arrows[at]:
            if to in arrows and to != at:
                walk(to, [*way, at])

    for start in arrows:
        walk(start, [])


def test_the_root_is_the_paper():
    """Seven scripts, at most 1,750 lines together and 340 each; the README is a short read."""
    lines = {p.stem: len(p.read_text().splitlines()) for p in ROOT.glob("*.py")}
    assert set(lines) == set(SCRIPTS)
    assert sum(lines.values()) <= 1750 and max(lines.values()) <= 340, lines
    assert (ROOT / "README.md").stat().st_size <= 12288


def test_only_datasets_and_direction_know_a_prefix():
    """Segmentation is told by per_point, not by a name."""
    for path in PYTHON:
        if place(path) not in ("datasets", "data"):
            assert not re.search(r"startswith\(.seg", path.read_text()), path


def definitions(path):
    """Names that a file defines at its top level."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def test_every_place_that_the_docs_name_exists():
    """`file.py:function` and links to files, in the README and in docs/ and results/."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "results/README.md"]
    places = 0
    for page in pages:
        text = page.read_text()
        for file, name in re.findall(r"`([\w/]+\.py):(\w+)`", text):
            assert name in definitions(ROOT / file), f"{page.name}: {file}:{name}"
            places += 1
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in link:
                target = (page.parent / link.replace("*", "")).resolve()
                assert target.exists(), f"{page.name}: {link}"
    assert places > 30


def test_the_step_of_the_readme_is_the_code():
    """The README shows the step as it stands in stage1_ssl.py, line by line."""
    source = (ROOT / "stage1_ssl.py").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "L_ssl" in b)
    code = [line.strip() for line in source.splitlines()]
    for line in block.strip().splitlines():
        assert not line.strip() or line.strip() in code, line
    assert len(block.splitlines()) >= 15


def snippets(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
