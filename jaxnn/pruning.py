"""Pruning by magnitude, and the lottery-ticket hypothesis.

A mask is a tree of Boolean arrays like the parameters: True where a weight stays. What has fewer
than two axes (biases, scales) is never pruned. Train what is left with `optimizers.masked`, from
`masked_params`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxnn.errors import invalid, require_between
from jaxnn.precision import common, inexact
from jaxnn.types import Array, Key, Params, PyTree


def full_mask(params: Params) -> PyTree:
    """The mask that keeps everything.

    >>> full_mask({"W": jnp.zeros((1, 2))})
    {'W': Array([[ True,  True]], dtype=bool)}
    """
    return jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params)


def magnitude_mask(
    params: Params,
    fraction: Any,
    *,
    mask: PyTree | None = None,
    scope: Literal["layer", "global"] = "layer",
) -> PyTree:
    """The mask without the given fraction of the weights that are left, the smallest in magnitude.

        scope "layer":   of every leaf by itself;  of k weights left, round(fraction·k) go
        scope "global":  of all leaves together

    `mask` are the weights left, by default all. With scope "layer", `fraction` may be a tree of
    fractions like the parameters, or a prefix of it (the output layer is often pruned less). Of
    equal magnitudes the first go. Sizes are static, so it runs inside jit and vmap.

    Errors: a fraction outside [0, 1], another scope, a tree of fractions with scope "global".

    Source: Han, Pool, Tran & Dally (2015), section 3; Frankle & Carbin (2019), section 2.

    >>> magnitude_mask({"W": jnp.array([[3.0, -1.0], [0.5, 2.0]]), "b": jnp.zeros(2)}, 0.5)["W"]
    Array([[ True, False],
           [False,  True]], dtype=bool)
    """
    for part in jax.tree.leaves(fraction):
        require_between(
            "magnitude_mask(fraction)",
            *(part, 0.0, 1.0),
            high_open=False,
            remedy="It is the share of the weights left that are to go in this round.",
        )
    mask = full_mask(params) if mask is None else mask
    if scope == "layer":
        fractions = jax.tree.broadcast(fraction, params)
        return jax.tree.map(_pruned, params, mask, fractions)
    if scope != "global" or jax.tree.structure(fraction) != jax.tree.structure(0):
        raise invalid(
            "magnitude_mask(scope)",
            got=f"{scope!r} with fraction {fraction}",
            expected="'layer', or 'global' with one fraction",
            remedy="Fractions that differ by layer need scope='layer'.",
        )
    leaves, structure = jax.tree.flatten(params)
    kept = jax.tree.leaves(mask)
    chosen = [i for i, leaf in enumerate(leaves) if jnp.ndim(leaf) >= 2]
    if not chosen:
        return mask
    weights = jnp.concatenate([w.ravel() for w in common(*(leaves[i] for i in chosen))])
    left = _pruned(
        weights[None], jnp.concatenate([kept[i].ravel() for i in chosen])[None], fraction
    )
    start = 0
    for i in chosen:
        kept[i] = left[0, start : start + leaves[i].size].reshape(leaves[i].shape)
        start += leaves[i].size
    return jax.tree.unflatten(structure, kept)


def random_mask(key: Key, mask: PyTree) -> PyTree:
    """A mask that keeps as many weights of every leaf, chosen at random: the control of a mask.

    >>> mask = {"W": jnp.array([[True, False, False], [False, False, True]])}
    >>> int(random_mask(jax.random.key(0), mask)["W"].sum())
    2
    """
    leaves, structure = jax.tree.flatten(mask)
    keys = jax.random.split(key, max(len(leaves), 1))
    shuffled = [
        jax.random.permutation(k, leaf.ravel()).reshape(leaf.shape) if leaf.ndim >= 2 else leaf
        for k, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, shuffled)


def masked_params(params: Params, mask: PyTree) -> Params:
    """m ⊙ θ: the parameters with what the mask leaves out set to 0.

    >>> masked_params(jnp.array([1.0, 2.0]), jnp.array([True, False]))
    Array([1., 0.], dtype=float32)
    """
    return jax.tree.map(lambda w, keep: jnp.where(keep, w, jnp.zeros_like(w)), params, mask)


def weights_left(mask: PyTree) -> Int[Array, ""]:
    """How many prunable weights the mask keeps.

    >>> int(weights_left({"W": jnp.array([[True, False]]), "b": jnp.array([True])}))
    1
    """
    counts = [jnp.sum(leaf) for leaf in jax.tree.leaves(mask) if leaf.ndim >= 2]
    return jnp.sum(jnp.array(counts, jnp.int32))


def sparsity(mask: PyTree) -> Float[Array, ""]:
    """The share of the prunable weights that the mask leaves out; 0 where there are none.

    >>> sparsity({"W": jnp.array([[True, False, False, False]]), "b": jnp.array([True])})
    Array(0.75, dtype=float32)
    """
    total = sum(leaf.size for leaf in jax.tree.leaves(mask) if leaf.ndim >= 2)
    return 1.0 - weights_left(mask).astype(float) / max(total, 1) if total else jnp.zeros(())


class Ticket(NamedTuple):
    """A round of pruning: the mask before it, and what was trained under that mask."""

    mask: PyTree
    trained: Any


def lottery_rounds(
    train: Callable[[Params, PyTree], Any],
    params: Params,
    *,
    rounds: int,
    fraction: Any,
    trained_params: Callable[[Any], Params] = lambda trained: trained,
    scope: Literal["layer", "global"] = "layer",
) -> Iterator[Ticket]:
    """Iterative magnitude pruning with rewinding to the initial parameters, round by round.

        θ_k = train(m_k ⊙ θ₀, m_k),   m_{k+1} = magnitude_mask(θ_k, fraction, mask=m_k),   m₀ = 1

    The first round is the whole network; `rounds` prunings follow, so there are rounds + 1
    tickets. `train(params, mask)` returns the trained parameters, or anything of which
    `trained_params` takes them. A ticket is (m_k ⊙ θ₀, m_k): every round starts from θ₀ again.

    Errors: rounds < 0.

    Source: Frankle & Carbin (2019), section 2, "iterative pruning".

    >>> grow = lambda params, mask: jax.tree.map(lambda w: 2.0 * w, params)
    >>> tickets = lottery_rounds(grow, jnp.array([[1.0, 2.0, 3.0, 4.0]]), rounds=2, fraction=0.5)
    >>> [int(weights_left(ticket.mask)) for ticket in tickets]
    [4, 2, 1]
    """
    if rounds < 0:
        raise invalid(
            "lottery_rounds(rounds)",
            got=rounds,
            expected="an integer ≥ 0",
            remedy="It is the number of prunings.",
        )
    prune = jax.jit(partial(magnitude_mask, scope=scope))
    mask = full_mask(params)
    for k in range(rounds + 1):
        trained = train(masked_params(params, mask), mask)
        yield Ticket(mask, trained)
        if k < rounds:
            mask = prune(trained_params(trained), fraction, mask=mask)


def _pruned(weights: Array, mask: Array, fraction: Any) -> Array:
    if jnp.ndim(weights) < 2:
        return mask
    # By rank and not by a threshold: equal magnitudes must not all go together.
    magnitude = jnp.where(mask, jnp.abs(inexact(weights)), jnp.inf).ravel()
    order = jnp.argsort(magnitude, stable=True)
    rank = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.size, dtype=jnp.int32))
    left = jnp.sum(mask)
    going = jnp.round(jnp.asarray(fraction, float) * left.astype(float)).astype(jnp.int32)
    return mask & (rank >= going).reshape(mask.shape)
