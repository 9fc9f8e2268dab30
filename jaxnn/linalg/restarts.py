"""Thick restarts: the Lanczos process in a basis of fixed size, until what is wanted is found."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn import tree
from jaxnn.linalg.spaces import dot
from jaxnn.linalg.tridiagonal import extended, negligible, orthogonalized
from jaxnn.types import Array, Key

Which = Literal["largest", "smallest", "both", "magnitude"]

EXPANSION = 4
"""Products between two looks at the eigenvalues."""

MISSED = 1e-4
"""An eigenvector with less than this times its mean share of a random vector may be overlooked.

The squared coordinate of a random direction in n dimensions is below MISSED/n in 1 of 125 draws.
"""


class Run(NamedTuple):
    """Where a run of restarts stands; rows of `basis` beyond row `size` are 0.

    basis      orthonormal rows; row `size` is the next direction
    projected  Q A Qᵀ, as far as it is known
    size       rows of the basis that A was applied to
    beta       ‖r‖ of A Qᵀ = Qᵀ(Q A Qᵀ) + r e_sizeᵀ
    scale      largest |θ| seen
    products   number of them
    accuracy   share of the tolerance that the wanted vectors are to reach
    searching  whether the wanted vectors were found and others are searched for
    wanted     their θ when the search began
    beyond     x₁, x₂: searched for is an eigenvalue above x₁ or below x₂
    growth     ⟨v, q_i⟩/⟨v, b⟩ for an eigenvector v at x₁, x₂ and the b that the search began with
    settled    whether there is none, as growth shows
    done       whether all has been found
    """

    basis: Float[Array, "m+1 n"]
    projected: Float[Array, "m m"]
    size: Int[Array, ""]
    beta: Float[Array, ""]
    scale: Float[Array, ""]
    products: Int[Array, ""]
    accuracy: Float[Array, ""]
    searching: Bool[Array, ""]
    wanted: Float[Array, "k"]
    beyond: Float[Array, "2"]
    growth: Float[Array, "2 m+1"]
    settled: Bool[Array, "2"]
    done: Bool[Array, ""]


def restarted(
    product: Callable[[Float[Array, "n"]], tuple[Float[Array, "n"], Int[Array, ""]]],
    first: Float[Array, "n"],
    key: Key,
    allowed: Callable[[Float[Array, "k"], Float[Array, ""]], Float[Array, "..."]],
    max_products: int | Array,
    *,
    k: int,
    which: Which,
    basis_size: int,
) -> tuple[Float[Array, "k n"], Run]:
    """The k wanted Ritz vectors when they have converged, and the run that found them.

    `product`(v) is (A v, its cost). The basis grows by `EXPANSION` vectors; then the Ritz pairs are
    looked at. A full basis is replaced by the better half of its Ritz vectors and the residual
    direction. When the wanted residuals are below `allowed`(wanted θ, largest |θ| seen), the wanted
    vectors and a random direction b orthogonal to them begin a search for an eigenvector v that was
    missed, as copies of a repeated eigenvalue are. If A v = x v, then ⟨v, q_i⟩ = φ_i(x) ⟨v, b⟩ with

        β φ_{j+1} = x φ_j - Σ_i ⟨q_i, A q_j⟩ φ_i,   and   Σ φ_i² ≤ 1/⟨v, b⟩²,

    as ‖v‖ = 1. Beyond the Ritz values φ grows with x, and with every product: the search is over
    when Σ φ_i² at the last wanted θ is more than n/`MISSED`, so that b has no share in such a v, or
    when the next Ritz pair has converged, as it does to further copies of the last wanted θ.

    Source: Wu & Simon (2000), algorithm 3; Σ φ_i² is the inverse of the Christoffel function.
    """
    m, n, dtype = basis_size, first.size, first.dtype

    def fresh(basis: Array, number: Array) -> Array:
        """A random unit vector orthogonal to the basis."""
        draw = jax.random.normal(jax.random.fold_in(key, number), first.shape, dtype)
        w = orthogonalized(draw, basis)[0]
        return w / tree.norm(w)

    def extend(j: Array, run: Run) -> Run:
        w, cost = product(run.basis[j])
        w, _, h = extended(w, run.basis, j)
        projected = run.projected.at[j, :].set(h[:m]).at[:, j].set(h[:m])
        beta, products = tree.norm(w), run.products + cost
        scale = jnp.maximum(run.scale, jnp.max(jnp.abs(h)))
        ends = beta <= negligible(scale)
        length = jnp.where(ends, 1, beta)
        q = lax.cond(ends, lambda w: fresh(run.basis, products), lambda w: w / length, w)
        grown = (run.beyond * run.growth[:, j] - dot(run.growth, h)) / length
        growth = run.growth.at[:, j + 1].set(jnp.where(ends | run.settled, 0, grown))
        # In an invariant subspace that b is in, all eigenvectors with a share in b are.
        settled = run.settled | ends | (jnp.sum(growth**2, axis=1) >= n / MISSED)
        return run._replace(
            basis=run.basis.at[j + 1].set(q),
            projected=projected,
            size=j + 1,
            beta=jnp.where(ends, 0, beta),
            scale=scale,
            products=products,
            growth=growth,
            settled=settled,
        )

    def step(run: Run) -> Run:
        run = lax.fori_loop(run.size, jnp.minimum(run.size + EXPANSION, m), extend, run)
        theta, y = ritz(run.projected, run.size, which)
        wanted, found = theta[:k], run.size >= k
        scale = jnp.maximum(run.scale, jnp.where(found, jnp.max(jnp.abs(wanted)), 0))
        goal = jnp.maximum(allowed(wanted, scale), negligible(scale))
        residuals = run.beta * jnp.abs(y[run.size - 1])
        least = jnp.maximum(run.accuracy * goal, negligible(scale))
        ready = found & jnp.all(residuals[:k] <= least)
        sizes = jnp.abs if which == "magnitude" else lambda theta: theta  # ±λ is a tie
        same = run.searching & jnp.all(jnp.abs(sizes(wanted) - sizes(run.wanted)) <= goal)
        # The next beside the wanted would not have come before one that was missed.
        come = (run.size >= k + 2) & (residuals[k : k + 2] <= jnp.min(least))
        above, below = jnp.abs(theta[None, k : k + 2] - run.beyond[:, None])
        upper = above < below
        settled = run.settled | jnp.stack([jnp.any(come & upper), jnp.any(come & ~upper)])
        done = ready & same & jnp.all(settled)
        run = run._replace(scale=scale, settled=settled, done=done)

        def keep(size: int, direction: Array) -> Run:
            empty, vectors = jnp.zeros_like(run.basis), dot(y[:, :size].T, run.basis[:m])
            growth = dot(run.growth[:, :m], y[:, :size])
            return run._replace(
                basis=empty.at[:size].set(vectors).at[size].set(direction),
                projected=jnp.zeros_like(run.projected)
                .at[:size, :size]
                .set(jnp.diag(theta[:size])),
                size=jnp.array(size, jnp.int32),
                growth=jnp.zeros_like(run.growth)
                .at[:, :size]
                .set(growth)
                .at[:, size]
                .set(run.growth[:, m]),
            )

        def search(run: Run) -> Run:
            kept = keep(k, jnp.zeros_like(first))
            direction = fresh(kept.basis, run.products)
            return kept._replace(
                basis=kept.basis.at[k].set(direction),
                beta=jnp.zeros_like(run.beta),
                # What the wanted vectors leave out is lost, each time: the squares add up to 1.
                accuracy=run.accuracy / 2**0.5,
                searching=jnp.array(True),
                wanted=wanted,
                beyond=_beyond(wanted, jnp.max(goal), scale, which),
                growth=jnp.zeros_like(run.growth).at[:, k].set(1),
                settled=jnp.zeros(2, bool),
            )

        def go_on(run: Run) -> Run:
            half = k + (m - k) // 2
            return lax.cond(run.size == m, lambda _: keep(half, run.basis[m]), lambda run: run, run)

        choice = jnp.where(done, 0, jnp.where(ready & ~same, 1, 2))
        return lax.switch(choice, [lambda run: run, search, go_on], run)

    def unfinished(run: Run) -> Array:
        return ~run.done & (run.products < max_products) & jnp.isfinite(run.scale)

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
        accuracy=zero + 0.5**0.5,
        searching=jnp.array(False),
        wanted=jnp.zeros(k, dtype),
        beyond=jnp.zeros(2, dtype),
        growth=jnp.zeros((2, m + 1), dtype),
        settled=jnp.zeros(2, bool),
        done=jnp.array(False),
    )
    run = lax.while_loop(unfinished, step, run)
    y = ritz(run.projected, run.size, which)[1]
    return dot(y[:, :k].T, run.basis[:m]), run


def _beyond(
    wanted: Float[Array, "k"], error: Float[Array, ""], scale: Float[Array, ""], which: Which
) -> Float[Array, "2"]:
    """Above and below which values an eigenvalue is more wanted than those that were found."""
    k, nowhere = len(wanted), 1000 * scale
    if which == "magnitude":
        x = jnp.abs(wanted[-1]) + error
        return jnp.stack([x, -x])
    # The last wanted of those at the upper end and of those at the lower end.
    above = {"largest": k - 1, "both": (k - 1) // 2 * 2}.get(which)
    below = {"smallest": k - 1, "both": k // 2 * 2 - 1 if k > 1 else None}.get(which)
    return jnp.stack(
        [
            nowhere if above is None else wanted[above] + error,
            -nowhere if below is None else wanted[below] - error,
        ]
    )


def ritz(
    projected: Float[Array, "m m"], size: Int[Array, ""], which: Which
) -> tuple[Float[Array, "m"], Float[Array, "m m"]]:
    """Eigenvalues and -vectors (columns) of the leading block of that size, most wanted first.

    Behind them those of the rest, whose eigenvalue no other is near, so that nothing mixes.
    """
    filled = jnp.arange(len(projected), dtype=size.dtype) < size
    block = jnp.where(filled[:, None] & filled[None, :], projected, 0)
    bound = jnp.max(jnp.sum(jnp.abs(block), axis=1))
    far = jnp.where(bound > 0, 2 * bound, 1)  # on the scale of the rest, or eigh would round that
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
