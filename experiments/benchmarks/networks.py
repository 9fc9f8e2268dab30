"""Training steps of LeNet and of the LSTM classifier against the same networks in flax and optax.

Batches of 128 from random examples, softmax cross-entropy, Adam, float32; LeNet on 28 x 28 images,
the LSTM (128 units) on 50 times of 32 numbers. A run calls one jit-compiled step again and again;
both libraries start from the same weights and have to compute the same losses, which is checked
before anything is timed. They take turns in one process; the number is the median of the ratios of
neighboring runs.

    python -m experiments.benchmarks.networks [--repeats 15] [--steps 5]

Measured on 2026-11-22 on 2 cores of an AMD EPYC shared with other work (load 4), Python 3.11.7,
jax and jaxlib 0.10.1, flax 0.12.8, optax 0.2.8:

             ours/flax (quartiles)    processor time    a step in flax
    lenet    1.041 (0.924-1.102)      0.997             100 ms
    lstm     1.055 (0.971-1.135)      1.092             174 ms
"""

import argparse
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from statistics import median, quantiles
from typing import NamedTuple

import flax.linen as flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.training import in_turns
from jaxnn import losses, nn, optimizers
from jaxnn.types import Array, Params, Shape

BATCH_SIZE, CLASSES, UNITS = 128, 10, 128


class FlaxLeNet(flax.Module):
    @flax.compact
    def __call__(self, x: Array) -> Array:  # noqa: D102
        for features, padding in ((6, "SAME"), (16, "VALID")):
            x = flax.tanh(flax.Conv(features, (5, 5), padding=padding)(x))
            x = flax.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for features in (120, 84):
            x = flax.tanh(flax.Dense(features)(x))
        return flax.Dense(CLASSES)(x)


class FlaxLSTM(flax.Module):
    @flax.compact
    def __call__(self, x: Array) -> Array:  # noqa: D102
        states = jnp.asarray(flax.RNN(flax.OptimizedLSTMCell(UNITS))(x))
        return flax.Dense(CLASSES)(states[:, -1])


def lenet_in_flax(params: Params) -> Params:
    """Our weights of LeNet under flax's names."""
    stack = [params[0], params[3], *params[7][::2]]
    names = ["Conv_0", "Conv_1", "Dense_0", "Dense_1", "Dense_2"]
    return {n: {"kernel": p["W"], "bias": p["b"]} for n, p in zip(names, stack, strict=True)}


def lstm_in_flax(params: Params) -> Params:
    """Our weights of the LSTM classifier under flax's names."""
    cell, last = params
    blocks = [jnp.split(cell[name], 4, axis=-1) for name in ("W", "U", "b")]
    weights = {}
    for gate, W, U, b in zip("ifgo", *blocks, strict=True):
        weights |= {f"i{gate}": {"kernel": W}, f"h{gate}": {"kernel": U, "bias": b}}
    return {
        "OptimizedLSTMCell_0": weights,
        "Dense_0": {"kernel": last["W"], "bias": last["b"]},
    }


class Case(NamedTuple):
    """A network here and there, and the shape of one example."""

    ours: nn.Layer
    theirs: flax.Module
    rename: Callable[[Params], Params]
    in_shape: Shape


CASES = {
    "lenet": Case(nn.lenet(CLASSES), FlaxLeNet(), lenet_in_flax, (28, 28, 1)),
    "lstm": Case(nn.lstm_classifier((UNITS,), CLASSES), FlaxLSTM(), lstm_in_flax, (50, 32)),
}


def train(loss: Callable[..., Array], optimizer, params: Params, x: Array, y: Array) -> Array:
    """The losses of one step per batch of x, (steps, batch, ...)."""
    state, values = optimizer.init(params), []
    for batch in zip(x, y, strict=True):
        params, state, value = step(loss, optimizer, params, state, *batch)
        values.append(value)
    return jnp.stack(jax.block_until_ready(values))


@partial(jax.jit, static_argnums=(0, 1))
def step(loss: Callable[..., Array], optimizer, params: Params, state, x: Array, y: Array):
    """One update of the parameters, and the loss before it."""
    value, grads = jax.value_and_grad(loss)(params, x, y)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def variants(case: Case, steps: int) -> tuple[Callable[[], Array], Callable[[], Array]]:
    """Their training and ours, on the same data from the same weights."""
    x_key, y_key, key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(x_key, (steps, BATCH_SIZE, *case.in_shape))
    y = jax.random.randint(y_key, (steps, BATCH_SIZE), 0, CLASSES)
    params, _ = case.ours.init(key, case.in_shape)

    def ours(params, x, y):
        return jnp.mean(losses.softmax_cross_entropy(case.ours.apply(params, x), y))

    def theirs(params, x, y):
        logits = jnp.asarray(case.theirs.apply({"params": params}, x))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return (
        partial(train, theirs, optax.adam(1e-3), case.rename(params), x, y),
        partial(train, ours, optimizers.adam(1e-3), params, x, y),
    )


def main() -> None:
    """Time both in turns and print the table of ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()

    print(
        f"{jax.devices()[0].device_kind} ({platform.machine()}), "
        f"Python {platform.python_version()}, jax {jax.__version__}, jaxlib {version('jaxlib')}, "
        f"flax {version('flax')}, optax {version('optax')}"
    )
    print(f"runs of {options.steps} steps, {options.repeats} repeats\n")
    print(
        f"{'':8}{'ours/flax':>10}{'quartiles':>14}{'processor time':>16}{'flax, a step':>14}"
        f"{'losses differ by':>18}"
    )
    for name, case in CASES.items():
        pair = variants(case, options.steps)
        theirs, ours = (np.asarray(run()) for run in pair)
        difference = np.max(np.abs(ours - theirs))
        if not difference <= 1e-3 * np.max(np.abs(theirs)):
            raise SystemExit(f"{name}: the losses differ by {difference}; this compares nothing.")
        costs = [in_turns(pair, backwards=i % 2 == 1) for i in range(options.repeats)]
        low, ratio, high = quantiles([ours.wall / theirs.wall for theirs, ours in costs], n=4)
        processor = median(ours.processor / theirs.processor for theirs, ours in costs)
        step = f"{1e3 * median(theirs.wall for theirs, _ in costs) / options.steps:.2f} ms"
        print(
            f"{name:8}{ratio:10.3f}{f'{low:.3f}-{high:.3f}':>14}{processor:16.3f}{step:>14}"
            f"{difference:18.1e}"
        )


if __name__ == "__main__":
    main()
