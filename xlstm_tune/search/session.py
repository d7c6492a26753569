"""What a search runs in: Ray and MLflow's writer process."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console

from xlstm_tune import WORKER
from xlstm_tune.errors import ResourceError
from xlstm_tune.layout import STORAGE, TRACKING_URI
from xlstm_tune.search import local_ray
from xlstm_tune.search.placement.cluster import check_workers_answer, place_on_cluster
from xlstm_tune.search.placement.resources import Placement, local_resources
from xlstm_tune.search.plan import Plan
from xlstm_tune.search.signals import children_outlive_signals, put_handlers_back
from xlstm_tune.search.stopping import Stopping
from xlstm_tune.search.variables import LONGEST_WAIT, number
from xlstm_tune.tracking import Spool, Writer

PASSED_ON = ("XLSTM_TUNE_", "OMP_", "MKL_", "NUMBA_", "TRITON_", "TORCH", "PYTORCH_", "CUBLAS_", "CUDA_LAUNCH_")
"""Beginnings of the environment variables that workers get."""
PASSED_ON_WHOLE = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "TZ", WORKER)
KEPT_BACK = (TRACKING_URI, STORAGE)
"""These may hold a password."""
NEEDED = ("gcs_server", "raylet")
"""Ray's names of the processes that it cannot do without."""
HELPERS = ("monitor", "dashboard", "log_monitor")
"""Those that only watch."""
DRAIN = "XLSTM_TUNE_DRAIN_SECONDS"
"""Environment variable: how long a finished search waits for MLflow to take what is left; 120 where it is not set."""
DRAIN_SECONDS_STOPPED = 10.0
"""How long one waits at most that has been stopped, since its machine may go away, or that cannot go on, as MLflow's
database may not be writable either."""


@contextmanager
def tracked(plan: Plan, spool: Spool, stopping: Stopping, console: Console, ended: bool = False) -> Iterator[None]:
    """MLflow's writer process, from before the search to after its last event. ended: the search has, and stays so.

    A signal ends the waiting for MLflow, and nothing else, where all that was to be done inside has been done.
    """
    drain = drain_seconds()
    writer = Writer.start(plan.folder, plan.tracking_uri)
    done = False
    try:
        yield
        done = True
    except BaseException:
        if not ended:
            with suppress(OSError):  # a full disk
                spool.search_ended("interrupted")
        raise
    finally:
        try:
            with console.status("writing the last records to MLflow"):
                whole = done and not stopping.reason
                left = writer.finish(drain if whole else min(drain, DRAIN_SECONDS_STOPPED))
        except KeyboardInterrupt:
            if not done:
                raise
            left = writer.stop()
        if left:
            console.print(f"note: {left}", highlight=False, markup=False, soft_wrap=True)


def drain_seconds() -> float:
    """How long a finished search waits for MLflow. Raises SpecError for a wrong value."""
    return number(DRAIN, 120, "seconds", most=LONGEST_WAIT)


@contextmanager
def ray_session(plan: Plan, stopping: Stopping, console: Console, lost: Callable[[str], None]) -> Iterator[Placement]:
    """Ray on this machine, or the cluster at the plan's address, once that has a node for a trial.

    lost: called in a thread of its own with the reason, should Ray's own processes on this machine end before it is
    over; it ends this process, since Ray would, after a minute and without a word of what to do.
    Raises ResourceError when the cluster is too small and will stay so, or its workers cannot answer.
    """
    import ray

    started = False
    files = ExitStack()
    try:
        # A cluster may never answer; one of this machine's own has soon started.
        with nullcontext() if plan.address else stopping.holding(), children_outlive_signals():
            if plan.address:
                _connect(plan.address)
            else:
                files.enter_context(local_ray.started(local_resources()))
            started = True
        _protect_token()
        if plan.address:
            check_workers_answer(f"the cluster at {plan.address}")
        with _watched(lost):
            yield plan.placement or place_on_cluster(plan, lambda words: _say(console, words))
    finally:
        if started:
            _end_helpers()
            ray.shutdown()
            put_handlers_back()
        files.close()


def _connect(address: str) -> None:
    """Become a driver of the cluster there. Raises ResourceError where it does not take this process."""
    import ray

    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": worker_environment(os.environ)},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:  # another version; another token
        ray.shutdown()
        raise ResourceError(
            f"the cluster at {address} does not take this process ({' '.join(str(error).split())[:300]}); it "
            "needs the same versions of Ray and Python, and the same token where it asks for one"
        ) from None


@contextmanager
def _watched(lost: Callable[[str], None]) -> Iterator[None]:
    """Inside, it is looked at twice a second whether the processes live that Ray cannot do without."""
    over = threading.Event()

    def all_live() -> bool:
        for name, process in _processes(NEEDED):
            if (code := process.poll()) is not None:
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                lost(f"Ray's process {name} has ended by itself: {how}")
                return False
        return True

    def watch() -> None:
        while not over.wait(0.5) and all_live():
            pass

    thread = threading.Thread(target=watch, name="ray-watch", daemon=True)
    thread.start()
    try:
        yield
    except Exception:
        all_live()  # Ray may have told of an end before the watch did
        raise
    finally:
        over.set()
        thread.join()


def _end_helpers() -> None:
    """End what Ray does not need any more: it asks by SIGTERM, to which its processes are deaf here, and waits a second
    for each of them."""
    for _, process in _processes(HELPERS):
        process.kill()


def _processes(names: Iterable[str]) -> list[tuple[str, subprocess.Popen[bytes]]]:
    """Ray's processes of these names that this one has started; none in a cluster."""
    from ray._private import worker

    started = getattr(getattr(worker, "_global_node", None), "all_processes", {})
    return [(name, one.process) for name in names for one in started.get(name, ())]


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a cluster's workers get of the driver's environment, which Ray itself does not pass on.

    Settings of what computes, and where a bucket is; never a password or key: workers do not talk to MLflow, and nodes
    have rights of their own.
    """
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(PASSED_ON) and name not in KEPT_BACK) or name in PASSED_ON_WHOLE
    }


def _say(console: Console, words: str) -> None:
    console.print(words, highlight=False, markup=False, soft_wrap=True)


def _protect_token() -> None:
    """Ray writes the token that lets others submit work readable by everyone; it is the user's alone."""
    token = Path(os.path.expanduser(os.environ.get("RAY_AUTH_TOKEN_PATH", local_ray.TOKEN)))
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)
