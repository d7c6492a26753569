"""What a search's driver does must not grow with the trials that it has behind it: counted, not timed."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from searcher_bench import EPOCHS, MIXED, SMALL, Bench, make_spec, score

from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.driver import Driver
from xlstm_tune.search.persistence.folder import trial_folder
from xlstm_tune.search.persistence.journal import Journal, read_journal
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.progress import Progress
from xlstm_tune.search.sampling import study as study_module
from xlstm_tune.search.sampling.samplers import NumberedSampler
from xlstm_tune.search.sampling.searcher import OptunaSearcher
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.search.sampling.study_memory import StudyMemory
from xlstm_tune.search.sampling.thinning import ThinnedSampler, ThinnedStudy, Thinning
from xlstm_tune.search.scheduling.losses import Losses
from xlstm_tune.search.scheduling.referee import Referee
from xlstm_tune.search.scheduling.schedulers import make_scheduler
from xlstm_tune.search.stopping import Stopping
from xlstm_tune.spec import SearchConfig
from xlstm_tune.tracking import Spool

LEARNT = (TrialState.COMPLETE, TrialState.PRUNED)
RATE = optuna.distributions.FloatDistribution(1e-5, 1.0, log=True)


def tpe(seed: int = 1) -> BaseSampler:
    return NumberedSampler(SearchConfig.parse({"algorithm": "tpe", "seed": seed}))


def opened(most: int, best: int, objectives: int = 1) -> tuple[optuna.Study, StudyMemory, ThinnedStudy]:
    """A study in memory whose sampler sees it thinned."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, directions=["minimize"] * objectives)
    memory = StudyMemory(storage, storage.get_study_id_from_name(study.study_name))
    view = ThinnedStudy(memory, Thinning(most, best, LEARNT), objectives)
    sampler = ThinnedSampler(tpe(), view, study.study_name)
    return optuna.load_study(study_name=study.study_name, storage=memory, sampler=sampler), memory, view


def suggest(trial: optuna.Trial) -> float:
    """A conditional space; returns the error there."""
    family = trial.suggest_categorical("family", ["lstm", "xlstm"])
    rate = trial.suggest_float("rate", 1e-5, 1.0, log=True)
    depth = trial.suggest_int("layers", 1, 3) if family == "lstm" else trial.suggest_int("blocks", 1, 4)
    return abs(rate - 0.01) + depth / 10


def add(study: optuna.Study, value: float | list[float] | None, state: TrialState, **more: Any) -> None:
    """A trial that ended so."""
    values = {"values": value} if isinstance(value, list) else {"value": value}
    study.add_trial(create_trial(state=state, params={"rate": 0.1}, distributions={"rate": RATE}, **values, **more))


def seen(view: ThinnedStudy) -> list[FrozenTrial]:
    return view.get_all_trials(0, deepcopy=False)


def test_suggestions_below_the_limit_are_those_of_a_sampler_that_sees_all() -> None:
    thinned, _, _ = opened(most=60, best=20)
    whole = optuna.create_study(sampler=tpe())
    for study in (thinned, whole):
        running: list[optuna.Trial] = []
        for number in range(60):  # three at a time, some pruned, some failed
            trial = study.ask()
            running.append(trial)
            trial.report(suggest(trial), 1)
            if len(running) == 3:
                first = running.pop(0)
                state = LEARNT[number % 2] if number % 7 else TrialState.FAIL
                study.tell(first, suggest(first) if state == TrialState.COMPLETE else None, state=state)
    assert [t.params for t in thinned.get_trials()] == [t.params for t in whole.get_trials()]
    assert [t.state for t in thinned.get_trials()] == [t.state for t in whole.get_trials()]


def test_a_sampler_sees_so_many_trials_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    study, memory, _ = opened(most=50, best=20)
    counts: list[int] = []
    look = ThinnedStudy.get_all_trials

    def counted(self: ThinnedStudy, *arguments: Any, **keywords: Any) -> list[FrozenTrial]:
        found = look(self, *arguments, **keywords)
        counts.append(len(found))
        return found

    monkeypatch.setattr(ThinnedStudy, "get_all_trials", counted)
    for _ in range(4):
        study.ask()
    for _ in range(200):
        trial = study.ask()
        study.tell(trial, suggest(trial))
    assert len(memory) == 204
    assert 50 <= max(counts) <= 50 + 4 + 1  # the running ones too


def test_the_better_half_of_tpe_is_the_same_as_without_thinning() -> None:
    study, memory, view = opened(most=50, best=25)
    draw = random.Random(3)
    for _ in range(300):
        kind = draw.random()
        if kind < 0.05:
            add(study, draw.random(), TrialState.COMPLETE)
        elif kind < 0.9:
            steps = {step: draw.random() for step in range(draw.randint(1, 3))}
            add(study, None, TrialState.PRUNED, intermediate_values=steps)
        else:
            add(study, None, TrialState.FAIL)
    from optuna.samplers._tpe.sampler import _split_trials

    everything = memory.get_all_trials(0, deepcopy=False, states=LEARNT)
    assert len(everything) > 200 and len(seen(view)) == 50
    below, _ = _split_trials(study, everything, 25)
    below_thinned, above = _split_trials(study, seen(view), 25)
    assert [trial.number for trial in below_thinned] == [trial.number for trial in below]
    numbers = [trial.number for trial in above]
    assert min(numbers) < 60 and max(numbers) > 240  # from all times


def test_what_is_seen_is_the_same_after_a_resume() -> None:
    study, memory, view = opened(most=40, best=15)
    draw = random.Random(4)
    for _ in range(100):
        trial = study.ask()
        suggest(trial)
        study.tell(trial, draw.random())
        seen(view)
    again = ThinnedStudy(StudyMemory(memory, 0), Thinning(40, 15, LEARNT), 1)
    assert [trial.number for trial in seen(view)] == [trial.number for trial in seen(again)]


def test_of_several_objectives_the_front_is_seen_and_limits_are_known() -> None:
    study, _, view = opened(most=60, best=20, objectives=2)
    draw = random.Random(5)
    for number in range(300):
        x, y = draw.random(), draw.random()
        if number % 20 == 0:  # the front: x + y = 0.5
            x, y = number / 600, 0.5 - number / 600
        else:
            x, y = 0.5 + x, 0.5 + y
        add(study, [x, y], TrialState.COMPLETE)
    front = {number for number in range(300) if number % 20 == 0}
    assert front <= {trial.number for trial in seen(view)}
    assert len(seen(view)) == 60
    trial = study.ask()
    trial.suggest_float("rate", 1e-5, 1.0, log=True)
    study.tell(trial, [0.1, 0.1])
    assert trial.number in {one.number for one in seen(view)}


def test_a_front_without_room_keeps_its_ends() -> None:
    study, _, view = opened(most=30, best=10, objectives=2)
    for number in range(200):
        add(study, [number / 200, 1 - number / 200], TrialState.COMPLETE)
    assert {0, 199} <= {trial.number for trial in seen(view)}


def test_configurations_over_a_limit_are_ranked_behind_all_others() -> None:
    study, _, view = opened(most=20, best=10)
    for number in range(60):
        trial = study.ask()
        trial.suggest_float("rate", 1e-5, 1.0, log=True)
        trial.set_constraint("parameters", 5.0 if number < 30 else -1.0)
        study.tell(trial, number / 100 if number >= 30 else None, state=LEARNT[number < 30])
    assert set(range(30, 40)) <= {trial.number for trial in seen(view)}  # the ten best that are allowed


@pytest.mark.parametrize("algorithm", ["grid", "random"])
def test_samplers_that_learn_nothing_are_not_thinned(algorithm: str, tmp_path: Path) -> None:
    spec = make_spec(SMALL, algorithm=algorithm, trials=3)
    assert isinstance(Bench(spec, tmp_path).searcher.study.sampler, NumberedSampler)


def test_the_memory_of_a_study_says_what_its_storage_says(tmp_path: Path) -> None:
    bench = Bench(make_spec(MIXED, trials=40), tmp_path)
    bench.run(lambda params: ["completed", "pruned", "diverged"][len(str(params)) % 3], concurrent=5)
    kept = bench.searcher.study.get_trials(deepcopy=False)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / study_module.JOURNAL))
    told = optuna.load_study(study_name="t", storage=optuna.storages.JournalStorage(backend)).get_trials()
    assert kept == told
    assert len({trial.state for trial in kept}) >= 2


def test_a_suggestion_reads_the_storage_as_often_after_many_trials_as_after_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read of the journal file, and each look at all trials in it, counted for one suggestion."""
    monkeypatch.setattr(study_module, "_THINNED", {"tpe": Thinning(most=30, best=25, states=LEARNT)})
    reads: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(optuna.storages.JournalStorage, name)

        def counted(self: Any, *arguments: Any, **keywords: Any) -> Any:
            reads[name] += 1
            return real(self, *arguments, **keywords)

        monkeypatch.setattr(optuna.storages.JournalStorage, name, counted)

    for name in ("_sync_with_backend", "get_all_trials", "get_trial"):
        count(name)
    space = {"training.learning_rate": {"log_float": [1e-4, 1e-2]}, "model.dropout": {"float": [0.0, 0.3]}}
    bench = Bench(make_spec(space, trials=400), tmp_path)
    seen_at: dict[int, Counter[str]] = {}
    for number in range(121):
        reads.clear()
        trial_id = bench.ask()
        assert trial_id
        seen_at[number] = reads.copy()
        bench.end(trial_id, 1, score(bench.started[trial_id]), status="completed", finished=True)
    assert seen_at[120] == seen_at[50] and seen_at[120]["get_all_trials"] == 0
    assert seen_at[120]["_sync_with_backend"] <= 20


def test_rays_controller_is_not_asked_for_all_its_trials(tmp_path: Path) -> None:
    class Controller:
        def get_trials(self) -> list[Any]:
            raise AssertionError("all trials that there have ever been")

    assert Losses(tmp_path).choose_trial_to_run(Controller()) is None


def test_many_at_once_in_a_small_space_try_every_point_once(tmp_path: Path) -> None:
    space = {
        "model.hidden_size": {"choice": [8 * n for n in range(1, 21)]},
        "training.batch_size": {"choice": [16, 32]},
    }
    bench = Bench(make_spec(space, trials=512), tmp_path)
    running = []
    while trial_id := bench.ask():
        running.append(trial_id)
    assert len(running) == 40 == len({str(bench.started[one]) for one in running})
    for trial_id in running:
        bench.end(trial_id, 1, 1.0, status="completed", finished=True)
    assert bench.ask() is None and bench.searcher.exhausted
    assert all(trial.state.is_finished() for trial in bench.trials())


@pytest.mark.slow
def test_a_search_of_2000_trials_is_whole_and_can_be_read_again(tmp_path: Path) -> None:
    """512 at a time, through searcher, referee, callback, journal, tables and spool as Tune calls them."""
    spec = make_spec(MIXED | {"training.weight_decay": {"log_float": [1e-6, 1e-1]}}, trials=2000, algorithm="random")
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"scheduler": "asha"})})
    journal, results, spool = Journal(tmp_path), ResultsWriter(tmp_path), Spool(tmp_path, "sqlite:///nowhere")
    driver = Driver(spec, Shared(tmp_path), results, spool, Progress(2000, "val_rmse", None))
    referee = Referee(make_scheduler(spec.search, EPOCHS), Shared(tmp_path), journal, Stopping(lambda words: None))
    searcher = OptunaSearcher(spec, Space.from_spec(spec), tmp_path, journal, on_end=driver.on_end)
    running: list[tuple[Ray, int]] = []
    begun, told = 0, 0
    while True:
        while len(running) < 512 and isinstance(config := searcher.suggest(f"t{begun}"), dict):
            running.append((Ray(f"t{begun}", config), 0))
            begun += 1
            driver.on_trial_start(0, [], running[-1][0])
            trial_folder(tmp_path, config["trials"][0]["number"]).mkdir(parents=True)
        if not running:
            break
        going: list[tuple[Ray, int]] = []
        for ray, epoch in running:
            result = ray.result(epoch + 1)
            stop = referee(ray.trial_id, result) or result["done"]
            told += 1
            if not stop:
                searcher.on_trial_result(ray.trial_id, result)
                going.append((ray, epoch + 1))
            driver.on_trial_result(0, [], ray, result)
            if stop:
                searcher.on_trial_complete(ray.trial_id, result=result)
                driver.on_trial_complete(0, [], ray)
        running = going
    searcher.close("finished")
    driver.close()
    results.close()
    spool.close()
    trials, epochs = read(tmp_path, "trials").to_pylist(), read(tmp_path, "epochs")
    history = read_journal(tmp_path)
    keys = set(zip(epochs["trial"].to_pylist(), epochs["epoch"].to_pylist(), strict=True))
    assert begun == 2000 == len({row["trial"] for row in trials if row["status"] != "duplicate"})
    assert epochs.num_rows == told == len(history.rows) == len(keys)
    assert {row["trial"]: row["status"] for row in trials} == {
        number: past.end.status for number, past in history.trials.items() if past.end
    }
    assert Counter(row["status"] for row in trials)["pruned"] > 500
    study = {trial.number: trial for trial in searcher.study.get_trials(deepcopy=False)}
    assert len(study) == len(trials) and all(trial.state.is_finished() for trial in study.values())
    for row in trials:
        assert study[row["trial"]].value == row["val_rmse"]
    ended = [json.loads(line) for line in spool.path.read_text().splitlines()]
    assert Counter(event["number"] for event in ended if event["e"] == "trial_ended").most_common(1)[0][1] == 1
    assert len(list((tmp_path / "results" / "epochs").iterdir())) == 1  # the parts have become one


class Ray:
    """Of a Ray trial what the driver looks at, and its worker."""

    def __init__(self, trial_id: str, config: dict[str, Any]) -> None:
        self.trial_id, self.config = trial_id, config
        (self.one,) = config["trials"]

    def result(self, epoch: int) -> dict[str, Any]:
        value = score(self.one["params"]) + 1 / epoch
        names = ("rmse", "mae", "mse_standardised", "mae_standardised")
        finished = epoch == EPOCHS
        row = {
            **dict.fromkeys(("train_loss", "learning_rate", "epoch_seconds", "sequences_per_s"), 1.0),
            **{f"val_{name}": value for name in names},
            **{f"best_val_{name}": value for name in names},
            **{"number": self.one["number"], "epoch": epoch, "best_epoch": epoch, "micro_batch": None},
            **{"status": "completed" if finished else "running", "finished": finished, "done": finished},
        }
        return {"rows": [row], "numbers": [self.one["number"]], "done": finished, "best_val_rmse": value}
