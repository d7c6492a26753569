"""`overflows` finds the address that 32 bits cannot hold, and no other."""

import pytest
from addresses import overflows

KERNEL = """
  tt.func public @copy(%x: !tt.ptr<f32> loc("x"), %steps: i32 loc("steps"), %width: i32 loc("width")) attributes {{}} {{
    %row = tt.get_program_id x : i32 loc(#loc1)
    %c3_i32 = arith.constant 3 : i32 loc(#loc1)
    %wide = arith.extsi %width : i32 to i64 loc(#loc1)
    %units = tt.make_range {{end = 64 : i32, start = 0 : i32}} : tensor<64xi32> loc(#loc1)
    %within = tt.splat %width : i32 -> tensor<64xi32> loc(#loc1)
    %mask = arith.cmpi slt, %units, %within : tensor<64xi32> loc(#loc1)
    scf.for %t = %c3_i32 to %steps step %c3_i32  : i32 {{
      %at = {product} loc(#loc1)
      %hash = arith.muli %row, %row : i32 loc(#loc1)
      %start = tt.addptr %x, %at : !tt.ptr<f32>, {kind} loc(#loc1)
      %starts = tt.splat %start : !tt.ptr<f32> -> tensor<64x!tt.ptr<f32>> loc(#loc1)
      %places = tt.addptr %starts, %units : tensor<64x!tt.ptr<f32>>, tensor<64xi32> loc(#loc1)
      %own = tt.load %places, %mask : tensor<64x!tt.ptr<f32>> loc(#loc1)
      tt.store %places, %own, %mask : tensor<64x!tt.ptr<f32>> loc(#loc1)
    }} loc(#loc1)
"""


@pytest.mark.parametrize(
    ("product", "kind", "wrong"),
    [
        ("arith.muli %t, %width : i32", "i32", True),
        ("arith.muli %t, %c3_i32 : i32", "i32", False),
        ("arith.muli %t, %wide : i64", "i64", False),
        ("arith.muli %row, %c3_i32 : i32", "i32", True),
        ("arith.remsi %row, %width : i32", "i32", False),
    ],
)
def test_an_address_that_32_bits_cannot_hold_is_found(product, kind, wrong):
    found = overflows(KERNEL.format(product=product, kind=kind), {"width": 512})
    assert [line.split()[0] for line in found] == (["%own", "tt.store"] if wrong else [])
