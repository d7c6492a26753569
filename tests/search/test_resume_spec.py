"""What may be given anew when a search goes on: how much and on what is searched, not what."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from xlstm_tune.errors import StorageError
from xlstm_tune.search.persistence.folder import SPEC, create_folder, spec_text
from xlstm_tune.search.persistence.journal import Journal
from xlstm_tune.search.persistence.resume import check_enough_trials, check_same_search, keep_spec
from xlstm_tune.search.sampling.duplicates import TrialEnd
from xlstm_tune.search_file import load_spec
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.checkpoint import write_atomically

RAW: dict[str, dict[str, Any]] = {
    "data": {"source": "/data/x.csv", "target": "y", "lookback": 10},
    "space": {"model.hidden_size": {"choice": [32, 64]}, "model.dropout": {"float": [0.0, 0.3]}},
    "search": {"trials": 8, "seed": 1},
    "training": {"epochs": 5},
}


def spec(**sections: dict[str, Any]) -> SearchSpec:
    """The search with some keys of its sections changed."""
    raw: dict[str, Any] = {name: dict(section) for name, section in RAW.items()}
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return SearchSpec.parse({"name": "t", **raw})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_folder(tmp_path / "t", spec(), "fingerprint")
    return tmp_path / "t"


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"space": {"model.dropout": {"float": [0.0, 0.4]}}}, "space.model.dropout is"),
        ({"space": {"model.layers": {"choice": [1, 2]}}}, "space.model.layers is not given there and {'choice'"),
        ({"training": {"epochs": 6}}, "training.epochs is 5 there and 6 here"),
        ({"training": {"learning_rate": 0.01}}, "training.learning_rate is 0.001 there and 0.01 here"),
        ({"model": {"layers": 3}}, "model.layers is 2 there and 3 here"),
        ({"data": {"lookback": 11}}, "data.lookback is 10 there and 11 here"),
        ({"data": {"horizon": 3}}, "data.horizon is"),
        ({"search": {"algorithm": "random"}}, "search.algorithm is 'tpe' there and 'random' here"),
        ({"search": {"seed": 2}}, "search.seed is 1 there and 2 here"),
        ({"search": {"objective": "val_mae"}}, "search.objective is 'val_rmse' there and 'val_mae' here"),
        ({"search": {"scheduler": "median"}}, "search.scheduler is 'asha' there and 'median' here"),
        ({"search": {"grace_epochs": 2}}, "search.grace_epochs is not given there and 2 here"),
        ({"search": {"start_with": "none"}}, "search.start_with is 'defaults' there and 'none' here"),
        ({"population": {"seeds": 2}}, "population.seeds is not given there and 2 here"),
        (
            {"population": {"training.weight_decay": [0.0, 0.1]}},
            "population.training.weight_decay is not given there and [0.0, 0.1] here",
        ),
    ],
)
def test_what_makes_it_another_search_is_refused_with_the_difference(
    changes: dict[str, Any], difference: str, folder: Path
) -> None:
    before = (folder / SPEC).read_bytes()
    with pytest.raises(StorageError) as caught:
        check_same_search(folder, spec(**changes))
    message = str(caught.value)
    assert difference in message
    assert "the search 't' was begun with other settings" in message and "another --name" in message
    assert "\n" not in message
    assert (folder / SPEC).read_bytes() == before


def test_every_difference_is_told_and_nothing_else(folder: Path) -> None:
    with pytest.raises(StorageError) as caught:
        check_same_search(folder, spec(training={"epochs": 6}, search={"seed": 9, "trials": 99}))
    assert "search.seed is 1 there and 9 here; training.epochs is 5 there and 6 here;" in str(caught.value)
    assert "trials" not in str(caught.value).partition("settings")[2].partition(": ")[2].partition(";")[0]
    assert "99" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"search": {"trials": 80}},
        {"search": {"time_budget": "2h"}},
        {"search": {"storage": "sqlite:///studies.db"}},
        {"resources": {"cpus_per_trial": 2}},
        {"resources": {"gpus_per_trial": 0.5}},
        {"resources": {"max_concurrent": 1, "trial_timeout": "30m"}},
    ],
)
def test_how_much_and_on_what_may_change_and_is_kept(
    changes: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    given = spec(**changes)
    check_same_search(folder, given)
    keep_spec(folder, given)
    kept = load_spec(str(folder / SPEC))
    assert kept == given
    check_same_search(folder, kept)


def test_a_default_written_out_is_no_difference(folder: Path) -> None:
    check_same_search(folder, spec(search={"algorithm": "tpe", "grace_epochs": None}, training={"batch_size": 64}))


def test_the_name_is_the_folder(folder: Path) -> None:
    other = spec(search={"trials": 9}).model_copy(update={"name": "other"})
    check_same_search(folder, other)
    keep_spec(folder, other)
    kept = load_spec(str(folder / SPEC))
    assert (kept.name, kept.search.trials) == ("t", 9)


def test_a_folder_is_made_whole_or_not_at_all(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["environment.json", SPEC]
    with pytest.raises(StorageError, match="another search took the name 't'"):
        create_folder(folder, spec(), "other")
    assert [path.name for path in folder.parent.iterdir()] == ["t"]


def test_fewer_trials_than_were_begun_are_refused(folder: Path) -> None:
    params = {"model.dropout": 0.1}
    with closing(Journal(folder)) as journal:
        journal.began([0, 1, 2], [params] * 3)
        journal.ended(TrialEnd(1, "t", "completed", None, 1.0, params))
        journal.ended(TrialEnd(3, None, "duplicate", None, 1.0, params, duplicate_of=0))
    check_enough_trials(folder, spec())
    check_enough_trials(folder, spec(search={"trials": 3}))
    with pytest.raises(StorageError, match=r"has begun 3 trials already, so search.trials \(--trials\) cannot be 2"):
        check_enough_trials(folder, spec(search={"trials": 2}))


def test_a_storage_that_does_not_hold_the_study_is_refused_and_not_kept(folder: Path, tmp_path: Path) -> None:
    with closing(Journal(folder)) as journal:
        journal.began([0], [{"model.dropout": 0.1}])
    before = (folder / SPEC).read_bytes()
    with pytest.raises(StorageError, match="lacks 1 trial that the search 't' has had"):
        keep_spec(folder, spec(search={"storage": f"sqlite:///{tmp_path}/other.db"}))
    assert (folder / SPEC).read_bytes() == before
    keep_spec(folder, spec(search={"trials": 9}))
    assert load_spec(str(folder / SPEC)).search.trials == 9


def test_a_password_given_anew_is_no_other_storage(folder: Path) -> None:
    """A finished search can be refitted while its database is away."""
    away = "postgresql+psycopg2://optuna:{}@127.0.0.1:9/db"
    write_atomically(folder / SPEC, spec_text(spec(search={"storage": away.format("secret")})).encode())
    with closing(Journal(folder)) as journal:
        journal.began([0], [{"model.dropout": 0.1}])
    keep_spec(folder, spec(search={"storage": away.format("secret")}))
    assert "secret" not in (folder / SPEC).read_text()


def test_an_encrypted_sqlite_file_is_kept_without_its_passphrase() -> None:
    """As SQLAlchemy writes it; the file of a plain one may hold any sign."""
    assert "secret" not in spec_text(spec(search={"storage": "sqlite+pysqlcipher://:secret@/studies.db"}))
    assert "a:b@c?d.db" in spec_text(spec(search={"storage": "sqlite:////data://a:b@c?d.db"}))
