"""What a population's trial leaves in the tables and on its MLflow run, besides what every trial does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xlstm_tune.ranking import METRICS
from xlstm_tune.search.sampling.population import population_params, trial_members
from xlstm_tune.spec import Scalar, SearchSpec
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.members import Member


def trial_title(spec: SearchSpec, config: TrialConfig) -> str:
    """Short name of a trial that has not ended: what its members share, and how many they are."""
    if spec.population is None:
        return spec.title(config)
    return f"{spec.title(config, left_out=spec.population.settings)} · {len(trial_members(spec, config))} members"


def trial_params(spec: SearchSpec, config: TrialConfig) -> dict[str, Scalar]:
    """Parameters of a trial's MLflow run; settings that its members differ in are listed as the population's."""
    settings = spec.population.settings if spec.population else {}
    shared = {key: value for key, value in config.flat().items() if key not in settings}
    return shared | population_params(spec.population)


def member_curves(members: Sequence[Member], result: Mapping[str, Any], objective: str) -> dict[str, float]:
    """The epoch's points of the score's standard error and of each member that was trained in it.

    result: what the trial reported; objective: with its `val_`.
    """
    if not members:
        return {}
    curves = {f"{objective}_std_error": result["std_error"]} if result["std_error"] is not None else {}
    for index in result["trained"]:
        curves[f"member/{members[index].title}/{objective}"] = result["members"][index]["value"]
    return curves


def winner_tags(winner: Member) -> dict[str, str]:
    """Tags of a trial's MLflow run that name its best setting, and that setting's best seed."""
    tags = {f"winner.{key}": str(value) for key, value in winner.setting.items()}
    return tags | {"winner.training.seed": str(winner.seed)}


def member_rows(
    trial: int,
    members: Sequence[Member],
    standing: Sequence[Mapping[str, Any]] | None,
    status: str,
    reason: str | None,
) -> list[dict[str, Any]]:
    """Rows of the members table for a trial that has ended.

    standing: what the trial last reported of each member; None where it reported nothing.
    status, reason: how the trial ended; a member that was still training ended so too.
    """
    rows = []
    for member in members:
        own = standing[member.index] if standing else {"status": "running", "epochs": 0, "best_epoch": None, "best": {}}
        running = own["status"] == "running"
        row = {
            "trial": trial,
            "member": member.index,
            "seed": member.seed,
            "setting": member.setting,
            "status": status if running else own["status"],
            "reason": reason if running else own["reason"],
            "best_epoch": own["best_epoch"],
            "epochs": own["epochs"],
        }
        rows.append(row | {f"val_{name}": own["best"].get(name) for name in METRICS})
    return rows
