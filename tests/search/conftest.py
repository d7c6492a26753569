"""What the tests of trials without Ray share."""

from __future__ import annotations

import pytest
from trial_data import EVERY_EPOCH, small_data

from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.checkpoints import SHARE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A table of one column."""
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def save_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints whatever they cost."""
    monkeypatch.setenv(SHARE, EVERY_EPOCH)
