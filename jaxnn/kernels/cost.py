"""What each contraction costs, and which is the cheapest: a function of shapes alone."""

import math
from typing import NamedTuple

from jaxnn.kernels.contractions import Contraction
from jaxnn.kernels.output_axes import Layout

FLOPS_PER_BYTE = 20.0
"""Matrix-product flops in the time that one byte of an intermediate takes to write and read.

Measured on CPU (2 cores, AVX-512, float32: 4e11 flop/s against 2e10 byte/s); an H200 has about
the same ratio in float32. Flops alone would choose intermediates too large to be worth it.
"""


class PartShape(NamedTuple):
    """T positions of one kind of factors; see `contractions.Part`."""

    positions: int
    looks_up: bool
    transposed: bool


class GradientShape(NamedTuple):
    """The shape of a parameter's factored gradient: B blocks of C × K, and its parts."""

    blocks: int
    rows: int
    columns: int
    parts: tuple[PartShape, ...]


class Cost(NamedTuple):
    """Floating-point operations, bytes of intermediates, and both as one number in flops."""

    flops: float
    bytes: float

    @property
    def total(self) -> float:
        """Flops plus what the intermediates cost in flops."""
        return self.flops + FLOPS_PER_BYTE * self.bytes


class Choice(NamedTuple):
    """A contraction, its cost, and why it was chosen."""

    how: Contraction
    cost: Cost
    reason: str


def contraction_costs(
    shape: GradientShape,
    n1: int,
    n2: int,
    outputs: Layout,
    *,
    symmetric: bool,
    itemsize: int,
) -> dict[Contraction, Cost]:
    """The cost of the block of n1 × n2 examples in each contraction.

    >>> dense = GradientShape(1, 784, 1024, (PartShape(1, False, False),))
    >>> costs = contraction_costs(dense, 64, 64, Layout(full=10), symmetric=True, itemsize=4)
    >>> costs["gram"].flops < costs["explicit"].flops / 100
    True
    """
    b, c, k, o = shape.blocks, shape.rows, shape.columns, math.prod(outputs.sizes)
    pairs = n1 * n2
    products, kept = outputs.products, math.prod(outputs.kept)
    formed = n2 if symmetric else n1 + n2
    matrix = b * c * k

    gram = [
        (
            2.0 * pairs * b * p.positions * q.positions * (_row_flops(p, q, c) + products * k),
            pairs * b * p.positions * q.positions * (1 + kept),
        )
        for p in shape.parts
        for q in shape.parts
    ]
    forming = sum(2.0 * o * b * p.positions * k * (1 if p.looks_up else c) for p in shape.parts)
    applying = sum(
        2.0 * pairs * o * b * p.positions * k * ((1 if p.looks_up else c) + products / o)
        for p in shape.parts
    )
    applied = sum(pairs * o * b * p.positions * k for p in shape.parts)
    return {
        "gram": Cost(sum(f for f, _ in gram), itemsize * sum(m for _, m in gram)),
        "explicit": Cost(
            formed * forming + 2.0 * pairs * products * matrix, itemsize * formed * o * matrix
        ),
        "one-sided": Cost(n2 * forming + applying, itemsize * (n2 * o * matrix + applied)),
    }


def choose(costs: dict[Contraction, Cost], max_bytes: int | float = math.inf) -> Choice:
    """The cheapest contraction among those whose intermediates fit, or the smallest of all.

    >>> choose({"gram": Cost(1e6, 100), "explicit": Cost(1e9, 100), "one-sided": Cost(1e8, 1)}).how
    'gram'
    """
    fitting: dict[Contraction, Cost] = {h: c for h, c in costs.items() if c.bytes <= max_bytes}
    if not fitting:
        how = min(costs, key=lambda how: costs[how].bytes)
        return Choice(how, costs[how], "smallest intermediates; none fits the byte budget")
    choices = sorted(fitting, key=lambda how: fitting[how].total)
    how, cost = choices[0], fitting[choices[0]]
    if not cost.total:
        return Choice(how, cost, "nothing to multiply")
    if len(choices) == 1:
        return Choice(how, cost, "the only one that fits the byte budget")
    times = fitting[choices[1]].total / cost.total
    return Choice(how, cost, f"{times:.3g} times cheaper than {choices[1]}")


def _row_flops(first: PartShape, second: PartShape, rows: int) -> int:
    return 1 if first.looks_up or second.looks_up else rows
