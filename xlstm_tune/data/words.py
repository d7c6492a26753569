"""Counts and lists as sentences have them."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def count_were(number: int, noun: str) -> str:
    """`1 window was`, `2 windows were`."""
    return f"{count(number, noun)} {'was' if number == 1 else 'were'}"


def listing(parts: Sequence[str], noun: str, shown: int = 5) -> str:
    """The first few of a list and how many more there are."""
    more = len(parts) - shown
    return ", ".join(parts[:shown]) + (f" and {count(more, f'more {noun}')}" if more > 0 else "")
