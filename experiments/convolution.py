"""A convolution is one sparse matrix with shared entries, and sees as far as its windows add up.

f(x) = M x, with the window's entry a in row i and column stride·i + dilation·a - border: a Toeplitz
matrix; the gradient goes back through Mᵀ. The window is not flipped. The output of L layers depends
on 1 + Σ_l (k_l - 1)·dilation_l·Π_{m<l} stride_m inputs, by its Jacobian. Averaging a convolution on
a circle over all places makes scores that no shift changes.  [S1.7, S1.8, S2.24, S2.25, S2.26]
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY, show_images
from experiments.verdicts import control, identity
from jaxnn import nn

PRECISION = "float64"
PANELS = (1, 2)
CASES = (  # padding, stride, dilation
    ("CIRCULAR", 1, 1),
    ("SAME", 2, 1),
    ("VALID", 1, 2),
)
WINDOW = (3, 2)
STACKS = {  # window, stride, dilation of every layer
    "3, 3": ((3, 1, 1), (3, 1, 1)),
    "3, 3, 3, stride 2": ((3, 2, 1), (3, 2, 1), (3, 2, 1)),
    "5, 2, dilation 2, 3": ((5, 1, 2), (2, 2, 3)),
}
LENGTH = 48


@dataclass(frozen=True)
class Config:
    features: int = 4
    seeds: int = 8


SMOKE = Config(features=3, seeds=2)
TOUR = Config(features=3, seeds=4)
PAPER = Config(features=16, seeds=64)


def layer(config, padding, stride, dilation):
    strides, dilation = (stride, stride), (dilation, dilation)
    return nn.conv(config.features, WINDOW, padding=padding, strides=strides, dilation=dilation)


def toeplitz(weight, case, shape):
    """The matrix of `layer`, entry by entry: (outputs, inputs), rows and columns in C order."""
    padding, stride, dilation = case
    axes = []
    for n, k in zip(shape[:2], weight.shape[:2], strict=True):
        reach = (k - 1) * dilation + 1
        count = (n - reach) // stride + 1 if padding == "VALID" else -(-n // stride)
        missing = max((count - 1) * stride + reach - n, 0)
        before = {"VALID": 0, "SAME": missing // 2, "CIRCULAR": (reach - 1) // 2}[padding]
        axes.append([[stride * i + dilation * a - before for a in range(k)] for i in range(count)])
    rows, columns = axes
    found = np.zeros((len(rows), len(columns), weight.shape[-1], *shape))
    for i, j, a, b in np.ndindex(len(rows), len(columns), *weight.shape[:2]):
        row, column = rows[i][a], columns[j][b]
        if padding == "CIRCULAR":
            row, column = row % shape[0], column % shape[1]
        if 0 <= row < shape[0] and 0 <= column < shape[1]:
            found[i, j, :, row, column] += weight[a, b].T
    return found.reshape(-1, np.prod(shape))


def fields(stack):
    """The receptive field's size, what it would be if strides did not multiply, inputs seen."""
    windows, strides, dilation = np.array(stack).T
    jumps = np.cumprod([1, *strides[:-1]])
    offsets = np.zeros(1)
    for k, step in zip(windows, dilation * jumps, strict=True):
        offsets = np.unique(np.add.outer(offsets, step * np.arange(k)))
    reach = (windows - 1) * dilation
    return 1 + np.sum(reach * jumps), 1 + np.sum(reach), offsets.size


def stacked(config, stack):
    layers = [
        # tanh: a ReLU that is off would hide inputs.
        (nn.conv(config.features, (k,), strides=(s,), dilation=(d,), padding="VALID"), nn.tanh())
        for k, s, d in stack
    ]
    return nn.serial(*(part for pair in layers for part in pair))


def run(config, key):
    images = digits().x_train.reshape(-1, 8, 8)
    shape = (8, 8, 2)
    signal = np.sin(np.arange(LENGTH) ** 2.0).reshape(1, LENGTH, 1)
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    layers = [layer(config, *case) for case in CASES]
    stacks = [stacked(config, stack) for stack in STACKS.values()]
    channels = (config.features, config.features)
    # tanh again: where all ReLUs are off no shift changes anything.
    scorer = partial(nn.cnn, channels, 10, activation=nn.tanh())
    scorers = {
        "pooled": scorer(padding="CIRCULAR"),
        "bordered": scorer(padding="SAME"),
        "flattened": scorer(padding="CIRCULAR", readout=nn.flatten()),
    }

    def gradient(net, params, x):
        """|∂y/∂x| of the middle output, summed over its features."""
        y, back = jax.vjp(lambda x: net.apply(params, x), x)
        return jnp.abs(back(jnp.zeros_like(y).at[:, y.shape[1] // 2].set(1.0))[0])[0, :, 0]

    nets = [(layers[0], shape), *((net, (LENGTH, 1)) for net in stacks)]
    nets += [(net, (8, 8, 1)) for net in scorers.values()]
    shapes = [jax.eval_shape(partial(net.init, in_shape=s), key)[0] for net, s in nets]
    leaves, structure = jax.tree.flatten(shapes)
    ends = np.cumsum([leaf.size for leaf in leaves])

    def drawn(key):
        """All weights and biases from N(0, 0.3²) at once: to compile many samplers takes long."""
        numbers = 0.3 * np.asarray(jax.random.normal(key, (ends[-1],)))
        parts = zip(np.split(numbers, ends[:-1]), leaves, strict=True)
        return jax.tree.unflatten(structure, [part.reshape(s.shape) for part, s in parts])

    @jax.jit
    def measured(params, moved):
        kernel = {"W": params[0]["W"], "b": jnp.zeros_like(params[0]["b"])}
        of_stacks, of_scorers = params[1 : 1 + len(stacks)], params[1 + len(stacks) :]
        maps = []
        for conv in layers:
            y, back = jax.vjp(lambda x, conv=conv: conv.apply(kernel, x), basis)
            probe = jnp.broadcast_to(jnp.cos(jnp.arange(y[0].size)).reshape(y[0].shape), y.shape)
            maps.append((y.reshape(len(basis), -1).T, back(probe)[0][0].ravel(), probe[0].ravel()))
        seen = [gradient(net, p, signal) for net, p in zip(stacks, of_stacks, strict=True)]
        scores = [n.apply(p, moved) for n, p in zip(scorers.values(), of_scorers, strict=True)]
        return maps, seen, scores

    found = {name: [] for name in ("matrix", "flipped", "transpose", "shared", "seen", *scorers)}
    for seed in range(config.seeds):
        report_progress(seed, config.seeds)
        params = drawn(jax.random.fold_in(key, seed))
        moved = [np.roll(images[seed], (a, b), axis=(0, 1)) for a, b in np.ndindex(8, 8)]
        maps, seen, scores = measured(params, np.stack(moved)[..., None])
        weight = params[0]["W"]
        matrices = [toeplitz(weight, case, shape) for case in CASES]
        flipped = [toeplitz(weight[::-1, ::-1], case, shape) for case in CASES]
        largest = np.abs(weight).max()
        rows = list(zip(matrices, flipped, maps, strict=True))
        found["matrix"].append([np.abs(own - m).max() / largest for m, _, (own, _, _) in rows])
        found["flipped"].append([np.abs(own - m).max() / largest for _, m, (own, _, _) in rows])
        found["transpose"].append(
            [np.abs(g - m.T @ p).max() / np.abs(g).max() for m, _, (_, g, p) in rows]
        )
        found["shared"].append([len(np.unique(np.asarray(own)[own != 0])) for own, _, _ in maps])
        found["seen"].append(seen)
        for name, score in zip(scorers, np.asarray(scores), strict=True):
            found[name].append(np.abs(score - score[0]).max() / np.abs(score[0]).max())
        if seed == 0:
            found["shown"] = maps[0][0].reshape(64, config.features, 64, 2)[:, 0, :, 0]
    grid, window = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1), jnp.arange(4.0).reshape(2, 2, 1, 1)
    worked = [
        nn.conv(1, (2, 2), padding="VALID").apply({"W": w, "b": jnp.zeros(1)}, grid).reshape(2, 2)
        for w in (window, window[::-1, ::-1])
    ]
    return {**{name: np.asarray(values) for name, values in found.items()}, "worked": worked}


def sizes(metrics):
    """How many inputs, first to last, the Jacobian is not 0 at: (seeds, stacks)."""
    nonzero = metrics["seen"] > 0
    return LENGTH - np.argmax(nonzero, axis=-1) - np.argmax(nonzero[..., ::-1], axis=-1)


def verdict(config, metrics):
    right, no_jumps, seen = np.array([fields(stack) for stack in STACKS.values()]).T
    entries = int(np.prod(WINDOW)) * 2 * config.features
    measured = sizes(metrics)
    counted = np.sum(metrics["seen"] > 0, axis=-1)

    def everywhere(numbers):
        return np.broadcast_to(numbers, measured.shape)

    return [
        identity("layer = Toeplitz matrix", 0, metrics["matrix"], scale=1.0),
        control(
            identity("layer = that of the flipped window", 0, metrics["flipped"].min(), scale=1.0)
        ),
        identity("gradient = transposed matrix", 0, metrics["transpose"], scale=1.0),
        identity(
            f"different numbers in the matrix = {entries} parameters", entries, metrics["shared"]
        ),
        identity("3 × 3 example = 25, 31, 43, 49", [[25, 31], [43, 49]], metrics["worked"][0]),
        control(identity("its flip = 25, 31, 43, 49", [[25, 31], [43, 49]], metrics["worked"][1])),
        identity("receptive field = 1 + Σ(k-1)·dilation·Πstrides", everywhere(right), measured),
        control(identity("receptive field = 1 + Σ(k-1)·dilation", everywhere(no_jumps), measured)),
        identity("inputs seen = sums of the windows' offsets", everywhere(seen), counted),
        identity("circular, averaged: no shift changes scores", 0, metrics["pooled"], scale=1.0),
        control(
            identity("zeros, averaged: no shift does", 0, metrics["bordered"].min(), scale=1.0)
        ),
        control(
            identity("circular, flattened: no shift does", 0, metrics["flattened"].min(), scale=1.0)
        ),
    ]


def plot(config, metrics, axes):
    matrix, profile = axes
    show_images(matrix, metrics["shown"][None], 1, diverging=True)
    matrix.set_title("the matrix of a 3 × 2 window on a circle", fontsize=11)
    matrix.set(xlabel="input (8 × 8 places)", ylabel="output (8 × 8 places)")
    for i, (name, stack) in enumerate(STACKS.items()):
        gradient = metrics["seen"][:, i].mean(axis=0)
        places = np.flatnonzero(gradient)
        middle = (places[0] + places[-1]) / 2
        half = (fields(stack)[0] - 1) / 2
        bottom = 1.2 * i
        profile.bar(places - middle, gradient[places] / gradient.max(), 0.8, bottom, label=name)
        for edge in (-half - 0.5, half + 0.5):
            label = "theory: its edges" if i == 0 and edge < 0 else None
            profile.plot([edge, edge], [bottom, bottom + 1], **THEORY, label=label)
    profile.set(xlabel="input, counted from the middle of the field", yticks=[], ylim=(0, 5))
    profile.set_ylabel("|∂ output/∂ input|, scaled")
    profile.legend(loc="upper left", ncols=2)
