"""A simulated AWS region on the loopback, with an account as clusters/aws_account.yaml leaves it, and `ray up` on it.

`ray up` is the real command. Its machines exist in the simulation alone, so `ssh` and `rsync` are two scripts, first on
its PATH, that write down what they are asked to do and do nothing.
"""

from __future__ import annotations

import datetime
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT, REGION = "123456789012", "us-west-2"
IMAGE = "ami-0123456789abcdef0"
AWS_IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
# Ray reads the whole list, and EC2's is long.
INSTANCE_TYPES = ("m7i.xlarge", "g6.2xlarge", "g6.12xlarge", "p5.48xlarge")

# What `ssh` is asked to run is its last argument but for shells; `uptime` is how Ray finds out that a machine is up.
SSH = """#!/usr/bin/env bash
printf '%q ' "$@" >>{log}
echo >>{log}
"""
RSYNC = """#!/usr/bin/env bash
printf 'rsync ' >>{log}
printf '%q ' "$@" >>{log}
echo >>{log}
target=${{@: -1}}
case $target in */ray_bootstrap_*) cp "${{@: -2:1}}" "{head}/${{target##*/}}" ;; esac
"""


@dataclass(frozen=True)
class Region:
    """Where the simulation listens, and what a process needs to take it for AWS."""

    environment: dict[str, str]

    def client(self, service: str) -> Any:
        import boto3

        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="simulated",
            aws_secret_access_key="simulated",
        )

    def machines(self) -> list[dict[str, Any]]:
        answer = self.client("ec2").describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        )
        return [machine for group in answer["Reservations"] for machine in group["Instances"]]


@contextmanager
def simulated_region() -> Iterator[Region]:
    """A region whose list of instance types is cut short and that knows AWS's GPU image."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES as known
    from moto.server import ThreadedMotoServer
    from moto.ssm.models import Parameter, ssm_backends

    for name in [name for name in known if name not in INSTANCE_TYPES]:
        del known[name]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        parameter = Parameter(
            ACCOUNT, AWS_IMAGE, IMAGE, "String", None, None, None, datetime.datetime.now(datetime.UTC), 1, "text"
        )
        ssm_backends[ACCOUNT][REGION]._parameters[AWS_IMAGE].append(parameter)
        _, port = server.get_host_and_port()
        yield Region(
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "simulated",
                "AWS_SECRET_ACCESS_KEY": "simulated",
                "AWS_DEFAULT_REGION": REGION,
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        )
    finally:
        server.stop()


def prepare_account(region: Region) -> None:
    """What the first command of docs/cluster.md does."""
    given = {"Bucket": "results-of-ours", "SshFrom": "203.0.113.7/32"}
    region.client("cloudformation").create_stack(
        StackName="xlstm-tune",
        TemplateBody=(ROOT / "clusters" / "aws_account.yaml").read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
    )


@dataclass(frozen=True)
class Home:
    """A person's machine: a home of its own, and a PATH on which ssh and rsync write down what they are asked."""

    path: Path

    @property
    def log(self) -> Path:
        return self.path / "asked"

    @property
    def head(self) -> Path:
        """What would be the head's home: the file with which Ray runs the cluster there, and the key to workers."""
        return self.path / "head"

    @property
    def head_config(self) -> Path:
        return self.head / "ray_bootstrap_config.yaml"

    def make(self) -> None:
        tools = self.path / "bin"
        tools.mkdir(parents=True)
        self.head.mkdir()
        for name, text in (("ssh", SSH), ("rsync", RSYNC)):
            (tools / name).write_text(text.format(log=self.log, head=self.head))
            (tools / name).chmod(0o755)

    def ray(self, region: Region, *words: str) -> subprocess.CompletedProcess[str]:
        """A `ray` command, as a process of its own, from the project's folder."""
        environment = {
            **os.environ,
            **region.environment,
            "HOME": str(self.path),
            "TMPDIR": str(self.path),
            "PATH": f"{self.path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def asked(self) -> list[str]:
        """What was run on machines, one line each, as the machine's shell would get it."""
        return [" ".join(shlex.split(line)) for line in self.log.read_text().splitlines()]


def wait_for(condition: Any, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
