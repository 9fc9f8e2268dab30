"""A linear map between pytrees, given by what it does to a vector."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxnn import tree
from jaxnn.errors import concrete, invalid
from jaxnn.jaxprs import snapshot
from jaxnn.linalg.vectors import coordinates
from jaxnn.precision import inexact, wide
from jaxnn.types import Array, ArrayLike, PyTree

Structure = Literal["general", "symmetric", "positive_semidefinite"]
"""What is known of a map beforehand, the weakest first; the last two are of real spaces."""

STRUCTURES: tuple[Structure, ...] = get_args(Structure)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A hashable value that the functions of an operator carry, and that is never traced.

    It is compared by value, unlike what a `functools.partial` binds: operators made alike share
    their compiled programs.

    >>> jax.tree.flatten(Static(3)) == jax.tree.flatten(Static(3)), jax.tree.leaves(Static(3))
    (True, [])
    """

    value: Any


def carried(function: Callable, *args: Any, order: int = 1) -> Partial:
    """The function as a pytree, which an operator carries with the arrays that a `Partial` binds.

    The function is compared by what it computes, `order` times differentiated, at `args`
    (`jaxprs.snapshot`): an operator made of a function that has changed is another operator.

    >>> carried(carried(jnp.sin, 0.0), 0.0)(0.0)
    Array(0., dtype=float32, weak_type=True)
    """
    partial = function if isinstance(function, Partial) else Partial(function)
    seen = snapshot(partial.func, *partial.args, *args, order=order, **partial.keywords)
    return Partial(seen, *partial.args, **partial.keywords)


@dataclass(frozen=True, init=False, eq=False, repr=False)
class LinearOperator:
    """A linear map A from pytrees like `domain` to pytrees like `codomain`.

    `matvec` is v ↦ A v and `rmatvec` is u ↦ Aᵀ u (transposed, not conjugated). `domain` and
    `codomain` are pytrees of arrays or of `jax.ShapeDtypeStruct`; only their structure is kept.

    `A @ v` or `A(v)` applies A, `A @ B` composes, `A.T` transposes; `A + B`, `A - B`, `-A` and
    `c * A` are linear combinations, and `A.to_dense()` is the matrix in raveled coordinates.

    `structure` declares what is known: "symmetric" and "positive_semidefinite" are kept by sums and
    factors as far as they hold, and `B.T @ B` is positive semidefinite of itself. A declaration is
    believed. `form`, where given, is v ↦ ⟨v, A v⟩ by a cheaper way than the product: curvature has
    one, as a quadratic form needs no reverse pass; `A.quadratic_form(v)` uses it.

    The operator is a frozen pytree: passed to `jit`, `vmap` or `grad`, it carries the arrays in
    `matvec` and `rmatvec` along when these are `jax.tree_util.Partial`s, as every operator made by
    jaxnn is. Any other callable is static: arrays it closes over become constants of the program.

    Errors: a vector or operator whose structure, shapes or dtypes do not fit, an unknown
    `structure`, or a symmetric one between different or complex spaces.

    >>> scales = jnp.array([1.0, 2.0, 3.0])
    >>> A = LinearOperator(Partial(jnp.multiply, scales), Partial(jnp.multiply, scales),
    ...                    domain=scales, codomain=scales)
    >>> (2.0 * A @ A.T) @ jnp.ones(3)
    Array([ 2.,  8., 18.], dtype=float32)
    """

    matvec: Callable[[PyTree], PyTree]
    rmatvec: Callable[[PyTree], PyTree]
    domain: PyTree
    codomain: PyTree
    structure: Structure
    form: Callable[[PyTree], Array] | None

    def __repr__(self) -> str:
        rows, columns = self.shape
        dtypes = sorted({str(a.dtype) for a in jax.tree.leaves((self.domain, self.codomain))})
        return f"LinearOperator({rows} × {columns}, {self.structure}, {', '.join(dtypes)})"

    # NumPy scalars on the left must leave `*` to us.
    __array_ufunc__ = None

    def __init__(
        self,
        matvec: Callable[[PyTree], PyTree],
        rmatvec: Callable[[PyTree], PyTree],
        domain: PyTree,
        codomain: PyTree,
        *,
        structure: Structure = "general",
        form: Callable[[PyTree], Array] | None = None,
    ):
        object.__setattr__(self, "matvec", _bound(matvec, domain))
        object.__setattr__(self, "rmatvec", _bound(rmatvec, codomain))
        object.__setattr__(self, "form", None if form is None else _bound(form, domain))
        object.__setattr__(self, "domain", _structure(domain))
        object.__setattr__(self, "codomain", _structure(codomain))
        object.__setattr__(self, "structure", structure)
        _require_structure(structure, self.domain, self.codomain)

    @property
    def shape(self) -> tuple[int, int]:
        """(dimension of the codomain, dimension of the domain): the shape of `to_dense()`."""
        return tree.size(self.codomain), tree.size(self.domain)

    @property
    def T(self) -> "LinearOperator":
        """The transpose: ⟨u, A v⟩ = ⟨Aᵀ u, v⟩ for real u, v."""
        if self.symmetric:
            return self
        return LinearOperator(self.rmatvec, self.matvec, self.codomain, self.domain)

    @property
    def symmetric(self) -> bool:
        """Whether A = Aᵀ is declared."""
        return self.structure != "general"

    def quadratic_form(self, v: PyTree) -> Array:
        """⟨v, A v⟩, by `form` where there is one."""
        return _form(self)(member("A.quadratic_form(v): v", v, self.domain))

    def __matmul__(self, other: Any) -> Any:
        if not isinstance(other, LinearOperator):
            return self(other)
        require_like("A @ B: codomain of B", other.codomain, self.domain)
        transpose = other.T
        gram = self.matvec is transpose.matvec and self.rmatvec is transpose.rmatvec
        gram = gram and is_real((other.domain, other.codomain))
        return LinearOperator(
            Partial(_compose, self.matvec, other.matvec),
            Partial(_compose, other.rmatvec, self.rmatvec),
            other.domain,
            self.codomain,
            structure="positive_semidefinite" if gram else "general",
            form=Partial(_squared_norm, other.matvec) if gram else None,
        )

    def __call__(self, v: PyTree) -> PyTree:
        """A v."""
        return self.matvec(member("A @ v: v", v, self.domain))

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        if not isinstance(other, LinearOperator):
            return NotImplemented
        require_like("A + B: domain of B", other.domain, self.domain)
        require_like("A + B: codomain of B", other.codomain, self.codomain)
        return LinearOperator(
            Partial(_sum, self.matvec, other.matvec),
            Partial(_sum, self.rmatvec, other.rmatvec),
            self.domain,
            self.codomain,
            structure=min(self.structure, other.structure, key=lambda s: STRUCTURES.index(s)),
            form=Partial(_sum, _form(self), _form(other)) if self.form or other.form else None,
        )

    def __mul__(self, factor: ArrayLike) -> "LinearOperator":
        if not isinstance(factor, get_args(ArrayLike)):
            return NotImplemented
        if jnp.ndim(factor) != 0:
            raise invalid(
                "c * A: c",
                got=f"shape {jnp.shape(factor)}",
                expected="a scalar",
                remedy="Use A @ v to apply the operator; compose with a diagonal operator to scale "
                "coordinates one by one.",
            )
        structure: Structure = self.structure
        if structure == "positive_semidefinite":
            number = concrete(factor)
            structure = structure if number is not None and number >= 0 else "symmetric"
        return LinearOperator(
            Partial(_scaled, factor, self.matvec),
            Partial(_scaled, factor, self.rmatvec),
            self.domain,
            self.codomain,
            structure=structure,
            form=Partial(_scaled, factor, self.form) if self.form else None,
        )

    __rmul__ = __mul__

    def __neg__(self) -> "LinearOperator":
        return self * -1.0

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        return self + -other

    def to_dense(self) -> Array:
        """The matrix of the map, shape (codomain size, domain size), leaves raveled in order.

        Costs as many applications as the smaller dimension, batched into one.
        """
        rows, columns = self.shape
        if rows < columns:
            return self.T.to_dense().T
        flat, image = coordinates(self.domain), coordinates(self.codomain)
        basis = jnp.eye(columns, dtype=flat.dtype)
        product = lambda e: image.ravel(self.matvec(flat.unravel(e)))
        return jax.vmap(product, out_axes=1)(basis)


def _flatten(operator: LinearOperator) -> tuple[tuple, tuple]:
    domain = jax.tree.flatten(operator.domain)
    codomain = jax.tree.flatten(operator.codomain)
    spaces = tuple((tuple(leaves), structure) for leaves, structure in (domain, codomain))
    return (operator.matvec, operator.rmatvec, operator.form), (spaces, operator.structure)


def _unflatten(static: tuple, children: tuple) -> LinearOperator:
    operator = object.__new__(LinearOperator)
    spaces = (jax.tree.unflatten(structure, leaves) for leaves, structure in static[0])
    names = ("matvec", "rmatvec", "form", "domain", "codomain", "structure")
    # No checks: JAX unflattens with placeholders in the place of arrays.
    for name, value in zip(names, (*children, *spaces, static[1]), strict=True):
        object.__setattr__(operator, name, value)
    return operator


jax.tree_util.register_pytree_node(LinearOperator, _flatten, _unflatten)


def _bound(function: Callable, space: PyTree) -> Partial:
    """A map of a space as a pytree; a `Partial` is taken as it is."""
    if isinstance(function, Partial):
        return function
    try:
        return carried(function, _structure(space))
    except (TypeError, ValueError):  # a function of NumPy's, say: it fails where it is compiled
        return Partial(function)


def _compose(outer: Callable, inner: Callable, v: PyTree) -> PyTree:
    return outer(inner(v))


def _sum(first: Callable, second: Callable, v: PyTree) -> PyTree:
    return tree.add(first(v), second(v))


def _scaled(factor: ArrayLike, function: Callable, v: PyTree) -> PyTree:
    return tree.scale(factor, function(v))


def _form(operator: LinearOperator) -> Callable[[PyTree], Array]:
    return operator.form or Partial(_product_form, operator.matvec)


def _product_form(matvec: Callable, v: PyTree) -> Array:
    return _inner(v, matvec(v))


def _squared_norm(matvec: Callable, v: PyTree) -> Array:
    image = matvec(v)
    return _inner(image, image)


def _inner(x: PyTree, y: PyTree) -> Array:
    return tree.dot(jax.tree.map(wide, x), jax.tree.map(wide, y))


def is_real(space: PyTree) -> bool:
    """Whether the numbers of a space are real and floating point."""
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(space))


def _structure(space: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), space)


def _require_structure(structure: str, domain: PyTree, codomain: PyTree) -> None:
    if structure not in STRUCTURES:
        raise invalid(
            "LinearOperator(structure)",
            got=repr(structure),
            expected=f"one of {', '.join(map(repr, STRUCTURES))}",
            remedy="Leave it out where nothing is known.",
        )
    same = jax.tree.flatten(domain) == jax.tree.flatten(codomain)
    if structure != "general" and not (same and is_real(domain)):
        raise invalid(
            "LinearOperator(structure)",
            got=f"{structure!r} from {jax.tree.map(_describe, domain)} "
            f"to {jax.tree.map(_describe, codomain)}",
            expected="a map of one space of real floating-point numbers into itself",
            remedy="Only there ⟨u, A v⟩ = ⟨A u, v⟩ is said of every u and v.",
        )


def member(argument: str, value: PyTree, space: PyTree) -> PyTree:
    """A vector of the space: the value, with integers promoted to the dtypes of the space.

    Errors: those of `require_like`.

    >>> member("v", jnp.array([1, 2]), jax.ShapeDtypeStruct((2,), jnp.float32))
    Array([1., 2.], dtype=float32)
    """
    if not _is_like(value, space) and jax.tree.structure(value) == jax.tree.structure(space):
        promoted = lambda v, s: inexact(v, jnp.zeros((), s.dtype)) if _is_number(v) else v
        value = jax.tree.map(promoted, value, space)
    require_like(argument, value, space)
    return value


def require_like(argument: str, value: PyTree, space: PyTree) -> None:
    """Raise unless a vector has the structure, shapes and dtypes of a space."""
    if not _is_like(value, space):
        raise invalid(
            argument,
            got=jax.tree.map(_describe, value),
            expected=f"the structure, shapes and dtypes {jax.tree.map(_describe, space)}",
            remedy="Build it with jaxnn.tree.random_like, jax.tree.map or astype on a member of "
            "that space.",
        )


def _is_like(value: PyTree, space: PyTree) -> bool:
    # Flattened, because a node type need not define equality.
    try:
        return jax.tree.flatten(_structure(value)) == jax.tree.flatten(space)
    except TypeError:
        return False


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, get_args(ArrayLike))


def _describe(leaf: Any) -> str:
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    return type(leaf).__name__ if shape is None else f"{dtype}{list(shape)}"
