"""What solvers of Ax = b share: the dtypes of both sides, and the derivative of the solution.

Differentiating A(θ) x = b(θ) gives a system with the same matrix, A ẋ = ḃ - Ȧ x, in forward and in
reverse mode: no iteration is differentiated, and reverse mode needs no memory of one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn import tree
from jaxnn.errors import invalid
from jaxnn.precision import inexact
from jaxnn.types import Array, PyTree

Product = Callable[[PyTree], PyTree]


def right_side(argument: str, b: PyTree) -> PyTree:
    """b as floating point: integers are promoted to the default float.

    Errors: complex leaves, and leaves that are no arrays.

    >>> right_side("cg(b)", {"a": jnp.arange(2)})
    {'a': Array([0., 1.], dtype=float32)}
    """
    b = tree.strong(jax.tree.map(inexact, b))
    tree.require_differentiable(argument, b)
    return b


def widened(argument: str, function: Product, b: PyTree) -> Product:
    """`function`, which maps trees like b, as a map of trees in the dtypes that sums are made in.

    It is called with the dtypes of b; half precision is computed with in float32 besides.

    Errors: a result that is not like b, or complex.
    """

    def widened(v: PyTree) -> PyTree:
        return like(argument, function(tree.cast(v, b)), v)

    return widened


def like(argument: str, x: PyTree, b: PyTree) -> PyTree:
    """x in the dtypes of b; raises where it has another structure or other shapes."""
    (leaves, structure), (others, expected) = jax.tree.flatten(x), jax.tree.flatten(b)
    shapes, wanted = [jnp.shape(a) for a in leaves], [jnp.shape(a) for a in others]
    if structure != expected or shapes != wanted:
        raise invalid(
            argument,
            got=f"shapes {shapes} in {structure}",
            expected=f"those of b, {wanted} in {expected}",
            remedy="It has to be of the space that b is in.",
        )
    return tree.cast(jax.tree.map(inexact, x), b)


def solution(
    product: Product,
    b: PyTree,
    solve: Callable[[PyTree, PyTree | None], Any],
    *,
    start: PyTree | None = None,
    tolerance: Any,
    accuracy: Callable[[Any], Array] = lambda found: found.residual,
    derivative: bool = False,
) -> Any:
    """solve(b, start), a tuple with fields `x` and `residual`, with the derivatives of x = A⁻¹b.

    They are those of A⁻¹b, whatever the accuracy of x: ẋ is found by `solve` from 0, and so is the
    cotangent of b in reverse mode. A derivative whose own system is left with an `accuracy` (by
    default the relative residual) above √tolerance is NaN. With respect to the start the derivative
    is 0, and so is that of all fields but x. `derivative`: whether b is itself the right side of a
    derivative.

    Source: Christianson (1994), section 3.
    """
    # t is 1 for the system and 0 for those of its derivatives, as they are linear in (b, t).
    t = jnp.full((), 0.0 if derivative else 1.0, tree.norm(b).dtype)

    def extended(v: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        return _tied((product(v[0]), v[1]))

    def solved(_: Callable, right: tuple[PyTree, Array]) -> tuple[tuple[PyTree, Array], Any]:
        b, t = right
        given = t != 0
        zero = tree.scale(0.0, b)
        found = solve(b, start if start is None else tree.where(given, start, zero))
        limit = jnp.sqrt(jnp.asarray(tolerance, found.residual.dtype))
        known = given | (accuracy(found) <= limit)
        x = jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan), found.x)
        return (x, t), found._replace(x=None)

    (x, _), rest = lax.custom_linear_solve(
        extended, _tied((b, t)), solved, symmetric=True, has_aux=True
    )
    return rest._replace(x=x)


def _tied(x: PyTree) -> PyTree:
    """x, with a derivative of every leaf if there is one of any: as JAX's solve transposes them."""
    nothing = lambda leaf: jnp.sum(jnp.where(False, leaf, jnp.zeros_like(leaf)))
    parts = [nothing(leaf) for leaf in jax.tree.leaves(x)]
    return jax.tree.map(lambda leaf: leaf + sum(p.astype(leaf.dtype) for p in parts), x)
