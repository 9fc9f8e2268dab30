"""Convolutions in loops, with the order of axes that XLA's CPU has a fast algorithm for.

XLA reorders the axes of a convolution only outside of loops (jaxlib 0.10.1 and 0.12). Derivatives
with respect to a kernel swap the batch with the channels; inside a loop these are then computed
entry by entry, 10 to 50 times as slowly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from jaxnn.linalg.programs import programs_in
from jaxnn.types import Array, PyTree

INLINED = frozenset({"jit", "pjit", "closed_call"})
"""Calls that mean nothing but their body."""


def reordered(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The function with its convolutions over (batch, space, channels), by transposed arrays.

    On a CPU; elsewhere, and without a convolution of other axes, it is the function as it is.

    >>> dimensions = ("CHWN", "HWIO", "NHWC")
    >>> f = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", (1, 1), (1, 1), dimensions)
    >>> x, w = jnp.arange(18.0).reshape(2, 3, 3, 1), jnp.ones((2, 2, 2, 4))
    >>> bool(jnp.allclose(reordered(f)(x, w), f(x, w)))
    True
    """

    def run(*arguments: Any) -> PyTree:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = reordered_program(program)(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return run


def reordered_program(program: ClosedJaxpr) -> Callable[..., Sequence[Any]]:
    """`reordered`, of a program and flat arguments."""
    if jax.default_backend() != "cpu" or not _has_other_order(program.jaxpr):
        return jaxpr_as_fun(program)
    return lambda *leaves: _run(program.jaxpr, program.consts, leaves)


def _run(program: Jaxpr, arrays: Sequence[Any], leaves: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(program.constvars, arrays, strict=True))
    values.update(zip(program.invars, leaves, strict=True))
    read = lambda var: var.val if isinstance(var, Literal) else values[var]
    for eqn in program.eqns:
        outputs = _outputs(eqn, [read(var) for var in eqn.invars])
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(var) for var in program.outvars]


def _outputs(eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
    name = eqn.primitive.name
    if _is_other_order(eqn):
        return [_convolution(eqn.params, *inputs)]
    inner = list(programs_in(eqn))
    if name in INLINED and _has_other_order(inner[0]):
        whole = [value for value in eqn.params.values() if isinstance(value, ClosedJaxpr)]
        return _run(inner[0], whole[0].consts if whole else (), inputs)
    if name == "checkpoint" and _has_other_order(inner[0]):
        again = lambda *inputs: _run(inner[0], (), inputs)
        options = {key: eqn.params[key] for key in ("policy", "prevent_cse")}
        return jax.checkpoint(again, **options)(*inputs)
    outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return outputs if eqn.primitive.multiple_results else [outputs]


def _convolution(params: dict[str, Any], x: Array, w: Array) -> Array:
    dimensions = params["dimension_numbers"]
    batch, channels, *space = dimensions.lhs_spec
    made, taken, *window = dimensions.rhs_spec
    y = lax.conv_general_dilated(
        jnp.transpose(x, (batch, *space, channels)),
        jnp.transpose(w, (*window, taken, made)),
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        _in_order(len(space)),
        params["feature_group_count"],
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    batch, channels, *space = dimensions.out_spec
    return jnp.transpose(y, np.argsort((batch, *space, channels)).tolist())


def _in_order(space: int) -> lax.ConvDimensionNumbers:
    outer = (0, space + 1, *range(1, space + 1))
    return lax.ConvDimensionNumbers(outer, (space + 1, space, *range(space)), outer)


def _is_other_order(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name != "conv_general_dilated" or eqn.params["batch_group_count"] != 1:
        return False
    dimensions = eqn.params["dimension_numbers"]
    return dimensions != _in_order(len(dimensions.lhs_spec) - 2)


def _has_other_order(program: Jaxpr) -> bool:
    return any(
        _is_other_order(eqn) or any(map(_has_other_order, programs_in(eqn))) for eqn in program.eqns
    )
