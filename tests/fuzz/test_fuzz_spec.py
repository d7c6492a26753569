"""Any search file and any --set gives a search or one clear sentence."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import FLOATS, INTEGERS, check_sentence, examples, fields_of, junk, scalars, texts, values_for
from hypothesis import event, given
from hypothesis import strategies as st
from rich.console import Console

from xlstm_tune.data.config import DataConfig, SplitConfig, TimeConfig
from xlstm_tune.errors import UserError
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.search import dry_run
from xlstm_tune.search.dry_run import print_plan
from xlstm_tune.search.plan import make_plan
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.search_file import load_spec
from xlstm_tune.spec import SEARCHABLE, PopulationConfig, ResourceConfig, SearchConfig
from xlstm_tune.training.config import TrainingConfig

SECTIONS = {
    "data": DataConfig,
    "search": SearchConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "resources": ResourceConfig,
    "population": PopulationConfig,
    "data.split": SplitConfig,
    "data.time": TimeConfig,
}
KINDS = {
    f"{section}.{name}": field.annotation
    for section, owner in SECTIONS.items()
    for name, field in owner.model_fields.items()
    if f"{section}.{name}" != "data.source"  # somebody's home folder, say, would be read
}
FORECAST: dict[str, Any] = {
    "name": "fuzzed",
    "data": {"source": "table.csv", "time": {"column": "day"}, "target": "y", "lookback": 8, "horizon": 2},
    "search": {"trials": 2},
    "space": {"model.hidden_size": {"choice": [4, 8]}},
    "model": {"family": "lstm"},
    "training": {"epochs": 1},
}
REGRESSION = FORECAST | {
    "data": {"source": "sequences.csv", "task": "regression", "sequence": ["s"], "time": {"column": "day"}}
    | {"target": "y", "split": {"by": "s"}}
}

SNIPPETS = [
    "", "\t", "\n", "\r", "\x00", "\ufeff", "&a ", "*a", "<<: *a\n", "<<: {a: 1}\n", "!!python/object:os.system x",
    "!!python/name:os.system", "!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary x", "!!binary aGk=",
    "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!null x", "!!str 1", "!x y", "! ", "%YAML 9.9\n---\n", "---\n",
    "...\n", "? ", "[a]: b\n", "{a: 1}: b\n", "? !!set {a}\n: b\n", "- ", ": ", "#", "|", ">-", "'", '"', '"\\ud800"',
    '"\\0"', "2020-01-01", "0x1F", "1_000", "1e999", "-.inf", ".nan", "9" * 5000, "[" * 300, "{" * 300, "&a [*a]",
    "&a {b: *a}", "name: x\n",
]  # fmt: skip

numbers = st.sampled_from([*INTEGERS, *FLOATS]) | st.integers(1, 12) | st.floats(0, 2)
ends = st.lists(numbers, min_size=2, max_size=2).map(sorted) | st.lists(numbers)
conditions = st.dictionaries(st.sampled_from(SEARCHABLE) | texts, scalars | st.lists(scalars, max_size=3), max_size=2)


@st.composite
def dimensions(draw: st.DrawFn, key: str) -> Any:
    """A line of `space:` for a key."""
    kind = draw(st.sampled_from(["choice", "choice", "float", "log_float", "int", "log_int"]))
    listed = st.lists(values_for(KINDS.get(key)), max_size=4) | st.lists(scalars, max_size=3)
    line: dict[str, Any] = {kind: draw(listed if kind == "choice" else ends)}
    if draw(st.booleans()):
        line["step"] = draw(numbers)
    if draw(st.integers(0, 3)) == 0:
        line["when"] = draw(conditions)
    return line


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """A search file that works, with a few of its keys changed."""
    spec = copy.deepcopy(draw(st.sampled_from([FORECAST, REGRESSION])))
    for _ in range(draw(st.integers(1, 4))):
        what = draw(st.integers(0, 9))
        if what < 5:
            key = draw(st.sampled_from(sorted(KINDS)))
            put(spec, key, draw(values_for(KINDS[key])))
        elif what < 7:
            key = draw(st.sampled_from(SEARCHABLE))
            spec.setdefault("space", {})
            if isinstance(spec["space"], dict):
                spec["space"][key] = draw(dimensions(key))
        elif what == 7:
            key = draw(st.sampled_from([*KINDS, *SECTIONS, "name", "space"]) | texts)
            put(spec, key, draw(junk))
        elif what == 8:
            section = draw(st.sampled_from(["search", "model", "training", "resources", "population"]))
            spec[section] = draw(fields_of(SECTIONS[section]))
        else:
            listed = st.dictionaries(st.sampled_from(SEARCHABLE), st.lists(scalars, max_size=3), max_size=2)
            spec["population"] = {"seeds": draw(st.integers(1, 3)), **draw(listed)}
    return spec


def put(spec: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key where there is a mapping to set it in."""
    *path, last = key.split(".")
    for part in path:
        spec = spec.setdefault(part, {})
        if not isinstance(spec, dict):
            return
    spec[last] = value


@st.composite
def files(draw: st.DrawFn) -> str:
    """The text of a search file, often damaged."""
    text = yaml.dump(
        draw(specs()), allow_unicode=draw(st.booleans()), default_flow_style=draw(st.booleans() | st.none())
    )
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 8)))
        text = text[:start] + draw(snippets) + text[end:]
    return text


snippets = st.sampled_from(SNIPPETS) | st.text(max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the tables that the search files name."""
    made = tmp_path_factory.mktemp("spec")
    days = [f"2020-{1 + row // 28:02d}-{1 + row % 28:02d}" for row in range(84)]
    rows = [f"{day},{(row * 37) % 101},{row % 5}" for row, day in enumerate(days)]
    (made / "table.csv").write_text("\n".join(["day,y,x", *rows]) + "\n")
    rows = [f"2020-01-0{day + 1},{s * s},{s},{s + day}" for s in range(20) for day in range(4 + s % 3)]
    (made / "sequences.csv").write_text("\n".join(["day,y,s,x", *rows]) + "\n")
    return made


def start(folder: Path, content: str | bytes, overrides: Sequence[str] = (), dry: bool = False) -> None:
    """What the command line does until Ray would start. dry: as `--dry-run` does."""
    file = folder / "search.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        spec = load_spec(str(file), overrides)
        event("the file is a search")
        space = Space.from_spec(spec)
        event("the space can be searched")
        plan = make_plan(spec, space, str(folder / "searches"), None, None)
        event("planned")
        assert plan.trials > 0
        if dry:
            print_plan(plan, Console(file=io.StringIO(), width=120))
    except UserError as error:
        check_sentence(error)


@pytest.mark.slow
@given(
    text=files(),
    overrides=st.lists(st.builds("{}={}".format, st.sampled_from(sorted(KINDS)) | texts, texts), max_size=1),
)
@examples(180)
def test_damaged_search_file_gives_a_search_or_a_sentence(folder: Path, text: str, overrides: list[str]) -> None:
    start(folder, text, overrides)


@pytest.mark.slow
@given(spec=specs())
@examples(180)
def test_changed_search_file_gives_a_search_or_a_sentence(folder: Path, spec: dict[str, Any]) -> None:
    start(folder, yaml.dump(spec))


@given(content=st.binary(max_size=60) | st.text(max_size=60) | st.lists(snippets, max_size=8).map("".join))
@examples(300)
def test_any_bytes_as_a_search_file_give_a_sentence(folder: Path, content: str | bytes) -> None:
    start(folder, content)


@pytest.mark.slow
@given(spec=specs())
@examples(6)
def test_dry_run_of_a_changed_search_file_gives_a_plan_or_a_sentence(folder: Path, spec: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "memory_mib", lambda: 64.0)  # larger models are not built to be measured
        start(folder, yaml.dump(spec), dry=True)
