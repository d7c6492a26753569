"""What the user sees while a search runs: one live panel on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from xlstm_tune.report.leaderboard import number

PLAIN_SECONDS = 10.0
"""Between two plain lines."""
BAR = 32
"""Columns of the bar where there is room; below SHORTEST_BAR it is left out."""
SHORTEST_BAR = 8


@dataclass
class Progress:
    """The state of a search as a person wants it. Updated by the driver's callback, drawn by a thread."""

    total: int | None
    objective: str
    baseline: tuple[str, float] | None
    """Name and validation figure of the best baseline."""
    note: str = "starting Ray and the first workers"
    waits: str = ""
    """What the first trials wait for."""
    completed: int = 0
    pruned: int = 0
    failed: int = 0
    duplicate: int = 0
    refused: int = 0
    """Never begun: too large, or no model."""
    running: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    """Trial number → (name, epoch, epochs)."""
    best: tuple[float, int, str] | None = None
    """Objective, trial number, name."""
    best_error: float | None = None
    """Standard error of the best objective, where it is a mean over several seeds."""
    recalled: int = 0
    """Trials ended by an earlier part of the search, which say nothing about the pace."""
    began: float = field(default_factory=time.monotonic)
    first_trial: float | None = None
    compiling: float = 0.0
    """Seconds that a trial waited for its kernels at most: once, so that they say nothing about the pace."""

    @property
    def ended(self) -> int:
        """Trials that were trained to one of their ends; duplicates cost nothing and do not count."""
        return self.completed + self.pruned + self.failed

    def started(self, number: int, name: str, epochs: int) -> None:
        """A trial began."""
        if self.first_trial is None:
            self.first_trial = time.monotonic()
            self.note = self.waits
        self.running[number] = (name, 0, epochs)

    def epoch(self, number: int, epoch: int, objective: float, error: float | None = None) -> None:
        """A trial finished an epoch with this best-so-far objective; error: its standard error."""
        name, _, epochs = self.running.get(number, (f"trial {number}", 0, epoch))
        self.running[number] = (name, epoch, epochs)
        self.scored(number, name, objective, error)

    def compiled(self, seconds: float) -> None:
        """A trial has waited so long for its kernels."""
        self.compiling = max(self.compiling, seconds)

    def scored(self, number: int, name: str, objective: float, error: float | None = None) -> None:
        """A trial has reached this objective; NaN never counts."""
        if not math.isnan(objective) and (self.best is None or objective < self.best[0]):
            self.best, self.best_error = (objective, number, name), error

    def ended_trial(self, number: int, status: str | None) -> None:
        """A trial ended as completed, pruned, failed, duplicate or refused; None = cut short, and a resume goes on."""
        self.running.pop(number, None)
        if status is not None:
            setattr(self, status, getattr(self, status) + 1)

    def recall(self, statuses: Iterable[str]) -> None:
        """How the trials of an earlier part of the search ended."""
        counted = Counter(statuses)
        for status in ("completed", "pruned", "failed", "duplicate", "refused"):
            setattr(self, status, counted[status])
        self.recalled = self.ended

    def seconds_left(self) -> float | None:
        """By the pace of the trials ended so far; None before the first has ended."""
        here = self.ended - self.recalled
        if not here or self.first_trial is None or self.total is None:
            return None
        # Running trials count by the share of their epochs that is done.
        share = sum(epoch / max(epochs, 1) for _, epoch, epochs in list(self.running.values()))
        pace = max(0.0, time.monotonic() - self.first_trial - self.compiling) / (here + share)
        return max(0.0, pace * (self.total - self.ended - share))

    @property
    def over(self) -> bool:
        """Every trial has ended."""
        return self.total is not None and self.ended >= self.total

    def counts(self) -> str:
        """`7 of 16 trials · 2 running · 3 pruned · 1 failed`."""
        parts = [f"{self.ended} of {self.total} trials" if self.total else f"{self.ended} trials"]
        if not self.over:
            parts.append(f"{len(self.running)} running")
        for name in ("pruned", "failed", "duplicate", "refused"):
            if getattr(self, name):
                parts.append(f"{getattr(self, name)} {name}")
        return " · ".join(parts)

    def verdict(self) -> str:
        """The best so far against the best baseline."""
        if self.best is None:
            return self.note or "no epoch finished yet"
        value, trial, name = self.best
        text = f"best {self.objective} {number(value, self.best_error)} (trial {trial}: {name})"
        if self.baseline:
            name, error = self.baseline
            if not error:  # nothing is a share of it
                return f"{text}, while {name} has 0"
            gain = 100 * (1 - value / error)
            side = f"{gain:.1f}% better than" if gain >= 0 else f"{-gain:.1f}% worse than"
            text += f", {side} {name} ({number(error)})"
        return text

    def times(self) -> str:
        """Elapsed and left."""
        elapsed = f"{clock(time.monotonic() - self.began)} elapsed"
        left = None if self.over else self.seconds_left()
        return elapsed if left is None else f"{elapsed} · about {clock(left)} left"

    def line(self) -> str:
        """One plain line."""
        return f"{self.counts()} · {self.times()} · {self.verdict()}"


class ProgressView:
    """Draws a Progress until closed: `with ProgressView(console, progress): ...`."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._stop = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._panel, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._lines, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._live:
            self._live.stop()
        if self._thread:
            self._thread.join()
        # A terminal would break the line within a word; a file keeps one line.
        self._console.print(self._progress.line(), highlight=False, soft_wrap=not self._console.is_terminal)

    def _lines(self) -> None:
        while not self._stop.wait(PLAIN_SECONDS):
            self._console.print(self._progress.line(), highlight=False, soft_wrap=True)

    def _panel(self) -> RenderableType:
        progress = self._progress
        counts, times = progress.counts(), progress.times()
        room = min(BAR, self._console.width - len(counts) - len(times) - 2)
        head: RenderableType = Text.assemble(counts, (f" · {times}", "dim"))
        if room >= SHORTEST_BAR:
            bar = Table.grid(padding=(0, 1))
            for _ in range(3):
                bar.add_column(no_wrap=True)
            drawn = ProgressBar(total=progress.total or 1, completed=progress.ended, width=room)
            bar.add_row(drawn, Text(counts), Text(times, style="dim"))
            head = bar
        rows = Table.grid(padding=(0, 2))
        for trial, (name, epoch, epochs) in sorted(list(progress.running.items()))[:8]:
            number, done, shown = f"  trial {trial}", f"epoch {epoch}/{epochs}", Text(name)
            shown.truncate(max(8, self._console.width - 28), overflow="ellipsis")  # 28 hold the cells beside it
            rows.add_row(Text(number, style="dim", no_wrap=True), shown, Text(done, style="dim", no_wrap=True))
        return Group(head, Text(progress.verdict()), rows)


def clock(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
