"""Slices of the loss along lines and planes, and directions that make slices comparable.

A slice shows what its directions show. Where a network has scales that its function does not depend
on (of ReLU units, before a normalization), the same raw direction is a large step for one network
and a small one for another of the same function; filter normalization removes that freedom. A
trajectory of training is nearly orthogonal to random directions, and is drawn in its own plane.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Real

from jaxnn import tree
from jaxnn.errors import invalid
from jaxnn.linalg.derivatives import require_objective
from jaxnn.linalg.vectors import coordinates
from jaxnn.types import Array, ArrayLike, Key, Params, PyTree

Vectors = Literal["zero", "normalized"]
"""What becomes of leaves that have no filters: biases, scales."""


def line_slice(
    objective: Callable[..., Array],
    params: Params,
    direction: Params,
    distances: Real[ArrayLike, "n"],
    *args: Any,
) -> Float[Array, "n"]:
    """The losses L(θ + t d) at every distance t, in units of the direction d.

    One point after the other, in the memory of one evaluation of `objective(params, *args)`. With
    d = θ' - θ and t in [0, 1] it is the linear interpolation between two networks.

    Errors: an objective that is no scalar, a direction of another structure or other shapes than
    the params, distances that are not one axis.

    Source: Goodfellow, Vinyals & Saxe (2015), section 2; Li et al. (2018), section 3.

    >>> bowl = lambda w: jnp.sum(w**2)
    >>> w, d = jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])
    >>> line_slice(bowl, w, d, jnp.array([-1.0, 0.0, 1.0]))
    Array([1., 1., 5.], dtype=float32)
    """
    _require_slice("line_slice", objective, params, args, {"direction": direction})
    distances = _axis("line_slice(distances)", distances)
    return lax.map(lambda t: objective(tree.axpy(t, direction, params), *args), distances)


def plane_slice(
    objective: Callable[..., Array],
    params: Params,
    first: Params,
    second: Params,
    first_distances: Real[ArrayLike, "n"],
    second_distances: Real[ArrayLike, "m"],
    *args: Any,
) -> Float[Array, "n m"]:
    """The losses L(θ + s d₁ + t d₂) at every pair of distances, s along the first axis.

    In units of the directions, one point after the other, as `line_slice`.

    Errors: as `line_slice`.

    Source: Li et al. (2018), equation 1.

    >>> saddle = lambda w: w[0] * w[1]
    >>> (e1, e2), s, t = jnp.eye(2), jnp.array([1.0, 2.0]), jnp.array([-1.0, 0.0, 3.0])
    >>> plane_slice(saddle, jnp.zeros(2), e1, e2, s, t)
    Array([[-1.,  0.,  3.],
           [-2.,  0.,  6.]], dtype=float32)
    """
    _require_slice("plane_slice", objective, params, args, {"first": first, "second": second})
    first_distances = _axis("plane_slice(first_distances)", first_distances)
    second_distances = _axis("plane_slice(second_distances)", second_distances)

    def row(s: Array) -> Array:
        start = tree.axpy(s, first, params)
        return lax.map(lambda t: objective(tree.axpy(t, second, start), *args), second_distances)

    return lax.map(row, first_distances)


def filter_normalized(
    direction: Params,
    params: Params,
    *,
    filter_axis: int = -1,
    vectors: Vectors = "zero",
) -> Params:
    """The direction with every filter rescaled to the norm of that filter of the params.

    d_ij ← ‖θ_ij‖ d_ij/‖d_ij‖ for the filter j, of one output unit or channel, of a leaf i: a column
    of a weight (fan_in, features), and of a kernel (h, w, c_in, c_out) all that goes into one of
    its c_out channels. A filter of zeros stays zero. Leaves with one axis or none have no filters:
    they become zero, as in the paper's plots, or are "normalized" as one filter. `filter_axis` is
    where the output units lie, the last axis in jaxnn, flax and haiku; it is 0 in equinox.

    Slices along such directions are the same for networks that differ by the scale of layers after
    which a ReLU's homogeneity or a normalization makes up for it.

    Errors: a direction unlike the params, params without filters under vectors="zero" (the
    direction would be 0), a `filter_axis` that a leaf does not have.

    Source: Li, Xu, Taylor, Studer & Goldstein (2018), section 4.

    >>> W = jnp.array([[3.0, 0.0], [4.0, 1.0]])
    >>> filter_normalized({"W": jnp.ones((2, 2)), "b": jnp.ones(2)}, {"W": W, "b": jnp.ones(2)})
    {'W': Array([[3.5355..., 0.7071...],
           [3.5355..., 0.7071...]], dtype=float32), 'b': Array([0., 0.], dtype=float32)}
    """
    tree.require_differentiable("filter_normalized(direction)", direction)
    require_alike("filter_normalized(direction)", direction, params)
    if vectors not in get_args(Vectors):
        raise invalid(
            "filter_normalized(vectors)",
            got=repr(vectors),
            expected=" or ".join(map(repr, get_args(Vectors))),
            remedy='"zero" leaves biases and scales where they are.',
        )
    ranks = [jnp.ndim(leaf) for leaf in jax.tree.leaves(params)]
    if vectors == "zero" and max(ranks, default=0) < 2:
        raise invalid(
            "filter_normalized(params)",
            got=f"leaves with {sorted(set(ranks))} axes",
            expected="a weight with at least two axes",
            remedy='The direction would be zero; with vectors="normalized" a vector is one filter.',
        )

    def one(path: Any, d: Array, p: Array) -> Array:
        d, rank = jnp.asarray(d), jnp.ndim(p)
        if rank < 2:
            return jnp.zeros_like(d) if vectors == "zero" else _rescaled(d, p, tuple(range(rank)))
        if not -rank <= filter_axis < rank:
            raise invalid(
                "filter_normalized(filter_axis)",
                got=f"{filter_axis} for {rank} axes at params{jax.tree_util.keystr(path)}",
                expected="an axis that every leaf with filters has",
                remedy="-1 is the last axis; normalize other leaves by themselves.",
            )
        return _rescaled(d, p, tuple(a for a in range(rank) if a != filter_axis % rank))

    return jax.tree_util.tree_map_with_path(one, direction, params)


def random_direction(
    key: Key,
    params: Params,
    *,
    normalization: Callable[[Params, Params], Params] | None = filter_normalized,
) -> Params:
    """A Gaussian direction in the space of the params: normalization(d, θ), d ~ N(0, 1).

    `normalization` takes direction and params; `functools.partial(filter_normalized,
    vectors="normalized")` is another, and None leaves the direction as it is drawn.

    Errors: those of the normalization.

    Source: Li et al. (2018), section 4.

    >>> d = random_direction(jax.random.key(0), {"W": jnp.full((4, 1), 2.0), "b": jnp.ones(1)})
    >>> tree.norm(d).round(5)
    Array(4., dtype=float32)
    """
    tree.require_differentiable("random_direction(params)", params)
    direction = tree.random_like(key, params)
    return direction if normalization is None else normalization(direction, params)


class PrincipalDirections(NamedTuple):
    """The plane through the end of a trajectory that is closest to all of it.

    first, second  orthonormal directions, like the params
    explained      their shares of Σ_i ‖θ_i - θ_n‖², in [0, 1]
    coordinates    of every point of the trajectory along both, from the end point
    """

    first: Params
    second: Params
    explained: Float[Array, "2"]
    coordinates: Float[Array, "n 2"]


def principal_directions(trajectory: Params) -> PrincipalDirections:
    """The two leading principal directions of a trajectory θ_0, ..., θ_n around its end θ_n.

    They are the right singular vectors of M = [θ_0 - θ_n; ...; θ_{n-1} - θ_n], whose mean is not
    subtracted: the plane has to go through θ_n, the origin of a `plane_slice`. The points are
    stacked along the first axis of every leaf, as `jax.lax.scan` stacks them. The sign of a
    direction is such that θ_0 lies at a coordinate ≥ 0. Of a trajectory on a line the second
    direction is arbitrary, and explains 0.

    Errors: fewer than three points or two parameters, leaves of different lengths.

    Source: Li et al. (2018), section 7.2; Eckart & Young (1936).

    >>> found = principal_directions(jnp.array([[3.0, 1.0], [2.0, -1.0], [0.0, 0.0]]))
    >>> found.explained.round(3), jnp.sum(found.coordinates**2, axis=1).round()
    (Array([0.873, 0.127], dtype=float32), Array([10.,  5.,  0.], dtype=float32))
    """
    tree.require_differentiable("principal_directions(trajectory)", trajectory)
    lengths = sorted({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(trajectory)})
    points = lengths[0][0] if len(lengths) == 1 and lengths[0] else 0
    if points < 3 or tree.size(trajectory) < 2 * points:
        raise invalid(
            "principal_directions(trajectory)",
            got=f"{tree.size(trajectory)} numbers in leaves of lengths {lengths}",
            expected="at least 3 points of at least 2 numbers, stacked along every first axis",
            remedy="Stack the params of several steps: jax.tree.map(lambda *p: jnp.stack(p), ...).",
        )
    end = jax.tree.map(lambda leaf: leaf[-1], trajectory)
    flat = coordinates(end)
    M = jax.vmap(lambda params: flat.ravel(tree.sub(params, end)))(trajectory)
    # Of M, not of M Mᵀ: its squares would lose half of the digits of a small second direction.
    U, sigma, Vt = jnp.linalg.svd(M, full_matrices=False)
    # In units of the first, whose square may underflow; where it is 0 they are all.
    shares = (sigma / jnp.where(sigma[0] > 0, sigma[0], 1)) ** 2
    explained = shares[:2] / jnp.maximum(jnp.sum(shares), 1)
    sign = jnp.where(U[0, :2] < 0, -1.0, 1.0).astype(M.dtype)
    first, second = (flat.unravel(sign[k] * Vt[k]) for k in range(2))
    return PrincipalDirections(first, second, explained, (sign * sigma[:2])[None] * U[:, :2])


def require_alike(argument: str, value: PyTree, params: Params) -> None:
    """Raise unless `value` has the structure and the shapes of the params.

    >>> require_alike("direction", jnp.ones(3), jnp.ones((2, 3)))
    Traceback (most recent call last):
    ValueError: direction: got shapes [(3,)], expected those of the params, [(2, 3)]. ...
    """
    (leaves, structure), (like, expected) = jax.tree.flatten(value), jax.tree.flatten(params)
    shapes, wanted = [jnp.shape(leaf) for leaf in leaves], [jnp.shape(leaf) for leaf in like]
    if structure != expected or shapes != wanted:
        same = structure == expected
        raise invalid(
            argument,
            got=f"shapes {shapes}" if same else f"structure {structure}",
            expected=f"those of the params, {wanted}"
            if same
            else f"that of the params, {expected}",
            remedy="Build it with jax.tree.map, jaxnn.tree.sub or random_direction.",
        )


def _require_slice(
    function: str,
    objective: Callable[..., Array],
    params: Params,
    args: tuple,
    directions: dict[str, Params],
) -> None:
    tree.require_differentiable(f"{function}(params)", params)
    for name, direction in directions.items():
        require_alike(f"{function}({name})", direction, params)
    require_objective(f"{function}(objective)", objective, params, *args, evaluate=False)


def _axis(argument: str, distances: ArrayLike) -> Array:
    distances = jnp.asarray(distances)
    if distances.ndim != 1:
        raise invalid(
            argument,
            got=f"shape {distances.shape}",
            expected="one axis",
            remedy="Use jnp.linspace(-1, 1, 51).",
        )
    return distances


def _rescaled(d: Array, p: Array, axes: tuple[int, ...]) -> Array:
    """The direction d with the norms of p over these axes."""
    wide = d.dtype if jnp.finfo(d.dtype).bits >= 32 else jnp.float32
    norm = _norm(d.astype(wide), axes)
    unit = d.astype(wide) / jnp.where(norm > 0, norm, jnp.ones_like(norm))
    return (unit * _norm(jnp.asarray(p).astype(wide), axes)).astype(d.dtype)


def _norm(x: Array, axes: tuple[int, ...]) -> Array:
    # By its largest entry first: squares of a late gradient would underflow to 0.
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
    unit = x / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return largest * jnp.sqrt(jnp.sum(unit**2, axis=axes, keepdims=True))
