"""Ray on this machine where its usual places are closed or have long names, and SIGTERM when it is over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xlstm_tune.errors import ResourceError
from xlstm_tune.search import local_ray

PROGRAM = """
import os, signal, time
import ray
from xlstm_tune.search import local_ray
from xlstm_tune.search.signals import children_outlive_signals, put_handlers_back

came = []
signal.signal(signal.SIGTERM, lambda *_: came.append("handled"))
with children_outlive_signals():
    session = local_ray.started({"CPU": 1, "GPU": 0})
    session.__enter__()
print(ray.get(ray.remote(lambda: 7).remote()))
ray.shutdown()
put_handlers_back()
session.__exit__(None, None, None)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.1)
print(*came)
"""


def test_a_closed_home_and_a_long_name_for_temporary_files_are_no_hindrance(tmp_path: Path) -> None:
    long = tmp_path / "scratch_project_465000123" / "users" / "someone.with-a-long-name" / "slurm-job-12345678"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    links = set(Path("/tmp").glob("ray-*"))
    made = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=kept | {"HOME": "/proc/none", "TMPDIR": str(long)},
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == ["7", "handled"]
    assert list((long / "ray").glob("session_2*")), "Ray's files lie where they were wanted"
    assert not [link for link in set(Path("/tmp").glob("ray-*")) - links if (link / "r").is_symlink()]


@pytest.mark.parametrize(
    ("mib", "said"), [(5000, str(452 << 20)), (4000, "limited to 4,000 MiB (ulimit -v), and Ray needs 4,608 MiB")]
)
def test_rays_store_fits_a_limited_address_space(mib: int, said: str) -> None:
    program = (
        "import resource; from xlstm_tune.search import local_ray\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({mib << 20}, {mib << 20}))\n"
        "try: print(local_ray._object_store())\n"
        "except local_ray.ResourceError as error: print(error)"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said in made.stdout


def test_a_token_that_can_be_made_is_left_to_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    local_ray._see_to_a_token()
    assert not os.environ["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("HOME", "/proc/none")
    local_ray._see_to_a_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_folder_that_cannot_be_made_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/proc/none/" + 60 * "x")
    words = r"whose name is too long .* set RAY_TMPDIR to a folder with a shorter name"
    with pytest.raises(ResourceError, match=words), local_ray._short_folder():
        pass


def test_a_folder_that_takes_no_files_is_told_of_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    monkeypatch.setenv("TMPDIR", str(taken))  # which RAY_TMPDIR goes before
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "there" / "will be"))
    local_ray.check_room(2)
    assert not (tmp_path / "there").exists(), "Ray makes it, not the check"
    for wanted in (taken, taken / "below"):
        monkeypatch.setenv("RAY_TMPDIR", str(wanted))
        with pytest.raises(ResourceError, match=rf"in {wanted}/ray, below {taken}, which is no folder; set RAY_TMPDIR"):
            local_ray.check_room(2)


@pytest.mark.parametrize(("said", "folder"), [("", "/tmp/ray"), ("here", "{}/here/ray")])
def test_a_folder_that_is_nothing_or_relative_is_an_absolute_one(
    said: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would take the working folder for one, and one that its processes do not agree on for the other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.setenv("RAY_TMPDIR", said)
    with local_ray._short_folder() as told:
        assert os.path.realpath(told) == folder.format(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_read_only_folder_is_told_of(tmp_path: Path) -> None:
    program = "from xlstm_tune.search import local_ray; local_ray.check_room(2)"
    mounted = f'mount -t tmpfs -o ro none {tmp_path} && exec {sys.executable} -c "{program}"'
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path)}
    made = subprocess.run(["unshare", "-m", "bash", "-c", mounted], capture_output=True, text=True, env=environment)
    if "unshare" in made.stderr or "mount:" in made.stderr:
        pytest.skip("this container may not mount")
    assert f"below {tmp_path}, where nothing can be written; set RAY_TMPDIR" in made.stderr


def test_too_few_threads_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "groups", lambda controller: [tmp_path])
    (tmp_path / "pids.current").write_text("100\n")
    for most in ("max\n", "340\n"):
        (tmp_path / "pids.max").write_text(most)
        local_ray.check_room(2)
    (tmp_path / "pids.max").write_text("339\n")
    with pytest.raises(
        ResourceError, match=r"allows 339 processes and threads, of which 100 are taken, .* 240 more for 2 trials"
    ):
        local_ray.check_room(2)
    program = (
        "import os, resource; from xlstm_tune.search import local_ray\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (60, 60))\n"
        "os.geteuid = lambda: 1000  # root is not limited\n"
        "local_ray.check_room(2)"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "this user's limit (ulimit -u) allows 60 processes and threads, of which " in made.stderr
