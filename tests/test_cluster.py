"""The cluster file, as far as it can be checked without a cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_file_is_accepted_by_rays_validator(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_cluster_has_a_cpu_head_and_spot_gpu_workers_that_go_to_zero(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    workers = types["gpu"]
    assert workers["min_workers"] == 0 < workers["max_workers"]
    assert workers["resources"]["GPU"] >= 1
    assert workers["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_cluster_installs_this_project_with_the_tested_versions(cluster: dict[str, Any]) -> None:
    assert any("-c ~/xlstm_tune/constraints.txt" in command for command in cluster["setup_commands"])
    assert cluster["file_mounts"]["~/xlstm_tune"] == "."
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for package in ("ray", "torch", "optuna", "mlflow", "pyarrow"):
        assert sum(line.startswith(f"{package}==") for line in pins) == 1
