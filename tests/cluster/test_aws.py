"""cluster.yaml on a simulated EC2: what `ray up` starts, what the head asks for, and what `ray down` leaves.

Ray is real throughout: its command line on one side, its scheduler and AWS provider, with the file that `ray up` sends
to the head, on the other. The simulation does not look images up by their SSM parameter, so a test follows it by hand.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from simulated_ec2 import ACCOUNT, IMAGE, REGION, Home, Region, prepare_account, simulated_region, wait_for

pytestmark = pytest.mark.slow

GPU = {"GPU": 1.0, "CPU": 1.0}


@pytest.fixture(scope="module")
def region() -> Iterator[Region]:
    with simulated_region() as region:
        prepare_account(region)
        yield region


@pytest.fixture(scope="module")
def home(region: Region, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A person's machine from which the cluster was started."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.make()
    result = home.ray(region, "up", "-y", "cluster.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    return home


@pytest.fixture(scope="module")
def head(region: Region, home: Home) -> dict[str, Any]:
    """The one machine that `ray up` starts."""
    (machine,) = region.machines()
    return machine


@pytest.fixture
def at_the_head(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `ray up` sent to the head's home is in this process's home."""
    monkeypatch.setenv("HOME", str(home.head))


def tags(machine: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in machine["Tags"]}


def disk(region: Region, machine: dict[str, Any]) -> dict[str, Any]:
    (mapping,) = machine["BlockDeviceMappings"]
    assert mapping["DeviceName"] == "/dev/sda1"
    volume = mapping["Ebs"]["VolumeId"]
    (found,) = region.client("ec2").describe_volumes(VolumeIds=[volume])["Volumes"]
    return found


def test_ray_up_starts_a_cpu_machine_on_demand(region: Region, head: dict[str, Any]) -> None:
    assert head["InstanceType"] == "m7i.xlarge"
    assert "InstanceLifecycle" not in head
    assert head["IamInstanceProfile"]["Arn"] == f"arn:aws:iam::{ACCOUNT}:instance-profile/xlstm-tune-head"
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert {"ray-cluster-name": "xlstm-tune", "ray-node-type": "head"}.items() <= tags(head).items()
    assert (disk(region, head)["Size"], disk(region, head)["VolumeType"]) == (100, "gp3")


def test_machines_start_from_the_image_that_the_account_pinned(region: Region, head: dict[str, Any]) -> None:
    assert head["ImageId"] == "resolve:ssm:/xlstm-tune/gpu-image"
    parameter = region.client("ssm").get_parameter(Name=head["ImageId"].removeprefix("resolve:ssm:"))["Parameter"]
    assert (parameter["Value"], parameter["DataType"]) == (IMAGE, "aws:ec2:image")


def test_from_outside_only_ssh_from_one_address_is_open(region: Region, head: dict[str, Any]) -> None:
    (group,) = head["SecurityGroups"]
    (rules,) = region.client("ec2").describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
    outside = [rule for rule in rules["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"]]
    (ssh,) = outside
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22)
    assert [item["CidrIp"] for item in ssh["IpRanges"]] == ["203.0.113.7/32"] and not ssh["Ipv6Ranges"]
    (among,) = [rule for rule in rules["IpPermissions"] if rule is not ssh]
    assert [pair["GroupId"] for pair in among["UserIdGroupPairs"]] == [group["GroupId"]]


def test_head_is_installed_then_gets_its_secrets_then_starts_ray(head: dict[str, Any], home: Home) -> None:
    asked = home.asked()

    def place(words: str) -> int:
        (found,) = [index for index, line in enumerate(asked) if words in line]
        return found

    shipped = [place(f"ubuntu@{head['PublicIpAddress']}:~/xlstm_tune/{name}") for name in ("clusters/", "LICENSE")]
    order = [
        max(shipped),
        place("clusters/node.sh cpu"),
        place("clusters/head.sh s3://"),
        place("ray stop"),
        place("clusters/node.sh token && . ~/.xlstm_tune/env && ulimit -Sn $(ulimit -Hn) && ray start --head"),
    ]
    assert order == sorted(order)


def test_nothing_but_what_an_installation_needs_leaves_the_machine(home: Home) -> None:
    sent = [line.split()[-2] for line in home.asked() if line.startswith("rsync ")]
    ours = [item for item in sent if not item.startswith(str(home.path))]
    assert sorted(ours) == sorted(
        ["xlstm_tune/", "search_spaces/", "clusters/", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"]
    )
    key = home.path / ".ssh" / f"ray-autoscaler_{REGION}.pem"
    assert key.stat().st_mode & 0o777 == 0o600


def permitted(region: Region, role: str) -> dict[str, list[dict[str, Any]]]:
    """The statements of a role's policies, as the stack left them, by policy."""
    iam = region.client("iam")
    found = {}
    for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        version = iam.get_policy(PolicyArn=policy["PolicyArn"])["Policy"]["DefaultVersionId"]
        document = iam.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId=version)["PolicyVersion"]["Document"]
        found[policy["PolicyName"]] = document["Statement"]
    return found


def stand_in(region: Region) -> str:
    """A role with the head's actions, on whatever resource."""
    iam = region.client("iam")
    try:
        return str(iam.get_role(RoleName="stand-in")["Role"]["Arn"])
    except iam.exceptions.NoSuchEntityException:
        role = iam.create_role(RoleName="stand-in", AssumeRolePolicyDocument="{}")["Role"]
    for name, statements in permitted(region, "xlstm-tune-head").items():
        wide = [{"Effect": "Allow", "Action": item["Action"], "Resource": "*"} for item in statements]
        document = json.dumps({"Version": "2012-10-17", "Statement": wide})
        iam.put_role_policy(RoleName="stand-in", PolicyName=name, PolicyDocument=document)
    return str(role["Arn"])


@contextmanager
def as_the_head(region: Region, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process may do what the head's role permits, and the simulation refuses all else.

    It tells no EC2 resource from another, so a role with the same actions on everything stands in for the head's; which
    resources those are is read in test_head_acts_on_its_own_cluster_alone.
    """
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache

    def permit(requests: str) -> None:
        plain = {"Content-Type": "text/plain"}
        place = f"{region.environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        with urllib.request.urlopen(urllib.request.Request(place, data=requests.encode(), headers=plain)):
            pass

    taken = region.client("sts").assume_role(RoleArn=stand_in(region), RoleSessionName="head")["Credentials"]
    for name, value in region.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", taken["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", taken["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", taken["SessionToken"])
    for cache in (resource_cache, client_cache):
        cache.cache_clear()
    permit("0")
    try:
        yield
    finally:
        permit("inf")
        for cache in (resource_cache, client_cache):
            cache.cache_clear()


def autoscaling(home: Home) -> Any:
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader

    return FileConfigReader(str(home.head_config))


def wanted(home: Home, demands: list[dict[str, float]]) -> dict[str, int]:
    """How many machines of which type Ray's scheduler starts beside the head for what waits."""
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.schema import AutoscalerInstance
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import NodeState, NodeStatus
    from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

    config = autoscaling(home).get_cached_autoscaling_config()
    running = AutoscalerInstance(
        cloud_instance_id="head",
        im_instance=Instance(
            instance_id="0", instance_type="head", node_kind=NodeKind.HEAD, status=Instance.RAY_RUNNING,
            cloud_instance_id="head", launch_request_id="0",
        ),
        ray_node=NodeState(
            node_id=b"0", instance_id="head", ray_node_type_name="head", status=NodeStatus.RUNNING,
            total_resources={"CPU": 0}, available_resources={"CPU": 0},
        ),
    )  # fmt: skip
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        idle_timeout_s=config.get_idle_timeout_s(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(item) for item in demands]),
        current_instances=[running],
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize(
    ("waiting", "machines"),
    [(0, {}), (1, {"gpu": 1}), (3, {"gpu": 3}), (200, {"gpu": 4})],
    ids=["no trial", "one", "three", "more than max_workers"],
)
@pytest.mark.usefixtures("at_the_head")
def test_gpu_machines_come_with_the_trials(home: Home, waiting: int, machines: dict[str, int]) -> None:
    assert wanted(home, [GPU] * waiting) == machines


@pytest.mark.usefixtures("at_the_head")
def test_trials_that_share_a_gpu_share_a_machine(home: Home) -> None:
    assert wanted(home, [{"GPU": 0.25, "CPU": 1.0}] * 8) == {"gpu": 2}


@pytest.mark.usefixtures("at_the_head")
def test_head_may_start_and_end_spot_machines_and_nothing_more(
    region: Region, home: Home, head: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from botocore.exceptions import ClientError
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

    reader = autoscaling(home)
    config = reader.get_cached_autoscaling_config()
    with as_the_head(region, monkeypatch):
        provider = _get_node_provider(config.get_config("provider"), config.get_config("cluster_name"))
        adapter = NodeProviderAdapter(provider, reader)
        # EC2 starts as many as it can between Ray's minimum of one and what it wants; the simulation, the minimum.
        for request in ("one trial", "another"):
            adapter.launch(shape={"gpu": 1}, request_id=request)
        wait_for(lambda: adapter.poll_errors() or len(adapter.get_non_terminated()) == 3)
        seen = adapter.get_non_terminated()
        for forbidden in (
            lambda: boto3.client("ec2").stop_instances(InstanceIds=[head["InstanceId"]]),
            lambda: boto3.client("ec2").create_security_group(GroupName="open", Description="open"),
            lambda: boto3.client("iam").create_user(UserName="someone"),
            lambda: boto3.client("s3").list_buckets(),
        ):
            with pytest.raises(ClientError, match=r"not authorized|AccessDenied"):
                forbidden()
        boto3.client("s3").put_object(Bucket="results-of-ours", Key="searches/one", Body=b"")
    assert sorted(node.node_type for node in seen.values()) == ["gpu", "gpu", "head"]

    workers = [machine for machine in region.machines() if machine["InstanceId"] != head["InstanceId"]]
    for worker in workers:
        assert (worker["InstanceType"], worker["InstanceLifecycle"]) == ("g6.2xlarge", "spot")
        assert worker["IamInstanceProfile"]["Arn"].endswith("instance-profile/xlstm-tune-worker")
        assert worker["SecurityGroups"] == head["SecurityGroups"]
        assert worker["ImageId"] == head["ImageId"]
        assert worker["MetadataOptions"]["HttpTokens"] == "required"
        assert {"ray-cluster-name": "xlstm-tune", "ray-node-type": "worker"}.items() <= tags(worker).items()
        assert disk(region, worker)["Size"] == 100

    with as_the_head(region, monkeypatch):
        adapter.terminate([machine["InstanceId"] for machine in workers], request_id="idle")
        wait_for(lambda: adapter.poll_errors() or len(adapter.get_non_terminated()) == 1)
    assert [machine["InstanceId"] for machine in region.machines()] == [head["InstanceId"]]


def test_head_acts_on_its_own_cluster_alone(region: Region) -> None:
    statements = permitted(region, "xlstm-tune-head")["xlstm-tune-workers"]
    assert all(item["Effect"] == "Allow" for item in statements)
    everywhere = [item["Action"] for item in statements if item["Resource"] == "*"]
    assert everywhere == ["ec2:DescribeInstances"]
    machines = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/*"
    for item in statements:
        if item["Resource"] == machines:
            ((_, condition),) = item["Condition"]["StringEquals"].items()
            assert condition in ("xlstm-tune", "RunInstances")
    (passed,) = [item for item in statements if item["Action"] == "iam:PassRole"]
    assert passed["Resource"] == f"arn:aws:iam::{ACCOUNT}:role/xlstm-tune-worker"


def test_workers_reach_the_bucket_and_nothing_else(region: Region) -> None:
    permissions = permitted(region, "xlstm-tune-worker")
    assert list(permissions) == ["xlstm-tune-bucket"]
    for item in permissions["xlstm-tune-bucket"]:
        assert item["Resource"].split("/")[0] == "arn:aws:s3:::results-of-ours"
        assert all(action.startswith("s3:") and "*" not in action for action in item["Action"])


def test_workers_get_the_token_before_they_are_set_up(home: Home) -> None:
    config = yaml.safe_load(home.head_config.read_text())
    assert config["cluster_synced_files"] == ["~/.ray/auth_token"]
    assert config["worker_setup_commands"] == ["bash ~/xlstm_tune/clusters/node.sh"]
    (start,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert start.index("node.sh token &&") < start.index("ray start --address=$RAY_HEAD_IP:6379")


def test_gpu_machines_offer_what_ec2_says_they_have(home: Home) -> None:
    config = yaml.safe_load(home.head_config.read_text())
    resources = config["available_node_types"]["gpu"]["resources"]
    assert {"CPU": 8, "GPU": 1, "accelerator_type:L4": 1}.items() <= resources.items()


def test_ray_down_leaves_no_machine(region: Region, home: Home, head: dict[str, Any]) -> None:
    region.client("ec2").run_instances(
        ImageId=IMAGE, InstanceType="g6.2xlarge", MinCount=1, MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "somebody else's"}]}],
    )  # fmt: skip
    result = home.ray(region, "down", "-y", "cluster.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [tags(machine)["Name"] for machine in region.machines()] == ["somebody else's"]
