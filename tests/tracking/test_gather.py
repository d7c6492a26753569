"""Metrics, params and tags cut into calls that MLflow takes."""

from __future__ import annotations

import json
from typing import Any

from mlflow.entities import Metric

from xlstm_tune.tracking.gather import batches


def test_batches_keep_within_every_limit_and_lose_nothing() -> None:
    metrics = [Metric(f"m{i % 7}", float(i), i, i) for i in range(2500)]
    params: dict[str, Any] = {f"p{i}": "é" * 7000 for i in range(250)}
    tags = {f"t{i}": "x" * 9000 for i in range(130)}
    cut = list(batches(metrics, params, tags))
    assert [m for batch in cut for m in batch[0]] == metrics
    assert [p.key for batch in cut for p in batch[1]] == list(params)
    assert [t.key for batch in cut for t in batch[2]] == list(tags)
    for some_metrics, some_params, some_tags in cut:
        assert len(some_params) <= 100 and len(some_tags) <= 100
        assert len(some_metrics) + len(some_params) + len(some_tags) <= 1000
        body = {"metrics": [dict(m) for m in some_metrics], "params": [dict(p) for p in some_params]}
        assert len(json.dumps({**body, "tags": [dict(t) for t in some_tags]})) < 1_000_000
        assert all(len(p.value) == 6000 and p.value.endswith("é…") for p in some_params)
        assert all(len(t.value) == 8000 for t in some_tags)


def test_batches_of_a_usual_trial_are_one_call() -> None:
    metrics = [Metric(f"m{i}", 1.0, 0, step) for step in range(30) for i in range(8)]
    cut = list(batches(metrics, {"a": 1, "b": True, "c": None, "d": 0.5, "e": "ms"}, {"status": "completed"}))
    assert len(cut) == 1 and [p.value for p in cut[0][1]] == ["1", "true", "null", "0.5", "ms"]
    assert list(batches([], {}, {})) == []
