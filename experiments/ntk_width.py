"""The empirical tangent kernel approaches its infinite-width limit as width^-1/2.

Networks of two hidden ReLU layers in the NTK parametrization, on the digits 0 and 1: the relative
distance of Θ at random weights from the closed form, by width. The standard parametrization is the
control: its kernel grows with the width, so distance from the same limit does not shrink.
Jacot, Gabriel & Hongler (2018), theorem 1; Lee et al. (2019), figure 1.  [S0.57]
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

EXPONENT, BAND_WIDTH = -0.5, 0.12


@dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    seeds: int = 128
    examples: int = 24


SMOKE = Config(widths=(32, 64, 128), seeds=8, examples=8)
TOUR = Config(widths=(32, 128, 512), seeds=128, examples=8)
PAPER = Config(widths=(64, 128, 256, 512, 1024, 2048, 4096), seeds=256, examples=128)


def network(width, parametrization):
    return nn.mlp((width, width, 1), bias_std=0.1, parametrization=parametrization)


def distances(width, parametrization, limit, x, keys):
    """‖Θ - Θ_∞‖/‖Θ_∞‖ (Frobenius) of a network drawn from each key."""
    net = network(width, parametrization)

    def distance(key):
        params, _ = net.init(key, x.shape[1:])
        return jnp.linalg.norm(kernels.ntk(net.apply, params, x) - limit) / jnp.linalg.norm(limit)

    return jax.jit(lambda keys: jax.lax.map(distance, keys))(keys)


def run(config, key):
    found = digits()
    pair = found.y_train < 2
    x = jnp.asarray(found.x_train[pair][: config.examples], jnp.float32)
    limit = kernels.infinite(network(1, "ntk"), x).ntk
    metrics = {}
    for parametrization in ("ntk", "standard"):
        columns = []
        for done, width in enumerate(config.widths):
            keys = jax.random.split(jax.random.fold_in(key, width), config.seeds)
            columns.append(distances(width, parametrization, limit, x, keys))
            report_progress(done + 1, len(config.widths))
        metrics[parametrization] = jnp.stack(columns, axis=1)
    return metrics


def verdict(config, metrics):
    def decays(name):
        claim = f"‖Θ - Θ_∞‖ ~ width^{EXPONENT:g}, {name} parametrization"
        return exponent(claim, EXPONENT, config.widths, metrics[name], band=BAND_WIDTH)

    return [decays("ntk"), control(decays("standard"))]


def plot(config, metrics, axes):
    widths = np.array(config.widths, float)
    for name, marker, label in (("ntk", "o", "NTK"), ("standard", "^", "standard (control)")):
        values = metrics[name]
        axes.loglog(widths, values.mean(0), marker, label=f"{label} parametrization, mean of seeds")
        axes.fill_between(widths, values.min(0), values.max(0), alpha=0.2)
    line = metrics["ntk"].mean(0)[0] * (widths / widths[0]) ** EXPONENT
    axes.plot(widths, line, **THEORY, label="theory: width^(-1/2)")
    axes.set_xticks(config.widths, config.widths)
    axes.minorticks_off()
    axes.set(xlabel="width n (units per hidden layer)", ylabel="‖Θ - Θ_∞‖ / ‖Θ_∞‖")
    axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.55))
