"""Which samples may not be taken for independent: what is drawn together when samples are drawn anew.

n samples, S series, T moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlstm_tune.report.predictions import Facts, Judged, key_values
from xlstm_tune.report.resampling import ENOUGH

Index = NDArray[np.int64]
_ROUNDS = 200


@dataclass(frozen=True)
class Clusters:
    """Sequences that share something."""

    name: str
    """What: a key column, or `time`; `sequence` where each stands for itself."""
    codes: Index
    """[n], numbers from 0 without gaps."""

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return int(self.codes.max()) + 1


def moments(judged: Judged) -> Index:
    """[n]: the place of each window on one line of time that all series share, from 0 without gaps.

    Labels are text as the user wrote it, so only their order within a series is relied on: a label's place is the
    length of the longest chain of windows before it, through labels that series share. Series that share no label (rows
    that are their own clock; windows that were thinned out of step) lie side by side, window by window.
    """
    if len(set(judged.series)) == 1:
        return np.arange(len(judged.time))
    codes, series = _codes(judged.time), _codes(judged.series)
    order = np.argsort(series, kind="stable")
    cuts = np.flatnonzero(np.diff(series[order])) + 1
    rows = np.split(order, cuts)
    ranks = np.empty(len(codes), dtype=np.int64)
    for own in rows:
        ranks[own] = np.arange(len(own))
    place = np.zeros(codes.max() + 1, dtype=np.int64)
    np.maximum.at(place, codes, ranks)
    for _ in range(_ROUNDS):
        before = place.copy()
        for own in rows:  # a series' windows follow each other: each lies at least one place after the last
            step = np.arange(len(own))
            place[codes[own]] = np.maximum.accumulate(place[codes[own]] - step) + step
        if (place == before).all():
            return _codes(place[codes])
    return ranks  # labels whose order differs from series to series have no common line


def clusterings(judged: Judged, seen: Facts) -> tuple[list[Clusters], list[str]]:
    """The ways in which the sequences of a regression hang together, and the keys of which the part has one value.

    Years of one county are alike, and so are counties of one year: each key column whose values come more than once
    makes clusters. Where one column alone names the sequences, those that end at the same time do, if there are enough
    such times. Without any of these each sequence stands for itself.
    """
    labels = [key_values(label, seen.keys) for label in judged.series]
    width = min(map(len, labels), default=0)
    names = seen.keys if seen.keys and len(seen.keys) == width else [f"key {number + 1}" for number in range(width)]
    n = len(labels)
    found: list[Clusters] = []
    constant: list[str] = []
    for column, name in enumerate(names):
        codes = _codes(tuple(label[column] for label in labels))
        clusters = Clusters(name, codes)
        if clusters.count == 1:
            constant.append(name)
        elif clusters.count < n and not any((codes == other.codes).all() for other in found):
            found.append(clusters)
    if width <= 1:
        ends = Clusters("time", _codes(judged.time))
        if ENOUGH <= ends.count < n:
            found.append(ends)
        constant = []
    return found or [Clusters("sequence", np.arange(n))], constant


def crossed(one: Clusters, other: Clusters) -> Index:
    """[n]: numbers of the pairs of clusters that samples lie in."""
    return _codes(one.codes * other.count + other.codes)


def _codes(labels: tuple[str, ...] | Index) -> Index:
    """Numbers from 0: of text in order of first appearance, of numbers in their own order."""
    if isinstance(labels, np.ndarray):
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return np.asarray(pa.array(labels, pa.string()).dictionary_encode().indices.to_numpy()).astype(np.int64)
