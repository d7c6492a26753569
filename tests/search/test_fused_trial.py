"""Several configurations in one Ray trial, without Ray: the rows of each are those that it has alone."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from trial_data import NEVER, damage, drain, newest, one_row, steady

from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.search.persistence.folder import STOPPED, WEIGHTS
from xlstm_tune.search.trials.checkpoints import SHARE, SUMS, Checkpoints
from xlstm_tune.search.trials.fused_trial import Fused, FusedTrial
from xlstm_tune.search.trials.single_trial import SingleTrial
from xlstm_tune.training.checkpoint import load_weights
from xlstm_tune.training.config import TrainingConfig, TrialConfig

RATES = (0.01, 0.1, 10.0)
"""The last one diverges."""


pytestmark = pytest.mark.usefixtures("save_every_epoch")


def runs(folder: Path, rates: tuple[float, ...] = RATES, known: int = 0, dropout: float = 0.0) -> list[Fused]:
    model = ModelConfig(family="slstm", layers=1, hidden_size=4, heads=2, dropout=dropout)
    found = []
    for number, rate in enumerate(rates):
        training = TrainingConfig(epochs=4 - number, optimiser="sgd", clip=0.0, batch_size=32, learning_rate=rate)
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        found.append(Fused(7 + number, TrialConfig(model, training, 5), folder / str(number), known))
    return found


def by_number(trial: FusedTrial) -> dict[int, list[dict[str, Any]]]:
    """All rows of each configuration."""
    rows: dict[int, list[dict[str, Any]]] = {}
    while step := trial.step():
        for row in step:
            rows.setdefault(row["number"], []).append(row)
    return rows


def test_rows_and_weights_are_those_of_each_alone(tmp_path: Path, data: Prepared) -> None:
    rows = by_number(FusedTrial(runs(tmp_path / "together"), data, "rmse"))
    for run in runs(tmp_path / "alone")[:2]:
        alone, own = SingleTrial(run.config, data, run.folder, "rmse"), rows[run.number]
        assert len(own) == run.config.training.epochs and own[-1]["done"] and own[-1]["status"] == "completed"
        for row in own:
            expected = one_row(alone)
            assert row.keys() == expected.keys() | {"number"}
            assert {k: row[k] for k in ("train_loss", "val_rmse", "best_val_rmse", "learning_rate")} == pytest.approx(
                {k: expected[k] for k in ("train_loss", "val_rmse", "best_val_rmse", "learning_rate")}, rel=1e-4
            )
        kept = load_weights(tmp_path / "together" / run.folder.name / WEIGHTS)
        for name, value in load_weights(run.folder / WEIGHTS).items():
            assert kept[name].numpy() == pytest.approx(value.numpy(), rel=1e-3, abs=1e-5)
    (failed,) = (row for row in rows[9] if row["status"] == "failed")
    assert failed["reason"].startswith("diverged: ")


def test_a_stopped_configuration_trains_no_further_and_the_others_do(tmp_path: Path, data: Prepared) -> None:
    trial = FusedTrial(runs(tmp_path / "a", RATES[:2]), data, "rmse")
    assert [row["number"] for row in trial.step()] == [7, 8]
    (tmp_path / "a" / "0" / STOPPED).touch()
    rows = by_number(trial)
    assert list(rows) == [8] and rows[8][-1]["finished"]


def fused(folder: Path, data: Prepared, known: int = 0, dropout: float = 0.0) -> FusedTrial:
    return FusedTrial(runs(folder, known=known, dropout=dropout), data, "rmse")


def later(rows: list[dict[str, Any]], known: int, without: Collection[int] = ()) -> list[dict[str, Any]]:
    """Rows behind an epoch, by configuration; a failure has none."""
    kept = [row for row in rows if row.get("epoch", 99) > known and row["number"] not in without]
    return sorted(kept, key=lambda row: (row["number"], row.get("epoch", 99)))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("cut", "known"), [(1, 1), (1, 0), (2, 2), (2, 1)])
def test_goes_on_from_its_checkpoints_with_the_same_rows(
    cut: int, known: int, dropout: float, tmp_path: Path, data: Prepared
) -> None:
    rows = drain(fused(tmp_path / "a", data, dropout=dropout), (7, 8, 9))
    first = fused(tmp_path / "b", data, dropout=dropout)
    failed = [row["number"] for _ in range(cut) for row in first.step() if row["status"] == "failed"]
    left = [run for run in runs(tmp_path / "b", known=known, dropout=dropout) if run.number not in failed]
    again = drain(FusedTrial(left, data, "rmse"), [run.number for run in left])
    assert later(again, 0) == later(rows, known, failed)


def test_a_damaged_checkpoint_of_one_takes_all_back_to_the_one_before(tmp_path: Path, data: Prepared) -> None:
    rates = RATES[:2]
    rows = drain(FusedTrial(runs(tmp_path / "a", rates), data, "rmse"), (7, 8))
    first = FusedTrial(runs(tmp_path / "b", rates), data, "rmse")
    for _ in range(2):
        first.step()
    damage(next(path for path in newest(tmp_path / "b" / "1").iterdir() if path.name != SUMS), "flipped")
    again = FusedTrial(runs(tmp_path / "b", rates, known=1), data, "rmse")
    step = again.step()
    assert [(row["number"], row["epoch"]) for row in step] == [(7, 2), (8, 2)], "they are in step"
    assert later([steady(row) for row in step] + drain(again, (7, 8)), 0) == later(rows, 1)


def test_where_one_has_no_checkpoint_at_all_each_goes_on_from_its_own(tmp_path: Path, data: Prepared) -> None:
    rates = RATES[:2]
    rows = drain(FusedTrial(runs(tmp_path / "a", rates), data, "rmse"), (7, 8))
    first = FusedTrial(runs(tmp_path / "b", rates), data, "rmse")
    for _ in range(2):
        first.step()
    shutil.rmtree(tmp_path / "b" / "1" / "checkpoints")
    again = drain(FusedTrial(runs(tmp_path / "b", rates, known=2), data, "rmse"), (7, 8))
    for row in again:  # not in step any more, so trained in other company, and equal but for rounding
        (same,) = (one for one in rows if (one["number"], one["epoch"]) == (row["number"], row["epoch"]))
        assert row["val_rmse"] == pytest.approx(same["val_rmse"], rel=1e-4)
    assert {(row["number"], row["epoch"]) for row in again} == {(7, 3), (7, 4), (8, 1), (8, 2), (8, 3)}


def test_a_kill_within_the_first_save_takes_all_back_to_the_beginning(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = RATES[:2]
    rows = drain(FusedTrial(runs(tmp_path / "a", rates), data, "rmse"), (7, 8))
    first, real = FusedTrial(runs(tmp_path / "b", rates), data, "rmse"), Checkpoints.save

    def killed(self: Checkpoints, *args: Any) -> None:
        if list((tmp_path / "b" / "0").rglob("epoch-*")):
            raise KeyboardInterrupt
        real(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", killed)
        drain(first, (7, 8))
    assert newest(tmp_path / "b" / "0") and not list((tmp_path / "b" / "1").rglob("epoch-*"))
    again = drain(FusedTrial(runs(tmp_path / "b", rates), data, "rmse"), (7, 8))
    assert later(again, 0) == later(rows, 0)


@pytest.mark.parametrize(("ended", "steps"), [("stopped", 2), ("stopped without a rung", 3), ("finished", 3)])
def test_who_goes_on_in_other_company_does_so_after_a_resume_to_the_same_bits(
    ended: str, steps: int, tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARE, NEVER)  # what is saved is saved for this
    rungs = {2} if ended == "stopped" else ()

    def trained(folder: Path, epochs: int) -> list[dict[str, Any]]:
        trial = FusedTrial(runs(folder, RATES[:2]), data, "rmse", rungs=rungs)
        rows = []
        for epoch in range(1, epochs + 1):
            rows += [steady(row) for row in trial.step() if row["number"] == 7]
            if ended != "finished" and epoch == 2:
                (folder / "1" / STOPPED).touch()
        return rows

    whole = trained(tmp_path / "a", 4)
    trained(tmp_path / "b", steps)  # and its worker is lost at once
    run = runs(tmp_path / "b", RATES[:2])[0]
    known = 3 if ended == "finished" else 2
    again = [steady(row) for row in drain(SingleTrial(run.config, data, run.folder, "rmse", known))]
    assert [row["epoch"] for row in again] == list(range(known + 1, 5))
    assert [row["val_rmse"] for row in again] == [row["val_rmse"] for row in whole[known:]]


def test_who_goes_on_after_a_failure_does_so_after_a_resume_to_the_same_bits(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARE, NEVER)
    rows = by_number(fused(tmp_path / "a", data))
    first, failed = fused(tmp_path / "b", data), 0
    while not failed:
        failed = sum(row["status"] == "failed" for row in first.step())
    known = max(row["epoch"] for row in rows[7][:1])
    left = runs(tmp_path / "b", RATES[:2], known=known)
    again = by_number(FusedTrial(left, data, "rmse"))
    for number in (7, 8):
        assert [row["val_rmse"] for row in again[number]] == [row["val_rmse"] for row in rows[number][known:]]


def test_what_was_trained_together_goes_on_alone(tmp_path: Path, data: Prepared) -> None:
    rows = drain(FusedTrial(runs(tmp_path / "a", RATES[:2]), data, "rmse"), (7, 8))
    first = FusedTrial(runs(tmp_path / "b", RATES[:2]), data, "rmse")
    for _ in range(2):
        first.step()
    run = runs(tmp_path / "b", RATES[:2])[0]
    alone = drain(SingleTrial(run.config, data, run.folder, "rmse", 2))
    assert [row["epoch"] for row in alone] == [3, 4]
    for row, same in zip(alone, later(rows, 2, [8]), strict=True):
        assert row["val_rmse"] == pytest.approx(same["val_rmse"], rel=1e-4)


def test_a_stop_saves_the_last_epoch_of_those_that_go_on(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARE, NEVER)
    trial = FusedTrial(runs(tmp_path / "a", RATES[:2]), data, "rmse")
    trial.step()
    (tmp_path / "a" / "0" / STOPPED).touch()
    trial.step()
    trial.save()
    assert not list((tmp_path / "a" / "0" / "checkpoints").glob("epoch-*"))
    assert newest(tmp_path / "a" / "1").name == "epoch-000002"
