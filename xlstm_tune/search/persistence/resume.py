"""What may be given anew when a search goes on, and what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xlstm_tune.errors import StorageError
from xlstm_tune.search.persistence.folder import SPEC, frozen, spec_text
from xlstm_tune.search.persistence.journal import read_journal
from xlstm_tune.search.sampling.duplicates import never_begun
from xlstm_tune.search.sampling.study import open_study
from xlstm_tune.search_file import load_spec
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.checkpoint import write_atomically

MAY_CHANGE = ("name", "search.trials", "search.time_budget", "search.storage", "resources", "data.source")
"""Keys, or sections, that say how much and on what is searched, not what; that the data at another place are the same
their fingerprint says."""


def check_same_search(folder: Path, spec: SearchSpec) -> None:
    """Raise StorageError, with the differences, when `spec` is another search than the one in `folder`."""
    before, now = _flat(load_spec(str(folder / SPEC))), _flat(spec)
    differences = [
        f"{key} is {_shown(before, key)} there and {_shown(now, key)} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _may_change(key)
    ]
    if differences:
        raise StorageError(
            f"the search '{folder.name}' was begun with other settings, so its trials and new ones could not be "
            f"compared: {'; '.join(differences)}; take that back, or start a new search with another --name"
        )


def check_enough_trials(folder: Path, spec: SearchSpec) -> None:
    """Raise StorageError when `search.trials` is less than the search in `folder` has begun already."""
    ends = [past.end for past in read_journal(folder).trials.values()]
    begun = sum(end is None or (end.status != "duplicate" and not never_begun(end.reason)) for end in ends)
    if spec.search.trials is not None and spec.search.trials < begun:
        raise StorageError(
            f"the search '{folder.name}' has begun {begun:,} trials already, so search.trials (--trials) cannot be "
            f"{spec.search.trials:,}; give at least {begun:,}, or leave it out"
        )


def keep_spec(folder: Path, spec: SearchSpec) -> None:
    """Freeze what has been given anew, so that the next resume goes on with it.

    Raises StorageError when `search.storage` is another one, which does not hold the study of this search.
    """
    kept = spec.model_copy(update={"name": folder.name})
    if _flat(kept).get("search.storage") != _flat(load_spec(str(folder / SPEC))).get("search.storage"):
        open_study(kept.name, kept.search, folder, resume=True, known=read_journal(folder).trials)
    write_atomically(folder / SPEC, spec_text(kept).encode())


def _may_change(key: str) -> bool:
    return key in MAY_CHANGE or key.partition(".")[0] in MAY_CHANGE


def _flat(spec: SearchSpec) -> dict[str, Any]:
    """`section.key` → value; what is None counts as not given."""
    flat: dict[str, Any] = {}
    for section, content in frozen(spec).items():
        if isinstance(content, dict):
            flat |= {f"{section}.{key}": value for key, value in content.items()}
        else:
            flat[section] = content
    return flat


def _shown(flat: dict[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "not given"
