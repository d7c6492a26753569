"""Whether addresses in a Triton kernel can leave 32 bits where they are made in 32: by intervals, in Triton's own IR.

A test with more than 2^31 numbers needs a GPU's memory; what a kernel multiplies to find them stands in the IR.
"""

import re

LARGEST = {"batch": 2**20, "steps": 2**24, "count": 2**24, "t": 2**24, "chunks": 2**20, "heads": 2**15, "tiles": 2**10}
"""The largest number that an argument is held to be: all at once, far more than fits on a device. A chunk has 16 steps
at least, and heads count those of all members."""
PROGRAMS = {"x": 2**31 - 1, "y": 65535, "z": 65535}
"""How many a grid can have, along each axis."""
INT32 = (-(2**31), 2**31 - 1)

ASSIGNED = re.compile(r"(%\w+)(?::\d+)? = ([a-z]\w*\.\w+) ?(.*)")
WHOLE = re.compile(r"(?:tensor<[\dx]+x)?(i\d+)>?$")
NAME = re.compile(r"%\w+")
LOOP = re.compile(r"scf\.for (%\w+) = (%\w+) to (%\w+) step")
SAME = {"splat", "expand_dims", "broadcast", "reshape", "trans", "extsi", "extui", "trunci"}
BY_HAND = {"addi": int.__add__, "subi": int.__sub__, "muli": int.__mul__}


def overflows(ttir, sizes):
    """The loads and stores of a kernel whose pointers or masks come of a number that may have left 32 bits; sizes: of
    other arguments, or of an axis of the grid, the largest number that they are."""
    known = {f"%{name}": (0, largest) for name, largest in (LARGEST | sizes).items()}
    programs = PROGRAMS | sizes
    broken, found = set(), []
    for line in (one.split(" loc(")[0].strip() for one in ttir.splitlines()):
        if loop := LOOP.search(line):
            counter, first, end = loop.groups()
            known[counter] = known.get(first, INT32)[0], known.get(end, INT32)[1] - 1
        assigned = ASSIGNED.match(line)
        name, op, rest = assigned.groups() if assigned else ("", *line.partition(" ")[::2])
        operands = NAME.findall(rest)
        if op in ("tt.load", "tt.store"):
            addresses = operands[:2] if op == "tt.load" else operands[:1] + operands[2:]
            found += [line] if broken & set(addresses) else []
            continue
        if broken & set(operands):
            broken.add(name)
        whole = WHOLE.search(line)
        if not assigned or whole is None or whole.group(1) == "i1":
            continue
        if op == "tt.get_program_id":
            known[name] = 0, programs[rest[0]] - 1
            continue
        known[name] = bounds = interval(op, rest, [known.get(one, INT32) for one in operands])
        if whole.group(1) == "i32" and not INT32[0] <= bounds[0] <= bounds[1] <= INT32[1]:
            known[name] = INT32
            if op != "arith.trunci" and known.keys() >= set(operands):
                broken.add(name)
    return found


def interval(op, rest, of):
    """(least, largest) of what an operation gives for operands within `of`; all of 32 bits where nothing is known."""
    kind = op.split(".")[1]
    if op == "arith.constant":
        number = int(re.match(r"(?:dense<)?(-?\d+)", rest).group(1))
        return number, number
    if op == "tt.make_range":
        return 0, int(re.search(r"end = (\d+)", rest).group(1)) - 1
    if kind in SAME:
        return of[0]
    if kind in BY_HAND:
        corners = [BY_HAND[kind](a, b) for a in of[0] for b in of[1]]
        return min(corners), max(corners)
    if kind == "select":
        return min(of[1][0], of[2][0]), max(of[1][1], of[2][1])
    if kind in ("minsi", "maxsi"):
        choose = min if kind == "minsi" else max
        return choose(of[0][0], of[1][0]), choose(of[0][1], of[1][1])
    if kind in ("divsi", "remsi") and min(of[0][0], of[1][0]) >= 0:
        return 0, of[0][1] if kind == "divsi" else min(of[0][1], of[1][1])
    return INT32
