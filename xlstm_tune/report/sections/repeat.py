"""How to repeat the search: its file, its environment, the data's fingerprint, and the commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from xlstm_tune.addresses import sqlite_address
from xlstm_tune.report.blocks import Block, Cell, Code, Column, Row, Section, Table
from xlstm_tune.report.record import Record
from xlstm_tune.storage.copy import kept_at


def repeat(record: Record) -> Section:
    """What a stranger needs."""
    storage = str(record.folder.parent)
    kept = kept_at(record.folder) or storage  # a bucket, which checkpoints lie in
    database = sqlite_address(f"{storage}/mlflow.db")
    commands = [
        "# go on with it, or give it more trials",
        f"python -m xlstm_tune.search --resume {shlex.quote(record.folder.name)} --storage {shlex.quote(kept)}",
        "# its runs in MLflow, where the search used the database of its storage folder",
        f"python -m mlflow ui --backend-store-uri {shlex.quote(database)} --workers 1",
        "# this page again",
        f"python -m xlstm_tune.report {shlex.quote(record.folder.name)} --storage {shlex.quote(storage)}",
    ]
    blocks: list[Block] = [Code("Commands", "\n".join(commands))]
    facts = _facts(record)
    if facts:
        rows = [Row([Cell(name), Cell(value)]) for name, value in facts.items()]
        blocks.append(Table("Environment and data", [Column("What"), Column("Value")], rows, sortable=False))
    if record.spec_text:
        blocks.append(Code("The search file, as it was frozen", record.spec_text, folded=True))
    return Section("repeat", "How to repeat it", blocks=blocks)


def _facts(record: Record) -> dict[str, str]:
    """Names and values, flat."""
    facts: dict[str, str] = {}
    shown = ("fingerprint", "samples", "inputs", "lookback", "horizon", "targets", "task")
    data: Mapping[str, Any] = {key: record.data[key] for key in shown if key in record.data}
    for group, values in (("data", data), ("", record.environment)):
        for key, value in values.items():
            name = f"{group} {key}".strip().replace("_", " ")
            if isinstance(value, Mapping):
                facts[name] = ", ".join(f"{inner} {_text(one)}" for inner, one in value.items())
            elif value not in (None, [], ""):
                facts[name] = _text(value)
    if record.started and record.ended:
        facts["started"] = f"{record.started:%Y-%m-%d %H:%M:%S} UTC"
        facts["ended" if not record.running else "last trial ended"] = f"{record.ended:%Y-%m-%d %H:%M:%S} UTC"
    return facts


def _text(value: Any) -> str:
    if isinstance(value, list):
        most = 20
        more = f" and {len(value) - most} more" if len(value) > most else ""
        return ", ".join(str(one) for one in value[:most]) + more
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
