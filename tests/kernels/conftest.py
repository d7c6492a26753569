"""What the tests of kernels share."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that is not yet written holds NaN, so that reading it shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter multiplies numbers of bfloat16 as a GPU does, summed in float32, not their bits as integers;
    TensorFloat-32 without the 13 bits that the hardware drops. Elsewhere it cuts off where a GPU rounds."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def factor(one: Any, precision: str) -> Any:
        if one.dtype.scalar.name == "bf16":
            return (one.data.astype(np.uint32) << 16).view(np.float32)
        data = np.ascontiguousarray(one.data, dtype=np.float32)
        return (data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) if precision == "TF32" else data

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, most_imprecise: Any) -> Any:
        left, right = (factor(one, str(input_precision).rpartition(".")[2]) for one in (a, b))
        return interpreter.TensorHandle(np.matmul(left, right) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
