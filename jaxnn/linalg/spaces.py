"""Trees of one space as flat vectors: the coordinates that Krylov bases are stored in."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import Float

from jaxnn.errors import invalid
from jaxnn.linalg.operators import LinearOperator
from jaxnn.types import Array, PyTree


class Coordinates(NamedTuple):
    """How the members of a space become vectors (size,) of one dtype, and back."""

    size: int
    dtype: jnp.dtype
    ravel: Callable[[PyTree], Float[Array, "n"]]
    unravel: Callable[[Float[Array, "n"]], PyTree]


def coordinates(space: PyTree) -> Coordinates:
    """The coordinates of trees like `space`, leaf after leaf, each in C order, in the widest dtype.

    >>> flat = coordinates({"a": jnp.zeros(2), "b": jnp.zeros((1, 2))})
    >>> flat.size, flat.unravel(jnp.arange(4.0))["b"]
    (4, Array([[2., 3.]], dtype=float32))
    """
    leaves, structure = jax.tree.flatten(space)
    # From shapes alone: no array of zeros that `jax.flatten_util` would need.
    shapes = [jnp.shape(leaf) for leaf in leaves]
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    dtype = jnp.dtype(max(dtypes, key=lambda d: jnp.finfo(d).bits, default=jnp.float32))
    bounds = np.cumsum([0, *sizes])

    def ravel(x: PyTree) -> Array:
        parts = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(x)]
        return jnp.concatenate(parts) if parts else jnp.zeros(0, dtype)

    def unravel(v: Array) -> PyTree:
        parts = [
            v[start : start + size].reshape(shape).astype(dtype)
            for start, size, shape, dtype in zip(bounds[:-1], sizes, shapes, dtypes, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return Coordinates(int(bounds[-1]), dtype, ravel, unravel)


def dot(a: Array, b: Array) -> Array:
    """a @ b with all the digits of its factors, on accelerators too.

    >>> dot(jnp.array([[1.0, 2.0]]), jnp.ones(2))
    Array([3.], dtype=float32)
    """
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def prepared(operator: LinearOperator) -> Callable[[Float[Array, "n"]], Float[Array, "n"]]:
    """v ↦ A v on coordinates, for use inside a loop: what does not depend on v is computed once.

    The product is linearized in v itself. All that it computes from other arrays alone (of a
    Hessian: the activations and their gradients) is then a constant of the linear map, computed
    outside the loop and kept; a product that recomputes on purpose (`jax.checkpoint`, as
    `mean_over_batches` does) goes on doing so. One that has no such derivative is called as it is:
    that of NumPy code, or of a solver, which stops when it is content (`linearizable` decides).
    """
    flat = coordinates(operator.domain)
    product = lambda v: flat.ravel(operator(flat.unravel(v)))
    # Not at 0, which programs may treat in their own way.
    point = jnp.ones(flat.size, flat.dtype)
    if not linearizable(jax.make_jaxpr(product)(point).jaxpr):
        return product
    return jax.linearize(product, point)[1]


def linearizable(program: Jaxpr) -> bool:
    """Whether the derivative of a linear program is the program: not so with `while` or callbacks.

    >>> linearizable(jax.make_jaxpr(lambda v: 2 * v)(1.0).jaxpr)
    True
    >>> halved = lambda v: jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, v)
    >>> linearizable(jax.make_jaxpr(halved)(1.0).jaxpr)
    False
    """
    for eqn in program.eqns:
        if eqn.primitive.name in ("while", "pure_callback", "io_callback"):
            return False
        if not all(map(linearizable, programs_in(eqn))):
            return False
    return True


def programs_in(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The programs within an equation: the body of a loop, the branches of a choice."""
    is_program = lambda value: isinstance(value, Jaxpr | ClosedJaxpr)
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
        if is_program(value):
            yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


def require_endomorphism(function: str, operator: LinearOperator) -> Coordinates:
    """The coordinates of a map of a space, not of dimension 0, into itself; raises for another."""
    domain, codomain = (jax.tree.flatten(s) for s in (operator.domain, operator.codomain))
    rows, columns = operator.shape
    if domain != codomain or columns == 0:
        raise invalid(
            f"{function}(operator)",
            got=f"an operator of shape {(rows, columns)}",
            expected="a map of one space, of dimension 1 or more, into itself",
            remedy="Domain and codomain must have the same structure, shapes and dtypes; "
            "A.T @ A and A @ A.T do.",
        )
    return coordinates(operator.domain)
