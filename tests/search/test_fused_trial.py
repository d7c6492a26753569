"""Several configurations in one Ray trial, without Ray: the rows of each are those that it has alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared, prepare
from xlstm_tune.errors import CheckpointError
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.search.folder import STOPPED, WEIGHTS
from xlstm_tune.search.fused_trial import Fused, FusedTrial
from xlstm_tune.search.single_trial import SingleTrial
from xlstm_tune.training.checkpoint import load_weights
from xlstm_tune.training.config import TrainingConfig, TrialConfig

RATES = (0.01, 0.1, 10.0)
"""The last one diverges."""


@pytest.fixture
def data(tmp_path: Path) -> Prepared:
    (tmp_path / "t.csv").write_text("y\n" + "\n".join(str((n * 37) % 101) for n in range(200)) + "\n")
    config = DataConfig.parse({"source": str(tmp_path / "t.csv"), "target": "y", "lookback": 5, "horizon": 2})
    return prepare(load_table(config), config)


def runs(folder: Path, rates: tuple[float, ...] = RATES) -> list[Fused]:
    model = ModelConfig(family="slstm", layers=1, hidden_size=4, heads=2)
    found = []
    for number, rate in enumerate(rates):
        training = TrainingConfig(epochs=4 - number, optimiser="sgd", clip=0.0, batch_size=32, learning_rate=rate)
        (folder / str(number)).mkdir(parents=True)
        found.append(Fused(7 + number, TrialConfig(model, training, 5), folder / str(number)))
    return found


def drain(trial: FusedTrial) -> dict[int, list[dict[str, Any]]]:
    """All rows of each configuration."""
    rows: dict[int, list[dict[str, Any]]] = {}
    while step := trial.step():
        for row in step:
            rows.setdefault(row["number"], []).append(row)
    return rows


def test_rows_and_weights_are_those_of_each_alone(tmp_path: Path, data: Prepared) -> None:
    rows = drain(FusedTrial(runs(tmp_path / "together"), data, "rmse"))
    for run in runs(tmp_path / "alone")[:2]:
        alone, own = SingleTrial(run.config, data, run.folder, "rmse"), rows[run.number]
        assert len(own) == run.config.training.epochs and own[-1]["done"] and own[-1]["status"] == "completed"
        for row in own:
            expected = alone.step()
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
    rows = drain(trial)
    assert list(rows) == [8] and rows[8][-1]["finished"]


def test_goes_on_from_a_checkpoint_with_the_same_rows(tmp_path: Path, data: Prepared) -> None:
    whole = FusedTrial(runs(tmp_path / "a"), data, "rmse")
    first = FusedTrial(runs(tmp_path / "b"), data, "rmse")
    for trial in (whole, first):
        trial.step()
        trial.step()  # the third diverges in the first or the second epoch
    first.save(tmp_path / "checkpoint")
    second = FusedTrial(runs(tmp_path / "c"), data, "rmse")
    second.load(tmp_path / "checkpoint")
    clocks = ("epoch_seconds", "sequences_per_s", "peak_memory_mib")
    assert [[{k: v for k, v in row.items() if k not in clocks} for row in rows] for rows in drain(second).values()] == [
        [{k: v for k, v in row.items() if k not in clocks} for row in rows] for rows in drain(whole).values()
    ]


def test_refuses_the_checkpoint_of_another(tmp_path: Path, data: Prepared) -> None:
    trial = FusedTrial(runs(tmp_path / "a"), data, "rmse")
    with pytest.raises(CheckpointError, match="holds no checkpoint of configurations trained together"):
        trial.load(tmp_path)
    trial.step()
    trial.save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="belongs to other trials"):
        FusedTrial(runs(tmp_path / "b", RATES[:2]), data, "rmse").load(tmp_path / "checkpoint")
