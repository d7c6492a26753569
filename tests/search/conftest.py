"""What the tests of trials without Ray, and of copies at a URI, share."""

from __future__ import annotations

from pathlib import Path

import pytest
from trial_data import EVERY_EPOCH, small_data

from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.persistence.mirror import PERIOD
from xlstm_tune.search.stopping import Stopping
from xlstm_tune.search.trials.checkpoints import SHARE
from xlstm_tune.storage.objects import Objects


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A table of one column."""
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def save_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints whatever they cost."""
    monkeypatch.setenv(SHARE, EVERY_EPOCH)


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """A storage; names on a copy grow old fast."""
    monkeypatch.setenv(PERIOD, "0.2")
    return Objects((tmp_path / "bucket").as_uri())


@pytest.fixture
def stopping() -> Stopping:
    return Stopping(print)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The search's folder of the first machine."""
    return tmp_path / "here" / "wave"
