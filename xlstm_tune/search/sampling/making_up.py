"""A study whose file was lost, in part or whole, gets its trials back from what the search's journal knows of them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from xlstm_tune.search.sampling.duplicates import DRAW, START
from xlstm_tune.search.sampling.fusion import LOOK_AHEAD
from xlstm_tune.search.sampling.samplers import NumberedSampler
from xlstm_tune.search.sampling.space import Params, Space
from xlstm_tune.spec import SearchConfig


def make_up(
    study: optuna.Study, storage: BaseStorage, begun: Mapping[int, Params], space: Space, config: SearchConfig
) -> int:
    """Let the study wait for what its file has lost of a search's trials; how many those were.

    begun: the points of all that the search's journal knows, by number. They keep both; how they went the journal says,
    as of trials that are under way. A number between them that it does not know was a point drawn again of one under
    way, whose end it shares: it is drawn once more.
    """
    held = study.get_trials(deepcopy=False)
    for trial in held:
        if not trial.state.is_finished() and begun.get(trial.number, {}).keys() - trial.params.keys():
            storage.set_trial_system_attr(trial._trial_id, "fixed_params", begun[trial.number])
    lost = {number: begun.get(number, {}) for number in range(len(held), 1 + max(begun, default=-1))}
    if not lost:
        return 0
    attributes: dict[int, dict[str, Any]] = {number: {} for number in lost}
    _mark_starts(lost, attributes, held, space.starts())
    if config.algorithm == "random":
        _mark_draws(lost, attributes, held, begun.values(), space, config)
    for number, point in lost.items():
        study.enqueue_trial(point, user_attrs=attributes[number])
    return len(lost)


def _mark_starts(
    lost: dict[int, Params],
    attributes: dict[int, dict[str, Any]],
    held: Sequence[FrozenTrial],
    starts: Sequence[Params],
) -> None:
    """Say of the lost trials that were start points which. They come first; a key that a point lacks was ruled out."""
    left = dict(enumerate(starts))
    for trial in held:
        left.pop(trial.user_attrs.get(START, -1), None)
    for number, point in lost.items():
        agree = (i for i, start in left.items() if all(point.get(key, value) == value for key, value in start.items()))
        if (index := next(agree, None)) is not None and (point or index == number):
            lost[number] = point or left[index]
            del left[index]
            attributes[number][START] = index


def _mark_draws(
    lost: dict[int, Params],
    attributes: dict[int, dict[str, Any]],
    held: Sequence[FrozenTrial],
    known: Collection[Params],
    space: Space,
    config: SearchConfig,
) -> None:
    """Say of the lost trials of a random search as which numbers they were drawn, where those are not their own: trials
    that are trained together leave the line out of turn (`Proposals`)."""
    drawn = {trial.user_attrs.get(DRAW, trial.number) for trial in held} | set(range(len(space.starts())))
    wanted: dict[Hashable, list[int]] = defaultdict(list)
    unknown = []
    for number, point in lost.items():
        if START not in attributes[number]:
            wanted[_key(point)].append(number) if point else unknown.append(number)
    all_known = {_key(point) for point in known}
    ahead = optuna.create_study()
    for draw in itertools.count():
        if not (any(wanted.values()) or unknown) or draw > max(lost) + LOOK_AHEAD:
            return
        if draw in drawn:
            continue
        ahead.sampler = NumberedSampler(config, draw)
        point = space.suggest(ahead.ask())
        if numbers := wanted.get(_key(point)):
            number = numbers.pop(0)
        elif unknown and _key(point) in all_known:
            number = unknown.pop(0)
            lost[number] = point
        else:
            continue
        if number != draw:
            attributes[number][DRAW] = draw


def _key(point: Params) -> Hashable:
    return tuple(sorted(point.items()))
