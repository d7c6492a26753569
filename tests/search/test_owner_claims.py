"""The name on the copy of a search at a URI, where several drivers want it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_mirror import copied, made

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import SPEC
from xlstm_tune.search.persistence.mirror import mirrored
from xlstm_tune.search.persistence.owner import Owner
from xlstm_tune.search.persistence.store import Remote
from xlstm_tune.search.stopping import Stopping
from xlstm_tune.storage.copy import CLOCK, CUT, OWNER, bring
from xlstm_tune.storage.objects import Objects


@pytest.fixture
def where(tmp_path: Path) -> Objects:
    return Objects((tmp_path / "bucket").as_uri())


def old(period: float) -> bytes:
    """The name of a driver of an earlier program, on another machine."""
    who = {"who": "process 1 on gone", "host": "gone", "process": 1}
    return json.dumps(who | {"period": period, "token": "0"}).encode()


def before_the_first_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[int]:
    """Let something happen just before a storage's names are looked at for the first time; how often they are."""
    names, looks = Objects.names, [0]

    def looked(self: Objects, below: str = "") -> object:
        looks[0] += 1
        if looks[0] == 1:
            act()
        return names(self, below)

    monkeypatch.setattr(Objects, "names", looked)
    return looks


def test_two_that_claim_at_once_do_not_take_the_time_from_each_other(
    where: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = where / "wave"
    objects.put(OWNER, old(0.01))
    time.sleep(0.1)
    first, second = Owner(objects, 20.0), Owner(objects, 20.0)
    # The first one has written its clock, and looks at it when the second one is done.
    looks = before_the_first_look(monkeypatch, second.claim)
    with pytest.raises(StorageError, match=r"is being run by .* was there 0 s ago"):
        first.claim()
    assert looks[0] == 2 and second.lost() is None, "one of them goes on"
    assert set(objects.names()) == {OWNER}


def test_one_that_only_looked_does_not_keep_another_from_a_name_that_has_grown_old(
    where: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = where / "wave"
    objects.put(OWNER, old(0.01))
    time.sleep(0.1)
    owner, other = Owner(objects, 20.0), Owner(objects, 20.0)
    ages: list[float] = []
    looks = before_the_first_look(monkeypatch, lambda: ages.append(other._age(0.01)))
    owner.claim()
    assert len(ages) == 1 and 0.05 <= ages[0] < 60  # file systems count in ticks of some milliseconds
    assert looks[0] == 2 and owner.lost() is None and set(objects.names()) == {OWNER}


def test_the_clock_of_a_claim_that_was_killed_is_no_part_of_the_search(where: Objects, tmp_path: Path) -> None:
    stopping = Stopping(print)
    folder = tmp_path / "here" / "wave"
    copied(where, folder, stopping).close()
    clock = f"{CLOCK}0123"
    (where / "wave").put(clock, b"")
    fetched = bring(where, "wave", tmp_path / "other")
    assert not (fetched / clock).exists()
    with mirrored(Remote(where, "wave", folder), stopping, print):
        assert clock in (where / "wave").names(), "another may be looking at it"


def test_a_name_that_is_gone_is_another_drivers_but_not_where_the_storage_is_gone_too(
    where: Objects, tmp_path: Path
) -> None:
    objects = where / "wave"
    owner = Owner(objects, 20.0)
    assert owner.lost() is None, "nobody's yet"
    owner.claim()
    objects.put(SPEC, b"")
    assert owner.lost() is None
    objects.remove([OWNER])
    assert owner.lost() == "another driver, which has ended"
    (tmp_path / "bucket").rename(tmp_path / "unmounted")
    with pytest.raises(OSError, match="it holds the search no longer"):
        owner.lost()


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"who": "x"}'])
def test_a_name_that_cannot_be_read_is_nobodys(content: bytes, where: Objects) -> None:
    objects = where / "wave"
    objects.put(OWNER, content)
    owner = Owner(objects, 20.0)
    owner.claim()
    assert json.loads(objects.get(OWNER))["token"] == owner.token
    objects.put(OWNER, content)
    assert owner.lost() is None


def named(objects: Objects, **more: object) -> None:
    """Leave the name of a driver of this machine that is gone, written as its own program did."""
    owner = "import sys; from xlstm_tune.search.persistence.owner import Owner; "
    owner += "from xlstm_tune.storage.objects import Objects; "
    subprocess.run([sys.executable, "-c", owner + "Owner(Objects(sys.argv[1]), 20.0).claim()", objects.uri], check=True)
    there = json.loads(objects.get(OWNER)) | more
    objects.put(OWNER, json.dumps({key: value for key, value in there.items() if value is not None}).encode())


def test_a_process_of_this_machine_that_is_gone_holds_no_search(where: Objects) -> None:
    objects = where / "wave"
    named(objects)
    owner = Owner(objects, 20.0)
    owner.claim()
    assert owner.lost() is None


@pytest.mark.parametrize("differs", ["boot", "namespace", "all"])
def test_a_process_that_cannot_be_seen_from_here_is_not_taken_for_dead(differs: str, where: Objects) -> None:
    """As one in another container, or on another machine, of the same host name.

    all: neither is said, as in a name of an earlier program.
    """
    objects = where / "wave"
    named(objects)
    boot, _, namespace = json.loads(objects.get(OWNER))["processes"].partition(" ")
    other = {"boot": f"{boot[::-1]} {namespace}", "namespace": f"{boot} pid:[1]", "all": None}
    named(objects, processes=other[differs])
    assert json.loads(objects.get(OWNER))["host"] == platform.node()
    with pytest.raises(StorageError, match="is being run by"):
        Owner(objects, 20.0).claim()


def test_a_name_that_a_listing_lacks_counts(where: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, names = where / "wave", Objects.names
    Owner(objects, 20.0).claim()
    monkeypatch.setattr(Objects, "names", lambda *given: {n: t for n, t in names(*given).items() if n != OWNER})
    with pytest.raises(StorageError, match="is being run by"):
        Owner(objects, 20.0).claim()


def test_an_earlier_program_takes_a_free_name(where: Objects, tmp_path: Path) -> None:
    """It knows no `free`, and takes a name that has not been refreshed for three of its periods."""
    folder = made(tmp_path / "here" / "wave")
    with mirrored(Remote(where, "wave", folder), Stopping(print), print):
        pass
    there = json.loads((where / "wave").get(OWNER))
    assert there["free"] and there["period"] == 0
    assert json.loads((where / "wave").get(CUT)).keys() == {"version", "cut", "generation"}
    assert json.loads((where / "wave").get(CUT))["version"] == 1, "it reads the copy too"
    assert {type(there[key]) for key in ("who", "host", "token")} == {str} and type(there["process"]) is int
