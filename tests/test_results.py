"""The tables of a search: types, keys, part files, and what is left when a process is killed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlstm_tune import results
from xlstm_tune.errors import StorageError
from xlstm_tune.results import SCHEMAS, ResultsWriter, read


def epoch(trial: int, number: int, **more: object) -> dict[str, object]:
    return {"trial": trial, "epoch": number, "train_loss": 1.0 / number, "val_rmse": 2.0 / number, **more}


def predictions(
    model: str, values: list[float], trial: int | None = None, part: str = "test"
) -> dict[str, list[object]]:
    n = len(values)
    return {
        "trial": [trial] * n,
        "model": [model] * n,
        "part": [part] * n,
        "series": ["all"] * n,
        "time": ["2006_1"] * n,
        "step": list(range(1, n + 1)),
        "target": ["cases"] * n,
        "actual": [0.0] * n,
        "predicted": list(values),
    }


def parts(folder: Path, table: str) -> list[str]:
    return sorted(path.name for path in (folder / "results" / table).glob("part-*.parquet"))


def test_trial_row_comes_back_with_types_and_nulls(tmp_path: Path) -> None:
    started = datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=timezone(timedelta(hours=-7)))
    with ResultsWriter(tmp_path) as writer:
        writer.trial(
            {
                "trial": np.int64(3),
                "name": "brave-ms-3",
                "status": "completed",
                "config": {"model": {"hidden_size": 64}, "b": [1, 2]},
                "params": json.dumps({"model.pattern": "ms"}),
                "val_rmse": np.float32(1.5),
                "val_mae": math.nan,
                "seconds": 12,
                "started": started,
                "ended": started.timestamp() + 2.5,
            }
        )
    table = read(str(tmp_path), "trials")
    assert table.schema.equals(SCHEMAS["trials"], check_metadata=True)
    (row,) = table.to_pylist()
    assert row["trial"] == 3 and row["val_rmse"] == 1.5 and row["seconds"] == 12.0
    assert math.isnan(row["val_mae"]) and row["test_rmse"] is None and row["duplicate_of"] is None
    assert json.loads(row["config"]) == {"b": [1, 2], "model": {"hidden_size": 64}}
    assert json.loads(row["params"]) == {"model.pattern": "ms"}
    assert row["started"] == started.astimezone(UTC) and row["ended"] - row["started"] == timedelta(seconds=2.5)


def test_every_table_of_the_schema_is_written_and_read(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path) as writer:
        writer.search({"name": "demo", "spec": {"name": "demo"}, "status": "running"})
        writer.trial({"trial": 0})
        writer.members([{"trial": 0, "member": 1, "setting": {"training.clip": 1.0}}])
        writer.epoch(epoch(0, 1))
        writer.predictions(predictions("naive", [1.0, 2.0]))
        of = {"trial": [None], "model": ["naive"], "part": ["test"], "series": [""], "time": ["1"]}
        writer.squares({**of, "square": [4.0]})
        writer.importance({"trial": [0], "input": [None], "series": [""], "time": ["1"], "square": [1.0]})
        writer.coverage([{"trial": 0, "kind": "interval", "level": 0.9, "share": 0.85, "width": 2.0, "samples": 9}])
        writer.baselines([{"name": "naive", "part": "test", "rmse": 2.0, "settings": {"season": 7}}])
        writer.scores([{"model": "lstm", "trial": 0, "part": "test", "rmse": 1.0}])
    counts = {name: read(tmp_path, name).num_rows for name in SCHEMAS}
    assert counts == {name: 2 if name == "predictions" else 1 for name in SCHEMAS}


def test_unknown_column_is_named_with_its_neighbour(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path)
    with pytest.raises(KeyError, match="'epochs' has no column 'val_rsme'; did you mean 'val_rmse'"):
        writer.epoch({"trial": 0, "epoch": 1, "val_rsme": 1.0})
    with pytest.raises(KeyError, match="needs the column 'epoch'"):
        writer.epoch({"trial": 0})
    with pytest.raises(KeyError, match="no column 'actuall'"):
        writer.predictions({**predictions("naive", [1.0]), "actuall": [1.0]})
    with pytest.raises(KeyError, match="needs the column 'trial'"):
        writer.predictions(pa.table({"model": ["naive"]}))
    writer.close()
    assert read(tmp_path, "epochs").num_rows == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"trial": 1.5},
        {"trial": True},
        {"val_rmse": "1.5"},
        {"name": 7},
        {"started": datetime(2026, 1, 1)},
        {"family": {}},
    ],
)
def test_wrong_type_is_refused_at_once(tmp_path: Path, wrong: dict[str, object]) -> None:
    (column,) = wrong
    with ResultsWriter(tmp_path) as writer, pytest.raises(TypeError, match=rf"trials\.{column} must be"):
        writer.trial({"trial": 1, **wrong})


def test_read_while_writing_sees_every_row(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, rows=10, seconds=1000)
    for number in range(1, 26):
        writer.epoch(epoch(0, number))
    assert parts(tmp_path, "epochs") == ["part-000001.parquet", "part-000002.parquet"]
    assert read(tmp_path, "epochs")["epoch"].to_pylist() == list(range(1, 26))
    writer.close()
    assert parts(tmp_path, "epochs") == ["part-000004.parquet"]
    assert read(tmp_path, "epochs")["epoch"].to_pylist() == list(range(1, 26))
    assert [path.name for path in (tmp_path / "results" / "epochs").iterdir()] == ["part-000004.parquet"]


def test_rows_are_flushed_after_seconds(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, rows=1000, seconds=0.05)
    writer.epoch(epoch(0, 1))
    assert parts(tmp_path, "epochs") == []
    time.sleep(0.06)
    writer.trial({"trial": 0})  # any row looks at the clock for all tables
    assert parts(tmp_path, "epochs") == ["part-000001.parquet"]


def test_temporary_files_and_half_lines_are_ignored(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, rows=2)
    for number in (1, 2, 3):
        writer.epoch(epoch(0, number))
    place = tmp_path / "results" / "epochs"
    (place / ".part-000007.parquet.tmp").write_bytes(b"PAR1 half")
    with (place / "pending.1.jsonl").open("a") as file:
        file.write('{"trial": 0, "epo')
    assert read(tmp_path, "epochs")["epoch"].to_pylist() == [1, 2, 3]
    with ResultsWriter(tmp_path) as again:
        again.epoch(epoch(0, 4))
    assert read(tmp_path, "epochs")["epoch"].to_pylist() == [1, 2, 3, 4]
    assert not (place / ".part-000007.parquet.tmp").exists()


def test_half_line_alone_does_not_spoil_the_next_row(tmp_path: Path) -> None:
    ResultsWriter(tmp_path)
    with (tmp_path / "results" / "epochs" / "pending.1.jsonl").open("a") as file:
        file.write('{"trial": 0, "epo')
    again = ResultsWriter(tmp_path)
    again.epoch(epoch(0, 1))
    assert read(tmp_path, "epochs")["epoch"].to_pylist() == [1]


def test_repeated_rows_replace_older_ones_and_no_others(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path, rows=2) as writer:
        for number in (1, 2, 3):
            writer.epoch(epoch(0, number))
        writer.epoch(epoch(1, 3))
    with ResultsWriter(tmp_path) as resumed:  # trial 0 goes on from its checkpoint after epoch 2
        resumed.epoch(epoch(0, 3, train_loss=7.0))
        resumed.epoch(epoch(0, 4))
        rows = read(tmp_path, "epochs").to_pylist()
    expected = [(0, 1, 1.0), (0, 2, 0.5), (1, 3, 1 / 3), (0, 3, 7.0), (0, 4, 0.25)]
    assert [(row["trial"], row["epoch"], row["train_loss"]) for row in rows] == expected
    assert read(tmp_path, "epochs").to_pylist() == rows


def test_scores_without_a_trial_are_told_apart_by_model(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path, rows=1) as writer:
        writer.scores(
            [{"model": "naive", "part": "test", "rmse": 1.0}, {"model": "linear", "part": "test", "rmse": 2.0}]
        )
        writer.scores([{"model": "naive", "part": "test", "rmse": 3.0}])
    rows = read(tmp_path, "scores").to_pylist()
    assert [(row["model"], row["rmse"]) for row in rows] == [("linear", 2.0), ("naive", 3.0)]


def test_predictions_of_one_model_and_part_replace_each_other_as_a_whole(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path) as writer:
        writer.predictions(predictions("naive", [1.0, 2.0, 3.0]))
        writer.predictions(
            pa.table(predictions("lstm", [4.0, 5.0], trial=3)).select(sorted(SCHEMAS["predictions"].names))
        )
        writer.predictions(predictions("lstm", [6.0], trial=4))
        writer.predictions(predictions("naive", [7.0]))
        before = read(tmp_path, "predictions")
    assert before["predicted"].to_pylist() == [4.0, 5.0, 6.0, 7.0]
    assert parts(tmp_path, "predictions") == ["part-000005.parquet"]
    assert read(tmp_path, "predictions").equals(before)


def test_predictions_of_one_model_are_read_without_the_others(tmp_path: Path) -> None:
    columns = ["time", "predicted"]
    with ResultsWriter(tmp_path) as writer:
        writer.predictions(predictions("naive", [1.0, 2.0, 3.0]))
        both = [pa.table(predictions("lstm", [4.0, 5.0], trial=3)), pa.table(predictions("lstm", [6.0], trial=4))]
        writer.predictions(pa.concat_tables([table.cast(SCHEMAS["predictions"]) for table in both]))
        writer.predictions(predictions("naive", [7.0]))
        for _ in range(2):  # as parts, and then compacted
            assert set(results.predicted(tmp_path)) == {
                (None, "naive", "test"),
                (3, "lstm", "test"),
                (4, "lstm", "test"),
            }
            for what, expected in (((None, "naive"), [7.0]), ((3, "lstm"), [4.0, 5.0]), ((4, "lstm"), [6.0])):
                table = results.read_predictions(tmp_path, (*what, "test"), columns)
                assert table.column_names == columns and table["predicted"].to_pylist() == expected
            assert results.read_predictions(tmp_path, (5, "lstm", "test"), columns).num_rows == 0
            writer.close()
    with pytest.raises(StorageError, match="holds no results"):
        results.predicted(tmp_path / "nowhere")


def test_tables_that_an_older_program_did_not_know_are_empty(tmp_path: Path) -> None:
    ResultsWriter(tmp_path).close()
    for name in ("search", "predictions"):
        (tmp_path / "results" / name).rmdir()
    assert read(tmp_path, "search").num_rows == 0 and results.predicted(tmp_path) == []


def test_compaction_cut_short_leaves_nothing_twice(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, rows=2)
    for number in range(1, 7):
        writer.epoch(epoch(0, number))
    place = tmp_path / "results" / "epochs"
    old = {path.name: path.read_bytes() for path in place.glob("part-*")}
    writer.close()
    for name, content in old.items():  # as if the process had died before removing the parts it put together
        (place / name).write_bytes(content)
    assert len(parts(tmp_path, "epochs")) == 4
    assert read(tmp_path, "epochs")["epoch"].to_pylist() == [1, 2, 3, 4, 5, 6]


def test_killed_process_loses_no_row(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from xlstm_tune import results
from xlstm_tune.results import ResultsWriter
writer = ResultsWriter(Path({str(tmp_path)!r}), rows=4)
for number in range(1, 8):
    writer.epoch({{"trial": 0, "epoch": number}})
writer.trial({{"trial": 0, "status": "completed"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = str(Path(results.__file__).parent.parent)
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == -signal.SIGKILL
    assert read(tmp_path, "epochs")["epoch"].to_pylist() == [1, 2, 3, 4, 5, 6, 7]
    with ResultsWriter(tmp_path) as writer:
        writer.epoch(epoch(0, 8))
    assert read(tmp_path, "epochs")["epoch"].to_pylist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert read(tmp_path, "trials")["status"].to_pylist() == ["completed"]


def test_reading_beside_writing_and_compacting_never_misses_or_repeats(tmp_path: Path) -> None:
    counts: list[int] = []
    problems: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen = read(tmp_path, "epochs")["epoch"].to_pylist()
            counts.append(len(seen))
            if seen != list(range(1, len(seen) + 1)):
                problems.append(f"saw {seen[:5]}…{seen[-5:]}")

    ResultsWriter(tmp_path)
    reader = threading.Thread(target=watch)
    reader.start()
    last = 0
    for _ in range(4):
        with ResultsWriter(tmp_path, rows=7) as writer:
            for _ in range(100):
                last += 1
                writer.epoch(epoch(0, last))
    done.set()
    reader.join()
    assert not problems and counts == sorted(counts) and len(counts) > 3


def test_newer_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path) as writer:
        writer.epoch(epoch(0, 1))
    path = tmp_path / "results" / "epochs" / "part-000001.parquet"
    table = pq.read_table(path)
    newer = table.drop_columns(["trial"]).replace_schema_metadata({b"xlstm_tune.results": b"2"})
    pq.write_table(newer, path)
    for attempt in (lambda: read(tmp_path, "epochs"), lambda: ResultsWriter(tmp_path)):
        with pytest.raises(StorageError, match=r"newer xlstm_tune \(results version 2, known here up to 1\); update"):
            attempt()


def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path) as writer:
        writer.epoch(epoch(0, 1))
    part = tmp_path / "results" / "epochs" / "part-000001.parquet"
    whole = part.read_bytes()
    attempts = (lambda: read(tmp_path, "epochs"), lambda: ResultsWriter(tmp_path))
    for damaged in (b"", b"not a table", whole[:-10]):
        part.write_bytes(damaged)
        for attempt in attempts:
            with pytest.raises(StorageError, match=r"part-000001\.parquet cannot be read \(.+\); bring it back, or"):
                attempt()
    part.write_bytes(whole)
    middle = whole.index(b"\x28\xb5\x2f\xfd")  # where something is compressed
    part.write_bytes(whole[:middle] + bytes(8) + whole[middle + 8 :])
    with pytest.raises(StorageError, match="cannot be read"):  # only who reads the rows can know
        read(tmp_path, "epochs")
    part.write_bytes(whole)
    pending = tmp_path / "results" / "epochs" / "pending.1.jsonl"
    for line in (b"\x00\x00\x00", b"\xff", b"{", b"7", b"null"):
        pending.write_bytes(json.dumps(epoch(0, 2)).encode() + b"\n" + line + b"\n")
        for attempt in attempts:
            with pytest.raises(StorageError, match=r"line 2 of \S+pending\.1\.jsonl is damaged; remove that line"):
                attempt()


def test_pending_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    ResultsWriter(tmp_path)
    (tmp_path / "results" / "trials" / "pending.2.jsonl").write_text("")
    with pytest.raises(StorageError, match="results version 2"):
        read(tmp_path, "trials")


def test_other_files_among_the_parts_are_left_alone(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path) as writer:
        writer.trial({"trial": 0, "status": "completed"})
    place = tmp_path / "results" / "trials"
    others = [
        place / name for name in ("part-000001 (1).parquet", "part-.parquet", "pending.x.jsonl", "pending..jsonl")
    ]
    for path in others:
        path.write_bytes(b"x")
    assert read(tmp_path, "trials")["trial"].to_pylist() == [0]
    with ResultsWriter(tmp_path) as writer:
        writer.trial({"trial": 1, "status": "completed"})
    assert read(tmp_path, "trials")["trial"].to_pylist() == [0, 1]
    assert [path.read_bytes() for path in others] == [b"x"] * 4


def test_columns_of_an_older_version_come_as_nulls(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path) as writer:
        writer.trial({"trial": 0, "backend": "reference"})
    path = tmp_path / "results" / "trials" / "part-000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["backend"]), path)
    with ResultsWriter(tmp_path) as writer:
        writer.trial({"trial": 1, "backend": "triton"})
    assert read(tmp_path, "trials")["backend"].to_pylist() == [None, "triton"]


def test_read_of_a_folder_without_results_and_of_an_unknown_table(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no results"):
        read(tmp_path, "trials")
    ResultsWriter(tmp_path).close()
    assert read(tmp_path, "trials").schema.equals(SCHEMAS["trials"])
    with pytest.raises(ValueError, match="no table 'trial'; did you mean 'trials'"):
        read(tmp_path, "trial")


def test_closed_writer_takes_no_more(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.epoch(epoch(0, 1))


def test_rows_that_move_while_a_table_is_read_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, plain, moved = ResultsWriter(tmp_path, rows=7), results.pending_rows, []
    for number in range(1, 4):
        writer.epoch(epoch(0, number))

    def slowly(folder: Path, name: str) -> list[dict[str, object]]:
        rows = plain(folder, name)
        if not moved:
            moved.append(name)
            for number in range(4, 16):  # a part of seven rows, another one, and one row that waits
                writer.epoch(epoch(0, number))
        return rows

    monkeypatch.setattr(results, "pending_rows", slowly)
    assert read(tmp_path, "epochs")["epoch"].to_pylist() == list(range(1, 16))
    writer.close()
