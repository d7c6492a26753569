"""Where gpu.py and gpu_launches.py write, for how long they run, and how a file is replaced. Standard library alone."""

from __future__ import annotations

import argparse
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def parser(doc: str | None, seconds: float) -> argparse.ArgumentParser:
    """With the options that both have. doc: the program's docstring."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--seconds", type=float, default=seconds, help="for everything (default: %(default).0f)")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    return made


def write(path: Path, suffix: str, text: str) -> None:
    """The file of a path without its suffix, whole or not at all."""
    begun = path.with_suffix(suffix + ".new")
    begun.write_text(text + "\n")
    begun.replace(path.with_suffix(suffix))
