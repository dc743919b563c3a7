"""The text of a compiled program as data: its computations, their operations, and how often each runs.

XLA prints a loop's body once. `executed` walks the program as it runs and says how often; for that it reads the
trip count where the text states it, and runs the loop's counter where it does not (TPUs). How often each branch of a
conditional runs, only who calls can know.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_WHOLE_NUMBER = re.compile(r"[su]\d+\[\]")
_MOST_TRIPS = 1_000_000
NO_SHARES: Mapping[str, Sequence[float]] = MappingProxyType({})  # of branches that run alike


class Operation(NamedTuple):
    """One line of the text: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    text: str  # everything behind the opcode
    is_root: bool


class Computation(NamedTuple):
    """A computation: the entry, a loop's body, a fusion."""

    name: str
    operations: dict[str, Operation]

    @property
    def root(self) -> Operation:
        return next(op for op in self.operations.values() if op.is_root)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program by name, and the name of its entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", Computation("", {})
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations[head[2]] = Computation(head[2], {})
            entry = head[2] if head[1] else entry
        elif op := _OPERATION.match(line):
            rest = op[5]
            operands = tuple(re.findall(r"%([\w.\-]+)", rest[: closing(rest)]))
            current.operations[op[2]] = Operation(op[2], op[3], op[4], operands, rest, bool(op[1]))
    return computations, entry


def closing(text: str) -> int:
    """Where the parenthesis that was opened before `text` closes."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return len(text)


def executed(
    computations: dict[str, Computation],
    entry: str,
    trip_counts: Mapping[str, int],
    branch_shares: Mapping[str, Sequence[float]] = NO_SHARES,
) -> Iterator[tuple[float | None, Computation, Operation, bool]]:
    """(times, computation, operation, inside a fusion) of all that runs.

    Args:
        trip_counts: how often loops go round whose data decide it, by a word in the `op_name` of the loop. Loops that
            neither this nor the text tells have `times` None inside.
        branch_shares: the share of the runs of each branch, by the end of the conditional's name in the source program:
            `times` is a mean then. Of other conditionals every branch counts.
    """

    def visit(
        name: str, times: float | None, known: dict[int, int], in_fusion: bool
    ) -> Iterator[tuple[float | None, Computation, Operation, bool]]:
        here = computations[name]
        for op in here.operations.values():
            yield times, here, op, in_fusion
            if op.opcode == "while":
                body = computations[attribute(op.text, r"body=%([\w.\-]+)") or ""]
                trips, fixed = _trips(op, here, known, body, computations)
                if trips is None:
                    source = attribute(op.text, r'op_name="([^"]*)"') or ""
                    trips = next((n for word, n in trip_counts.items() if word in source), None)
                yield from visit(body.name, None if times is None or trips is None else times * trips, fixed, in_fusion)
            elif op.opcode in ("call", "call-start", "fusion", "conditional", "async-start"):
                for called in re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", op.text):
                    yield from visit(called, times, {}, in_fusion or op.opcode == "fusion")
                branches = _branches(op)
                inside = [computations[called] for called in branches]
                shares = next((shares for end, shares in branch_shares.items() if _is_of(op, inside, end)), None)
                for number, called in enumerate(branches):
                    part = times if shares is None or times is None else times * shares[number]
                    yield from visit(called, part, {}, in_fusion)

    yield from visit(entry, 1, {}, False)


def _branches(op: Operation) -> list[str]:
    """The computations of a conditional in the order of their numbers; false is 0."""
    if branches := attribute(op.text, r"branch_computations=\{([^}]*)\}"):
        return re.findall(r"%([\w.\-]+)", branches)
    named = [attribute(op.text, rf"{truth}_computation=%([\w.\-]+)") for truth in ("false", "true")]
    return [name for name in named if name]


def _is_of(op: Operation, branches: Sequence[Computation], end: str) -> bool:
    """Is it the conditional whose name ends so? Where the compiler wrote it anew, only its branches still say."""
    if (attribute(op.text, r'op_name="([^"]*)"') or "").endswith(end):
        return True
    names = [f"{end}/branch_{number}_fun/" for number in range(len(branches))]
    return bool(branches) and all(
        any(name in inner.text for inner in branch.operations.values())
        for name, branch in zip(names, branches, strict=True)
    )


def _trips(
    loop: Operation, here: Computation, known: dict[int, int], body: Computation, computations: dict[str, Computation]
) -> tuple[int | None, dict[int, int]]:
    """(trip count of a loop or None, the whole numbers of its state that no round changes).

    CPUs' and GPUs' text says `known_trip_count`; TPUs' does not, so the counter is run.
    """
    start = here.operations[loop.operands[0]]
    state: dict[int, int] = {}
    if start.opcode == "tuple":
        values = ((i, _value(name, here, known, computations)) for i, name in enumerate(start.operands))
        state = {i: v for i, v in values if v is not None}
    ends = body.root.operands if body.root.opcode == "tuple" else ()

    def step(state: dict[int, int]) -> dict[int, int]:
        values = ((i, _value(ends[i], body, state, computations)) for i in state if i < len(ends))
        return {i: v for i, v in values if v is not None}

    after = step(state)
    fixed = {i: v for i, v in state.items() if after.get(i) == v}
    if stated := attribute(loop.text, r'known_trip_count"?:\{"?n"?:"?(\d+)'):
        return int(stated), fixed
    condition = computations[attribute(loop.text, r"condition=%([\w.\-]+)") or ""]
    trips = 0
    while trips < _MOST_TRIPS:
        goes_on = _value(condition.root.name, condition, state, computations)
        if goes_on is None:
            return None, fixed
        if not goes_on:
            return trips, fixed
        trips, state = trips + 1, step(state)
    return None, fixed


def _value(name: str, here: Computation, state: dict[int, int], computations: dict[str, Computation]) -> int | None:
    """A whole number or truth value, where constants and the loop's known state determine it."""
    op = here.operations[name]
    if not (_WHOLE_NUMBER.match(op.type) or op.type.startswith("pred[]")):
        return None
    if op.opcode == "constant":
        literal = op.text[: closing(op.text)]
        return int(literal) if literal.lstrip("-").isdigit() else {"true": 1, "false": 0}.get(literal)
    if op.opcode == "get-tuple-element":
        source = here.operations[op.operands[0]]
        index = int(attribute(op.text, r"index=(\d+)") or 0)
        if source.opcode == "parameter":
            return state.get(index)
        return _value(source.operands[index], here, state, computations) if source.opcode == "tuple" else None
    if op.opcode == "parameter":  # of a fusion: its arguments are numbered like a loop's state
        return state.get(int(op.text[: closing(op.text)]))
    values = [_value(o, here, state, computations) for o in op.operands]
    if op.opcode in ("fusion", "call"):
        inner = computations[attribute(op.text, r"(?:calls|to_apply)=%([\w.\-]+)") or ""]
        return _value(inner.root.name, inner, {i: v for i, v in enumerate(values) if v is not None}, computations)
    if not values or any(v is None for v in values):
        return None
    first, last = values[0], values[-1]
    assert first is not None
    assert last is not None
    match op.opcode:
        case "copy" | "bitcast" | "convert" | "reshape":
            return first
        case "add":
            return first + last
        case "subtract":
            return first - last
        case "multiply":
            return first * last
        case "and" if op.type.startswith("pred"):
            return int(first and last)
        case "compare":
            direction = attribute(op.text, r"direction=(\w+)")
            return {"LT": first < last, "LE": first <= last, "GT": first > last, "GE": first >= last,
                    "EQ": first == last, "NE": first != last}.get(direction or "")  # fmt: skip
    return None


def attribute(text: str, pattern: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None
