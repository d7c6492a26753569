"""Every Python process that has this folder on its path reads this: an emulated GPU (emulated_gpu.py) with torch."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _WithGPU(importlib.abc.Loader):
    """Loads torch between the device's library and what torch.cuda says of it."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        found: ModuleType | None = self._torch.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        import emulated_gpu

        library = emulated_gpu.load()
        self._torch.exec_module(module)
        emulated_gpu.install(library)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        assert spec is not None and spec.loader is not None
        spec.loader = _WithGPU(spec.loader)
        return spec


if os.environ.get("EMULATED_GPU") == "1":
    sys.meta_path.insert(0, _Finder())
