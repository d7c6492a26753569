"""Without a GPU, Triton's kernels run in its interpreter, which has to be asked for before Triton is imported."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Helpers, whose asserts are to say what they compared, as those of tests do.
HELPERS = (
    "tracked",
    "table_files",
    "split_tables",
    "searcher_bench",
    "trial_data",
    "wave_search",
    "fault_search",
)
pytest.register_assert_rewrite(*HELPERS)
