"""The strict base of every configuration: unknown keys and wrong types are refused in one sentence."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from xlstm_tune.errors import SpecError

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "finite_number": "a finite number",
}


class Spec(BaseModel):
    """A frozen configuration whose unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)

    @classmethod
    def parse(cls, raw: Mapping[str, Any], where: str = "") -> Self:
        """Build from plain YAML values (lists, dicts, scalars).

        `where` is the key path that leads to `raw` in the search file, used in messages.
        Raises SpecError with one sentence for the first thing that is wrong.
        """
        try:
            return cls.model_validate_json(json.dumps(raw))
        except ValidationError as error:
            raise SpecError(explain(error, cls, raw, where)) from None


def did_you_mean(word: str, known: Iterable[str], dotted: bool = True) -> str:
    """`did you mean 'x'?` for the nearest known word, or the list of what is known.

    A word that is a part of two is asked back as both, `log` as log_float or log_int; initials are known, `lr` for one.
    `dotted`: words are key paths such as `model.heads`; False for names that may hold any character.
    """
    choices = sorted(known)
    # Only the last part can be misspelt here: a shared prefix would make everything look near.
    last = {choice.rpartition(".")[2] if dotted else choice: choice for choice in choices}
    wanted = word.rpartition(".")[2] if dotted else word
    near = [name for name in last if wanted in (parts := name.split("_")) or wanted == "".join(p[:1] for p in parts)]
    if not 1 <= len(near) <= 2:
        near = difflib.get_close_matches(wanted, last, n=1, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"'{last[name]}'" for name in near) + "?"
    return f"known here: {', '.join(choices)}"


def explain(error: ValidationError, cls: type[BaseModel], raw: object, where: str = "") -> str:
    """One sentence for the first problem of a pydantic error, in the user's own keys."""
    problems = error.errors()
    # An unknown key explains the others better than they explain themselves.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    path = _written_path(first["loc"], raw)
    key = shortened(".".join([where, *path] if where else path))
    kind = first["type"]
    if kind == "extra_forbidden":
        owner = _owner(cls, path[:-1])
        above = ".".join([where, *path[:-1], ""] if where else [*path[:-1], ""])
        return f"'{key}' is not a key of the search file; {did_you_mean(key, [above + n for n in _names(owner)])}"
    if kind == "missing":
        return f"'{key}' is missing; it has no default, so the search file must give it"
    if kind == "value_error":
        message = str(first["ctx"]["error"])
        return message if not path or path[-1] in message else f"'{key}' {message}"
    # A union reports one problem per branch: any of them would have been right.
    same = [problem for problem in problems if _written_path(problem["loc"], raw) == path]
    rules = list(dict.fromkeys(_rule(problem) for problem in same))
    given = first.get("input")
    if names := rules == ["a list"] and _holds_texts(cls, path):
        rules = ["a name or a list of names"]
    said = f"'{key}' must be {' or '.join(rules)}, got {'null' if given is None else shortened(repr(given))}"
    if rules != ["text"] and not names:
        return said
    # YAML reads the name of a column, such as 2020, as a number, and null or nothing as nothing.
    if given is None:
        return f"{said}; give it, or put it in quotes where null is a name"
    return f"{said}; put it in quotes" if isinstance(given, bool | int | float) else said


def shortened(text: str, most: int = 120) -> str:
    """The beginning of a text that would drown the sentence it is quoted in."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def counted(count: int, noun: str) -> str:
    """`1 trial`, `1,234 trials`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _rule(problem: Any) -> str:
    """What the value must be, for one pydantic problem."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in {"literal_error", "enum"}:
        return str(context["expected"]) if " or " not in str(context["expected"]) else f"one of {context['expected']}"
    if kind.endswith(("too_short", "too_long")):
        bound = f"at least {context['min_length']}" if kind.endswith("short") else f"at most {context['max_length']}"
        return f"a text of {bound} characters" if kind.startswith("string") else f"a list of {bound} items"
    if kind == "string_pattern_mismatch":
        return f"a text that matches {context['pattern']}"
    if kind in _KINDS:
        return _KINDS[kind]
    text = str(problem["msg"])
    return text[text.index(" should ") + len(" should ") :].removeprefix("be ") if " should " in text else text


def _written_path(location: tuple[int | str, ...], raw: object) -> list[str]:
    """The part of a pydantic location that the user wrote; the rest names branches of unions."""
    path: list[str] = []
    for position, part in enumerate(location):
        known = isinstance(raw, dict) and part in raw
        if known or (isinstance(raw, list) and isinstance(part, int) and part < len(raw)):
            raw = raw[part]  # type: ignore[index]
        elif not (isinstance(raw, dict) and position == len(location) - 1):
            continue
        path.append(str(part))
    return path


def _names(owner: type[BaseModel] | None) -> list[str]:
    return [] if owner is None else [field.alias or name for name, field in owner.model_fields.items()]


def _holds_texts(cls: type[BaseModel], path: list[str]) -> bool:
    """Whether a key holds a list of texts."""
    owner = _owner(cls, path[:-1])
    fields = {} if owner is None else owner.model_fields
    return any(path[-1] in (name, field.alias) and field.annotation == list[str] for name, field in fields.items())


def _owner(cls: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """The model class that holds the last key of `path`, by walking the field types."""
    owner: type[BaseModel] | None = cls
    for part in path:
        field = owner.model_fields.get(part) if owner else None
        if field is None:
            return owner
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        owner = nested[0] if nested else None
    return owner
