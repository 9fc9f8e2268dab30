"""One sigmoid neuron has 2^d minima under squared error, and one under its matching loss.

The loss whose gradient in w·x is σ(w·x) - y, the cross-entropy, is convex. The squared error of
σ(w·x) on the two examples (x, y) = (10, 0.7), (0.1, 0.25) has two minima: each example alone can be
fitted, not both. A copy of the two on every axis of ℝ^d makes 2^d. So a monotone activation is not
enough for a convex loss of a single layer, as S0.21 says: that is the control.
Auer, Herbster & Warmuth (1996).  [S0.21, S0.32]
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import bound, control, identity, printed
from jaxnn import losses

PRECISION, PANELS = "float64", (1, 2)
INPUTS, TARGETS = (10.0, 0.1), (0.7, 0.25)
MINIMA, VALUES = ("0.083", "-10.99"), ("0.032", "0.245")  # of the squared error, for d = 1
REGION = (-22.0, 6.0)  # of the starts: both minima, and plateaus on either side
LOSSES = {
    "squared": lambda z, y: losses.mean_squared_error(jax.nn.sigmoid(z), y),
    "matching": losses.sigmoid_cross_entropy,
}


@dataclass(frozen=True)
class Config:
    dimensions: int = 4  # all from 1 on
    starts: int = 1000
    steps: int = 200
    pairs: int = 20_000


SMOKE = Config(dimensions=3, starts=300, pairs=2000)
TOUR = Config(dimensions=3, starts=300, pairs=2000)
PAPER = Config(dimensions=6, starts=20_000, pairs=1_000_000)


def objective(name, d):
    """The mean loss over the two examples on each of d axes, a function of w."""
    x = jnp.kron(jnp.eye(d), jnp.asarray(INPUTS)[:, None])
    y = jnp.tile(jnp.asarray(TARGETS), d)
    return lambda w: jnp.mean(LOSSES[name](x @ w, y))


def descend(loss, steps, w):
    """A minimum: the best of several lengths along -|H|⁻¹∇L, then Newton's method."""
    lengths = jnp.append(0.0, 4.0 ** jnp.arange(2, -16, -1))

    def descent(w, _):
        values, vectors = jnp.linalg.eigh(jax.hessian(loss)(w))
        sizes = jnp.maximum(jnp.abs(values), 1e-12)
        step = vectors @ (vectors.T @ jax.grad(loss)(w) / sizes)
        step = step / jnp.maximum(1.0, jnp.linalg.norm(step))
        tries = w[None] - lengths[:, None] * step[None]
        return tries[jnp.argmin(jax.vmap(loss)(tries))], None

    newton = lambda w, _: (w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w)), None)
    w = jax.lax.scan(descent, w, None, length=steps)[0]
    return jax.lax.scan(newton, w, None, length=3)[0]


def measured(config, name, d, key):
    """Where the starts end, which of them are minima, and how far a chord lies below its arc."""
    loss = objective(name, d)
    start_key, pair_key = jax.random.split(key)
    draw = lambda key, *shape: jax.random.uniform(
        key, (*shape, d), minval=REGION[0], maxval=REGION[1]
    )
    ends = jax.vmap(lambda w: descend(loss, config.steps, w))(draw(start_key, config.starts))
    slopes = jnp.linalg.norm(jax.vmap(jax.grad(loss))(ends), axis=1)
    curvatures = jnp.linalg.eigvalsh(jax.vmap(jax.hessian(loss))(ends))[:, 0]
    values = jax.vmap(loss)
    a, b = draw(pair_key, 2, config.pairs)
    chord = jnp.max(values((a + b) / 2) / ((values(a) + values(b)) / 2))
    return ends, values(ends), (slopes <= 1e-10) & (curvatures > 1e-6), chord


def distinct(points):
    """The index of one of each group of points that agree to 1e-6, largest coordinates first."""
    kept = []
    for i in np.lexsort(-points.T[::-1]):
        if not np.any(np.abs(points[kept] - points[i]).max(axis=1, initial=0.0) < 1e-6):
            kept.append(i)
    return kept


def run(config, key):
    metrics, shape = {}, (len(LOSSES), config.dimensions)
    counts, shares, chords = np.zeros((3, *shape))
    for done, (i, j) in enumerate(np.ndindex(shape)):
        report_progress(done, counts.size)
        name = list(LOSSES)[i]
        measure = jax.jit(functools.partial(measured, config, name, j + 1))
        ends, values, good, chords[i, j] = map(np.asarray, measure(jax.random.fold_in(key, j)))
        kept = np.flatnonzero(good)[distinct(ends[good])]
        counts[i, j], shares[i, j] = len(kept), good.mean()
        if j == 0:
            metrics[name] = np.stack([ends[kept, 0], values[kept]])
    return metrics | {"counts": counts, "shares": shares, "chords": chords}


def verdict(config, metrics):
    squared, matching = metrics["counts"]
    powers, ones = 2.0 ** np.arange(1, config.dimensions + 1), np.ones(config.dimensions)
    (places, values), chords = metrics["squared"], metrics["chords"]
    nearest = [np.argmin(np.abs(places - float(place))) for place in MINIMA]
    return [
        printed("squared error: minima at w", MINIMA, places[nearest]),
        printed("squared error: losses there", VALUES, values[nearest]),
        identity("squared error: number of minima = 2^d", powers, squared),
        identity("matching loss: number of minima = 1", ones, matching),
        identity("starts that end where ‖∇L‖ ≤ 1e-10 and ∇²L > 0", 1, metrics["shares"]),
        bound("matching loss: L((a+b)/2) ≤ (L(a)+L(b))/2", 1, chords[1], control=(1, chords[0])),
        control(identity("monotone activation ⇒ one minimum", ones, squared)),
    ]


def plot(config, metrics, axes):
    curves, counts = axes
    w, d = np.linspace(-20.0, 4.0, 2000), np.arange(1, config.dimensions + 1)
    z, y = w[:, None] * np.array(INPUTS), np.array(TARGETS)
    lines = {
        "squared": np.mean((1 / (1 + np.exp(-z)) - y) ** 2, axis=1),
        "matching": np.mean(np.logaddexp(0, z) - y * z, axis=1),
    }
    for i, name in enumerate(LOSSES):
        label = {"squared": "squared error", "matching": "cross-entropy"}[name]
        curves.semilogy(w, lines[name], color=f"C{i}", label=label)
        curves.plot(*metrics[name], "os"[i], color=f"C{i}", ms=8, label="minima found")
        counts.semilogy(d, metrics["counts"][i], "os"[i], ms=8, base=2, label=label)
        counts.plot(d, [2.0**d, d**0][i], **THEORY, label=("theory: 2^d", "theory: 1")[i])
    for place in MINIMA:
        label = "theory: minima of the squared error" if place == MINIMA[0] else None
        curves.axvline(float(place), **THEORY, label=label)
    curves.set(xlabel="weight w, one input", ylabel="mean loss", ylim=(0.02, 6))
    counts.set(xlabel="inputs d", ylabel="minima found")
    counts.set_xticks(d, d)
    counts.set_yticks(2 ** np.append(0, d), 2 ** np.append(0, d))
    counts.minorticks_off()
    for panel in axes:
        panel.legend()
