"""Gradient descent sharpens its loss up to the edge of its own stability, 2/η, and stays there.

The whole of 400 digits, a deep tanh network, squared error. λ_max of the Hessian grows until the
method is about to diverge on a quadratic of that curvature: at 2/η without momentum, (2 + 2β)/η
with Polyak's, (2 + 2β)/((1 + 2β)η) with Nesterov's. On quadratics those limits are exact. η is
chosen so that the three limits are one, the number of steps so that all go equally far. λ_max is a
little above its limit, the more the wider the network: 3 % here, 6 % at twice the width. The
controls: at two thirds of the rate λ_max goes past that limit, to its own; and the momentum methods
are not at 2/η.
Cohen, Kaur, Li, Kolter & Talwalkar (2021), sections 2 and 3.  [S0.42, S0.43, S0.53]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import BAND, THEORY
from experiments.verdicts import bound, control, identity
from jaxnn import curvature, nn, optimizers

PANELS = (1, 2)
BETA, TOLERANCE, PER_CENT = 0.5, 0.05, 0.01
LIMITS = {"gd": 2.0, "polyak": 2 + 2 * BETA, "nesterov": (2 + 2 * BETA) / (1 + 2 * BETA)}  # · 1/η
LABELS = {"gd": "gradient descent", "polyak": "Polyak", "nesterov": "Nesterov"}
RUNS = {**{name: (name, 1.0) for name in LIMITS}, "slower": ("gd", 2 / 3)}
"""Name: method, and the learning rate in units of the one whose limit is `Config.limit`."""


@dataclass(frozen=True)
class Config:
    limit: float = 20.0
    width: int = 32
    layers: int = 4
    examples: int = 400
    seeds: int = 4
    time: float = 150.0  # steps times the rate 1/(1 - β) of a momentum method, of the loss
    records: int = 60


SMOKE = Config(seeds=1, records=40)
PAPER = Config(seeds=16, records=200)


def run(config, key):
    found = digits()
    x = jnp.asarray(found.x_train[: config.examples], jnp.float32)
    y = jax.nn.one_hot(found.y_train[: config.examples], 10)
    net = nn.mlp((config.width,) * config.layers + (10,), activation=nn.tanh(), weight_std=0.8)
    objective = lambda p, x, y: 0.5 * jnp.mean(jnp.sum((net.apply(p, x) - y) ** 2, axis=1))
    results = {}
    for i, (name, (kind, share)) in enumerate(RUNS.items()):
        report_progress(i, len(RUNS))
        eta = share * LIMITS[kind] / config.limit
        steps = round(config.time / eta * (1.0 if kind == "gd" else 1 - BETA))

        @jax.jit
        def trained(key, kind=kind, eta=eta, steps=steps):
            init_key, key = jax.random.split(key)
            start, _ = net.init(init_key, x.shape[1:])
            return curvature.sharpness_trajectory(
                *(objective, start, method(kind, eta), x, y),
                **{"steps": steps, "every": max(steps // config.records, 1)},
                **{"key": key, "tolerance": 1e-3},
            )

        seeds = [trained(jax.random.fold_in(key, seed)) for seed in range(config.seeds)]
        results |= {
            f"{name}_time": config.time * seeds[0].steps / steps,
            f"{name}_sharpness": np.stack([s.sharpness for s in seeds]),
            f"{name}_loss": np.stack([s.losses for s in seeds]),
            f"{name}_residual": np.max([s.residuals / s.sharpness for s in seeds]),
        }
    return results | {f"{kind}_quadratic": quadratic(kind) for kind in LIMITS}


def method(kind, eta):
    if kind == "gd":
        return optimizers.gradient_descent(eta)
    return (optimizers.momentum if kind == "polyak" else optimizers.nesterov)(eta, mu=BETA)


def quadratic(kind):
    """Where descent from 1 is after 600 steps at curvatures 1 % below and above the limit."""
    eta, optimizer = 0.1, method(kind, 0.1)
    curvature = LIMITS[kind] / eta * jnp.array([1 - PER_CENT, 1 + PER_CENT])

    def step(_, run):
        updates, state = optimizer.update(curvature * run[0], run[1], run[0])
        return run[0] + updates, state

    start = jnp.ones(2)
    return jnp.abs(jax.lax.fori_loop(0, 600, step, (start, optimizer.init(start)))[0])


def verdict(config, metrics):
    def final(name):
        course = metrics[f"{name}_sharpness"]
        return course[:, -(course.shape[1] // 3) :].mean(1)

    def hovers(name, factor, claim):
        eta = RUNS[name][1] * LIMITS[RUNS[name][0]] / config.limit
        return identity(
            claim, np.full(config.seeds, factor / eta), final(name), tolerance=TOLERANCE
        )

    last = "last third, every seed"
    sides = np.array([metrics[f"{kind}_quadratic"] for kind in LIMITS])
    most = np.full(config.seeds, config.limit * (1 + TOLERANCE))
    return [
        hovers("gd", LIMITS["gd"], f"λ_max = 2/η within {TOLERANCE:.0%}, {last}"),
        hovers("polyak", LIMITS["polyak"], f"Polyak: λ_max = (2 + 2β)/η, {last}"),
        hovers("nesterov", LIMITS["nesterov"], f"Nesterov: λ_max = (2 + 2β)/((1 + 2β)η), {last}"),
        *(
            control(hovers(name, 2.0, f"{LABELS[name]}: λ_max = 2/η"))
            for name in ("polyak", "nesterov")
        ),
        hovers("slower", LIMITS["gd"], f"two thirds of the rate η: λ_max = 2/η, {last}"),
        control(hovers("slower", LIMITS["gd"] * 2 / 3, "... λ_max where it was")),
        bound("λ_max is not above 2/η", most, final("gd"), control=(most, final("slower"))),
        bound(
            "quadratics 1 % below each limit: descent to 0; 1 % above it diverges",
            np.full(3, 1e-3),
            sides[:, 0],
            control=(np.full(3, 1e-3), sides[:, 1]),
        ),
        identity(
            "every λ_max is one: ‖Hv - λv‖/λ",
            0.0,
            [metrics[f"{name}_residual"] for name in RUNS],
            tolerance=2e-3,
            scale=1.0,
        ),
    ]


def plot(config, metrics, axes):
    course, losses = axes
    for i, name in enumerate(RUNS):
        label = LABELS.get(name, "at ⅔ of the rate")
        for panel, what in ((course, "sharpness"), (losses, "loss")):
            panel.plot(
                metrics[f"{name}_time"],
                metrics[f"{name}_{what}"][0],
                color=f"C{i}",
                lw=2,
                alpha=0.8,
                label=label,
            )
    course.axhline(config.limit, **THEORY, label="theory: edge of stability")
    course.axhspan(config.limit * (1 - TOLERANCE), config.limit * (1 + TOLERANCE), **BAND)
    course.axhline(1.5 * config.limit, **THEORY)
    course.set(xlabel="η/(1 - β) × steps", ylabel="λ_max of the Hessian, one seed", ylim=(0, None))
    losses.set(xlabel="η/(1 - β) × steps", ylabel="½ mean squared error", yscale="log")
    course.legend()
