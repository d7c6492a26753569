"""Where ETTh1 lies: hourly load and oil temperature of an electricity transformer, two years, seven variates.

Zhou et al., Informer, AAAI 2021; CC BY-ND 4.0. It is not part of this repository.
"""

from __future__ import annotations

from pathlib import Path

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "ETTh1.csv"
TRAIN, VALIDATION, TEST = 8640, 2880, 2880
"""Rows of the parts as the forecasting literature cuts them (12, 4 and 4 months of 30 days)."""
MISSING = (
    "ETTh1.csv is not at {path}; download it from https://github.com/zhouhaoyi/ETDataset (ETT-small) "
    "and name it with --etth1."
)
