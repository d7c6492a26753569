"""docs/search_file.md says what a search file may hold."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from xlstm_tune.search.environment import PREFIX, READ

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def writer():
    found = importlib.util.spec_from_file_location("search_file", DOCS / "search_file.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_page_is_what_the_classes_say(writer):
    page = (DOCS / "search_file.md").read_text(encoding="utf-8")
    assert page == writer.page(), "a key has changed: python docs/search_file.py"


def test_no_key_goes_unexplained(writer):
    for name, section, _ in writer.SECTIONS:
        said = writer.meanings(section)
        for row in writer.rows(name, section):
            key = row.split("`")[1]
            assert said[key], f"{name}.{key} has no text below its field"


def test_every_variable_is_explained(writer):
    assert sorted(f"{PREFIX}{name}" for name in writer.VARIABLES) == sorted(READ)
