"""What programs are made of: the equations that JAX traces a function to."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from jaxnn.types import ArrayLike, PyTree

NOT_LINEARIZED = frozenset(
    {"while", "pure_callback", "io_callback", "stop_gradient", "custom_vjp_call"}
)
"""Equations whose derivative is none, or not what they compute."""

CALLS = frozenset({"jit", "pjit", "closed_call", "checkpoint", "custom_jvp_call", "scan", "cond"})
"""Equations whose last inputs are those of the programs in them, one for one."""


def programs_in(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The programs within an equation: the body of a loop, the branches of a choice."""
    is_program = lambda value: isinstance(value, Jaxpr | ClosedJaxpr)
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
        if is_program(value):
            yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


def hoisted(
    function: Callable[..., PyTree], *examples: Any
) -> tuple[Callable[..., PyTree], list[ArrayLike]]:
    """A function of (arrays, *arguments) like the examples, and the arrays that it closes over.

    Rules of differentiation can only be written for arrays that a function is passed.

    >>> scales = jnp.array([3.0, 4.0])
    >>> multiply, arrays = hoisted(lambda v: scales * v, jnp.ones(2))
    >>> len(arrays), multiply(arrays, jnp.ones(2))
    (1, Array([3., 4.], dtype=float32))
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
    structure = jax.tree.structure(shapes)

    def closed(arrays: list[ArrayLike], *arguments: Any) -> PyTree:
        run = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, arrays))
        return jax.tree.unflatten(structure, run(*jax.tree.leaves(arguments)))

    return closed, program.consts


def linearizable(program: Jaxpr) -> bool:
    """Whether the derivative of a linear program is the program.

    Not so where a `while`, a callback, a `stop_gradient` or a derivative by hand has to do with its
    inputs; what it computes of constants alone may be done by these.

    >>> linearizable(jax.make_jaxpr(lambda v: 2 * v)(1.0).jaxpr)
    True
    >>> halved = lambda v: jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, v)
    >>> linearizable(jax.make_jaxpr(halved)(1.0).jaxpr)
    False
    """
    return _dependent(program, [True] * len(program.invars)) is not None


def _dependent(program: Jaxpr, inputs: Sequence[bool]) -> list[bool] | None:
    """Which outputs depend on these of the inputs; None where that is not linear for sure."""
    known = {var for var, depends in zip(program.invars, inputs, strict=True) if depends}
    depends_on = lambda var: not isinstance(var, Literal) and var in known
    for eqn in program.eqns:
        depends = [depends_on(var) for var in eqn.invars]
        if not any(depends):
            continue
        if eqn.primitive.name in NOT_LINEARIZED:
            return None
        found = _through(eqn, depends)
        if found is None:
            return None
        known |= {var for var, depends in zip(eqn.outvars, found, strict=True) if depends}
    return [depends_on(var) for var in program.outvars]


def _through(eqn: JaxprEqn, inputs: list[bool]) -> list[bool] | None:
    """Which outputs of an equation depend on these of its inputs, some of which do."""
    name, inner = eqn.primitive.name, list(programs_in(eqn))
    if name not in CALLS:
        if any(_dependent(program, [True] * len(program.invars)) is None for program in inner):
            return None
        return [True] * len(eqn.outvars)
    if name == "cond" and inputs[0]:
        return None
    constants, carried = _loop(eqn, inner[0]) if name == "scan" else (0, 0)
    while True:
        outputs = [False] * len(eqn.outvars)
        for program in inner:
            found = _dependent(program, inputs[len(inputs) - len(program.invars) :])
            if found is None:
                return None
            outputs = [a or b for a, b in zip(outputs, found, strict=True)]
        # What one round of a loop makes depend on them goes into the next.
        carry = slice(constants, constants + carried)
        fed = [a or b for a, b in zip(inputs[carry], outputs[:carried], strict=True)]
        if fed == inputs[carry]:
            return outputs
        inputs[carry] = fed


def _loop(eqn: JaxprEqn, body: Jaxpr) -> tuple[int, int]:
    """How many constants a `scan` has, and how many numbers it carries: by shapes alone.

    What is stacked has one axis more outside than in the body. (Parameters change with JAX.)
    """
    whole = lambda outside, inside: jnp.ndim(outside.aval) == jnp.ndim(inside.aval)
    carried = sum(map(whole, eqn.outvars, body.outvars))
    return sum(map(whole, eqn.invars, body.invars)) - carried, carried
