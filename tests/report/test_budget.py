"""Families at an equal number of trials, against every choice of k written out."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from xlstm_tune.report.budget import NEVER_BEGUN, equal_budget, expected_best
from xlstm_tune.search.sampling import duplicates


def trial(family: str, value: float | None, status: str = "completed", reason: str | None = None) -> dict[str, Any]:
    return {"family": family, "status": status, "reason": reason, "val_rmse": value}


def test_expected_best_is_the_mean_over_every_choice() -> None:
    values = np.sort(np.random.default_rng(0).random(7))
    by_hand = [np.mean([min(chosen) for chosen in combinations(values, k)]) for k in range(1, 8)]
    np.testing.assert_allclose(expected_best(values), by_hand, rtol=1e-12)


def test_families_with_more_trials_are_held_to_those_with_fewest() -> None:
    rows = [trial("lstm", value) for value in (1.0, 2.0, 3.0, 4.0)] + [trial("xlstm", 1.5), trial("xlstm", 2.5)]
    first, second = equal_budget(rows, "val_rmse")
    assert (first.family, first.trials, first.k, first.best) == ("xlstm", 2, 2, 1.5)
    assert first.expected_best == pytest.approx(1.5)
    # Of four trials the best of two: 1 in three pairs of six, 2 in two, 3 in one.
    assert (second.family, second.best) == ("lstm", 1.0)
    assert second.expected_best == pytest.approx((3 * 1 + 2 * 2 + 3) / 6)
    assert second.curve[0] == pytest.approx(2.5) and second.curve[-1] == 1.0 and len(second.curve) == 4


def test_failed_trials_count_as_the_worst_and_duplicates_not_at_all() -> None:
    rows = [trial("lstm", 1.0), trial("lstm", None, "failed", "diverged"), trial("lstm", 1.0, "duplicate")]
    rows += [trial("xlstm", 5.0, "pruned"), trial("xlstm", 2.0), trial("xlstm", None, "failed", "interrupted")]
    first, second = equal_budget(rows, "val_rmse")
    assert (first.family, first.trials, first.k) == ("lstm", 2, 2) and first.curve == pytest.approx([3.0, 1.0])
    assert (second.family, second.trials) == ("xlstm", 2) and second.curve == pytest.approx([3.5, 2.0])


def test_family_that_only_failed_comes_last_without_figures() -> None:
    rows = [trial("lstm", None, "failed", "diverged"), trial("xlstm", 2.0)]
    first, last = equal_budget(rows, "val_rmse")
    assert first.family == "xlstm" and (first.k, first.std_error) == (1, None)
    assert (last.family, last.best, last.expected_best, last.curve) == ("lstm", None, None, [])
    assert equal_budget([], "val_rmse") == []


def test_std_error_is_that_of_a_mean_for_one_trial() -> None:
    values = np.random.default_rng(1).normal(10, 2, 60)
    rows = [trial("lstm", float(value)) for value in values] + [trial("xlstm", 9.0)]
    found = next(one for one in equal_budget(rows, "val_rmse") if one.family == "lstm")
    assert found.k == 1 and found.expected_best == pytest.approx(values.mean())
    assert found.std_error == pytest.approx(values.std() / np.sqrt(60), rel=0.1)


def test_what_was_refused_before_it_was_trained_is_no_trial() -> None:
    rows = [trial("lstm", value) for value in (3.0, 3.1, 3.2, 3.3)] + [trial("xlstm", 2.0), trial("xlstm", 2.2)]
    rows += [
        trial("xlstm", None, "failed", "too large: 60,000 parameters"),
        trial("xlstm", None, "failed", "invalid: x"),
    ]
    first, second = equal_budget(rows, "val_rmse")
    assert (first.family, first.trials, first.k) == ("xlstm", 2, 2) and first.curve == pytest.approx([2.1, 2.0])
    assert second.k == 2
    assert NEVER_BEGUN == duplicates.NEVER_BEGUN
