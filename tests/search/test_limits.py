"""What control groups allow is found wherever in their trees it is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xlstm_tune.search.placement.limits import ROOT, cpu_limit, memory_limit

SHOW = (
    "from xlstm_tune.search.placement.limits import memory_limit;"
    "from xlstm_tune.search.placement.resources import cpus, memory_mib; print(memory_limit(), memory_mib(), cpus())"
)


def tree(folder: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Where groups are mounted and which are this process's."""
    for name, content in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(content + "\n")
    (folder / "mine").write_text(groups)
    return folder / "cgroup", folder / "mine"


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        (
            "0::/job/step\n",
            {"job/memory.max": "1000", "job/step/memory.max": "max", "job/step/cpu.max": "150000 100000"},
        ),
        ("0::/job/step\n", {"job/memory.max": "3000", "job/step/memory.max": "1000", "job/cpu.max": "150000 100000"}),
        ("0::/\n", {"memory.max": "1000", "cpu.max": "150000 100000"}),
        ("0::/not/seen/here\n", {"memory.max": "1000", "cpu.max": "150000 100000"}),
        (
            "4:memory:/job/step\n3:cpuset:/\n1:cpu,cpuacct:/job\n0::/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/job/memory.limit_in_bytes": "1000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/job/cpu.cfs_quota_us": "75000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "50000",
            },
        ),
    ],
    ids=["an outer group", "the inner group", "a container", "a group behind the mount", "version 1"],
)
def test_the_smallest_limit_counts(groups: str, files: dict[str, str], tmp_path: Path) -> None:
    root, mine = tree(tmp_path, groups, files)
    assert memory_limit(root, mine) == 1000
    assert cpu_limit(root, mine) == 1.5


def test_no_groups_no_limits(tmp_path: Path) -> None:
    root, mine = tree(tmp_path, "0::/\n", {"memory.max": "max", "cpu.max": "max 100000"})
    assert memory_limit(root, mine) is cpu_limit(root, mine) is None
    assert memory_limit(root, tmp_path / "none") is None
    (tmp_path / "odd").write_bytes(b"0::/\xff\xfe\nno group\n")
    assert memory_limit(root, tmp_path / "odd") is None


def test_a_group_of_this_machine_is_found() -> None:
    """A process put into a group of its own, as a job of Slurm is."""
    one = ROOT.joinpath("cgroup.controllers").exists()
    folders = [ROOT / ("" if one else kind) / f"xlstm-tune-test-{os.getpid()}" for kind in ("memory", "cpu")]
    try:
        for folder in folders:
            folder.mkdir(exist_ok=True)
        memory, cpu = folders
        (memory / ("memory.max" if one else "memory.limit_in_bytes")).write_text(str(2**30))
        if one:
            (cpu / "cpu.max").write_text("100000 100000")
        else:
            (cpu / "cpu.cfs_quota_us").write_text("100000")
        joined = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in dict.fromkeys(folders))
        if subprocess.run(["sh", "-c", joined], capture_output=True).returncode:
            pytest.skip("no process can be put into a group here")
        shown = subprocess.run(
            ["sh", "-c", f"{joined} && exec {sys.executable} -c '{SHOW}'"], capture_output=True, text=True
        )
    except OSError as error:
        pytest.skip(f"no group can be made here: {error}")
    finally:
        for folder in dict.fromkeys(folders):
            if folder.exists():
                folder.rmdir()
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == [str(2**30), "1024.0", "1"]
