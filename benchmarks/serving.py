"""How long one forecast takes: asked of `mlflow models serve` over HTTP, and made in this process.

    python benchmarks/serving.py             about two minutes
    python benchmarks/serving.py --write     also writes results/serving.md

A short search (the quickstart, one trial) registers its winner in a database of its own; a server of that model is
started on a loopback port with one worker, and asked again and again with the example that comes with the model: the
last rows of the table as JSON. One request at a time, over one connection.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from machine import describe, write_results

ROOT = Path(__file__).resolve().parents[1]
WARM = 10
"""Calls before the ones that count."""


def search(folder: Path) -> None:
    """One trial of the quickstart."""
    command = [sys.executable, "-m", "xlstm_tune.search", "quickstart", "--trials", "1", "--name", "served"]
    command += ["--set", "training.epochs=2", "--storage", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, env=environment(folder))


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        # MLflow calls uvicorn by its name, as it is found where the environment has been entered.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "XLSTM_TUNE_REGISTER": "on",
    }


def serve(folder: Path) -> tuple[subprocess.Popen[bytes], int, float]:
    """The server, its port, and the seconds until it answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/served@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    began = time.perf_counter()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment(folder), start_new_session=True
        )
    while process.poll() is None and time.perf_counter() - began < 240:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
                connection.request("GET", "/ping")
                connection.getresponse().read()
            return process, port, time.perf_counter() - began
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"the server did not start:\n{(folder / 'server.log').read_text()[-2000:]}")


def timed(call: Callable[[], object], calls: int) -> np.ndarray:
    """Milliseconds of each call."""
    for _ in range(WARM):
        call()
    found = np.empty(calls)
    for number in range(calls):
        began = time.perf_counter()
        call()
        found[number] = 1e3 * (time.perf_counter() - began)
    return found


def main(
    calls: Annotated[int, typer.Option(help="Forecasts that are timed, each way.")] = 300,
    write: Annotated[bool, typer.Option("--write", help="Also write results/serving.md.")] = False,
) -> None:
    """See the module's text."""
    import pyarrow as pa

    from xlstm_tune.predict.champion import load_champion
    from xlstm_tune.predict.forecasts import forecasts, source_of

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        search(folder)
        body = (folder / "served" / "champion" / "example.json").read_bytes()
        asked = json.loads(body)["dataframe_split"]
        table = pa.table(dict(zip(asked["columns"], map(list, zip(*asked["data"], strict=True)), strict=True)))
        champion = load_champion(folder / "served" / "champion")
        here = timed(lambda: forecasts(champion, source_of(table)), calls)
        process, port, started = serve(folder)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

            def ask() -> None:
                connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise SystemExit(f"the server answered {answer.status}: {content[:500]!r}")

            there = timed(ask, calls)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = [
        describe(("torch", "mlflow")),
        "",
        f"{champion.title}: {table.num_rows} rows of {table.num_columns} columns in, {champion.shape.horizon} steps "
        f"out; {calls} forecasts each way, one at a time. The server answered {started:.0f} s after its start.",
        "",
        "| one forecast | p50, ms | p99, ms |",
        "|---|--:|--:|",
        *(
            f"| {name} | {np.percentile(found, 50):.1f} | {np.percentile(found, 99):.1f} |"
            for name, found in (("over HTTP (`mlflow models serve`)", there), ("in the process", here))
        ),
    ]
    print("\n".join(lines))
    if write:
        write_results("serving", lines)


if __name__ == "__main__":
    typer.run(main)
