"""The batch axis, followed through a traced program from the inputs to the outputs.

Most primitives send axes to axes (`axis_maps.AXES`). Here are those that move rows within an axis,
those that hold programs of their own, and `follow`, which puts all together. A primitive in no
table loses the batch, unless nothing that it reads depends on it.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate, pairwise

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jax.extend.source_info_util import summarize

from jaxnn.kernels.axis_maps import AXES, WRITES, shape_of
from jaxnn.kernels.batch_layout import (
    COUPLED,
    UNKNOWN,
    Axes,
    Batch,
    Lost,
    State,
    either,
    fits,
    joined,
    met,
    moved,
    reshaped,
    rows,
)
from jaxnn.types import Shape


def follow(jaxpr: Jaxpr, states: Sequence[State]) -> list[State]:
    """The states of the outputs of `jaxpr`, given those of its inputs; its constants are free."""
    known = dict(zip(jaxpr.invars, states, strict=True))

    def read(atoms: Sequence) -> list[State]:
        return [known.get(atom) if isinstance(atom, Var) else None for atom in atoms]

    for eqn in jaxpr.eqns:
        results = _results(eqn, read(eqn.invars))
        for var, state in zip(eqn.outvars, results, strict=True):
            known[var] = _settled(eqn, shape_of(var), state)
    return read(jaxpr.outvars)


def _results(eqn: JaxprEqn, states: list[State]) -> Sequence[State]:
    name = eqn.primitive.name
    # An effect can bring the batch in without an operand: the value of a mutable array.
    if not eqn.effects and all(s is None for s in states):
        return [None] * len(eqn.outvars)
    if name in PROGRAMS:
        return PROGRAMS[name](eqn, states)
    followed = not eqn.effects and not any(isinstance(s, Lost) for s in states)
    if name in ROWS and followed:
        return ROWS[name](eqn, states)
    if name in AXES and followed:
        maps = zip(states, AXES[name](eqn), strict=True)
        state = met([moved(s, axes) for s, axes in maps])
        state = UNKNOWN if state == COUPLED and name in WRITES else state
    else:
        state = met([*states, UNKNOWN])
    return [state] * len(eqn.outvars)


def _settled(eqn: JaxprEqn, shape: Shape, state: State) -> State:
    if 0 in shape:
        return None
    state = state if fits(state, shape) else UNKNOWN
    if isinstance(state, Lost) and " at " not in state.where:
        # The insides of JAX's own functions have no line; the call is found on the way out.
        where, line = state.where or eqn.primitive.name, summarize(eqn.source_info)
        return state._replace(where=f"{where} at {line}" if line else where)
    return state


# Primitives that move rows within an axis, or make one axis of several.


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


# Primitives that hold programs.


def _each(eqn: JaxprEqn, states: list[State]) -> list[State]:
    return states


def _opened(program: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def _call(eqn: JaxprEqn, states: list[State]) -> list[State]:
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
    body = next(eqn.params[name] for name in names if name in eqn.params)
    return follow(_opened(body), states)


def _linear_solve(eqn: JaxprEqn, states: list[State]) -> list[State]:
    # First the constants of A v and Aᵀ v, then those of the solve and of its transpose.
    counts, solve = eqn.params["const_lengths"], eqn.params["jaxprs"].solve
    start = counts.matvec + counts.vecmat
    constants, right_sides = states[start : start + counts.solve], states[sum(counts) :]
    return follow(_opened(solve), [*constants, *right_sides])


def _cond(eqn: JaxprEqn, states: list[State]) -> list[State]:
    index, *operands = states
    branches = [follow(_opened(branch), operands) for branch in eqn.params["branches"]]
    return [met([index, reduce(either, outputs)]) for outputs in zip(*branches, strict=True)]


def _while(eqn: JaxprEqn, states: list[State]) -> list[State]:
    test, body = _opened(eqn.params["cond_jaxpr"]), _opened(eqn.params["body_jaxpr"])
    first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    tested, looped = states[:first], states[first : first + second]

    def advance(carry: list[State]) -> list[State]:
        # A predicate per example, as vmap makes it, masks the leading axes of what is carried.
        (predicate,) = follow(test, [*tested, *carry])
        return [met([predicate, s]) for s in follow(body, [*looped, *carry])]

    return _fixed_point(eqn, states[first + second :], advance)


def _scan(eqn: JaxprEqn, states: list[State]) -> list[State]:
    body = _opened(eqn.params["jaxpr"])
    # The body takes constants and carries as they are, and slices of the rest; likewise it returns.
    last = _of_equal_rank(eqn.invars, body.invars)
    first = last - _of_equal_rank(eqn.outvars, body.outvars)
    constants = states[:first]
    # The axis scanned over is a new one below 0 for the body.
    axes = [p.axis for s in states if isinstance(s, Batch) for p in s.places]
    step = min([0, *axes]) - 1
    shapes = [shape_of(operand) for operand in eqn.invars[last:]]
    inwards = [{0: step} | {k: k - 1 for k in range(1, len(shape))} for shape in shapes]
    xs = [moved(s, axes) for s, axes in zip(states[last:], inwards, strict=True)]

    def advance(carry: list[State]) -> list[State]:
        # What a step hands on, it hands to other examples if it is that of one example.
        outputs = follow(body, [*constants, *carry, *xs])[: len(carry)]
        return [moved(s, {step: COUPLED}) for s in outputs]

    carry = _fixed_point(eqn, states[first:last], advance)
    ys = follow(body, [*constants, *carry, *xs])[len(carry) :]
    shapes = [shape_of(var) for var in body.outvars[len(carry) :]]
    outwards = [{step: 0} | {k: k + 1 for k in range(len(shape))} for shape in shapes]
    return [*carry, *(moved(y, axes) for y, axes in zip(ys, outwards, strict=True))]


def _of_equal_rank(outer: Sequence, inner: Sequence) -> int:
    ranks = ((len(shape_of(a)), len(shape_of(b))) for a, b in zip(outer, inner, strict=True))
    return sum(a == b for a, b in ranks)


def _fixed_point(
    eqn: JaxprEqn, carry: list[State], advance: Callable[[list[State]], list[State]]
) -> list[State]:
    """The states of what a loop carries that are true of every iteration."""
    shapes = [shape_of(var) for var in eqn.outvars[: len(carry)]]
    while True:
        joint = map(either, carry, advance(carry))
        grown = [_settled(eqn, shape, s) for shape, s in zip(shapes, joint, strict=True)]
        if grown == carry:
            return carry
        carry = grown


PROGRAMS: dict[str, Callable[[JaxprEqn, list[State]], list[State]]] = {
    **dict.fromkeys(("device_put", "mesh_cast", "optimization_barrier", "reshard"), _each),
    **dict.fromkeys(("call", "closed_call", "composite", "core_call", "jit", "pjit"), _call),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "custom_vmap_call"), _call),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), _call),
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
    "scan": _scan,
    "while": _while,
}
