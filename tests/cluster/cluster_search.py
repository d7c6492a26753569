"""A search that runs on the head of a cluster, and who trains what in it."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hosts import ROOT, Host
from local_cluster import LocalCluster, until

sys.path.append(str(ROOT / "tests" / "faults"))  # where the next line's module lies, if no test there was collected
from fault_search import NAME

from xlstm_tune.search.persistence.journal import JOURNAL, read_journal


class ClusterSearch:
    """One search in the shared folder, run by one driver on the head after another."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.storage = cluster.shared / "searches"
        self.folder = self.storage / NAME
        self._by_name = {host.name: host for host in cluster.nodes}
        self._drivers = 0

    def start(self, *arguments: str) -> None:
        """`xlstm-tune` on the head, tracked by its MLflow server. A checkpoint is saved after every epoch."""
        self._drivers += 1
        self.output = self.cluster.shared / f"driver-{self._drivers}"
        options = ["--address", "auto", "--storage", str(self.storage)]
        line = shlex.join(["xlstm-tune", *arguments, *options]) + ' --tracking-uri "$MLFLOW_TRACKING_URI"'
        self.process = self.cluster.head.start(f"XLSTM_TUNE_CHECKPOINT_SHARE=1000 exec {line}", self.output)

    def end(self, seconds: float = 300) -> str:
        """Wait for the command, which must succeed; what it printed."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds:g} s: {self.output.read_text()[-3000:]}") from None
        assert code == 0, self.output.read_text()[-3000:]
        return self.output.read_text()

    def kill(self) -> None:
        """SIGKILL to the driver, and to nobody else."""
        found = [
            number
            for number, line in self.cluster.head.processes("xlstm-tune").items()
            if "python" in line.split()[0] and "--address" in line
        ]
        assert len(found) == 1, self.cluster.head.processes("xlstm-tune")
        self.cluster.head.send(found[0], signal.SIGKILL)
        self.process.wait(60)

    def epochs(self, number: int) -> int:
        return len(self.workers(number))

    def workers(self, number: int) -> list[tuple[Host, int]]:
        """Who trained each epoch of a trial: host and process."""
        past = read_journal(self.folder).trials.get(number) if self.folder.exists() else None
        said = [row["worker"].split() for _, row in past.rows] if past else []  # process 7 on worker-1
        return [(self._by_name[words[3]], int(words[1])) for words in said]

    def died(self) -> set[int]:
        """Trials whose worker the driver has seen lost."""
        told = [json.loads(line) for line in (self.folder / JOURNAL).read_text().splitlines()]
        return {number for event in told if event["e"] == "died" for number in event["numbers"]}

    def wait_for(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        """Until it is true, while the driver runs."""

        def now() -> bool:
            assert self.process.poll() is None, self.output.read_text()[-3000:]
            return condition()

        until(now, seconds, lambda: self.output.read_text()[-3000:])

    def freeze_all(self, count: int) -> dict[int, tuple[Host, int]]:
        """Stop the workers of the first trials, each once it has trained three epochs; who trains which."""
        frozen: dict[int, tuple[Host, int]] = {}

        def all_frozen() -> bool:
            for number in range(count):
                if number not in frozen and self.epochs(number) > 2:
                    host, process = self.workers(number)[-1]
                    host.send(process, signal.SIGSTOP)
                    frozen[number] = (host, process)
            return len(frozen) == count

        self.wait_for(all_frozen)
        return frozen


def check_accounted_on(host: Host, folder: Path, undisturbed: Path) -> None:
    """`fault_search.check_accounted` on the host, which reaches the MLflow server and knows its password."""
    paths = ":".join(str(ROOT / part) for part in ("tests", "tests/faults"))
    script = (
        "import os, sys, pathlib; from fault_search import check_accounted;"
        " check_accounted(*map(pathlib.Path, sys.argv[1:]), uri=os.environ['MLFLOW_TRACKING_URI']); print('accounted')"
    )
    command = shlex.join([sys.executable, "-c", script, str(folder), str(undisturbed)])
    assert "accounted" in host.run(f"PYTHONPATH=$PYTHONPATH:{paths} {command}", 240)
