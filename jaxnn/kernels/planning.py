"""How a kernel will be computed, decided from shapes before anything is computed."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.extend.core import primitives as p

from jaxnn.jaxprs import bodies, has_forward_mode
from jaxnn.kernels.blocks import Method, Problem, factored, is_empty, nothing, vector_products
from jaxnn.kernels.cost import Choice, Cost, choose, contraction_costs
from jaxnn.kernels.examples import abstract, alike, num_examples
from jaxnn.kernels.output_axes import Layout
from jaxnn.kernels.program import Program
from jaxnn.kernels.structure import Structure, analysis, factors, gradient_shapes
from jaxnn.kernels.tiles import tile_size
from jaxnn.precision import wide_dtype

MethodName = Literal["structured", "jacobian", "vector_products"]


class Row(NamedTuple):
    """What is done with one parameter, or with several that are multiplied as one matrix."""

    parameter: str
    shape: str
    contraction: str
    flops: float
    bytes: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """How a kernel is computed.

    method  the method, asked for or chosen
    costs   of the methods that were compared, over all pairs of examples
    rows    by parameter: contraction, flops, bytes of intermediates, reason
    tile    examples per tile (the batch size: no tiling)
    peak_bytes  estimate of the memory for the intermediates of a tile
    keep    whether what is prepared of the batches is kept over all tiles
    """

    method: MethodName
    costs: dict[str, Cost]
    rows: tuple[Row, ...]
    tile: int
    keep: bool
    peak_bytes: float = 1.0

    def __str__(self) -> str:
        """The plan as a table."""
        compared = ", ".join(f"{name} {cost.total:.2e}" for name, cost in self.costs.items())
        kept = "factors kept" if self.keep else "factors recomputed for every pair of tiles"
        head = f"method {self.method} (cost in flops: {compared}); tile {self.tile}, {kept}"
        names = ("parameter", "shape", "contraction", "flops", "bytes", "reason")
        cells = [
            (r.parameter, r.shape, r.contraction, f"{r.flops:.2e}", f"{r.bytes:.2e}", r.reason)
            for r in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (names, *cells)
        ]
        return "\n".join([head, *lines])


def planned(
    task: Problem,
    x1: Any,
    x2: Any | None,
    outputs: Layout,
    method: str,
    max_bytes: int,
) -> tuple[Method, Plan]:
    """The method for a kernel between x1 and x2 (None: x1), ready to run, and the plan it follows.

    Depends on shapes and dtypes alone.
    """
    if is_empty(task, x1, x2):
        n = max(num_examples("x", x) for x in (x1, x1 if x2 is None else x2))
        return nothing(task, outputs), Plan("structured", {}, (), n, True)
    if x2 is not None and not alike(x1, x2):
        method = "vector_products"  # the one that reads every example by itself
    example = abstract(x1)
    everything = frozenset(range(len(task.leaves)))
    apart = len(set(task.labels)) > 1 or any(w is not None for w in task.weights)
    by_entry = frozenset(i for i, w in enumerate(task.weights) if w is not None and w.ndim)
    formed = everything if method == "jacobian" else by_entry
    structure = analysis(task.flat, task.leaves, example, formed=formed, apart=apart)
    sizes = _Sizes(task, structure, x1, x2, outputs)
    keep = sizes.prepared_bytes * (sizes.n1 + (0 if x2 is None else sizes.n2)) <= max_bytes / 2
    tile = tile_size(max(sizes.n1, sizes.n2), lambda t: sizes.peak_bytes(t) <= max_bytes)
    rows, choices = _decided(task, structure, sizes, tile, max_bytes)
    forward = has_forward_mode(structure.program.equations)
    ways = {"structured": _structured_cost(sizes, rows), "vector_products": sizes.product_cost()}
    # The transpose of a custom backward rule, which takes the place of forward mode, may not exist.
    products_win = ways["vector_products"].total < ways["structured"].total and forward
    if method == "vector_products" or (method == "auto" and products_win):
        cost = ways["vector_products"]
        row = Row("all", "", "vector products", *cost, "no gradients but one example's")
        peak = float(sizes.num_outputs * sizes.parameter_bytes + sizes.passing_bytes)
        plan = Plan("vector_products", ways, (row,), max(sizes.n1, sizes.n2), True, peak)
        return vector_products(task, outputs, forward=forward), plan
    if method == "jacobian":
        ways = {"jacobian": ways["structured"], "vector_products": ways["vector_products"]}
    name = "jacobian" if method == "jacobian" else "structured"
    plan = Plan(name, ways, rows, tile, keep, sizes.peak_bytes(tile))
    return factored(task, structure, choices, outputs), plan


class _Sizes:
    """What a batch takes: abstract factors, and estimates from them."""

    def __init__(
        self, task: Problem, structure: Structure, x1: Any, x2: Any | None, outputs: Layout
    ) -> None:
        read = lambda x: factors(structure, task.leaves, x)
        found = jax.eval_shape(read, abstract(x1, 1))
        self.n1, self.n2 = (num_examples("x", x) for x in (x1, x1 if x2 is None else x2))
        self.symmetric, self.num_outputs = x2 is None, task.num_outputs
        self.outputs = outputs
        self.shapes = gradient_shapes(structure, found)
        self.parameter_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in task.leaves)
        self.itemsize = wide_dtype(*task.leaves).itemsize
        self.prepared_bytes = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(found))
        values = _varying_bytes(structure.program)
        # A backward pass holds the values once, and their cotangents for every output.
        self.passing_bytes = values * (1 + self.num_outputs)
        self.forward_flops = program_flops(structure.program)

    def kept(self) -> int:
        """Entries of the result per pair of examples."""
        return math.prod(self.outputs.kept)

    @property
    def products(self) -> int:
        """Inner products of gradients per pair of examples."""
        return self.outputs.products

    def channel_flops(self, blocks: int, rows: int, columns: int, pairs: int) -> float:
        """Flops of a channel, at most one number per column."""
        examples = self.n1 + (0 if self.symmetric else self.n2)
        applied = 2.0 * examples * blocks * columns * (rows + self.num_outputs)
        return applied + 4.0 * pairs * self.products * blocks * columns

    def costs(self, n1: int, n2: int, number: int) -> dict:
        return contraction_costs(
            self.shapes[number],
            n1,
            n2,
            self.outputs,
            symmetric=self.symmetric,
            itemsize=self.itemsize,
        )

    def peak_bytes(self, tile: int) -> float:
        n1, n2 = min(tile, self.n1), min(tile, self.n2)
        smallest = [
            min(cost.bytes for cost in self.costs(n1, n2, k).values())
            for k in range(len(self.shapes))
        ]
        block = 3 * n1 * n2 * self.kept() * self.itemsize
        prepared = (n1 + n2) * self.prepared_bytes
        working = max(n1, n2) * self.passing_bytes + prepared + block
        return float(working + max(smallest, default=0))

    def passing_cost(self) -> float:
        """Flops of the backward passes for all outputs."""
        examples = self.n1 + (0 if self.symmetric else self.n2)
        return examples * self.forward_flops * (1 + 2 * self.num_outputs)

    def product_cost(self) -> Cost:
        """Of the method of vector products: every output's gradient pushed through all of x1."""
        per_output = self.n2 * self.num_outputs * self.forward_flops
        size = self.n1 * self.num_outputs * self.passing_bytes / (1 + self.num_outputs)
        # The gradients are formed: of a table of 30,000 rows too, where an example looks up a few.
        size += self.num_outputs * self.parameter_bytes
        return Cost(per_output * (2 + 2 * self.n1), self.n2 * size)


def _decided(
    task: Problem, structure: Structure, sizes: _Sizes, tile: int, max_bytes: int
) -> tuple[tuple[Row, ...], tuple[Choice, ...]]:
    n1, n2 = min(tile, sizes.n1), min(tile, sizes.n2)
    tiles = math.ceil(sizes.n1 / n1) * math.ceil(sizes.n2 / n2)
    if sizes.symmetric and tile < sizes.n1:
        count = math.ceil(sizes.n1 / n1)
        tiles = count * (count + 1) // 2
    rows, choices = [], []
    for number, term in enumerate(structure.terms):
        choice = choose(sizes.costs(n1, n2, number), max_bytes)
        b, c, k = term.shape
        positions = sum(part.positions for part in sizes.shapes[number].parts)
        shape = f"{b} x ({c}, {k}) at {positions}" if b > 1 else f"({c}, {k}) at {positions}"
        name = " ".join(task.paths[leaf] for leaf in sorted(term.leaves))
        cost = choice.cost
        how, flops = str(choice.how), cost.flops * tiles
        if term.channel is not None:
            how += " + channel"
            flops += sizes.channel_flops(b, c, k, n1 * n2 * tiles)
        rows.append(Row(name, shape, how, flops, cost.bytes, choice.reason))
        choices.append(choice)
    products = sizes.products
    for leaf in structure.direct:
        array = task.leaves[leaf]
        flops = 2.0 * n1 * n2 * tiles * products * array.size
        size = (n1 + n2) * sizes.num_outputs * array.size * sizes.itemsize
        reason = "no product with factors, or asked for"
        rows.append(Row(task.paths[leaf], str(array.shape), "direct", flops, size, reason))
    return tuple(rows), tuple(choices)


def _structured_cost(sizes: _Sizes, rows: tuple[Row, ...]) -> Cost:
    flops = sum(row.flops for row in rows) + sizes.passing_cost()
    return Cost(flops, sum(row.bytes for row in rows))


def program_flops(program: Program) -> float:
    """Floating-point operations of one run: those of products, and one per other output entry."""
    total = 0.0
    for equation in program.equations:
        inputs, outputs = (
            [program.avals[i] for i in values] for values in (equation.inputs, equation.outputs)
        )
        total += _flops(equation.primitive, equation.params, inputs, outputs)
    return total


def _flops(primitive: Any, params: dict[str, Any], inputs: list[Any], outputs: list[Any]) -> float:
    if not outputs:  # a print
        return 0.0
    output = outputs[0]
    if primitive is p.dot_general_p:
        (contract, _), _ = params["dimension_numbers"]
        return 2.0 * output.size * math.prod(inputs[0].shape[i] for i in contract)
    if primitive is p.conv_general_dilated_p:
        features = params["dimension_numbers"].rhs_spec[0]
        return 2.0 * output.size * inputs[1].size / inputs[1].shape[features]
    times = params.get("length", 1) if primitive is p.scan_p else 1
    inner = 0.0
    for body in bodies(params):
        for e in body.eqns:
            avals = ([v.aval for v in variables] for variables in (e.invars, e.outvars))
            inner += _flops(e.primitive, e.params, *avals)
    return times * inner if inner else float(np.prod(output.shape))


def _varying_bytes(program: Program) -> int:
    own = sum(
        math.prod(aval.shape) * aval.dtype.itemsize
        for aval, varying in zip(program.avals, program.varying, strict=True)
        if varying
    )
    scans = ((e.params["length"], e.body) for e in program.equations if e.body is not None)
    return own + sum(length * _varying_bytes(body) for length, body in scans)
