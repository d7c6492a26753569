"""Matrix products for Numba kernels whose sums stay in registers: as many rows and vectors at a time as there are
registers for, since sums that the compiler has to keep in memory make a product three times as slow.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from xlstm_tune.kernels.simd import CONTRACT, FLOATS, LANES, WIDE, pointer, spread_value

_ROWS, _VECTORS = (16, 4) if WIDE else (6, 1)
"""Of a product, summed in registers at a time. With AVX2 6 rows take 12 registers, their factors 3 of the other 4."""


def _product(rows: int, vectors: int, onto: bool = False) -> Any:
    """An intrinsic: `rows` rows of x times a matrix, `vectors` vectors wide, summed in registers, to rows of out.

    x, weight and out are flat arrays whose rows lie a stride apart from an offset on, the numbers of a row of x `step`
    apart; the rows of weight are `count`. With `onto` the product is added to what stands in out.
    """
    tiles = [
        (range(first, min(first + _ROWS, rows)), range(column, min(column + _VECTORS, vectors)))
        for column in range(0, vectors, _VECTORS)
        for first in range(0, rows, _ROWS)
    ]

    @intrinsic
    def product(
        typing_context: Any, x: Any, at: Any, row: Any, step: Any, count: Any, weight: Any, at_weight: Any,
        row_weight: Any, out: Any, at_out: Any, row_out: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, _, row, step, count, _, _, row_weight, _, _, row_out = arguments
            kinds = signature.args
            from_x, from_weight, to_out = (
                pointer(context, builder, kinds[place], *arguments[place : place + 2]) for place in (0, 5, 8)
            )
            number = row.type

            def vector_at(address: Any, vector: int) -> Any:
                place = builder.gep(address, [ir.Constant(number, vector * LANES)])
                return builder.bitcast(place, FLOATS.as_pointer())

            def tile(some_rows: range, some_vectors: range) -> None:
                before, loop = builder.block, builder.append_basic_block("product")
                builder.branch(loop)
                builder.position_at_end(loop)
                source = builder.phi(number)
                source.add_incoming(ir.Constant(number, 0), before)
                sums = [builder.phi(FLOATS) for _ in range(len(some_rows) * len(some_vectors))]
                at_source = builder.mul(source, step)
                here = builder.gep(from_weight, [builder.mul(source, row_weight)])
                weights = [builder.load(vector_at(here, vector), align=4) for vector in some_vectors]
                found: list[Any] = []
                for at_row in some_rows:
                    place = builder.add(builder.mul(row, ir.Constant(number, at_row)), at_source)
                    seen = spread_value(builder, builder.load(builder.gep(from_x, [place])))
                    for one in weights:
                        added = builder.fmul(seen, one, flags=tuple(CONTRACT))
                        found.append(builder.fadd(sums[len(found)], added, flags=tuple(CONTRACT)))
                following = builder.add(source, ir.Constant(number, 1))
                source.add_incoming(following, loop)
                for old, new in zip(sums, found, strict=True):
                    old.add_incoming(ir.Constant(FLOATS, [0.0] * LANES), before)
                    old.add_incoming(new, loop)
                done = builder.append_basic_block("summed")
                builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
                builder.position_at_end(done)
                for (at_row, vector), value in zip(itertools.product(some_rows, some_vectors), found, strict=True):
                    address = builder.gep(to_out, [builder.mul(row_out, ir.Constant(number, at_row))])
                    target = vector_at(address, vector)
                    if onto:
                        value = builder.fadd(builder.load(target, align=4), value)
                    builder.store(value, target, align=4)

            for some in tiles:
                tile(*some)
            return context.get_dummy_value()

        size = types.intp
        return types.void(x, size, size, size, size, weight, size, size, out, size, size), generate

    return product


product_6_4, product_12_2, product_12_1 = _product(6, 4), _product(12, 2), _product(12, 1)
add_product_4_4, add_product_8_2, add_product_16_1 = _product(4, 4, True), _product(8, 2, True), _product(16, 1, True)
add_product_4_1, add_product_1_1 = _product(4, 1, True), _product(1, 1, True)
