"""Thick restarts: the Lanczos process in a basis of fixed size, until what is wanted is found."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn import tree
from jaxnn.linalg.tridiagonal import extended, negligible, orthogonalized
from jaxnn.linalg.vectors import dot
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

    basis      orthonormal rows; row `size` is the next direction, if there is one
    projected  Q A Qᵀ, as far as it is known
    ritz       columns: coordinates of the Ritz vectors in the basis, most wanted first
    size       rows of the basis that A was applied to
    follows    whether there is a next direction; if not, a random one is drawn
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
    ritz: Float[Array, "m m"]
    size: Int[Array, ""]
    follows: Bool[Array, ""]
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
    product: Callable[
        [Float[Array, "n"], Int[Array, ""]], tuple[Float[Array, "n"], Int[Array, ""]]
    ],
    first: Float[Array, "n"],
    key: Key,
    allowed: Callable[[Float[Array, "k"], Float[Array, ""]], Float[Array, "..."]],
    max_products: int | Array,
    *,
    k: int,
    which: Which,
    basis_size: int,
    products: int | Array = 0,
) -> tuple[Float[Array, "k n"], Run]:
    """The k wanted Ritz vectors when they have converged, and the run that found them.

    `product`(v, products so far) is (A v, its cost). The space has more dimensions than the basis
    has vectors. The basis grows by `EXPANSION` vectors; then the Ritz pairs are
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
    half = k + (m - k) // 2

    def drawn(run: Run) -> Array:
        """A random unit vector orthogonal to the basis."""
        draw = jax.random.normal(jax.random.fold_in(key, run.products), first.shape, dtype)
        w = orthogonalized(draw, run.basis)[0]
        return w / tree.norm(w)

    def extend(j: Array, run: Run) -> Run:
        q = lax.cond(run.follows, lambda: run.basis[j], lambda: drawn(run))
        basis = run.basis.at[j].set(q)
        w, cost = product(q, run.products)
        w, _, h = extended(w, basis, j)
        projected = run.projected.at[j, :].set(h[:m]).at[:, j].set(h[:m])
        beta = tree.norm(w)
        scale = jnp.maximum(run.scale, jnp.max(jnp.abs(h)))
        ends = beta <= negligible(scale)
        length = jnp.where(ends, 1, beta)
        grown = (run.beyond * run.growth[:, j] - dot(run.growth, h)) / length
        growth = run.growth.at[:, j + 1].set(jnp.where(ends | run.settled, 0, grown))
        # In an invariant subspace that b is in, all eigenvectors with a share in b are.
        settled = run.settled | ends | (jnp.sum(growth**2, axis=1) >= n / MISSED)
        return run._replace(
            basis=basis.at[j + 1].set(jnp.where(ends, 0, w / length)),
            projected=projected,
            size=j + 1,
            follows=~ends,
            beta=jnp.where(ends, 0, beta),
            scale=scale,
            products=run.products + cost,
            growth=growth,
            settled=settled,
        )

    def restart(search: Array, theta: Array, y: Array, beyond: Array, run: Run) -> Run:
        """Ritz vectors instead of the basis: the better half, or to begin a search the wanted."""
        size = jnp.where(search, k, half).astype(jnp.int32)
        number = jnp.arange(m + 1, dtype=jnp.int32)

        def renewed(rows: Array) -> Array:
            rotated = jnp.append(dot(y.T, rows[:m]), rows[m:], axis=0)
            kept = jnp.where(number[:, None] < size, rotated, 0)
            return kept.at[size].set(jnp.where(search, 0, rows[m]))

        alone = jnp.where(number == k, 1, jnp.zeros_like(run.growth))
        return run._replace(
            basis=renewed(run.basis),
            projected=jnp.diag(jnp.where(number[:m] < size, theta, 0)),
            ritz=jnp.eye(m, dtype=dtype),
            size=size,
            follows=run.follows & ~search,
            beta=jnp.where(search, 0, run.beta),
            # What the wanted vectors leave out is lost, each time: the squares add up to 1.
            accuracy=jnp.where(search, run.accuracy / 2**0.5, run.accuracy),
            searching=run.searching | search,
            wanted=jnp.where(search, theta[:k], run.wanted),
            beyond=jnp.where(search, beyond, run.beyond),
            growth=jnp.where(search, alone, renewed(run.growth.T).T),
            settled=run.settled & ~search,
        )

    def step(run: Run) -> Run:
        run = lax.fori_loop(run.size, jnp.minimum(run.size + EXPANSION, m), extend, run)
        theta, y = ritz(run.projected, run.size, which)
        wanted, found = theta[:k], run.size >= k
        seen = jnp.where(jnp.arange(m, dtype=jnp.int32) < run.size, jnp.abs(theta), 0)
        scale = jnp.maximum(run.scale, jnp.max(seen))
        goal = jnp.maximum(allowed(wanted, scale), negligible(scale))
        residuals = run.beta * jnp.abs(y[run.size - 1])
        least = jnp.maximum(run.accuracy * goal, negligible(scale))
        ready = found & jnp.all(residuals[:k] <= least)
        sizes = jnp.abs if which == "magnitude" else lambda theta: theta  # ±λ is a tie
        same = run.searching & jnp.all(jnp.abs(sizes(wanted) - sizes(run.wanted)) <= goal)
        # The next beside the wanted would not have come before one of their end that was missed.
        come = (run.size >= k + 2) & (residuals[k : k + 2] <= jnp.min(least))
        upper = _upper(theta, which)[k : k + 2]
        settled = run.settled | jnp.stack([jnp.any(come & upper), jnp.any(come & ~upper)])
        done = ready & same & jnp.all(settled)
        search = ready & ~same
        run = run._replace(ritz=y, scale=scale, settled=settled, done=done)
        beyond = _beyond(wanted, jnp.max(goal), scale, which)
        return lax.cond(
            search | ((run.size == m) & ~done),
            lambda: restart(search, theta, y, beyond, run),
            lambda: run,
        )

    def unfinished(run: Run) -> Array:
        more = (run.products < max_products) | (run.size < k)  # k vectors there are to be
        return ~run.done & more & jnp.isfinite(run.scale)

    length = tree.norm(first)
    follows = (length > 0) & jnp.isfinite(length)
    zero, none, small = jnp.zeros((), dtype), jnp.zeros((), jnp.int32), jnp.zeros((m, m), dtype)
    run = Run(
        basis=jnp.zeros((m + 1, n), dtype)
        .at[0]
        .set(jnp.where(follows, first / jnp.where(follows, length, 1), 0)),
        projected=small,
        ritz=small,
        size=none,
        follows=follows,
        beta=zero,
        scale=zero,
        products=none + products,
        accuracy=zero + 0.5**0.5,
        searching=jnp.array(False),
        wanted=jnp.zeros(k, dtype),
        beyond=jnp.zeros(2, dtype),
        growth=jnp.zeros((2, m + 1), dtype),
        settled=jnp.zeros(2, bool),
        done=jnp.array(False),
    )
    run = lax.while_loop(unfinished, step, run)
    return dot(run.ritz[:, :k].T, run.basis[:m]), run


def _upper(theta: Float[Array, "m"], which: Which) -> Bool[Array, "m"]:
    """Which of the eigenvalues, the most wanted first, are wanted as the largest."""
    if which == "magnitude":
        return theta > 0
    rank = jnp.arange(len(theta), dtype=jnp.int32)
    return {"largest": rank >= 0, "smallest": rank < 0}.get(which, rank % 2 == 0)


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
