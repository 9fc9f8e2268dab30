"""A pruned network learns well from the weights it was born with, and worse from new ones.

Iterative magnitude pruning with rewinding: at 15 % of the weights or less, the ticket is more
accurate on test data than the same sparse network re-initialized, in 8 seeds of 8. Control: the
mask that keeps the smallest weights instead.  Frankle & Carbin (2019), sections 2 and 3.  [S0.58]
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from experiments.harness import report_progress
from experiments.verdicts import bound, control, direction
from jaxnn import losses, metrics, nn, optimizers, pruning, training

PANELS = (1, 2)
LIMIT = 0.15


@dataclass(frozen=True)
class Config:
    dataset: str = "digits"
    hidden: tuple[int, ...] = (100, 50)
    rounds: int = 11
    steps: int = 300
    learning_rate: float = 1.2e-3
    batch_size: int = 60
    seeds: int = 8


SMOKE = Config(rounds=9, steps=60, seeds=2)
PAPER = Config("mnist", (300, 100), rounds=14, steps=10_000, seeds=8)


def examples(config):
    found = getattr(datasets, config.dataset)()
    x, x_test = (part.reshape(len(part), -1).astype(np.float32) for part in (found[0], found[2]))
    return (jnp.asarray(x), jnp.asarray(found[1])), (jnp.asarray(x_test), jnp.asarray(found[3]))


def run(config, key):
    train, (x_test, y_test) = examples(config)
    net = nn.mlp((*config.hidden, 10))
    init = jax.jit(lambda key: net.init(key, train[0].shape[1:])[0])
    adam = optimizers.adam(config.learning_rate)
    # The output layer, the last of the weights, is pruned at half the rate.
    fraction = (*(0.2,) * (2 * len(config.hidden)), 0.1)

    @jax.jit
    def trained(params, mask, key):
        end, curve = training.descend(
            *(net.apply, pruning.masked_params(params, mask), losses.softmax_cross_entropy, train),
            optimizers.masked(adam, mask),
            steps=config.steps,
            batch_size=config.batch_size,
            key=key,
        )
        return end, metrics.accuracy(net.apply(end, x_test), y_test), curve

    shape = (config.seeds, config.rounds + 1)
    found = {name: np.zeros(shape) for name in ("left", "ticket", "new")}
    found["smallest"] = np.zeros(config.seeds)
    for seed in range(config.seeds):
        init_key, new_key, fit_key = jax.random.split(jax.random.fold_in(key, seed), 3)
        params, others = init(init_key), init(new_key)
        tickets = pruning.lottery_rounds(
            partial(trained, key=fit_key),
            params,
            rounds=config.rounds,
            fraction=fraction,
            trained_params=lambda result: result[0],
        )
        kept = []
        for k, ticket in enumerate(tickets):
            report_progress(seed * shape[1] + k, config.seeds * shape[1])
            kept.append(ticket)
            found["left"][seed, k] = 1.0 - pruning.sparsity(ticket.mask)
            found["ticket"][seed, k] = ticket.trained[1]
            found["new"][seed, k] = trained(others, ticket.mask, key=fit_key)[1]
        wrong = smallest(kept[0].trained[0], kept[-1].mask)
        found["smallest"][seed] = trained(params, wrong, key=fit_key)[1]
    return found


def smallest(params, mask):
    """As many weights of every leaf as the mask keeps, but those of least magnitude."""
    going = jax.tree.map(lambda m: 1.0 - jnp.mean(m.astype(float)), mask)
    return pruning.magnitude_mask(jax.tree.map(lambda w: 1.0 / w, params), going)


def verdict(config, metrics):
    sparse = metrics["left"][:, -1]
    ticket, new, wrong = metrics["ticket"][:, -1], metrics["new"][:, -1], metrics["smallest"]
    share = f"{sparse.mean():.1%} of the weights"
    return [
        bound(
            f"pruned to {LIMIT:.0%} of the weights or less",
            LIMIT,
            sparse,
            control=(LIMIT, metrics["left"][:, 0]),
        ),
        direction(f"{share}: the ticket beats the same mask with new weights, test", ticket, new),
        control(
            direction(f"{share}: the smallest weights beat the mask with new ones", wrong, new)
        ),
    ]


def plot(config, metrics, axes):
    curves, pairs = axes
    left = 100 * metrics["left"].mean(axis=0)
    for name, label in (("ticket", "ticket: as initialized"), ("new", "same mask, new weights")):
        error = 100 * (1 - metrics[name])
        low, high = error.min(axis=0), error.max(axis=0)
        curves.fill_between(left, low, high, alpha=0.2, linewidth=0)
        curves.plot(left, error.mean(axis=0), "o-", label=label)
    curves.axvline(100 * LIMIT, color="black", linestyle="--", label="claimed from here: 15 %")
    ticks = [t for t in (100, 50, 20, 10, 5, 2, 1) if t >= left.min()]
    curves.set(xscale="log", yscale="log", ylabel="test error (%), mean and range over seeds")
    curves.set_xlabel("weights left (%)")
    curves.invert_xaxis()
    curves.set_xticks(ticks, ticks)
    percents = [t for t in (1, 2, 5, 10, 20, 50) if curves.get_ylim()[0] < t < curves.get_ylim()[1]]
    curves.set_yticks(percents, percents)
    curves.minorticks_off()
    values = [metrics["ticket"][:, -1], metrics["new"][:, -1], metrics["smallest"]]
    for points in zip(*values, strict=True):
        pairs.plot(range(3), points, "-", color="gray", alpha=0.4, linewidth=0.8)
    for i, value in enumerate(values):
        pairs.plot(np.full(len(value), i), value, "o", color=f"C{i}", alpha=0.7)
    pairs.set_xticks(range(3), ["ticket", "new weights", "smallest kept\n(control)"])
    pairs.set(xlim=(-0.4, 2.4), ylabel=f"test accuracy at {left[-1]:.1f} % left")
