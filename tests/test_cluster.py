"""The files that describe clusters, as far as they can be checked without one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def documents(path: Path) -> list[dict[str, Any]]:
    return [item for item in yaml.load_all(path.read_text(), Loader=yaml.BaseLoader) if isinstance(item, dict)]


def of_ray() -> list[Path]:
    """cluster.yaml and what else `ray up` takes: every file in clusters/ that names a provider."""
    files = [ROOT / "cluster.yaml", *sorted((ROOT / "clusters").glob("*.yaml"))]
    return [path for path in files if "provider" in documents(path)[0]]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def kubernetes() -> dict[str, dict[str, Any]]:
    """What clusters/kuberay.yaml describes, by kind."""
    items = list(yaml.safe_load_all((ROOT / "clusters" / "kuberay.yaml").read_text()))
    return {item["kind"]: item for item in items}


def pin(package: str) -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (version,) = [line.split("==")[1] for line in lines if line.startswith(f"{package}==")]
    return version


@pytest.mark.parametrize("path", of_ray(), ids=lambda path: path.name)
def test_cluster_file_is_accepted_by_rays_validator(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize("path", of_ray(), ids=lambda path: path.name)
def test_file_mounts_are_there(path: Path) -> None:
    """Ray finds out after it has started the head, which then costs money for nothing."""
    mounts = yaml.safe_load(path.read_text())["file_mounts"]
    assert [local for local in mounts.values() if not (ROOT / local).expanduser().exists()] == []


def test_cluster_has_a_cpu_head_and_spot_gpu_workers_that_go_to_zero(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert types["gpu"]["min_workers"] == 0 < cluster["max_workers"]
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert cluster["idle_timeout_minutes"] <= 10 and cluster["provider"]["cache_stopped_nodes"] is False


def test_three_lines_are_to_be_changed() -> None:
    assert (ROOT / "cluster.yaml").read_text().count("# CHANGE: ") == 3


def test_defaults_of_ray_install_nothing_of_their_own(cluster: dict[str, Any]) -> None:
    """For AWS, Ray fills in commands that install a nightly Ray and another boto3 where a file names none."""
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(cluster)
    assert [
        command for kind in ("setup", "head_setup", "worker_setup") for command in prepared[f"{kind}_commands"]
    ] == [
        "bash ~/xlstm_tune/clusters/node.sh cpu",
        "bash ~/xlstm_tune/clusters/node.sh",
    ]


def test_every_version_is_the_tested_one() -> None:
    """Machines install by constraints.txt; the image for Kubernetes brings its own Ray."""
    assert '-c "$project/constraints.txt" -e "$project[cluster]"' in (ROOT / "clusters" / "node.sh").read_text()
    image = (ROOT / "clusters" / "Dockerfile").read_text()
    assert re.findall(r"^FROM rayproject/ray:(\S+)$", image, re.MULTILINE) == [f"{pin('ray')}-py311-gpu"]
    assert "-c /home/ray/xlstm_tune/constraints.txt" in image
    for package in ("torch", "optuna", "mlflow", "pyarrow", "boto3", "Flask-WTF"):
        assert pin(package)


def test_triton_is_left_to_torch() -> None:
    """PyPI's torch names one Triton exactly, so any pin of ours beside it cannot be installed."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if line.startswith("triton==")]


def test_ray_reads_the_kubernetes_cluster_as_it_is_meant(kubernetes: dict[str, dict[str, Any]]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    described = kubernetes["RayCluster"]
    assert (described["apiVersion"], described["spec"]["rayVersion"]) == ("ray.io/v1", pin("ray"))
    assert described["spec"]["authOptions"] == {"mode": "token"}
    assert described["spec"]["enableInTreeAutoscaling"] is True
    config = _derive_autoscaling_config_from_ray_cr(
        {**described, "metadata": {**described["metadata"], "namespace": "x"}}
    )
    head, gpu = (config["available_node_types"][name] for name in ("headgroup", "gpu"))
    assert (head["resources"]["CPU"], head["max_workers"]) == (0, 0)
    assert (gpu["min_workers"], gpu["max_workers"], gpu["resources"]["GPU"]) == (0, 4, 1)
    assert config["idle_timeout_minutes"] == 5


def test_kubernetes_parts_belong_together(kubernetes: dict[str, dict[str, Any]]) -> None:
    spec = kubernetes["RayCluster"]["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]
    ray, mlflow = head["containers"]
    (worker,) = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert ray["image"] == mlflow["image"] == worker["image"]
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert {mount["name"] for mount in mlflow["volumeMounts"]} == set(volumes)
    claim = volumes["mlflow"]["persistentVolumeClaim"]["claimName"]
    assert claim == kubernetes["PersistentVolumeClaim"]["metadata"]["name"]
    settings = kubernetes["ConfigMap"]
    assert volumes["settings"]["configMap"]["name"] == settings["metadata"]["name"]
    assert "default_permission = NO_PERMISSIONS" in settings["data"]["auth.ini"]
    assert "--app-name basic-auth" in mlflow["args"][0] and "--host 127.0.0.1" in mlflow["args"][0]
    chosen = kubernetes["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    assert chosen == {"ray.io/cluster": kubernetes["RayCluster"]["metadata"]["name"]}
    # Nobody's password is in the file.
    secret = [item for item in (*ray["env"], *mlflow["env"]) if "PASSWORD" in item["name"] or "KEY" in item["name"]]
    assert len(secret) == 3 and all("secretKeyRef" in item["valueFrom"] for item in secret)


@pytest.mark.slow
def test_aws_template_is_one_that_cloudformation_takes() -> None:
    linter = [sys.executable, "-c", "from cfnlint.runner import main; main()"]
    result = subprocess.run([*linter, str(ROOT / "clusters" / "aws_account.yaml")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "clusters").glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_stop_at_the_first_error(path: Path) -> None:
    assert "\nset -euo pipefail\n" in path.read_text()
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0


def test_an_environment_that_was_not_finished_is_made_anew(tmp_path: Path) -> None:
    """As a connection that broke off leaves it; that nothing can be installed comes behind it here."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    names = tmp_path / "names"
    names.mkdir()
    (names / "python3.11").symlink_to(sys.executable)
    environment = {"HOME": str(tmp_path), "PATH": f"{names}:/usr/bin:/bin", "PIP_NO_INDEX": "1"}
    made = subprocess.run(
        ["bash", ROOT / "clusters" / "node.sh", "gpu"], env=environment, capture_output=True, text=True
    )
    assert made.returncode != 0 and "No module named pip" not in made.stderr
    assert subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0
    assert not (tmp_path / "venv" / "installed").exists()
