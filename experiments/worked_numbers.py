"""The worked numbers of the texts are reproduced, and their misprints are not.

The 2 × 2 example is cross-correlation: convolution flips the kernel and gives other numbers. Two
gradients of the one-neuron example and one sigmoid are misprinted. A dense network has
Σ n_l (n_{l-1} + 1) parameters.  [S4.10, S4.11, S4.15, S2.25, S3.9, S0.12]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.signal import convolve2d, correlate2d
from jax.scipy.special import logit

from experiments.pictures import BAND
from experiments.verdicts import control, identity, printed
from jaxnn import losses, nn, tree

PRECISION = "float64"
PRINTED = {"z": "2.1000", "ŷ": "0.8909", "½(ŷ - 1)²": "0.0060"}
PRINTED |= {"∂/∂w1": "-0.01060", "∂/∂w2": "-0.02121", "∂/∂b": "-0.01060"}
PRINTED |= {"updated w1": "0.4011", "updated w2": "0.6021", "updated b": "0.5011"}
PRINTED |= {"σ(0.629)": "0.652263", "σ⁻¹(0.652014)": "0.62790"}
# The misprinted gradients are those of ŷ rounded to 0.89.
MISPRINTED = {"∂/∂w1": "-0.0108", "∂/∂w2": "-0.0215", "∂/∂b": "-0.0108", "σ(0.629)": "0.652014"}
SIZES = {(10, 64, 2): 834, (784, 300, 100, 10): 266_610}


@dataclass(frozen=True)
class Config:
    learning_rate: float = 0.1


SMOKE = PAPER = TOUR = Config()


def neuron(learning_rate):
    # The text prints no inputs, but its results leave one choice. The gradients of w1 and b are
    # equal and that of w2 is twice theirs: x = (1, 2). Each update adds a tenth of its gradient to
    # w = (0.4, 0.6) and b = 0.5, and z = 0.4 + 1.2 + 0.5 is the printed 2.1. A loss of 0.0060 is
    # ½(ŷ - y)² at y = 1.00 or 0.78, and the gradients are negative: y = 1.
    net = nn.serial(nn.dense(1), nn.sigmoid())
    params = ({"W": jnp.array([[0.4], [0.6]]), "b": jnp.array([0.5])}, ())
    x, y = jnp.array([[1.0, 2.0]]), jnp.array([[1.0]])

    def loss(params):
        return losses.half_squared_error(net.apply(params, x), y).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updated = tree.axpy(-learning_rate, gradient, params)
    z, prediction = nn.dense(1).apply(params[0], x), net.apply(params, x)
    sigmoids = nn.activations.sigmoid(jnp.array(0.629)), logit(jnp.array(0.652014))
    return ravel_pytree((z, prediction, value, gradient, updated, sigmoids))[0]


def num_parameters(features):
    net = nn.mlp(features[1:])
    shapes = jax.eval_shape(lambda key: net.init(key, features[:1])[0], jax.random.key(0))
    return tree.size(shapes)


def run(config, key):
    grid, kernel = jnp.arange(1.0, 10.0).reshape(3, 3), jnp.arange(4.0).reshape(2, 2)
    return {
        **dict(zip(PRINTED, np.asarray(jax.jit(neuron)(config.learning_rate)), strict=True)),
        "correlation": correlate2d(grid, kernel, mode="valid"),
        "convolution": convolve2d(grid, kernel, mode="valid"),
        "sizes": list(map(num_parameters, SIZES)),
    }


def verdict(config, metrics):
    correct, flipped = [[25, 31], [43, 49]], [[11, 17], [29, 35]]

    def rounds(table):
        return [printed(f"{name} = {text}", text, metrics[name]) for name, text in table.items()]

    return [
        *rounds(PRINTED),
        *map(control, rounds(MISPRINTED)),
        identity("cross-correlation = 25, 31, 43, 49", correct, metrics["correlation"]),
        identity("convolution = 11, 17, 29, 35", flipped, metrics["convolution"]),
        control(identity("convolution = 25, 31, 43, 49", correct, metrics["convolution"])),
        *(
            identity(f"parameters of {'-'.join(map(str, net))} = {size}", size, counted)
            for (net, size), counted in zip(SIZES.items(), metrics["sizes"], strict=True)
        ),
    ]


def plot(config, metrics, axes):
    rows = [*PRINTED.items(), *MISPRINTED.items()]
    off = [abs(metrics[n] - float(t)) * 10 ** len(t.partition(".")[2]) for n, t in rows]
    places, right = np.arange(len(rows)), len(PRINTED)
    off = np.maximum(off, 0.01)  # the axis is logarithmic, and z is exact
    axes.semilogx(off[:right], places[:right], "o", markersize=8, label="printed rightly")
    axes.semilogx(off[right:], places[right:], "X", markersize=9, label="misprinted")
    axes.axvspan(0.005, 0.5, **BAND, label="theory: rounds to the printed digits")
    axes.set_yticks(places, [f"{name} = {text}" for name, text in rows])
    axes.set_xlabel("distance from the exact value (units of the last printed digit)")
    axes.set_xlim(0.005, 1000)
    axes.invert_yaxis()
