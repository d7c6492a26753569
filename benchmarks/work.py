"""The least work that forward and backward of a model need, to be held against the machine's rates.

Per step of a sequence, in a residual stream of width W with N heads (D = W / N; mLSTM: inner width P, D = P / N), the
feed-forward's width U, an input width I, three kinds of work are counted:

* flops of matrix products: twice the multiply-adds forward, and backward twice that again (one product for the input's
  gradient, one for the weight's).
* functions: exp, log, tanh, sigmoid, GELU, SiLU of an element, forward only, as if backward could use what was kept.
* accesses: elements that are read or written by the stages between the products, each stage fused as far as it can be.
  A stage reads its inputs and writes its outputs and what the backward needs once. What a product itself reads and
  writes is part of the measured rate of products.

    LSTM layer       multiply-adds 4 W (I + W)                          functions 5 W
                     accesses forward 12 W: reads 4 gates and c, writes 4 gates, c, tanh c, h; and 4 + 10 backward
    sLSTM block      multiply-adds 4 W D inputs + 4 W D recurrent + 3 W U    functions 6 W cell + W SiLU + U GELU
                     accesses forward 29 W + 3 U: norm 2, convolution 2, cell 15 (reads 4 gates and h, c, n, m, writes
                     h, c, n, m and 3 for later), head norm 2, norm 2, residuals 3 + 3; gate · up 3 U
                     backward 38 W + 5 U: 3, 4, 19, 3, 3, 3 + 3; 5 U
    mLSTM block      multiply-adds 3 W P + 12 P (q, k, v in blocks of 4) + 4 P N (gates, whose
                     weights and those of q, k and v are one) + cell
                     cell, chunks of C: P (C + 1) within a chunk + 2 P D between chunks (none where C is the sequence),
                     at the C (16, 32, ... or the sequence) that needs fewest
                     functions N (C + 1) / 2 weights of pairs + 2 N gates + 2 P SiLU
                     accesses forward 5 W + 8 P + N (C + 1): norm 2 W, residual 3 W, convolution 2 P, head norm 2 P,
                     skip and gate 4 P, two a pair; backward 6 W + 14 P + 2 N (C + 1)
    norm after the stack    accesses 2 W and 3 W
    embedding, head         multiply-adds I W and H / T · W;  AdamW: 7 accesses a parameter and batch

Our forecaster's head sees the last step alone (pooling `last`), so a `step` or `trained` case needs of its last block
only what reaches that step's output; whatever follows the cell is worth one step in T, which is left out:

    sLSTM block      multiply-adds 8 W D    functions 7 W    accesses 19 W and 26 W
    mLSTM block      multiply-adds W P + 4 P N + 2 P (scores, weighted sum)    functions 3 N + P
                     accesses 5 W + 3 P in all: norm 2 W and 3 W, the inner input P, and backward 2 P

The limit in cache is flops, functions and accesses, each over its rate, one after the other; streamed is the same with
accesses at the rate of memory. A program that keeps more in registers than a fused stage does could pass the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from worker import Case

CHUNKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Work:
    """Of one forward and backward."""

    flops: float
    functions: float
    accesses: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.functions + other.functions, self.accesses + other.accesses)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.functions * times, self.accesses * times)

    def limit(self, rates: dict[str, float], accesses: str = "cached") -> float:
        """Seconds on a machine of these rates (`machine.rates`); accesses: cached or streamed."""
        computing = self.flops / rates["flops"] + self.functions / rates["functions"]
        return computing + self.accesses / rates[accesses]


def work(case: Case, parameters: int) -> Work:
    """Of one step of a case, whose model has so many parameters."""
    whole = case.what == "pass"
    kinds = {"m": _mlstm, "s": _slstm, "l": _lstm}
    pattern = case.model if case.model == "ms" else case.model[0] * case.blocks
    *before, last = (kinds[letter] for letter in pattern)
    token = last(case, whole) + products(case.features * case.width)
    for block in before:
        token += block(case, True)
    if whole and case.model != "lstm":
        token += Work(0, 0, 5 * case.width)
    if not whole:
        token += products(case.width * case.horizon / case.steps)
    optimiser = Work(0, 0, 0 if whole else 7 * parameters)
    return token * (case.batch * case.steps) + optimiser


def products(multiply_adds: float) -> Work:
    """Forward and backward of products with so many multiply-adds forward."""
    return Work(6 * multiply_adds, 0, 0)


def _lstm(case: Case, whole: bool) -> Work:
    """A layer, for a step of a sequence. There is nothing to leave out when only the last output counts."""
    width = case.width
    return products(4 * width * 2 * width) + Work(0, 5 * width, 26 * width)


def _slstm(case: Case, whole: bool) -> Work:
    """A block, for a step of a sequence; whole: every step's output counts, not the last one's alone."""
    width, up = case.width, 64 * math.ceil(1.3 * case.width / 64)
    cell = products(8 * width * width // case.heads)
    if not whole:
        return cell + Work(0, 7 * width, 45 * width)
    return cell + products(3 * width * up) + Work(0, 7 * width + up, 67 * width + 8 * up)


def _mlstm(case: Case, whole: bool) -> Work:
    """As `_slstm`."""
    width, inner, heads = case.width, 64 * math.ceil(2 * case.width / 64), case.heads
    head = inner // heads
    gates = 4 * inner * heads
    if not whole:
        last = width * inner + gates + 2 * inner
        return products(last) + Work(0, 3 * heads + inner, 5 * width + 3 * inner)

    def cell(chunk: int) -> float:
        return inner * (chunk + 1) + (2 * inner * head if chunk < case.steps else 0)

    chunk = min((*(size for size in CHUNKS if size < case.steps), case.steps), key=cell)
    pairs = heads * (chunk + 1) / 2
    return products(3 * width * inner + 12 * inner + gates + cell(chunk)) + Work(
        0, pairs + 2 * heads + 2 * inner, 11 * width + 22 * inner + 6 * pairs
    )
