"""Lines of a spool after bytes of them were flipped: read as an event that can be sent, or not at all."""

from __future__ import annotations

import pytest
from tracked import say_trial

from xlstm_tune.tracking import Spool
from xlstm_tune.tracking.events import read_event
from xlstm_tune.tracking.gather import batches, gather


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """One of each kind of event."""
    folder = tmp_path_factory.mktemp("s")
    with Spool(folder, "sqlite:///x.db") as spool:
        spool.search_started("s", {"search.trials": 4}, {"a": "b"}, [folder / "spec.yaml"])
        say_trial(spool, 1, "failed", folder)
        spool.metrics({"test_rmse": 3.0}, trial=1, tags={"winner": "yes"})
        spool.table("leaderboard", {"model": ["lstm", "naive"], "rmse": [1.0, None]})
        spool.artifact(folder / "report", "plots")
        spool.search_ended("completed", {"best_val_rmse": 1.0})
    return spool.path.read_bytes().splitlines(keepends=True)


def test_whole_lines_are_events(lines: list[bytes]) -> None:
    assert [event["e"] for line in lines if (event := read_event(line))] == [
        *("search_started", "trial_started", "epoch", "epoch", "epoch", "trial_ended"),
        *("metrics", "table", "artifact", "search_ended"),
    ]


@pytest.mark.parametrize("bit", range(8))
def test_flipped_bits_make_no_event_that_cannot_be_sent(lines: list[bytes], bit: int) -> None:
    damaged = 0
    for line in lines:
        for place in range(len(line) - 1):
            event = read_event(line[:place] + bytes([line[place] ^ (1 << bit)]) + line[place + 1 :])
            damaged += event is None
            for pending in gather([event] if event else [], lambda number: -1).values():
                for _, params, tags in batches(pending.metrics, pending.params, pending.tags):
                    "".join(str(one.value) for one in (*params, *tags)).encode()
    assert damaged > 100


@pytest.mark.parametrize(
    "line",
    [
        *(b"\n", b"null\n", b"[]\n", b"{}\n", b"\0\0\0\n", b"\xff\xfe\n", b'{"e": "epoch", "t": 1}\n'),
        b"[" * 100_000 + b"\n",
        b'{"e": []}\n',
        b'{"e": "metrics", "t": 1, "metrics": {"a": 1' + b"0" * 400 + b'}, "tags": {}}\n',
        b'{"e": "epoch", "t": 1, "number": 1, "step": 1' + b"0" * 19 + b', "metrics": {"a": 1.0}}\n',
    ],
    ids=range(11),
)
def test_other_lines_are_no_events(line: bytes) -> None:
    assert read_event(line) is None
