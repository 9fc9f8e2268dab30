"""How a function becomes a program: calls are unfolded, and products of parameters regrouped.

Calls that parameters pass through (jit, remat) are inlined; what depends on neither parameters nor
data is computed at once; products are regrouped as `rewriting` says.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.core.primitives import closed_call_p, jit_p, remat_p, scan_p, stop_gradient_p

from jaxnn.kernels.mesh_axes import manual_axes, over
from jaxnn.kernels.program import Equation, Program, bind, is_concrete
from jaxnn.kernels.rewriting import regrouped
from jaxnn.types import Array, Shape


def trace(f: Callable[..., Sequence[Array]], leaves: Sequence[Any], data: Sequence[Any]) -> Program:
    """The program of f(*leaves, *data), whose first inputs are parameters and the others data.

    >>> import jax.numpy as jnp
    >>> program = trace(lambda w, x: [jnp.tanh(x @ w.T)], [jnp.ones((3, 2))], [jnp.ones(2)])
    >>> [e.primitive.name for e in program.equations]
    ['transpose', 'dot_general', 'tanh']
    >>> [program.is_parameter(e.outputs[0]) for e in program.equations]
    [True, False, False]
    """
    closed = jax.make_jaxpr(f)(*leaves, *data)
    program = Program()
    for position, var in enumerate(closed.jaxpr.invars):
        is_leaf = position < len(leaves)
        source = frozenset([position]) if is_leaf else frozenset()
        program.inputs.append(_new(program, var.aval, source, not is_leaf))
    program.outputs.extend(_inline(program, closed.jaxpr, closed.consts, program.inputs))
    _forget_unused(program)
    return program


def _forget_unused(program: Program) -> None:
    """Leave out what regrouping has left over of the parameters."""

    def is_kept(equation: Equation) -> bool:
        return not equation.outputs or any(program.varying[i] for i in equation.inputs)

    kept = [i for equation in filter(is_kept, program.equations) for i in equation.inputs]
    needed = program.ancestors([*kept, *program.outputs])
    program.equations[:] = [
        e for e in program.equations if is_kept(e) or needed.intersection(e.outputs)
    ]


def _new(program: Program, aval: Any, sources: frozenset[int], varying: bool) -> int:
    program.avals.append(aval)
    program.sources.append(sources)
    program.varying.append(varying)
    return len(program.avals) - 1


def _constant(program: Program, aval: Any, value: Any) -> int:
    number = _new(program, aval, frozenset(), False)
    program.constants[number] = value
    return number


def _inline(
    program: Program, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[int]
) -> list[int]:
    numbers: dict[Any, int] = dict(zip(jaxpr.invars, arguments, strict=True))
    for var, value in zip(jaxpr.constvars, consts, strict=True):
        numbers[var] = _constant(program, var.aval, value)

    def number(atom: Any) -> int:
        if isinstance(atom, Literal):
            return _constant(program, atom.aval, atom.val)
        return numbers[atom]

    for eqn in jaxpr.eqns:
        inputs = tuple(number(atom) for atom in eqn.invars)
        called = _called(eqn)
        if called is not None and any(program.sources[i] for i in inputs):
            outputs = _inline(program, called.jaxpr, called.consts, inputs)
        elif all(i in program.constants for i in inputs):
            values = _evaluated(eqn, [program.constants[i] for i in inputs])
            outputs = [
                _constant(program, v.aval, value)
                for v, value in zip(eqn.outvars, values, strict=True)
            ]
        elif (regrouping := regrouped(program, eqn, inputs)) is not None:
            operands = regrouping.operands
            equal = jax.make_jaxpr(regrouping.function)(*(program.avals[i] for i in operands))
            outputs = _inline(program, equal.jaxpr, equal.consts, operands)
        else:
            outputs = _append(program, eqn, inputs)
        numbers.update(zip(eqn.outvars, outputs, strict=True))
    return [number(atom) for atom in jaxpr.outvars]


def _evaluated(eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    equation = Equation(eqn.primitive, eqn.params, (), ())
    if eqn.primitive.name == "pvary":  # constants get the axes of their types when they are used
        return inputs
    if not all(is_concrete(value) for value in inputs):
        typed = [over(manual_axes(v.aval), i) for v, i in zip(eqn.invars, inputs, strict=True)]
        return bind(equation, typed)
    with jax.ensure_compile_time_eval():  # numbers also while a caller is being traced
        return bind(equation, inputs)


def _called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The body of a call that means nothing but its body."""
    if eqn.primitive is jit_p:
        return eqn.params["jaxpr"]
    if eqn.primitive is closed_call_p:
        return eqn.params["call_jaxpr"]
    if eqn.primitive is remat_p:
        return ClosedJaxpr(eqn.params["jaxpr"], ())
    # custom_jvp and custom_vjp define derivatives that their bodies do not have.
    return None


def _append(program: Program, eqn: JaxprEqn, inputs: tuple[int, ...]) -> list[int]:
    sources = frozenset().union(*(program.sources[i] for i in inputs))
    varying = any(program.varying[i] for i in inputs)
    outputs = [
        _new(program, v.aval, sources if _has_gradient(eqn, v.aval) else frozenset(), varying)
        for v in eqn.outvars
    ]
    body = None
    if eqn.primitive is scan_p and varying and any(program.is_parameter(i) for i in inputs):
        body = _scan_body(program, eqn, inputs)
    scan = (0, 0, 0) if body is None else _scan_sizes(eqn)
    program.equations.append(
        Equation(eqn.primitive, eqn.params, inputs, tuple(outputs), body, scan)
    )
    return outputs


def _has_gradient(eqn: JaxprEqn, output: Any) -> bool:
    """Whether derivatives pass: not to comparisons, indices and keys, though weights made them."""
    return eqn.primitive is not stop_gradient_p and jnp.issubdtype(output.dtype, jnp.inexact)


def _scan_body(program: Program, eqn: JaxprEqn, inputs: tuple[int, ...]) -> Program | None:
    """The body as a program of its own, its parameters being the scan's parameter inputs."""
    consts, carries, _ = _scan_sizes(eqn)
    if any(program.is_parameter(i) for i in inputs[consts : consts + carries]):
        return None  # a parameter becomes data after one iteration
    closed = eqn.params["jaxpr"]
    body = Program()
    for position, (outer, var) in enumerate(zip(inputs, closed.jaxpr.invars, strict=True)):
        if position < consts and outer in program.constants:
            inner = _constant(body, var.aval, program.constants[outer])
        elif program.is_parameter(outer):
            inner = _new(body, var.aval, frozenset([position]), False)
        else:
            known = position < consts and not program.varying[outer]  # a choice made by weights
            inner = _new(body, var.aval, frozenset(), not known)
        body.inputs.append(inner)
    body.outputs.extend(_inline(body, closed.jaxpr, closed.consts, body.inputs))
    _forget_unused(body)
    return body


def _scan_sizes(eqn: JaxprEqn) -> tuple[int, int, int]:
    """Numbers of constants, carries and iterations, told by shapes.

    What is scanned over has an axis more than the body sees of it; the names of a scan's own
    parameters differ between versions of JAX.
    """
    body = eqn.params["jaxpr"].jaxpr
    same_in, same_out = (
        [_shape(outer) == _shape(inner) for outer, inner in zip(*pair, strict=True)]
        for pair in ((eqn.invars, body.invars), (eqn.outvars, body.outvars))
    )
    return sum(same_in) - sum(same_out), sum(same_out), eqn.params["length"]


def _shape(atom: Any) -> Shape:
    return atom.aval.shape
