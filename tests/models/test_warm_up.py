import os
import subprocess
import sys
from pathlib import Path

import pytest

import xlstm_tune
from xlstm_tune.models.config import FAMILIES

COUNT = """
import sys
from numba.core import event
import torch
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.forecaster import Shape, build_model
from xlstm_tune.models.warm_up import warm_up
compiled = []
event.register("numba:compile", type("Note", (event.Listener,), {
    "on_start": lambda self, one: compiled.append(str(one.data["dispatcher"])), "on_end": lambda self, one: None})())
if sys.argv[1] == "ahead":
    warm_up()
else:
    for steps in (9, 20):
        config = ModelConfig(family=sys.argv[1], hidden_size=128, heads=4, layers=2)
        build_model(config, Shape(3, steps, 2, 2))(torch.randn(20, steps, 3)).sum().backward()
print(len(compiled))
"""


@pytest.mark.slow
def test_warm_up_leaves_nothing_to_compile(tmp_path: Path) -> None:
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(xlstm_tune.__file__).parent.parent),
    }

    def compiled(what: str) -> int:
        command = [sys.executable, "-c", COUNT, what]
        return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    assert compiled("ahead") > 0
    assert {family: compiled(family) for family in FAMILIES} == dict.fromkeys(FAMILIES, 0)
