"""What pooling does to the kernel of an infinitely wide convolutional network, on CIFAR-10.

Regression onto classes with NNGP and tangent kernel of networks of 3 × 3 convolutions and ReLU, on
images shrunk to 8 × 8 pixels: with global average pooling, whose kernel compares all pairs of
positions, without it, and fully connected. Accuracy on a small subset is reported; nothing is
claimed of the whole set. That the pooled kernel sees the same in a shifted image is exact for
circular borders.  Arora et al. (2019), section 4; Novak et al. (2019), figure 3.  [S2.23]
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from experiments.harness import report_progress
from experiments.verdicts import bound, control, identity
from jaxnn import kernels, nn

NAMES = ("pooled", "flattened", "dense")
CHANCE = 0.1


@dataclass(frozen=True)
class Config:
    dataset: str = "cifar10"
    train: int = 400
    test: int = 200
    shrink: int = 4
    layers: int = 3


SMOKE = Config("digits", train=60, test=40, shrink=1, layers=2)
PAPER = Config(train=5000, test=1000, shrink=2, layers=4)


def shrunk(images, factor):
    """Images (N, H, W, C), averaged over squares of pixels, standardized each."""
    x = np.asarray(images, np.float32)
    x = x.reshape(-1, 8, 8, 1) if x.ndim == 2 else x
    n, h, w, c = x.shape
    x = x.reshape(n, h // factor, factor, w // factor, factor, c).mean((2, 4))
    mean, std = (f(x, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    return jnp.asarray((x - mean) / (std + 1e-6))


def network(name, layers):
    options = {"bias_std": 0.1, "parametrization": "ntk"}
    conv = partial(nn.conv, 1, (3, 3), padding="CIRCULAR", **options)
    hidden = [layer for _ in range(layers) for layer in (conv(), nn.relu())]
    if name == "dense":
        return nn.serial(nn.flatten(), nn.mlp((1,) * (layers + 1), **options))
    last = nn.global_avg_pool() if name == "pooled" else nn.flatten()
    return nn.serial(*hidden, last, nn.dense(1, **options))


def run(config, key):
    small = config.dataset == "digits"
    found = datasets.digits() if small else datasets.cifar10(config.train, config.test)
    x, new = (shrunk(a, config.shrink) for a in (found.x_train, found.x_test))
    x, new = x[: config.train], new[: config.test]
    labels = jnp.asarray(found.y_train[: config.train], jnp.int32)
    y = kernels.class_targets(labels, 10)
    metrics = {"accuracy": np.zeros((len(NAMES), 2)), "shift": np.zeros(len(NAMES))}
    for i, name in enumerate(NAMES):
        report_progress(i, len(NAMES))
        kernel = jax.jit(partial(kernels.infinite, network(name, config.layers)))
        own, cross = kernel(x), kernel(new, x)
        for j, moment in enumerate(("nngp", "ntk")):
            k = getattr(own, moment)
            noise = 1e-4 * jnp.mean(jnp.diagonal(k))
            mean = kernels.gp_posterior(k, y, getattr(cross, moment), noise=noise).mean
            guess = np.argmax(mean, axis=1)
            metrics["accuracy"][i, j] = np.mean(guess == found.y_test[: config.test])
        moved = kernel(jnp.roll(new[:20], (1, 2), axis=(1, 2)), x)
        apart = np.abs(moved.ntk - cross.ntk[:20]).max()
        metrics["shift"][i] = apart / np.abs(cross.ntk[:20]).max()
    return metrics


def verdict(config, metrics):
    pooled, flattened, _ = metrics["shift"]
    exact = partial(identity, predicted=0.0, tolerance=1e-5, scale=1.0)
    random = np.full(2, CHANCE)
    return [
        exact("pooled kernel: relative change under shifts of the image = 0", measured=pooled),
        control(exact("flattened kernel: change under shifts = 0", measured=flattened)),
        bound(
            "every kernel reads at least twice as many images as chance",
            2 * CHANCE,
            metrics["accuracy"].ravel(),
            at_least=True,
            control=(2 * CHANCE, random),
        ),
    ]


def plot(config, metrics, axes):
    places = np.arange(len(NAMES))
    for j, moment in enumerate(("NNGP", "tangent kernel")):
        axes.bar(places + 0.4 * (j - 0.5), metrics["accuracy"][:, j], 0.38, label=moment)
    axes.axhline(CHANCE, color="k", ls="--", label="chance")
    axes.set_xticks(places, ["conv, pooled", "conv, flattened", "dense"])
    top = 1.4 * metrics["accuracy"].max()
    axes.set(ylabel=f"test accuracy, {config.train} training images", ylim=(0, top))
    axes.legend()
