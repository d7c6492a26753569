"""Checks that the head can write where MLflow's artifacts are to lie, before a search runs for hours and cannot."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    place = sys.argv[1]
    if not place.startswith("s3://"):
        Path(place).mkdir(parents=True, exist_ok=True)
        return 0
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    key = f"{prefix.rstrip('/')}/.writable".lstrip("/")
    try:
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b"")
    except (BotoCoreError, ClientError) as error:
        print(
            f"The head cannot write to {place} ({error}); name the bucket of clusters/aws_account.yaml, or leave the "
            "argument of head.sh out to keep artifacts on the head's disk.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
