"""Operators of stored matrices, and when it pays to store one."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxnn import tree
from jaxnn.errors import invalid
from jaxnn.linalg.operators import LinearOperator, Static, Structure
from jaxnn.linalg.vectors import coordinates, dot
from jaxnn.types import Array, ArrayLike, PyTree


def from_dense(
    matrix: ArrayLike,
    domain: PyTree = None,
    codomain: PyTree = None,
    *,
    structure: Structure = "general",
) -> LinearOperator:
    """The operator v ↦ Mv of a stored matrix M (rows, columns).

    Between vectors (columns,) and (rows,), or where given between trees like `domain` and
    `codomain`, whose coordinates are their raveled leaves, as in `LinearOperator.to_dense`.

    Errors: an M that is no matrix, not of the size of these trees, of integers, or real between
    complex spaces.

    >>> from_dense(jnp.array([[1.0, 2.0], [0.0, 1.0]])) @ jnp.ones(2)
    Array([3., 1.], dtype=float32)
    """
    matrix = jnp.asarray(matrix)
    if not jnp.issubdtype(matrix.dtype, jnp.inexact):
        raise invalid(
            "from_dense(matrix)",
            got=f"dtype {matrix.dtype}",
            expected="floating point",
            remedy="Convert it with astype(float): the vectors are of its dtype.",
        )
    shape = tuple(
        tree.size(space) if space is not None else (*matrix.shape, 0, 0)[axis]
        for axis, space in enumerate((codomain, domain))
    )
    if matrix.ndim != 2 or matrix.shape != shape:
        raise invalid(
            "from_dense(matrix)",
            got=f"shape {matrix.shape}",
            expected="(rows, columns)" if domain is None and codomain is None else f"{shape}",
            remedy="Its coordinates are those of the raveled leaves of domain and codomain.",
        )
    complex_leaves = [
        leaf
        for leaf in jax.tree.leaves((domain, codomain))
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)
    ]
    if complex_leaves and not jnp.iscomplexobj(matrix):
        raise invalid(
            "from_dense(matrix)",
            got=f"dtype {matrix.dtype} between spaces with complex leaves",
            expected="a complex matrix",
            remedy="Convert it with astype(complex): products would lose imaginary parts.",
        )
    domain, codomain = (
        jax.ShapeDtypeStruct((n,), matrix.dtype) if space is None else space
        for n, space in zip((shape[1], shape[0]), (domain, codomain), strict=True)
    )
    return LinearOperator(
        Partial(_product, _like(codomain), matrix),
        Partial(_transposed_product, _like(domain), matrix),
        *(domain, codomain),
        structure=structure,
    )


def stored(operator: LinearOperator) -> LinearOperator:
    """The same map by its matrix, computed once: that of a Hessian is `jax.hessian`'s.

    The matrix of a map declared symmetric is made so to the last bit.

    >>> A = from_dense(jnp.diag(jnp.array([1.0, 2.0])), structure="symmetric")
    >>> stored(2.0 * A) @ jnp.ones(2)
    Array([2., 4.], dtype=float32)
    """
    matrix = operator.to_dense()
    if operator.symmetric:
        matrix = 0.5 * (matrix + matrix.T)
    return from_dense(matrix, operator.domain, operator.codomain, structure=operator.structure)


def storage(size: int, products: int) -> Literal["matrix", "products"]:
    """Whether an algorithm on a space of that size that needs so many products stores the matrix.

    It does where it needs as many products as the matrix has columns: each costs one.

    >>> storage(50, products=60), storage(1000, products=60)
    ('matrix', 'products')
    """
    return "matrix" if size <= products else "products"


def _like(space: PyTree) -> Static:
    leaves, structure = jax.tree.flatten(space)
    shapes = (jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)) for a in leaves)
    return Static((tuple(shapes), structure))


def _product(like: Static, matrix: Array, v: PyTree) -> PyTree:
    # Both products by one matrix: a transposed copy would be memory for another.
    flat = coordinates(v).ravel(v).astype(matrix.dtype)
    return _unraveled(like, dot(matrix, flat))


def _transposed_product(like: Static, matrix: Array, v: PyTree) -> PyTree:
    flat = coordinates(v).ravel(v).astype(matrix.dtype)
    return _unraveled(like, jnp.matmul(flat, matrix, precision=jax.lax.Precision.HIGHEST))


def _unraveled(like: Static, image: Array) -> PyTree:
    leaves, structure = like.value
    return coordinates(jax.tree.unflatten(structure, leaves)).unravel(image)
