"""Cost of `training.fit` over the same loop written by hand with optax in one `lax.scan`.

A 784-512-512-10 ReLU network, batches of 128 from 60,000 random examples, softmax cross-entropy,
float32. The hand-written loop draws a permutation per epoch on the device and scans over its rows;
it does not look at what it computes and cannot be stopped. The variants take turns in one process,
so that other load falls on all of them; the number is the median of the ratios of neighboring runs.

    python -m experiments.benchmarks.training [--repeats 15] [--epochs 2]

Measured on 2026-11-22 on 2 cores of an AMD EPYC (family 26) shared with other work (load 4 to 7),
Python 3.11.7, jax and jaxlib 0.10.1, optax 0.2.8, 25 repeats:

                   ours/hand (quartiles)    processor time    a step by hand
    adam           0.991 (0.981-1.075)      0.992             2.85 ms
    sgd momentum   1.013 (0.966-1.099)      1.021             3.69 ms

What `fit` does more in a run of n epochs: one more permutation (22 ms; it looks one batch ahead, to
know that the loss is finite where it stops) and one loss per chunk.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from statistics import median, quantiles
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn import losses, nn, optimizers, training
from jaxnn.types import Array, Key, Params

EXAMPLES, FEATURES, CLASSES, BATCH_SIZE = 60_000, 784, 10, 128
NETWORK = nn.mlp((512, 512, CLASSES))
OPTIMIZERS = {
    "adam": (optimizers.adam(1e-3), optax.adam(1e-3)),
    "sgd momentum": (optimizers.momentum(1e-2), optax.sgd(1e-2, momentum=0.9)),
}


def by_fit(optimizer, params: Params, key: Key, x: Array, y: Array, *, epochs: int) -> Array:
    """Train with the library; return the last loss."""
    steps = epochs * (EXAMPLES // BATCH_SIZE)
    loss = losses.softmax_cross_entropy
    run = training.fit(
        NETWORK.apply, params, loss, (x, y), optimizer, steps=steps, batch_size=BATCH_SIZE, key=key
    )
    jax.block_until_ready(run.params)
    return run.history["loss"][-1]


def by_hand(optimizer, params: Params, key: Key, x: Array, y: Array, *, epochs: int) -> Array:
    """Train with the loop below; return the last loss."""
    (params, _), loss = _scan_by_hand(optimizer, epochs, params, key, x, y)
    jax.block_until_ready(params)
    return loss[-1]


@partial(jax.jit, static_argnums=(0, 1))
def _scan_by_hand(optimizer, epochs: int, params: Params, key: Key, x: Array, y: Array):
    def objective(params, x, y):
        logits = NETWORK.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, rows):
        params, state = carry
        loss, grads = jax.value_and_grad(objective)(params, x[rows], y[rows])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    kept = EXAMPLES // BATCH_SIZE * BATCH_SIZE
    keys = jax.random.split(key, epochs)
    orders = jnp.stack([jax.random.permutation(k, EXAMPLES)[:kept] for k in keys])
    return jax.lax.scan(step, (params, optimizer.init(params)), orders.reshape(-1, BATCH_SIZE))


class Cost(NamedTuple):
    """Seconds of one call, on the clock and of all processors together."""

    wall: float
    processor: float


def cost(run: Callable[[], Array]) -> Cost:
    """What one call costs."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return Cost(time.perf_counter() - wall, time.process_time() - processor)


def in_turns(variants: Sequence[Callable[[], Array]], *, backwards: bool) -> list[Cost]:
    """Costs of all variants in their own order, whichever order they ran in."""
    costs = [cost(variant) for variant in (variants[::-1] if backwards else variants)]
    return costs[::-1] if backwards else costs


def main() -> None:
    """Time all variants in turns and print the table of ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()

    data_key, label_key, init_key, run_key = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(data_key, (EXAMPLES, FEATURES))
    y = jax.random.randint(label_key, (EXAMPLES,), 0, CLASSES)
    params, _ = NETWORK.init(init_key, (FEATURES,))
    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({platform.machine()}), Python {platform.python_version()}, "
        f"jax {jax.__version__}, jaxlib {version('jaxlib')}, optax {version('optax')}"
    )
    steps = options.epochs * (EXAMPLES // BATCH_SIZE)
    print(f"runs of {steps} steps ({options.epochs} epochs), {options.repeats} repeats\n")
    print(
        f"{'':14}{'ours/hand':>10}{'quartiles':>14}{'processor time':>16}{'optax in fit':>14}"
        f"{'hand, a step':>14}{'first call, ours':>18}{'hand':>8}"
    )
    for name, (ours, theirs) in OPTIMIZERS.items():
        variants = [
            partial(run, optimizer, params, run_key, x, y, epochs=options.epochs)
            for run, optimizer in ((by_hand, theirs), (by_fit, ours), (by_fit, theirs))
        ]
        first = in_turns(variants, backwards=False)
        costs = [in_turns(variants, backwards=i % 2 == 1) for i in range(options.repeats)]
        low, ratio, high = quantiles([ours.wall / hand.wall for hand, ours, _ in costs], n=4)
        processor = median(ours.processor / hand.processor for hand, ours, _ in costs)
        other = median(theirs.wall / hand.wall for hand, _, theirs in costs)
        step = f"{1e3 * median(hand.wall for hand, _, _ in costs) / steps:.2f} ms"
        print(
            f"{name:14}{ratio:10.3f}{f'{low:.3f}-{high:.3f}':>14}{processor:16.3f}{other:14.3f}"
            f"{step:>14}{f'{first[1].wall:.1f} s':>18}{f'{first[0].wall:.1f} s':>8}"
        )


if __name__ == "__main__":
    main()
