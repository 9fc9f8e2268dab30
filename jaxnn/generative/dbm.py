"""Deep Boltzmann machines: binary units in layers, with weights between neighboring layers.

    p(x₀, ..., x_L) = exp(-E)/Z,   E = -Σ_l b_l·x_l - Σ_l x_lᵀ W_l x_{l+1}

x₀ are the visible units v. Parameters are {"W": (W_0, ..., W_{L-1}), "b": (b_0, ..., b_L)} with
W_l of shape (n_l, n_{l+1}); a state is the tuple of its layers, units on the last axis. Given the
odd layers the even ones are independent units, and the other way round.
"""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, Shaped

from jaxnn import tree
from jaxnn.errors import invalid, require_real
from jaxnn.generative import greedy, iteration, partition
from jaxnn.generative.iteration import Fit, State
from jaxnn.generative.units import bernoulli
from jaxnn.jaxprs import compiled
from jaxnn.precision import accumulated, inexact
from jaxnn.types import Array, ArrayLike, Key, Params

Layers = tuple[Array, ...]
"""The state of every layer, (N, n_l) each, the visible one first."""


def init(
    key: Key,
    sizes: tuple[int, ...],
    *,
    weight_std: float = 0.01,
    mean: Shaped[Array, "visible"] | None = None,
) -> Params:
    """Small random weights, and biases that give the visible units the means: see `rbm.init`.

    Errors: fewer than two layers.

    >>> params = init(jax.random.key(0), (4, 3, 2))
    >>> [W.shape for W in params["W"]], [b.shape for b in params["b"]]
    ([(4, 3), (3, 2)], [(4,), (3,), (2,)])
    """
    machines = greedy.init(key, sizes, weight_std=weight_std, mean=mean)
    biases = (machines[0]["b"], *(machine["c"] for machine in machines))
    return {"W": tuple(machine["W"] for machine in machines), "b": biases}


def energy(params: Params, layers: Layers) -> Float[Array, "*N"]:
    """E = -Σ_l b_l·x_l - Σ_l x_lᵀ W_l x_{l+1}  [S1.15].

    >>> params = {"W": (jnp.ones((1, 1)),) * 2, "b": (jnp.zeros(1),) * 3}
    >>> energy(params, (jnp.ones((1, 1)),) * 3)
    Array([-2.], dtype=float32)
    """
    _require(params, layers)

    def summed(params: Params, layers: Layers) -> Array:
        linear = [x @ b for b, x in zip(params["b"], layers, strict=True)]
        pairs = zip(layers[:-1], params["W"], layers[1:], strict=True)
        bilinear = [jnp.sum(below @ W * above, axis=-1) for below, W, above in pairs]
        return -sum(linear[1:] + bilinear, start=linear[0])

    return accumulated(summed, params, layers)


def layer_mean(params: Params, layers: Layers, layer: int) -> Float[Array, "*N units"]:
    """p(x_l = 1 | the other layers) = σ(b_l + x_{l-1} W_{l-1} + x_{l+1} W_lᵀ)  [S1.16].

    >>> params = {"W": (jnp.ones((1, 1)),) * 2, "b": (jnp.full(1, -2.0),) * 3}
    >>> layer_mean(params, (jnp.ones((1, 1)),) * 3, 1)
    Array([[0.5]], dtype=float32)
    """
    _require(params, layers)
    return jax.nn.sigmoid(_logits(params, layers, layer))


def gibbs_step(key: Key, params: Params, layers: Layers) -> Layers:
    """Draw the odd layers given the even ones, then the even layers given those.

    >>> layers = gibbs_step(jax.random.key(0), init(jax.random.key(1), (4, 3, 2)),
    ...                     (jnp.ones((5, 4)), jnp.ones((5, 3)), jnp.ones((5, 2))))
    >>> [x.shape for x in layers]
    [(5, 4), (5, 3), (5, 2)]
    """
    _require(params, layers)
    keys = jax.random.split(key, len(layers))
    return _alternate(layers, 0, lambda now, i: bernoulli(keys[i], _logits(params, now, i)))


@jax.jit
def gibbs(key: Key, params: Params, layers: Layers, steps: ArrayLike) -> Layers:
    """The layers after a number of Gibbs steps.

    >>> params, layers = init(jax.random.key(1), (3, 2)), (jnp.ones((5, 3)), jnp.ones((5, 2)))
    >>> [x.shape for x in gibbs(jax.random.key(0), params, layers, 10)]
    [(5, 3), (5, 2)]
    """
    layers = _numbers(params, layers)
    advance = lambda t, now: gibbs_step(jax.random.fold_in(key, t), params, now)
    return lax.fori_loop(0, steps, advance, layers)


class MeanField(NamedTuple):
    """The factorial distribution nearest to p(hidden | v).

    means      of the hidden layers, (N, n_l) for l = 1, ..., L
    residual   the largest change in the last sweep
    sweeps     how many were made
    converged  whether the residual is within the tolerance
    """

    means: Layers
    residual: Float[Array, ""]
    sweeps: Int[Array, ""]
    converged: Bool[Array, ""]


@jax.jit
def mean_field(
    params: Params,
    v: Shaped[Array, "N visible"],
    *,
    tolerance: ArrayLike | None = None,
    max_sweeps: ArrayLike = 1000,
) -> MeanField:
    """Solve μ_l = σ(b_l + μ_{l-1} W_{l-1} + μ_{l+1} W_lᵀ) with μ_0 = v, by sweeps.

    Begun with one pass upward in which each layer takes its evidence from below twice. A sweep
    sets the odd layers, then the even ones; each half maximizes `bound` over its layers, so that
    the bound never falls. `tolerance` on the largest change is 100 × the rounding unit by default.

    Source: Salakhutdinov & Hinton (2009), equations 14 to 16.

    >>> params = init(jax.random.key(0), (4, 3, 2), weight_std=0.5)
    >>> field = mean_field(params, jnp.ones((5, 4)))
    >>> [x.shape for x in field.means], bool(field.converged)
    ([(5, 3), (5, 2)], True)
    """
    _require_visible(params, v)
    sweeps = partial(_sweeps, tolerance=tolerance, max_sweeps=max_sweeps)
    return accumulated(sweeps, params, v)


def _sweeps(
    params: Params, v: Array, *, tolerance: ArrayLike | None, max_sweeps: ArrayLike
) -> MeanField:
    tolerance = 100 * jnp.finfo(v.dtype).eps if tolerance is None else tolerance
    tolerance = jnp.asarray(tolerance, v.dtype)
    layers = [v]
    for below, W in enumerate(params["W"]):
        top = below == len(params["W"]) - 1
        evidence = (1.0 if top else 2.0) * (layers[-1] @ W)
        bias = jnp.broadcast_to(params["b"][below + 1], evidence.shape)
        layers.append(jax.nn.sigmoid(evidence + bias))

    def sweep(carry: tuple) -> tuple:
        before, _, sweeps = carry
        after = _alternate(before, 1, lambda now, i: jax.nn.sigmoid(_logits(params, now, i)))
        changes = [tree.largest_entry(a - b) for a, b in zip(after[1:], before[1:], strict=True)]
        return after, jnp.max(jnp.stack(changes)), sweeps + 1

    def unfinished(carry: tuple) -> Array:
        _, residual, sweeps = carry
        return (residual > tolerance) & (sweeps < max_sweeps)

    start = (tuple(layers), jnp.full((), jnp.inf, v.dtype), jnp.zeros((), jnp.int32))
    layers, residual, sweeps = lax.while_loop(unfinished, sweep, start)
    return MeanField(layers[1:], residual, sweeps, residual <= tolerance)


def bound(
    params: Params, v: Shaped[Array, "*N visible"], means: Layers, log_partition: ArrayLike
) -> Float[Array, "*N"]:
    """E_q[-E(v, h)] + H(q) - ln Z ≤ ln p(v) for independent hidden units q of the given means.

    Its gap is KL(q ‖ p(h | v)): 0 with one hidden layer at the mean field.

    Source: Salakhutdinov & Hinton (2009), equation 12.

    >>> params, v = init(jax.random.key(0), (4, 3, 2), weight_std=0.5), jnp.ones((5, 4))
    >>> log_z = partition.log_partition(as_rbm(params))
    >>> below = bound(params, v, mean_field(params, v).means, log_z)
    >>> bool(jnp.all(below <= log_likelihood(params, v, log_z)))
    True
    """

    def expected(params: Params, v: Array, means: Layers) -> Array:
        entr = jax.scipy.special.entr
        entropies = [jnp.sum(entr(m) + entr(1.0 - m), axis=-1) for m in means]
        entropy = sum(entropies[1:], start=entropies[0])
        return entropy - energy(params, (v, *means)) - jnp.asarray(log_partition, v.dtype)

    return accumulated(expected, params, v, means)


def as_rbm(params: Params) -> Params:
    """The restricted machine of the same distribution: even layers visible, odd layers hidden.

    Its units are those layers side by side, its weights W_l or W_lᵀ in blocks, 0 between layers
    that are no neighbors. `partition` normalizes it: exactly, if one side has at most 20 units
    [S1.17].

    >>> as_rbm(init(jax.random.key(0), (4, 3, 2)))["W"].shape
    (6, 3)
    """
    weights, biases = params["W"], params["b"]

    def block(even: int, odd: int) -> Array:
        if odd == even + 1:
            return weights[even]
        if odd == even - 1:
            return weights[odd].T
        return jnp.zeros((biases[even].size, biases[odd].size), biases[0].dtype)

    evens, odds = range(0, len(biases), 2), range(1, len(biases), 2)
    return {
        "W": jnp.concatenate(
            [jnp.concatenate([block(even, odd) for odd in odds], axis=1) for even in evens]
        ),
        "b": jnp.concatenate([biases[even] for even in evens]),
        "c": jnp.concatenate([biases[odd] for odd in odds]),
    }


@jax.jit
def log_likelihood(
    params: Params, v: Shaped[Array, "N visible"], log_partition: ArrayLike
) -> Float[Array, "N"]:
    """ln p(v) = ln Σ_h exp(-E(v, h)) - ln Z by enumeration of hidden units, for small machines.

    With v held, the hidden layers are a machine of their own: it has biases b_1 + vW_0 in its
    first layer, and its partition function is the sum.

    Errors: more than 20 units in both the odd and the even hidden layers.

    >>> params = init(jax.random.key(0), (4, 3, 2), weight_std=0.0)
    >>> bool(jnp.allclose(log_likelihood(params, jnp.ones((1, 4)), 9 * jnp.log(2.0)),
    ...                   -4 * jnp.log(2.0)))
    True
    """
    _require_visible(params, v)

    def unnormalized(params: Params, v: Array) -> Array:
        evidence = params["b"][1] + v @ params["W"][0]
        above = {"W": params["W"][1:], "b": (evidence, *params["b"][2:])}
        if not above["W"]:
            hidden = jnp.sum(jax.nn.softplus(evidence))
        else:
            hidden = partition.log_partition(as_rbm(above))
        return v @ params["b"][0] + hidden

    def normalized(params: Params, v: Array) -> Array:
        values = jax.vmap(partial(unnormalized, params))(v)
        return values - jnp.asarray(log_partition, v.dtype)

    return accumulated(normalized, params, v)


def statistics(params: Params, layers: Layers) -> Params:
    """The mean of -∂E/∂θ over examples: ⟨x_lᵀ x_{l+1}⟩ and ⟨x_l⟩, in the shape of the parameters.

    >>> params, ones = init(jax.random.key(0), (2, 1)), (jnp.ones((5, 2)), jnp.ones((5, 1)))
    >>> print(statistics(params, ones)["b"][0])
    [1. 1.]
    """
    _require(params, layers)

    def averaged(_: Params, layers: Layers) -> Params:
        pairs = pairwise(layers)
        return {
            "W": tuple(below.T @ above / len(below) for below, above in pairs),
            "b": tuple(jnp.mean(x, axis=0) for x in layers),
        }

    return accumulated(averaged, params, layers)


@compiled(static_argnames=("optimizer", "steps", "batch_size", "chains"))
def fit(
    params: Params,
    x: Shaped[Array, "N visible"],
    optimizer: Any,
    *,
    steps: int,
    batch_size: int | None = None,
    key: Key | None = None,
    gibbs_steps: ArrayLike = 5,
    sweeps: ArrayLike = 10,
    chains: int = 100,
    state: State | None = None,
) -> Fit:
    """Climb the mean-field bound on the log-likelihood with persistent chains for the model.

        ∂ bound/∂θ = ⟨statistics⟩ of (v, mean field of v) - ⟨statistics⟩ of the model

    The first term takes `sweeps` sweeps of the mean field, the second `chains` chains that go on by
    `gibbs_steps` Gibbs steps in every step. `history` has per step "reconstruction_error", the mean
    of (v - p(v | means))² per unit, and "residual", that of the mean field. An optimizer that needs
    an objective is told of mean E(v, means) - mean E(samples) with units held fixed, of which this
    is the gradient up to its sign. To go on, pass `params` and `state` of a Fit.

    Errors: neither a key nor a state, steps < 1, a batch size outside [1, N], chains < 1.

    Source: Salakhutdinov & Hinton (2009), algorithm 1.

    >>> from jaxnn import optimizers
    >>> x = jnp.tile(jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), (8, 1))
    >>> start = init(jax.random.key(0), (3, 2, 2), weight_std=0.1)
    >>> run = fit(start, x, optimizers.gradient_descent(0.1), steps=500, key=jax.random.key(1))
    >>> bool(run.history["reconstruction_error"][-1] < 0.1), run.diverged.item()
    (True, False)
    """
    _require_visible(params, x)
    if chains < 1:
        raise invalid("dbm.fit(chains)", got=chains, expected="an integer ≥ 1", remedy="Take 100.")
    x = inexact(x, params["W"][0])
    state = iteration.begin("dbm.fit", optimizer.init, params, key, state)
    if state.chains is None:
        keys = jax.random.split(iteration.chain_key(state), len(params["b"]))
        starts = [jnp.broadcast_to(b, (chains, b.size)) for b in params["b"]]
        state = state._replace(chains=tuple(map(bernoulli, keys, starts)))

    def step(params: Params, state: State, v: Array, key: Key) -> tuple:
        field = mean_field(params, v, tolerance=0.0, max_sweeps=sweeps)
        layers = (v, *field.means)
        samples = gibbs(key, params, state.chains, gibbs_steps)
        gradient = accumulated(_difference, params, layers, samples)
        objective = lambda theta: jnp.mean(energy(theta, layers)) - jnp.mean(energy(theta, samples))
        moved, optimizer_state = iteration.descend(
            optimizer, params, state.optimizer, tree.scale(-1.0, gradient), objective
        )
        error = jnp.mean(jnp.square(v - layer_mean(params, layers, 0)))
        info = {"reconstruction_error": error, "residual": field.residual}
        return moved, state._replace(optimizer=optimizer_state, chains=samples), info

    return iteration.run(step, params, state, x, steps=steps, batch_size=batch_size)


def _difference(params: Params, layers: Layers, samples: Layers) -> Params:
    return tree.sub(statistics(params, layers), statistics(params, samples))


def from_stack(machines: tuple[Params, ...]) -> Params:
    """One deep machine of restricted ones, trained by `greedy.fit` with `doubled`.

    Weights are taken over. An inner layer gets the mean of its two biases: the geometric mean of
    its distributions in the two machines then has the evidence of either side once.

    Source: Salakhutdinov & Hinton (2009), section 3.1; the biases are not specified there.

    >>> params = from_stack(greedy.init(jax.random.key(0), (3, 2, 2)))
    >>> [W.shape for W in params["W"]], [b.shape for b in params["b"]]
    ([(3, 2), (2, 2)], [(3,), (2,), (2,)])
    """
    pairs = pairwise(machines)
    inner = [0.5 * (below["c"] + above["b"]) for below, above in pairs]
    return {
        "W": tuple(machine["W"] for machine in machines),
        "b": (machines[0]["b"], *inner, machines[-1]["c"]),
    }


def _numbers(params: Params, layers: Layers) -> Layers:
    return tuple(inexact(x, b) for x, b in zip(layers, params["b"], strict=True))


def _logits(params: Params, layers: Layers, layer: int) -> Array:
    layers = _numbers(params, layers)
    terms = []
    if layer > 0:
        terms.append(layers[layer - 1] @ params["W"][layer - 1])
    if layer < len(layers) - 1:
        terms.append(layers[layer + 1] @ params["W"][layer].T)
    return sum(terms, start=jnp.broadcast_to(params["b"][layer], layers[layer].shape))


def _alternate(layers: Layers, lowest: int, new: Any) -> Layers:
    """Set the odd layers to `new(layers, i)`, then the even ones from `lowest` on."""
    now = list(layers)
    for parity in (1, 0):
        for i in range(lowest, len(now)):
            if i % 2 == parity:
                now[i] = new(tuple(now), i)
    return tuple(now)


def _require(params: Params, layers: Layers) -> None:
    require_real("units and parameters of a Boltzmann machine", *layers, *params["W"])
    shapes = [jnp.shape(x) for x in layers]
    sizes = [b.shape for b in params["b"]]
    if [shape[-1:] for shape in shapes] != sizes or len({shape[:-1] for shape in shapes}) != 1:
        raise invalid(
            "layers of a deep Boltzmann machine",
            got=f"shapes {shapes}",
            expected=f"units on the last axis, {[size for (size,) in sizes]}, and equal batches",
            remedy="The visible layer comes first.",
        )


def _require_visible(params: Params, v: Array) -> None:
    require_real("units and parameters of a Boltzmann machine", v, *params["W"])
    if v.shape[-1:] != params["b"][0].shape:
        raise invalid(
            "visible units of a deep Boltzmann machine",
            got=f"shape {v.shape}",
            expected=f"(N, {params['b'][0].size})",
            remedy="Flatten pictures: the units are the last axis.",
        )
