"""The search's own record: read back exactly, whatever happened to its last line, and never half a line in between."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_tune.errors import StorageError
from xlstm_tune.search.persistence.journal import JOURNAL, SCHEMA, History, Journal, read_journal
from xlstm_tune.search.sampling.duplicates import TrialEnd
from xlstm_tune.search.sampling.space import Params

FLOATS = [0.1 + 0.2, 1e-320, 1.7976931348623157e308, -0.0, 1 / 3]


def row(number: int, epoch: int, best: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {"number": number, "epoch": epoch, "best_val_rmse": best, "status": "running", "done": False} | changes


def write(folder: Path) -> Journal:
    """Every kind of line."""
    journal = Journal(folder)
    journal.began([0, 1], [{"model.dropout": value} for value in FLOATS[:2]])
    journal.epoch(row(0, 1, FLOATS[0], figures=FLOATS), stop=False)
    journal.epoch(row(1, 1, FLOATS[4]), stop=True)
    journal.ended(TrialEnd(1, "t0", "pruned", None, FLOATS[4], {"model.dropout": FLOATS[1]}))
    journal.died([0], "worker died")
    journal.began([0], [{"model.dropout": FLOATS[0]}])
    journal.epoch(row(0, 2, math.nan, status="failed", reason="diverged: loss is nan", done=True), stop=False)
    journal.ended(TrialEnd(0, "t1", "failed", "diverged: loss is nan", None, {"model.dropout": FLOATS[0]}))
    journal.ended(TrialEnd(2, None, "duplicate", None, FLOATS[4], {"model.family": 'a "ß" \n'}, 1))
    journal.closed("interrupted")
    return journal


def plain(history: History) -> str:
    """All that it says; NaN equals NaN, 0.0 is not -0.0."""
    return repr(history)


def test_what_was_written_is_read_exactly(tmp_path: Path) -> None:
    write(tmp_path).close()
    history = read_journal(tmp_path)
    first, second, copy = (history.trials[number] for number in range(3))
    assert first.params == {"model.dropout": FLOATS[0]} and first.together == [0] and second.together == [0, 1]
    assert [repr(value) for value in first.rows[0][1]["figures"]] == [repr(value) for value in FLOATS]
    assert [repr(one) for one in history.rows] == [
        repr((row(0, 1, FLOATS[0], figures=FLOATS), False)),
        repr((row(1, 1, FLOATS[4]), True)),
        repr((row(0, 2, math.nan, status="failed", reason="diverged: loss is nan", done=True), False)),
    ]
    assert (first.epoch, second.epoch, copy.epoch) == (1, 1, 0), "a failed epoch is none"
    assert first.decided is not None and math.isnan(first.decided["best_val_rmse"])
    assert second.decided == row(1, 1, FLOATS[4], done=True)
    assert first.end == TrialEnd(0, "t1", "failed", "diverged: loss is nan", None, first.params)
    assert second.end == TrialEnd(1, "t0", "pruned", None, FLOATS[4], second.params)
    assert copy.end == TrialEnd(2, None, "duplicate", None, FLOATS[4], {"model.family": 'a "ß" \n'}, 1)


def test_seconds_count_from_when_the_worker_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's start and nodes that must come up first are no cost of a trial; earlier programs did not tell."""
    clock = [1000.0]
    monkeypatch.setattr("xlstm_tune.search.persistence.journal.time.time", lambda: clock[0])

    def spent(*waits: float, told: bool = True) -> tuple[float, float]:
        folder = tmp_path / f"{len(waits)}-{told}"
        folder.mkdir()
        journal, clock[0] = Journal(folder), 1000.0
        for epoch, wait in enumerate(waits, 1):
            journal.began([0, 1], [{}, {}])
            clock[0] += wait
            if told:
                journal.took([0, 1])
            clock[0] += 10
            journal.epoch(row(0, epoch, 1.0), stop=False)
            journal.epoch(row(1, epoch, 1.0), stop=False)
            journal.died([0, 1], "worker died")
        past = read_journal(folder).trials[0]
        return past.spent, past.began

    assert spent(60.0) == (5.0, 1060.0), "shared by two"
    assert spent(60.0, 600.0) == (10.0, 1060.0)
    assert spent(60.0, told=False) == (35.0, 1000.0)


@pytest.mark.parametrize(
    "end", [{"e": "closed", "reason": "time budget"}, {"e": "died", "numbers": [0], "why": "lost"}]
)
def test_a_worker_that_never_came_costs_nothing(end: dict[str, Any]) -> None:
    """The driver was stopped, or the node lost, while nodes were waited for."""
    history = History()
    for when, event in (
        (1.0, {"e": "began", "numbers": [0], "params": [{}]}),
        (601.0, end),
        (90_000.0, {"e": "search", "schema": SCHEMA, "program": "x"}),
        (90_001.0, {"e": "began", "numbers": [0], "params": [{}]}),
        (90_002.0, {"e": "took", "numbers": [0]}),
        (90_012.0, {"e": "epoch", "row": row(0, 1, done=True)}),
    ):
        history.add({"t": when} | event)
    assert (history.trials[0].spent, history.trials[0].began) == (10.0, 90_002.0)


def test_a_trial_began_with_its_first_worker_though_that_told_no_epoch() -> None:
    history = History()
    for when, event in (
        (1.0, {"e": "began", "numbers": [0], "params": [{}]}),
        (2.0, {"e": "took", "numbers": [0]}),
        (50.0, {"e": "search", "schema": SCHEMA, "program": "x"}),
        (51.0, {"e": "began", "numbers": [0], "params": [{}]}),
        (60.0, {"e": "took", "numbers": [0]}),
        (70.0, {"e": "epoch", "row": row(0, 1, done=True)}),
    ):
        history.add({"t": when} | event)
    assert (history.trials[0].spent, history.trials[0].began) == (10.0, 2.0)


@settings(max_examples=25, deadline=None)
@given(value=st.floats(), text=st.text())
def test_any_number_and_any_text_comes_back(value: float, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder)
    journal.began([0], [{"key": text}])
    journal.epoch(row(0, 1, value, reason=text), stop=False)
    journal.close()
    ((found, _),) = read_journal(folder).rows
    assert repr(found) == repr(row(0, 1, value, reason=text))


def test_numpy_numbers_are_written_as_numbers(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.began([0], [{"model.hidden_size": np.int64(8)}])  # type: ignore[dict-item]
    journal.epoch(row(0, 1, np.float32(0.5)), stop=False)  # type: ignore[arg-type]
    history = read_journal(tmp_path)
    assert history.trials[0].params == {"model.hidden_size": 8} and history.rows == [(row(0, 1, 0.5), False)]


def test_opening_an_old_one_goes_on_with_it(tmp_path: Path) -> None:
    write(tmp_path).close()
    before = plain(read_journal(tmp_path))
    again = Journal(tmp_path)
    assert plain(again.history) == before
    again.began([3], [{}])
    lines = [json.loads(line)["e"] for line in (tmp_path / JOURNAL).read_bytes().splitlines()]
    assert lines.count("search") == 2 and lines[-3:] == ["closed", "search", "began"]


def test_a_line_torn_at_any_byte_is_left_out_and_cut(tmp_path: Path) -> None:
    write(tmp_path).close()
    path = tmp_path / JOURNAL
    content = path.read_bytes()
    ends = [0, *(place + 1 for place, byte in enumerate(content) if byte == ord("\n"))]
    states = {}
    for end in ends:
        path.write_bytes(content[:end])
        states[end] = plain(read_journal(tmp_path))
    for size in range(len(content)):
        path.write_bytes(content[:size])
        whole = max(end for end in ends if end <= size)
        assert plain(read_journal(tmp_path)) == states[whole]
        again = Journal(tmp_path)
        assert plain(again.history) == states[whole]
        again.close()
        kept = path.read_bytes()
        assert kept.startswith(content[:whole])
        assert json.loads(kept[whole:])["e"] == "search"


def test_one_of_a_newer_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    line = json.dumps({"e": "search", "t": 0.0, "schema": SCHEMA + 1, "program": "xlstm_tune 99"}) + "\n"
    (tmp_path / JOURNAL).write_text(line + '{"e": "torn')
    for read in (read_journal, Journal):
        with pytest.raises(StorageError, match=r"written by xlstm_tune 99 .*go on with the program that wrote it"):
            read(tmp_path)
    assert (tmp_path / JOURNAL).read_text() == line + '{"e": "torn'


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"e": "epo\n',
        b'{"e": "endee", "t": 1.0, "end": {}}\n',
        b"\x00" * 40 + b"\n",
        b"\xff\xfe\n",
        b"null\n",
        b"7\n",
        b"[]\n",
        b"{}\n",
        b'{"e": "epoch", "t": 1.0}\n',
        b'{"e": "epoch", "t": 1.0, "row": {"number": 99, "done": false}}\n',
        b'{"e": "ended", "t": 1.0, "end": {"number": 1}}\n',
        b'{"e": "began", "t": "x", "numbers": [1], "params": [{}]}\n',
        b'{"e": "began", "t": 1.0, "numbers": [1, 2], "params": [{}]}\n',
        b'{"e": "died", "t": 1.0, "numbers": [99], "why": ""}\n',
    ],
)
def test_a_damaged_line_is_named_by_its_number(damaged: bytes, tmp_path: Path) -> None:
    write(tmp_path).close()
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4:4] = [damaged]
    path.write_bytes(b"".join(lines))
    for read in (read_journal, Journal):
        with pytest.raises(StorageError) as caught:
            read(tmp_path)
        message = str(caught.value)
        assert f"line 5 of {path} is damaged" in message and "remove that line" in message and "\n" not in message
    assert path.read_bytes() == b"".join(lines)


def test_what_goes_on_from_a_damaged_line_is_named_with_it(tmp_path: Path) -> None:
    write(tmp_path).close()
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"began", b"bega\x00")
    path.write_bytes(b"".join(lines))
    with pytest.raises(
        StorageError, match=r"lines 2, [\d, ]+ of .*the first: JSONDecodeError.*; remove those lines"
    ) as caught:
        read_journal(tmp_path)
    named = {int(place) for place in str(caught.value).split(" of ")[0].removeprefix("lines ").split(", ")}
    path.write_bytes(b"".join(line for place, line in enumerate(lines, 1) if place not in named))
    read_journal(tmp_path)


def test_a_return_within_a_line_is_damage_and_no_end(tmp_path: Path) -> None:
    """A flipped bit makes one of a minus, as Python's lines end at both."""
    write(tmp_path).close()
    path = tmp_path / JOURNAL
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:30] + b"\r" + lines[2][31:]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(StorageError, match=r"line(s 3,| 3 of) .*damaged"):
        read_journal(tmp_path)


def test_a_separator_of_text_within_a_line_does_not_end_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    params: Params = {"key": "a\u2028b\x0bc\x0cd\x1ce\x85f\r"}
    journal.began([0], [params])
    assert read_journal(tmp_path).trials[0].params == params


FULL = """
import json, resource, signal, sys
from pathlib import Path
from xlstm_tune.search.persistence.journal import JOURNAL, Journal
folder, room = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / JOURNAL).stat().st_size + room, resource.RLIM_INFINITY))
try:
    journal.began([0], [{"key": "x" * 100}])
except OSError as error:
    print(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.began([1], [{"key": "y"}])
"""


@pytest.mark.parametrize("room", [0, 1, 60])
def test_a_line_for_which_there_is_no_room_leaves_no_half(room: int, tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        pytest.skip("files are limited in size here already")
    answer = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(room)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip(), "it was written where there was no room"
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_bytes().splitlines()]
    assert [line.get("numbers") for line in lines] == [None, [1]]
    assert list(read_journal(tmp_path).trials) == [1]


def test_spent_time_is_the_workers_own(tmp_path: Path) -> None:
    events: list[tuple[float, dict[str, Any]]] = [
        (100.0, {"e": "began", "numbers": [0, 1], "params": [{}, {}]}),
        (110.0, {"e": "epoch", "row": row(0, 1)}),
        (120.0, {"e": "died", "numbers": [0, 1], "why": "worker died"}),
        (150.0, {"e": "began", "numbers": [0], "params": [{}]}),
        (150.0, {"e": "took", "numbers": [0]}),
        (155.0, {"e": "closed", "reason": "interrupted"}),
        (156.0, {"e": "closed", "reason": "twice"}),
        (1000.0, {"e": "began", "numbers": [0], "params": [{}]}),
        (1001.0, {"e": "epoch", "row": row(0, 2, done=True)}),
        (1009.0, {"e": "ended", "end": vars(TrialEnd(0, "t", "completed", None, 1.0, {}))}),
        (1100.0, {"e": "closed", "reason": "time budget"}),
    ]
    spent = {2: (10.0, 10.0), 6: (15.0, 10.0), 8: (16.0, 10.0), 10: (16.0, 10.0)}  # two shared the first 20
    history = History()
    for place, (when, event) in enumerate(events):
        history.add({"t": when} | event)
        if place in spent:
            assert tuple(history.trials[number].spent for number in (0, 1)) == pytest.approx(spent[place])
    past = history.trials[0]
    assert (past.began, past.ended, past.epoch, past.together) == (100.0, 1009.0, 2, [0])


def test_spent_time_is_shared_by_those_that_still_went_on() -> None:
    history = History()
    for when, event in (
        (100.0, {"e": "began", "numbers": [0, 1, 2], "params": [{}, {}, {}]}),
        (130.0, {"e": "epoch", "row": row(0, 1, done=True)}),
        (130.0, {"e": "epoch", "row": row(1, 1)}),
        (130.0, {"e": "epoch", "row": row(2, 1)}),
        (150.0, {"e": "epoch", "row": row(1, 2, done=True)}),
        (150.0, {"e": "epoch", "row": row(2, 2)}),
        (155.0, {"e": "epoch", "row": row(2, 3)}),
        (159.0, {"e": "died", "numbers": [0, 1, 2], "why": "worker died"}),
    ):
        history.add({"t": when} | event)
    assert [history.trials[number].spent for number in range(3)] == pytest.approx([10, 20, 29])


def test_spent_time_counts_once_however_many_epochs_a_result_tells() -> None:
    history = History()
    history.add({"t": 100.0, "e": "began", "numbers": [0], "params": [{}]})
    for epoch in (1, 2, 3):
        history.add({"t": 140.0, "e": "epoch", "row": row(0, epoch, compile_seconds=10.0)})
    history.add({"t": 240.0, "e": "died", "numbers": [0], "why": "worker died"})
    assert history.trials[0].spent == pytest.approx(130)


def test_a_driver_that_was_killed_counts_until_its_last_word(tmp_path: Path) -> None:
    """What came before the last row is spent; nobody knows when it was killed after that."""
    history = History()
    history.add({"t": 100.0, "e": "began", "numbers": [0], "params": [{}]})
    history.add({"t": 110.0, "e": "epoch", "row": row(0, 1)})
    history.add({"t": 100.0, "e": "began", "numbers": [1], "params": [{}]})
    history.add({"t": 5000.0, "e": "search", "schema": SCHEMA, "program": "x"})
    history.add({"t": 5001.0, "e": "began", "numbers": [0], "params": [{}]})
    history.add({"t": 5011.0, "e": "epoch", "row": row(0, 2, done=True)})
    history.add({"t": 5020.0, "e": "closed", "reason": "interrupted"})
    assert history.trials[0].spent == pytest.approx(20.0)
    assert history.trials[1].spent == 0.0


def test_compiling_kernels_is_not_spent() -> None:
    history = History()
    history.add({"e": "began", "t": 100.0, "numbers": [0], "params": [{}]})
    history.add({"e": "epoch", "t": 170.0, "row": row(0, 1, compile_seconds=60.0)})
    history.add({"e": "epoch", "t": 175.0, "row": row(0, 2, done=True)})
    assert history.trials[0].spent == pytest.approx(15.0)
