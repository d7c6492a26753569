"""What searches under faults are compared with."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_search import Search, write_search


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the folder of a search without a fault, by the sections of its file; run once for all tests' processes."""
    base = tmp_path_factory.getbasetemp()
    place = base.parent if base.name.startswith("popen-") else base  # pytest-xdist's processes have one each

    def find(**sections: Any) -> Path:
        key = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:12]
        mine = place / f"undisturbed-{key}"
        mine.mkdir(exist_ok=True)
        search = Search(mine / "searches")
        with (mine / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (mine / "done").exists():
                search.run(str(write_search(mine, **sections)))
                (mine / "done").touch()
        return search.folder

    return find
