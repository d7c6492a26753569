"""What a page is made of: sections of blocks. Plain data, which the template lays out and escapes."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    sort: float | str | None = None
    """What the column is sorted by; None = the text."""
    note: str = ""
    """A word behind the text, such as `stopped early`."""


@dataclass(frozen=True)
class Row:
    """One row of a table; `style` is winner, baseline, limit or empty."""

    cells: Sequence[Cell]
    style: str = ""


@dataclass(frozen=True)
class Column:
    """A column's title, whether it holds numbers, which stand on the right, or longer text, which gets room."""

    title: str
    numeric: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Sentences:
    """Paragraphs of plain text."""

    kind: ClassVar[str] = "sentences"
    texts: Sequence[str]


@dataclass(frozen=True)
class Tile:
    """A key figure: what it is, its value, and a line below it."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """Key figures side by side."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Table:
    """A table with its caption; sortable by its headers unless told otherwise."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    sortable: bool = True


@dataclass(frozen=True)
class Figure:
    """A plotly figure and what it shows in words.

    data, layout: plotly's own structures. Colours may be `var(--name)`, a colour of the page's style sheet. Text of
    them that comes from data has to go through `label`.
    """

    kind: ClassVar[str] = "figure"
    id: str
    title: str
    caption: str
    """What is to be seen, computed from the data; stands below the figure."""
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 420
    """Pixels."""
    width: int = 0
    """Pixels that it needs; narrower screens scroll. 0 = any."""

    @property
    def json(self) -> Markup:
        """Data and layout as JSON that may stand in a script element."""
        return embedded({"data": self.data, "layout": self.layout})


@dataclass(frozen=True)
class Figures:
    """Small figures side by side where there is room."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Code:
    """Text to be copied."""

    kind: ClassVar[str] = "code"
    title: str
    text: str
    folded: bool = False
    """Shown on demand only."""


Block = Sentences | Tiles | Table | Figure | Figures | Code


@dataclass(frozen=True)
class Section:
    """A heading, what it says in a sentence or two, and its blocks."""

    id: str
    title: str
    lead: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)


def embedded(value: Any) -> Markup:
    """JSON that can stand in a script element: no character of it begins a tag or ends the script."""
    text = json.dumps(plain(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def plain(value: Any) -> Any:
    """Values that JSON knows: six digits of a number, None for what is not finite, lists for arrays."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        return plain(value.tolist())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return [plain(one) for one in value]


def labels(texts: Sequence[str], most: int = 60) -> list[str]:
    """`label` of each, for an axis of categories; with their places, from 1, where long ones are alike once cut."""
    names = [label(text, most) for text in texts]
    if len(set(names)) == len(names):
        return names
    return [label(f"{place}. {text}", most) for place, text in enumerate(texts, start=1)]


def label(text: object, most: int = 60) -> str:
    """Text of data for a plotly figure, which would read tags in it; shortened to `most` characters."""
    line = " ".join(str(text).split())
    return html.escape(line if len(line) <= most else line[: most - 1] + "…", quote=False)
