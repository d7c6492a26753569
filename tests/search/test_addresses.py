"""Addresses of storages: what cannot be used is told before anything starts, and no credentials are shown."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from buckets import CREDENTIALS, S3
from typer.testing import CliRunner

from xlstm_tune.errors import StorageError
from xlstm_tune.search.__main__ import app
from xlstm_tune.search.persistence.folder import check_folder
from xlstm_tune.storage.objects import Objects, without_secrets

SECRET = "s3://someone:topsecret@nowhere/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (SECRET, SECRET.replace("someone:topsecret", "***")),
        ("s3://key@bucket/x", "s3://***@bucket/x"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        ("abfs://container:key@account/x", "abfs://***@account/x"),
        ("gs://bucket/x", "gs://bucket/x"),
        ('s3://key:it\'s/"se@cret"@bucket/x', "s3://***@bucket/x"),
        ("abfs://c@account/x?sv=2024&sig=topsecret&sp=rw", "abfs://c@account/x?sv=2024&sig=***&sp=rw"),
        ("abfs://c@account/x?client_secret=topsecret", "abfs://c@account/x?client_secret=***"),
        ("abfs://a:topsecret@account/x?client_secret=topsecret", "abfs://***@account/x?client_secret=***"),
    ],
)
def test_credentials_of_an_address_are_never_shown(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown == Objects(uri).shown == without_secrets(shown)
    assert (Objects(uri) / "wave").shown == without_secrets((Objects(uri) / "wave").uri)


@pytest.mark.parametrize(
    ("uri", "secrets"),
    [
        ("s3://someone:top%2Fsecret@bucket/x", ["someone", "top%2Fsecret", "top/secret"]),
        ("abfs://c@account/x?client_id=me&client_secret=top%2Fsecret", ["top%2Fsecret", "top/secret"]),
        ("abfs://c@account/x?sv=2024&sig=topsecret", ["topsecret"]),
    ],
)
def test_credentials_of_an_address_are_not_told_as_a_reason(uri: str, secrets: list[str]) -> None:
    told = Objects(uri).reason(OSError(f"no answer for {uri} ({', '.join(secrets)})"))
    assert told.startswith("no answer for ") and not any(secret in told for secret in secrets)


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (SECRET, "cannot be used"),
        ("s4://bucket/x", "unknown scheme 's4'"),
        ("s3://bucket/x?nonsense=1", "cannot be used"),
        ("abfs://c@account/x?nonsense=1&sig=topsecret", "cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_sentence_before_anything_starts(
    storage: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    began = time.monotonic()
    result = CliRunner().invoke(app, ["quickstart", "--storage", storage])
    assert result.exit_code == 2 and time.monotonic() - began < 60
    error = result.stderr.strip()
    assert error.startswith("error: ") and words in error and "\n" not in error and "topsecret" not in error
    assert not (tmp_path / "here" / "searches").exists()


def test_a_bucket_that_is_not_there_is_one_sentence(s3: S3) -> None:
    with pytest.raises(StorageError, match=r"cannot be used .*bucket"):
        check_folder(s3.uri("not-there", user="testing:testing@"), "wave")
