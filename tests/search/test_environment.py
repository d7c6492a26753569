"""Environment variables: what they may say, told before anything starts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xlstm_tune.errors import SpecError
from xlstm_tune.kernels.config import VARIABLE as BACKWARD
from xlstm_tune.layout import SPEC, STORAGE
from xlstm_tune.predict.__main__ import app as predict
from xlstm_tune.report.__main__ import main as report
from xlstm_tune.search import recording, session
from xlstm_tune.search.__main__ import app
from xlstm_tune.search.environment import OF_TESTS, PREFIX, READ, check_environment
from xlstm_tune.search.finals import champion, importance
from xlstm_tune.search.persistence import mirror, store
from xlstm_tune.search.trials import checkpoints
from xlstm_tune.search.variables import number, switch
from xlstm_tune.tracking.__main__ import main as tracking
from xlstm_tune.training import capture

ROOT = Path(__file__).resolve().parents[2]
WHERE = ("xlstm_tune", "tests", "benchmarks", "docs", "clusters", "Makefile", "README.md", "cluster.yaml")

SWITCHES = (champion.REGISTER, recording.REPORT, importance.IMPORTANCE)
WRONG = {
    **dict.fromkeys(SWITCHES, ("2", "off2", "auto")),
    session.DRAIN: ("soon", "-1", "nan", "inf", "1e300"),
    store.PATIENCE: ("soon", "-1", "nan"),
    mirror.PERIOD: ("soon", "0", "-1"),
    checkpoints.SHARE: ("4 %", "-0.1", "nan"),
    capture.VARIABLE: ("on", "OFF"),
    BACKWARD: ("recomputed", "0"),
}


@pytest.mark.parametrize(
    ("value", "on"),
    [("on", True), ("1", True), ("True", True), ("YES", True), ("off", False), ("0", False), ("false", False),
     ("No", False), ("", True), (None, True)],
)  # fmt: skip
def test_switch_is_written_in_several_ways(value: str | None, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, wanted in zip(SWITCHES, (champion.wanted, recording.report_wanted, importance.wanted), strict=True):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
        assert switch(variable) is on and wanted() is on
    check_environment()


def test_ray_wants_its_docstrings() -> None:
    """It would end in a traceback, or not start at all."""
    asked = [sys.executable, "-OO", "-m", "xlstm_tune.search", "--dry-run"]
    made = subprocess.run(asked, capture_output=True, text=True)
    assert made.returncode == 2
    assert made.stderr.startswith("error: Ray does not start under python -OO")


def test_number_takes_what_can_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, read in [("0", 0.0), ("2", 2.0), ("1e3", 1000.0), ("0.5", 0.5)]:
        monkeypatch.setenv(session.DRAIN, value)
        assert number(session.DRAIN, 120) == session.drain_seconds() == read
    monkeypatch.delenv(session.DRAIN)
    assert session.drain_seconds() == 120
    monkeypatch.setenv(session.DRAIN, "soon")
    with pytest.raises(SpecError, match=r"a number of seconds from 0 up to 1,000,000,000, got 'soon'; .* such as 120"):
        session.drain_seconds()
    monkeypatch.setenv(mirror.PERIOD, "0")
    with pytest.raises(SpecError, match="a number of seconds above 0 up to"):
        mirror.period()


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_check_environment_refuses_a_wrong_value(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SpecError, match=rf"^{variable} must be .*, got '{re.escape(value)}'; give it one.* unset it$"):
        check_environment()


def test_check_environment_refuses_a_name_that_nothing_reads_without_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"{PREFIX}TRACKING_URL", "http://me:secret@host")
    with pytest.raises(
        SpecError, match=f"{PREFIX}TRACKING_URL means nothing .*did you mean '{PREFIX}TRACKING_URI'"
    ) as no:
        check_environment()
    assert "secret" not in str(no.value)
    monkeypatch.delenv(f"{PREFIX}TRACKING_URL")
    monkeypatch.setenv(f"{PREFIX}ZZZ", "1")
    with pytest.raises(SpecError, match=f"known here: {PREFIX}BACKWARD, {PREFIX}CAPTURE"):
        check_environment()


def test_check_environment_takes_every_name_of_this_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        path for place in WHERE for path in ([ROOT / place] if (ROOT / place).is_file() else (ROOT / place).rglob("*"))
    ]
    texts = [path.read_text() for path in files if path.suffix in (".py", ".sh", ".md", ".yaml", "") and path.is_file()]
    found = {name for text in texts for name in re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", text)}
    assert found == {*READ, *OF_TESTS}
    for name in (*session.KEPT_BACK, f"{PREFIX}MLFLOW_PORT", *OF_TESTS):
        monkeypatch.setenv(name, "5")
    check_environment()


@pytest.mark.parametrize("option", ["--dry-run", "--resume"])
def test_search_refuses_a_wrong_variable_before_anything_starts(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "searches" / "mine").mkdir(parents=True)
    file = tmp_path / "searches" / "mine" / SPEC
    file.write_text("name: mine\ndata: {source: nowhere.csv, target: y, lookback: 8}\n")
    asked = ["--resume", "mine"] if option == "--resume" else [str(file), option, "--name", "other"]
    monkeypatch.setenv(recording.REPORT, "never")
    result = CliRunner().invoke(app, [*asked, "--storage", str(tmp_path / "searches")])
    assert result.exit_code == 2, result.output
    assert f"{recording.REPORT} must be on or off" in result.stderr and "got 'never'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in (tmp_path / "searches").iterdir()] == ["mine"]


def test_the_storage_of_every_command_is_the_variables_unless_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(name: str) -> list[str]:
        codes = [report([name]), tracking(["sync", name])]
        result = CliRunner().invoke(predict, [name, "table.csv"])
        assert [*codes, result.exit_code] == [2, 2, 2]
        return [*capsys.readouterr().err.splitlines(), " ".join(result.output.split())]

    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    assert not [words for words in said("nope") if "elsewhere" in words]
    monkeypatch.setenv(STORAGE, str(tmp_path / "elsewhere"))
    answers = said("nope")
    assert len(answers) == 3 and all(f"{tmp_path / 'elsewhere'} holds no search" in words for words in answers)
