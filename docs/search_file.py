"""Writes search_file.md: every key of a search file, from the classes that read it and the texts below their fields.

python docs/search_file.py      a test tells when that was forgotten
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from xlstm_tune import spec
from xlstm_tune.data import config as data
from xlstm_tune.models.config import ModelSettings
from xlstm_tune.search.environment import PREFIX
from xlstm_tune.training.config import TrainingConfig
from xlstm_tune.training.members import SHAPE_PRESERVING

PAGE = Path(__file__).with_suffix(".md")
SECTIONS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("data", data.DataConfig, "The table, and the question asked of it."),
    ("data.time", data.TimeConfig, "The column that orders the rows. Without it they are in order."),
    ("data.split", data.SplitConfig, "Which rows or sequences may be seen when."),
    ("search", spec.SearchConfig, "How the space is searched."),
    ("search.constraints", spec.ConstraintConfig, "What a model may cost at most; whatever it costs unless given."),
    (
        "space",
        spec.Dimension,
        "One line for each setting that is searched, such as `model.hidden_size: {choice: [32, 64]}`, of any key with "
        "\\* below and of `data.lookback`. Each has exactly one of `choice`, `float`, `log_float`, `int`, `log_int`.",
    ),
    (
        "population",
        spec.PopulationConfig,
        "Trained together inside each trial: every combination of the listed values with every seed. Beside `seeds`, "
        "any key with † below but `training.seed`, which `seeds` counts up, with a list of its values, such as "
        "`training.learning_rate: [1e-3, 3e-3]`.",
    ),
    ("model", ModelSettings, "The values that every model has where `space` and `population` say nothing."),
    ("training", TrainingConfig, "The same of how each is trained."),
    ("resources", spec.ResourceConfig, "What one trial gets of the machine."),
)
NAMES = [name for name, *_ in SECTIONS]
INTRODUCTION = """# Every key of a search file

Written by `python docs/search_file.py` from the classes that read the file; edit those. What the keys are good for is
in the [README](../README.md), with examples. A key that is not here is refused, with the nearest one that is. Any may
be given on the command line: `--set training.epochs=5`. Above all sections stands `name: my-search`, of letters,
digits, `.`, `_` and `-`; the file's own name unless given.

\\* may be searched, in `space`; † may differ between the members of a `population`, and configurations that differ in
nothing else are trained together.
"""
HEADER = ("| Key | Value | Default | Meaning |", "| --- | --- | --- | --- |")


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """The text below each field, on one line; without one, nothing."""
    found: dict[str, str] = {}
    body = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            found[field.target.id.rstrip("_")] = " ".join(str(text.value.value).split()) if said else ""
    return found


def values(schema: dict[str, Any], several: str = "") -> str:
    """What a key may be, in words, from its JSON schema. several: "s" where there may be many."""
    if "anyOf" in schema:
        kinds = [one for one in schema["anyOf"] if one.get("type") != "null" and "$ref" not in one]
        if {"type": "boolean"} in kinds:  # texts and numbers alike
            return f"value{several}"
        kinds = [one for one in kinds if one != {"type": "integer"} or {"type": "number"} not in kinds]
        return " or ".join(dict.fromkeys(values(one, several) for one in kinds))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    match schema["type"]:
        case "array":
            return f"list of {values(schema['items'], 's')}"
        case "integer":
            return " ".join((f"whole number{several}", *_bounds(schema)))
        case "number":
            return " ".join((f"number{several}", *_bounds(schema)))
        case "boolean":
            return "`true`, `false`"
        case kind:
            return {"string": "text", "object": "mapping"}[kind] + several


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    for key, word in words.items():
        if key in schema and abs(schema[key]) < 1e9:  # larger ones guard against overflow
            yield f"{word} {schema[key]:,g}" if schema[key] < 1e6 else f"{word} {int(schema[key]):,}"


def rows(name: str, section: type[BaseModel]) -> Iterator[str]:
    """The table's lines of one section."""
    said, schema = meanings(section), section.model_json_schema()
    for key, one in schema["properties"].items():
        place = f"{name}.{key}"
        if place not in NAMES:
            default = "needed" if key in schema.get("required", ()) else _default(one.get("default"))
            marks = " \\*" * (place in spec.SEARCHABLE) + " †" * (place in SHAPE_PRESERVING)
            yield " ".join(("|", f"`{key}`{marks}", "|", values(one), "|", default, "|", said[key], "|"))


def _default(value: Any) -> str:
    if value is None or value in ([], {}):
        return ""
    shown = str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")
    return f"`{shown}`"


VARIABLES = {
    "STORAGE": "a folder or URI: `--storage` of every command where that is not given",
    "TRACKING_URI": "`--tracking-uri` where that is not given, before `MLFLOW_TRACKING_URI`",
    "REPORT": "`off`: no report at the end of a search",
    "REGISTER": "`off`: the winner becomes no MLflow model",
    "IMPORTANCE": "`off`: the report does not say which inputs the winner leans on",
    "CHECKPOINT_SHARE": "the most that saving takes of the training time, from 0 on; 0.04 unless given",
    "DRAIN_SECONDS": "how long a finished search waits for its MLflow server; 120 unless given",
    "MIRROR_SECONDS": "from one copy of a search to its bucket to the next; 30 unless given",
    "STORAGE_SECONDS": "how long training waits for a bucket that is away; 900 unless given",
    "BACKWARD": "of LSTM and sLSTM on a GPU: `store` or `recompute` what the backward pass needs; `auto` unless given",
    "CAPTURE": "`off`: training steps on a GPU are not captured in CUDA graphs",
    "MLFLOW_PORT": "of the MLflow server that a cluster's head starts; 5000 unless given",
}
"""Environment variables, with what each does."""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, section, about in SECTIONS:
        parts += [f"## `{name}`", "", about, "", *HEADER, *rows(name, section), ""]
    parts += ["## Environment variables", "", "Of a search. A name that begins so and is not here is refused.", ""]
    parts += ["| Variable | Meaning |", "| --- | --- |"]
    parts += [f"| `{PREFIX}{name}` | {about} |" for name, about in VARIABLES.items()]
    parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Written to {PAGE}.")
