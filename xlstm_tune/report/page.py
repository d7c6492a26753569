"""A search's page: one HTML file that holds everything it needs, and asks no network for anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import PAGE
from xlstm_tune.report.blocks import Figure, Figures, Section
from xlstm_tune.report.leaderboard import Leaderboard
from xlstm_tune.report.record import Record, read_record
from xlstm_tune.report.sections import SECTIONS
from xlstm_tune.report.style import metric_title


def write_page(folder: Path, output: Path | None = None, board: Leaderboard | None = None) -> Path:
    """Build the page of a search and put it in its folder, or at `output`; a reader sees the old or the new one, whole.

    board: as for `read_record`.
    Returns where it is. Raises StorageError when the folder holds no results, or the file cannot be written.
    """
    path = output or folder / PAGE
    return write_text(path, build_page(read_record(folder, board)))


def build_page(record: Record) -> str:
    """The whole page as HTML."""
    sections = [made for section in SECTIONS if (made := section(record)) is not None]
    return render(
        title=f"{record.name}: search report",
        heading=record.name,
        kind="Search report",
        facts=_facts(record),
        sections=sections,
    )


def render(title: str, heading: str, kind: str, facts: Sequence[str], sections: Sequence[Section]) -> str:
    """Sections as a page. `facts`: a few words each, for the line below the heading."""
    environment = Environment(
        loader=PackageLoader("xlstm_tune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        heading=heading,
        kind=kind,
        facts=facts,
        sections=sections,
        css=_asset("page.css"),
        script=_asset("page.js"),
        plotly=_plotly() if any(_has_figures(section) for section in sections) else "",
    )


def write_text(path: Path, text: str) -> Path:
    """Write under a temporary name, then rename. Raises StorageError when that is not possible."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError):  # read-only, or no folder
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{path} cannot be written ({reason}); name another file with --output") from None
    return path


def _facts(record: Record) -> list[str]:
    words = {"running": "not ended; last trial", "completed": "ended", "interrupted": "interrupted"}
    state = words.get(record.status, record.status)
    when = f" {record.ended:%Y-%m-%d %H:%M} UTC" if record.ended else ""
    facts = [
        f"minimises {metric_title(record.metric)} on validation",
        state + when if when else state.partition(";")[0],
    ]
    return [*facts, f"page built {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"]


def _has_figures(section: Section) -> bool:
    return any(isinstance(block, (Figure, Figures)) for block in section.blocks)


def _asset(name: str) -> Markup:
    return Markup((files("xlstm_tune.report") / "templates" / name).read_text(encoding="utf-8"))


def _plotly() -> Markup:
    """plotly.js as the Python package ships it."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    assert "</script" not in source.lower()
    return Markup(source)
