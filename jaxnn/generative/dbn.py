"""Deep belief networks: an undirected machine on top of layers that are directed downward.

    p(v, h¹, ..., h^L) = p(v | h¹) ··· p(h^{L-2} | h^{L-1}) p(h^{L-1}, h^L)

The last factor is a restricted Boltzmann machine, the others are independent units of logits
b + hWᵀ. Parameters are a tuple of restricted machines, the lowest first, as `greedy.fit` trains
them: W and b of a lower one generate, W and c recognize  [S1.18].
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Float, Shaped

from jaxnn import nn
from jaxnn.errors import invalid
from jaxnn.generative import rbm
from jaxnn.generative.units import bernoulli, states
from jaxnn.precision import accumulated
from jaxnn.types import Array, ArrayLike, Key, Params, Shape


def log_joint(
    params: tuple[Params, ...], layers: tuple[Array, ...], log_partition: ArrayLike
) -> Float[Array, "*N"]:
    """ln p(v, h¹, ..., h^L), with ln Z of the top machine.

        Σ_l ln p(h^{l-1} | h^l) - E_top(h^{L-1}, h^L) - ln Z_top

    >>> from jaxnn.generative import greedy
    >>> params = greedy.init(jax.random.key(0), (3, 2, 1), weight_std=0.0)
    >>> layers = (jnp.ones((1, 3)), jnp.ones((1, 2)), jnp.ones((1, 1)))
    >>> bool(jnp.allclose(log_joint(params, layers, 3 * jnp.log(2.0)), -6 * jnp.log(2.0)))
    True
    """
    _require_layers(params, layers)

    def summed(params: tuple[Params, ...], layers: tuple[Array, ...]) -> Array:
        *directed, top = params
        energy = rbm.energy(top, layers[-2], layers[-1])
        log_p = -energy - jnp.asarray(log_partition, energy.dtype)
        for machine, below, above in zip(directed, layers[:-2], layers[1:-1], strict=True):
            log_p = log_p + log_conditional(machine, below, above)
        return log_p

    return accumulated(summed, params, layers)


def log_conditional(
    params: Params, v: Shaped[Array, "*N visible"], h: Shaped[Array, "*N hidden"]
) -> Float[Array, "*N"]:
    """ln p(v | h) = Σ_i v_i z_i - ln(1 + exp(z_i)) with z = b + hWᵀ, for one directed layer.

    >>> params = rbm.init(jax.random.key(0), 3, 2, weight_std=0.0)
    >>> log_conditional(params, jnp.ones((1, 3)), jnp.ones((1, 2)))
    Array([-2.0794415], dtype=float32)
    """

    def summed(params: Params, v: Array, h: Array) -> Array:
        z = rbm.hidden_logits(rbm.transposed(params), h)
        return jnp.sum(v * z - jax.nn.softplus(z), axis=-1)

    return accumulated(summed, params, v, h)


@jax.jit
def log_likelihood(
    params: tuple[Params, ...], v: Shaped[Array, "N visible"], log_partition: ArrayLike
) -> Float[Array, "N"]:
    """ln p(v) = ln Σ_{h¹} p(v | h¹) p(h¹), layer by layer, by enumeration, for small networks.

    The highest layer is summed out in closed form. Memory is (N or 2^{n_{l-1}}) × 2^{n_l} × units.

    Errors: more than 20 units in a hidden layer below the highest.

    >>> from jaxnn.generative import greedy
    >>> params = greedy.init(jax.random.key(0), (3, 2, 1), weight_std=0.0)
    >>> bool(jnp.allclose(log_likelihood(params, jnp.ones((1, 3)), 3 * jnp.log(2.0)),
    ...                   -3 * jnp.log(2.0)))
    True
    """
    return accumulated(partial(_log_likelihood, log_partition=log_partition), params, v)


def _log_likelihood(
    params: tuple[Params, ...], v: Array, *, log_partition: ArrayLike
) -> Float[Array, "N"]:
    machine, *above = params
    if not above:
        return rbm.log_likelihood(machine, v, log_partition)
    h = states(machine["c"].size, v.dtype)
    log_p = log_likelihood(tuple(above), h, log_partition)
    # ln p(v | h) for all pairs: v·z(h) - Σ softplus(z(h)).
    z = rbm.hidden_logits(rbm.transposed(machine), h)
    log_p = log_p - jnp.sum(jax.nn.softplus(z), axis=-1)
    pairs = v @ z.T
    return logsumexp(pairs + jnp.broadcast_to(log_p, pairs.shape), axis=-1)


def recognition_means(
    params: tuple[Params, ...], v: Shaped[Array, "N visible"]
) -> tuple[Float[Array, "N _"], ...]:
    """Means of the hidden layers by one pass upward, h^l = σ(c_l + h^{l-1} W_l).

    The exact posterior below the top machine is another distribution: units of a layer that share
    a child depend on each other given it  [S1.20].

    >>> from jaxnn.generative import greedy
    >>> means = recognition_means(greedy.init(jax.random.key(0), (3, 2, 1)), jnp.ones((5, 3)))
    >>> [m.shape for m in means]
    [(5, 2), (5, 1)]
    """
    means = [v]
    for machine in params:
        means.append(rbm.hidden_mean(machine, means[-1]))
    return tuple(means[1:])


@partial(jax.jit, static_argnames="count")
def sample(
    key: Key, params: tuple[Params, ...], count: int, *, gibbs_steps: ArrayLike = 1000
) -> tuple[Float[Array, "count _"], ...]:
    """Ancestral sampling: Gibbs steps in the top machine, then one pass down  [S1.20].

    Returns v, h¹, ..., h^{L-1}. The chains begin with independent units of log-odds b; exact
    samples take as many steps as the top machine needs to mix.

    Source: Hinton, Osindero & Teh (2006), section 4.

    >>> from jaxnn.generative import greedy
    >>> params = greedy.init(jax.random.key(0), (3, 2, 1))
    >>> [x.shape for x in sample(jax.random.key(1), params, 5)]
    [(5, 3), (5, 2)]
    """
    *directed, top = params
    start_key, gibbs_key, down_key = jax.random.split(key, 3)
    start = bernoulli(start_key, jnp.broadcast_to(top["b"], (count, top["b"].size)))
    layers = [rbm.gibbs(gibbs_key, top, start, gibbs_steps)]
    for machine, layer_key in zip(
        directed[::-1], jax.random.split(down_key, len(params))[1:], strict=True
    ):
        logits = rbm.hidden_logits(rbm.transposed(machine), layers[-1])
        layers.append(bernoulli(layer_key, logits))
    return tuple(layers[::-1])


def unrolled(params: Params, layers: int) -> tuple[Params, ...]:
    """The belief network with tied weights whose p(v) is that of the restricted machine  [S1.19].

    Layers take turns with the machine and its transpose: inference and generation of one more
    directed layer are one Gibbs step of the machine, which leaves p(v) as it is.

    Errors: layers < 1.

    Source: Hinton, Osindero & Teh (2006), section 3.

    >>> [m["W"].shape for m in unrolled(rbm.init(jax.random.key(0), 3, 2), 3)]
    [(3, 2), (2, 3), (3, 2)]
    """
    if layers < 1:
        raise invalid(
            "unrolled(layers)",
            got=layers,
            expected="an integer ≥ 1",
            remedy="It counts machines; 1 is the restricted machine itself.",
        )
    return tuple(rbm.transposed(params) if i % 2 else params for i in range(layers))


def classifier(params: tuple[Params, ...], classes: int, *, weight_std: float = 0.01) -> nn.Layer:
    """The recognition pass with a linear layer on top: a network to be fine-tuned.

        logits = W h^L + b,   h^l = σ(c_l + h^{l-1} W_l)

    Its `init` returns the trained weights and draws the last layer, N(0, weight_std²/fan_in): train
    it by `training.fit` with `losses.softmax_cross_entropy`. `nn.mlp` with sigmoids is the same
    network from scratch.

    Errors: classes < 1, an in_shape other than (visible,).

    Source: Hinton & Salakhutdinov (2006).

    >>> from jaxnn.generative import greedy
    >>> net = classifier(greedy.init(jax.random.key(0), (3, 2, 2)), 10)
    >>> start, out_shape = net.init(jax.random.key(1), (3,))
    >>> out_shape, net.apply(start, jnp.ones((5, 3))).shape
    ((10,), (5, 10))
    """
    hidden = [layer for machine in params for layer in (nn.dense(machine["c"].size), nn.sigmoid())]
    net = nn.serial(*hidden, nn.dense(classes, weight_std=weight_std))

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        visible = params[0]["b"].shape
        if in_shape != visible:
            raise invalid(
                "dbn.classifier.init: in_shape",
                got=in_shape,
                expected=f"{visible}, the network's visible units",
                remedy="Flatten pictures.",
            )
        drawn, out_shape = net.init(key, in_shape)
        trained = [p for m in params for p in ({"W": m["W"], "b": m["c"]}, ())]
        return (*trained, drawn[-1]), out_shape

    return net._replace(init=init)


def _require_layers(params: tuple[Params, ...], layers: tuple[Array, ...]) -> None:
    sizes = [machine["b"].size for machine in params] + [params[-1]["c"].size]
    found = [x.shape[-1] for x in layers]
    if found != sizes:
        raise invalid(
            "layers of a deep belief network",
            got=f"{found} units",
            expected=f"{sizes}",
            remedy="The visible layer comes first.",
        )
