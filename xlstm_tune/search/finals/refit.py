"""The winner trained again on training and validation part together, before it is put to use."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.errors import StorageError, first_line
from xlstm_tune.layout import CHAMPION, REFIT_WISH, WEIGHTS
from xlstm_tune.predict.champion import load_champion, read_about
from xlstm_tune.predict.make import Refit, Winner, find_winner
from xlstm_tune.search.finals.finalists import Array
from xlstm_tune.search.persistence.folder import disk_stop
from xlstm_tune.search.persistence.store import Shared, StorageAway
from xlstm_tune.search.placement.resources import Placement, own_gpus_alone
from xlstm_tune.search.plan import Plan
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.checkpoint import save_weights, write_atomically
from xlstm_tune.training.judge import predict
from xlstm_tune.training.loop import Diverged, autocast_dtype, pick_device, train
from xlstm_tune.training.metrics import score_units

WANTED = b"wanted\n"
REFIT = "refit"
"""Folder of the new weights, below the winner's."""


def wish_for_refit(folder: Path, asked: bool) -> bool:
    """Whether the winner is to be trained again: now asked for, or by a part of the search that did not come to it."""
    wish = folder / REFIT_WISH
    if asked:
        write_atomically(wish, WANTED)
    return asked or (wish.is_file() and wish.read_bytes() == WANTED)


def asked_for_refit(folder: Path) -> bool:
    """Whether any part of the search was asked for it, done or not: a winner that is chosen anew is trained again."""
    return (folder / REFIT_WISH).is_file()


def refit_tried(folder: Path) -> None:
    """It is done, or did not work, which the champion tells."""
    write_atomically(folder / REFIT_WISH, b"done\n")


def refit_of_before(plan: Plan) -> Refit | None:
    """The winner as it was trained again before, where the champion that is there is that; None where there is none.

    A trial's settings never change, so for as many epochs on the same data another training would bring the same. The
    weights are the champion's own: a machine that took the search over may have no others.
    """
    winner = find_winner(plan.folder, plan.spec.search.objective)
    if winner is None:
        return None
    place = plan.folder / CHAMPION
    same = {
        "refit": True,
        "trial": winner.row["trial"],
        "member": winner.member,
        "refit_epochs": winner.epochs,  # more than before where the trial has gone on since, and become better
        "data_fingerprint": plan.data.fingerprint,
    }
    with suppress(StorageError):  # there is none yet, or it is damaged
        about = read_about(place)
        if all(about.get(name) == value for name, value in same.items()):
            return Refit(place / WEIGHTS, load_champion(place).scaling, winner.epochs, about["refit_scores"]["test"])
    return None


def refit_remotely(plan: Plan, winner: Winner, placement: Placement, truth: Array) -> Refit | str:
    """Train the winner's configuration again as a Ray task with a trial's resources.

    With the statistics of both parts, the same seed, and as many epochs as the winner's best one: nothing is left to
    choose a better number by. The number is kept, not scaled by the size of the data: an epoch over more samples makes
    more steps already, and the learning rate follows the schedule of the whole run up to the same epoch.
    truth: [n, H, K] of the test part in the targets' units. Returns a sentence where it did not work. Raises
    OSError where the storage is away, or a disk takes nothing.
    """
    import ray

    data = prepare(plan.table, plan.spec.data, plan.spec.max_lookback(), refit=True)
    place = winner.folder(plan.folder) / REFIT
    name = place.relative_to(plan.folder).as_posix()
    task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(_refit_task)
    raw = plan.spec.model_dump(by_alias=True)
    try:
        answer = ray.get(task.remote(plan.store, name, raw, winner.settings, winner.epochs, ray.put(data)))
    except OSError:  # as the task raises it: Ray's exception is of that kind too
        raise
    except ray.exceptions.RayError as error:
        return f"the worker was lost ({first_line(error)})"
    if isinstance(answer, str):
        return answer
    plan.store.pull(place)
    assert data.scaling is not None
    test = score_units(answer, truth, plan.data.target_std)
    return Refit(place / WEIGHTS, data.scaling, winner.epochs, test)


def _refit_task(
    store: Shared, name: str, raw: dict[str, Any], settings: dict[str, Any], epochs: int, data: Prepared
) -> Array | str:
    """Predictions of the test part, [n, H, K] in the targets' units; why there are none otherwise.

    name: of the folder of the new weights, below the search's.
    """
    own_gpus_alone()
    config = SearchSpec.parse(raw).resolve(settings)
    # Validation is part of the training now, and has no say in when to stop.
    config = replace(config, training=config.training.model_copy(update={"patience": 0}))
    device = pick_device()
    try:
        for result in train(config, data, device=device):
            if result.epoch == epochs:
                break
        model = result.state.model
        windows = Windows(data, "test", config.lookback, device)
        made = predict(model, windows, dtype=autocast_dtype(config.training.precision, device)).numpy()
        place = store.folder / name
        place.mkdir(parents=True, exist_ok=True)
        save_weights(place / WEIGHTS, model.state_dict())
        store.push(place)
    except Diverged as reason:
        return f"it diverged: {reason}"
    except Exception as error:
        if isinstance(error, StorageAway) or disk_stop(error):  # it is trained again once there is room
            if isinstance(error, OSError):
                raise
            raise OSError(str(error)) from error
        # Whatever else it was, the winner that there is stays.
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        store.leave()
    return data.in_units(made)
