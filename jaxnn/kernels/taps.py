"""Where parameters meet data: the products in a program whose gradients have two factors.

In y = x·w the gradient of an output f_o with respect to w is Σ_t row_t ⊗ column_{o,t}: `row` is
what w is multiplied with and `column` the cotangent ∂f_o/∂y, at every position t where w is used.
Matrix products, convolutions (through patches), look-ups of rows and sums (row = 1) all take the
form

    row (B, T, C),  column (O, B, T, K),  gradient (O, B, C, K) = Σ_t row ⊗ column

with B blocks that have weights of their own and T positions that share them.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from jaxnn.kernels.program import Equation, Program, bind
from jaxnn.kernels.views import CONSTANT, NotAViewError, View, same_scale, view
from jaxnn.types import Array


class Site(NamedTuple):
    """One product of a weight and data, and how it takes the form above.

    weight  the value number of the weight
    row     operands of the equation -> (B, T, C), or (B, T) row numbers if `looks_up`
    column  cotangent of the output -> (B, T, K)
    matrix  something in the shape of the weight -> (B, C, K)
    """

    kind: Literal["product", "convolution", "look-up", "sum"]
    weight: int
    row: Callable[[list[Any]], Array]
    column: Callable[[Array], Array]
    matrix: Callable[[Any], Any]


class Use(NamedTuple):
    """A site and the parameter entries it multiplies by.

    view    (B, C, K) numbers of parameter entries, stacked loops folded into B; None if the weight
            is no view of parameters
    loops   for every scan around the site, outermost first, whether its iterations have weights of
            their own ("stacked") or share them ("shared")
    leaves  positions of the parameters that the weight depends on
    """

    site: Site
    view: View | None
    loops: tuple[Literal["stacked", "shared"], ...]
    leaves: frozenset[int]


Path: TypeAlias = tuple[int, ...]
"""Where an equation stands: its number, after those of the scans around it, outermost first."""


def sinks(program: Program) -> Iterator[tuple[int, Equation]]:
    """The equations in which something of parameters alone meets something that varies."""
    for number, equation in enumerate(program.equations):
        varies = any(program.varying[i] for i in equation.outputs)
        if varies and any(program.is_parameter(i) for i in equation.inputs):
            yield number, equation


def loose_ends(program: Program) -> frozenset[int]:
    """Numbers of the parameter values that meet data elsewhere than in a recognized product."""
    found = {i for i in program.outputs if program.is_parameter(i)}
    for _, equation in sinks(program):
        if equation.body is not None:
            inner = (equation.body.sources[i] for i in loose_ends(equation.body))
            found.update(equation.inputs[k] for k in frozenset().union(*inner))
        elif recognize(program, equation) is None:
            found.update(_origin(program, i) for i in equation.inputs if program.is_parameter(i))
    return frozenset(found)


def _origin(program: Program, value: int) -> int:
    """What the value is a broadcast, another shape or, for complex values, the real part of."""
    equation = program.producer(value)
    while equation is not None and (
        equation.primitive in (p.broadcast_in_dim_p, p.reshape_p)
        or (equation.primitive is p.convert_element_type_p and _is_complex(program, value))
    ):
        value = equation.inputs[0]
        equation = program.producer(value)
    return value


def _is_complex(program: Program, value: int) -> bool:
    return jnp.issubdtype(program.avals[value].dtype, jnp.complexfloating)


def uses(program: Program, inputs: dict[int, View]) -> dict[Path, Use]:
    """Every recognized product, given the views of the program's parameter inputs."""
    found: dict[Path, Use] = {}
    for number, equation in sinks(program):
        if equation.body is not None:
            for path, use in _uses_in_scan(program, equation, inputs).items():
                found[(number, *path)] = use
            continue
        site = recognize(program, equation)
        if site is not None:
            seen = _view_or_none(program, site.weight, inputs)
            if seen is not None:
                seen = View(site.matrix(np.asarray(seen.index)), seen.scale)
            found[(number,)] = Use(site, seen, (), program.sources[site.weight])
    return found


def leaf_uses(program: Program, inputs: dict[int, View]) -> tuple[dict[Path, Use], frozenset[int]]:
    """The products whose gradients have factors, and the numbers of the values used in other ways.

    A product counts if its weight is a view of parameters in which no entry is a constant or
    stands twice, since only then is the inner product of its gradients that of the parameters'.
    """
    found = uses(program, inputs)
    factored = {path: use for path, use in found.items() if _injective(use.view)}
    others = (use.leaves for path, use in found.items() if path not in factored)
    formed = (program.inputs[leaf] for leaf in frozenset().union(*others))
    return factored, loose_ends(program).union(formed)


def _injective(seen: View | None) -> bool:
    if seen is None or seen.index.size == 0:
        return False
    if seen.index.min() == CONSTANT:
        return False
    return bool(np.bincount(seen.index.ravel() - seen.index.min()).max() == 1)


def _uses_in_scan(program: Program, equation: Equation, inputs: dict[int, View]) -> dict[Path, Use]:
    consts, _, length = equation.scan
    body = equation.body
    assert body is not None
    views = {
        position: seen
        for position, number in enumerate(equation.inputs)
        if program.is_parameter(number)
        and (seen := _view_or_none(program, number, inputs)) is not None
    }
    scanned = any(position >= consts for position in views)
    iterations = []
    for step in range(length if scanned else 1):
        at_step = {
            body.inputs[k]: v if k < consts else View(np.asarray(v.index)[step], v.scale)
            for k, v in views.items()
        }
        iterations.append(uses(body, at_step))
    joined = {}
    for path in iterations[0]:
        use = _joined([iteration[path] for iteration in iterations])
        outer = (program.sources[equation.inputs[i]] for i in use.leaves)
        joined[path] = use._replace(leaves=frozenset().union(*outer))
    return joined


def _joined(iterations: list[Use]) -> Use:
    """One use for all iterations of a scan: their weights are equal, or stand side by side."""
    first = iterations[0]
    views = [use.view for use in iterations if use.view is not None]
    one_scale = all(same_scale(v.scale, views[0].scale) for v in views)
    if len(views) < len(iterations) or not one_scale:
        return first._replace(view=None)
    if all(np.array_equal(v.index, views[0].index) for v in views):
        return first._replace(loops=("shared", *first.loops))
    stacked = View(np.concatenate([v.index for v in views]), views[0].scale)
    return first._replace(view=stacked, loops=("stacked", *first.loops))


def _view_or_none(program: Program, value: int, inputs: dict[int, View]) -> View | None:
    try:
        return view(program, value, inputs)
    except NotAViewError:
        return None


def recognize(program: Program, equation: Equation) -> Site | None:
    """The site that an equation is, or None for an equation of no known form."""
    rule = _RULES.get(equation.primitive)
    return None if rule is None else rule(program, equation)


def fold(array: Array, loops: tuple[str, ...]) -> Array:
    """Fold leading loop axes, outermost first, into the blocks (stacked) or positions (shared).

    (*loops, B, T, ...) -> (B', T', ...).

    >>> fold(jnp.ones((5, 2, 3, 4)), ("stacked",)).shape
    (10, 3, 4)
    >>> fold(jnp.ones((5, 2, 3, 4)), ("shared",)).shape
    (2, 15, 4)
    """
    for depth in reversed(range(len(loops))):
        if loops[depth] == "shared":
            array = jnp.moveaxis(array, depth, depth + 1)
            depth += 1
        shape = array.shape
        array = array.reshape(*shape[:depth], shape[depth] * shape[depth + 1], *shape[depth + 2 :])
    return array


def _product(program: Program, equation: Equation) -> Site | None:
    weight_position = 0 if program.is_parameter(equation.inputs[0]) else 1
    (contract, batch) = equation.params["dimension_numbers"]
    weight, data = equation.inputs[weight_position], equation.inputs[1 - weight_position]
    w_contract, d_contract = contract[weight_position], contract[1 - weight_position]
    w_batch, d_batch = batch[weight_position], batch[1 - weight_position]
    w_order, w_shape = _blocks(program.avals[weight].shape, w_batch, w_contract)
    d_order, d_shape = _blocks(program.avals[data].shape, d_batch, d_contract)
    blocks, columns, rows = w_shape
    positions = d_shape[1]

    def row(operands: list[Any]) -> Array:
        return operands[1 - weight_position].transpose(d_order).reshape(blocks, positions, rows)

    def column(cotangent: Array) -> Array:
        if weight_position == 0:  # output axes: batch, free of the weight, free of the data
            return jnp.swapaxes(cotangent.reshape(blocks, columns, positions), 1, 2)
        return cotangent.reshape(blocks, positions, columns)

    def matrix(index: Any) -> Any:
        flat = np.asarray(index).transpose(w_order).reshape(blocks, columns, rows)
        return flat.swapaxes(1, 2)

    return Site("product", weight, row, column, matrix)


def _blocks(
    shape: tuple[int, ...], batch: tuple[int, ...], contract: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    free = tuple(i for i in range(len(shape)) if i not in (*batch, *contract))
    sizes = tuple(math.prod(shape[i] for i in axes) for axes in (batch, free, contract))
    return (*batch, *free, *contract), (sizes[0], sizes[1], sizes[2])


def _convolution(program: Program, equation: Equation) -> Site | None:
    params = equation.params
    data, weight = equation.inputs
    if program.is_parameter(data) or params["batch_group_count"] != 1:
        return None
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    window = tuple(program.avals[weight].shape[i] for i in rhs[2:])
    out_shape = program.avals[equation.outputs[0]].shape
    outputs = tuple(out_shape[i] for i in out[2:])
    examples, features = out_shape[out[0]], out_shape[out[1]]
    channels = program.avals[data].shape[lhs[1]] // groups
    positions = examples * math.prod(outputs)

    def row(operands: list[Any]) -> Array:
        x = operands[0].transpose(lhs[0], *lhs[2:], lhs[1])  # examples, space, channels
        patches = _patches(x, window, outputs, params)  # examples, outputs, window, channels
        split = patches.reshape(positions, math.prod(window), groups, channels)
        return split.transpose(2, 0, 1, 3).reshape(groups, positions, math.prod(window) * channels)

    def column(cotangent: Array) -> Array:
        y = cotangent.transpose(out[0], *out[2:], out[1])
        return y.reshape(positions, groups, features // groups).swapaxes(0, 1)

    def matrix(index: Any) -> Any:
        w = np.asarray(index).transpose(rhs[0], *rhs[2:], rhs[1])  # features, window, channels
        split = w.reshape(groups, features // groups, math.prod(window) * channels)
        return split.swapaxes(1, 2)

    return Site("convolution", weight, row, column, matrix)


def _patches(
    x: Array, window: tuple[int, ...], outputs: tuple[int, ...], params: dict[str, Any]
) -> Array:
    """What each output position of a convolution sees: examples, outputs, window, channels.

    One gather per axis, which XLA makes one loop of. Slices for every position of the window,
    joined, run no faster, take more memory, and double the time to compile a residual network.
    """
    padding = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    seen = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    axes = zip(outputs, window, params["window_strides"], params["rhs_dilation"], strict=True)
    for axis, (count, size, stride, dilation) in enumerate(axes, 1):
        numbers = stride * np.arange(count)[:, None] + dilation * np.arange(size)
        seen = lax.gather(
            seen,
            numbers[..., None].astype(np.int32),
            lax.GatherDimensionNumbers(  # outputs take the place of the axis, the window
                tuple(i for i in range(seen.ndim + 1) if i not in (axis, seen.ndim - 1)),
                collapsed_slice_dims=(axis,),
                start_index_map=(axis,),
            ),
            (*seen.shape[:axis], 1, *seen.shape[axis + 1 :]),
            mode="promise_in_bounds",
        )
    return seen.reshape(x.shape[0], *outputs, math.prod(window), x.shape[-1])


def _look_up(program: Program, equation: Equation) -> Site | None:
    """gather or dynamic_slice that takes whole rows of a table at numbers from the data."""
    table = equation.inputs[0]
    if not program.is_parameter(table) or any(program.is_parameter(i) for i in equation.inputs[1:]):
        return None
    shape = program.avals[table].shape
    sizes = equation.params["slice_sizes"]
    whole = [size == n for size, n in zip(sizes, shape, strict=True)]
    if equation.primitive is p.gather_p:
        numbers = equation.params["dimension_numbers"]
        if numbers.operand_batching_dims or len(numbers.start_index_map) != 1:
            return None
        axis, last = numbers.start_index_map[0], numbers.offset_dims
        collapsed = numbers.collapsed_slice_dims == (axis,)
        if not collapsed:
            return None
    else:
        moving = [
            i for i, number in enumerate(equation.inputs[1:]) if number not in program.constants
        ]
        if len(moving) != 1:
            return None
        axis, last = moving[0], tuple(i for i in range(len(shape)) if i != moving[0])
    if sizes[axis] != 1 or not all(w for i, w in enumerate(whole) if i != axis):
        return None
    others = tuple(i for i in range(len(shape)) if i != axis)
    ones = tuple(shape[axis] if i == axis else 1 for i in range(len(shape)))
    out_rank = len(program.avals[equation.outputs[0]].shape)
    order = (*(i for i in range(out_rank) if i not in last), *last)
    width = math.prod(shape[i] for i in others)
    params = {**equation.params, "slice_sizes": (1,) * len(shape)}
    if "fill_value" in params:
        params["fill_value"] = CONSTANT
    numbered = equation._replace(params=params)

    def row(operands: list[Any]) -> Array:
        rows = lax.broadcasted_iota(jnp.int32, ones, axis)
        (found,) = bind(numbered, [rows, *operands[1:]])
        return found.reshape(1, -1)

    def column(cotangent: Array) -> Array:
        return cotangent.transpose(order).reshape(1, -1, width)

    def matrix(index: Any) -> Any:
        return np.asarray(index).transpose(axis, *others).reshape(1, shape[axis], width)

    return Site("look-up", table, row, column, matrix)


def _sum(program: Program, equation: Equation) -> Site | None:
    """A bias: the gradient is the cotangent itself, which other factors of the layer share."""
    bias = equation.inputs[0 if program.is_parameter(equation.inputs[0]) else 1]
    output = program.avals[equation.outputs[0]]
    if program.avals[bias].shape != output.shape:
        return None  # used at many positions: the sum over them is cheaper formed than factored
    return Site(
        "sum",
        bias,
        row=lambda operands: jnp.ones((1, 1, 1), jnp.finfo(output.dtype).dtype),
        column=lambda cotangent: cotangent.reshape(1, 1, -1),
        matrix=lambda index: np.asarray(index).reshape(1, 1, -1),
    )


_RULES: dict[Any, Callable[[Program, Equation], Site | None]] = {
    p.dot_general_p: _product,
    p.conv_general_dilated_p: _convolution,
    p.gather_p: _look_up,
    p.dynamic_slice_p: _look_up,
    p.add_p: _sum,
}
