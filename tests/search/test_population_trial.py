"""A population's trial without Ray: its checkpoints, and what it keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from trial_data import NEVER, damages, drain, one_row, steady

from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.search.persistence.folder import WEIGHTS, member_folder
from xlstm_tune.search.trials.checkpoints import SHARE, Checkpoints
from xlstm_tune.search.trials.population_trial import PopulationTrial
from xlstm_tune.tracking import VALIDATION_END
from xlstm_tune.training import population
from xlstm_tune.training.checkpoint import load_metadata, load_weights
from xlstm_tune.training.config import TrainingConfig, TrialConfig
from xlstm_tune.training.loop import Diverged, TrainingState
from xlstm_tune.training.members import Member, members_of

RATES = {"training.learning_rate": [0.01, 0.1, 10.0], "training.epochs": [3]}


pytestmark = pytest.mark.usefixtures("save_every_epoch")


def members() -> list[Member]:
    training = TrainingConfig(epochs=5, optimiser="sgd", clip=0.0, batch_size=32)
    return members_of(TrialConfig(ModelConfig(family="lstm", layers=1, hidden_size=4), training, 5), 2, RATES)


def trial_in(folder: Path, data: Prepared, known: int = 0) -> PopulationTrial:
    return PopulationTrial(members(), data, folder, "rmse", known)


def content(path: Path) -> tuple[dict[str, str], dict[str, list[float]]]:
    """What a file of tensors holds, in whatever order it lies there."""
    return load_metadata(path), {name: tensor.flatten().tolist() for name, tensor in load_weights(path).items()}


@pytest.mark.parametrize(("cut", "known"), [(1, 1), (1, 0), (2, 1), (2, 0)])
def test_population_goes_on_from_a_checkpoint_with_the_same_rows(
    cut: int, known: int, tmp_path: Path, data: Prepared
) -> None:
    rows = drain(trial_in(tmp_path / "a", data))
    assert [row["finished"] for row in rows] == [False, False, True]
    assert {standing["status"] for standing in rows[-1]["members"]} >= {"completed", "failed"}
    first = trial_in(tmp_path / "b", data)
    for _ in range(cut):
        first.step()
    second = trial_in(tmp_path / "b", data, known)
    assert drain(second) == rows[known:]
    kept = load_weights(tmp_path / "b" / "weights.safetensors")
    winner = load_weights(member_folder(tmp_path / "b", rows[-1]["winner"]) / "weights.safetensors")
    assert kept.keys() == winner.keys() and all(kept[name].equal(winner[name]) for name in kept)


def test_the_other_seeds_of_a_setting_that_is_out_train_no_further(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first seed of the second setting diverges in its second epoch."""
    lost = {member.index for member in members() if member.group == 1}
    checked = population.checked_loss

    def diverging(losses: Any, norms: Any, count: int, state: TrainingState, rate: float) -> float:
        training = state.config.training
        if training.learning_rate == 0.1 and training.seed == min(member.seed for member in members()) and state.epoch:
            raise Diverged("by a test")
        return checked(losses, norms, count, state, rate)

    monkeypatch.setattr(population, "checked_loss", diverging)
    rows = drain(trial_in(tmp_path, data))
    assert [row["finished"] for row in rows] == [False, False, True]
    assert sorted(rows[-1]["members"][member]["status"] for member in lost) == ["dropped", "failed"]
    assert lost <= set(rows[0]["trained"]) and not lost & set(rows[2]["trained"])


def test_any_damage_to_the_newest_checkpoint_changes_no_row(tmp_path: Path, data: Prepared) -> None:
    rows = drain(trial_in(tmp_path / "a", data))
    first = trial_in(tmp_path / "b", data)
    for _ in range(2):
        first.step()
    for count, (what, folder) in enumerate(damages(tmp_path / "b", without="members/000[1-9]/*")):
        again = trial_in(folder, data, 1)
        assert [steady(row) for row in again.step()] == rows[1:2], what
        if not count:
            assert drain(again) == rows[2:]
        assert "epoch-000002 is damaged" in (folder / "damaged.txt").read_text()


def test_population_passes_the_checkpoint_of_another_over(tmp_path: Path, data: Prepared) -> None:
    rows = drain(trial_in(tmp_path / "a", data))
    trial = trial_in(tmp_path / "b", data)
    trial.step()
    other = PopulationTrial(members()[:2], data, tmp_path / "b", "rmse", 1)
    assert "6 members, and this trial 2" in (tmp_path / "b" / "damaged.txt").read_text()
    assert one_row(other)["epoch"] == 1
    empty = tmp_path / "c"
    Checkpoints(empty).save(1, lambda place: place.mkdir(parents=True))
    assert drain(trial_in(empty, data, 1)) == rows
    assert "holds no checkpoint of a population" in (empty / "damaged.txt").read_text()


def test_population_saves_its_last_epoch_when_it_is_stopped(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARE, NEVER)
    rows = drain(trial_in(tmp_path / "a", data))
    trial = trial_in(tmp_path / "b", data)
    trial.save()
    trial.step()
    trial.save()
    assert drain(trial_in(tmp_path / "b", data, 1)) == rows[1:]


@pytest.mark.parametrize(("kept", "known"), [(0, 0), (1, 0), (1, 1)])
def test_weights_and_forecasts_of_epochs_that_nobody_heard_of_make_way(
    kept: int, known: int, tmp_path: Path, data: Prepared
) -> None:
    """Some epochs are trained; of all behind `kept` the search lost its record, and the checkpoints with it."""
    folder, short = tmp_path / "t", tmp_path / "short"
    first, other = trial_in(folder, data), trial_in(short, data)
    rows = [one_row(first) for _ in range(2)]
    assert [row["best_epoch"] for row in rows] == [1, 2]
    for _ in range(kept):
        one_row(other)
    for place in sorted((folder / "checkpoints").glob("epoch-*"))[kept:]:
        shutil.rmtree(place)
    again = trial_in(folder, data, known)
    if not kept:
        assert not (folder / WEIGHTS).exists() and not (folder / VALIDATION_END).exists()
        return
    assert content(folder / WEIGHTS) == content(short / WEIGHTS)
    assert not (folder / VALIDATION_END).exists(), "nobody knows any more what was predicted then"
    drain(again)
    drain(other)
    for name in (WEIGHTS, VALIDATION_END):
        assert content(folder / name) == content(short / name)


def test_the_winner_of_an_epoch_that_nobody_heard_of_makes_way(tmp_path: Path, data: Prepared) -> None:
    """Its best epoch is one that is known, and so is no later than those of the others."""
    folder = tmp_path / "t"
    first = trial_in(folder, data)
    row = one_row(first)
    loser = next(member.index for member in members() if member.index != row["winner"])
    mine = {name: content(folder / name) for name in (WEIGHTS, VALIDATION_END)}
    for name in mine:
        shutil.copy(member_folder(folder, loser) / name, folder / name)
        assert content(folder / name) != mine[name]
    trial_in(folder, data, 1)
    assert {name: content(folder / name) for name in mine} == mine
