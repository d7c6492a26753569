"""Imports point one way (ROOMS below), and heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "xlstm_tune"

# What each room may import of this package, besides those of FREE and the configs, which everyone may.
ROOMS: dict[str, set[str]] = {
    "data": {"data"},
    "kernels": {"kernels"},
    "models": {"models", "kernels"},
    "training": {"training", "models", "data", "kernels"},
    "storage": {"storage"},
    "tracking": {"tracking", "storage"},
    "report": {"report", "results", "result_tables", "storage"},
    "predict": {"predict", "training", "data", "models", "results", "spec", "search_file", "storage"},
    "search": {
        "search",
        "predict",
        "tracking",
        "training",
        "data",
        "models",
        "results",
        "report",
        "storage",
        "spec",
        "search_file",
    },
    "results": {"result_tables", "result_files"},
    "result_files": {"result_tables"},
    "result_tables": set(),
    "spec": set(),
    "search_file": {"spec"},
    "strict": set(),
    "lines": set(),
    "errors": set(),
    "layout": set(),
    "addresses": set(),
    "ranking": set(),
    "output": set(),
    "__init__": set(),
}
FREE = {"errors", "strict", "lines", "layout", "addresses", "ranking", "output", "__init__"}
HEAVY: dict[str, tuple[str, ...]] = {
    "ray": ("search/",),
    "optuna": ("search/", "report/"),
    "mlflow": ("tracking/", "predict/served.py"),
    "triton": ("kernels/",),
    "numba": ("kernels/",),
    "llvmlite": ("kernels/simd.py", "kernels/register_products.py"),
}
LIGHT = ("errors.py", "strict.py", "spec.py", "search_file.py", "search/__main__.py", "search/sampling/space.py")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names that a module imports, relative imports resolved; type-checking-only ones left out."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in nodes:
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    allowed = ROOMS[room] | FREE
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "xlstm_tune" or len(parts) == 1:
            continue
        assert parts[1] in allowed or parts[-1] == "config", f"{path.name} ({room}) imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    for name in imports(path):
        top = name.split(".")[0]
        if top in HEAVY:
            assert relative.startswith(HEAVY[top]), f"{relative} imports {name}"
        if top == "triton":
            assert relative.endswith("_triton.py"), f"{relative} imports {name}"


@pytest.mark.parametrize("relative", [*LIGHT, "data/config.py", "models/config.py", "training/config.py"])
def test_checking_a_search_file_needs_nothing_heavy(relative: str) -> None:
    heavy = {"torch", "ray", "optuna", "mlflow", "pyarrow", "numpy", "scipy"}
    for name in imports(PACKAGE / relative, top_level_only=True):
        assert name.split(".")[0] not in heavy, f"{relative} imports {name}"


def test_modules_fit_in_the_head() -> None:
    long = {str(path.relative_to(PACKAGE)): n for path in modules() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
