"""Knocks at the doors of a cluster: `python knock.py ADDRESS DOOR...` prints a JSON object of what each answered.

A number is an HTTP status, "in" says that Ray let us in, "closed" that nothing listens there; any other text is why we
were refused. RAY_AUTH_MODE and RAY_AUTH_TOKEN say what we show, USER_AND_PASSWORD (user:password) what MLflow gets.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable

Answer = int | str
JOB = {"entrypoint": "touch /tmp/an-outsider-was-here"}


def ask(url: str, authorization: str | None, body: dict[str, str] | None = None) -> Answer:
    request = urllib.request.Request(url, data=json.dumps(body).encode() if body else None)
    if authorization:
        request.add_header("Authorization", authorization)
    if body:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return "closed" if isinstance(error.reason, ConnectionRefusedError) else str(error.reason)


def bearer() -> str | None:
    return f"Bearer {token}" if (token := os.environ.get("RAY_AUTH_TOKEN")) else None


def dashboard(address: str) -> Answer:
    return ask(f"http://{address}:8265/nodes?view=summary", bearer())


def job(address: str) -> Answer:
    return ask(f"http://{address}:8265/api/jobs/", bearer(), JOB)


def agent(address: str) -> Answer:
    """The process on each node that starts jobs for the dashboard; it takes them from anyone with the token."""
    return ask(f"http://{address}:52365/api/job_agent/jobs/", bearer(), JOB)


def gcs(address: str) -> Answer:
    """The port that drivers and new nodes connect to."""
    command = ["ray", "status", "--address", f"{address}:6379"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip()[-300:] if done.returncode else "in"


def client(address: str) -> Answer:
    """A driver on another machine, by Ray Client."""
    import ray

    try:
        ray.init(f"ray://{address}:10001", log_to_driver=False)
        return "in" if ray.get(ray.remote(num_cpus=0)(lambda: 7).remote(), timeout=120) == 7 else "a wrong answer"
    except Exception as error:  # whatever it is, it is the answer
        return f"{type(error).__name__}: {error}"[-300:]


def mlflow(address: str) -> Answer:
    password = os.environ.get("USER_AND_PASSWORD")
    credentials = f"Basic {base64.b64encode(password.encode()).decode()}" if password else None
    return ask(f"http://{address}:5000/api/2.0/mlflow/experiments/search?max_results=1", credentials)


DOORS: dict[str, Callable[[str], Answer]] = {
    "dashboard": dashboard,
    "job": job,
    "agent": agent,
    "gcs": gcs,
    "client": client,
    "mlflow": mlflow,
}

if __name__ == "__main__":
    print(json.dumps({door: DOORS[door](sys.argv[1]) for door in sys.argv[2:]}))
