"""Thick restarts: the Lanczos process in a basis of fixed size, until what is wanted is found."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn import tree
from jaxnn.linalg.tridiagonal import dot, extended, negligible, orthogonalized
from jaxnn.types import Array, Key

Which = Literal["largest", "smallest", "both", "magnitude"]

EXPANSION, SEARCH = 4, 12
"""Products between two looks at the eigenvalues; products that look for one that was missed."""


class Run(NamedTuple):
    """Where a run of restarts stands; rows of `basis` beyond row `size` are 0.

    basis      orthonormal rows; row `size` is the next direction
    projected  Q A Qᵀ, as far as it is known
    size       rows of the basis that A was applied to
    beta       ‖r‖ of A Qᵀ = Qᵀ(Q A Qᵀ) + r e_sizeᵀ
    scale      largest |θ| seen
    products   number of them
    before     the wanted θ when the search for missed ones began
    search     rows at which that search is over, 0 where there is none
    done       whether all has been found
    """

    basis: Float[Array, "m+1 n"]
    projected: Float[Array, "m m"]
    size: Int[Array, ""]
    beta: Float[Array, ""]
    scale: Float[Array, ""]
    products: Int[Array, ""]
    before: Float[Array, "k"]
    search: Int[Array, ""]
    done: Bool[Array, ""]


def restarted(
    product: Callable[[Float[Array, "n"]], tuple[Float[Array, "n"], Int[Array, ""]]],
    first: Float[Array, "n"],
    key: Key,
    tolerance: float | Array,
    max_products: int | Array,
    *,
    k: int,
    which: Which,
    basis_size: int,
) -> tuple[Float[Array, "k n"], Run]:
    """The k wanted Ritz vectors when they have converged, and the run that found them.

    `product`(v) is (A v, its cost). The basis grows by `EXPANSION` vectors; then the Ritz pairs are
    looked at. A full basis is replaced by the better half of its Ritz vectors and the residual
    direction. When all wanted residuals are below tolerance·scale, the wanted vectors and a random
    direction orthogonal to them begin a search of `SEARCH` products: it must end with the same Ritz
    values.
    """
    m = basis_size

    def fresh(basis: Array, number: Array) -> Array:
        """A random unit vector orthogonal to the basis."""
        draw = jax.random.normal(jax.random.fold_in(key, number), first.shape, first.dtype)
        w = orthogonalized(draw, basis)[0]
        return w / tree.norm(w)

    def extend(j: Array, run: Run) -> Run:
        w, cost = product(run.basis[j])
        w, _, h = extended(w, run.basis, j)
        projected = run.projected.at[j, :].set(h[:m]).at[:, j].set(h[:m])
        beta, products = tree.norm(w), run.products + cost
        scale = jnp.maximum(run.scale, jnp.max(jnp.abs(h)))
        ends = beta <= negligible(scale)
        q = lax.cond(
            ends, lambda w: fresh(run.basis, products), lambda w: w / jnp.where(ends, 1, beta), w
        )
        return run._replace(
            basis=run.basis.at[j + 1].set(q),
            projected=projected,
            size=j + 1,
            beta=jnp.where(ends, 0, beta),
            scale=scale,
            products=products,
        )

    def step(run: Run) -> Run:
        end = jnp.minimum(run.size + EXPANSION, m)
        end = jnp.where(run.search > 0, jnp.minimum(end, run.search), end)
        run = lax.fori_loop(run.size, end, extend, run)
        theta, y = ritz(run.projected, run.size, which)
        scale = jnp.maximum(run.scale, jnp.max(jnp.abs(theta[:k])))
        allowed = jnp.maximum(tolerance * scale, negligible(scale))
        ready = (run.size >= k) & jnp.all(run.beta * jnp.abs(y[run.size - 1, :k]) <= allowed)
        searched = (run.search > 0) & (run.size >= run.search)
        same = jnp.max(jnp.abs(theta[:k] - run.before)) <= allowed
        done = ready & searched & same
        run = run._replace(scale=scale, done=done)
        vectors = lambda n: dot(y[:, :n].T, run.basis[:m])

        def keep(n: int, direction: Array) -> Run:
            empty = jnp.zeros_like(run.basis)
            return run._replace(
                basis=empty.at[:n].set(vectors(n)).at[n].set(direction),
                projected=jnp.zeros_like(run.projected).at[:n, :n].set(jnp.diag(theta[:n])),
                size=jnp.array(n, jnp.int32),
            )

        def search(run: Run) -> Run:
            kept = keep(k, jnp.zeros_like(first))
            direction = fresh(kept.basis, run.products)
            return kept._replace(
                basis=kept.basis.at[k].set(direction),
                beta=jnp.zeros_like(run.beta),
                before=theta[:k],
                search=jnp.array(min(k + SEARCH, m), jnp.int32),
            )

        def go_on(run: Run) -> Run:
            half = k + (m - k) // 2
            run = lax.cond(run.size == m, lambda _: keep(half, run.basis[m]), lambda run: run, run)
            return run._replace(search=jnp.where(searched, 0, run.search))

        choice = jnp.where(done, 0, jnp.where(ready & (run.search == 0), 1, 2))
        return lax.switch(choice, [lambda run: run, search, go_on], run)

    def unfinished(run: Run) -> Array:
        return ~run.done & (run.products < max_products) & jnp.isfinite(run.scale)

    n, dtype = first.size, first.dtype
    length, zero, none = tree.norm(first), jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    empty = jnp.zeros((m + 1, n), dtype)
    begin = lax.cond(
        length > 0, lambda: first / jnp.where(length > 0, length, 1), lambda: fresh(empty, none)
    )
    run = Run(
        basis=empty.at[0].set(begin),
        projected=jnp.zeros((m, m), dtype),
        size=none,
        beta=zero,
        scale=zero,
        products=none,
        before=jnp.zeros(k, dtype),
        search=none,
        done=jnp.array(False),
    )
    run = lax.while_loop(unfinished, step, run)
    y = ritz(run.projected, run.size, which)[1]
    return dot(y[:, :k].T, run.basis[:m]), run


def ritz(
    projected: Float[Array, "m m"], size: Int[Array, ""], which: Which
) -> tuple[Float[Array, "m"], Float[Array, "m m"]]:
    """Eigenvalues and -vectors (columns) of the leading block of that size, most wanted first.

    Behind them those of the rest, whose eigenvalue no other is near, so that nothing mixes.
    """
    filled = jnp.arange(len(projected)) < size
    block = jnp.where(filled[:, None] & filled[None, :], projected, 0)
    far = 1 + 2 * jnp.max(jnp.sum(jnp.abs(block), axis=1))
    block = 0.5 * (block + block.T) + jnp.diag(jnp.where(filled, 0, far))
    theta, y = jnp.linalg.eigh(block, symmetrize_input=False)
    exists = jnp.sum(jnp.where(filled[:, None], 0, y) ** 2, axis=0) < 0.5
    order = jnp.argsort(rankings[which](theta, exists))
    return theta[order], y[:, order]


def _both(theta: Array, exists: Array) -> Array:
    """0 for the largest, 1 for the smallest, 2 for the second largest, ...; `theta` ascends."""
    below = jnp.cumsum(exists) - 1
    above = jnp.sum(exists) - 1 - below
    return jnp.minimum(2 * above, 2 * below + 1).astype(theta.dtype)


def _ranking(rank: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda theta, exists: jnp.where(exists, rank(theta, exists), jnp.inf)


rankings: dict[Which, Callable[[Array, Array], Array]] = {
    "largest": _ranking(lambda theta, exists: -theta),
    "smallest": _ranking(lambda theta, exists: theta),
    "magnitude": _ranking(lambda theta, exists: -jnp.abs(theta)),
    "both": _ranking(_both),
}
"""(eigenvalues ascending, which of them exist) ↦ how wanted each is, the smallest number first."""
