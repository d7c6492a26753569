"""Vectors of 16 float32 lanes for Numba kernels: a type, its arithmetic, and the functions that gates are made of.

Numba's loops over arrays are vectorised only where LLVM can prove that no two arrays overlap, which it cannot for the
ten arrays of a recurrent cell. A value of this type is one LLVM vector, so nothing has to be proved: a processor with
AVX-512 holds it in one register, others in two or four. Lanes are samples: each does the same work on its own numbers.

`+ - * /` work between vectors, and between a vector and a float; a product and a sum may be fused. Comparisons give a
mask for `select`. Nothing here hides a NaN: every function returns NaN for it.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16
CONTRACT = {"contract"}
"""A product and a sum become one instruction; nothing else about rounding, NaN or infinity is given up."""


def _wide_registers() -> bool:
    """Whether Numba compiles for AVX-512, which holds a vector in one register and has 32 of them.

    Others need two (AVX2, which has 16) or four (NEON, which has 32).
    """
    features = config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()
    return "+avx512f" in features.split(",")


WIDE = _wide_registers()

FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)


class _Lanes(types.Type):  # type: ignore[misc]
    """Numba's name for LANES numbers in one vector."""


vector = _Lanes(name=f"float32x{LANES}")
mask = _Lanes(name=f"boolx{LANES}")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: _Lanes):
        super().__init__(manager, kind, FLOATS if kind == vector else _BITS)


def spread_value(builder: Any, scalar: Any) -> Any:
    """A vector with the scalar in every lane."""
    first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(FLOATS, ir.Undefined), lanes)


def _widen(context: Any, builder: Any, value: Any, kind: Any) -> Any:
    """Operands of an operator as vectors."""
    if kind == vector:
        return value
    return spread_value(builder, context.cast(builder, value, kind, types.float32))


def _operator(symbol: Any, instruction: str, result: _Lanes, *extra: str) -> None:
    """Teach Numba `symbol` for vector · vector, vector · number and number · vector."""

    @type_callable(symbol)
    def typer(context: Any) -> Any:
        def of(left: Any, right: Any) -> Any:
            kinds = {left, right}
            if vector in kinds and all(kind == vector or isinstance(kind, types.Number) for kind in kinds):
                return result
            return None

        return of

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = (
            _widen(context, builder, value, kind) for value, kind in zip(arguments, signature.args, strict=True)
        )
        flags = () if result == mask else tuple(CONTRACT)
        return getattr(builder, instruction)(*extra, left, right, flags=flags)

    for left, right in ((vector, vector), (vector, types.Number), (types.Number, vector)):
        lower_builtin(symbol, left, right)(lower)


_operator(operator.add, "fadd", vector)
_operator(operator.sub, "fsub", vector)
_operator(operator.mul, "fmul", vector)
_operator(operator.truediv, "fdiv", vector)
_operator(operator.lt, "fcmp_ordered", mask, "<")
_operator(operator.gt, "fcmp_ordered", mask, ">")
_operator(operator.eq, "fcmp_ordered", mask, "==")


def pointer(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Address of element `offset` of a flat array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [offset])


@intrinsic
def load(typing_context: Any, array: Any, offset: Any) -> Any:
    """LANES neighbours of a flat float32 array, from `offset` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = pointer(context, builder, signature.args[0], *arguments)
        return builder.load(builder.bitcast(address, FLOATS.as_pointer()), align=4)

    return vector(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write the lanes to neighbours of a flat float32 array, from `offset` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = pointer(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], builder.bitcast(address, FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """A vector with the number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return spread_value(builder, arguments[0])

    return vector(types.float32), generate


@intrinsic
def spread(typing_context: Any, array: Any, offset: Any) -> Any:
    """A vector with element `offset` of a flat float32 array in every lane; unlike an index, not checked for a sign."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return spread_value(builder, builder.load(pointer(context, builder, signature.args[0], *arguments)))

    return vector(array, types.intp), generate


@intrinsic
def select(typing_context: Any, where: Any, chosen: Any, other: Any) -> Any:
    """Per lane `chosen` where the mask is set, else `other`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return vector(mask, vector, vector), generate


@intrinsic
def with_sign(typing_context: Any, value: Any, sign: Any) -> Any:
    """Each lane of `value` with the sign of that of `sign`; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(FLOATS, [FLOATS, FLOATS])
        copy = cgutils.get_or_insert_function(builder.module, kind, f"llvm.copysign.v{LANES}f32")
        return builder.call(copy, arguments)

    return vector(vector, vector), generate


@intrinsic
def prefetch(typing_context: Any, array: Any, offset: Any) -> Any:
    """Ask for the cache line of element `offset` of a flat array ahead of its use; any offset is harmless."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bytes_ = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [bytes_] + [ir.IntType(32)] * 3)
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.bitcast(pointer(context, builder, signature.args[0], *arguments), bytes_)
        read, second_level, data = (ir.Constant(ir.IntType(32), number) for number in (0, 2, 1))
        builder.call(fetch, [address, read, second_level, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def sum_lanes(typing_context: Any, value: Any) -> Any:
    """The sum of the lanes, a float, in an order that suits the processor."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), FLOATS])
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        start = ir.Constant(ir.FloatType(), -0.0)
        return builder.call(reduce, [start, arguments[0]], fastmath=("reassoc",))

    return types.float32(vector), generate


@intrinsic
def _shift_exponent(typing_context: Any, value: Any, shifted: Any) -> Any:
    """value · 2^n, where shifted is n + 1.5 · 2²³, so that n stands in its lowest bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, shifted = arguments
        power = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
        scale = builder.add(power, ir.Constant(_INTS, [127 << 23] * LANES))
        return builder.fmul(value, builder.bitcast(scale, FLOATS))

    return vector(vector, vector), generate


@intrinsic
def transpose(
    typing_context: Any, source: Any, from_offset: Any, from_stride: Any, target: Any, to_offset: Any, to_stride: Any
) -> Any:
    """Copy a square of LANES × LANES numbers between flat arrays, transposed: rows lie a stride apart in either."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def rows(number: int) -> list[Any]:
            array, offset, stride = arguments[3 * number : 3 * number + 3]
            places = [builder.add(offset, builder.mul(stride, ir.Constant(stride.type, row))) for row in range(LANES)]
            kind = signature.args[3 * number]
            return [
                builder.bitcast(pointer(context, builder, kind, array, place), FLOATS.as_pointer()) for place in places
            ]

        square = [builder.load(address, align=4) for address in rows(0)]
        step = 1
        while step < LANES:
            # Each pair of rows a step apart swaps the lanes that lie a step off the diagonal of its 2 × 2 blocks.
            upper = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
            lower = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
            for row in range(LANES):
                if not row & step:
                    pair = square[row], square[row | step]
                    square[row], square[row | step] = (
                        builder.shuffle_vector(*pair, ir.Constant(_INTS, lanes)) for lanes in (upper, lower)
                    )
            step *= 2
        for value, address in zip(square, rows(1), strict=True):
            builder.store(value, address, align=4)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), generate


@intrinsic
def turn(typing_context: Any, value: Any) -> Any:
    """Each lane from the one after it in its group of four, the first following the last."""
    lanes = [lane - lane % 4 + (lane + 1) % 4 for lane in range(LANES)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.shuffle_vector(arguments[0], ir.Constant(FLOATS, ir.Undefined), ir.Constant(_INTS, lanes))

    return vector(value), generate


f32 = np.float32
_LOG2_E = f32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = f32(0.693145751953125), f32(1.42860682030941723212e-6)
_SHIFT = f32(1.5 * 2**23)
_LOWEST, _HIGHEST = f32(-87.0), f32(88.0)


@njit(forceinline=True, fastmath=CONTRACT)
def _series(x):
    """(e^r - 1, n + 1.5 · 2²³) for x = n ln 2 + r with |r| ≤ ln 2 / 2; the polynomial is right to 1e-8."""
    shifted = x * _LOG2_E + _SHIFT
    n = shifted - _SHIFT
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    series = r * f32(0.0013901297272453444) + f32(0.008363170211356102)
    series = series * r + f32(0.04166685372154061)
    series = series * r + f32(0.16666577141198963)
    series = series * r + f32(0.49999999551515106)
    return (series * r) * r + r, shifted


@njit(forceinline=True, fastmath=CONTRACT)
def _exp_of_negative(x):
    """e^-|x|, for |x| > 87 that of -87."""
    size = with_sign(x, splat(f32(-1)))
    series, shifted = _series(select(size < _LOWEST, splat(_LOWEST), size))
    return _shift_exponent(series + f32(1), shifted)


@njit(forceinline=True, fastmath=CONTRACT)
def exp(x):
    """e^x for x up to 88; 0 below -87."""
    tiny = x < _LOWEST
    series, shifted = _series(select(tiny, splat(_LOWEST), x))
    return select(tiny, splat(f32(0)), _shift_exponent(series + f32(1), shifted))


@njit(forceinline=True, fastmath=CONTRACT)
def sigmoid(x):
    """1 / (1 + e^-x)."""
    low = select(x < f32(0) - _HIGHEST, splat(f32(0) - _HIGHEST), x)
    series, shifted = _series(f32(0) - select(low > f32(0) - _LOWEST, splat(f32(0) - _LOWEST), low))
    return f32(1) / (_shift_exponent(series + f32(1), shifted) + f32(1))


@njit(forceinline=True, fastmath=CONTRACT)
def sigmoid_and_slope(x):
    """(sigmoid(x), sigmoid(-x)), neither by subtraction."""
    small = _exp_of_negative(x)
    share = f32(1) / (small + f32(1))
    rest = small * share
    positive = x > f32(0)
    return select(positive, share, rest), select(positive, rest, share)


@njit(forceinline=True, fastmath=CONTRACT)
def log_sigmoid_and_slope(x):
    """(log sigmoid(x), its derivative sigmoid(-x)); log(1 + u) by a polynomial right to 3e-8, u in [0, 1]."""
    u = _exp_of_negative(x)
    series = u * f32(0.005232691442557793) + f32(-0.02950522746472373)
    series = series * u + f32(0.07822593344431628)
    series = series * u + f32(-0.13663244229645238)
    series = series * u + f32(0.19106006023781655)
    series = series * u + f32(-0.2484298202492812)
    series = series * u + f32(0.3331909678373195)
    series = series * u + f32(-0.49999493139326134)
    series = series * u + f32(0.9999999698794676)
    share = f32(1) / (u + f32(1))
    positive = x > f32(0)
    return select(positive, splat(f32(0)), x) - series * u, select(positive, u * share, share)


@njit(forceinline=True, fastmath=CONTRACT)
def tanh(x):
    """tanh x = -u / (2 + u) with u = e^-2|x| - 1, summed without cancellation; the sign is x's."""
    double = with_sign(x + x, splat(f32(-1)))
    series, shifted = _series(select(double < _LOWEST, splat(_LOWEST), double))
    power = _shift_exponent(splat(f32(1)), shifted)
    u = series * power + (power - f32(1))
    return with_sign(u / (u + f32(2)), x)
