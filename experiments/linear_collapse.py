"""Without nonlinearities, a network of any depth is one affine map.

f(x) = W_L···W_1 x + b = W_eq x + b_eq, for every depth, width and draw of the weights; with ReLU
between the layers no affine map fits, and the best one leaves a residual.  [S0.20, S3.10]
"""

from dataclasses import dataclass

import jax
import numpy as np

from experiments.harness import report_progress
from experiments.pictures import BAND
from experiments.verdicts import control, identity
from jaxnn import nn

PRECISION = "float64"


@dataclass(frozen=True)
class Config:
    depths: tuple[int, ...] = (2, 4, 8, 16)
    widths: tuple[int, ...] = (16, 64)
    seeds: int = 8
    examples: int = 128
    in_features: int = 7
    out_features: int = 3


SMOKE = Config(depths=(2, 4), widths=(16,), seeds=2)
TOUR = Config(depths=(2, 8), widths=(16,), seeds=4)
PAPER = Config(depths=(2, 4, 8, 16, 32, 64), widths=(16, 64, 256), seeds=64)


def nets(config, depth, width):
    # Hidden widths alternate, so that no weight is square.
    hidden = [width + 3 * (layer % 2) for layer in range(depth - 1)]
    sizes = (*hidden, config.out_features)
    return nn.mlp(sizes, activation=nn.identity(), bias_std=0.3), nn.mlp(sizes, bias_std=0.3)


def residuals(config, linear, relu, key):
    """Distances of the linear net from W_eq x + b_eq, and of the ReLU net from its best fit."""
    init_key, data_key = jax.random.split(key)
    x = jax.random.normal(data_key, (config.examples, config.in_features))
    params, _ = linear.init(init_key, x.shape[1:])
    y, y_relu = linear.apply(params, x), relu.apply(params, x)
    # The products and the fit in NumPy, which shares no code with the networks.
    x, y, y_relu, layers = jax.tree.map(np.asarray, (x, y, y_relu, params[::2]))
    weight, bias = np.eye(config.in_features), np.zeros(config.in_features)
    for layer in layers:
        weight, bias = weight @ layer["W"], bias @ layer["W"] + layer["b"]
    inputs, centered = x - x.mean(0), y_relu - y_relu.mean(0)
    fit = np.linalg.lstsq(inputs, centered)[0]
    return (
        np.linalg.norm(y - (x @ weight + bias)) / np.linalg.norm(y),
        np.linalg.norm(centered - inputs @ fit) / np.linalg.norm(centered),
    )


def run(config, key):
    shape = (len(config.depths), len(config.widths), config.seeds)
    errors = np.zeros((2, *shape))
    for done, (d, w, s) in enumerate(np.ndindex(shape)):
        report_progress(done, errors[0].size)
        linear, relu = nets(config, config.depths[d], config.widths[w])
        errors[:, d, w, s] = residuals(config, linear, relu, jax.random.fold_in(key, done))
    return {"linear": errors[0], "relu": errors[1]}


def verdict(config, metrics):
    return [
        identity("linear network = W_eq x + b_eq", 0, metrics["linear"], scale=1.0),
        # The smallest residual: every single ReLU network has to be off.
        control(identity("ReLU network = affine map", 0, metrics["relu"].min(), scale=1.0)),
    ]


def plot(config, metrics, axes):
    kinds = {"linear": ("o", "linear, from its product"), "relu": ("^", "ReLU, from its best fit")}
    for name, (marker, label) in kinds.items():
        errors = metrics[name].reshape(len(config.depths), -1)
        depths = np.repeat(config.depths, errors.shape[1])
        axes.loglog(depths, errors.ravel(), marker, linestyle="none", alpha=0.5, label=label)
    axes.axhspan(1e-18, 1e-10, **BAND, label="theory: 0, to rounding (1e-10)")
    axes.set_ylim(1e-18, 10)
    axes.set_xticks(config.depths, config.depths)
    axes.minorticks_off()
    axes.set_xlabel("depth L (layers)")
    axes.set_ylabel("distance from an affine map (relative)")
    axes.legend(loc="center right")
