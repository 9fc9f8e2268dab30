"""A network that generalizes also learns random labels by heart, and then nothing else.

On the digits' inputs with labels drawn at random the network reaches 100 % training accuracy, and
on test data chance: 10 % within 4 standard errors. The same network on the true labels generalizes:
capacity alone does not explain it. Margins and norms are reported.  Zhang et al. (2017),
section 2.1.  [S0.35, S0.51]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import bound, control, direction, statistical
from jaxnn import data, losses, metrics, nn, optimizers, training, tree

PANELS = (1, 2)
KINDS = ("true", "random")


@dataclass(frozen=True)
class Config:
    width: int = 128
    steps: int = 1000
    learning_rate: float = 3e-3
    batch_size: int = 128
    seeds: int = 8
    examples: int = 1437


SMOKE = Config(width=64, steps=150, seeds=8, examples=128)
TOUR = Config(width=64, steps=150, seeds=8, examples=128)
PAPER = Config(width=1024, steps=6000, seeds=64)


def run(config, key):
    found = digits()
    x, y = (jnp.asarray(part[: config.examples]) for part in (found.x_train, found.y_train))
    x, scaling = data.standardize(x.astype(jnp.float32))
    x_test, y_test = scaling.transform(found.x_test.astype(np.float32)), jnp.asarray(found.y_test)
    net = nn.mlp((config.width, config.width, 10))

    @jax.jit
    def learned(key, labels):
        init_key, fit_key = jax.random.split(key)
        start, _ = net.init(init_key, x.shape[1:])
        params, curve = training.descend(
            *(net.apply, start, losses.softmax_cross_entropy, (x, labels)),
            optimizers.adam(config.learning_rate),
            steps=config.steps,
            batch_size=None if config.batch_size >= len(x) else config.batch_size,
            key=fit_key,
        )
        scores = net.apply(params, x)
        own = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
        others = jnp.max(jnp.where(jax.nn.one_hot(labels, 10) > 0, -jnp.inf, scores), axis=1)
        return {
            "train": metrics.accuracy(scores, labels),
            "test": metrics.accuracy(net.apply(params, x_test), y_test),
            "distance": tree.norm(tree.sub(params, start)),
            "margin": jnp.min(own - others),
            "loss": curve,
        }

    results = {kind: [] for kind in KINDS}
    for seed in range(config.seeds):
        report_progress(seed, config.seeds)
        fit_key, label_key = jax.random.split(jax.random.fold_in(key, seed))
        drawn = jax.random.randint(label_key, y.shape, 0, 10).astype(y.dtype)
        for kind, labels in (("true", y), ("random", drawn)):
            results[kind].append(learned(fit_key, labels))
    return {
        f"{kind}_{name}": np.stack([r[name] for r in runs])
        for kind, runs in results.items()
        for name in runs[0]
    }


def verdict(config, metrics):
    chance = "test accuracy after random labels = 10 %"
    return [
        bound(
            "random labels are learned by heart: training accuracy = 1, every seed",
            1.0,
            metrics["random_train"],
            at_least=True,
            control=(1.0, metrics["random_test"]),
        ),
        statistical(chance, 0.1, metrics["random_test"], scale=1.0),
        control(statistical("test accuracy after true labels = 10 %", 0.1, metrics["true_test"])),
        direction(
            "random labels move the parameters farther from their start than true ones",
            metrics["random_distance"],
            metrics["true_distance"],
        ),
    ]


def plot(config, metrics, axes):
    curves, scores = axes
    window = max(config.steps // 60, 1)
    for kind in KINDS:
        loss = metrics[f"{kind}_loss"].mean(axis=0)
        smooth = loss[: len(loss) // window * window].reshape(-1, window).mean(axis=1)
        steps = window * (np.arange(len(smooth)) + 0.5)
        curves.semilogy(steps, smooth, label=f"{kind} labels")
    curves.axhline(np.log(10), **THEORY, label="chance: ln 10")
    curves.set(xlabel="step", ylabel="training loss (nats), mean over seeds")
    for i, kind in enumerate(KINDS):
        values = [metrics[f"{kind}_train"], metrics[f"{kind}_test"]]
        for place, value in enumerate(values):
            spread = np.linspace(-0.12, 0.12, len(value))
            at = place + 0.2 * (2 * i - 1)
            label = f"{kind} labels" if place == 0 else None
            scores.plot(at + spread, value, "o^"[i], color=f"C{i}", alpha=0.6, label=label)
    scores.axhline(0.1, **THEORY, label="chance: 10 %")
    scores.set_xticks([0, 1], ["training", "test, true labels"])
    scores.set(xlim=(-0.6, 1.6), ylim=(0, 1.05), ylabel="accuracy, one point per seed")
    scores.legend(loc="center left")
