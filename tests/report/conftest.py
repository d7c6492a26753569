"""Reports are made of tables that are written dozens of times here."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether tables outlive a power cut is for the tests of the tables; waiting for the disk took most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
