"""Gaussian processes of infinitely wide networks read MNIST as well as was published.

Regression onto classes with the NNGP of deep ReLU and tanh networks, by the protocol of Lee et al.
(2018), table 2: of the last 50,000 training images the first n/10 of each class, standardized each
over its pixels, targets 0.9 and -0.1, noise 1e-10 or ten times as much until the kernel is
definite, all 10,000 test images. A linear kernel is the control. The smoke scale reads the small
digits of scikit-learn, of which nothing is published.  Lee et al. (2018), section 3.  [S0.57]
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import bound
from jaxnn import kernels, nn

# (activation, n): hidden layers, σ_w², σ_b², test accuracy.
PUBLISHED = {
    ("relu", 1000): (20, 1.45, 0.28, 0.9279),
    ("tanh", 1000): (20, 1.96, 0.62, 0.9266),
    ("relu", 2000): (10, 1.11, 0.55, 0.9485),
    ("tanh", 2000): (10, 1.79, 1.45, 0.9477),
    ("relu", 5000): (7, 0.61, 0.07, 0.9692),
    ("tanh", 5000): (3, 1.11, 0.00, 0.9693),
    ("relu", 10_000): (7, 0.61, 0.07, 0.9765),
    ("tanh", 10_000): (2, 1.62, 0.28, 0.9773),
    ("relu", 50_000): (1, 0.10, 0.48, 0.9875),
}
BAND, AT_LEAST = 0.003, 0.95
ACTIVATIONS = {"relu": nn.relu, "tanh": nn.tanh}


@dataclass(frozen=True)
class Config:
    dataset: str = "mnist"
    sizes: tuple[int, ...] = (1000, 2000)
    batch_size: int = 2000


SMOKE = Config("digits", sizes=(1000,))
PAPER = Config(sizes=(1000, 2000, 5000, 10_000))


def standardized(images):
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / flat.std(axis=1, keepdims=True)


def first_of_each_class(x, y, n):
    """The first n/10 of each class; fewer where there are not as many."""
    rows = np.concatenate([np.flatnonzero(y == c)[: n // 10] for c in range(10)])
    return x[rows], y[rows]


def network(name, n):
    if name == "linear":
        return nn.dense(1, weight_std=1.0)
    layers, weight, bias, _ = PUBLISHED[name, n]
    return nn.mlp(
        (1,) * (layers + 1),
        activation=ACTIVATIONS[name](),
        weight_std=float(np.sqrt(weight)),
        bias_std=float(np.sqrt(bias)),
    )


def accuracy(net, config, train, test):
    """Of the classes of largest mean, and the noise that the kernel needed."""
    (x, y), (new, labels) = train, test
    nngp = jax.jit(lambda a, b=None: kernels.infinite(net, a, b).nngp)
    kernel, targets = nngp(x), kernels.class_targets(y, 10)
    noise = 1e-10
    solve = jax.jit(partial(kernels.solve, kernel, targets))
    while (found := solve(noise=noise)).rank < len(x):
        noise *= 10
    batches = range(0, len(new), config.batch_size)
    classes = [
        np.argmax(nngp(new[i : i + config.batch_size], x) @ found.x, axis=1) for i in batches
    ]
    return np.mean(np.concatenate(classes) == labels), noise


def run(config, key):
    found = getattr(datasets, config.dataset)()
    # TensorFlow's reader, which the authors used, puts the first images aside for validation.
    own = slice(10_000, None) if config.dataset == "mnist" else slice(None)
    x, y = standardized(found.x_train[own]), np.asarray(found.y_train[own])
    names = [(name, n) for n in config.sizes for name in ("relu", "tanh", "linear")]
    results = {"accuracy": [], "noise": []}
    # The published noise is no number beside float32's rounding errors.
    with jax.enable_x64(True):
        test = jnp.asarray(standardized(found.x_test)), np.asarray(found.y_test)
        for i, (name, n) in enumerate(names):
            report_progress(i, len(names))
            train = map(jnp.asarray, first_of_each_class(x, y, n))
            for kind, value in zip(
                results, accuracy(network(name, n), config, train, test), strict=True
            ):
                results[kind].append(value)
    return {kind: np.array(v).reshape(len(config.sizes), 3) for kind, v in results.items()}


def verdict(config, metrics):
    measured = metrics["accuracy"]
    if config.dataset != "mnist":
        claim = f"Gaussian processes read at least {AT_LEAST:.0%} of the small digits"
        control = (AT_LEAST, measured[:, 2])
        return [bound(claim, AT_LEAST, measured[:, :2].ravel(), at_least=True, control=control)]
    published = np.array([[PUBLISHED[a, n][3] for a in ACTIVATIONS] for n in config.sizes])
    linear = np.abs(measured[:, 2] - published[:, 0])
    sizes = ", ".join(map(str, config.sizes))
    return [
        bound(
            f"{name}: |test accuracy - published| ≤ {BAND}, n = {sizes}",
            BAND,
            np.abs(measured[:, i] - published[:, i]),
            control=(BAND, linear),
        )
        for i, name in enumerate(ACTIVATIONS)
    ]


def plot(config, metrics, axes):
    sizes = np.array(config.sizes)
    for i, name in enumerate((*ACTIVATIONS, "linear (control)")):
        axes.semilogx(sizes, metrics["accuracy"][:, i], "os^"[i], label=name)
    if config.dataset == "mnist":
        for i, name in enumerate(ACTIVATIONS):
            line = [PUBLISHED[name, n][3] for n in sizes]
            style = THEORY if i == 0 else THEORY | {"linestyle": ":"}
            axes.plot(sizes, line, **style, label=f"published, {name}")
    axes.set_xticks(sizes, sizes)
    axes.minorticks_off()
    axes.set(xlabel="training images n", ylabel="test accuracy")
    axes.legend()
