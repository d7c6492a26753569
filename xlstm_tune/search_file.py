"""From FILE on the command line to a checked SearchSpec: finding, reading, overriding."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Sequence
from importlib import resources as package_files
from pathlib import Path
from typing import Any

import yaml

from xlstm_tune.data.config import READABLE
from xlstm_tune.errors import SpecError, check_is_text
from xlstm_tune.spec import NAME, SearchSpec
from xlstm_tune.strict import did_you_mean, shortened

QUICKSTART = "quickstart"
MOST_VALUES = 1_000_000
"""Of a search file, its aliases written out: nine lines of aliases can stand for more than any memory holds."""
DEEPEST = 50
"""Mappings and lists inside each other."""
MOST_DIGITS = 400
"""Of a whole number; every float fits."""
OTHER_TABLES = (".xlsx", ".xls", ".ods", ".jsonl", ".ndjson", ".orc", ".gz", ".zip")
"""Endings of tables that cannot be read."""
EITHER = (".txt", ".json")
"""Endings of tables and of search files."""
TABLES = tuple(ending for ending in READABLE if ending not in EITHER)
"""Endings of tables that can be read, which a search file has never."""

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-4 is a number, dates and weeks stay text, a key stands once."""

    def construct_document(self, node: yaml.Node) -> Any:
        _check_node(node, {})
        self._check_keys(node, set())
        return super().construct_document(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what is merged (`<<`) in front: what is written wins, then what is merged first, as YAML has it. PyYAML
        6.0.4 lets the last one win."""
        written = [pair for pair in node.value if pair[0].tag != _MERGE]
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    line = source.start_mark.line + 1
                    raise SpecError(f"line {line}: what << merges must be a mapping, or a list of them")
                self.flatten_mapping(source)
                for pair in source.value:
                    merged.setdefault(pair[0].value, pair)
        mine = {key.value for key, _ in written}
        node.value = [pair for name, pair in merged.items() if name not in mine] + written

    def _check_keys(self, node: yaml.Node, known: set[int]) -> None:
        """Raise SpecError for a key that is written twice. Before anything is merged (`<<`), which writes keys anew."""
        if id(node) in known or isinstance(node, yaml.ScalarNode):
            return
        known.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            for one in node.value:
                self._check_keys(one, known)
            return
        seen: set[Any] = set()
        for key_node, value in node.value:
            line = f"line {key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise SpecError(f"{line}: a list or mapping stands where a key must; write the key as plain text")
            key = "<<" if key_node.tag == _MERGE else self.construct_object(key_node)
            if key in seen:
                raise SpecError(f"{line}: the key '{shortened(str(key))}' stands twice; keep one of them")
            seen.add(key)
            self._check_keys(value, known)


# The scalars of YAML 1.2. PyYAML's own 1.1 reads 1e-4 as text, 2006_1 as a number, 12:30 as 750, off as false.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", "-+.0123456789"),
}
_PLAIN = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map", _MERGE}
_Loader.yaml_implicit_resolvers = {}
_PATTERNS = [(_kind, re.compile(rf"(?:{_pattern})\Z")) for _kind, (_pattern, _) in _SCALARS.items()]
_PATTERNS.append(("float", re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")))
for _kind, _compiled in _PATTERNS:
    _first = _SCALARS[_kind][1]
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", _compiled, [*_first, *([""] if _kind == "null" else [])]
    )
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^(?:<<)$"), ["<"])


def _check_node(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node stands for, its aliases written out, and how deep they lie inside each other.

    known: of the nodes looked at before, by identity; zeros = being looked at.
    Raises ConstructorError for a node that could not be read, or would take all memory.
    """
    if id(node) in known:
        if known[id(node)] == (0, 0):
            raise _problem(node, "an alias stands inside what it is an alias of")
        return known[id(node)]
    known[id(node)] = 0, 0
    _check_tag(node)
    if isinstance(node, yaml.ScalarNode):
        size, depth = 1 + len(node.value) // 64, 0  # an alias repeats long texts as well
    else:
        pairs = isinstance(node, yaml.MappingNode)
        inside = itertools.chain.from_iterable(node.value) if pairs else node.value
        inner = [_check_node(one, known) for one in inside]
        size = 1 + sum(size for size, _ in inner)
        depth = 1 + max((depth for _, depth in inner), default=0)
    if size > MOST_VALUES:
        raise _problem(node, f"it stands for more than {MOST_VALUES:,} values once its aliases are written out")
    if depth > DEEPEST:
        raise _problem(node, f"lists and mappings stand more than {DEEPEST} deep inside each other")
    known[id(node)] = size, depth
    return size, depth


def _check_tag(node: yaml.Node) -> None:
    """A tag such as !!int may be written, but its value must be one; other tags mean nothing here."""
    kind = node.tag.rpartition(":")[2]
    if node.tag in _PLAIN:
        return
    if not node.tag.startswith("tag:yaml.org,2002:") or kind not in _SCALARS or not isinstance(node, yaml.ScalarNode):
        raise _problem(node, f"the tag '{shortened(node.tag)}' has no meaning in a search file; take it out")
    if (kind, True) not in [(found, bool(pattern.match(node.value))) for found, pattern in _PATTERNS]:
        raise _problem(node, f"'{shortened(node.value)}' is no {kind}")
    if kind == "int" and len(node.value) > MOST_DIGITS:
        raise _problem(node, f"a whole number has {len(node.value):,} digits, more than {MOST_DIGITS}")


def _problem(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def shipped_spaces() -> dict[str, Path]:
    """Name → file of the search files that come with the package."""
    installed = Path(str(package_files.files("xlstm_tune"))) / "search_spaces"
    folder = installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_file(file: str) -> Path:
    """The path that FILE means: a path, or the name of a shipped search file. Raises SpecError."""
    path = Path(os.path.expanduser(file))
    # A pipe's end is no regular file. Those of Path would raise for a name that is too long or a folder closed to us.
    if os.path.exists(path) and not os.path.isdir(path):
        return path
    shipped = shipped_spaces()
    if file in shipped:  # beside a folder of that name, too
        return shipped[file]
    if os.path.isdir(path):
        raise SpecError(f"'{file}' is a folder; give a search file (YAML) or a shipped name: {', '.join(shipped)}")
    if path.suffix in (".yaml", ".yml") or path.parent != Path("."):
        nearby = sorted(p.name for p in path.parent.glob("*.y*ml")) if os.path.isdir(path.parent) else []
        hint = (
            did_you_mean(path.name, nearby, dotted=False) if nearby else f"shipped search files: {', '.join(shipped)}"
        )
        raise SpecError(f"there is no search file '{file}'; {hint}")
    raise SpecError(f"'{file}' is neither a file nor a shipped search file; {did_you_mean(file, shipped)}")


def load_spec(file: str, overrides: Sequence[str] = (), **given: Any) -> SearchSpec:
    """Read and check a search file.

    file: a path or the name of a shipped search file.
    overrides: `key=value` texts as `--set` gives them; values are read as YAML. Relative paths of data in them are
    relative to the current folder, those of the file to the file's.
    given: flat keys with `__` for the dot (name, search__trials) that win over both; None means not given.
    Raises SpecError with one sentence.
    """
    path = find_file(file)
    check_is_text(str(path), "the search file")
    if path.name.lower().endswith((*TABLES, *OTHER_TABLES)):  # not read: a table may be large
        raise _no_search_file(file)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{path} cannot be read as YAML: {_yaml_problem(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        if raw is not None and path.name.lower().endswith(EITHER):
            raise _no_search_file(file)
        raise SpecError(
            f"{path} holds {'nothing' if raw is None else type(raw).__name__}; a search file is a mapping of keys"
        )
    _anchor_sources(raw, path.parent)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SpecError(f"--set takes key=value, such as training.epochs=5, got '{text}'")
        if key.count(".") > DEEPEST:
            raise SpecError(f"--set takes a key of the search file, got one of {key.count('.') + 1} parts; shorten it")
        _assign(raw, key.strip(), _yaml_value(value, text))
    for flat, value in given.items():
        if value is not None:
            _assign(raw, flat.replace("__", "."), value)
    if "name" not in raw and not re.fullmatch(NAME, path.stem):
        raise SpecError(
            f"{path} has no key 'name', and its own name cannot be that of a search (letters, digits, '.', '_' and "
            "'-'); add name: or give --name"
        )
    raw.setdefault("name", path.stem)
    _check_json(raw)
    _anchor_sources(raw, Path())
    return SearchSpec.parse(raw)


def _no_search_file(table: str) -> SpecError:
    """What to do with a table that was given in place of a search file."""
    first = "" if table.lower().endswith((*TABLES, ".txt")) else "save it as CSV or Parquet, and "
    source = "THE SAVED FILE" if first else table
    return SpecError(
        f"{table} is a table, not a search file; {first}write a file such as mine.yaml with `data: {{source: {source}, "
        "time: {column: ...}, target: ..., lookback: ..., horizon: ...}` and give that "
        f"(a whole one to look at: {shipped_spaces()[QUICKSTART]})"
    )


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _yaml_value(value: str, text: str) -> Any:
    try:
        found = yaml.load(value, Loader=_Loader)
        comment = _comment_behind_a_value(value)
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"--set {text}: the value cannot be read as YAML: {_yaml_problem(error)}") from None
    if comment:
        raise SpecError(
            f"--set {text}: '{comment}' is a comment to YAML, which values are written in; put what is meant into "
            "double quotes, within single quotes for the shell: 'KEY=\"VALUE\"'"
        )
    return found


def _comment_behind_a_value(text: str) -> str:
    """The first comment behind something on its line, or that is all there is; empty where there is none."""
    end = 0
    for token in yaml.scan(text, Loader=_Loader):
        gap = text[end : token.start_mark.index].partition("\n")[0].strip()
        if gap.startswith("#"):
            return gap
        end = token.end_mark.index
    return ""


def _assign(raw: dict[Any, Any], key: str, value: Any, above: str = "") -> None:
    """Set a dotted key; keys of `space`, `population` and `when` keep their dots (space.model.dropout).

    above: where `raw` lies, with a dot behind; empty for the whole file.
    """
    head, _, rest = key.partition(".")
    if not rest:
        raw[head] = value
        return
    if (section := raw.setdefault(head, {})) is None:  # a heading with nothing below it
        section = raw[head] = {}
    if f"{above}{head}" == "data.time" and isinstance(section, str):  # as much as its `column`
        section = raw[head] = {"column": section}
    if not isinstance(section, dict):
        raise SpecError(
            f"--set {above}{key}: '{above}{head}' holds a value, not a mapping, so nothing can be set below it"
        )
    if head in ("population", "when"):
        section[rest] = value
        return
    if head != "space":
        _assign(section, rest, value, f"{above}{head}.")
        return
    parts = rest.split(".")
    name = next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in section), ".".join(parts[:2]))
    below = rest[len(name) + 1 :]
    if below:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise SpecError(f"--set {key}: 'space.{name}' holds a value, not a mapping, so nothing can be set below it")
        _assign(section, below, value, f"space.{name}.")
    else:
        section[name] = value


def _check_json(raw: dict[Any, Any]) -> None:
    """Only plain keys and values may stand in a search file."""
    key = _not_finite(raw)
    if key is not None:
        raise SpecError(
            f"the search file holds a value that is not plain text, number, list or mapping: '{shortened(key)}' is "
            "infinite or no number; give a finite one, or put it in quotes where it is text"
        )
    try:
        json.dumps(raw, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise SpecError(f"the search file holds half a character, {half}; write the whole one") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(
            f"the search file holds a value that is not plain text, number, list or mapping: {error}"
        ) from None


def _not_finite(value: Any, path: tuple[str, ...] = ()) -> str | None:
    """The dotted key of the first number that is infinite or not a number."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".".join(path)
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (_not_finite(one, (*path, str(key))) for key, one in inside)
    return next((key for key in found if key is not None), None)


def _anchor_sources(raw: dict[Any, Any], folder: Path) -> None:
    """Relative data paths are relative to `folder`: in a search file to its own, in `--set` to where one is."""
    data = raw.get("data")
    if not isinstance(data, dict):
        return
    source = data.get("source")
    many = [one for one in (source if isinstance(source, list) else [source]) if isinstance(one, str)]
    if isinstance(source, list) and len(many) < len(source):
        return  # wrong types are refused by the check that follows
    if many:
        data["source"] = [one if _anchored(one) else str((folder / one).absolute()) for one in many]


def _anchored(source: str) -> bool:
    address = re.match(r"^(sample:|[A-Za-z][A-Za-z0-9+.-]*://)", source)
    return address is not None or os.path.isabs(os.path.expanduser(source))
