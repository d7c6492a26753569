"""From the spool to MLflow: sends what was gathered in few calls, and remembers how far it came.

This, gather.py and models.py are all of tracking that imports MLflow; only the writer process and `sync` import them.

Why nothing arrives twice. Progress is the byte offset of the spool up to which everything has arrived
(`mlflow/state.json`); a gather of events that failed half-way is sent again as a whole. That is harmless:
metrics carry their time and step, and MLflow drops an identical point; params, tags, files and statuses are
set to what they are already; and before a run is created by a process that cannot know better (it has just
started, or its last attempt had no answer), the server is asked for the runs that carry this search's tag,
and how far their curves go.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import requests
from mlflow.entities import Experiment, RunInfo, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from xlstm_tune.tracking.events import VALIDATION_END, read_event, whole_lines
from xlstm_tune.tracking.gather import Pending, batches, clean, gather, mlflow_key, run_tags
from xlstm_tune.tracking.moved import take_files_along
from xlstm_tune.tracking.plot import forecast_picture
from xlstm_tune.tracking.spool import read_address, spool_path, write_json
from xlstm_tune.tracking.state import read_state, state_path
from xlstm_tune.tracking.uri import artifact_location, hide_credentials, sqlite_path

log = logging.getLogger("xlstm_tune.tracking")

SEARCH_TAG, TRIAL_TAG = "xlstm_tune.search", "xlstm_tune.trial"
PARENT_TAG, TABLES_TAG = "mlflow.parentRunId", "mlflow.loggedArtifacts"
_MLFLOW_STATUS = {
    "completed": "FINISHED",
    "pruned": "FINISHED",
    "duplicate": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
# What the store says of data that it will never take. A proxy's own 400 and 404 have other codes.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
_REASON_CHARACTERS = 300
_GATHER_BYTES = 1 << 16  # of spool in one go: some 70 short trials


@dataclass
class Run:
    """What is known of a run on the server."""

    id: str  # empty: the server refused to make it
    step: int = -1  # the last step of its curves that has been sent
    params: bool = False  # whether its params have been sent; they cannot be changed
    open: bool = True  # whether MLflow shows it as running
    done: bool = False  # ended for good: nothing more to remember on disk
    tables: list[str] = field(default_factory=list)


class Sender:
    """Sends the spool of one search folder to one tracking store. One at a time per folder (see writer.py)."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder, self._uri = folder.absolute(), uri
        self._address = read_address(folder)
        self._spool = spool_path(folder)
        self._client: MlflowClient | None = None
        self._reasons: list[str]
        self._runs: dict[int | None, Run]  # None: the parent
        self._forget()
        state = read_state(folder)
        if state.get("uri") == hide_credentials(uri):
            try:
                self._runs = {None if k == "parent" else int(k): Run(**run) for k, run in state["runs"].items()}
            except (TypeError, ValueError):
                return  # damaged: all is sent again
            self._offset, self._refused, self._reasons = state["offset"], state["refused"], state["reasons"]

    def _forget(self) -> None:
        self._offset = 0  # into the spool, in bytes
        self._refused = 0  # entries
        self._reasons = []
        self._runs = {}
        self._listed = False  # whether _runs holds every run of this search that the server may have
        self._params: dict[str, set[str]] = {}  # by run id: keys that the server has already
        self._curves: dict[str, dict[str, int]] = {}  # by run id: the last step of each curve that it has already
        self._parents: dict[str, str] = {}  # by id of a child that was found, until that is looked at: its parent's

    def send_next(self) -> bool:
        """Send what the spool holds next; returns whether more may be waiting already.

        Raises whatever the client raises when the store does not answer; then nothing is lost, call again.
        """
        if not self.waiting():
            return False
        self.connect()
        refused, reasons = self._refused, self._reasons
        lines = whole_lines(self._spool, self._offset, _GATHER_BYTES)
        read = [read_event(line) for line in lines]
        events = [event for event in read if event is not None]
        try:
            if damaged := len(read) - len(events):
                self._refuse(damaged, f"{self._spool} is damaged in a line after byte {self._offset}")
            gathered = gather(events, lambda number: self._runs[number].step if number in self._runs else -1)
            if None in gathered:  # children name the parent, so it has to be there first
                self._send(None, gathered.pop(None))
            for number, pending in gathered.items():
                self._send(number, pending)
        except BaseException:
            self._refused, self._reasons = refused, reasons  # they are told when this is sent again
            raise
        sent = sum(map(len, lines))
        self._offset += sent
        self._save()
        return sent >= _GATHER_BYTES

    def waiting(self) -> bool:
        """Whether the spool holds whole lines that have not been sent."""
        return bool(whole_lines(self._spool, self._offset, 1))

    def failed(self, error: BaseException) -> None:
        """Keep the reason for whoever asks why something is unsent, and look at the store anew before the next try."""
        self._client = None
        with contextlib.suppress(OSError):  # a full disk is no reason to give up either
            self._save(_told(str(error).strip()) or type(error).__name__)

    def interrupt_open_runs(self) -> None:
        """Nobody will end these any more (the search died): show them as killed. A resume reopens them."""
        if not any(run.open and run.id for run in self._runs.values()):
            return
        client = self.connect()  # may forget them
        for run in self._runs.values():
            if run.open and run.id:
                tags = run_tags({"status": "interrupted"})
                self._guarded(run, 0, partial(client.log_batch, run.id, tags=tags))
                self._finish(run, "interrupted", None)
        self._save()

    def _send(self, number: int | None, pending: Pending) -> None:
        run = self._find(number)
        if run is None:
            if pending.started is None and number is not None:
                return self._refuse(pending.events, f"trial {number} has results, but was never started")
            run = self._create(number, pending)
        elif pending.started is not None and run.id:
            self._guarded(run, 0, partial(self.connect().update_run, run.id, status="RUNNING"))
            run.open, run.done = True, False
        self._adopt()
        if not run.id:
            return self._refuse(pending.events, f"{pending.name or f'trial {number}'} could not be made")
        there = self._params.get(run.id, set())
        params = {} if run.params else {k: v for k, v in pending.params.items() if mlflow_key(k) not in there}
        # Epochs that another machine sent, which is gone and told nobody, are trained again at another time.
        drawn = self._curves.get(run.id, {})
        metrics = [one for one in pending.metrics if not one.step or one.step > drawn.get(one.key, 0)]
        for batch in batches(metrics, params, pending.tags):
            self._guarded(run, sum(map(len, batch)), partial(self.connect().log_batch, run.id, *batch))
        run.params = run.params or pending.started is not None
        self._upload(run, pending)
        for name, where in pending.models.items():
            self._register(run, name, self._folder / where)
        if pending.status is not None:
            self._finish(run, pending.status, pending.ended)
        run.step = pending.step

    def _upload(self, run: Run, pending: Pending) -> None:
        client = self.connect()
        for name, where in pending.files:
            path = self._folder / name
            if path.is_dir():
                self._guarded(run, 1, partial(client.log_artifacts, run.id, str(path), where or path.name))
            elif path.name == VALIDATION_END and path.is_file():
                self._picture(run, path)
            elif path.is_file():
                self._guarded(run, 1, partial(client.log_artifact, run.id, str(path), where or None))
            else:
                self._refuse(1, f"{path} was gone before it could be sent")
        for name, table in pending.tables.items():
            self._guarded(run, 1, partial(client.log_dict, run.id, table, f"{name}.json"))
            run.tables = [*(other for other in run.tables if other != name), name]
            shown = json.dumps([{"path": f"{other}.json", "type": "table"} for other in run.tables])
            self._guarded(run, 0, partial(client.set_tag, run.id, TABLES_TAG, shown))

    def _picture(self, run: Run, path: Path) -> None:
        try:
            picture = forecast_picture(path)
        except (OSError, ValueError) as error:
            return self._refuse(1, str(error))
        self._guarded(run, 1, partial(self.connect().log_text, run.id, picture, "forecast.svg"))

    def _register(self, run: Run, name: str, folder: Path) -> None:
        """The champion as a version of a registered model. What is wrong with it for good must not stop the rest."""
        # MLflow's code for models takes a second, and most gathers have none.
        from xlstm_tune.tracking.models import register

        try:
            self._guarded(run, 1, partial(register, self._uri, run.id, self._address.search, folder, name))
        except (MlflowException, requests.RequestException, ConnectionError, TimeoutError):
            raise
        except Exception as error:
            log.warning("the model %s cannot be registered", name, exc_info=True)
            self._refuse(1, f"the model {name} cannot be registered ({type(error).__name__}: {error})")

    def _finish(self, run: Run, status: str, ended: int | None) -> None:
        self._guarded(run, 0, partial(self.connect().set_terminated, run.id, _MLFLOW_STATUS[status], ended))
        run.open, run.done = False, status != "interrupted"

    def connect(self) -> MlflowClient:
        """The client. At first, and after a failure: see whether the store still knows our runs."""
        if self._client is not None:
            return self._client
        if self._uri.startswith("sqlite"):
            sqlite_path(self._uri).parent.mkdir(parents=True, exist_ok=True)
            take_files_along(sqlite_path(self._uri))
        client = MlflowClient(self._uri)
        known = self._runs.get(None)
        parent = _run(client, known.id) if known and known.id else None
        if known and known.id and parent is None:
            log.warning("the store does not know this search any more; everything is sent again")
            self._forget()
        if parent is None:
            location = artifact_location(self._uri, self._folder.parent)
            self._experiment = _experiment(client, self._address.experiment, location)
        else:  # wherever it lies: an experiment may have been given another name
            self._experiment = _restored(client, client.get_experiment(parent.experiment_id))
        self._client = client
        return client

    def _lost(self, client: MlflowClient) -> bool:
        """Whether the store does not know our runs any more, e.g. because its database was removed."""
        parent = self._runs.get(None)
        return parent is not None and bool(parent.id) and _run(client, parent.id) is None

    def _deleted(self) -> bool:
        """Whether someone deleted the experiment, so that its runs take nothing until the next connect restores it."""
        return bool(self.connect().get_experiment(self._experiment).lifecycle_stage != "active")

    def _brought_back(self, run: Run) -> bool:
        """Whether someone had deleted the run, which is then brought back, as a deleted experiment is."""
        found = _run(self.connect(), run.id)
        if found is None or found.lifecycle_stage == "active":
            return False
        try:
            self.connect().restore_run(run.id)
        except MlflowException as error:  # who may write need not have leave for this
            log.warning("run %s was deleted and cannot be restored (%s)", run.id, _told(str(error)))
            return False
        log.warning("run %s had been deleted; it is restored", run.id)
        return True

    def _find(self, number: int | None) -> Run | None:
        if number not in self._runs and not self._listed:
            self._list()
        return self._runs.get(number)

    def _list(self) -> None:
        """Learn which runs of this search the server has already, those that someone deleted last."""
        for shown in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY):
            self._list_shown(shown)
        self._listed = True

    def _list_shown(self, shown: str) -> None:
        client, token = self.connect(), None
        mine = f"tags.`{SEARCH_TAG}` = '{self._address.search}'"
        oldest = ["attributes.start_time ASC"]
        while True:
            page = client.search_runs([self._experiment], mine, shown, order_by=oldest, page_token=token)
            for found in page:
                trial = found.data.tags.get(TRIAL_TAG)
                number = None if trial is None else int(trial)
                if number is not None and shown == ViewType.ACTIVE_ONLY:
                    self._parents[found.info.run_id] = found.data.tags.get(PARENT_TAG, "")
                known = self._runs.setdefault(number, Run(found.info.run_id, open=found.info.status == "RUNNING"))
                self._params[found.info.run_id] = set(found.data.params)
                latest = found.data.to_proto().metrics  # `data.metrics` leaves the steps out
                self._curves[found.info.run_id] = {one.key: one.step for one in latest}
                if known.id != found.info.run_id:
                    log.warning("run %s repeats run %s of trial %s", found.info.run_id, known.id, trial)
            token = page.token
            if not token:
                break

    def _create(self, number: int | None, pending: Pending) -> Run:
        tags = {tag.key: tag.value for tag in run_tags(pending.tags)} | {SEARCH_TAG: self._address.search}
        if number is not None:
            # Without its first word, in a damaged line, the parent is made for its children all the same.
            parent = self._find(None) or self._create(None, Pending(started=pending.started))
            tags[TRIAL_TAG] = str(number)
            if parent.id:
                tags[PARENT_TAG] = parent.id
        name = clean(pending.name) or (self._folder.name if number is None else f"trial {number}")
        run = self._runs.get(number, Run(""))
        self._listed = False  # should the answer get lost, the run may be there all the same
        try:
            made = self.connect().create_run(self._experiment, pending.started, tags, name)
            run.id = made.info.run_id
            pending.tags = {}
        except MlflowException as error:
            # That there is no such experiment is said by a store that was emptied.
            if error.error_code not in _REFUSALS - {"RESOURCE_DOES_NOT_EXIST"} or self._deleted():
                raise
            self._refuse(0, str(error))
        self._listed = True
        self._runs[number] = run
        return run

    def _adopt(self) -> None:
        """Children whose parent is gone for good get the new one."""
        parent = self._runs.get(None)
        while parent is not None and parent.id and self._parents:
            child, of = next(iter(self._parents.items()))
            if of != parent.id:
                self._guarded(Run(child), 0, partial(self.connect().set_tag, child, PARENT_TAG, parent.id))
            del self._parents[child]

    def _guarded(self, run: Run, entries: int, call: Callable[[], Any]) -> None:
        """Make the call; what the server will never take is noted and passed over, so that the rest can follow."""
        try:
            call()
        except MlflowException as error:
            gone = error.error_code == "RESOURCE_DOES_NOT_EXIST" and self._lost(self.connect())
            if gone or error.error_code not in _REFUSALS or self._deleted():
                raise
            if self._brought_back(run):
                return self._guarded(run, entries, call)
            self._refuse(entries, f"run {run.id}: {error}")
        except requests.HTTPError as error:  # uploads of artifacts
            status = error.response.status_code if error.response is not None else 0
            if not 400 <= status < 500 or status in {401, 403, 408, 429}:
                raise
            self._refuse(entries, f"run {run.id}: {error}")

    def _refuse(self, entries: int, reason: str) -> None:
        reason = _told(reason)
        log.warning("not sent: %s", reason)
        self._refused += entries
        self._reasons = [*self._reasons, reason][-5:]

    def _save(self, error: str = "") -> None:
        # The parent is kept for good: by it a store that was emptied is known.
        runs = {
            "parent" if n is None else str(n): asdict(run) for n, run in self._runs.items() if n is None or not run.done
        }
        state = {"uri": hide_credentials(self._uri), "offset": self._offset, "runs": runs}
        told = {"refused": self._refused, "reasons": self._reasons, "error": error}
        write_json(state_path(self._folder), state | told)


def _told(reason: str) -> str:
    """The first line that tells it, without credentials, cut behind a word where it is long."""
    first, _, rest = reason.partition("\n")
    if first.startswith("(raised as a result of"):  # SQLAlchemy's hint, before what the database says
        first = rest.partition("\n")[0] or first
    line = hide_credentials(first)
    if len(line) <= _REASON_CHARACTERS:
        return line
    cut = line[:_REASON_CHARACTERS]
    kept = cut.rpartition(" ")[0].rstrip()
    return (kept if 2 * len(kept) > len(cut) else cut[:-1]) + "…"  # a word may be longer than all before it


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """The experiment's id; made if missing, brought back if someone deleted it."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            # The kind opens the pages on training runs rather than on traces.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=location, tags=kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another search was faster
            assert found is not None
    return _restored(client, found)


def _restored(client: MlflowClient, experiment: Experiment) -> str:
    """The experiment's id; it is brought back if someone deleted it."""
    if experiment.lifecycle_stage != "active":
        log.warning("experiment '%s' had been deleted; it is restored", experiment.name)
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _run(client: MlflowClient, run_id: str) -> RunInfo | None:
    """What the store knows of a run; None where it knows none."""
    try:
        found: RunInfo = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return found
