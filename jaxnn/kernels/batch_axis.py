"""The batch axis, followed through a traced program from the inputs to the outputs.

Most primitives send axes to axes (`axis_maps.AXES`), some move rows within an axis
(`row_maps.ROWS`). Here are those that hold programs of their own, and `follow`, which puts all
together. A primitive in no table loses the batch, unless nothing that it reads depends on it.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jax.extend.source_info_util import summarize

from jaxnn.kernels.axis_maps import AXES, ELEMENTWISE, WRITES, dtype_of, shape_of
from jaxnn.kernels.batch_layout import (
    COUPLED,
    UNKNOWN,
    Batch,
    Lost,
    State,
    either,
    fits,
    met,
    moved,
)
from jaxnn.kernels.custom_rules import SUM, derivative, has_rule_of_jax, is_of_jax, sums
from jaxnn.kernels.lockstep import (
    Lockstep,
    agrees,
    constants,
    firm,
    is_loose,
    repeated,
    same_parameters,
    spread,
    writes_rows,
)
from jaxnn.kernels.row_maps import ROWS
from jaxnn.types import Shape


class Pair(NamedTuple):
    """What belongs to the trace of a batch of `size`, and to that of `other_size` examples.

    other     None if there is but one trace
    trusting  whether what JAX's own functions make of a row is taken not to depend on how many
              there are, where their programs differ
    derived   whether these are derivatives themselves, whose own derivatives do not matter
    """

    batch: Any
    other: Any = None
    size: int = 0
    other_size: int = 1
    trusting: bool = False
    derived: bool = False

    def map(self, f: Callable[[Any], Any]) -> "Pair":
        """The pair of f of each."""
        return self._replace(
            batch=f(self.batch), other=None if self.other is None else f(self.other)
        )


def follow(programs: Pair, states: Sequence[State]) -> list[State]:
    """The states of the outputs of a program, given those of its inputs.

    Of the batch's program alone, None means free of the batch, and constants are free. Beside the
    program of one example, states have the meaning that `lockstep` gives them.
    """
    opened = programs.map(_opened)
    jaxpr: Jaxpr = opened.batch
    known = dict(zip(jaxpr.invars, states, strict=True))
    beside = None
    if opened.other is not None:
        beside = Lockstep(jaxpr, opened.other)
        held = (getattr(p, "consts", ()) for p in (programs.batch, programs.other))
        found = constants(*held, size=programs.size, count=programs.other_size)
        known.update(zip(jaxpr.constvars, found, strict=False))

    def read(atoms: Sequence) -> list[State]:
        return [known.get(atom) if isinstance(atom, Var) else None for atom in atoms]

    for eqn in jaxpr.eqns:
        states = read(eqn.invars)
        if beside is None:
            results = _results(eqn, states)
        else:
            results = _beside(eqn, states, beside, programs)
        for var, state in zip(eqn.outvars, results, strict=True):
            empty = beside is None and 0 in shape_of(var)
            known[var] = None if empty else _settled(eqn, shape_of(var), state)
    results = read(jaxpr.outvars)
    if beside is None:
        return results
    alike = zip(results, beside.ends_alike(), strict=True)
    return [state if same or isinstance(state, Lost) else UNKNOWN for state, same in alike]


def _beside(
    eqn: JaxprEqn, states: list[State], beside: Lockstep, programs: Pair
) -> Sequence[State]:
    """The states of the outputs of an equation, if the other trace has the same equation."""
    size, count = programs.size, programs.other_size
    other, same = beside.step(eqn)
    if not same and not (other is None and beside.skips(eqn)):
        return [UNKNOWN] * len(eqn.outvars)
    shapes = [(shape_of(var), shape_of(beside.twin(var))) for var in eqn.outvars]
    rows_of = [spread(*pair, size, count) for pair in shapes]
    name, free = eqn.primitive.name, all(s is None or is_loose(s) for s in states)
    if other is None:
        results = rows_of if free else states[:1]
    elif name in PROGRAMS:
        kept = states if name in CALLS else list(map(firm, states))
        results = PROGRAMS[name](programs._replace(batch=eqn, other=other), kept)
    elif not eqn.effects and all(s is None for s in states):
        results = [repeated(eqn, other, size, count)] * len(eqn.outvars)
    elif not same_parameters(eqn, other, shapes=True):
        results = [met([*states, UNKNOWN])] * len(eqn.outvars)
    elif programs.derived and sums(eqn, list(map(firm, states)), size):
        results = [SUM if pair[0] == pair[1] else UNKNOWN for pair in shapes]
    elif name in ELEMENTWISE:
        results = rows_of if free else _results(eqn, [None if is_loose(s) else s for s in states])
    elif (name == "broadcast_in_dim" and free) or _sums_nothing(eqn):
        results = rows_of
    elif name in WRITES and writes_rows(eqn, states[0]):
        results = [UNKNOWN] * len(eqn.outvars)
    else:
        results = _results(eqn, list(map(firm, states)))
    return [
        (empty if 0 in pair[0] else state)
        if isinstance(state, Lost) or 0 in pair[0] or agrees(state, *pair, size, count)
        else UNKNOWN
        for state, pair, empty in zip(results, shapes, rows_of, strict=True)
    ]


def _sums_nothing(eqn: JaxprEqn) -> bool:
    """Whether it is a product with an empty array, and thus 0."""
    products = ("conv_general_dilated", "dot_general")
    return eqn.primitive.name in products and any(0 in shape_of(a) for a in eqn.invars)


def _results(eqn: JaxprEqn, states: list[State]) -> Sequence[State]:
    name = eqn.primitive.name
    # An effect can bring the batch in without an operand: the value of a mutable array.
    if not eqn.effects and all(s is None for s in states):
        return [None] * len(eqn.outvars)
    if name in PROGRAMS:
        return PROGRAMS[name](Pair(eqn), states)
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
    state = state if fits(state, shape) else UNKNOWN
    if isinstance(state, Lost) and state != SUM and " at " not in state.where:
        # The insides of JAX's own functions have no line; the call is found on the way out.
        where, line = state.where or eqn.primitive.name, summarize(eqn.source_info)
        return state._replace(where=f"{where} at {line}" if line else where)
    return state


# Primitives that hold programs.


def _each(eqns: Pair, states: list[State]) -> list[State]:
    return states


def _opened(program: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def _call(eqns: Pair, states: list[State]) -> list[State]:
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
    name = next(name for name in names if name in eqns.batch.params)
    bodies = eqns.map(lambda eqn: eqn.params[name])
    results = follow(bodies, states)
    if eqns.trusting and any(isinstance(s, Lost) for s in results) and is_of_jax(bodies.batch):
        return follow(Pair(bodies.batch), list(map(firm, states)))
    return results


def _with_rule(eqns: Pair, states: list[State]) -> list[State]:
    """A function with a derivative of its own, which is to treat the rows alike as well."""
    outputs = _call(eqns, states)
    lost = any(isinstance(s, Lost) for s in outputs)
    if eqns.other is None or eqns.derived or lost or has_rule_of_jax(eqns.batch):
        return outputs
    moving = [s for s, a in zip(states, eqns.batch.invars, strict=True) if _has_fractions(a)]
    results = [s for s, y in zip(outputs, eqns.batch.outvars, strict=True) if _has_fractions(y)]
    forward = eqns.batch.primitive.name == "custom_jvp_call"
    given, expected = (moving, results) if forward else (results, moving)
    found = follow(eqns.map(derivative)._replace(derived=True), [*states, *given])
    # Of an operand that the examples share, the gradient is the sum of theirs.
    shared = None if forward else SUM
    pairs = ((a, shared if b is None else b) for a, b in zip(found, expected, strict=True))
    if all(firm(a) == firm(b) for a, b in pairs):
        return outputs
    return [Lost("unknown", "the derivative of a custom rule")] * len(outputs)


def _has_fractions(atom: Any) -> bool:
    return jnp.issubdtype(dtype_of(atom), jnp.inexact)


def _linear_solve(eqns: Pair, states: list[State]) -> list[State]:
    # First the constants of A v and Aᵀ v, then those of the solve and of its transpose.
    counts = eqns.batch.params["const_lengths"]
    start = counts.matvec + counts.vecmat
    constants, right_sides = states[start : start + counts.solve], states[sum(counts) :]
    return follow(eqns.map(lambda eqn: eqn.params["jaxprs"].solve), [*constants, *right_sides])


def _cond(eqns: Pair, states: list[State]) -> list[State]:
    index, *operands = states
    branches = [
        follow(eqns.map(lambda eqn, k=k: eqn.params["branches"][k]), operands)
        for k in range(len(eqns.batch.params["branches"]))
    ]
    return [met([index, reduce(either, outputs)]) for outputs in zip(*branches, strict=True)]


def _while(eqns: Pair, states: list[State]) -> list[State]:
    test, body = (eqns.map(lambda e, n=n: e.params[n]) for n in ("cond_jaxpr", "body_jaxpr"))
    first, second = (eqns.batch.params[name] for name in ("cond_nconsts", "body_nconsts"))
    tested, looped = states[:first], states[first : first + second]

    def advance(carry: list[State]) -> list[State]:
        # A predicate per example, as vmap makes it, masks the leading axes of what is carried.
        (predicate,) = follow(test, [*tested, *carry])
        return [met([predicate, s]) for s in follow(body, [*looped, *carry])]

    return _fixed_point(eqns.batch, states[first + second :], advance)


def _scan(eqns: Pair, states: list[State]) -> list[State]:
    eqn, programs = eqns.batch, eqns.map(lambda eqn: eqn.params["jaxpr"])
    body = _opened(programs.batch)
    # The body takes constants and carries as they are, and slices of the rest; likewise it returns.
    last = _of_equal_rank(eqn.invars, body.invars)
    first = last - _of_equal_rank(eqn.outvars, body.outvars)
    constants = states[:first]
    if eqns.other is not None and _runs_differ(eqns, carries=last - first):
        return [UNKNOWN] * len(eqn.outvars)
    # The axis scanned over is a new one below 0 for the body.
    axes = [p.axis for s in states if isinstance(s, Batch) for p in s.places]
    step = min([0, *axes]) - 1
    shapes = [shape_of(operand) for operand in eqn.invars[last:]]
    inwards = [{0: step} | {k: k - 1 for k in range(1, len(shape))} for shape in shapes]
    xs = [moved(s, axes) for s, axes in zip(states[last:], inwards, strict=True)]

    def advance(carry: list[State]) -> list[State]:
        # What a step hands on, it hands to other examples if it is that of one example.
        outputs = follow(programs, [*constants, *carry, *xs])[: len(carry)]
        return [moved(s, {step: COUPLED}) for s in outputs]

    carry = _fixed_point(eqn, states[first:last], advance)
    ys = follow(programs, [*constants, *carry, *xs])[len(carry) :]
    shapes = [shape_of(var) for var in body.outvars[len(carry) :]]
    outwards = [{step: 0} | {k: k + 1 for k in range(len(shape))} for shape in shapes]
    return [*carry, *(moved(y, axes) for y, axes in zip(ys, outwards, strict=True))]


def _runs_differ(eqns: Pair, carries: int) -> bool:
    """Whether a scan over the examples hands something on: one example alone has one step."""
    ran, once = (eqn.params for eqn in eqns[:2])
    return ran["reverse"] != once["reverse"] or (carries > 0 and ran["length"] != once["length"])


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


PROGRAMS: dict[str, Callable[[Pair, list[State]], list[State]]] = {
    **dict.fromkeys(("device_put", "mesh_cast", "optimization_barrier"), _each),
    **dict.fromkeys(("pcast", "pvary", "reshard"), _each),
    **dict.fromkeys(
        ("call", "closed_call", "composite", "core_call", "custom_vmap_call", "jit", "pjit"), _call
    ),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), _with_rule),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), _call),
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
    "scan": _scan,
    "while": _while,
}

CALLS = frozenset(name for name, rule in PROGRAMS.items() if rule in (_each, _call, _with_rule))
"""Programs that are run once, as they are."""
