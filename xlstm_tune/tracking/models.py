"""A champion's folder to MLflow's model registry: once, whatever dies in between.

What is registered is code and plain files: MLflow keeps `predict/served.py` as it is and the folder beside it. A
version carries the digest of `champion.json`; before one is made the registry is asked for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import pyarrow as pa
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.utils import requirements_utils

import xlstm_tune
from xlstm_tune.layout import ABOUT

log = logging.getLogger("xlstm_tune.tracking")

ALIAS = "champion"
DIGEST_TAG, SEARCH_TAG = "xlstm_tune.champion", "xlstm_tune.search"
EXAMPLE = "example.json"
CODE = Path(xlstm_tune.__file__).parent / "predict" / "served.py"


def register(uri: str, run: str, search: str, folder: Path, name: str) -> None:
    """Make the champion in `folder` a version of the registered model `name`, logged by the run, and its champion.

    uri: of the tracking store, which is the registry too, whatever MLFLOW_REGISTRY_URI says.
    search: the tag's value that tells this search from others of its name.
    A version of this champion that exists already is kept, and gets the alias. Raises what MLflow's client raises,
    OSError and ValueError for a folder that cannot be read.
    """
    client = MlflowClient(uri, uri)
    content = (folder / ABOUT).read_bytes()
    about: dict[str, Any] = json.loads(content)
    tags = {SEARCH_TAG: search, DIGEST_TAG: hashlib.sha256(content).hexdigest()}
    version = _version_of(client, name, tags) or _log(client, uri, run, folder, name, about, tags)
    if _aliased(client, name) != version:
        client.set_registered_model_alias(name, ALIAS, version)


def _version_of(client: MlflowClient, name: str, tags: dict[str, str]) -> str | None:
    """The latest version of this champion; None where there is none."""
    for found in client.search_model_versions(f"name = '{name}'", max_results=1000):
        if all(found.tags.get(key) == value for key, value in tags.items()) and found.status == "READY":
            return str(found.version)
    return None


def _aliased(client: MlflowClient, name: str) -> str | None:
    try:
        return str(client.get_model_version_by_alias(name, ALIAS).version)
    except MlflowException:
        return None


def _log(
    client: MlflowClient, uri: str, run: str, folder: Path, name: str, about: dict[str, Any], tags: dict[str, str]
) -> str:
    # The model is tried once on its example while it is logged; nothing of it may be unpickled.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if getattr(requirements_utils, "_MODULES_TO_PACKAGES", False) is None:
        # MLflow would look up every file of every installed package (seconds) to compare the pins with what is
        # installed, which is where they were read.
        requirements_utils._MODULES_TO_PACKAGES = {}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # Else the model would lie with the default experiment, in a folder of wherever this process was started.
    mlflow.set_experiment(experiment_id=client.get_run(run).info.experiment_id)
    # MLflow tells each step on stderr, and advises type hints, by which it would check every request a second time.
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Model.log(
            artifact_path=None,
            name=ALIAS,
            flavor=mlflow.pyfunc,
            registered_model_name=name,
            run_id=run,
            tags=tags,
            **parts_of(folder, about),
        )
    return str(made.registered_model_version)


def parts_of(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What `mlflow.pyfunc` makes the model of. about: of the champion in `folder`."""
    serving = about["serving"]
    example = json.loads((folder / EXAMPLE).read_bytes())["dataframe_split"]
    return {
        "python_model": str(CODE),
        "artifacts": {"champion": folder.absolute().as_uri()},  # MLflow takes a path with # or % for an address
        "signature": signature_of(serving),
        "input_example": _frame(example, serving["inputs"]),
        "metadata": {"columns": [column["name"] for column in serving["inputs"]]},
        "pip_requirements": serving["requirements"],
    }


def signature_of(serving: dict[str, Any]) -> ModelSignature:
    """The forecasts' columns out; of its parameters `level` is that of the intervals.

    Nothing of the columns in: MLflow would refuse a column of whole numbers where it was told fractions, and a year
    where it was told text. The model checks its columns itself; their names are the metadata's, rows the example's.
    """
    given = {column["name"]: column["type"] for column in serving["inputs"]}
    # Keys come back as they were given.
    kinds = {
        column["name"]: "long" if given.get(column["name"]) == "long" else column["type"]
        for column in serving["outputs"]
    }
    outputs = Schema([ColSpec(DataType[kind], name) for name, kind in kinds.items()])
    level = ParamSpec("level", DataType.double, 0.9)
    every = ParamSpec("all", DataType.boolean, False)
    return ModelSignature(None, outputs, ParamSchema([level, every]))


_ARROW = {"string": pa.string(), "double": pa.float64(), "long": pa.int64(), "boolean": pa.bool_()}


def _frame(example: dict[str, Any], inputs: list[dict[str, str]]) -> Any:
    """The example as a pandas DataFrame."""
    told = {column["name"]: _ARROW[column["type"]] for column in inputs}
    cells = zip(*example["data"], strict=True)
    arrays = {name: pa.array(column, told[name]) for name, column in zip(example["columns"], cells, strict=True)}
    return pa.table(arrays).to_pandas()
