"""A population's trial without Ray: its checkpoints, and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared, prepare
from xlstm_tune.errors import CheckpointError
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.search.folder import member_folder
from xlstm_tune.search.population_trial import PopulationTrial
from xlstm_tune.training.checkpoint import load_weights
from xlstm_tune.training.config import TrainingConfig, TrialConfig
from xlstm_tune.training.members import Member, members_of

RATES = {"training.learning_rate": [0.01, 0.1, 10.0], "training.epochs": [3]}


@pytest.fixture
def data(tmp_path: Path) -> Prepared:
    (tmp_path / "t.csv").write_text("y\n" + "\n".join(str((n * 37) % 101) for n in range(200)) + "\n")
    config = DataConfig.parse({"source": str(tmp_path / "t.csv"), "target": "y", "lookback": 5, "horizon": 2})
    return prepare(load_table(config), config)


def members() -> list[Member]:
    training = TrainingConfig(epochs=5, optimiser="sgd", clip=0.0, batch_size=32)
    return members_of(TrialConfig(ModelConfig(family="lstm", layers=1, hidden_size=4), training, 5), 2, RATES)


def steady(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what the clock says."""
    return {k: v for k, v in row.items() if k not in ("epoch_seconds", "sequences_per_s", "peak_memory_mib")}


def test_population_goes_on_from_a_checkpoint_with_the_same_rows(tmp_path: Path, data: Prepared) -> None:
    whole = PopulationTrial(members(), data, tmp_path / "a", "rmse")
    rows = [whole.step() for _ in range(3)]
    assert [row["finished"] for row in rows] == [False, False, True]
    assert {standing["status"] for standing in rows[-1]["members"]} >= {"completed", "failed"}
    first = PopulationTrial(members(), data, tmp_path / "b", "rmse")
    first.step()
    first.save(tmp_path / "checkpoint")
    second = PopulationTrial(members(), data, tmp_path / "b", "rmse")
    second.load(tmp_path / "checkpoint")
    assert [steady(second.step()) for _ in range(2)] == [steady(row) for row in rows[1:]]
    kept = load_weights(tmp_path / "b" / "weights.safetensors")
    winner = load_weights(member_folder(tmp_path / "b", rows[-1]["winner"]) / "weights.safetensors")
    assert kept.keys() == winner.keys() and all(kept[name].equal(winner[name]) for name in kept)


def test_population_refuses_the_checkpoint_of_another(tmp_path: Path, data: Prepared) -> None:
    trial = PopulationTrial(members(), data, tmp_path / "a", "rmse")
    with pytest.raises(CheckpointError, match="holds no checkpoint of a population"):
        trial.load(tmp_path)
    trial.step()
    trial.save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="6 members, and this trial 2"):
        PopulationTrial(members()[:2], data, tmp_path / "b", "rmse").load(tmp_path / "checkpoint")
