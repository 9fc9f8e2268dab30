"""A trained classifier's Hessian has as many outliers as its data have classes, less one.

A ReLU network of ten outputs learns C of the ten digits, to a tenth of the loss of chance. Of the
2C largest eigenvalues of its Hessian the first C - 1 are above the widest gap: what the softmax
leaves free of the C labels that occur, whatever the number of outputs. So it is with permuted
labels: the number of classes counts, not what they mean. As training goes on and the softmax
saturates the gap narrows. The controls: other numbers of classes, and the network at its start,
which does not know yet which classes there are.
Sagun, Evci, Güney, Dauphin & Bottou (2017), section 4; Papyan (2020), section 3.  [S0.52, S0.64]
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import bound, control, identity
from jaxnn import curvature, linalg, losses, nn, optimizers, tree

PANELS = (1, 3)
OUTPUTS, LEARNING_RATE = 10, 0.05
GAP, SHARE = 1.5, 0.75
KINDS = ("trained", "permuted", "start")
LABELS = ("trained", "on permuted labels", "not trained")
RESIDUAL, FLOOR = 1e-3, 1e-6  # of eigenvalues, relative; absolute, so that logarithms exist
GRID = np.geomspace(1e-6, 1e2, 400, dtype=np.float32)


@dataclass(frozen=True)
class Config:
    classes: tuple[int, ...] = (3, 5, 7, 10)
    width: int = 64
    examples: int = 100  # of a class
    loss: float = 0.1  # where training ends, of ln C
    steps: int = 100  # where it does not get there
    seeds: int = 4
    probes: int = 4
    lanczos_steps: int = 60


SMOKE = Config(classes=(3, 6), seeds=2, probes=2, lanczos_steps=40)
PAPER = Config(classes=(2, 3, 4, 5, 6, 7, 8, 9, 10), width=256, seeds=16, probes=10)


def run(config, key):
    data, net = digits(), nn.mlp((config.width, config.width, OUTPUTS))
    descent = optimizers.momentum(LEARNING_RATE)
    objective = lambda p, x, y: jnp.mean(losses.softmax_cross_entropy(net.apply(p, x), y))

    def examples(key, count):
        chosen = np.asarray(jax.random.permutation(key, OUTPUTS)[:count])
        rows = [np.flatnonzero(data.y_train == c)[: config.examples] for c in chosen]
        x, y = (part[np.concatenate(rows)] for part in (data.x_train, data.y_train))
        return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)

    @partial(jax.jit, static_argnums=3)
    def measured(key, x, y, count):
        """Of each kind 2·count eigenvalues and their error; the trained network with its data."""
        init_key, mix_key, key = jax.random.split(key, 3)
        start, _ = net.init(init_key, x.shape[1:])
        mixed = jax.random.permutation(mix_key, y)

        def learned(y):
            def step(run):
                params, state, _, i = run
                value, slope = jax.value_and_grad(objective)(params, x, y)
                updates, state = descent.update(slope, state, params)
                return tree.add(params, updates), state, value, i + 1

            goal = config.loss * np.log(count)
            unfinished = lambda run: (run[2] > goal) & (run[3] < config.steps)
            begin = (start, descent.init(start), jnp.inf, 0)
            return jax.lax.while_loop(unfinished, step, begin)[0]

        trained = learned(y)
        found = {}
        for kind, params, labels in (
            ("trained", trained, y),
            ("permuted", learned(mixed), mixed),
            ("start", start, y),
        ):
            operator = linalg.hessian(objective, params, x, labels)
            top = linalg.eigsh(operator, 2 * count, key=key, tolerance=0.1 * RESIDUAL)
            found[kind] = top.values
            found[f"{kind}_residual"] = jnp.max(top.residuals) / top.values[0]
        return found, (trained, x, y)

    results, case = {}, ()
    for i, count in enumerate(config.classes):
        rows = []
        for seed in range(config.seeds):
            report_progress(i * config.seeds + seed, len(config.classes) * config.seeds)
            choice_key, here = jax.random.split(jax.random.fold_in(key, 100 * count + seed))
            x, y = examples(choice_key, count)
            values, case = measured(here, x, y, count)
            rows.append(values)
        results |= {f"{name}_{count}": np.stack([r[name] for r in rows]) for name in rows[0]}
    spectrum = linalg.spectral_density(
        linalg.hessian(objective, *case),
        *(key,),
        steps=config.lanczos_steps,
        probes=config.probes,
    )
    return results | {
        "grid": GRID,
        "density": linalg.density(spectrum, GRID, width=0.25, scale="log"),
        "size": spectrum.size,
        "moments_off": spectrum.self_check(),
    }


def profile(metrics, kind, count):
    """Ratios of neighbors, geometric means over seeds, (2·count - 1,)."""
    values = np.maximum(metrics[f"{kind}_{count}"], FLOOR)
    return np.exp(np.mean(np.log(values[:, :-1] / values[:, 1:]), axis=0))


def numbers(config, metrics, kind):
    return np.array([1 + np.argmax(profile(metrics, kind, count)) for count in config.classes])


def verdict(config, metrics):
    expected = np.array(config.classes) - 1
    gaps = lambda kind: np.array(
        [profile(metrics, kind, count)[count - 2] for count in config.classes]
    )
    share = lambda kind: np.mean(
        [
            int(curvature.outliers(jnp.asarray(values)).number) in (count - 1, count)
            for count in config.classes
            for values in metrics[f"{kind}_{count}"]
        ]
    )
    most = np.full(len(expected), GAP)
    equal = lambda claim, kind, number=expected: identity(
        f"{claim} = C - 1, mean over seeds", number, numbers(config, metrics, kind), tolerance=1e-9
    )
    return [
        equal("outliers after training", "trained"),
        equal("outliers after training on permuted labels", "permuted"),
        control(equal("outliers at the start", "start")),
        control(equal("outliers, with another C,", "trained", np.roll(expected, 1))),
        bound(
            f"λ_C-1/λ_C ≥ {GAP} after training, mean over seeds, every C",
            *(most, gaps("trained")),
            at_least=True,
            control=(most, gaps("start")),
        ),
        bound(
            f"C - 1 or C outliers in at least {SHARE:.0%} of all networks",
            *(SHARE, share("trained")),
            at_least=True,
            control=(SHARE, share("start")),
        ),
        identity(
            "every eigenvalue is one: ‖Hv - λv‖/λ₁",
            *(0.0, [metrics[f"{kind}_residual_{c}"] for kind in KINDS for c in config.classes]),
            tolerance=RESIDUAL,
            scale=1.0,
        ),
        identity(
            "density: its moments are those by products",
            0.0,
            metrics["moments_off"],
            tolerance=1e-4,
            scale=1.0,
        ),
    ]


def plot(config, metrics, axes):
    counts, gaps, density = axes
    classes = np.array(config.classes)
    for i, (kind, label) in enumerate(zip(KINDS, LABELS, strict=True)):
        counts.plot(classes + 0.12 * (i - 1), numbers(config, metrics, kind), "os^"[i], label=label)
    counts.plot(classes, classes - 1, **THEORY, label="theory: C - 1")
    counts.set(xlabel="classes C in the data", ylabel="eigenvalues above the widest gap")
    last = config.classes[-1]
    for i, (kind, label) in enumerate(zip(KINDS, LABELS, strict=True)):
        ratios = profile(metrics, kind, last)
        gaps.plot(1 + np.arange(len(ratios)), ratios, "os^"[i] + "-", label=label)
    gaps.axvline(last - 1, **THEORY, label="theory: C - 1")
    gaps.set(xlabel=f"i, C = {last}", ylabel="λ_i/λ_i+1, mean over seeds")
    density.loglog(metrics["grid"], metrics["density"], label="density, trained")
    for i, value in enumerate(metrics[f"trained_{last}"][-1][: last - 1]):
        label = f"the largest {last - 1}" if i == 0 else None
        density.axvline(value, color="C1", lw=1, label=label)
    floor = 0.1 / metrics["size"]
    density.set(xlabel="eigenvalue λ of the Hessian", ylabel="density of ln λ", ylim=(floor, None))
    for axis in (counts.xaxis, counts.yaxis, gaps.xaxis):
        axis.get_major_locator().set_params(integer=True)
    for panel in axes:
        panel.legend()
