"""One driver for a search that is kept at a URI, whatever machine it runs on: a name on the copy, refreshed with it."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from xlstm_tune.errors import StorageError
from xlstm_tune.storage.copy import OWNER, as_json
from xlstm_tune.storage.objects import Objects

FRESH = 3
"""Refreshed within so many periods, a name counts."""
_CLOCK = "clock"


class Owner:
    """This driver's name on the copy of a search. period: seconds between two copies."""

    def __init__(self, objects: Objects, period: float) -> None:
        self._objects, self._period = objects, period
        self._token = os.urandom(8).hex()

    def claim(self) -> None:
        """Write the name. Raises StorageError, with whose it is, when there is another's that counts."""
        try:
            there = json.loads(self._objects.get(OWNER))
            who, period, token = str(there["who"]), float(there["period"]), str(there["token"])
            host, process = str(there["host"]), int(there["process"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return self.refresh(self._period)
        if token != self._token and not _dead(host, process):
            # Both times are the store's own: machines' clocks differ.
            self._objects.put(_CLOCK, b"")
            times = self._objects.names()
            self._objects.remove([_CLOCK])
            age = (times[_CLOCK] - times[OWNER]).total_seconds() if OWNER in times else period * FRESH
            if age < FRESH * period:
                raise StorageError(
                    f"the search at {self._objects.shown} is being run by {who}, which was there {age:.0f} s ago; wait "
                    f"until it ends, or stop it first, or, if its machine is gone, try again in "
                    f"{FRESH * period - age:.0f} s"
                )
        self.refresh(self._period)

    def refresh(self, period: float) -> None:
        """Write the name anew. period: seconds until this is done again."""
        self._period = period
        host, process = platform.node(), os.getpid()
        content = {"who": f"process {process} on {host}", "host": host, "process": process}
        self._objects.put(OWNER, as_json(content | {"period": period, "token": self._token}))

    def lost(self) -> str | None:
        """Who has taken the search over; None while it is ours."""
        try:
            there = json.loads(self._objects.get(OWNER))
            return None if there["token"] == self._token else str(there["who"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def give_up(self) -> None:
        """Remove the name."""
        if self.lost() is None:
            self._objects.remove([OWNER])


def _dead(host: str, process: int) -> bool:
    """Whether an owner was a process of this machine that is gone."""
    return host == platform.node() and not Path(f"/proc/{process}").exists()
