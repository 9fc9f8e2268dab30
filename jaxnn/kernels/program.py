"""A function as a list of equations that can be read, and run again with taps in it.

`trace` unfolds f(params, example) into a `Program`. Calls that parameters pass through (jit,
remat) are inlined; what depends on neither parameters nor data is computed at once. Every value
is known to be *varying* (it depends on the data) or not, and from which parameters it comes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive
from jax.extend.core.primitives import closed_call_p, jit_p, remat_p, scan_p

from jaxnn.types import Array, PyTree, Shape

Taps: TypeAlias = dict[int, Any]
"""By index of an equation: what is added to its output, or for a scan the taps of its body."""


class Equation(NamedTuple):
    """outputs = primitive(inputs); inputs and outputs are the numbers of values.

    A scan that parameters enter also has its body, and its numbers of constants, of carries and of
    iterations.
    """

    primitive: Primitive
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    body: "Program | None" = None
    scan: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Program:
    """Equations over numbered values, in order of evaluation.

    inputs     values that `run` is given, in order
    outputs    values that `run` returns
    constants  value number -> array, for what depends on no input
    avals      shape and dtype of every value
    sources    of every value, the positions of the parameter inputs that it depends on
    varying    of every value, whether it depends on the data
    """

    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    avals: list[Any] = field(default_factory=list)
    sources: list[frozenset[int]] = field(default_factory=list)
    varying: list[bool] = field(default_factory=list)

    def is_parameter(self, value: int) -> bool:
        """Whether the value depends on parameters and not on the data."""
        return bool(self.sources[value]) and not self.varying[value]

    def producer(self, value: int) -> Equation | None:
        """The equation whose output the value is, or None for inputs and constants."""
        return next((e for e in self.equations if value in e.outputs), None)


def trace(f: Callable[..., Sequence[Array]], leaves: Sequence[Any], data: Sequence[Any]) -> Program:
    """The program of f(*leaves, *data), whose first inputs are parameters and the others data.

    >>> program = trace(lambda w, x: [jnp.tanh(x @ (2.0 * w))], [jnp.ones((2, 3))], [jnp.ones(2)])
    >>> [e.primitive.name for e in program.equations]
    ['mul', 'dot_general', 'tanh']
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
    return program


def run(program: Program, arguments: Sequence[Any], taps: Taps) -> tuple[list[Any], Taps]:
    """The outputs of the program, and the input values of every tapped equation.

    A tap is added to the first output of its equation: zero leaves the result as it is, and the
    derivative with respect to it is the cotangent of that output.

    >>> program = trace(lambda w, x: [x @ w], [jnp.ones((2, 3))], [jnp.ones(2)])
    >>> run(program, [jnp.ones((2, 3)), jnp.ones(2)], {0: 10.0 * jnp.ones(3)})[0]
    [Array([12., 12., 12.], dtype=float32)]
    """
    values = dict(program.constants)
    values.update(zip(program.inputs, arguments, strict=True))
    operands: Taps = {}
    for index, equation in enumerate(program.equations):
        inputs = [values[i] for i in equation.inputs]
        if index not in taps:
            outputs = bind(equation, inputs)
        elif equation.body is not None:
            outputs, operands[index] = _run_scan(equation, inputs, taps[index])
        else:
            first, *rest = bind(equation, inputs)
            outputs, operands[index] = [first + taps[index], *rest], inputs
        values.update(zip(equation.outputs, outputs, strict=True))
    return [values[i] for i in program.outputs], operands


def bind(equation: Equation, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of one equation.

    >>> program = trace(lambda w, x: [x @ w], [jnp.ones((2, 3))], [jnp.ones(2)])
    >>> bind(program.equations[0], [jnp.ones(2), jnp.ones((2, 3))])
    [Array([2., 2., 2.], dtype=float32)]
    """
    params = equation.primitive.get_bind_params(equation.params)
    outputs = equation.primitive.bind(*inputs, **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def _run_scan(equation: Equation, inputs: list[Any], taps: Taps) -> tuple[list[Any], Taps]:
    consts, carries, length = equation.scan
    fixed, init, xs = inputs[:consts], inputs[consts : consts + carries], inputs[consts + carries :]
    body = equation.body
    assert body is not None

    def step(carry: list[Any], slices: tuple) -> tuple[list[Any], tuple]:
        x, tap = slices
        outputs, operands = run(body, [*fixed, *carry, *x], tap)
        return outputs[:carries], (outputs[carries:], operands)

    reverse, unroll = equation.params["reverse"], equation.params["unroll"]
    carry, (ys, operands) = lax.scan(
        step, init, (xs, taps), length=length, reverse=reverse, unroll=unroll
    )
    return [*carry, *ys], operands


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
        else:
            outputs = _append(program, eqn, inputs)
        numbers.update(zip(eqn.outvars, outputs, strict=True))
    return [number(atom) for atom in jaxpr.outvars]


def _evaluated(eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    equation = Equation(eqn.primitive, eqn.params, (), ())
    if not all(is_concrete(value) for value in inputs):
        return bind(equation, inputs)
    with jax.ensure_compile_time_eval():  # numbers also while a caller is being traced
        return bind(equation, inputs)


def is_concrete(value: Any) -> bool:
    """Whether an array's entries can be read: it is not traced, and no key.

    >>> is_concrete(jnp.ones(2)), jax.eval_shape(lambda x: jnp.ones(int(is_concrete(x))), 1.0).shape
    (True, (0,))
    """
    try:
        np.asarray(value)
    except (TypeError, jax.errors.TracerArrayConversionError):
        return False
    return True


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
    outputs = [_new(program, v.aval, sources, varying) for v in eqn.outvars]
    body = None
    if eqn.primitive is scan_p and varying and any(program.is_parameter(i) for i in inputs):
        body = _scan_body(program, eqn, inputs)
    scan = (0, 0, 0) if body is None else _scan_sizes(eqn)
    program.equations.append(
        Equation(eqn.primitive, eqn.params, inputs, tuple(outputs), body, scan)
    )
    return outputs


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
            inner = _new(body, var.aval, frozenset(), True)
        body.inputs.append(inner)
    body.outputs.extend(_inline(body, closed.jaxpr, closed.consts, body.inputs))
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


def zero_taps(program: Program, tapped: PyTree) -> Taps:
    """Zeros in the shape of the outputs of the tapped equations.

    `tapped` is a dictionary by index of an equation: of None, or for a scan of such a dictionary.
    """
    taps: Taps = {}
    for index, inner in tapped.items():
        equation = program.equations[index]
        if inner is None:
            aval = program.avals[equation.outputs[0]]
            taps[index] = jnp.zeros(aval.shape, aval.dtype)
        else:
            _, _, length = equation.scan
            stack = partial(_stacked, length)
            taps[index] = jax.tree.map(stack, zero_taps(equation.body, inner))
    return taps


def _stacked(length: int, array: Array) -> Array:
    return jnp.broadcast_to(array, (length, *array.shape))
