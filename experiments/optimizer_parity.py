"""Every optimizer, written as its equation, takes the steps that optax takes.

100 steps of each on an ill-conditioned quadratic and on a network reading digits, in float64; the
largest relative difference of the parameters at any step. Controls: ε on the wrong side of the
root, momentum without Nesterov's look-ahead, AMSGrad without bias correction.
[S0.41, S0.42, S0.43, S0.44, S0.45, S0.46]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import BAND
from experiments.verdicts import control, identity
from jaxnn import losses, nn, optimizers, tree

PRECISION = "float64"
TOLERANCE = 1e-12
RATE = 0.005  # larger ones make RMSprop chaotic on the digits, and rounding grow

PAIRS = {
    "gradient descent": (optimizers.gradient_descent(RATE), optax.sgd(RATE)),
    "momentum": (optimizers.momentum(RATE), optax.sgd(RATE, momentum=0.9)),
    "Nesterov": (optimizers.nesterov(RATE), optax.sgd(RATE, momentum=0.9, nesterov=True)),
    "AdaGrad": (optimizers.adagrad(RATE, initial_accumulator=0.1), optax.adagrad(RATE)),
    "RMSprop": (optimizers.rmsprop(RATE), optax.rmsprop(RATE)),
    "Adam": (optimizers.adam(RATE), optax.adam(RATE)),
    "AdamW": (optimizers.adamw(RATE, weight_decay=0.1), optax.adamw(RATE, weight_decay=0.1)),
    "AMSGrad": (optimizers.amsgrad(RATE, bias_correction=True), optax.amsgrad(RATE)),
}
WRONG = {
    "RMSprop, ε outside the root": (
        optimizers.rmsprop(RATE, eps_in_root=False),
        PAIRS["RMSprop"][1],
    ),
    "momentum for Nesterov": (PAIRS["momentum"][0], PAIRS["Nesterov"][1]),
    "AMSGrad, no bias correction": (optimizers.amsgrad(RATE), PAIRS["AMSGrad"][1]),
}


@dataclass(frozen=True)
class Config:
    steps: int = 100
    examples: int = 256
    hidden: int = 32


SMOKE = Config(steps=20, examples=64, hidden=8)
PAPER = Config(steps=1000, examples=1437, hidden=128)


def problems(config, key):
    """Objectives with a starting point, by name."""
    found = digits()
    x, y = (
        jnp.asarray(found.x_train[: config.examples]),
        jnp.asarray(found.y_train[: config.examples]),
    )
    net = nn.mlp((config.hidden, 10), activation=nn.tanh())
    curvature = jnp.logspace(-2, 1, 20)
    return {
        "quadratic": (lambda w: 0.5 * jnp.sum(curvature * (w - 1.0) ** 2), jnp.zeros(20)),
        "digits": (
            lambda p: jnp.mean(losses.softmax_cross_entropy(net.apply(p, x), y)),
            net.init(key, (64,))[0],
        ),
    }


def difference(config, objective, params, ours, theirs):
    """max‖θ - θ'‖∞/‖θ'‖∞ over the steps of two optimizers from one start."""

    def step(carry, _):
        moved = []
        for optimizer, (at, state) in zip((ours, theirs), carry, strict=True):
            updates, state = optimizer.update(jax.grad(objective)(at), state, at)
            moved.append((tree.add(at, updates), state))
        largest = [
            jnp.abs(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(t)])).max()
            for t in (tree.sub(moved[0][0], moved[1][0]), moved[1][0])
        ]
        return moved, largest[0] / largest[1]

    start = [(params, optimizer.init(params)) for optimizer in (ours, theirs)]
    return jax.lax.scan(step, start, length=config.steps)[1].max()


def run(config, key):
    found = problems(config, key)
    pairs = {**PAIRS, **WRONG}
    metrics = {}
    for done, (name, (ours, theirs)) in enumerate(pairs.items()):
        report_progress(done, len(pairs))
        metrics[name] = [
            difference(config, objective, params, ours, theirs)
            for objective, params in found.values()
        ]
    return metrics


def verdict(config, metrics):
    claims = [
        identity(f"{name} = optax", 0, metrics[name], tolerance=TOLERANCE, scale=1.0)
        for name in PAIRS
    ]
    wrong = [
        control(identity(f"{name} = optax", 0, metrics[name], tolerance=TOLERANCE, scale=1.0))
        for name in WRONG
    ]
    return claims + wrong


def plot(config, metrics, axes):
    names = [*PAIRS, *WRONG]
    for column, (problem, marker) in enumerate((("quadratic", "o"), ("digits", "^"))):
        values = [max(float(metrics[name][column]), 1e-18) for name in names]
        axes.plot(values, np.arange(len(names)), marker, linestyle="none", label=problem)
    axes.axvspan(1e-18, TOLERANCE, **BAND, label="theory: 0, to rounding (1e-12)")
    axes.axhline(len(PAIRS) - 0.5, color="gray", linewidth=0.8)
    axes.set(
        xscale="log",
        xlim=(1e-18, 10),
        xlabel=f"largest relative difference in {config.steps} steps",
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.text(3, len(PAIRS) - 0.35, "controls", va="top", ha="right", fontsize=9, color="gray")
    axes.legend(loc="lower left")
