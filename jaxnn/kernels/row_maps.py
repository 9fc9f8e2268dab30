"""Primitives that move rows within an axis, or make one axis of several: where the batch goes.

`ROWS` maps the name of a primitive to a function of its equation and of the states of its operands,
which returns those of its outputs.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from jax.extend.core import JaxprEqn

from jaxnn.kernels.axis_maps import shape_of
from jaxnn.kernels.batch_layout import (
    COUPLED,
    UNKNOWN,
    Axes,
    Lost,
    State,
    joined,
    met,
    moved,
    reshaped,
    rows,
)
from jaxnn.types import Shape


def _reshape(eqn: JaxprEqn, states: list[State]) -> list[State]:
    shape = shape_of(eqn.invars[0])
    order = eqn.params["dimensions"] or range(len(shape))
    state = moved(states[0], {k: i for i, k in enumerate(order)})
    return [reshaped(state, tuple(shape[k] for k in order), eqn.params["new_sizes"])]


def _slice(eqn: JaxprEqn, states: list[State]) -> list[State]:
    starts, stops = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    state: State = moved(states[0], {k: UNKNOWN for k, step in enumerate(steps) if step != 1})
    for axis, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        state = rows(state, axis, int(start), int(stop))
    return [state]


def _split(eqn: JaxprEqn, states: list[State]) -> list[State]:
    bounds = accumulate(map(int, eqn.params["sizes"]), initial=0)
    return [rows(states[0], int(eqn.params["axis"]), a, b) for a, b in pairwise(bounds)]


def _concatenate(eqn: JaxprEqn, states: list[State]) -> list[State]:
    axis = int(eqn.params["dimension"])
    return [joined(states, [shape_of(operand)[axis] for operand in eqn.invars], axis)]


def _stack(eqn: JaxprEqn, states: list[State]) -> list[State]:
    axis = int(eqn.params["axis"])
    beyond = {k: k + 1 for k in range(axis, len(shape_of(eqn.invars[0])))}
    return [joined([moved(s, beyond) for s in states], [1] * len(states), axis)]


def _unstack(eqn: JaxprEqn, states: list[State]) -> list[State]:
    axis, ndim = int(eqn.params["axis"]), len(shape_of(eqn.invars[0]))
    without = {axis: UNKNOWN} | {k: k - 1 for k in range(axis + 1, ndim)}
    return [moved(rows(states[0], axis, i, i + 1), without) for i in range(len(eqn.outvars))]


def _conv(eqn: JaxprEqn, states: list[State]) -> list[State]:
    """A convolution is a batched matrix product once its groups have axes of their own."""
    params, d = eqn.params, eqn.params["dimension_numbers"]
    by_batch, by_feature = params["batch_group_count"], params["feature_group_count"]
    groups = by_batch * by_feature

    def opened(operand: int, spec: Sequence[int], first: int, second: int) -> tuple[State, Shape]:
        # (first, axis spec[0] / first, second, axis spec[1] / second, *space)
        a, b, *space = (shape_of(eqn.invars[operand])[k] for k in spec)
        state = moved(states[operand], {k: i for i, k in enumerate(spec)})
        split = (first, a // first, second, b // second, *space)
        return reshaped(state, (a, b, *space), split), split

    lhs, _ = opened(0, d.lhs_spec, by_batch, by_feature)
    rhs, window = opened(1, d.rhs_spec, groups, 1)
    # The output is (batch, group, feature of the group, *space).
    lhs_axes: dict[int, int | Lost] = {0: 1, 1: 0, 2: 1, 3: COUPLED}
    for k, size in enumerate(window[4:]):
        steps = (size, params["window_strides"][k], params["lhs_dilation"][k])
        still = max(steps) == 1 and not any(params["padding"][k])
        lhs_axes[4 + k] = 3 + k if still else UNKNOWN
    rhs_axes: Axes = {0: 1, 1: 2} | {k: COUPLED for k in range(2, len(window))}
    n, c, *space = (shape_of(eqn.outvars[0])[k] for k in d.out_spec)
    out = met([moved(lhs, lhs_axes), moved(rhs, rhs_axes)])
    out = reshaped(out, (n, groups, c // groups, *space), (n, c, *space))
    return [moved(out, dict(enumerate(d.out_spec)))]


ROWS: dict[str, Callable[[JaxprEqn, list[State]], list[State]]] = {
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
}
