"""A winner that has been trained again already is not trained a second time."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from champions import SINGLE, finish, single
from rich.console import Console

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.layout import CHAMPION, REFIT_WISH, SPEC, WEIGHTS
from xlstm_tune.predict.champion import read_about
from xlstm_tune.predict.make import Refit, make_champion
from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.finals.champion import keep_champion
from xlstm_tune.search.finals.finalists import Judge
from xlstm_tune.search.finals.refit import REFIT, WANTED, _refit_task, refit_of_before
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search_file import load_spec
from xlstm_tune.tracking import Spool
from xlstm_tune.training.metrics import score_units


def plan_of(folder: Path) -> Any:
    spec = load_spec(str(folder / SPEC))
    table = load_table(spec.data)
    data = prepare(table, spec.data, spec.max_lookback())
    return cast(Any, SimpleNamespace(folder=folder, spec=spec, table=table, data=data, refit=True))


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search whose winner, of one epoch, has been trained again."""
    place = tmp_path_factory.mktemp("refitted")
    folder = finish(place / "searches", "single", SINGLE | {"source": str(single(place))}, training={"epochs": 2})
    plan = plan_of(folder)
    both = prepare(plan.table, plan.spec.data, plan.spec.max_lookback(), refit=True)
    made = _refit_task(Shared(folder), f"trials/00000/{REFIT}", plan.spec.model_dump(by_alias=True), {}, 1, both)
    assert not isinstance(made, str) and both.scaling is not None
    test = score_units(made, Judge(plan.table, plan.data).truth("test"), plan.data.target_std)
    weights = folder / "trials" / "00000" / REFIT / WEIGHTS
    make_champion(folder, plan.spec, plan.table, plan.data, Refit(weights, both.scaling, 1, test))
    return folder


@pytest.fixture
def folder(refitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(refitted, tmp_path / "searches" / "single"))


class Trained(Exception):
    """Something was to be trained."""


@contextmanager
def ray() -> Any:
    raise Trained
    yield


def keep(folder: Path) -> bytes:
    """The spool after the champion was kept."""
    plan = plan_of(folder)
    with Spool(folder, "sqlite:///nowhere.db") as spool:
        keep_champion(plan, Judge(plan.table, plan.data), ray(), spool, Console(width=300))
        return spool.path.read_bytes()


def test_a_winner_that_was_trained_again_stays_to_the_byte(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the machine has no other weights than the champion's, and was stopped before it noted the end."""
    shutil.rmtree(folder / "trials" / "00000" / REFIT)
    (folder / REFIT_WISH).write_bytes(WANTED)
    before = {path.name: path.read_bytes() for path in (folder / CHAMPION).iterdir()}
    assert b"refit_test" not in keep(folder)
    assert {path.name: path.read_bytes() for path in (folder / CHAMPION).iterdir()} == before
    rmse = read_about(folder / CHAMPION)["refit_scores"]["test"]["rmse"]
    said = capsys.readouterr().out
    assert "has been trained again on training and validation part already, for 1 epoch: its test rmse is" in said
    assert f"{rmse:.3f}"[:4] in said
    assert (folder / REFIT_WISH).read_bytes() != WANTED


def gone_on(folder: Path) -> None:
    """The same trial became better with its second epoch, as after a resume."""
    (row,) = read(folder, "trials").to_pylist()
    with ResultsWriter(folder) as results:
        results.trial(row | {"best_epoch": 2})


def another_wins(folder: Path) -> None:
    (row,) = read(folder, "trials").to_pylist()
    shutil.copytree(folder / "trials" / "00000", folder / "trials" / "00001")
    scores = [one | {"trial": 1} for one in read(folder, "scores").to_pylist() if one["trial"] == 0]
    with ResultsWriter(folder) as results:
        results.trial(row | {"trial": 1, "val_rmse": row["val_rmse"] / 2})
        results.scores(scores)
        results.predictions(
            read(folder, "predictions").to_pydict() | {"trial": [1] * read(folder, "predictions").num_rows}
        )


def as_it_was_searched(folder: Path) -> None:
    plan = plan_of(folder)
    make_champion(folder, plan.spec, plan.table, plan.data)


def damaged(folder: Path) -> None:
    path = folder / CHAMPION / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])


def none_there(folder: Path) -> None:
    shutil.rmtree(folder / CHAMPION)


@pytest.mark.parametrize("change", [gone_on, another_wins, as_it_was_searched, damaged, none_there])
def test_a_winner_that_was_not_trained_again_is(change: Any, folder: Path) -> None:
    assert refit_of_before(plan_of(folder)) is not None
    change(folder)
    assert refit_of_before(plan_of(folder)) is None
    with pytest.raises(Trained):
        keep(folder)
    assert read_about(folder / CHAMPION)["refit"] is False, "meanwhile there is one"
