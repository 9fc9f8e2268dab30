"""Which entry of which parameter stands where in a matrix that a network multiplies by.

Scaling, transposing, reshaping, slicing, joining and gathering only move the entries of
parameters about. Run on the numbers of the entries instead of on the entries, the same equations
say exactly where each has gone: whether two matrices share entries, whether one entry appears
twice. A Gram matrix of gradients does not feel a move of coordinates, so such a view costs nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.extend.core import primitives as p

from jaxnn.kernels.program import Equation, Program, bind, is_concrete

CONSTANT = -1
"""The number of an entry that is no parameter."""


class View(NamedTuple):
    """`scale` times the parameter entries numbered by `index` (CONSTANT where there is none)."""

    index: Any
    scale: Any = 1.0


class NotAViewError(Exception):
    """The value is no rearrangement of parameter entries."""


# Primitives that only move entries, with the positions of the operands whose entries they move
# (None: all).
_MOVES: dict[Primitive, tuple[int, ...] | None] = {
    p.transpose_p: (0,),
    p.reshape_p: (0,),
    p.squeeze_p: (0,),
    p.broadcast_in_dim_p: (0,),
    p.slice_p: (0,),
    p.rev_p: (0,),
    p.copy_p: (0,),
    p.concatenate_p: None,
    p.pad_p: (0, 1),
    p.dynamic_slice_p: (0,),
    p.dynamic_update_slice_p: (0, 1),
    p.gather_p: (0,),
}


def leaf_views(leaves: list[Any]) -> list[View]:
    """The views of the parameters themselves: entries are numbered through all leaves in order.

    >>> [v.index.tolist() for v in leaf_views([jnp.ones(2), jnp.ones((1, 2))])]
    [[0, 1], [[2, 3]]]
    """
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return [
        View(np.arange(start, start + size, dtype=np.int32).reshape(leaf.shape))
        for leaf, start, size in zip(leaves, starts[:-1], sizes, strict=True)
    ]


def view(program: Program, value: int, inputs: dict[int, View]) -> View:
    """The view that a parameter value is, given those of the program's parameter inputs.

    Raises NotAViewError where entries are combined or changed by more than a known scale.
    """
    if value in inputs:
        return inputs[value]
    equation = program.producer(value)
    if equation is None:
        raise NotAViewError
    rule = _RULES.get(equation.primitive)
    if rule is None:
        raise NotAViewError
    return rule(program, equation, lambda operand: view(program, operand, inputs))


def _moved(program: Program, equation: Equation, of: Callable[[int], View]) -> View:
    moves = _MOVES[equation.primitive]
    positions = range(len(equation.inputs)) if moves is None else moves
    operands, scales = [], []
    for position, number in enumerate(equation.inputs):
        if position not in positions:
            where = program.constants.get(number)
            if where is None or not is_concrete(where):
                raise NotAViewError
            operands.append(where)
        elif program.constants.get(number) is not None:
            operands.append(np.full(program.avals[number].shape, CONSTANT, np.int32))
        else:
            operand = of(number)
            operands.append(operand.index)
            scales.append(operand.scale)
    if any(not same_scale(scale, scales[0]) for scale in scales):
        raise NotAViewError
    params = dict(equation.params)
    if params.get("fill_value") is not None:
        params["fill_value"] = CONSTANT
    with jax.ensure_compile_time_eval():
        (index, *_) = bind(equation._replace(params=params), [jnp.asarray(o) for o in operands])
    return View(np.asarray(index), scales[0])


def _converted(program: Program, equation: Equation, of: Callable[[int], View]) -> View:
    before, after = (program.avals[i].dtype for i in (*equation.inputs, *equation.outputs))
    if jnp.issubdtype(before, jnp.complexfloating) > jnp.issubdtype(after, jnp.complexfloating):
        raise NotAViewError  # the imaginary part is dropped
    return of(equation.inputs[0])


def _negated(program: Program, equation: Equation, of: Callable[[int], View]) -> View:
    index, scale = of(equation.inputs[0])
    return View(index, -scale)


def _scaled(program: Program, equation: Equation, of: Callable[[int], View]) -> View:
    first, second = equation.inputs
    if equation.primitive is p.mul_p and first in program.constants:
        first, second = second, first
    factor = program.constants.get(second)
    same_shape = program.avals[first].shape == program.avals[equation.outputs[0]].shape
    if factor is None or np.size(factor) != 1 or not same_shape:
        raise NotAViewError
    index, scale = of(first)
    factor = np.asarray(factor).item() if is_concrete(factor) else jnp.reshape(factor, ())
    return View(index, scale * factor if equation.primitive is p.mul_p else scale / factor)


_RULES: dict[Primitive, Callable[[Program, Equation, Callable[[int], View]], View]] = {
    **dict.fromkeys(_MOVES, _moved),
    p.convert_element_type_p: _converted,
    p.neg_p: _negated,
    p.mul_p: _scaled,
    p.div_p: _scaled,
}


def same_scale(first: Any, second: Any) -> bool:
    """Whether two scales are surely equal; traced ones only if they are one object."""
    both_known = all(isinstance(scale, float | complex) for scale in (first, second))
    return first is second or (both_known and first == second)
