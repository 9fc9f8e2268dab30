"""Convolutions shift with their input: exactly on a circle, and up to the borders with zeros.

f(shift x) = shift f(x), equivariance and not invariance. L layers of 3 × 3 windows that wrap around
keep it for every shift s. Padded by zeros they break it in 2L + min(s, 2L) rows, those within L of
the border where it is and where the shift takes it; an object on an empty background stays
equivariant until s + L exceeds its margin. A stride of 2 leaves the even shifts.
[S2.23, S2.24, S1.7]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import BAND, THEORY
from experiments.verdicts import control, identity
from jaxnn import nn

PRECISION = "float64"
PANELS = (1, 2)
DIGIT = 8  # pixels along an edge


@dataclass(frozen=True)
class Config:
    depths: tuple[int, ...] = (1, 2, 3)
    features: int = 8
    margin: int = 7
    seeds: int = 8


SMOKE = Config(depths=(1, 2), features=4, seeds=2)
PAPER = Config(depths=(1, 2, 3, 4, 5), features=32, margin=12, seeds=64)


def shifts(config):
    return np.arange(1, config.margin + 2)


def network(config, depth, padding, strides=(1, 1)):
    first = nn.conv(config.features, (3, 3), padding=padding, strides=strides, bias_std=0.3)
    more = nn.conv(config.features, (3, 3), padding=padding, bias_std=0.3)
    return nn.serial(first, nn.relu(), *(depth - 1) * (more, nn.relu()))


def shifted(config, image):
    """The image, and below it every shift of it, downwards around the circle."""
    return np.stack([np.roll(image, s, axis=0) for s in (0, *shifts(config))])


def misses(config, y):
    """Largest |f(shift x) - shift f(x)| of every shift and row, relative to the largest |f(x)|."""
    pairs = zip(y[1:], shifts(config), strict=True)
    gaps = np.stack([np.abs(moved - np.roll(y[0], s, axis=0)) for moved, s in pairs])
    return gaps.max(axis=(2, 3)) / np.abs(y[0]).max()


def nearest(y):
    """How far each f(shift x) is from all shifts of f(x), by what is left at the nearest."""
    rolls = np.stack([np.roll(y[0], r, axis=0) for r in range(len(y[0]))])
    gaps = np.abs(y[1:, None] - rolls[None]).max(axis=(2, 3, 4))
    return gaps.min(axis=1) / np.abs(y[0]).max()


def run(config, key):
    n = DIGIT + 2 * config.margin
    images = digits().x_train.reshape(-1, DIGIT, DIGIT)
    deepest = network(config, max(config.depths), "CIRCULAR")
    strided = network(config, 2, "CIRCULAR", strides=(2, 2))

    @jax.jit
    def drawn(key):
        noise_key, init_key = jax.random.split(key)
        params, _ = deepest.init(init_key, (n, n, 1))
        return params, jax.random.normal(noise_key, (n, n, 1))

    @jax.jit
    def outputs(params, full, alone):
        # A bias lights up the empty ground, whose borders would then be seen.
        bare = tuple({**p, "b": jnp.zeros_like(p["b"])} if p else p for p in params)
        found = []
        for depth in config.depths:
            wrapped, padded = (network(config, depth, p).apply for p in ("CIRCULAR", "SAME"))
            own, own_bare = params[: 2 * depth], bare[: 2 * depth]
            found.append((wrapped(own, full), padded(own, full), padded(own_bare, alone)))
        return found, strided.apply(params[:4], full)

    def measured(seed):
        report_progress(seed, config.seeds)
        params, noise = drawn(jax.random.fold_in(key, seed))
        alone = shifted(config, np.pad(images[seed], config.margin)[..., None])
        found, coarse = outputs(params, shifted(config, np.asarray(noise)), alone)
        circular, zeros, lone = (
            np.stack([misses(config, np.asarray(y)) for y in kind])
            for kind in zip(*found, strict=True)
        )
        wrapped = [np.asarray(y) for y, _, _ in found]
        still = [np.abs(y[1:] - y[0]).max(axis=(1, 2, 3)) / np.abs(y[0]).max() for y in wrapped]
        return circular, zeros, lone.max(axis=-1), np.stack(still), nearest(np.asarray(coarse))

    runs = zip(*map(measured, range(config.seeds)), strict=True)
    names = ("circular", "zeros", "object", "invariance", "strided")
    return {name: np.stack(found) for name, found in zip(names, runs, strict=True)}


def broken_rows(config, metrics):
    """Measured (seeds, depths, shifts), and the predicted (depths, shifts)."""
    twice = 2 * np.array(config.depths)[:, None]
    return np.sum(metrics["zeros"] > 1e-12, axis=-1), twice + np.minimum(shifts(config), twice)


def verdict(config, metrics):
    measured, predicted = broken_rows(config, metrics)
    inside = np.array(config.depths)[:, None] + shifts(config) <= config.margin
    even = shifts(config) % 2 == 0
    worst = metrics["zeros"].max(axis=-1)
    return [
        identity("circular: f(shift x) = shift f(x)", 0, metrics["circular"], scale=1.0),
        # The smallest miss: every single variant that is wrong has to be off.
        control(identity("padded by zeros: f(shift x) = shift f(x)", 0, worst.min(), scale=1.0)),
        control(identity("f(shift x) = f(x)", 0, metrics["invariance"].min(), scale=1.0)),
        identity(
            "padded by zeros: 2L + min(s, 2L) rows break",
            np.broadcast_to(predicted, measured.shape),
            measured,
        ),
        control(
            identity(
                "padded by zeros: 2L rows break",
                np.full_like(measured, 2) * np.array(config.depths)[:, None],
                measured,
            )
        ),
        identity(
            "object on empty ground: equivariant while s + L ≤ margin",
            *(0, metrics["object"][:, inside]),
            scale=1.0,
        ),
        control(
            identity(
                "object on empty ground: equivariant beyond",
                *(0, metrics["object"][:, ~inside].min()),
                scale=1.0,
            )
        ),
        identity("stride 2: even shifts", 0, metrics["strided"][:, even], scale=1.0),
        control(identity("stride 2: odd shifts", 0, metrics["strided"][:, ~even].min(), scale=1.0)),
    ]


def plot(config, metrics, axes):
    rows, alone = axes
    s, (measured, predicted) = shifts(config), broken_rows(config, metrics)
    for i, depth in enumerate(config.depths):
        color, marker = f"C{i}", "o^sDv"[i % 5]
        rows.plot(s, measured[0, i], marker, color=color, label=f"zeros, L = {depth}")
        theory = "theory: 2L + min(s, 2L)" if i == 0 else None
        rows.plot(s, predicted[i], **THEORY, label=theory)
        errors = np.maximum(metrics["object"][:, i].max(axis=0), 1e-17)
        label = f"zeros, L = {depth}: margin - L = {config.margin - depth}"
        alone.semilogy(s, errors, marker + "-", color=color, label=label)
    circle = np.sum(metrics["circular"] > 1e-12, axis=-1).max(axis=(0, 1))
    rows.plot(s, circle, "x", color="C7", label="circular, every L")
    rows.set(xlabel="shift s (pixels)", ylabel=f"rows that break, of {metrics['zeros'].shape[-1]}")
    rows.set_ylim(-0.5, 1.5 * predicted.max())
    rows.yaxis.get_major_locator().set_params(integer=True)
    rows.legend(loc="upper left", ncols=2)
    alone.axhspan(1e-18, 1e-10, **BAND, label="theory: 0, to rounding")
    alone.set_ylim(1e-18, 1e9)
    alone.set(xlabel="shift s (pixels)", ylabel="relative miss, a digit on empty ground")
    alone.legend(loc="upper left")
