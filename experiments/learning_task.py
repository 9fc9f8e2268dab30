"""Training error falls with every parameter, test error falls and rises: both as predicted.

A task (model, examples, error, procedure): least squares with the first p of the inputs, n examples
split off for each of training, validation and test. With r_p = σ² + Σ_{j>p} β_j², the expected
errors are r_p(1 - p/n) in training and r_p(1 + p/(n-p-1)) on test data; they agree for a hypothesis
fixed beforehand, r_p itself, and only for one. The validation error of the p that it chose is too
low, the test error is not.  [S2.2, S2.3, S2.4, S2.5, S2.16, S2.17]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import THEORY
from experiments.verdicts import control, direction, statistical
from jaxnn import data

PRECISION = "float64"


@dataclass(frozen=True)
class Config:
    examples: int = 40
    inputs: int = 24
    noise: float = 1.0
    draws: int = 2000


SMOKE = Config(inputs=16, draws=1200)
TOUR = Config()
PAPER = Config(draws=100_000)


def coefficients(config):
    return 0.7 ** np.arange(config.inputs)


def models(config):
    return np.arange(2, config.inputs + 1, 2)


def run(config, key):
    beta, n = jnp.asarray(coefficients(config)), config.examples

    def task(key):
        x_key, noise_key, split_key = jax.random.split(key, 3)
        x = jax.random.normal(x_key, (3 * n, config.inputs))
        y = x @ beta + config.noise * jax.random.normal(noise_key, (3 * n,))
        return data.split(split_key, x, y, sizes=(n, n, n))

    parts = jax.jit(jax.vmap(task))(jax.random.split(key, config.draws))
    # In NumPy, which need not compile a solver for every p.
    parts = jax.tree.map(np.asarray, parts)
    errors, fixed = [], []
    for p in models(config).tolist():
        x, y = parts.train
        z = x[:, :, :p]
        gram, moment = np.einsum("tni,tnj->tij", z, z), np.einsum("tni,tn->ti", z, y)
        w = np.linalg.solve(gram, moment[..., None])[..., 0]
        for found, weights in ((errors, w), (fixed, np.broadcast_to(beta[:p], w.shape))):
            misses = [b - np.einsum("tni,ti->tn", a[:, :, :p], weights) for a, b in parts]
            found.append(np.stack([np.mean(m**2, axis=1) for m in misses], axis=1))
    return {"errors": np.stack(errors, axis=1), "fixed": np.stack(fixed, axis=1)}


def predictions(config):
    """Risk r_p of the best hypothesis, expected training and test error of the fitted one."""
    beta, p, n = coefficients(config), models(config), config.examples
    risk = config.noise**2 + np.array([np.sum(beta[k:] ** 2) for k in p])
    return risk, risk * (1 - p / n), risk * (1 + p / (n - p - 1))


def verdict(config, metrics):
    risk, training, test = predictions(config)
    errors, p = metrics["errors"], models(config)
    chosen = np.argmin(errors[:, :, 1], axis=1)
    at_chosen = errors[np.arange(len(errors)), chosen]
    blocks = at_chosen[: len(at_chosen) // 16 * 16].reshape(16, -1, 3).mean(axis=1)
    last, best = len(p) - 1, int(np.argmin(test))
    means = errors[:, :, 2].reshape(16, -1, len(p)).mean(axis=1)
    found = []
    for i in (0, best, last):
        found += [
            statistical(f"p = {p[i]}: training error", training[i], errors[:, i, 0]),
            statistical(f"p = {p[i]}: test error", test[i], errors[:, i, 2]),
        ]
    return [
        *found,
        statistical("fixed hypothesis: training error = risk", risk[0], metrics["fixed"][:, 0, 0]),
        statistical("fixed hypothesis: test error = risk", risk[0], metrics["fixed"][:, 0, 2]),
        control(statistical("fitted: training error = test error", test[last], errors[:, last, 0])),
        direction(f"underfitting: p = {p[0]} is worse than {p[best]}", means[:, 0], means[:, best]),
        direction(
            f"overfitting: p = {p[last]} is worse than {p[best]}", means[:, last], means[:, best]
        ),
        direction("test error > validation error of the chosen p", blocks[:, 2], blocks[:, 1]),
    ]


def plot(config, metrics, axes):
    risk, *theory = predictions(config)
    p, means = models(config), metrics["errors"].mean(axis=0)
    for column, name, marker in ((0, "training", "o"), (2, "test", "^")):
        axes.plot(p, means[:, column], marker, linestyle="none", label=name)
    for line, label in zip(theory, ("theory", None), strict=True):
        axes.plot(p, line, **THEORY, label=label)
    axes.plot(p, risk, ":", color="C2", label="risk of the best hypothesis")
    axes.set(xlabel="parameters p", ylabel=f"mean squared error, {config.examples} examples")
