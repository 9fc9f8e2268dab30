"""Restricted Boltzmann machines: binary units in two layers, with weights between them alone.

    p(v, h) = exp(-E(v, h))/Z,   E(v, h) = -b·v - c·h - vᵀW h

Parameters are {"W": (visible, hidden), "b": (visible,), "c": (hidden,)}. Units are on the last
axis of v and h: 0 or 1 in the dtype of the parameters, or as integers or booleans. Z is in
`partition`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logit
from jaxtyping import Float, Shaped

from jaxnn import tree
from jaxnn.errors import invalid, require_between, require_real
from jaxnn.generative import iteration
from jaxnn.generative.iteration import Fit, State
from jaxnn.generative.units import bernoulli
from jaxnn.jaxprs import compiled
from jaxnn.precision import accumulated, inexact
from jaxnn.types import Array, ArrayLike, Key, Params


def init(
    key: Key,
    visible: int,
    hidden: int,
    *,
    weight_std: float = 0.01,
    mean: Shaped[Array, "visible"] | None = None,
) -> Params:
    """Small random weights, and biases with which the visible units have the given means.

        W_ij ~ N(0, weight_std²),   b = ln(mean/(1 - mean)),   c = 0

    `mean` is that of the data, at least 1/100 away from 0 and 1 so that no unit is frozen; without
    it b = 0.

    Source: Hinton (2010), A practical guide to training restricted Boltzmann machines, section 8.

    >>> params = init(jax.random.key(0), 3, 2, mean=jnp.array([0.5, 0.0, 1.0]))
    >>> params["W"].shape, [round(mean, 2) for mean in jax.nn.sigmoid(params["b"]).tolist()]
    ((3, 2), [0.5, 0.01, 0.99])
    """
    for name, units in (("visible", visible), ("hidden", hidden)):
        if units < 1:
            raise invalid(
                f"rbm.init({name})", got=units, expected="an integer ≥ 1", remedy="Units are many."
            )
    require_between("rbm.init(weight_std)", weight_std, 0.0, math.inf, remedy="It is a scale.")
    b = jnp.zeros(visible)
    if mean is not None:
        require_real("rbm.init(mean)", mean)
        b = accumulated(lambda mean: logit(jnp.clip(mean, 0.01, 0.99)), mean)
    return {
        "W": weight_std * jax.random.normal(key, (visible, hidden), b.dtype),
        "b": b,
        "c": jnp.zeros(hidden, b.dtype),
    }


def transposed(params: Params) -> Params:
    """The same machine with visible and hidden units exchanged.

    >>> transposed(init(jax.random.key(0), 3, 2))["W"].shape
    (2, 3)
    """
    return {"W": params["W"].T, "b": params["c"], "c": params["b"]}


def energy(
    params: Params, v: Shaped[Array, "*N visible"], h: Shaped[Array, "*N hidden"]
) -> Float[Array, "*N"]:
    """E(v, h) = -b·v - c·h - vᵀW h.

    >>> params = {"W": jnp.array([[2.0]]), "b": jnp.array([0.5]), "c": jnp.array([0.25])}
    >>> energy(params, jnp.ones((1, 1)), jnp.ones((1, 1)))
    Array([-2.75], dtype=float32)
    """

    def summed(params: Params, v: Array, h: Array) -> Array:
        return -(v @ params["b"]) - jnp.sum(h * hidden_logits(params, v), axis=-1)

    return accumulated(summed, params, v, h)


def free_energy(params: Params, v: Shaped[Array, "*N visible"]) -> Float[Array, "*N"]:
    """F(v) = -ln Σ_h exp(-E(v, h)) = -b·v - Σ_j ln(1 + exp(c_j + (vW)_j)).

    p(v) = exp(-F(v))/Z. That of hidden units is `free_energy(transposed(params), h)`.

    >>> params = {"W": jnp.zeros((1, 1)), "b": jnp.array([0.5]), "c": jnp.zeros(1)}
    >>> free_energy(params, jnp.ones((2, 1)))
    Array([-1.1931472, -1.1931472], dtype=float32)
    """

    def summed(params: Params, v: Array) -> Array:
        summed_out = jnp.sum(jax.nn.softplus(hidden_logits(params, v)), axis=-1)
        return -(v @ params["b"]) - summed_out

    return accumulated(summed, params, v)


def log_likelihood(
    params: Params, v: Shaped[Array, "*N visible"], log_partition: ArrayLike
) -> Float[Array, "*N"]:
    """ln p(v) = -F(v) - ln Z, with ln Z from `partition`.

    >>> params = init(jax.random.key(0), 3, 2, weight_std=0.0)
    >>> log_likelihood(params, jnp.ones((1, 3)), 5 * math.log(2.0))
    Array([-2.0794415], dtype=float32)
    """

    def normalized(params: Params, v: Array) -> Array:
        return -free_energy(params, v) - jnp.asarray(log_partition, v.dtype)

    return accumulated(normalized, params, v)


def hidden_logits(params: Params, v: Shaped[Array, "*N visible"]) -> Float[Array, "*N hidden"]:
    """c + vW, the log-odds of p(h_j = 1 | v). Those of v given h are the transposed machine's.

    Errors: v whose last axis is not the visible units.

    >>> hidden_logits(init(jax.random.key(0), 3, 2, weight_std=0.0), jnp.ones((1, 3)))
    Array([[0., 0.]], dtype=float32)
    """
    W = params["W"]
    require_real("units and parameters of a Boltzmann machine", v, W)
    if jnp.ndim(v) < 1 or v.shape[-1] != W.shape[0]:
        raise invalid(
            "units of a Boltzmann machine",
            got=f"shape {jnp.shape(v)}",
            expected=f"(..., {W.shape[0]})",
            remedy="Flatten pictures: the units are the last axis.",
        )
    y = inexact(v, W) @ W
    return y + jnp.broadcast_to(params["c"], y.shape)


def hidden_mean(params: Params, v: Shaped[Array, "*N visible"]) -> Float[Array, "*N hidden"]:
    """p(h_j = 1 | v) = σ(c_j + Σ_i v_i W_ij), independently for every j.

    >>> hidden_mean(init(jax.random.key(0), 3, 2, weight_std=0.0), jnp.ones((1, 3)))
    Array([[0.5, 0.5]], dtype=float32)
    """
    return jax.nn.sigmoid(hidden_logits(params, v))


def visible_mean(params: Params, h: Shaped[Array, "*N hidden"]) -> Float[Array, "*N visible"]:
    """p(v_i = 1 | h) = σ(b_i + Σ_j W_ij h_j), independently for every i.

    >>> visible_mean(init(jax.random.key(0), 3, 2, weight_std=0.0), jnp.ones((1, 2)))
    Array([[0.5, 0.5, 0.5]], dtype=float32)
    """
    return hidden_mean(transposed(params), h)


def gibbs_step(
    key: Key, params: Params, v: Shaped[Array, "*N visible"]
) -> tuple[Float[Array, "*N visible"], Float[Array, "*N hidden"]]:
    """Draw h ~ p(h | v), then v' ~ p(v | h); returns (v', h).

    The joint distribution of the model is stationary under it.

    >>> v, h = gibbs_step(jax.random.key(0), init(jax.random.key(1), 3, 2), jnp.ones((5, 3)))
    >>> v.shape, h.shape
    ((5, 3), (5, 2))
    """
    return _step(key, params, params, v)


@jax.jit
def gibbs(
    key: Key, params: Params, v: Shaped[Array, "*N visible"], steps: ArrayLike
) -> Float[Array, "*N visible"]:
    """The visible units after a number of Gibbs steps.

    >>> gibbs(jax.random.key(0), init(jax.random.key(1), 3, 2), jnp.ones((5, 3)), 10).shape
    (5, 3)
    """
    return _chain(key, params, params, inexact(v, params["W"]), steps)


def statistics(params: Params, v: Shaped[Array, "N visible"]) -> Params:
    """The mean of -∂F(v)/∂θ over examples, in the shape of the parameters.

        W: mean v_i p(h_j = 1 | v),   b: mean v_i,   c: mean p(h_j = 1 | v)

    >>> s = statistics(init(jax.random.key(0), 3, 2, weight_std=0.0), jnp.eye(3)[:2])
    >>> print(s["b"], s["c"])
    [0.5 0.5 0. ] [0.5 0.5]
    """

    def averaged(params: Params, v: Array) -> Params:
        h = hidden_mean(params, v)
        return {"W": v.T @ h / len(v), "b": jnp.mean(v, axis=0), "c": jnp.mean(h, axis=0)}

    return accumulated(averaged, params, v)


def log_likelihood_gradient(
    params: Params, v: Shaped[Array, "N visible"], samples: Shaped[Array, "M visible"]
) -> Params:
    """The gradient of the mean log-likelihood: the statistics of data less those of the model.

        ∂ mean ln p(v)/∂θ = ⟨-∂F/∂θ⟩_data - ⟨-∂F/∂θ⟩_model

    `samples` stand for the model: with exact ones it is unbiased. The exact second term is
    `partition.model_statistics`.

    Source: Hinton (2002), Training products of experts, equation 3.

    >>> params, v = init(jax.random.key(0), 3, 2), jnp.eye(3)
    >>> float(tree.norm(log_likelihood_gradient(params, v, v)))
    0.0
    """

    def difference(params: Params, v: Array, samples: Array) -> Params:
        return tree.sub(statistics(params, v), statistics(params, samples))

    return accumulated(difference, params, v, samples)


def contrastive_divergence(
    key: Key, params: Params, v: Shaped[Array, "N visible"], *, steps: int = 1
) -> Params:
    """CD-k: the gradient with, for the model, the data after k = `steps` Gibbs steps.

    Its bias vanishes as k grows: the chain forgets the data at the rate of its second eigenvalue.

    Source: Hinton (2002), section 3; Carreira-Perpiñán & Hinton (2005) for the bias.

    >>> cd = contrastive_divergence(jax.random.key(0), init(jax.random.key(1), 3, 2), jnp.eye(3))
    >>> cd["W"].shape
    (3, 2)
    """
    return log_likelihood_gradient(params, v, gibbs(key, params, v, steps))


@compiled(static_argnames=("optimizer", "steps", "batch_size", "chains", "up", "down"))
def fit(
    params: Params,
    x: Shaped[Array, "N visible"],
    optimizer: Any,
    *,
    steps: int,
    batch_size: int | None = None,
    key: Key | None = None,
    gibbs_steps: ArrayLike = 1,
    chains: int | None = None,
    state: State | None = None,
    up: float = 1.0,
    down: float = 1.0,
) -> Fit:
    """Climb the log-likelihood by contrastive divergence, or by persistent chains.

    Every step moves the parameters by `optimizer` (a pair init, update; it is given the gradient
    of -ln p) along `log_likelihood_gradient(params, batch, samples)`. An optimizer that needs an
    objective is told of mean F(batch) - mean F(samples) with the samples held fixed, of which this
    is the gradient up to its sign. The samples are the batch
    after `gibbs_steps` Gibbs steps (CD-k); with a number of `chains` they are that many chains
    that go on from step to step (PCD), begun with independent units of log-odds b.

    `x` is (N, visible) in [0, 1]; what is between is taken as a mean; integers and booleans become
    numbers of the dtype of the parameters. `history` has per step
    "reconstruction_error", the mean of (v - p(v | mean h))² per unit, and "free_energy_gap", the
    mean free energy of the samples less that of the batch: its fall below 0 on data not trained on
    shows overfitting. To go on, pass `params` and `state` of a Fit.

    `up` and `down` scale the weights in p(h | v) and in p(v | h): 2 where a layer of a deep
    machine will get its other half of evidence from elsewhere, see `dbm.pretrain`.

    Errors: neither a key nor a state, steps < 1, a batch size outside [1, N], chains < 1.

    Source: Hinton (2002) for CD; Tieleman (2008), algorithm 1, for PCD.

    >>> from jaxnn import optimizers
    >>> x = jnp.tile(jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), (8, 1))
    >>> start = init(jax.random.key(0), 3, 2)
    >>> run = fit(start, x, optimizers.gradient_descent(0.2), steps=800, key=jax.random.key(1))
    >>> bool(run.history["reconstruction_error"][-1] < 0.05), run.diverged.item()
    (True, False)
    """
    if chains is not None and chains < 1:
        raise invalid(
            "rbm.fit(chains)", got=chains, expected="an integer ≥ 1", remedy="None is CD-k."
        )
    x = inexact(x, params["W"])
    state = iteration.begin("rbm.fit", optimizer.init, params, key, state)
    if chains is not None and state.chains is None:
        start = jnp.broadcast_to(params["b"], (chains, params["b"].size))
        state = state._replace(chains=bernoulli(iteration.chain_key(state), start))

    def step(params: Params, state: State, v: Array, key: Key) -> tuple:
        upward, downward = (
            {**params, "W": jnp.asarray(s, params["W"].dtype) * params["W"]} for s in (up, down)
        )
        begin = v if chains is None else state.chains
        samples = _chain(key, upward, downward, begin, gibbs_steps)
        gradient = log_likelihood_gradient(upward, v, samples)

        def objective(theta: Params) -> Array:
            # Displaced like the parameters, so that its gradient is this one for any `up`.
            theta = tree.add(upward, tree.sub(theta, params))
            return jnp.mean(free_energy(theta, v)) - jnp.mean(free_energy(theta, samples))

        moved, optimizer_state = iteration.descend(
            optimizer, params, state.optimizer, tree.scale(-1.0, gradient), objective
        )
        persistent = None if chains is None else samples
        state = state._replace(optimizer=optimizer_state, chains=persistent)
        reconstruction = visible_mean(downward, hidden_mean(upward, v))
        gap = jnp.mean(free_energy(upward, samples)) - jnp.mean(free_energy(upward, v))
        error = jnp.mean(jnp.square(v - reconstruction))
        return moved, state, {"reconstruction_error": error, "free_energy_gap": gap}

    return iteration.run(step, params, state, x, steps=steps, batch_size=batch_size)


def _step(key: Key, up: Params, down: Params, v: Array) -> tuple[Array, Array]:
    hidden_key, visible_key = jax.random.split(key)
    h = bernoulli(hidden_key, hidden_logits(up, v))
    return bernoulli(visible_key, hidden_logits(transposed(down), h)), h


def _chain(key: Key, up: Params, down: Params, v: Array, steps: ArrayLike) -> Array:
    return lax.fori_loop(
        0, steps, lambda t, v: _step(jax.random.fold_in(key, t), up, down, v)[0], v
    )
