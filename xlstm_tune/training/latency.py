"""How long one forecast takes."""

from __future__ import annotations

import time

import torch

from xlstm_tune.models.forecaster import Shape, build_model
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import autocast_dtype, pick_device

REPEATS = 200
SECONDS = 0.5
"""At most; a slow model is timed fewer times, at least three."""


def forecast_latency(config: TrialConfig, shape: Shape, device: torch.device | str | None = None) -> float:
    """Milliseconds from one sample [1, L, F] to its forecast [1, H, K]: the least of up to `REPEATS`, after two more.

    The least, since others that use the machine only ever add to it, and to two digits, since the third differs
    from one measurement to the next. The weights are fresh ones, on which the time does not depend. device: None = the
    GPU where there is one.
    """
    device = pick_device(device)
    dtype = autocast_dtype(config.training.precision, device)
    with torch.random.fork_rng([]):
        model = build_model(config.model, shape).to(device).eval()
    x = torch.zeros(1, shape.lookback, shape.features, device=device)
    lengths = torch.full((1,), shape.lookback, device=device) if shape.varying else None
    static = torch.zeros(1, shape.statics, device=device) if shape.statics else None

    def once() -> float:
        began = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            model(x, lengths, static).cpu()
        return 1000 * (time.perf_counter() - began)

    for _ in range(2):
        once()
    times: list[float] = []
    while len(times) < 3 or (len(times) < REPEATS and sum(times) < 1000 * SECONDS):
        times.append(once())
    return float(f"{min(times):.2g}")
