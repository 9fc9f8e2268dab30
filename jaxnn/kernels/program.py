"""A function as a list of equations that can be read, and run again with taps in it.

Every value is known to be *varying* (it depends on the data) or not, and to which parameters its
derivative goes. `unfolding.trace` makes the program of a function.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive

from jaxnn.kernels.mesh_axes import manual_axes, over
from jaxnn.types import Array, PyTree

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
    sources    of every value, the positions of the parameter inputs that its derivative goes to;
               integers, booleans and keys have none, however they are computed
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
        """Whether the value can be differentiated by parameters and does not depend on the data."""
        return bool(self.sources[value]) and not self.varying[value]

    def producer(self, value: int) -> Equation | None:
        """The equation whose output the value is, or None for inputs and constants."""
        return next((e for e in self.equations if value in e.outputs), None)

    def ancestors(self, values: Iterable[int]) -> frozenset[int]:
        """The values that the given ones are computed from, and they themselves."""
        needed = set(values)
        for equation in reversed(self.equations):
            if needed.intersection(equation.outputs):
                needed.update(equation.inputs)
        return frozenset(needed)

    def evaluated(self, value: int, leaves: Sequence[Any]) -> Any:
        """A value that depends on parameters alone, at parameters `leaves`."""
        needed = self.ancestors([value])
        equations = [e for e in self.equations if needed.intersection(e.outputs)]
        data = [None] * (len(self.inputs) - len(leaves))
        ((result,), _) = run(
            replace(self, outputs=[value], equations=equations), [*leaves, *data], {}
        )
        return result


def run(program: Program, arguments: Sequence[Any], taps: Taps) -> tuple[list[Any], Taps]:
    """The outputs of the program, and the input values of every tapped equation.

    A tap is added to the first output of its equation: zero leaves the result as it is, and the
    derivative with respect to it is the cotangent of that output.

    >>> from jaxnn.kernels.unfolding import trace
    >>> program = trace(lambda w, x: [x @ w], [jnp.ones((2, 3))], [jnp.ones(2)])
    >>> run(program, [jnp.ones((2, 3)), jnp.ones(2)], {0: 10.0 * jnp.ones(3)})[0]
    [Array([12., 12., 12.], dtype=float32)]
    """
    values = {
        number: over(manual_axes(program.avals[number]), constant)
        for number, constant in program.constants.items()
    }
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

    >>> from jaxnn.kernels.unfolding import trace
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
