"""Deep random networks forget or tear apart their inputs, but at the edge of chaos.

In the ordered phase of tanh networks 1 - c, c the correlation of two inputs, falls by χ₁ per layer,
over a depth ξ = -1/ln χ₁ that is infinite at the edge χ₁ = 1. Networks drawn at random are compared
with the limit, with the rate of the next variance as the control. ReLU networks of He's variance
are on the edge, where 1 - c falls as 9π²/2l².  Poole et al. (2016); Schoenholz et al. (2017),
equation 9.  [S0.59]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import bound, control, identity, printed
from jaxnn import nn, signal

PANELS = (1, 2)
BIAS_VARIANCE, EDGE, RELU_CONSTANT = 0.05, "1.7610", 9 * np.pi**2 / 2
BAND, START = 0.05, 0.999  # so close that only the slope of the map counts


@dataclass(frozen=True)
class Config:
    weight_variances: tuple[float, ...] = (0.6, 0.9, 1.2)
    width: int = 2000
    depth: int = 20
    seeds: int = 24
    relu_depth: int = 3000


SMOKE = Config(width=500, depth=15, seeds=32, relu_depth=1000)
PAPER = Config(weight_variances=(0.6, 0.8, 1.0, 1.2, 1.4), width=8000, depth=30, seeds=64)


def run(config, key):
    bias_std = BIAS_VARIANCE**0.5
    gaps, slopes = [], []
    for i, variance in enumerate(config.weight_variances):
        point = signal.fixed_point(nn.tanh(), weight_std=variance**0.5, bias_std=bias_std)
        slopes.append(point.slope)
        keys = jax.random.split(jax.random.fold_in(key, i), config.seeds)
        report_progress(i, len(config.weight_variances))
        gaps.append(distances(config, variance**0.5, bias_std, point.variance, keys))
    with jax.enable_x64(True):
        critical = jax.jit(lambda: signal.critical_weight_std(nn.tanh(), bias_std=bias_std))()
        step = lambda c, _: (
            signal.correlation_map(nn.relu(), c, 1.0, weight_std=2.0**0.5),
            1.0 - c,
        )
        relu = jax.lax.scan(step, jnp.zeros(()), None, length=config.relu_depth)[1]
    return {
        "gap": np.stack(gaps),
        "slope": np.stack(slopes),
        "critical": np.asarray(critical**2),
        "relu": np.asarray(relu),
    }


def distances(config, weight_std, bias_std, variance, keys):
    """1 - c at every layer of a network drawn from each key, (seeds, depth)."""
    n = config.width

    def correlations(key):
        start_key, key = jax.random.split(key)
        a, b = jax.random.normal(start_key, (2, n))
        pair = jnp.sqrt(variance) * jnp.stack([a, START * a + (1 - START**2) ** 0.5 * b])

        def layer(h, key):
            weight_key, bias_key = jax.random.split(key)
            unit = h / jnp.linalg.norm(h, axis=1, keepdims=True)
            weight = jax.random.normal(weight_key, (n, n)) * (weight_std / n**0.5)
            bias = bias_std * jax.random.normal(bias_key, (1, n))
            return jnp.tanh(h) @ weight + bias, 0.5 * jnp.sum((unit[0] - unit[1]) ** 2)

        return jax.lax.scan(layer, pair, jax.random.split(key, config.depth))[1]

    return jax.jit(lambda keys: jax.lax.map(correlations, keys))(keys)


def rates(metrics):
    """The mean fall of ln(1 - c) per layer, (variances, seeds)."""
    log = np.log(metrics["gap"])
    return (log[..., -1] - log[..., 0]) / (log.shape[2] - 1)


def verdict(config, metrics):
    measured, predicted = rates(metrics).mean(1), np.log(metrics["slope"])
    other = np.roll(predicted, 1)
    depth = config.relu_depth - 1
    relu = metrics["relu"][depth]
    return [
        printed("tanh, σ_b² = 0.05: χ₁ = 1 at σ_w²", EDGE, metrics["critical"]),
        bound(
            f"|rate of ln(1 - c) / ln χ₁ - 1| ≤ {BAND} in the ordered phase, mean over seeds",
            BAND,
            np.abs(measured / predicted - 1),
            control=(BAND, np.abs(measured / other - 1)),
        ),
        identity("ReLU: l²(1 - c) → 9π²/2", RELU_CONSTANT, depth**2 * relu, tolerance=BAND),
        control(identity("ReLU: l(1 - c) → 9π²/2", RELU_CONSTANT, depth * relu, tolerance=BAND)),
    ]


def plot(config, metrics, axes):
    tanh, relu = axes
    layers = np.arange(config.depth)
    for i, variance in enumerate(config.weight_variances):
        gap = metrics["gap"][i]
        tanh.semilogy(layers, gap.mean(0), "osv^d"[i % 5], label=f"tanh, σ_w² = {variance:g}")
        tanh.fill_between(layers, gap.min(0), gap.max(0), alpha=0.3)
        middle = config.depth // 2
        line = gap.mean(0)[middle] * metrics["slope"][i] ** (layers - middle)
        style = THEORY | ({"label": "theory: χ₁^l"} if i == 0 else {})
        tanh.plot(layers, line, **style)
    bottom = metrics["gap"].min() / 3
    tanh.set(xlabel="layer l", ylabel="1 - c, range over seeds", ylim=(bottom, 3 * (1 - START)))
    depth = np.arange(1, config.relu_depth)
    relu.loglog(depth, metrics["relu"][1:], lw=4, alpha=0.5, label="ReLU, σ_w² = 2")
    relu.plot(depth, RELU_CONSTANT / depth**2, **THEORY, label="theory: 9π²/2l²")
    relu.set(xlabel="layer l", ylabel="1 - c of the limit", ylim=(metrics["relu"][-1] / 2, 2))
    for panel in axes:
        panel.legend()
