"""Linear maps of a space into itself, as functions of coordinates."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxnn.errors import invalid
from jaxnn.linalg.convolutions import reordered_program
from jaxnn.linalg.operators import LinearOperator, is_real
from jaxnn.linalg.programs import hoisted, linearizable
from jaxnn.linalg.vectors import Coordinates, coordinates
from jaxnn.types import Array, ArrayLike


def prepared(operator: LinearOperator) -> Callable[[Float[Array, "n"]], Float[Array, "n"]]:
    """v ↦ A v on coordinates, for use inside a loop: what does not depend on v is computed once.

    The product is linearized in v itself. All that it computes from other arrays alone (of a
    Hessian: the activations and their gradients) is then a constant of the linear map, computed
    outside the loop and kept; a product that recomputes on purpose (`jax.checkpoint`, as
    `mean_over_batches` does) goes on doing so. One that has no such derivative is called as it is:
    that of NumPy code, of a `custom_vjp`, or of a solver, which stops when it is content
    (`linearizable` decides).
    """
    product, arrays = with_arrays(operator)
    return prepared_product(partial(product, arrays), coordinates(operator.domain))


def prepared_constant(
    operator: LinearOperator,
) -> Callable[[Float[Array, "n"]], Float[Array, "n"]]:
    """`prepared`, with what the operator carries as constants: no derivative goes through it."""
    product, arrays = with_arrays(operator)
    arrays = jax.lax.stop_gradient(arrays)
    return prepared_product(partial(product, arrays), coordinates(operator.domain))


def with_arrays(operator: LinearOperator) -> tuple[Callable[..., Array], list[ArrayLike]]:
    """(arrays, v) ↦ A v on coordinates, and the arrays that A carries or closes over."""
    flat = coordinates(operator.domain)
    product = lambda v: flat.ravel(operator(flat.unravel(v)))
    return hoisted(product, _point(flat))


def prepared_product(
    product: Callable[[Array], Array], flat: Coordinates
) -> Callable[[Float[Array, "n"]], Float[Array, "n"]]:
    """A product on coordinates, linearized if that is possible."""
    program = jax.make_jaxpr(product)(_point(flat))
    run = reordered_program(program)
    fast = lambda v: run(v)[0]
    return jax.linearize(fast, _point(flat))[1] if linearizable(program.jaxpr) else fast


def _point(flat: Coordinates) -> Array:
    # Not 0, which programs may treat in their own way.
    return jnp.ones(flat.size, flat.dtype)


def require_endomorphism(function: str, operator: LinearOperator) -> Coordinates:
    """The coordinates of a map of a real space, not of dimension 0, into itself; or it raises."""
    domain, codomain = (jax.tree.flatten(s) for s in (operator.domain, operator.codomain))
    rows, columns = operator.shape
    if not is_real(operator.domain):
        raise invalid(
            f"{function}(operator)",
            got=f"dtypes {', '.join(sorted({str(s.dtype) for s in domain[0]}))}",
            expected="a map of real floating-point vectors",
            remedy="Of a complex matrix A + iB take the real one [[A, -B], [B, A]]; its "
            "eigenvalues are those of the complex one, each twice.",
        )
    if domain != codomain or columns == 0:
        raise invalid(
            f"{function}(operator)",
            got=f"an operator of shape {(rows, columns)}",
            expected="a map of one space, of dimension 1 or more, into itself",
            remedy="Domain and codomain must have the same structure, shapes and dtypes; "
            "A.T @ A and A @ A.T do.",
        )
    return coordinates(operator.domain)
