"""The higher a critical point of a net's loss, the more directions lead down from it.

A tanh network with weight decay reading digits (their first principal components). Searches start
where descent is after a random number of steps; each distinct critical point found, ‖∇L‖ ≤ 1e-10,
has a loss, a training error and a share of negative Hessian eigenvalues. As for Gaussian random
fields, high ones are saddles and the low ones are where minima are. Controls: the same numbers
paired at random; the ends of searches that are gradient-flat, which are no critical points at all.
Dauphin et al. (2014), section 3; Bray & Dean (2007); Frye et al. (2021) for what is not critical.
[S0.64, S0.52]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.verdicts import bound, direction
from jaxnn import curvature, losses, nn, regularizers

PANELS = (1, 2)
PRECISION = "float64"
CORRELATION = 0.6  # of 30 points, shuffled, 1 in 1000
CRITICAL = 1e-10


@dataclass(frozen=True)
class Config:
    classes: int = 5
    features: int = 4
    hidden: int = 4
    examples: int = 100
    weight_decay: float = 0.01
    starts: int = 300
    descent_steps: int = 1000
    learning_rate: float = 0.5
    steps: int = 150


SMOKE = Config(starts=100, steps=80)
PAPER = Config(10, features=8, hidden=8, examples=500, starts=4000, steps=400)


def data(config):
    """The digits of some classes by their first principal components, of variance 1."""
    found = digits()
    keep = np.flatnonzero(found.y_train < config.classes)[: config.examples]
    x = found.x_train[keep] - found.x_train[keep].mean(0)
    components = x @ np.linalg.svd(x, full_matrices=False)[2][: config.features].T
    return jnp.asarray(components / components.std(0)), jnp.asarray(found.y_train[keep])


def run(config, key):
    x, y = data(config)
    net = nn.mlp((config.hidden, config.classes), activation=nn.tanh())

    def objective(params):
        fit = jnp.mean(losses.softmax_cross_entropy(net.apply(params, x), y))
        return fit + config.weight_decay * regularizers.l2(params)

    def end(key):
        init_key, time_key = jax.random.split(key)
        params, _ = net.init(init_key, x.shape[1:])
        time = jax.random.uniform(time_key, maxval=jnp.log(config.descent_steps))
        step = lambda p, g: p - config.learning_rate * g
        descend = lambda _, params: jax.tree.map(step, params, jax.grad(objective)(params))
        params = jax.lax.fori_loop(0, jnp.exp(time).astype(int), descend, params)
        found = curvature.find_critical_point(
            objective, params, method="gradient_norm", max_steps=config.steps
        )
        signs = curvature.inertia(objective, found.params)
        return {
            "losses": found.value,
            "errors": jnp.mean(jnp.argmax(net.apply(found.params, x), axis=1) != y),
            "negative": signs.negative / signs.eigenvalues.size,
            "below_0": jnp.mean(signs.eigenvalues < 0),
            "gradient_norm": found.gradient_norm,
            "critical": found.converged,
            "gradient_flat": found.gradient_flat,
        }

    return jax.jit(jax.vmap(end))(jax.random.split(key, config.starts))


def distinct(metrics):
    """Numbers of the critical points, each once: units in another order have the same loss."""
    critical = np.flatnonzero(metrics["critical"])
    _, first = np.unique(np.round(metrics["losses"][critical], 7), return_index=True)
    return critical[first]


def rank_correlation(a, b):
    """Spearman's, with mean ranks for ties."""
    rank = lambda v: (v[:, None] > v).sum(1) + 0.5 * (v[:, None] == v).sum(1)
    return np.corrcoef(rank(a), rank(b))[0, 1]


def verdict(config, metrics):
    at = distinct(metrics)
    negative, rng = metrics["negative"][at], np.random.default_rng(0)
    flat = metrics["gradient_flat"].astype(bool)
    half = at.size // 2
    share = f"{flat.mean():.0%} of the searches ended gradient-flat"
    claims = [
        bound(
            f"‖∇L‖ at {at.size} distinct critical points; {share}",
            CRITICAL,
            metrics["gradient_norm"][at],
            control=(CRITICAL, metrics["gradient_norm"][flat] if flat.any() else 0.0),
        ),
        direction("more negative curvature: the higher half", negative[-half:], negative[:half]),
    ]
    for name, words in (("losses", "loss"), ("errors", "training error")):
        values = metrics[name][at]
        shuffled = [rank_correlation(values, rng.permutation(negative)) for _ in range(100)]
        claims.append(
            bound(
                f"rank correlation of {words} and share of negative eigenvalues ≥ {CORRELATION}",
                CORRELATION,
                rank_correlation(values, negative),
                at_least=True,
                control=(CORRELATION, np.array(shuffled)),
            )
        )
    return claims


def plot(config, metrics, axes):
    at, flat = distinct(metrics), metrics["gradient_flat"].astype(bool)
    for panel, name, words in zip(
        axes, ("losses", "errors"), ("loss", "training error"), strict=True
    ):
        panel.plot(
            *(metrics[name][flat], metrics["below_0"][flat]),
            "x",
            color="gray",
            alpha=0.35,
            label="gradient-flat, not critical",
        )
        panel.plot(metrics[name][at], metrics["negative"][at], "o", label="critical points")
        panel.set(xlabel=words, ylabel="negative eigenvalues (share)")
    axes[0].legend(loc="lower right")
