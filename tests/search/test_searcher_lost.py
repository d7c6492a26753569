"""Configurations whose worker was lost go on with another one, and not for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from searcher_bench import SMALL, Bench, check_all_told, make_spec

from xlstm_tune.search.persistence.journal import JOURNAL, read_journal
from xlstm_tune.search.sampling.duplicates import REASON
from xlstm_tune.search.sampling.searcher import TRIES, OptunaSearcher
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.search.scheduling.losses import NODE_LOST


def lose(bench: Bench, trial_id: str) -> None:
    bench.searcher.on_trial_complete(trial_id, error=True)


def ask(bench: Bench) -> str:
    trial_id = bench.ask()
    assert trial_id
    return trial_id


def test_a_worker_lost_again_and_again_without_an_epoch_fails_with_the_reason(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=2), tmp_path)
    trial_id = ask(bench)
    bench.epoch(trial_id, 1, 2.0)
    for _ in range(TRIES - 1):
        lose(bench, trial_id)
        assert not bench.ends
        trial_id = ask(bench)
        assert (bench.numbers[trial_id], bench.known[trial_id]) == (0, 1)
    lose(bench, trial_id)
    (end,) = bench.ends
    assert (end.number, end.status, end.value) == (0, "failed", None)
    assert end.reason == f"worker died, {TRIES} times in a row without a new epoch"
    assert bench.trials()[0].state == TrialState.FAIL and bench.trials()[0].user_attrs[REASON] == end.reason
    assert bench.numbers[ask(bench)] == 1


def test_an_epoch_in_between_lets_it_lose_as_many_again(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=1), tmp_path)
    for epoch in range(1, 4):
        for _ in range(TRIES - 2):
            lose(bench, ask(bench))
        trial_id = ask(bench)
        bench.epoch(trial_id, epoch, 2.0)
        lose(bench, trial_id)
    assert not bench.ends
    bench.end(ask(bench), 4, 1.0, status="completed", finished=True)
    check_all_told(bench)


def test_an_epoch_that_optuna_knows_and_the_journal_does_not_is_told_again(tmp_path: Path) -> None:
    """As after a power cut that left Optuna's last line on the disk, and not the search's own."""
    spec = make_spec(SMALL, trials=1)
    bench = Bench(spec, tmp_path)
    trial_id = ask(bench)
    for epoch in (1, 2):
        bench.epoch(trial_id, epoch, 2.0)
    bench.journal.close()
    journal = tmp_path / JOURNAL
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    again = Bench(spec, tmp_path, resume=True)
    assert again.known[ask(again)] == 1


def test_an_epoch_that_was_known_before_is_no_sign_of_life(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=1), tmp_path)
    for _ in range(TRIES):
        trial_id = ask(bench)
        bench.epoch(trial_id, 1, 2.0)
        lose(bench, trial_id)
    (end,) = bench.ends
    assert end.status == "failed"


def test_a_machine_that_is_lost_is_no_word_on_what_was_trained_there(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=1), tmp_path)
    bench.searcher = OptunaSearcher(
        bench.spec,
        Space.from_spec(bench.spec),
        tmp_path,
        bench.journal,
        resume=True,
        on_end=bench.ends.append,
        why_lost=lambda trial_id: NODE_LOST,
    )
    for _ in range(3 * TRIES):
        lose(bench, ask(bench))
    assert not bench.ends
    bench.run(lambda params: "completed")
    check_all_told(bench)


def test_losses_of_an_earlier_driver_do_not_count(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=1), tmp_path)
    for _ in range(TRIES - 1):
        lose(bench, ask(bench))
    again = Bench(bench.spec, tmp_path, resume=True)
    for _ in range(TRIES - 1):
        lose(again, ask(again))
    assert not again.ends


def test_the_search_is_not_over_while_a_worker_may_be_lost(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=1), tmp_path)
    trial_id = ask(bench)
    assert bench.searcher.suggest("other") is None
    lose(bench, trial_id)
    bench.end(ask(bench), 1, 1.0)
    assert bench.searcher.suggest("other") == OptunaSearcher.FINISHED


@pytest.mark.parametrize("epochs", [0, 2])
def test_every_loss_is_written_down(epochs: int, tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=1), tmp_path)
    trial_id = ask(bench)
    for epoch in range(epochs):
        bench.epoch(trial_id, epoch + 1, 2.0)
    lose(bench, trial_id)
    past = read_journal(tmp_path).trials[0]
    assert past.epoch == epochs and past.end is None
    assert b'"e": "died"' in (tmp_path / "search.journal").read_bytes().splitlines()[-1]
