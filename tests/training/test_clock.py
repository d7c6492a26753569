"""The clock that leaves out what compiling costs."""

import os
import subprocess
import sys
import time

import pytest
from numba import njit

from xlstm_tune.training.clock import clock, compile_seconds


def test_the_clock_stands_still_while_a_kernel_is_compiled():
    @njit
    def kernel(x):
        return x + 1

    began, own, spent = time.perf_counter(), clock(), compile_seconds()
    assert kernel(1) == 2
    compiled = compile_seconds() - spent
    assert compiled > 0.01
    assert clock() - own == pytest.approx(time.perf_counter() - began - compiled, abs=0.01)
    spent = compile_seconds()
    assert kernel(2) == 3 and compile_seconds() == spent


@pytest.mark.slow  # compiles a model's kernels
def test_a_first_epoch_without_compiled_kernels_takes_as_long_as_later_ones(tmp_path):
    program = """
import time

import torch
from xlstm_tune.kernels import lstm
from xlstm_tune.training.clock import clock, nothing_compiled
print(nothing_compiled())
began, own = time.perf_counter(), clock()
lstm(torch.randn(4, 5, 1, 4, 8, requires_grad=True), torch.randn(1, 4, 8, 8))[0].sum().backward()
print(clock() - own < (time.perf_counter() - began) / 2)
print(nothing_compiled())
"""
    there = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", program], env=there, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "True", "False"]
