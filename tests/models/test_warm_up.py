import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import xlstm_tune

COUNT = """
import gc, json
from numba.core import event
from numba.core.registry import CPUDispatcher
import torch
from xlstm_tune.models.config import FAMILIES, ModelConfig
from xlstm_tune.models.forecaster import Shape, build_model
from xlstm_tune.models.warm_up import warm_up
compiled = []
event.register("numba:compile", type("Note", (event.Listener,), {
    "on_start": lambda self, one: compiled.append(str(one.data["dispatcher"])), "on_end": lambda self, one: None})())

def ours():
    made = [one for one in gc.get_objects() if type(one) is CPUDispatcher]
    return [one for one in made if one.py_func.__module__.startswith("xlstm_tune.") and one.overloads]

def signatures():
    return {f"{one}{signature}" for one in ours() for signature in one.overloads}

warm_up()
ahead = signatures()
for family in FAMILIES:
    for steps in (9, 20):
        config = ModelConfig(family=family, hidden_size=128, heads=4, layers=2)
        build_model(config, Shape(3, steps, 2, 2))(torch.randn(20, steps, 3)).sum().backward()
print(json.dumps(dict(
    ahead=len(ahead), later=sorted(signatures() - ahead), compiled=compiled,
    forgotten=[str(one) for one in ours() if one.stats.cache_path is None],
)))
"""


@pytest.mark.slow
def test_warm_up_leaves_nothing_to_compile() -> None:
    """Training calls no signature that warm_up did not, and what it called is on disk for the next process."""
    environment = os.environ | {"PYTHONPATH": str(Path(xlstm_tune.__file__).parent.parent)}

    def counted() -> dict[str, Any]:
        command = [sys.executable, "-c", COUNT]
        return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    found = counted()
    if found["compiled"]:  # nobody has warmed this environment up: that was it
        assert not found["later"]
        found = counted()
    assert found["ahead"] > 20
    assert found | {"ahead": 0} == {"ahead": 0, "later": [], "compiled": [], "forgotten": []}
