"""Which trials stand for their architectures: they are scored on the test part and compared there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from xlstm_tune.ranking import scored

MOST = 12
"""More would each cost a pass over the test part, and every comparison asks the others for more evidence."""


def contenders(rows: Iterable[dict[str, Any]], objective: str) -> list[dict[str, Any]]:
    """The best scored trial of each family, and of each block pattern of mixed stacks, best first.

    rows: of the trials table, `params` as JSON or a dict. objective: with its `val_`. Pruned trials may stand for
    theirs: their best epoch counts as any other's. At most MOST, and the best of each family in any case.
    """
    ranked = scored(rows, objective)
    families: dict[str, int] = {}
    patterns: dict[tuple[str, str | None], int] = {}
    for place, row in enumerate(ranked):
        families.setdefault(row["family"], place)
        patterns.setdefault((row["family"], _pattern(row)), place)
    first = set(families.values())
    others = sorted(set(patterns.values()) - first)
    return [ranked[place] for place in sorted(first | set(others[: max(0, MOST - len(first))]))]


def _pattern(row: dict[str, Any]) -> str | None:
    """None where the search does not vary it."""
    params = row["params"] if isinstance(row["params"], dict) else json.loads(row["params"] or "{}")
    pattern: str | None = params.get("model.pattern")
    return pattern
