"""A driver killed after any write of its own: the next one ends every trial once, and trains nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from searcher_bench import MIXED, SMALL, Bench, ended_lines, fate, make_spec

from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.persistence import journal as search_journal
from xlstm_tune.search.persistence.journal import Journal, read_journal
from xlstm_tune.search.sampling import study as optuna_study
from xlstm_tune.search.sampling.duplicates import DUPLICATE_OF, TOO_LARGE, never_begun
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.search.sampling.study import SyncedJournal
from xlstm_tune.spec import SearchSpec

WIDTHS = {"model.hidden_size": {"choice": [*range(2, 802, 2), 3]}, "model.dropout": {"float": [0.0, 0.5]}}
SPECS = {
    "random": make_spec(MIXED, algorithm="random", trials=3),
    "copies": make_spec(
        {"model.hidden_size": {"choice": [32, 64]}, "model.dropout": {"choice": [0.0, 0.1]}},
        algorithm="random",
        trials=3,
        start_with=[{"model.hidden_size": 64}],
    ),
    "grid": make_spec(SMALL, algorithm="grid", trials=3),
    "refused": make_spec(WIDTHS, algorithm="random", trials=2, start_with=[{"model.hidden_size": 3}]),  # with 2 heads
    "too large": make_spec(
        {"model.hidden_size": {"choice": [4, 8, 64, 68]}, "model.dropout": {"float": [0.0, 0.5]}},
        algorithm="random",
        trials=3,
        constraints={"max_parameters": 10_000},
    ),
}
SPECS["refused"] = SPECS["refused"].model_copy(update={"model": SPECS["refused"].model.model_copy(update={"heads": 2})})


class Moments:
    """How long the two records were after each write to either of them, in order."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.study, self.journal = folder / optuna_study.JOURNAL, folder / search_journal.JOURNAL
        self.sizes: list[tuple[int, int]] = []
        self._watch(SyncedJournal, "append_logs", patch)
        self._watch(Journal, "_add", patch)

    def _watch(self, kind: type, name: str, patch: pytest.MonkeyPatch) -> None:
        write = getattr(kind, name)

        def writes(*arguments: Any, **named: Any) -> None:
            write(*arguments, **named)
            self.sizes.append((_size(self.study), _size(self.journal)))

        patch.setattr(kind, name, writes)

    def states(self) -> list[tuple[bytes, bytes]]:
        """Both records as a kill could have left them: after each write, and in the middle of it."""
        study, journal = self.study.read_bytes(), self.journal.read_bytes()
        found, last = [], (0, 0)
        for size in self.sizes:
            half = tuple((before + after) // 2 for before, after in zip(last, size, strict=True))
            for first, second in (half, size):
                found.append((study[:first], journal[:second]))
            last = size
        return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_ended(spec: SearchSpec, folder: Path, last: Bench, limit: int) -> None:
    """What must hold after the last driver, whatever happened to those before it."""
    trials = last.trials()
    assert all(trial.state.is_finished() for trial in trials)
    assert ended_lines(folder) == [trial.number for trial in trials]
    ends = {number: past.end for number, past in read_journal(folder).trials.items()}
    keys: Counter[str] = Counter()
    states = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    for trial in trials:
        end = ends[trial.number]
        assert end is not None
        if end.status == "duplicate":
            assert trial.user_attrs[DUPLICATE_OF] == end.duplicate_of
            continue
        too_large = str(end.reason).startswith(TOO_LARGE)  # from which samplers learn
        assert trial.state == (TrialState.PRUNED if too_large else states[end.status]) and trial.value == end.value
        if not never_begun(end.reason):
            keys[spec.resolve(end.params).key()] += 1
    assert set(keys.values()) == {1} and len(keys) == limit == last.searcher.started
    reported = [end.number for end in last.ends]
    assert len(reported) == len(set(reported))


def begun(spec: SearchSpec, folder: Path) -> set[str]:
    """The configurations that a search has tried."""
    ends = [past.end for past in read_journal(folder).trials.values()]
    tried = [end for end in ends if end and end.status != "duplicate" and not never_begun(end.reason)]
    return {spec.resolve(end.params).key() for end in tried}


@pytest.mark.parametrize("name", SPECS)
def test_a_kill_after_any_write_loses_nothing_and_repeats_nothing(
    name: str, tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, space = SPECS[name], Space.from_spec(SPECS[name])
    folder = tmp_path / "whole"
    folder.mkdir()
    with monkeypatch.context() as patch:
        moments = Moments(folder, patch)
        whole = Bench(spec, folder, space=space, data=data)
        whole.run(fate, concurrent=2)
    limit = whole.searcher.started
    check_ended(spec, folder, whole, limit)
    if name == "copies":
        assert any(end.status == "duplicate" for end in whole.ends)
    if name == "refused":
        assert str(whole.ends[0].reason).startswith("invalid: ")
    states = moments.states()
    events = [json.loads(line)["e"] for line in moments.journal.read_bytes().splitlines()]
    assert {"began", "epoch", "ended"} <= set(events) and len(states) > 2 * len(events)
    for place, (study, journal) in enumerate(states):
        cut = tmp_path / f"cut-{place}"
        cut.mkdir()
        (cut / optuna_study.JOURNAL).write_bytes(study)
        (cut / search_journal.JOURNAL).write_bytes(journal)
        before = read_journal(cut).trials
        resumed = Bench(spec, cut, resume=True, space=space, data=data)
        resumed.run(fate, concurrent=2)
        check_ended(spec, cut, resumed, limit)
        assert begun(spec, cut) == begun(spec, folder), f"as if nothing had happened (cut {place})"
        for trial_id, number in resumed.numbers.items():
            if number in before:
                assert before[number].end is None, f"trial {number} had ended and was begun again (cut {place})"
                assert resumed.started[trial_id] == before[number].params
                assert resumed.known[trial_id] >= before[number].epoch
        resumed.journal.close()


@pytest.mark.parametrize("name", SPECS)
def test_a_power_cut_gives_no_number_out_twice(
    name: str, tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any line of the journal may have come to the disk by itself, and of the study what was forced to it."""
    spec, space = SPECS[name], Space.from_spec(SPECS[name])
    folder = tmp_path / "whole"
    folder.mkdir()
    study, journal = folder / optuna_study.JOURNAL, folder / search_journal.JOURNAL
    forced, states = [0], []
    sync, write = SyncedJournal.sync, Journal._add

    def syncs(self: SyncedJournal) -> None:
        sync(self)
        forced[0] = _size(study)

    def writes(self: Journal, event: str, **fields: Any) -> None:
        write(self, event, **fields)
        states.append((forced[0], _size(journal)))

    with monkeypatch.context() as patch:
        patch.setattr(SyncedJournal, "sync", syncs)
        patch.setattr(Journal, "_add", writes)
        whole = Bench(spec, folder, space=space, data=data)
        whole.run(fate, concurrent=2)
    aside = sum(end.trial_id is None for end in whole.ends)
    assert aside or name not in ("copies", "refused", "too large")
    for place, sizes in enumerate(states):
        cut = tmp_path / f"cut-{place}"
        cut.mkdir()
        for path, size in zip((study, journal), sizes, strict=True):
            (cut / path.name).write_bytes(path.read_bytes()[:size])
        resumed = Bench(spec, cut, resume=True, space=space, data=data)
        resumed.run(fate, concurrent=2)
        check_ended(spec, cut, resumed, whole.searcher.started)
        told = {number: past.params for number, past in read_journal(cut).trials.items()}
        assert told == {trial.number: space.canonical(trial.params) for trial in resumed.trials()}, f"cut {place}"
        resumed.journal.close()
