"""Events of the spool, gathered by run and cut into what MLflow takes in one call."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from mlflow.entities import Metric, Param, RunTag

from xlstm_tune.tracking.spool import Scalar

# MLflow's limits for one log_batch: 1000 entities, of these 100 params and 100 tags; 1 MB of JSON.
_ENTITIES, _PARAMS, _BYTES = 1000, 100, 900_000
_KEY_CHARACTERS, _PARAM_CHARACTERS, _TAG_CHARACTERS = 250, 6000, 8000
_NOT_IN_KEYS = re.compile(r"[^\w\-. :/]")

Batch = tuple[list[Metric], list[Param], list[RunTag]]


@dataclass
class Pending:
    """Everything that one gather of events says about one run."""

    started: int | None = None  # ms since 1970; None if the run began in an earlier gather
    name: str = ""
    params: dict[str, Scalar] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    step: int = -1  # the last step of the curves, with what is in `metrics`
    files: list[tuple[str, str]] = field(default_factory=list)  # path, artifact folder
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)  # registered name: the champion's folder
    status: str | None = None
    ended: int | None = None  # ms since 1970
    events: int = 0


def gather(events: Iterable[Mapping[str, Any]], last_step: Callable[[int | None], int]) -> dict[int | None, Pending]:
    """By trial number, None being the search itself. `last_step`: up to where a run's curves have been sent."""
    gathered: dict[int | None, Pending] = {}
    for event in events:
        number = event.get("number")
        if number not in gathered:
            gathered[number] = Pending(step=last_step(number))
        pending = gathered[number]
        pending.events += 1
        kind, when = event["e"], event["t"]
        pending.tags |= event.get("tags", {})
        pending.files += [(path, event.get("where", "")) for path in event.get("artifacts", ())]
        if kind in {"search_started", "trial_started"}:
            pending.started = pending.started or when
            pending.name, pending.status, pending.ended = event["name"], None, None
            pending.params = event["params"] | pending.params  # the first word counts: params cannot be changed
            pending.tags["status"] = "running"
        elif kind in {"search_ended", "trial_ended"}:
            pending.status, pending.ended = event["status"], when
            pending.tags["status"] = event["status"]
            if event.get("reason"):
                pending.tags["reason"] = event["reason"]
        elif kind == "model":
            pending.models[event["name"]] = event["where"]  # of several the last
        elif kind == "table":
            pending.tables[event["name"]] = {"columns": event["columns"], "data": event["rows"]}
        step = event.get("step")
        if step is not None:
            if step <= pending.step:
                continue  # repeated after an interruption; its point is on the curve already
            pending.step = step
        metrics = event.get("metrics", {}).items()
        pending.metrics += [Metric(mlflow_key(key), value, when, step or 0) for key, value in metrics]
    return gathered


def batches(metrics: Iterable[Metric], params: Mapping[str, Scalar], tags: Mapping[str, str]) -> Iterator[Batch]:
    """Cut into log_batch arguments, each within MLflow's limits of numbers and bytes. Nothing in, nothing out."""
    values = [
        Param(mlflow_key(key), _cut(value if isinstance(value, str) else json.dumps(value), _PARAM_CHARACTERS))
        for key, value in params.items()
    ]
    batch: Batch = ([], [], [])
    size = 0
    # Params and tags first, side by side, so that a trial's usual few share one call with its metrics.
    both = [each for pair in zip_longest(values, run_tags(tags)) for each in pair if each is not None]
    for entity in [*both, *metrics]:
        if isinstance(entity, Metric):
            room, bytes_ = _ENTITIES, 120 + len(entity.key)
        else:
            room = _PARAMS - len(batch[1] if isinstance(entity, Param) else batch[2])
            bytes_ = 40 + len(json.dumps([entity.key, entity.value]))
        if room == 0 or sum(map(len, batch)) == _ENTITIES or size + bytes_ > _BYTES:
            yield batch
            batch, size = ([], [], []), 0
        if isinstance(entity, Metric):
            batch[0].append(entity)
        elif isinstance(entity, Param):
            batch[1].append(entity)
        else:
            batch[2].append(entity)
        size += bytes_
    if size:
        yield batch


def run_tags(tags: Mapping[str, str]) -> list[RunTag]:
    """As MLflow's entities, cut to what MLflow takes."""
    return [RunTag(mlflow_key(key), _cut(str(value), _TAG_CHARACTERS)) for key, value in tags.items()]


def mlflow_key(name: str) -> str:
    """A name with what MLflow refuses in it (°, %, =, …) replaced; refused, it would take its whole batch along."""
    return _NOT_IN_KEYS.sub("_", name)[:_KEY_CHARACTERS]


def _cut(text: str, limit: int) -> str:
    text = clean(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean(text: str) -> str:
    """Without what no database stores: NUL, and halves of characters, as file names that are not UTF-8 hold them."""
    return text.encode(errors="replace").decode().replace("\0", "?")
