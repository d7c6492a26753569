"""Which configurations share a Ray trial, and what the searcher makes of them: real Optuna studies, driven by hand."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from xlstm_tune.errors import SpecError
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.search.persistence.journal import Journal, read_journal
from xlstm_tune.search.sampling.duplicates import DUPLICATE_OF, START, TrialEnd
from xlstm_tune.search.sampling.fusion import NO_FUSION, Fusion, Waiting, fuses, widest
from xlstm_tune.search.sampling.searcher import OptunaSearcher
from xlstm_tune.search.sampling.space import Params, Space
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.config import TrainingConfig, TrialConfig

METRIC = "best_val_rmse"
GRID = {
    "model.hidden_size": {"choice": [32, 64]},
    "model.pattern": {"choice": ["s", "m"]},
    "model.dropout": {"choice": [0.0, 0.1, 0.2]},
}
RANDOM = GRID | {"training.learning_rate": {"log_float": [1e-4, 1e-2]}}
TOGETHER = Fusion(width=8, slots=1)


def make_spec(space: dict[str, Any] = GRID, **search: Any) -> SearchSpec:
    data = {"source": "x.csv", "target": "y", "lookback": 10}
    search = {"algorithm": "grid", "scheduler": "none", "start_with": "none", "seed": 3} | search
    raw = {"name": "t", "data": data, "space": space, "search": search, "model": {"family": "xlstm"}}
    return SearchSpec.parse(raw)


class Bench:
    """A searcher and what it says."""

    def __init__(self, spec: SearchSpec, folder: Path, fusion: Fusion = TOGETHER, resume: bool = False) -> None:
        self.ends: list[TrialEnd] = []
        folder.mkdir(exist_ok=True)
        self.journal = Journal(folder)
        self.searcher = OptunaSearcher(
            spec,
            Space.from_spec(spec),
            folder,
            self.journal,
            resume=resume,
            on_end=self.ends.append,
            fusion=fusion,
        )
        self.count = 0

    def ask(self) -> tuple[str, list[dict[str, Any]]]:
        """Start a Ray trial: its id, and the configurations in it; none when the searcher gives no more."""
        self.count += 1
        suggestion = self.searcher.suggest(f"t{self.count}")
        if not isinstance(suggestion, dict):
            return str(suggestion), []
        return f"t{self.count}", suggestion["trials"]

    def complete(self, trial_id: str, trials: list[dict[str, Any]]) -> None:
        rows = [row(one["number"], status="completed", finished=True, done=True) for one in trials]
        self.searcher.on_trial_complete(trial_id, {"rows": rows})

    def drain(self) -> list[list[Params]]:
        """Run everything; the points of each Ray trial."""
        groups = []
        while (asked := self.ask())[1]:
            self.complete(*asked)
            groups.append([one["params"] for one in asked[1]])
        return groups

    def state(self, number: int) -> TrialState:
        return self.searcher.study.get_trials(deepcopy=False)[number].state


def row(number: int, epoch: int = 1, best: float = 1.0, **changes: Any) -> dict[str, Any]:
    figures = {"number": number, "epoch": epoch, METRIC: best, "status": "running", "finished": False, "done": False}
    return figures | changes


@pytest.mark.parametrize("space", [GRID, RANDOM], ids=["finite", "infinite"])
@pytest.mark.parametrize("seed", range(6))
def test_a_random_search_goes_on_alike_when_its_study_was_lost(
    seed: int, space: dict[str, Any], tmp_path: Path
) -> None:
    """Trials leave the line out of turn there, and repetitions of what is under way are in the study alone."""
    start = [{"model.dropout": 0.1}]
    spec = make_spec(space, algorithm="random", trials=11, seed=seed, start_with=start)
    first = Bench(spec, tmp_path / "whole")
    for _ in range(2 + seed % 2):
        trial_id, trials = first.ask()
        for one in trials:
            first.journal.epoch(row(one["number"], status="completed", finished=True, done=True), stop=False)
        first.complete(trial_id, trials)
    assert first.ask()[1], "under way"
    first.journal.close()
    shutil.copytree(tmp_path / "whole", tmp_path / "lost")
    (tmp_path / "lost" / "optuna.journal").unlink()
    known = read_journal(tmp_path / "whole").trials
    whole, lost = (Bench(spec, tmp_path / name, resume=True) for name in ("whole", "lost"))
    before, now = (bench.searcher.study.get_trials(deepcopy=False) for bench in (whole, lost))
    for one, other in zip(before, now, strict=False):
        if one.number in known:
            assert (one.state, one.params, one.values) == (other.state, other.params, other.values)
            assert all(one.user_attrs.get(name) == other.user_attrs.get(name) for name in (START, DUPLICATE_OF))
        else:
            assert other.number not in lost.searcher._live, "it repeats one that is known"
    assert whole.searcher.started == lost.searcher.started
    assert keys([point for group in whole.drain() for point in group]) == keys(
        [point for group in lost.drain() for point in group]
    )


def keys(points: list[Params]) -> list[tuple[Any, ...]]:
    return sorted(tuple(sorted(point.items())) for point in points)


def test_a_grid_goes_in_groups_of_one_shape_in_the_order_of_the_file(tmp_path: Path) -> None:
    groups = Bench(make_spec(), tmp_path).drain()
    assert [[(p["model.hidden_size"], p["model.pattern"], p["model.dropout"]) for p in group] for group in groups] == [
        [(size, pattern, rate) for rate in (0.0, 0.1, 0.2)] for size in (32, 64) for pattern in ("s", "m")
    ]


@pytest.mark.parametrize("trials", [5, 12, 30])
def test_a_random_search_tries_the_same_configurations_as_one_by_one(trials: int, tmp_path: Path) -> None:
    spec = make_spec(RANDOM, algorithm="random", trials=trials, start_with="defaults")
    apart = Bench(spec, tmp_path / "apart", NO_FUSION)
    together = Bench(spec, tmp_path / "together")
    one_by_one = apart.drain()
    assert [len(group) for group in one_by_one] == [1] * trials
    groups = together.drain()
    assert keys([p for group in groups for p in group]) == keys([p for group in one_by_one for p in group])
    assert len(groups[0]) == 1, "the start point is completed by Optuna, so nothing is known to be like it"
    assert max(map(len, groups)) > 1
    for group in groups:
        assert len({(p["model.hidden_size"], p["model.pattern"]) for p in group}) == 1


def test_a_small_random_space_is_tried_whole_and_its_duplicates_are_told(tmp_path: Path) -> None:
    bench = Bench(make_spec(algorithm="random", trials=50), tmp_path)
    groups = bench.drain()
    assert len(keys([p for group in groups for p in group])) == 12 == len(set(keys([p for g in groups for p in g])))
    assert "all 12 distinct configurations" in str(bench.searcher.exhausted)
    assert all(t.state.is_finished() for t in bench.searcher.study.get_trials(deepcopy=False))
    assert any(end.status == "duplicate" for end in bench.ends)


def test_every_free_slot_gets_work_before_any_gets_more_than_its_share(tmp_path: Path) -> None:
    only = {"model.dropout": {"choice": [0.0, 0.1, 0.2, 0.3, 0.4]}}
    bench = Bench(make_spec(only), tmp_path, Fusion(width=8, slots=2))
    assert [len(bench.ask()[1]) for _ in range(3)] == [3, 2, 0]


@pytest.mark.parametrize("slots", [1, 2])
def test_part_of_a_grid_is_its_first_points_whatever_is_trained_together(tmp_path: Path, slots: int) -> None:
    spec = make_spec(
        {"model.dropout": {"choice": [0.0, 0.1, 0.2]}, "model.hidden_size": {"choice": [32, 64, 96]}}, trials=5
    )
    together = Bench(spec, tmp_path / "together", Fusion(width=8, slots=slots)).drain()
    apart = Bench(spec, tmp_path / "apart", NO_FUSION).drain()
    assert keys([p for group in together for p in group]) == keys([p for group in apart for p in group])
    assert [p["model.hidden_size"] for [p] in apart] == [32, 64, 96, 32, 64]
    assert max(map(len, together)) == 2


def test_the_number_of_trials_is_kept(tmp_path: Path) -> None:
    bench = Bench(make_spec(trials=4), tmp_path)
    assert [len(group) for group in bench.drain()] == [3, 1]


def test_each_configuration_ends_as_its_own_rows_say(tmp_path: Path) -> None:
    bench = Bench(make_spec(trials=3), tmp_path)
    trial_id, trials = bench.ask()
    first, second, third = (one["number"] for one in trials)
    lost = row(second, best=math.nan, status="failed", reason="diverged: loss is nan", done=True)
    bench.searcher.on_trial_result(trial_id, {"rows": [row(first), lost, row(third, done=True)]})
    assert [(end.number, end.status, end.reason) for end in bench.ends] == [
        (second, "failed", "diverged: loss is nan"),
        (third, "pruned", None),
    ]
    bench.searcher.on_trial_result(trial_id, {"rows": [row(third, 2)]})  # a stop that came an epoch late
    bench.searcher.on_trial_complete(
        trial_id, {"rows": [row(first, 2, 0.5, status="completed", finished=True, done=True)]}
    )
    assert (bench.ends[-1].number, bench.ends[-1].status, bench.ends[-1].value) == (first, "completed", 0.5)
    assert [bench.state(n) for n in (first, second, third)] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.PRUNED,
    ]
    assert bench.ask() == (Searcher.FINISHED, [])


def told(bench: Bench, trial_id: str, rows: list[dict[str, Any]]) -> None:
    """An epoch, as the referee writes it down and passes it on."""
    for one in rows:
        bench.journal.epoch(one, stop=False)
    bench.searcher.on_trial_result(trial_id, {"rows": rows})


def test_what_fails_together_by_itself_is_tried_again_one_by_one(tmp_path: Path) -> None:
    bench = Bench(make_spec(trials=3), tmp_path)
    trial_id, trials = bench.ask()
    told(bench, trial_id, [row(one["number"]) for one in trials])
    assert bench.ask() == ("None", []), "the search is not over while these may need another worker"
    bench.searcher.on_trial_complete(trial_id, {"rows": [], "status": "failed", "reason": "error: X"})
    assert not bench.ends and bench.searcher.separated == ["error: X"]
    again = [bench.ask() for _ in trials]
    assert [asked for _, asked in again] == [[one | {"known": 1}] for one in trials]
    assert bench.ask() == ("None", [])
    for one in again:
        bench.complete(*one)
    assert bench.ask() == (Searcher.FINISHED, [])
    assert [(end.number, end.status) for end in bench.ends] == [(n, "completed") for n in range(3)]


def test_a_group_that_loses_its_worker_goes_on_together_once_and_then_one_by_one(tmp_path: Path) -> None:
    bench = Bench(make_spec(trials=3), tmp_path)
    trial_id, trials = bench.ask()
    told(bench, trial_id, [row(one["number"]) for one in trials])
    bench.searcher.on_trial_complete(trial_id, error=True)
    second, together = bench.ask()
    assert together == [one | {"known": 1} for one in trials] and not bench.searcher.separated
    told(bench, second, [row(trials[1]["number"], 2, status="completed", finished=True, done=True)])
    bench.searcher.on_trial_complete(second, error=True)
    assert bench.searcher.separated == ["worker died"]
    again = [bench.ask() for _ in range(2)]
    assert [asked for _, asked in again] == [[trials[0] | {"known": 1}], [trials[2] | {"known": 1}]]
    assert [(end.number, end.status) for end in bench.ends] == [(trials[1]["number"], "completed")]
    # Alone, each has as many tries left as any other.
    for _ in range(2):
        number = again[0][1][0]["number"]
        bench.searcher.on_trial_complete(again[0][0], error=True)
        assert len(bench.ends) <= 2
        if len(bench.ends) == 1:
            again[0] = bench.ask()
            assert [one["number"] for one in again[0][1]] == [number]
    assert (bench.ends[-1].number, bench.ends[-1].status) == (trials[0]["number"], "failed")
    assert bench.ends[-1].reason == "worker died, 4 times in a row without a new epoch"
    bench.complete(*again[1])
    assert bench.ask() == (Searcher.FINISHED, [])


def test_a_new_epoch_of_a_group_lets_it_lose_a_worker_again_together(tmp_path: Path) -> None:
    bench = Bench(make_spec(trials=3), tmp_path)
    for epoch in range(1, 4):
        trial_id, trials = bench.ask()
        assert len(trials) == 3
        told(bench, trial_id, [row(one["number"], epoch) for one in trials])
        bench.searcher.on_trial_complete(trial_id, error=True)
    assert not bench.searcher.separated and not bench.ends


def test_a_cut_group_goes_on_together_under_its_numbers(tmp_path: Path) -> None:
    bench = Bench(make_spec(), tmp_path)
    trial_id, trials = bench.ask()
    told(bench, trial_id, [row(one["number"]) for one in trials])
    bench.searcher.close("time budget")
    resumed = Bench(make_spec(), tmp_path, resume=True)
    _, again = resumed.ask()
    assert again == [one | {"known": 1} for one in trials]


def test_what_is_left_of_a_cut_group_goes_on_together(tmp_path: Path) -> None:
    bench = Bench(make_spec(), tmp_path)
    trial_id, trials = bench.ask()
    told(bench, trial_id, [row(trials[0]["number"], status="completed", finished=True, done=True)])
    resumed = Bench(make_spec(), tmp_path, resume=True)
    _, again = resumed.ask()
    assert again == trials[1:]


def test_waiting_points_leave_in_order_and_by_shape() -> None:
    waiting = Waiting()
    waiting.add_start({"model.hidden_size": 32}, {"start": 0})
    rates: list[Params] = [{"model.hidden_size": size, "model.dropout": 0.1 * n} for n, size in enumerate((32, 64, 32))]
    waiting.add(rates)
    assert waiting.pop() == ({"model.hidden_size": 32}, {"start": 0})
    assert waiting.pop() == (rates[0], {})
    assert waiting.take(rates[0]) == (rates[2], {}) and waiting.take(rates[0]) is None
    assert len(waiting) == 1 and waiting.pop() == (rates[1], {})


@pytest.mark.parametrize(
    ("family", "size", "gpu", "most"),
    [
        ("xlstm", 64, False, 8),
        ("slstm", 64, False, 8),
        ("slstm", 128, False, 1),
        ("lstm", 16, False, 8),
        ("lstm", 64, False, 1),
        ("lstm", 64, True, 8),
        ("lstm_torch", 16, True, 1),
    ],
)
def test_only_what_gains_is_fused(family: str, size: int, gpu: bool, most: int) -> None:
    model = ModelConfig(family=family, hidden_size=size)  # type: ignore[arg-type]
    config = TrialConfig(model, TrainingConfig(batch_size=32), None)
    assert Fusion(8, gpu, 2, lookback=365).most(config, 100) == most


@pytest.mark.parametrize(
    ("spec", "width"),
    [
        (make_spec(), 3),
        (make_spec(trials=2), 2),
        (make_spec(RANDOM, algorithm="random", trials=40), 8),
        (make_spec(fuse="off"), 1),
        (make_spec(algorithm="tpe", trials=12), 1),
        (make_spec({"model.hidden_size": {"choice": [32, 64]}}), 1),
    ],
)
def test_the_space_bounds_the_width(spec: SearchSpec, width: int) -> None:
    space = Space.from_spec(spec)
    trials = spec.search.trials or len(space.grid().points)
    assert widest(spec, space, trials, gpu=False) == width


def test_a_bare_off_in_yaml_is_off_and_a_population_is_never_fused() -> None:
    assert make_spec(fuse=False).search.fuse == "off"
    with pytest.raises(SpecError, match=r"search\.fuse"):
        make_spec(fuse=True)
    raw = make_spec().model_dump(by_alias=True) | {"population": {"seeds": 2}}
    assert not fuses(SearchSpec.parse(raw))
