"""Jaxprs inside jaxprs: the bodies of calls, loops and branches."""

from collections.abc import Iterable, Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.extend.core.primitives import custom_vjp_call_p


def bodies(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs among the parameters of an equation, not those inside them.

    >>> import jax
    >>> loop = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: 2 * x, x))(1.0)
    >>> [[e.primitive.name for e in body.eqns] for body in bodies(loop.eqns[0].params)]
    [['add', 'mul']]
    """

    def jaxprs(value: Any) -> Iterator[Jaxpr]:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            for item in value:
                yield from jaxprs(item)

    for value in params.values():
        yield from jaxprs(value)


def equations(outer: Iterable[Any]) -> Iterator[Any]:
    """The given equations, and all inside their calls, loops and branches.

    >>> import jax
    >>> f = jax.make_jaxpr(lambda x: jax.jit(jax.numpy.sin)(x) + 1)(1.0)
    >>> [e.primitive.name for e in equations(f.eqns)]
    ['jit', 'sin', 'add']
    """
    for equation in outer:
        yield equation
        for body in bodies(equation.params):
            yield from equations(body.eqns)


def has_forward_mode(outer: Iterable[Any]) -> bool:
    """Whether no equation is a `jax.custom_vjp`, which defines a pull back alone.

    >>> import jax
    >>> has_forward_mode(jax.make_jaxpr(lambda x: 2 * x)(1.0).eqns)
    True
    """
    return all(equation.primitive is not custom_vjp_call_p for equation in equations(outer))
