"""The winner trained again: on both parts, for as many epochs, and without harm where it fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.layout import WEIGHTS
from xlstm_tune.search.finals.refit import _refit_task
from xlstm_tune.search.persistence.store import Shared, StorageAway
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.checkpoint import load_weights
from xlstm_tune.training.loop import train


@pytest.fixture
def spec(tmp_path: Path) -> SearchSpec:
    values = np.sin(np.arange(120) / 5) + np.arange(120) / 60
    (tmp_path / "t.csv").write_text("y\n" + "\n".join(f"{value:.4f}" for value in values) + "\n")
    return SearchSpec.parse(
        {
            "name": "t",
            "data": {"source": str(tmp_path / "t.csv"), "target": "y", "lookback": 6, "horizon": 2, "stride": 2},
            "model": {"family": "lstm", "layers": 1, "hidden_size": 4},
            "training": {"epochs": 4, "learning_rate": 0.01, "seed": 3},
        }
    )


def both(config: DataConfig) -> tuple[Table, Prepared, Prepared]:
    table = load_table(config)
    return table, prepare(table, config), prepare(table, config, refit=True)


def test_prepare_for_a_refit_takes_samples_and_statistics_of_both_parts(spec: SearchSpec) -> None:
    table, before, after = both(spec.data)
    train_part, validation = before.parts["train"], before.parts["validation"]
    assert after.parts["train"].tolist() == [*train_part, *validation[::2]], "thinned as training is"
    assert after.parts["test"].tolist() == before.parts["test"].tolist()
    seen = int(before.ends[before.parts["test"]].min())
    assert after.target_mean[0] == pytest.approx(table.targets[:seen].mean())
    assert after.target_mean[0] > before.target_mean[0] and after.fingerprint != before.fingerprint


def test_refit_trains_as_many_epochs_with_the_same_seed_and_schedule(spec: SearchSpec, tmp_path: Path) -> None:
    _, _, data = both(spec.data)
    answer = _refit_task(Shared(tmp_path), "refit", spec.model_dump(by_alias=True), {}, 2, data)
    assert not isinstance(answer, str)
    assert answer.shape == (len(data.parts["test"]), 2, 1)
    epochs = train(spec.resolve({}), data)
    next(epochs)
    wanted = next(epochs).state.model.state_dict()
    made = load_weights(tmp_path / "refit" / WEIGHTS)
    assert all(torch.equal(made[name], value) for name, value in wanted.items())


def test_a_refit_is_not_stopped_by_validation_which_it_is_trained_on(spec: SearchSpec, tmp_path: Path) -> None:
    _, _, data = both(spec.data)
    # Each epoch is worse than the one before on what it was trained on, as with a learning rate far too high.
    hasty = {"training.patience": 1, "training.learning_rate": 3.0, "training.epochs": 12}
    *_, last = train(spec.resolve(hasty), data)
    assert last.epoch < 12, "patience should have stopped it"
    made = {}
    for patience in (0, 1):
        raw = spec.model_dump(by_alias=True)
        settings = hasty | {"training.patience": patience}
        assert not isinstance(_refit_task(Shared(tmp_path), f"refit{patience}", raw, settings, 12, data), str)
        made[patience] = load_weights(tmp_path / f"refit{patience}" / WEIGHTS)
    assert all(torch.equal(made[0][name], value) for name, value in made[1].items())


def test_a_refit_that_diverges_says_so_and_leaves_no_weights(spec: SearchSpec, tmp_path: Path) -> None:
    _, _, data = both(spec.data)
    wild = {"training.learning_rate": 10.0, "training.optimiser": "sgd", "training.clip": 0.0, "training.warmup": 0.0}
    wild |= {"training.loss_weight": 1e6}
    answer = _refit_task(Shared(tmp_path), "refit", spec.model_dump(by_alias=True), wild, 4, data)
    assert isinstance(answer, str) and answer.startswith("it diverged: ")
    assert not (tmp_path / "refit").exists()


def test_a_refit_that_breaks_says_why(spec: SearchSpec, tmp_path: Path) -> None:
    _, _, data = both(spec.data)
    (tmp_path / "refit").write_text("a file where a folder should be")
    answer = _refit_task(Shared(tmp_path), "refit", spec.model_dump(by_alias=True), {}, 1, data)
    assert isinstance(answer, str) and answer.startswith("FileExistsError: ")


@pytest.mark.parametrize("why", [StorageAway("away"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_a_refit_whose_weights_find_no_place_is_not_one_that_was_tried(
    why: OSError, spec: SearchSpec, tmp_path: Path
) -> None:
    class Away(Shared):
        def push(self, place: Path, checkpoints: bool = False) -> None:
            raise why

    _, _, data = both(spec.data)
    with pytest.raises(type(why)) as told:
        _refit_task(Away(tmp_path), "refit", spec.model_dump(by_alias=True), {}, 1, data)
    assert told.value is why and why.__cause__ is None
