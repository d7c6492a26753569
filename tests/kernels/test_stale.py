"""Compiled kernels go when any source that they are made of has changed."""

from pathlib import Path

import pytest

from xlstm_tune.kernels import stale
from xlstm_tune.kernels.lstm_numba import _forward as some_kernel
from xlstm_tune.kernels.stale import STAMP, forget_stale


def test_kernels_of_other_sources_are_removed_and_those_of_these_stay(tmp_path: Path) -> None:
    for name in ("a.nbi", "a.1.nbc", "other.pyc"):
        (tmp_path / name).write_text("")
    (tmp_path / STAMP).write_text("of other sources")
    forget_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"other.pyc", STAMP}
    (tmp_path / "a.nbi").write_text("")
    forget_stale(tmp_path)
    assert (tmp_path / "a.nbi").exists()


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    forget_stale(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_every_source_counts_whether_or_not_it_holds_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlstm_forms` and `dropout_reference` give kernels their numbers and compile nothing."""
    read: set[str] = set()
    own = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.add(path.stem), own(path))[1])
    stale._sources.__wrapped__()
    assert {"mlstm_forms", "dropout_reference", "mlstm_numba", "simd"} <= read


def test_the_folder_of_the_kernels_says_what_they_were_made_of() -> None:
    assert (Path(some_kernel._cache.cache_path) / STAMP).read_text()
