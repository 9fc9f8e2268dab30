"""A wide network learns along the eigenvectors of its kernel, each at its own rate e^{-ηλt}.

Networks of the NTK parametrization, trained by full-batch gradient descent on the digits 0 and 1.
In the eigenbasis of the kernel at the start, component i of the error after t steps is (1 - ηλ_i)^t
of what it was. The control gives the modes each other's rates, the fastest that of the slowest.
Jacot, Gabriel & Hongler (2018), section 5.  [S0.66, S0.67]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import bound
from jaxnn import kernels, nn

MODES, TOLERANCE = 4, 0.05


@dataclass(frozen=True)
class Config:
    width: int = 4096
    seeds: int = 8
    examples: int = 20
    steps: int = 200
    share: float = 0.5  # of the largest stable learning rate


SMOKE = Config(width=1024, seeds=2, steps=100)
TOUR = Config(width=2048, seeds=4)
PAPER = Config(width=16384, seeds=32, examples=64, steps=1000)


def run(config, key):
    found = digits()
    pair = found.y_train < 2
    x = jnp.asarray(found.x_train[pair][: config.examples], jnp.float32)
    y = jnp.asarray(2.0 * found.y_train[pair][: config.examples] - 1.0, jnp.float32)[:, None]
    net = nn.mlp((config.width, 1), bias_std=0.1, parametrization="ntk")

    @jax.jit
    def components(key):
        """Of the error at every step, and what (1 - ηλ)^t of the start is; by other rates too."""
        params, _ = net.init(key, x.shape[1:])
        theta = kernels.ntk(net.apply, params, x)
        modes = kernels.eigenmodes(theta)
        rate = config.share * kernels.max_learning_rate(theta)
        loss = lambda p: 0.5 * jnp.sum((net.apply(p, x) - y) ** 2)

        def step(p, _):
            error = (net.apply(p, x) - y)[:, 0]
            return jax.tree.map(lambda p, g: p - rate * g, p, jax.grad(loss)(p)), error

        errors = jax.lax.scan(step, params, None, length=config.steps)[1]
        parts = (errors @ modes.eigenvectors)[:, :MODES]
        values = modes.eigenvalues[:MODES]
        time = jnp.arange(config.steps, dtype=x.dtype)[:, None]
        decay = lambda values: (1.0 - rate * values)[None, :] ** time * parts[:1]
        return {"measured": parts, "own": decay(values), "other": decay(values[::-1])}

    runs = []
    for seed in range(config.seeds):
        report_progress(seed, config.seeds)
        runs.append(components(jax.random.fold_in(key, seed)))
    return {name: np.stack([r[name] for r in runs]) for name in runs[0]}


def distances(metrics, name):
    """Of measured and predicted curves, relative to the largest start, (seeds,)."""
    gap = np.abs(metrics["measured"] - metrics[name]).max((1, 2))
    return gap / np.abs(metrics["measured"][:, 0]).max(1)


def verdict(config, metrics):
    return [
        bound(
            f"error along {MODES} eigenvectors = (1 - ηλ)^t of its start, within {TOLERANCE:.0%}",
            TOLERANCE,
            distances(metrics, "own"),
            control=(TOLERANCE, distances(metrics, "other")),
        )
    ]


def plot(config, metrics, axes):
    steps = np.arange(config.steps)
    for i in range(MODES):
        curve, line = metrics["measured"][0, :, i], metrics["own"][0, :, i]
        axes.semilogy(steps, np.abs(curve), color=f"C{i}", lw=4, alpha=0.4, label=f"mode {i + 1}")
        style = THEORY | ({"label": "theory: (1 - ηλ)^t"} if i == 0 else {})
        axes.plot(steps, np.abs(line), **style)
    top = np.abs(metrics["measured"][0, 0]).max()
    axes.set(xlabel="step t", ylabel="|error along an eigenvector|", ylim=(1e-3 * top, 2 * top))
    axes.legend()
