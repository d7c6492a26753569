"""One driver for a search that is kept at a URI, whatever machine it runs on: a name on the copy, refreshed with it."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from xlstm_tune.errors import StorageError
from xlstm_tune.storage.copy import CLOCK, OWNER, as_json, check_there, other_owner, taken_over
from xlstm_tune.storage.objects import Objects

FRESH = 3
"""Refreshed within so many periods, a name counts."""


class TakenOver(StorageError):
    """Another driver has the search now."""


class Owner:
    """This driver's name on the copy of a search. period: seconds between two copies."""

    def __init__(self, objects: Objects, period: float) -> None:
        self._objects, self._period = objects, period
        self._claimed, self._written = False, 0.0
        self._took_over = False
        """The driver before may wake, and the copy does not say yet that journals of other names count."""
        self.token = os.urandom(8).hex()
        """Tells this driver from every other."""

    def claim(self) -> bool:
        """Write the name. Returns whether it takes the place of one whose driver only fell silent, and may wake.

        So it does too where the one before took such a place and ended before it was settled, however it ended.
        Raises StorageError, with whose it is, when there is another's that counts.
        """
        try:
            there = json.loads(self._objects.get(OWNER))
            who, period, token = str(there["who"]), float(there["period"]), str(there["token"])
            host, process = str(there["host"]), int(there["process"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            self.refresh(self._period)
            return False
        another = token != self.token and not there.get("free") and not _dead(host, process, there.get("processes"))
        if another:
            age = self._age(period)
            if age < FRESH * period:
                raise StorageError(
                    f"the search at {self._objects.shown} is being run by {who}, which was there {age:.0f} s ago; wait "
                    f"until it ends, or stop it first, or, if its machine is gone, try again in "
                    f"{FRESH * period - age:.0f} s"
                )
        self._took_over = another or bool(there.get("took_over"))
        self.refresh(self._period)
        return self._took_over

    def settle(self) -> None:
        """The copy says whose journals count: a driver that wakes can write into them no more."""
        self._took_over = False

    def refresh(self, period: float) -> None:
        """Write the name anew. period: seconds until this is done again."""
        self._period, self._claimed = period, True
        self._write(period=period)

    def keep(self) -> None:
        """Write the name anew where that was half a period ago, by the clock that goes on while a machine sleeps."""
        if not 0 <= time.time() - self._written < self._period / 2:
            self.refresh(self._period)

    def lost(self) -> str | None:
        """Who has taken the search over; None while it is ours. Raises OSError, where the storage has lost it too."""
        try:
            return other_owner(self._objects, self.token)
        except FileNotFoundError:
            if not self._claimed:
                return None
        check_there(self._objects)
        return "another driver, which has ended"  # earlier programs removed the name then

    def check(self) -> None:
        """Raise TakenOver unless the search is ours."""
        if (who := self.lost()) is not None:
            raise TakenOver(taken_over(self._objects, who))

    def give_up(self) -> None:
        """Leave the name as one that counts no more, by which a driver that slept meanwhile sees that others came."""
        if self._claimed and self.lost() is None:
            self._write(period=0, free=True)  # programs that do not know `free` see it grow old at once

    def _write(self, **more: Any) -> None:
        host, process = platform.node(), os.getpid()
        who = {"who": f"process {process} on {host}", "host": host, "process": process, "processes": _processes()}
        unsettled = {"took_over": True} if self._took_over else {}
        now = time.time()
        self._objects.put(OWNER, as_json(who | {"token": self.token} | unsettled | more))
        self._written = now

    def _age(self, period: float) -> float:
        """Seconds since the name there was written. Both times are the store's own: machines' clocks differ."""
        clock = f"{CLOCK}{self.token}"
        self._objects.put(clock, b"")
        try:
            times = self._objects.names()
        finally:
            self._objects.remove([clock])
        if OWNER not in times:  # it has just been read: not all is listed
            return 0.0
        return max(0.0, (times.get(clock, times[OWNER]) - times[OWNER]).total_seconds())


def _dead(host: str, process: int, processes: object) -> bool:
    """Whether an owner was a process of this machine that is gone. processes: as `_processes`, by the owner."""
    ours = _processes()
    return ours is not None and (host, processes) == (platform.node(), ours) and not Path(f"/proc/{process}").exists()


def _processes() -> str | None:
    """Among which processes a number names one: of this start of the system, and of this container, whose host name
    others may have too. None where the system does not tell; names of earlier programs do not either."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
