"""Asks the MLflow server of a cluster's head whether it is up and whether it is ours.

The password comes on the standard input. Ends with 0 if the server refuses without the password and answers with it,
with 1 if nothing answers in time, and with 2 and a sentence if something else does. Needs nothing but Python.
"""

from __future__ import annotations

import base64
import sys
import urllib.error
import urllib.request


def status(url: str, password: str | None) -> int | None:
    """The HTTP status of a harmless request; None where nothing listens or the server is still starting."""
    request = urllib.request.Request(f"{url}/api/2.0/mlflow/experiments/search?max_results=1")
    if password is not None:
        credentials = base64.b64encode(f"admin:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {credentials}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def main() -> int:
    url, password = sys.argv[1], sys.stdin.read().strip()
    alone = status(url, None)
    if alone is None:
        return 1
    known = status(url, password)
    if known is None:  # busy starting
        return 1
    if (alone, known) == (401, 200):
        return 0
    print(
        f"What listens on {url} is not this cluster's MLflow server (it answers {alone} without the password and "
        f"{known} with it); stop it, or choose another port with XLSTM_TUNE_MLFLOW_PORT.",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
