"""What `--resume` says of a search that is closed to us in part."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from closed import closed, refusal
from wave_search import write_wave

from xlstm_tune.search.persistence.folder import create_folder
from xlstm_tune.search.persistence.journal import Journal
from xlstm_tune.search_file import load_spec
from xlstm_tune.tracking import Spool, default_uri


@pytest.mark.parametrize("name", ["search.journal", "mlflow"])
def test_resume_of_a_search_closed_in_part_is_one_sentence(name: str, tmp_path: Path) -> None:
    spec = load_spec(str(write_wave(tmp_path, {"space": {"model.hidden_size": {"choice": [4, 8]}}})))
    search = tmp_path / "searches" / "wave"
    search.parent.mkdir()
    create_folder(search, spec, "fingerprint")
    with closing(Journal(search)), Spool(search, default_uri(search.parent)):
        pass
    with closed(search / name):
        error = refusal("xlstm_tune.search", "--resume", "wave", "--dry-run", folder=tmp_path)
    assert error.startswith(f"error: {search / name}") and "cannot be reached (Permission denied); " in error
