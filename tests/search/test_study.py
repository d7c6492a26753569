"""The study behind a searcher: resumed, refused, or kept in any storage that Optuna knows."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from searcher_bench import SMALL, Bench, check_all_told, ended_lines, fate, make_spec

from xlstm_tune.errors import StorageError
from xlstm_tune.search.sampling.duplicates import DUPLICATE_OF, REASON, TrialEnd
from xlstm_tune.search.sampling.study import JOURNAL, open_study


def test_resume_knows_what_is_done_and_goes_on_with_what_was_open_under_the_same_numbers(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=8, seed=1)
    dead = Bench(spec, tmp_path)
    done, failed, lost, silent = (dead.ask() for _ in range(4))
    assert done and failed and lost and silent
    dead.end(done, 4, 1.5, status="completed", finished=True)
    dead.end(failed, 1, math.nan, status="failed", reason="error: X")
    dead.epoch(lost, 1, 2.0)
    dead.searcher.study.enqueue_trial(dict(dead.started[done]))  # and it died before it asked

    bench = Bench(spec, tmp_path, resume=True)
    assert [trial.state for trial in bench.trials()] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.RUNNING,
        TrialState.RUNNING,
        TrialState.COMPLETE,
    ]
    assert [trial.user_attrs.get(REASON) for trial in bench.trials()] == [None, "error: X", None, None, None]
    assert [(end.number, end.status, end.value, end.duplicate_of) for end in bench.ends] == [(4, "duplicate", 1.5, 0)]
    assert bench.searcher.started == 4
    first, second = bench.ask(), bench.ask()
    assert first and second
    assert [bench.numbers[first], bench.numbers[second]] == [dead.numbers[lost], dead.numbers[silent]]
    assert [bench.started[first], bench.started[second]] == [dead.started[lost], dead.started[silent]]
    assert [bench.known[first], bench.known[second]] == [1, 0]
    bench.epoch(first, 2, 1.9)
    bench.searcher.close("interrupted")

    again = Bench(spec, tmp_path, resume=True)
    again.run(lambda params: "completed")
    assert again.searcher.started == 8
    assert list(again.numbers.values())[:2] == [2, 3] and list(again.known.values())[:2] == [2, 0]
    assert Counter(t.state for t in again.trials() if DUPLICATE_OF not in t.user_attrs) == {
        TrialState.COMPLETE: 7,
        TrialState.FAIL: 1,
    }
    assert ended_lines(tmp_path) == [trial.number for trial in again.trials()]
    assert again.trials()[2].intermediate_values[1] == 2.0 and again.trials()[2].intermediate_values[2] == 1.9


def test_resume_draws_new_numbers(tmp_path: Path) -> None:
    space = {"training.learning_rate": {"log_float": [1e-4, 1e-2]}}
    first = Bench(make_spec(space, algorithm="random", trials=4), tmp_path)
    first.run(lambda params: "completed")
    second = Bench(make_spec(space, algorithm="random", trials=8), tmp_path, resume=True)
    second.run(lambda params: "completed")
    assert len(second.started) == 4
    assert not any(end.status == "duplicate" for end in second.ends)


def test_resume_continues_grid_and_start_points_where_they_stopped(tmp_path: Path) -> None:
    spec = make_spec(SMALL, algorithm="grid")
    Bench(spec, tmp_path).ask()
    bench = Bench(spec, tmp_path, resume=True)
    bench.run(lambda params: "completed")
    assert bench.searcher.started == 12 == len(bench.started)
    assert not any(end.status == "duplicate" for end in bench.ends)

    (tmp_path / "starts").mkdir()
    starts = [{"model.hidden_size": size} for size in (128, 64, 32)]
    spec = make_spec(SMALL, trials=6, start_with=starts)
    first = Bench(spec, tmp_path / "starts")
    trial_id = first.ask()
    assert trial_id
    first.end(trial_id, 1, 1.0)
    second = Bench(spec, tmp_path / "starts", resume=True)
    asked = [second.ask(), second.ask()]
    assert [second.started[key]["model.hidden_size"] for key in asked if key] == [64, 32]


def test_a_start_point_that_was_open_is_not_begun_again(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=3, start_with=[{"model.hidden_size": size} for size in (128, 64)])
    first = Bench(spec, tmp_path)
    assert first.ask() and first.ask()
    second = Bench(spec, tmp_path, resume=True)
    second.run(lambda params: "completed")
    assert list(second.numbers.values())[:2] == [0, 1] and second.searcher.started == 3
    assert [trial.user_attrs.get("start") for trial in second.trials()][:2] == [0, 1]
    assert not [trial for trial in second.trials()[2:] if "start" in trial.user_attrs]


def test_resume_survives_a_half_written_line(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=3)
    bench = Bench(spec, tmp_path)
    trial_id = bench.ask()
    assert trial_id
    bench.end(trial_id, 1, 1.0)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 4, "worker_id": "' + b"x" * 9000)
    for begun in (1, 2):  # the second of which the first left open
        again = Bench(spec, tmp_path, resume=True)
        assert again.searcher.started == begun
        assert again.ask()


@pytest.mark.parametrize("line", [b"null\n", b"[]\n", b'{"op_code": "x"}\n', b'{"op_code": 4}\n', b"\0" * 90 + b"\n"])
def test_a_damaged_line_of_the_study_is_one_sentence(line: bytes, tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=3)
    bench = Bench(spec, tmp_path)
    bench.ask()
    bench.journal.close()
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:-1], line, lines[-1]]))
    with pytest.raises(StorageError) as caught:
        open_study("t", spec.search, tmp_path, resume=True)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / JOURNAL} is damaged (") and "\n" not in message
    assert message.endswith("; bring it back, or remove it: --resume makes it anew from the search's own journal")
    (tmp_path / JOURNAL).unlink()
    assert Bench(spec, tmp_path, resume=True).searcher.made_up == 1


def test_a_name_already_used_is_refused_and_offers_resume(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=3)
    Bench(spec, tmp_path)
    with pytest.raises(StorageError, match="already holds a search named 't'; resume it"):
        Bench(spec, tmp_path)


def test_storage_can_be_any_optuna_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    bench = Bench(make_spec(SMALL, trials=4, storage=url), tmp_path)
    bench.run(fate)
    check_all_told(bench)
    assert not (tmp_path / JOURNAL).exists()
    assert len(optuna.load_study(study_name="t", storage=url).trials) == len(bench.trials())


@pytest.mark.parametrize("url", ["sqlite:////nowhere/x.db", "nonsense://me:secret@x", "not a url"])
def test_a_storage_that_cannot_be_opened_is_one_sentence_without_passwords(url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        open_study("t", make_spec(SMALL, storage=url).search, tmp_path)
    message = str(caught.value)
    assert url[:8] in message and "\n" not in message and "secret" not in message


@pytest.mark.parametrize("held", [None, 0, 1])
def test_a_study_that_lacks_trials_of_the_journal_is_refused(held: int | None, tmp_path: Path) -> None:
    """held: trials of another search of the same name; None where the storage knows none."""
    mine = tmp_path / "mine"
    mine.mkdir()
    first = Bench(make_spec(SMALL, trials=2), mine)
    first.run(lambda params: "completed")
    first.journal.close()
    url = f"sqlite:///{tmp_path}/studies.db"
    storage = optuna.storages.get_storage(url)
    if held is not None:
        other = optuna.create_study(study_name="t", storage=storage)
        for _ in range(held):
            other.ask()
    spec = make_spec(SMALL, trials=4, storage=url)
    with pytest.raises(StorageError) as caught:
        Bench(spec, mine, resume=True)
    message = str(caught.value)
    lacking = f"lacks {2 - (held or 0)} trial{'s' if not held else ''} that the search 't' has had"
    assert lacking in message and url in message and "search.storage" in message and "\n" not in message
    assert len(storage.get_all_studies()) == (held is not None), "what was refused leaves no study"
    again = Bench(make_spec(SMALL, trials=4), mine, resume=True)
    again.run(lambda params: "completed")
    assert again.searcher.started == 4


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
@pytest.mark.parametrize("kept", [None, 0.0, 0.3, 0.6, 0.9])
def test_a_study_that_was_lost_is_made_anew(kept: float | None, algorithm: str, tmp_path: Path) -> None:
    """kept: the share of the file that is left; None = none. Two trials are under way."""
    spec = make_spec(SMALL, trials=9, algorithm=algorithm, start_with="defaults")
    first = Bench(spec, tmp_path)
    for outcome in ("completed", "pruned", "diverged", "nan", "completed"):
        trial_id = first.ask()
        assert trial_id and any(first.step(trial_id, epoch, outcome) for epoch in range(1, 5))
    first.ask()
    under_way = first.ask()
    assert under_way
    first.epoch(under_way, 1, 2.0)
    first.journal.close()
    whole = first.trials()
    content = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).unlink()
    if kept is not None:
        (tmp_path / JOURNAL).write_bytes(content[: int(kept * len(content))])
    again = Bench(spec, tmp_path, resume=True)
    assert again.searcher.made_up == len(whole) if not kept else again.searcher.made_up < len(whole)
    for before, now in zip(whole, again.trials(), strict=True):
        for what in ("number", "state", "values", "params", "distributions", "intermediate_values", "user_attrs"):
            assert getattr(now, what) == getattr(before, what), what
        assert now.constraints == before.constraints
    assert again.searcher.started == first.searcher.started
    again.run(lambda params: "completed")
    assert again.searcher.started == 9
    assert ended_lines(tmp_path) == [trial.number for trial in again.trials()]


def test_a_study_that_lacks_a_refused_trial_has_it_anew(tmp_path: Path) -> None:
    """Its number would be given out again, and the journal would have two configurations of it."""
    with_end = Bench(make_spec(SMALL, trials=1), tmp_path)
    with_end.journal.ended(TrialEnd(0, None, "failed", "invalid: no model", None, {}))
    with_end.journal.close()
    again = Bench(make_spec(SMALL, trials=1), tmp_path, resume=True)
    (lost,) = again.trials()
    assert again.searcher.made_up == 1 and lost.state == TrialState.FAIL and again.searcher.started == 1
