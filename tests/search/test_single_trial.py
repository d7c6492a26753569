"""A trial that goes on in another process gives the rows that it would have given: bit by bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from trial_data import NEVER, damages, drain, newest, one_row, steady

from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.search.persistence.folder import WEIGHTS
from xlstm_tune.search.trials.checkpoints import SHARE
from xlstm_tune.search.trials.single_trial import SingleTrial
from xlstm_tune.training.checkpoint import load_metadata, load_weights
from xlstm_tune.training.config import TrainingConfig, TrialConfig

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dropout": ({"family": "lstm", "dropout": 0.3}, {"schedule": "cosine", "warmup": 0.3}),
    "patience": ({"family": "lstm", "dropout": 0.2}, {"schedule": "constant", "patience": 1, "learning_rate": 0.3}),
    "sgd": ({"family": "slstm", "heads": 2, "dropout": 0.1}, {"optimiser": "sgd", "clip": 0.0, "warmup": 0.0}),
    "quantile": ({"family": "mlstm", "heads": 2}, {"loss": "quantile", "weight_decay": 0.1, "schedule": "cosine"}),
}


pytestmark = pytest.mark.usefixtures("save_every_epoch")


def config(name: str, epochs: int = 4) -> TrialConfig:
    model, training = CASES[name]
    base = {"hidden_size": 8, "layers": 1} | model
    return TrialConfig(ModelConfig(**base), TrainingConfig(**({"epochs": epochs, "batch_size": 32} | training)), 5)


def trial_in(folder: Path, data: Prepared, name: str, known: int = 0) -> SingleTrial:
    folder.mkdir(exist_ok=True)
    return SingleTrial(config(name), data, folder, "rmse", known)


def weights_equal(a: Path, b: Path) -> bool:
    first, second = load_weights(a / WEIGHTS), load_weights(b / WEIGHTS)
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("name", CASES)
def test_rows_and_weights_are_those_of_an_undisturbed_trial_wherever_it_was_cut(
    name: str, tmp_path: Path, data: Prepared
) -> None:
    whole = drain(trial_in(tmp_path / "whole", data, name))
    assert whole[-1]["finished"] and len(whole) > 1
    assert (len(whole) < 4) == (name == "patience"), "the patience is to end it early"
    for cut in {1, len(whole) - 1}:
        folder = tmp_path / f"cut-{cut}"
        first = trial_in(folder, data, name)
        assert [steady(one_row(first)) for _ in range(cut)] == whole[:cut]
        known = cut // 2  # the driver was not told the rest
        second = trial_in(folder, data, name, known)
        told = [steady(row) for row in second.step()]
        # What is saved is told in one step, without training it again.
        assert told == whole[known:cut]
        assert told + drain(second) == whole[known:]
        assert weights_equal(folder, tmp_path / "whole")


@pytest.mark.parametrize("kept", [True, False])
def test_weights_of_an_epoch_that_nobody_heard_of_make_way(kept: bool, tmp_path: Path, data: Prepared) -> None:
    """A worker trained three epochs; of the last two the search lost its record, and the checkpoints with it."""
    folder = tmp_path / "t"
    first = trial_in(folder, data, "dropout")
    rows = [one_row(first) for _ in range(3)]
    assert [row["best_epoch"] for row in rows] == [1, 2, 3]
    for place in sorted((folder / "checkpoints").glob("epoch-*"))[0 if not kept else 1 :]:
        shutil.rmtree(place)
    second = trial_in(folder, data, "dropout", known=2 if kept else 0)
    if kept:
        assert second.state is not None and second.state.epoch == 2
        assert load_metadata(folder / WEIGHTS)["epoch"] == "2"
    else:
        assert not (folder / WEIGHTS).exists()
    third = trial_in(folder, data, "dropout", known=2)
    assert [row["epoch"] for row in drain(third)][-1] == 4
    assert load_metadata(folder / WEIGHTS)["epoch"] == "4"


def test_every_worker_may_be_lost_after_one_epoch(tmp_path: Path, data: Prepared) -> None:
    whole = drain(trial_in(tmp_path / "whole", data, "dropout"))
    rows: list[dict[str, Any]] = []
    while not (rows and rows[-1]["done"]):
        rows.append(steady(one_row(trial_in(tmp_path / "t", data, "dropout", len(rows)))))
    assert rows == whole


def test_any_damage_to_the_newest_checkpoint_costs_an_epoch_and_changes_nothing(tmp_path: Path, data: Prepared) -> None:
    whole = drain(trial_in(tmp_path / "whole", data, "dropout"))
    trial = trial_in(tmp_path / "t", data, "dropout")
    for _ in range(3):
        trial.step()
    for count, (what, folder) in enumerate(damages(tmp_path / "t")):
        again = trial_in(folder, data, "dropout", 1)
        told = [steady(row) for row in again.step()]
        assert told == whole[1:2], what
        if not count:
            assert told + drain(again) == whole[1:]
        assert "epoch-000003 is damaged" in (folder / "damaged.txt").read_text()


def test_one_that_is_sealed_but_no_checkpoint_is_passed_over(tmp_path: Path, data: Prepared) -> None:
    """Of another program, for example: the checksums hold, and it cannot be loaded all the same."""
    whole = drain(trial_in(tmp_path / "whole", data, "dropout"))
    trial = trial_in(tmp_path / "t", data, "dropout")
    for _ in range(2):
        trial.step()
    other = trial_in(tmp_path / "other", data, "sgd")
    for _ in range(2):
        other.step()
    place = newest(tmp_path / "t")
    place.rename(tmp_path / "mine")
    newest(tmp_path / "other").rename(place)
    again = trial_in(tmp_path / "t", data, "dropout", 1)
    assert drain(again) == whole[1:]
    assert (tmp_path / "t" / "damaged.txt").read_text()


def test_without_a_checkpoint_the_known_epochs_are_trained_again(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARE, NEVER)
    whole = drain(trial_in(tmp_path / "whole", data, "dropout"))
    assert not list((tmp_path / "whole").glob("checkpoints/epoch-*"))
    trial = trial_in(tmp_path / "t", data, "dropout")
    for _ in range(3):
        trial.step()
    assert drain(trial_in(tmp_path / "t", data, "dropout", 3)) == whole


def test_a_stop_saves_the_last_epoch(tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARE, NEVER)
    whole = drain(trial_in(tmp_path / "whole", data, "dropout"))
    trial = trial_in(tmp_path / "t", data, "dropout")
    trial.save()  # nothing yet
    for _ in range(3):
        trial.step()
    trial.save()
    assert drain(trial_in(tmp_path / "t", data, "dropout", 3)) == whole[3:]
