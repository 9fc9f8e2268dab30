"""Derivatives that functions define for themselves, held to the rule that rows are treated alike.

The trace of a function with a `jax.custom_jvp` or `jax.custom_vjp` does not show its derivative. It
is traced by itself, on the batch and on one example, and followed like any other program.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

from jaxnn.kernels.axis_maps import dtype_of, shape_of
from jaxnn.kernels.batch_layout import Batch, Lost, State


def is_of_jax(program: Any) -> bool:
    """Whether the function that a program was traced from is one of JAX's own.

    >>> is_of_jax(jax.make_jaxpr(jnp.tanh)(1.0)), is_of_jax(jax.make_jaxpr(lambda x: x)(1.0))
    (True, False)
    """
    info = getattr(getattr(program, "jaxpr", program), "debug_info", None)
    return _JAX in str(getattr(info, "func_src_info", ""))


def has_rule_of_jax(eqn: JaxprEqn) -> bool:
    """Whether a function with a custom derivative, and the derivative, are JAX's own."""
    traced = [p for p in eqn.params.values() if hasattr(getattr(p, "jaxpr", p), "debug_info")]
    return all(map(is_of_jax, traced))


_JAX = jax.__file__.removesuffix("__init__.py")


def derivative(eqn: JaxprEqn) -> ClosedJaxpr:
    """The derivative that a custom rule defines, as a program.

    Of a custom_jvp_call it takes the operands and the tangents of those with fractions; of a
    custom_vjp_call the operands and the cotangents of the outputs with fractions.
    """

    def call(*operands: Any) -> list[Any]:
        params = eqn.primitive.get_bind_params(eqn.params)
        return eqn.primitive.bind(*operands, **params)

    avals = [jax.ShapeDtypeStruct(shape_of(a), dtype_of(a)) for a in eqn.invars]
    moving = [k for k, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, jnp.inexact)]

    def of_moving(operands: list[Any], values: Sequence[Any]) -> list[Any]:
        operands = list(operands)
        for k, value in zip(moving, values, strict=True):
            operands[k] = value
        return [y for y in call(*operands) if jnp.issubdtype(y.dtype, jnp.inexact)]

    def push(operands: list[Any], tangents: list[Any]) -> list[Any]:
        values = [operands[k] for k in moving]
        return jax.jvp(lambda *v: of_moving(operands, v), tuple(values), tuple(tangents))[1]

    def pull(operands: list[Any], cotangents: list[Any]) -> list[Any]:
        values = [operands[k] for k in moving]
        return list(jax.vjp(lambda *v: of_moving(operands, v), *values)[1](cotangents))

    if eqn.primitive.name == "custom_jvp_call":
        return jax.make_jaxpr(push)(avals, [avals[k] for k in moving])
    outputs = [jax.ShapeDtypeStruct(shape_of(v), dtype_of(v)) for v in eqn.outvars]
    outputs = [y for y in outputs if jnp.issubdtype(y.dtype, jnp.inexact)]
    return jax.make_jaxpr(pull)(avals, outputs)


SUM = Lost("unknown", "a sum over the examples")
"""In the pull back of a rule: what the examples add to the gradient of an operand they share.

The batch's value is the sum over the examples of the other program's, computed from each alone.
"""


ONE_BY_ONE = frozenset(
    (
        *("broadcast_in_dim", "convert_element_type", "copy", "mul", "neg"),
        *("reduce_sum", "reshape", "squeeze", "transpose"),
    )
)
"""Primitives that are linear in each operand."""


def sums(eqn: JaxprEqn, states: Sequence[State], size: int) -> bool:
    """Whether an equation adds up all the examples, or is linear in what is so added up."""
    name = eqn.primitive.name
    if SUM in states:
        if name in ("add", "add_any", "sub"):
            return all(s == SUM for s in states)
        one = list(states).count(SUM) == 1 and all(s is None or s == SUM for s in states)
        return name in ONE_BY_ONE and one
    batches = [s for s in states if isinstance(s, Batch)]
    axes = [{place.axis for place in s.places} for s in batches]
    if any(s.examples != size for s in batches) or len(batches) != len(states):
        return False
    if name == "reduce_sum":
        return axes[0] <= set(eqn.params["axes"])
    if name == "dot_general":
        (left, right), _ = eqn.params["dimension_numbers"]
        places = [dict(zip(c, range(len(c)), strict=True)) for c in (left, right)]
        if not (axes[0] <= set(left) and axes[1] <= set(right)):
            return False
        met_at = [
            [place._replace(axis=at[place.axis]) for place in s.places]
            for s, at in zip(batches, places, strict=True)
        ]
        return met_at[0] == met_at[1]
    return False
