"""The trace and the diagonal of a map by random vectors, with standard errors."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxnn.errors import invalid
from jaxnn.linalg.chunks import chunk_size, over_keys, product_bytes
from jaxnn.linalg.estimates import Estimate, Sampler, mean_of, require_probes
from jaxnn.linalg.exchangeable import (
    exchange,
    exchanged_diagonal,
    exchanged_trace,
    orthonormal_range,
)
from jaxnn.linalg.operators import LinearOperator
from jaxnn.linalg.spaces import prepared, require_endomorphism
from jaxnn.linalg.vectors import coordinates, dot
from jaxnn.types import Array, Key

Method = Literal["hutchinson", "hutch++", "xtrace"]

METHODS: dict[Method, int] = {"hutchinson": 1, "hutch++": 3, "xtrace": 2}
"""How many products a probe of each costs; probes are rounded down to full ones."""


def trace(
    operator: LinearOperator,
    key: Key,
    *,
    probes: int = 100,
    method: Method = "hutchinson",
    sampler: Sampler | None = None,
    max_bytes: int | None = None,
) -> Estimate:
    """tr A from `probes` products with random vectors, with its standard error.

    "hutchinson"  (1/m) Σ_z zᵀA z, with variance 2(‖A‖_F² - Σ A_ii²)/m for random signs. Only
                  quadratic forms: those of curvature matrices need no reverse pass
    "hutch++"     tr QᵀAQ exactly, for Q a basis of A·(m/3 random vectors), and Hutchinson with m/3
                  probes for the rest (I - QQᵀ)A(I - QQᵀ): error O(1/m) instead of O(1/√m) where
                  eigenvalues decay
    "xtrace"      the same with every one of m/2 probes in both roles, the others giving its Q. Its
                  estimates are correlated, which its standard error takes into account

    Probes are random signs unless `sampler` says otherwise; those of "xtrace" are normal, as their
    direction has to be uniform. Memory: "hutchinson" that of a product; the others hold m/3 to 3m
    vectors. `max_bytes` bounds how much is batched (`chunk_size`); no estimate depends on it.

    Errors: a map between different spaces, too few probes (2, 6 and 4), more than the dimension
    for a basis, an unknown method, a sampler for "xtrace".

    Source: Hutchinson (1990); Meyer, Musco, Musco & Woodruff (2021), algorithm 1; Epperly, Tropp &
    Webber (2024), section 2.

    >>> from jaxnn import linalg
    >>> A = linalg.from_dense(jnp.diag(jnp.arange(5.0)), structure="symmetric")
    >>> found = linalg.trace(A, jax.random.key(0), probes=4)
    >>> found.value, found.standard_error  # signs are exact for a diagonal matrix
    (Array(10., dtype=float32), Array(0., dtype=float32))
    """
    flat = require_endomorphism("trace", operator)
    _require_method("trace", method, probes, flat.size)
    if method == "xtrace" and sampler is not None:
        raise invalid(
            "trace(sampler)",
            got="one for 'xtrace'",
            expected="None",
            remedy="It corrects for the length of a normal vector outside a subspace.",
        )
    if sampler is None:
        sampler = jax.random.normal if method == "xtrace" else jax.random.rademacher
    chunk = chunk_size(probes, product_bytes(operator), max_bytes)
    count = probes // METHODS[method]
    value, error = _sampled(operator, key, _TRACES[method], count, sampler, chunk)
    return Estimate(value, error, count, count * METHODS[method])


def diagonal(
    operator: LinearOperator,
    key: Key,
    *,
    probes: int = 100,
    method: Method = "hutchinson",
    max_bytes: int | None = None,
) -> Estimate:
    """diag A from `probes` products with random signs, with the standard error of every entry.

    "hutchinson"  (1/m) Σ_z z ⊙ A z, with variance Σ_{j≠i} A_ij²/m
    "hutch++"     diag(QQᵀA) exactly and Hutchinson for the rest, as in `trace`
    "xtrace"      every probe in both roles, as in `trace`; its authors call it XDiag

    The estimate is a tree like the domain. The methods of `trace` say what they cost.

    Errors: those of `trace`.

    Source: Bekas, Kokiopoulou & Saad (2007); Baston & Nakatsukasa (2022), section 3; Epperly,
    Tropp & Webber (2024), section 2.4.

    >>> from jaxnn import linalg
    >>> A = linalg.from_dense(jnp.diag(jnp.arange(3.0)), structure="symmetric")
    >>> linalg.diagonal(A, jax.random.key(0), probes=2).value
    Array([0., 1., 2.], dtype=float32)
    """
    flat = require_endomorphism("diagonal", operator)
    _require_method("diagonal", method, probes, flat.size)
    chunk = chunk_size(probes, product_bytes(operator), max_bytes)
    count, signs = probes // METHODS[method], jax.random.rademacher
    value, error = _sampled(operator, key, _DIAGONALS[method], count, signs, chunk)
    value, error = flat.unravel(value), flat.unravel(error)
    return Estimate(value, error, count, count * METHODS[method])


@jax.jit(static_argnums=(2, 3, 4, 5))
def _sampled(
    operator: LinearOperator,
    key: Key,
    method: Callable[..., Estimate],
    count: int,
    sampler: Sampler,
    chunk: int,
) -> tuple[Array, Array]:
    return method(operator, key, count, sampler, chunk)[:2]


def _hutchinson_trace(
    operator: LinearOperator, key: Key, count: int, sampler: Sampler, chunk: int
) -> Estimate:
    flat = coordinates(operator.domain)

    def form(key: Key) -> Array:
        z = sampler(key, (flat.size,), flat.dtype)
        return operator.quadratic_form(flat.unravel(z)).astype(flat.dtype)

    return mean_of(over_keys(form, jax.random.split(key, count), chunk), count)


def _hutch_pp_trace(
    operator: LinearOperator, key: Key, count: int, sampler: Sampler, chunk: int
) -> Estimate:
    flat = coordinates(operator.domain)
    basis_key, key = jax.random.split(key)
    basis = _range_basis(operator, basis_key, count, sampler, chunk)
    form = lambda v: operator.quadratic_form(flat.unravel(v)).astype(flat.dtype)

    def rest(key: Key) -> Array:
        return form(_outside(basis, sampler(key, (flat.size,), flat.dtype)))

    inside = jnp.sum(_over_rows(form, basis, chunk))
    outside = mean_of(over_keys(rest, jax.random.split(key, count), chunk), 3 * count)
    return outside._replace(value=inside + outside.value)


def _hutchinson_diagonal(
    operator: LinearOperator, key: Key, count: int, sampler: Sampler, chunk: int
) -> Estimate:
    product, flat = prepared(operator), coordinates(operator.domain)

    def one(key: Key) -> Array:
        z = sampler(key, (flat.size,), flat.dtype)
        return z * product(z)

    return _streamed(one, jax.random.split(key, count), chunk)


def _hutch_pp_diagonal(
    operator: LinearOperator, key: Key, count: int, sampler: Sampler, chunk: int
) -> Estimate:
    product, flat = prepared(operator), coordinates(operator.domain)
    basis_key, key = jax.random.split(key)
    basis = _range_basis(operator, basis_key, count, sampler, chunk)
    inside = jnp.sum(basis * _over_rows(prepared(operator.T), basis, chunk), axis=0)

    def one(key: Key) -> Array:
        z = sampler(key, (flat.size,), flat.dtype)
        return z * _outside(basis, product(z))

    outside = _streamed(one, jax.random.split(key, count), chunk)
    return outside._replace(value=inside + outside.value)


def _xtrace(
    operator: LinearOperator, key: Key, count: int, sampler: Sampler, chunk: int
) -> Estimate:
    over_rows = lambda function, rows: _over_rows(function, rows, chunk)
    return exchanged_trace(exchange(operator, operator, key, count, sampler, over_rows))


def _xdiagonal(
    operator: LinearOperator, key: Key, count: int, sampler: Sampler, chunk: int
) -> Estimate:
    over_rows = lambda function, rows: _over_rows(function, rows, chunk)
    return exchanged_diagonal(exchange(operator, operator.T, key, count, sampler, over_rows))


_TRACES = {"hutchinson": _hutchinson_trace, "hutch++": _hutch_pp_trace, "xtrace": _xtrace}
_DIAGONALS = {
    "hutchinson": _hutchinson_diagonal,
    "hutch++": _hutch_pp_diagonal,
    "xtrace": _xdiagonal,
}


def _range_basis(
    operator: LinearOperator, key: Key, count: int, sampler: Sampler, chunk: int
) -> Float[Array, "m n"]:
    """Orthonormal rows that span A times so many random vectors."""
    flat = coordinates(operator.domain)
    key, noise_key = jax.random.split(key)
    images = _over_rows(prepared(operator), sampler(key, (count, flat.size), flat.dtype), chunk)
    return orthonormal_range(images, noise_key)[0]


def _outside(basis: Float[Array, "m n"], v: Float[Array, "n"]) -> Float[Array, "n"]:
    return v - dot(dot(basis, v), basis)


def _over_rows(function: Callable[[Array], Array], rows: Array, chunk: int) -> Array:
    return lax.map(function, rows, batch_size=chunk if chunk > 1 else None)


def _streamed(function: Callable[[Key], Float[Array, "n"]], keys: Array, chunk: int) -> Estimate:
    """Mean and standard error over keys of vectors of which only a chunk is kept.

    Of two parts of n and m samples the squared deviations add up, with nm/(n + m)·(difference of
    the means)² besides (Chan, Golub & LeVeque, 1983).
    """

    def join(part: tuple, keys: Array) -> tuple:
        mean, squares, n = part
        samples = jax.vmap(function)(keys)
        m = len(samples)
        own = jnp.mean(samples, axis=0)
        gap, share = own - mean, m / (n + m)
        squares = squares + jnp.sum((samples - own[None, :]) ** 2, axis=0) + n * share * gap**2
        return mean + share * gap, squares, n + m

    count = len(keys)
    whole = count // chunk * chunk
    like = jax.eval_shape(function, keys[0])
    zero = jnp.zeros(like.shape, like.dtype)
    blocks = keys[:whole].reshape(-1, chunk)
    start = zero, zero, jnp.zeros((), like.dtype)
    part = lax.scan(lambda part, keys: (join(part, keys), None), start, blocks)[0]
    if whole < count:
        part = join(part, keys[whole:])
    error = jnp.sqrt(part[1] / (count * (count - 1)))
    return Estimate(part[0], error, count, count)


def _require_method(function: str, method: str, probes: int, size: int) -> None:
    if method not in METHODS:
        raise invalid(
            f"{function}(method)",
            got=repr(method),
            expected=" or ".join(map(repr, METHODS)),
            remedy="'hutch++' and 'xtrace' pay where eigenvalues decay.",
        )
    require_probes(f"{function}(probes)", probes, 2 * METHODS[method])
    basis = probes // METHODS[method]
    if method != "hutchinson" and basis >= size:
        raise invalid(
            f"{function}(probes)",
            got=probes,
            expected=f"fewer than {METHODS[method] * size} for {method!r} in dimension {size}",
            remedy="So many products give the matrix itself: to_dense().",
        )
