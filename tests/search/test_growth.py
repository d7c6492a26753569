"""What may come to a cluster, and how many trials may be under way there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from searcher_bench import SMALL, Bench, make_spec

from xlstm_tune.search.placement.cluster import smallest_trial
from xlstm_tune.search.placement.growth import Growth, NodeType, read_growth
from xlstm_tune.search.placement.resources import Bundle, slots_on
from xlstm_tune.search.sampling.fusion import Fusion
from xlstm_tune.search.session import worker_environment
from xlstm_tune.spec import ResourceConfig

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "trial", "slots"),
    [
        ([CPU, GPU], Bundle(1, 0), 12),
        ([CPU, GPU], Bundle(1, 1), 1),
        ([CPU, GPU, GPU], Bundle(1, 0.25), 8),
        ([{"CPU": 2.0, "GPU": 1.0}, CPU], Bundle(1, 0.25), 2),  # the processors beside a GPU, not those elsewhere
        ([{"GPU": 2.0}, CPU], Bundle(1, 1), 0),
        ([{"CPU": 3.0}, {"CPU": 3.0}], Bundle(2, 0), 2),  # none straddles two nodes
        ([{"CPU": 8.0, "GPU": 2.0}], Bundle(1, 0.4), 4),
        ([], Bundle(1, 0), 0),
    ],
)
def test_slots_on_counts_node_by_node(nodes: list[dict[str, float]], trial: Bundle, slots: int) -> None:
    assert slots_on(nodes, trial) == slots


def test_growth_of_an_autoscaler_holds_its_types_and_its_limit() -> None:
    growth = Growth((NodeType(GPU, 4), NodeType(CPU, 2), NodeType({"CPU": 64.0, "GPU": 8.0}, 0)), 5)
    assert growth.gpus and growth.slots(Bundle(1, 0.125)) == 32 and growth.slots(Bundle(1, 1)) == 4
    assert growth.slots(Bundle(1, 0)) == 4 * 8 + 1 * 4
    assert growth.may_bring(Bundle(8, 1)) and not growth.may_bring(Bundle(1, 2)) and not growth.may_bring(Bundle(9, 0))
    unknown = Growth((NodeType({}, 2),), 2)
    assert unknown.may_bring(Bundle(1, 4)) and unknown.slots(Bundle(1, 4)) == 0 and not unknown.gpus


def test_growth_without_an_autoscaler_is_by_hand() -> None:
    fixed, untold = Growth(()), Growth(None)
    assert fixed.may_bring(Bundle(1, 1)) and not fixed.may_bring(Bundle(1, 0))
    assert untold.may_bring(Bundle(1, 0)) and not untold.gpus and untold.slots(Bundle(1, 1)) == 0


@pytest.mark.parametrize(
    ("asked", "nodes", "growth", "trial"),
    [
        ("auto", [CPU], Growth(()), Bundle(1, 0)),
        ("auto", [CPU, GPU], Growth(()), Bundle(1, 1)),
        ("auto", [CPU], Growth((NodeType(GPU, 1),)), Bundle(1, 1)),
        ("auto", [CPU], Growth((NodeType(GPU, 0),)), Bundle(1, 0)),
        (0, [GPU], Growth((NodeType(GPU, 1),)), Bundle(1, 0)),
        (0.5, [CPU], Growth(()), Bundle(1, 0.5)),
    ],
)
def test_smallest_trial_wants_a_gpu_where_one_is_or_may_come(
    asked: Any, nodes: list[dict[str, float]], growth: Growth, trial: Bundle
) -> None:
    assert smallest_trial(ResourceConfig.parse({"gpus_per_trial": asked}), growth, nodes) == trial


def test_read_growth_of_the_cluster_file_on_aws(tmp_path: Path) -> None:
    """As the head has it: with the resources that Ray has filled in."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    (worker,) = (one for name, one in config["available_node_types"].items() if name != config["head_node_type"])
    worker |= {"resources": {"CPU": 8, "GPU": 1}, "max_workers": config["max_workers"]}
    (tmp_path / "head.yaml").write_text(yaml.safe_dump(config))
    growth = read_growth(tmp_path / "head.yaml")
    assert growth.gpus and growth.may_bring(Bundle(1, 1)) and not growth.may_bring(Bundle(1, 2))
    assert growth.slots(Bundle(1, 1)) == config["max_workers"] == growth.slots(Bundle(4, 0.5)) / 2


def test_read_growth_of_machines_of_ones_own_knows_nothing_of_them(tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config

    mine = {"cluster_name": "mine", "auth": {"ssh_user": "me"}, "max_workers": 2}
    mine["provider"] = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2", "127.0.0.3"]}
    (tmp_path / "head.yaml").write_text(yaml.safe_dump(prepare_config(mine)))
    growth = read_growth(tmp_path / "head.yaml")
    assert growth == Growth((NodeType({}, 2),), 2) and growth.may_bring(Bundle(1, 1))


@pytest.mark.parametrize("text", ["", "a: [", "available_node_types: 3", "[1, 2]"])
def test_read_growth_of_what_is_no_cluster_file_is_unknown(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert read_growth(tmp_path / "x.yaml") == read_growth(tmp_path / "none.yaml") == Growth(None)


def test_workers_get_settings_and_no_credential() -> None:
    given = {
        **{"XLSTM_TUNE_CAPTURE": "off", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "AWS_REGION": "eu-west-1"},
        **{"XLSTM_TUNE_TRACKING_URI": "https://me:pw@host", "XLSTM_TUNE_STORAGE": "s3://key:pw@bucket"},
        **{"MLFLOW_TRACKING_PASSWORD": "pw", "MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_URI": "http://me:pw@x"},
        **{"AWS_SECRET_ACCESS_KEY": "pw", "AWS_ACCESS_KEY_ID": "me", "AWS_SESSION_TOKEN": "pw", "HF_TOKEN": "pw"},
        **{"RAY_AUTH_TOKEN": "pw", "PATH": os.environ["PATH"], "HOME": "/"},
    }
    assert set(worker_environment(given)) == {"XLSTM_TUNE_CAPTURE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "AWS_REGION"}


def test_searcher_keeps_to_the_room_as_it_grows_and_shrinks(tmp_path: Path) -> None:
    room = 1
    bench = Bench(make_spec(SMALL, algorithm="grid"), tmp_path, room=lambda: room)
    first = bench.ask()
    assert first and bench.ask() is None, "nothing now"
    room = 3
    others = [bench.ask(), bench.ask()]
    assert all(others) and bench.ask() is None
    room = 1
    bench.end(first, 4, 1.0, finished=True)
    assert bench.ask() is None, "two are still under way"
    for one in others:
        bench.end(str(one), 4, 1.0, finished=True)
    assert bench.ask()


def test_fusion_shares_out_what_waits_among_the_slots_of_the_moment() -> None:
    slots = 2
    fusion = Fusion(8, slots=1, lookback=12, room=lambda: slots)
    config = make_spec(SMALL).resolve({"model.hidden_size": 32})
    assert fusion.most(config, waiting=4) == 2
    slots = 4
    assert fusion.most(config, waiting=4) == 1 and fusion.most(config, waiting=4, running=3) == 4
