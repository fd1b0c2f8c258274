"""Put the repository root on the path, so that tests import the files a user runs; a cache and tiny sets for all."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine  # noqa: E402, F401 - first: how torch's threads wait


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the repository's cache."""
    from datasets import files

    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A tiny PointDA-10 to read from: one cloud a class, domain and split."""
    from fixtures import make_pointda

    return make_pointda(tmp_path_factory.mktemp("whole") / "set", per_class=1)


@pytest.fixture
def root(tmp_path, whole):
    """One to damage: modelnet/chair and scannet."""
    from fixtures import linked_pointda

    return linked_pointda(tmp_path / "set", whole)
