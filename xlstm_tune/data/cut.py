"""Where the parts of a split begin and end on a line of steps or in a list of groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xlstm_tune.data.config import SplitConfig
from xlstm_tune.errors import DataError

PARTS = ("train", "validation", "test")
NOUNS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Cut:
    """Positions on a line of `total`: train [0]..[1], validation [1]..[2], test [2]..[3], the rest belongs to none."""

    bounds: tuple[int, int, int, int]
    total: int

    def part_of(self, positions: np.ndarray) -> np.ndarray:
        """0 train, 1 validation, 2 test, -1 none of them, int8 like `positions`."""
        part = np.searchsorted(np.array(self.bounds), positions, side="right").astype(np.int8) - 1
        return np.where(part < len(PARTS), part, -1).astype(np.int8)

    @property
    def left_out(self) -> int:
        return self.total - (self.bounds[3] - self.bounds[0])


_YEARS = range(1900, 2101)
"""What a number of a split may have been meant as."""


def count_of(size: int | float, total: int) -> int:
    """A share of `total` rounded down, but at least 1; or the number itself."""
    # 0.29 × 100 is 28.999…, which still means 29.
    return size if isinstance(size, int) else max(1, int(total * size + 1e-9))


def cut_time(split: SplitConfig, total: int, position: Callable[[str], int], unit: str = "time steps") -> Cut:
    """Cut `total` steps into train, validation and test, in this order.

    `position` turns a text into the first step at or after that moment (ValueError when it is none). Without
    `split.train` training is everything before validation and the test part ends with the data. With a size for it
    the parts are counted from the first step, or back from the part whose beginning is given as a moment.
    Raises DataError when a part would be empty.
    """
    begins: dict[str, int] = {}
    counts: dict[str, int] = {}
    for part in PARTS:
        size = getattr(split, part)
        if isinstance(size, str):
            try:
                begins[part] = position(size)
            except ValueError as error:
                raise DataError(f"data.split.{part}: {error}") from None
        elif size is not None:
            counts[part] = count_of(size, total)
    end = total
    if "train" in counts and not begins:
        end = sum(counts.values())
    test = begins["test"] if "test" in begins else end - counts["test"]
    validation = begins["validation"] if "validation" in begins else test - counts["validation"]
    train = begins.get("train", 0)
    if "train" in counts:
        train = validation - counts["train"]
    cut = Cut((train, validation, test, end), total)
    _check(cut, split, unit)
    return cut


def _check(cut: Cut, split: SplitConfig, unit: str) -> None:
    train, validation, test, end = cut.bounds
    wish = ", ".join(f"{part} {getattr(split, part)}" for part in PARTS if getattr(split, part) is not None)
    year = next((size for part in PARTS if (size := getattr(split, part)) in _YEARS), None)
    hint = f" ({year} counts {unit}; a part that begins with that year is written {year}-01-01)" if year else ""
    if end > cut.total or train < 0:
        raise DataError(
            f"data.split ({wish}) asks for more than the {cut.total} {unit} there are; make the parts smaller{hint}"
        )
    for part, first, last in (("train", train, validation), ("validation", validation, test), ("test", test, end)):
        if first >= last:
            raise DataError(
                f"data.split ({wish}) leaves nothing for the {NOUNS[part]} part of the {cut.total} {unit}; "
                f"change data.split{hint}"
            )


def clamp(cut: Cut, total: int, split: SplitConfig) -> Cut:
    """The same split of a shorter line, where parts may be empty: counted from the end unless `train` is given."""
    sizes = {part: count_of(getattr(split, part), total) for part in PARTS if getattr(split, part) is not None}
    if "train" in sizes:
        validation = sizes["train"]
        test = validation + sizes["validation"]
        raw = [0, validation, test, test + sizes["test"]]
    else:
        test = total - sizes["test"]
        raw = [0, test - sizes["validation"], test, total]
    first, second, third, fourth = (min(max(bound, 0), total) for bound in raw)
    return Cut((first, second, third, fourth), total)


def cut_groups(split: SplitConfig, groups: int, name: str) -> np.ndarray:
    """Part of each of `groups` groups (int8, -1 none), drawn by `split.seed`. `name` says which columns make them.

    Raises DataError when there are too few groups for three parts.
    """
    sizes: dict[str, int] = {}
    for part in PARTS:
        size = getattr(split, part)
        if isinstance(size, str):
            raise DataError(
                f"data.split.{part}: '{size}' is a moment, but groups have no order in time; give a share or a number"
            )
        if size is not None:
            sizes[part] = count_of(size, groups)
    if "train" not in sizes:
        sizes["train"] = groups - sizes["validation"] - sizes["test"]
    if sizes["train"] < 1 or sum(sizes.values()) > groups:
        raise DataError(
            f"data.split needs {max(1, sizes['train'])} training, {sizes['validation']} validation and "
            f"{sizes['test']} test groups, but {name} has {groups} different values; make the parts smaller"
        )
    order = np.random.default_rng(split.seed).permutation(groups)
    part_of = np.full(groups, -1, dtype=np.int8)
    test, validation = sizes["test"], sizes["validation"]
    part_of[order[:test]] = 2
    part_of[order[test : test + validation]] = 1
    part_of[order[test + validation : test + validation + sizes["train"]]] = 0
    return part_of
