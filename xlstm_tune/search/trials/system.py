"""What a trial's process takes of its machine, epoch by epoch: MLflow shows it as the run's system metrics."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import torch

_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20 if hasattr(os, "sysconf") else 0.0


class SystemMetrics:
    """Reads the figures of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """By MLflow's kind of names: processor time in per cent of one processor since the last reading, resident
        memory, and of a GPU the memory that all its processes hold and how busy it is, where that is told."""
        wall, cpu = time.monotonic(), time.process_time()
        found = {"system/process_cpu_percentage": 100 * (cpu - self._cpu) / max(wall - self._wall, 1e-9)}
        self._wall, self._cpu = wall, cpu
        with suppress(OSError, ValueError, IndexError):  # only Linux has the file
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found["system/process_memory_megabytes"] = pages * _PAGE_MIB
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            found["system/gpu_memory_usage_megabytes"] = (total - free) / 2**20
            with suppress(ImportError):  # it needs NVIDIA's library for Python
                from pynvml import NVMLError

                with suppress(NVMLError, RuntimeError):  # a part of a GPU tells no utilisation
                    found["system/gpu_utilization_percentage"] = float(torch.cuda.utilization())
        return found
