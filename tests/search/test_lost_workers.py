"""What Tune hears of lost workers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import RayActorError, RayError
from ray.tune.experiment import Trial

from xlstm_tune.search.scheduling.losses import every_loss_told


@pytest.fixture
def lost() -> Iterator[ray.ObjectRef]:
    """What a worker was asked that was ended before it answered, by an error that is not that of a dead actor."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        answer = ray.remote(lambda: time.sleep(600)).remote()
        ray.cancel(answer, force=True)
        with pytest.raises(RayError) as told:
            ray.get(answer, timeout=60)
        assert not isinstance(told.value, (RayActorError, ray.exceptions.GetTimeoutError))
        yield answer
    finally:
        ray.shutdown()


def test_every_loss_told_of_a_worker_that_has_said_nothing_yet(lost: ray.ObjectRef) -> None:
    trial = Trial("never made", stub=True)
    trial._default_result_or_future = lost
    with pytest.raises(RayError):
        _ = trial.last_result
    with every_loss_told():
        assert trial.last_result == {"trial_id": trial.trial_id}
    trial._default_result_or_future = lost
    with pytest.raises(RayError):
        _ = trial.last_result
