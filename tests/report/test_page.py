"""A search's page: whole from the tables alone, safe whatever they hold, and small."""

from __future__ import annotations

import html.parser
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import report_tables
from page_tables import FAMILIES, SPEC, figures, forecasts, trial_row, write_baselines, write_search

from xlstm_tune.report import page
from xlstm_tune.report.page import build_page, write_page
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections import SECTIONS
from xlstm_tune.results import ResultsWriter

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&<b>"


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, ids, headings, and the text of scripts by kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[Any] = []
        self.text = ""
        self._in: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = f"{tag} {dict(attrs).get('class')}" if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._in = None

    def handle_data(self, data: str) -> None:
        if self._in == "script figure-data":
            self.data.append(json.loads(data))
        elif self._in is None:
            self.text += data

    def ids(self) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get("id"))]


@pytest.fixture(autouse=True)
def without_plotly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five megabytes that every test would parse; those that ask for it have it."""
    if "whole_page" not in request.fixturenames:
        monkeypatch.setattr(page, "_plotly", lambda: "/* plotly */")


@pytest.fixture
def whole_page() -> None:
    """Asked for by tests of a page with plotly.js in it."""


def built(folder: Path) -> Parsed:
    return Parsed(build_page(read_record(folder)))


def test_page_of_an_ended_search_has_every_section_and_its_figures(tmp_path: Path) -> None:
    write_search(tmp_path / "made", 40)
    parsed = built(tmp_path / "made")
    wanted = {"summary", "leaderboard", "winner", "progress", "curves", "settings", "cost", "excluded", "repeat"}
    assert wanted <= set(parsed.ids())
    plots = {"history", "importances", "parallel", "curves", "by-step", "residuals", "histogram", "forecast-0"}
    plots |= {"cost-seconds", "cost-parameters", "cost-peak_memory_mib", "slice-0"}
    assert {f"plot-{name}" for name in plots} <= set(parsed.ids())
    assert "won: rmse" in parsed.text and "How to repeat it" in parsed.text and "learning_rate" in parsed.text
    assert "diverged: the loss is not finite" in parsed.text and "stopped early" in parsed.text


def test_page_is_well_formed_for_assistive_technology(tmp_path: Path) -> None:
    write_search(tmp_path / "made", 40, series=["north", "south"])
    parsed = built(tmp_path / "made")
    ids = parsed.ids()
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in parsed.tags
    links = {attrs["href"] for tag, attrs in parsed.tags if tag == "a"}
    assert links <= {f"#{one}" for one in ids} and "#content" in links
    for _, attrs in parsed.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attrs.get(name) is None or attrs[name] in ids
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    figures_, captions = (sum(tag == name for tag, _ in parsed.tags) for name in ("figure", "figcaption"))
    assert figures_ == captions == len(parsed.data) > 10


@pytest.mark.parametrize("trials", [0, 1, 3])
def test_page_of_a_running_search_says_what_is_not_known(tmp_path: Path, trials: int) -> None:
    write_search(tmp_path / "made", trials, ended=False)
    parsed = built(tmp_path / "made")
    assert f"The search has not ended: {trials} of 300 trials have." in parsed.text
    assert "not known yet" in parsed.text
    assert ("No trial has ended yet" in parsed.text) == (trials == 0)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("trials", "The search has ended, and its trials are not in results/trials; --resume NAME makes them anew."),
        ("scores", "The winner's test figures are not in results/scores; where its weights are there, --resume NAME"),
        ("predictions", "Its predictions are not in results/predictions; where its weights are there, --resume NAME"),
    ],
)
def test_page_of_a_search_that_lost_a_table_says_how_to_have_it_again(table: str, text: str, tmp_path: Path) -> None:
    report_tables.write_search(tmp_path)
    for path in (tmp_path / "results" / table).iterdir():
        path.unlink()
    said = built(tmp_path).text
    assert text in said and "not known yet:" not in said and "No trial has ended yet" not in said


def test_page_of_a_folder_with_nothing_but_empty_tables(tmp_path: Path) -> None:
    ResultsWriter(tmp_path).close()
    parsed = built(tmp_path)
    assert "No trial has ended yet" in parsed.text and not parsed.data


def test_page_of_trials_that_all_failed(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path) as writer:
        writer.trial(trial_row(0, {"model.family": "lstm"}, None, status="failed", reason="out of memory"))
    assert "No trial could be scored (1 failed)" in built(tmp_path).text


def test_pending_rows_are_in_the_page_and_new_ones_in_the_next(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, rows=100, seconds=1000)
    write_baselines(writer)
    writer.trial(trial_row(0, {"model.hidden_size": 16}, 5.0))
    assert "As things stand, lstm · 16 (trial 0) won" in built(tmp_path).text
    writer.trial(trial_row(1, {"model.hidden_size": 64}, 4.0))
    writer.epoch({"trial": 2, "epoch": 1, **figures(6.0, "val_")})
    text = built(tmp_path).text
    assert "lstm · 64 (trial 1) won" in text and "1 trial, up to 1 epoch." in text


def test_hostile_text_is_text(tmp_path: Path) -> None:
    spec = {**SPEC, "name": HOSTILE, "space": {HOSTILE: {"choice": [HOSTILE, "b"]}}}
    write_search(tmp_path / "made", 0, ended=False, spec=spec, series=[HOSTILE, "other"])
    writer = ResultsWriter(tmp_path / "made")
    for number in range(12):
        more: dict[str, Any] = {"name": HOSTILE, "family": HOSTILE}
        if number == 3:
            more |= {"status": "failed", "reason": HOSTILE}
        writer.trial(trial_row(number, {HOSTILE: HOSTILE if number % 2 else "b"}, 3.0 + number, **more))
        writer.epoch({"trial": number, "epoch": 1, **figures(4.0, "val_")})
    for part in ("validation", "test"):
        writer.scores([{"model": HOSTILE, "trial": 0, "part": part, **figures(3.0)}])
        writer.predictions(forecasts(HOSTILE, 0, part, 1.0, series=[HOSTILE, "other"]))
    writer.close()
    text = build_page(read_record(tmp_path / "made"))
    parsed = Parsed(text)
    assert "alert(1)" in parsed.text and "<script>alert" not in text and "<img" not in text
    assert [tag for tag, _ in parsed.tags if tag in ("img", "b", "a")] == ["a"] * (1 + text.count('<li><a href="#'))
    assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on")]
    drawn = json.dumps(parsed.data)
    assert "alert(1)" in drawn and "<script" not in drawn and "<img" not in drawn  # plotly reads tags in its text


def test_page_loads_nothing_and_may_load_nothing(tmp_path: Path) -> None:
    write_search(tmp_path / "made", 16)
    text = build_page(read_record(tmp_path / "made"))
    parsed = Parsed(text)
    for tag, attrs in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert attrs.get("src") is None and not re.match(r"(?i)https?:|//", attrs.get("href") or "")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style and "@import" not in style[1] and "url(" not in style[1]
    policy = next(attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
    assert "unsafe-eval" not in policy


def test_page_of_300_trials_is_one_file_within_its_size(tmp_path: Path, whole_page: None) -> None:
    write_search(tmp_path / "made", 300, series=["north", "south"], samples=150, epochs=30)
    path = write_page(tmp_path / "made")
    assert path == tmp_path / "made" / "report.html"
    assert 4.5e6 < path.stat().st_size < 12e6
    assert [one.name for one in path.parent.glob("*report*")] == ["report.html"]
    assert "plotly.js v" in path.read_text(encoding="utf-8")


def test_best_possible_is_a_row_and_a_line(tmp_path: Path) -> None:
    write_search(tmp_path / "made", 16)
    data = {"task": "forecast", "target_std": [1.0], "notes": ["two rows were left out"]}
    data["best_possible"] = {"validation": 1.25, "test": 1.5}
    with ResultsWriter(tmp_path / "made") as results:
        results.search({"name": "known", "data": data, "status": "interrupted", "reason": "disk full"})
    parsed = built(tmp_path / "made")
    assert "best possible" in parsed.text and "1.250" in parsed.text and "1.500" in parsed.text
    assert "two rows were left out" in parsed.text and "The search was interrupted (disk full)" in parsed.text
    lines = [trace for figure in parsed.data for trace in figure["data"] if trace.get("name") == "best possible"]
    assert len(lines) == 5 and all(trace["y"] == [1.25, 1.25] for trace in lines)  # history, curves, three costs


def test_regression_has_a_scatter_instead_of_curves(tmp_path: Path) -> None:
    spec = {**SPEC, "data": {"task": "regression"}}
    write_search(tmp_path / "made", 16, spec=spec, series=["a", "b"], horizon=1)
    ids = built(tmp_path / "made").ids()
    assert "plot-scatter" in ids and "plot-forecast-0" not in ids and "plot-by-step" not in ids


def test_families_keep_their_colour_in_all_figures(tmp_path: Path) -> None:
    write_search(tmp_path / "made", 60)
    colors: dict[str, set[str]] = {}
    for figure in built(tmp_path / "made").data:
        for trace in figure["data"]:
            name = str(trace.get("name", "")).partition(",")[0]
            if name in FAMILIES:
                color = trace.get("line", {}).get("color") or trace["marker"]["color"]
                colors.setdefault(name, set()).add(color)
    assert {name: len(found) for name, found in colors.items()} == dict.fromkeys(FAMILIES, 1)
    assert len(set.union(*colors.values())) == len(FAMILIES)


def test_every_section_names_itself_once() -> None:
    names = [section.__name__ for section in SECTIONS]
    assert len(names) == len(set(names))


def test_titles_and_captions_break_names_without_spaces(tmp_path: Path) -> None:
    """A figure's title has a series' name in it, which may be longer than a phone is wide."""
    write_search(tmp_path, 6)
    text = build_page(read_record(tmp_path))
    for name in ("h1", "h3", "p", "figcaption"):
        rules = re.findall(rf"^{name} {{(.*?)}}", text, re.MULTILINE)
        assert rules and "overflow-wrap: anywhere" in rules[0], name
