"""Wide networks train as their linearization does, the more so the wider they are.

Three hidden ReLU layers in the NTK parametrization, gradient descent on half the squared error of
the digits 0 and 1. By width n, the weights of the first and last layer move by n^-1/2 of their
norm, those between by n^-1; the tangent kernel, and the outputs against those of the linearized
network, by something between.  Lee et al. (2019), figure 1 and theorem 2.1.  [S0.66, S0.67]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import control, exponent
from jaxnn import kernels, nn

PANELS = (1, 2)
BAND = 0.12
WEIGHTS = {"first": (0, -0.5), "second": (2, -1.0), "third": (4, -1.0), "last": (6, -0.5)}


@dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    seeds: int = 16
    examples: int = 32
    steps: int = 100


SMOKE = Config(widths=(32, 64, 128), seeds=8, examples=8, steps=20)
PAPER = Config(widths=(64, 128, 256, 512, 1024, 2048, 4096), seeds=32, examples=128, steps=1000)


def run(config, key):
    found = digits()
    pair = found.y_train < 2
    x = jnp.asarray(found.x_train[pair], jnp.float32)
    y = jnp.asarray(2.0 * found.y_train[pair] - 1.0, jnp.float32)[: config.examples, None]
    x, new = x[: config.examples], x[config.examples : 2 * config.examples]
    columns = []
    for done, width in enumerate(config.widths):
        report_progress(done, len(config.widths))
        keys = jax.random.split(jax.random.fold_in(key, width), config.seeds)
        columns.append(changes(width, config.steps, x, y, new, keys))
    return {name: np.stack([c[name] for c in columns], axis=1) for name in columns[0]}


def changes(width, steps, x, y, new, keys):
    """What training changed, relative to what it was, of a network drawn from each key."""
    net = nn.mlp((width, width, width, 1), bias_std=0.1, parametrization="ntk")

    def change(key):
        start, _ = net.init(key, x.shape[1:])
        theta, f0 = kernels.ntk(net.apply, start, x), net.apply(start, x)
        rate = 0.5 * kernels.max_learning_rate(theta)
        gradient = jax.grad(lambda p: 0.5 * jnp.sum((net.apply(p, x) - y) ** 2))
        step = lambda _, p: jax.tree.map(lambda p, g: p - rate * g, p, gradient(p))
        end = jax.lax.fori_loop(0, steps, step, start)
        linear = kernels.gradient_descent(
            *(theta, y, steps),
            learning_rate=rate,
            outputs=f0,
            cross=kernels.ntk(net.apply, start, new, x),
            test_outputs=net.apply(start, new),
        ).test
        apart = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
        return {
            **{n: apart(end[i]["W"], start[i]["W"]) for n, (i, _) in WEIGHTS.items()},
            "kernel": apart(kernels.ntk(net.apply, end, x), theta),
            "outputs": jnp.sqrt(jnp.mean((net.apply(end, new) - linear) ** 2)),
        }

    return jax.jit(lambda keys: jax.lax.map(change, keys))(keys)


def verdict(config, metrics):
    def decays(name, power, band=BAND):
        where = f"{name} weights" if name in WEIGHTS else name
        claim = f"change of the {where} by training ~ width^{power:g}"
        return exponent(claim, power, config.widths, metrics[name], band=band)

    return [
        *(decays(name, power) for name, (_, power) in WEIGHTS.items()),
        control(decays("second", -0.5)),
        decays("kernel", -0.75, band=0.25 + BAND),
        decays("outputs", -0.75, band=0.25 + BAND),
    ]


def plot(config, metrics, axes):
    widths = np.array(config.widths, float)
    weights, functions = axes
    for i, (name, (_, power)) in enumerate(WEIGHTS.items()):
        mean = metrics[name].mean(0)
        weights.loglog(widths, mean, "os^v"[i], label=f"{name} weights")
        style = THEORY | ({"label": "theory: width^(-1/2), width^(-1)"} if i == 0 else {})
        weights.plot(widths, mean[0] * (widths / widths[0]) ** power, **style)
    for i, name in enumerate(("kernel", "outputs")):
        mean = metrics[name].mean(0)
        functions.loglog(widths, mean, "os"[i], label=name)
        for power in (-0.5, -1.0):
            style = THEORY | ({"label": "width^(-1/2), width^(-1)"} if i == power + 0.5 else {})
            functions.plot(widths, mean[0] * (widths / widths[0]) ** power, **style)
    for panel, label in zip(axes, ("‖ΔW‖ / ‖W‖", "‖ΔΘ‖ / ‖Θ‖, rms of f - f_lin"), strict=True):
        panel.set_xticks(config.widths, config.widths)
        panel.minorticks_off()
        panel.set(xlabel="width n (units per hidden layer)", ylabel=label)
        panel.legend()
