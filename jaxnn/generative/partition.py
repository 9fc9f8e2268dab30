"""The partition function Z of a restricted Boltzmann machine: enumerated, or estimated.

A deep Boltzmann machine is one too, with its even layers for visible and its odd layers for
hidden units: `dbm.as_rbm` makes both ways serve both.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp, softplus
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid
from jaxnn.generative import rbm
from jaxnn.generative.units import MOST, bernoulli, states
from jaxnn.precision import accumulated, inexact_dtype, wide_dtype
from jaxnn.types import Array, Key, Params

BLOCK = 12
"""States are enumerated 2¹² at a time, which bounds the memory by 2¹² × the larger layer."""


@jax.jit
def log_partition(params: Params) -> Float[Array, ""]:
    """ln Z = ln Σ_h exp(-F(h)), the sum over all states of the smaller layer.

    Errors: more than 20 units in the smaller layer.

    >>> params = {"W": jnp.zeros((3, 2)), "b": jnp.zeros(3), "c": jnp.zeros(2)}
    >>> bool(jnp.isclose(log_partition(params), 5 * jnp.log(2.0)))
    True
    """

    def summed(params: Params) -> Array:
        params, blocks, block = _enumeration(params)
        return logsumexp(lax.map(lambda i: logsumexp(-rbm.free_energy(params, block(i))), blocks))

    return accumulated(summed, params)


@jax.jit
def model_statistics(params: Params) -> Params:
    """The model's expectation of `rbm.statistics`, which is the gradient of ln Z.

        W: E v_i h_j,   b: E v_i,   c: E h_j

    Errors: more than 20 units in the smaller layer.

    >>> params = {"W": jnp.zeros((3, 2)), "b": jnp.zeros(3), "c": jnp.zeros(2)}
    >>> print(model_statistics(params)["c"])
    [0.5 0.5]
    """
    return accumulated(_expected_statistics, params)


def _expected_statistics(params: Params) -> Params:
    smaller, blocks, block = _enumeration(params)
    log_z = log_partition(params)

    def part(i: Array) -> Params:
        h = block(i)
        p = jnp.exp(-rbm.free_energy(smaller, h) - log_z)
        weighted = jnp.broadcast_to(p[:, None], h.shape) * h
        v = rbm.hidden_mean(smaller, h)
        return {"W": weighted.T @ v, "b": jnp.sum(weighted, axis=0), "c": p @ v}

    sums = jax.tree.map(lambda a: jnp.sum(a, axis=0), lax.map(part, blocks))
    visible, hidden = params["W"].shape
    return sums if visible <= hidden else rbm.transposed(sums)


class Annealed(NamedTuple):
    """An estimate of ln Z.

    log_partition   ln of the mean of the weights
    standard_error  of log_partition, from the spread of the weights (the delta method); too small
                    while the annealing is so fast that few weights carry the mean
    log_weights     (chains,): each exp(log_weight) is an unbiased estimate of Z
    """

    log_partition: Float[Array, ""]
    standard_error: Float[Array, ""]
    log_weights: Float[Array, "chains"]


@partial(jax.jit, static_argnames="chains")
def annealed_log_partition(
    key: Key,
    params: Params,
    *,
    chains: int = 100,
    betas: Shaped[Array, "K"] | None = None,
    base: Shaped[Array, "visible"] | None = None,
) -> Annealed:
    """Annealed importance sampling of ln Z, from independent units to the model.

        f_β(v) = exp(((1 - β) a + β b)·v) Π_j (1 + exp(β (c + vW)_j)),   0 = β₀ < ... < β_K = 1
        w = Z₀ Π_k f_{β_k}(v_k)/f_{β_{k-1}}(v_k),   v_1 ~ f_0,   v_{k+1} ~ a Gibbs step of f_{β_k}

    E w = Z for any `betas`; the finer they are the less w varies. `betas` are 1001 equal steps
    from 0 to 1 by default, `base` is a: b by default, better the log-odds of the data's means.

    Errors: fewer than 2 chains, fewer than 2 betas.

    Source: Salakhutdinov & Murray (2008), equations 14 to 18.

    >>> params = rbm.init(jax.random.key(0), 8, 3, weight_std=0.5)
    >>> found = annealed_log_partition(jax.random.key(1), params)
    >>> bool(abs(found.log_partition - log_partition(params)) < 4 * found.standard_error)
    True
    """
    betas = jnp.linspace(0.0, 1.0, 1001, dtype=wide_dtype(params["b"])) if betas is None else betas
    base = params["b"] if base is None else base
    for name, size in (("chains", chains), ("betas", betas.size)):
        if size < 2:
            raise invalid(
                f"annealed_log_partition({name})",
                got=size,
                expected="at least 2",
                remedy="A spread needs several chains, and annealing a way from 0 to 1.",
            )
    estimate = accumulated(partial(_annealed, key, chains), params, base, betas)
    return jax.tree.map(lambda a: a.astype(inexact_dtype(params["b"])), estimate)


def _annealed(key: Key, chains: int, params: Params, a: Array, betas: Array) -> Annealed:
    W, b = params["W"], params["b"]

    def at(beta: Array) -> Params:
        return {"W": beta * W, "b": (1.0 - beta) * a + beta * b, "c": beta * params["c"]}

    def anneal(carry: tuple, step: tuple) -> tuple[tuple, None]:
        v, log_w = carry
        key, before, after = step
        gain = rbm.free_energy(at(before), v) - rbm.free_energy(at(after), v)
        return (rbm.gibbs_step(key, at(after), v)[0], log_w + gain), None

    start_key, chain_key = jax.random.split(key)
    v = bernoulli(start_key, jnp.broadcast_to(a, (chains, a.size)))
    log_z0 = jnp.sum(softplus(a)) + W.shape[1] * math.log(2.0)
    keys = jax.random.split(chain_key, betas.size - 1)
    log_w = jnp.broadcast_to(log_z0, (chains,))
    (_, log_w), _ = lax.scan(anneal, (v, log_w), (keys, betas[:-1], betas[1:]))
    log_z = logsumexp(log_w) - math.log(chains)
    relative = jnp.exp(log_w - log_z)  # of mean 1
    return Annealed(log_z, jnp.std(relative, ddof=1) / math.sqrt(chains), log_w)


def _enumeration(params: Params) -> tuple:
    """The machine whose visible layer is the smaller one, and its states in blocks."""
    visible, hidden = params["W"].shape
    params = params if visible <= hidden else rbm.transposed(params)
    units = min(visible, hidden)
    bits = min(units, BLOCK)
    rows = partial(states, units, params["b"].dtype, count=2**bits)
    blocks = jnp.arange(2 ** (min(units, MOST) - bits), dtype=jnp.int32)
    return params, blocks, lambda i: rows(first=i * 2**bits)
