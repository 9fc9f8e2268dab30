"""Dropout and noise are penalties: exactly for linear networks, and a geometric mean for softmax.

Over all 2^d masks: the normalized geometric mean of a softmax layer's dropout networks is the
layer without dropout; linear least squares under dropout is diagonal ridge; under input noise of
variance σ² it is ridge with λ = nσ², in expectation.  Hinton et al. (2012); Wager, Wang & Liang
(2013); Bishop (1995).  [S0.40, S1.13, S1.14]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import control, identity, statistical
from jaxnn import data, nn

PRECISION = "float64"
PANELS = (1, 2)


@dataclass(frozen=True)
class Config:
    inputs: int = 10
    drop_probability: float = 0.3
    noise: float = 0.25
    draws: int = 1000
    noises: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    copies: int = 50


SMOKE = Config(inputs=6, draws=200, noises=(0.1, 0.4, 1.6), copies=20)
PAPER = Config(inputs=16, draws=20_000, copies=2000)


def masks_of(d, p):
    """All 2^d masks (M, d), and their probabilities (M,)."""
    masks = (np.arange(2**d)[:, None] >> np.arange(d)) & 1
    kept = masks.sum(axis=1)
    return masks.astype(float), (1 - p) ** kept * p ** (d - kept)


def geometric_means(config, key, x):
    """The geometric mean over masks, of one softmax layer and of two layers, and their scaling."""
    p = config.drop_probability
    masks, weights = masks_of(config.inputs, p)
    dropped = jnp.asarray(masks)[:, None, :] * x[None] / (1 - p)
    found = {}
    nets = {
        "one": nn.dense(4, weight_std=3.0, bias_std=0.5),
        "two": nn.serial(nn.dense(32, weight_std=3.0), nn.relu(), nn.dense(4)),
    }
    for name, net in nets.items():
        params, _ = net.init(key, x.shape[1:])
        each = jax.nn.log_softmax(jax.vmap(lambda z, n=net, w=params: n.apply(w, z))(dropped))
        mean = jax.nn.softmax(jnp.tensordot(jnp.asarray(weights), each, 1))
        found |= {f"{name}_mean": mean, f"{name}_net": jax.nn.softmax(net.apply(params, x))}
        if name == "one":
            found["arithmetic"] = jnp.tensordot(jnp.asarray(weights), jnp.exp(each), 1)
            found["unscaled"] = jax.nn.softmax(net.apply(params, x * (1 - p)))
    return found


def dropout_risk(config, x, y, w):
    """E‖y - (m ∘ X)w/(1-p)‖² by enumeration, and as ‖y - Xw‖² + p/(1-p)·Σ_j w_j²‖X_j‖²."""
    p = config.drop_probability
    masks, weights = masks_of(config.inputs, p)
    # Masks of different examples are independent: the expectation is a sum over examples.
    predictions = (masks * w) @ x.T / (1 - p)
    enumerated = np.sum(weights @ (y - predictions) ** 2)
    plain, power = np.sum((y - x @ w) ** 2), np.sum(x**2, axis=0)
    diagonal = plain + p / (1 - p) * np.sum(w**2 * power)
    return enumerated, diagonal, plain + p / (1 - p) * np.sum(w**2) * power.mean()


def run(config, key):
    found = digits()
    # Pixels of the largest variance: others are nearly constant.
    chosen = np.argsort(-found.x_train.var(axis=0))[: config.inputs]
    x, y = found.x_train[:, chosen], (found.y_train % 2) * 2.0 - 1.0
    n = len(x)
    init_key, weight_key, draw_key, copy_key = jax.random.split(key, 4)
    metrics = geometric_means(config, init_key, jnp.asarray(x[:20]))
    w = np.asarray(jax.random.normal(weight_key, (config.inputs,))) * 0.3
    risks = dropout_risk(config, x, y, w)
    metrics |= dict(zip(("enumerated", "diagonal", "uniform"), risks, strict=True))

    inputs, targets, weights = jnp.asarray(x), jnp.asarray(y), jnp.asarray(w)

    @jax.jit
    def excess(key):
        noisy = data.perturb(key, inputs, config.noise)
        squares = lambda x: jnp.sum((targets - x @ weights) ** 2)
        return squares(noisy) - squares(inputs)

    draws = jax.lax.map(excess, jax.random.split(draw_key, config.draws), batch_size=50)
    metrics["penalty"] = draws / (n * config.noise**2 * np.sum(w**2))

    @jax.jit
    def noisy_fit(key, std):
        """Least squares on noisy copies of the data: its normal equations, averaged."""

        def equations(key):
            z = data.perturb(key, inputs, std)
            return z.T @ z, z.T @ targets

        grams = jax.lax.map(equations, jax.random.split(key, config.copies), batch_size=20)
        gram, moment = jax.tree.map(lambda a: a.mean(axis=0), grams)
        return jnp.linalg.solve(gram, moment)

    fits = []
    for i, std in enumerate(config.noises):
        report_progress(i, len(config.noises))
        fits.append(noisy_fit(jax.random.fold_in(copy_key, i), std))
    ridge = lambda penalty: np.linalg.solve(x.T @ x + penalty * np.eye(config.inputs), x.T @ y)
    return metrics | {
        "fits": fits,
        "ridge": [ridge(n * std**2) for std in config.noises],
        "wrong_ridge": [ridge(std**2) for std in config.noises],
    }


def verdict(config, metrics):
    one = metrics["one_mean"]
    wrong = {
        "two layers: geometric mean = network without dropout": (
            metrics["two_mean"],
            metrics["two_net"],
        ),
        "arithmetic mean = network without dropout": (metrics["arithmetic"], metrics["one_net"]),
        "geometric mean = network without 1/(1-p)": (one, metrics["unscaled"]),
        "linear dropout = ridge of equal penalties": (metrics["enumerated"], metrics["uniform"]),
    }
    return [
        identity("softmax layer: geometric mean = layer without dropout", metrics["one_net"], one),
        identity("linear dropout = diagonal ridge", metrics["diagonal"], metrics["enumerated"]),
        statistical("input noise adds nσ²‖w‖² (in units of it)", 1, metrics["penalty"]),
        control(statistical("input noise adds σ²‖w‖²", 1 / 1437, metrics["penalty"])),
        *(control(identity(claim, b, a)) for claim, (a, b) in wrong.items()),
    ]


def plot(config, metrics, axes):
    means, penalties = axes
    for name, marker, label in (("one", "o", "one softmax layer"), ("two", "^", "two layers")):
        net, mean = metrics[f"{name}_net"].ravel(), metrics[f"{name}_mean"].ravel()
        means.plot(net, mean, marker, linestyle="none", alpha=0.6, label=label)
    arithmetic = metrics["arithmetic"].ravel()
    means.plot(metrics["one_net"].ravel(), arithmetic, "x", label="one layer, arithmetic mean")
    means.plot([0, 1], [0, 1], **THEORY, label="theory")
    means.set(xlabel="probability without dropout", ylabel=f"mean over 2^{config.inputs} masks")
    length = lambda fits: np.linalg.norm(fits, axis=1)
    penalties.semilogx(config.noises, length(metrics["fits"]), "o", label="fitted to noisy copies")
    penalties.semilogx(config.noises, length(metrics["ridge"]), **THEORY, label="theory: λ = nσ²")
    wrong = length(metrics["wrong_ridge"])
    penalties.semilogx(config.noises, wrong, ":", color="C1", label="control: λ = σ²")
    penalties.set(xlabel="noise on inputs σ (1 = a pixel's range)", ylabel="‖w‖")
    penalties.legend()
