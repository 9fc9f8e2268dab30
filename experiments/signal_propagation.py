"""Random weights decide whether signals and gradients survive the depth of a network.

ReLU layers of He's variance 2/n keep the mean square of a unit, though its logarithm wanders: the
fourth-moment ratio grows as (1 + 5/n)^L. Of variance 1/n, which is Xavier's for equal widths, every
layer loses half. All of a ReLU network of N units per layer is dead for an input with probability
1 - (1 - 2^-N)^L. Through sigmoid layers squared gradients shrink by χ₁ each, as the mean field
says; Π σ_max/4 bounds them, from far above.  He et al. (2015), section 2.2; Hanin &
Rolnick (2018), theorem 5; Lu et al. (2020), theorem 1; Schoenholz et al. (2017).
[S0.23, S0.26, S0.59, S0.60, S0.61]
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import bound, control, statistical
from jaxnn import nn, signal

PANELS = (1, 3)
BOUNDED = 16


@dataclass(frozen=True)
class Config:
    nets: int = 4000
    width: int = 100
    depth: int = 5
    dead_widths: tuple[int, ...] = (2, 3, 4)
    dead_depth: int = 10
    sigmoid_width: int = 256
    sigmoid_depth: int = 20
    sigmoid_nets: int = 500


SMOKE = Config(sigmoid_width=100, sigmoid_depth=8)
PAPER = Config(nets=40_000, width=400, depth=20, sigmoid_width=1000, sigmoid_depth=30)


def squares(config, weight_variance, key):
    """q_l = σ_w²·mean(max(z_l, 0)²)/q_0 at every layer of one network, (depth,)."""
    n = config.width

    def layer(z, key):
        h = jax.nn.relu(z)
        weight = jax.random.normal(key, (n, n)) * (weight_variance / n) ** 0.5
        return h @ weight, weight_variance * jnp.mean(h**2)

    start_key, key = jax.random.split(key)
    start = jax.random.normal(start_key, (n,))  # the first layer's units, of variance 1
    return jax.lax.scan(layer, start, jax.random.split(key, config.depth))[1]


def dies(width, depth, key):
    """Whether all units of some layer are off."""

    def layer(h, key):
        h = jax.nn.relu(h @ jax.random.normal(key, (width, width)))
        return h, jnp.all(h == 0)

    return jnp.any(jax.lax.scan(layer, jnp.ones(width), jax.random.split(key, depth))[1])


def sigmoid_gradients(config, variance, key):
    """‖∂z_l/∂z_0 v‖² of a random unit vector v at every layer of one network, and Π σ_max/4."""
    n = config.sigmoid_width
    start_key, vector_key, key = jax.random.split(key, 3)
    z = jnp.sqrt(variance) * jax.random.normal(start_key, (n,))
    v = jax.random.normal(vector_key, (n,))

    def layer(state, key):
        z, v, bound = state
        weight = jax.random.normal(key, (n, n)) / n**0.5
        z, v = jax.jvp(lambda z: jax.nn.sigmoid(z) @ weight, (z,), (v,))
        bound = bound * jnp.linalg.norm(weight, ord=2) / 4.0
        return (z, v, bound), (jnp.sum(v**2), bound)

    state = z, v / jnp.linalg.norm(v), jnp.ones(())
    return jax.lax.scan(layer, state, jax.random.split(key, config.sigmoid_depth))[1]


def run(config, key):
    keys = [jax.random.split(k, config.nets) for k in jax.random.split(key, 3)]
    each = lambda f, keys: np.asarray(jax.jit(lambda k: jax.lax.map(f, k, batch_size=50))(keys))
    metrics = {
        "he": each(partial(squares, config, 2.0), keys[0]),
        "xavier": each(partial(squares, config, 1.0), keys[1]),
    }
    report_progress(1, 3)
    metrics["dead"] = np.stack(
        [each(partial(dies, n, config.dead_depth), keys[2]) for n in config.dead_widths]
    )
    report_progress(2, 3)
    point = signal.fixed_point(nn.sigmoid(), weight_std=1.0)
    gradients = partial(sigmoid_gradients, config, point.variance)
    size = each(lambda key: gradients(key)[0], keys[2][: config.sigmoid_nets])
    # Of few, as singular values take long.
    largest = each(lambda key: gradients(key)[1], keys[2][:BOUNDED])
    return metrics | {"gradient": size, "largest": largest, "slope": point.slope}


def verdict(config, metrics):
    he, last = metrics["he"][:, -1], config.depth
    ratio = (1 + 5 / config.width) ** last
    halves = 0.5**last
    dead = 1 - (1 - 0.5 ** np.array(config.dead_widths)) ** config.dead_depth
    gradient = metrics["gradient"][:, -1]
    predicted = float(metrics["slope"]) ** config.sigmoid_depth
    return [
        statistical(f"He: mean square after {last} ReLU layers / before", 1.0, he),
        statistical("He: fourth-moment ratio, over (1 + 5/n)^L", 1.0, he**2 / ratio),
        control(statistical("He: fourth-moment ratio = 1", 1.0, he**2)),
        statistical("Xavier: mean square, over 2^-L", 1.0, metrics["xavier"][:, -1] / halves),
        *(
            statistical(f"dead inputs at {n} units, {config.dead_depth} layers", p, freq)
            for n, p, freq in zip(config.dead_widths, dead, metrics["dead"], strict=True)
        ),
        statistical("sigmoid: squared gradient, over χ₁^L", 1.0, gradient / predicted),
        bound(
            "sigmoid: gradient ≤ Π σ_max/4 in every network; its root mean square is no bound",
            metrics["largest"][:, -1],
            np.sqrt(gradient[:BOUNDED]),
            control=(predicted**0.5, np.sqrt(gradient)),
        ),
    ]


def plot(config, metrics, axes):
    relu, dead, sigmoid = axes
    layers = np.arange(1, config.depth + 1)
    for i, (name, line) in enumerate((("he", 1.0 + 0 * layers), ("xavier", 0.5**layers))):
        values = metrics[name]
        low, high = np.quantile(values, [0.05, 0.95], axis=0)
        relu.semilogy(layers, values.mean(0), "os"[i], label=name.capitalize())
        relu.fill_between(layers, low, high, alpha=0.2)
        relu.plot(layers, line, **THEORY, label="theory: 1 and 2^-l" if i == 0 else None)
    relu.set(xlabel="layer l", ylabel="mean square of units, 90 % of networks")
    widths = np.array(config.dead_widths)
    dead.plot(widths, metrics["dead"].mean(1), "o", label=f"{config.dead_depth} layers")
    theory = 1 - (1 - 0.5**widths) ** config.dead_depth
    dead.plot(widths, theory, **THEORY, label="theory: 1 - (1 - 2^-N)^L")
    dead.set_xticks(widths, widths)
    dead.set(xlabel="units per layer N", ylabel="share of dead networks", ylim=(0, 1))
    layers = np.arange(1, config.sigmoid_depth + 1)
    sigmoid.semilogy(layers, metrics["gradient"].mean(0) ** 0.5, "o", label="rms gradient")
    sigmoid.plot(layers, metrics["slope"] ** (layers / 2), **THEORY, label="theory: χ₁^(l/2)")
    sigmoid.plot(layers, metrics["largest"].mean(0), ":", label="bound: Π σ_max/4")
    sigmoid.set(xlabel="sigmoid layer l", ylabel="‖∂z_l/∂z_0 v‖")
    for panel in axes:
        panel.legend()
