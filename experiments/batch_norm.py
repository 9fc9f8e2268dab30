"""Behind a batch norm only a weight's direction counts, so training stands larger steps.

The loss does not change with the scale of w before a batch norm with ε = 0. Hence its gradient is
orthogonal, g·w = 0, shrinks with the scale, g(aw) = g(w)/a, and a step w - ηg lengthens w by
Pythagoras, ‖w⁺‖² = ‖w‖² + η²‖g‖²: steps that are too large shrink the next ones. A bias there has
gradient 0. Ioffe & Szegedy (2015), section 3.3; Arora, Li & Lyu (2019).  [S0.62, S0.63]
"""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import control, direction, identity
from jaxnn import data, losses, nn, tree

PRECISION = "float64"
PANELS = (1, 2)
KINDS = ("normalized", "plain")
PIXELS = 64
FOLLOWED = 0.125
"""The learning rate at which the norms are followed."""


@dataclass(frozen=True)
class Config:
    width: int = 32
    hidden: int = 3
    steps: int = 100
    batch_size: int = 64
    exponents: tuple[int, ...] = (-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5)
    seeds: int = 8


SMOKE = Config(width=16, hidden=2, steps=40, exponents=(-3, -1, 1, 3, 5))
PAPER = Config(width=256, hidden=5, steps=1000, batch_size=128, seeds=64)


def rates(config):
    return 2.0 ** np.array(config.exponents)


def network(config, kind):
    between = nn.batch_norm(epsilon=0.0) if kind == "normalized" else nn.identity()
    hidden = (nn.dense(config.width), between, nn.relu())
    return nn.serial(*config.hidden * hidden, nn.dense(10, weight_std=1.0))


def start(config, kind, normals):
    """Both networks' weights from the same numbers (seeds, n), W_ij ~ N(0, 2/fan_in).

    Not by `net.init`: to compile a sampler per layer takes longer than the experiment.
    """
    seeds, params, used = len(normals), [], 0
    sizes = (PIXELS, *config.hidden * (config.width,), 10)
    for fan_in, features in pairwise(sizes):
        numbers = normals[:, used : used + fan_in * features]
        weight = np.sqrt(2 / fan_in) * numbers.reshape(seeds, fan_in, features)
        zeros = np.zeros((seeds, features))
        between = {"scale": zeros + 1, "shift": zeros} if kind == "normalized" else ()
        params += [{"W": weight, "b": zeros}, between, ()]
        used += fan_in * features
    return tuple(params[:-2])  # the last layer stands alone


def hidden_layers(config, params):
    return [params[3 * layer] for layer in range(config.hidden)]


def squared_norms(config, params):
    return jnp.stack([jnp.sum(p["W"] ** 2) for p in hidden_layers(config, params)])


def trained(config, net, x, y):
    """(params, rate, batches) -> final loss, ‖W‖² and ‖G‖² of every hidden layer at every step."""

    def loss(params, x, y):
        return losses.softmax_cross_entropy(net.apply(params, x), y).mean()

    def step(rate, params, batch):
        gradient = jax.grad(loss)(params, x[batch], y[batch])
        moved = tree.axpy(-rate, gradient, params)
        norms = squared_norms(config, params), squared_norms(config, gradient)
        return moved, norms

    def run(params, rate, batches):
        end, norms = jax.lax.scan(lambda p, batch: step(rate, p, batch), params, batches)
        return loss(end, x, y), *norms, squared_norms(config, end)

    over_rates = jax.vmap(run, in_axes=(None, 0, None))
    return jax.jit(jax.vmap(over_rates, in_axes=(0, None, 0))), jax.jit(jax.vmap(jax.grad(loss)))


def run(config, key):
    found = digits()
    x, _ = data.standardize(jnp.asarray(found.x_train))
    y = jnp.asarray(found.y_train)
    init_key, batch_key = jax.random.split(key)
    count = config.width * (PIXELS + (config.hidden - 1) * config.width + 10)
    normals = np.asarray(jax.random.normal(init_key, (config.seeds, count)))
    shape = (config.seeds, config.steps + 1, config.batch_size)
    batches = np.asarray(jax.random.randint(batch_key, shape, 0, len(x)))
    batches, probe = batches[:, :-1], batches[:, -1]
    scales = 2.0 + np.arange(config.hidden)
    at = int(np.flatnonzero(rates(config) == FOLLOWED)[0])
    measured = {}
    for done, kind in enumerate(KINDS):
        report_progress(done, len(KINDS))
        net = network(config, kind)
        params = start(config, kind, normals)
        sweep, gradients = trained(config, net, x, y)
        scaled = list(params)
        for layer, a in enumerate(scales):
            scaled[3 * layer] = {**params[3 * layer], "W": a * params[3 * layer]["W"]}
        g, g_scaled = (
            hidden_layers(config, gradients(p, x[probe], y[probe])) for p in (params, tuple(scaled))
        )
        cosines, changes, biases = [], [], []
        rows = zip(hidden_layers(config, params), g, g_scaled, scales, strict=True)
        for own, gradient, other, a in rows:
            # Columns are the weights of one unit each.
            w, g_w, h_w = (np.asarray(p["W"]) for p in (own, gradient, other))
            size = np.linalg.norm(g_w, axis=(1, 2))
            cosines.append(np.abs(np.sum(w * g_w, axis=1)).max(axis=1) / size)
            changes.append(np.linalg.norm(a * h_w - g_w, axis=(1, 2)) / size)
            biases.append(np.linalg.norm(gradient["b"], axis=1) / size)
        outcome = jax.tree.map(np.asarray, sweep(params, rates(config), batches))
        end, w_squared, g_squared, last = outcome
        w_squared = np.concatenate([w_squared[:, at], last[:, at, None]], axis=1)
        added = np.cumsum(g_squared[:, at], axis=1)
        grown = w_squared[:, :1] + FOLLOWED**2 * np.pad(added, ((0, 0), (1, 0), (0, 0)))
        measured |= {
            f"{kind}_radial": np.stack(cosines, axis=1),
            f"{kind}_rescaled": np.stack(changes, axis=1),
            f"{kind}_bias": np.stack(biases, axis=1),
            f"{kind}_loss": end,
            f"{kind}_norms": w_squared,
            f"{kind}_pythagoras": grown,
        }
    return measured


def stable_rates(config, losses):
    """The largest rate of every seed at which training ends below half the loss of chance."""
    learned = losses < 0.5 * np.log(10)
    return np.max(np.where(learned, rates(config), 0.0), axis=1)


def verdict(config, metrics):
    gaps = {
        kind: np.abs(metrics[f"{kind}_norms"] / metrics[f"{kind}_pythagoras"] - 1).max(axis=1)
        for kind in KINDS
    }
    claims = {
        "g·w = 0": [metrics[f"{kind}_radial"] for kind in KINDS],
        "g(aw) = g(w)/a": [metrics[f"{kind}_rescaled"] for kind in KINDS],
        "‖w‖² grows by η²‖g‖², all steps": [gaps[kind] for kind in KINDS],
        "a bias has gradient 0": [metrics[f"{kind}_bias"] for kind in KINDS],
    }
    found = []
    for claim, (normalized, plain) in claims.items():
        found += [
            identity(f"batch norm: {claim}", 0, normalized, scale=1.0),
            # The smallest: every plain network has to be off.
            control(identity(f"without: {claim}", 0, plain.min(), scale=1.0)),
        ]
    stable = [stable_rates(config, metrics[f"{kind}_loss"]) for kind in KINDS]
    return [*found, direction("largest η that learns: with batch norm > without", *stable)]


def plot(config, metrics, axes):
    sweep, norms = axes
    for kind, marker in zip(KINDS, "o^", strict=True):
        label = {"normalized": "batch norm", "plain": "without"}[kind]
        loss = np.clip(np.nan_to_num(metrics[f"{kind}_loss"], nan=1e3), 1e-4, 1e3)
        (line,) = sweep.loglog(rates(config), np.median(loss, axis=0), marker + "-", label=label)
        sweep.fill_between(
            rates(config), loss.min(axis=0), loss.max(axis=0), alpha=0.2, color=line.get_color()
        )
        measured, grown = (metrics[f"{kind}_{n}"].sum(axis=-1) for n in ("norms", "pythagoras"))
        steps = np.arange(config.steps + 1)
        every = slice(0, None, max(config.steps // 12, 1))
        start = measured[:, :1]
        norms.plot(
            steps[every], (measured / start).mean(axis=0)[every], marker, linestyle="none",
            label=f"{label}, measured",
        )  # fmt: skip
        style = {**THEORY, "label": "theory: ‖w‖² + η²Σ‖g‖²"}
        if kind == "plain":
            style = {"linestyle": ":", "color": "C1", "label": "without, the same sum"}
        norms.plot(steps, (grown / start).mean(axis=0), **style)
    sweep.axhline(0.5 * np.log(10), **THEORY, label="learned: below half of chance")
    sweep.set(xlabel="learning rate η", ylabel="loss at the end (nats; 1000: diverged)")
    norms.set(xlabel=f"step, η = {FOLLOWED}", ylabel="‖w‖²/its start, mean over seeds")
