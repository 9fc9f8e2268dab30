"""Descent leaves a strict saddle at rate ln(1 + η|λ|), from every start but a set of measure 0.

With y₀ the part of the start along the falling directions, all of curvature λ < 0, descent leaves
the ball of radius r after ln(r/y₀)/ln(1 + η|λ|) steps: to the step on a quadratic, to a step and
5 % at the origin of a tanh network. A start on the stable manifold stays, so "every start leaves"
is false; in turned coordinates it leaves, as rounding is a perturbation. On the sphere ½xᵀAx has 2n
critical points, and projected descent ends at the lowest two unless it starts in the others' stable
manifolds. From the saddle itself descent leaves with random kicks alone. The other controls expect
the gradient flow's time, and one rate of growth for all η.
Lee, Simchowitz, Jordan & Recht (2016), section 4: a random start, η < 1/L, no kicks. Jin et al.
(2017): with kicks.  [S0.65, S0.52]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.pictures import THEORY
from experiments.verdicts import bound, control, identity
from jaxnn import linalg, nn, optimizers

PANELS = (1, 2)
PRECISION = "float64"
CORRELATION, NET_BAND = 0.99, 0.05
RADIUS, KICK = 0.1, 1e-6
DECADES, SHARES = (-10.0, -3.0), (0.1, 0.9)  # of the starts' distances; η in units of 1/L


@dataclass(frozen=True)
class Config:
    dimension: int = 20
    starts: int = 200
    units: int = 3
    examples: int = 200
    sphere_dimension: int = 8
    sphere_starts: int = 500
    steps: int = 4000


SMOKE = Config(starts=60, units=2, examples=80)
TOUR = Config(starts=100, units=2, examples=80)
PAPER = Config(100, starts=2000, units=8, examples=360, sphere_starts=5000)


def run(config, key):
    turn_key, start_key, net_key, sphere_key, kick_key = jax.random.split(key, 5)
    n = config.dimension
    curvatures = jnp.linspace(0.1, 1.0, n).at[0].set(-0.5)
    turn = rotation(turn_key, n)
    turned = (turn * curvatures[None]) @ turn.T
    slope, hessian = network(config)
    stable = jnp.zeros((1, n)).at[0, 1:].set(0.5 * RADIUS / n**0.5)
    half = jnp.full(1, 0.5)
    cases = {
        "quadratic": (lambda x: turned @ x, turned, *starts(config, start_key, n)),
        "net": (slope, hessian, *starts(config, net_key, len(hessian))),
        "stable": (lambda x: curvatures * x, jnp.diag(curvatures), stable, half),
        "turned": (lambda x: turned @ x, turned, stable @ turn.T, half),
    }
    found = {name: escapes(config, *case) for name, case in cases.items()}
    flat = {
        f"{name}_{part}": value for name, parts in found.items() for part, value in parts.items()
    }
    kicks = jax.random.split(kick_key, config.starts)
    return flat | at_the_saddle(config, slope, hessian, kicks) | sphere(config, sphere_key)


def rotation(key, n):
    return jnp.linalg.qr(jax.random.normal(key, (n, n)))[0]


def starts(config, key, n):
    """Random points near 0, (starts, n), and learning rates in units of 1/L, (starts,)."""
    way_key, size_key, share_key = jax.random.split(key, 3)
    way = jax.random.normal(way_key, (config.starts, n))
    size = 10.0 ** jax.random.uniform(size_key, config.starts, minval=DECADES[0], maxval=DECADES[1])
    share = jax.random.uniform(share_key, config.starts, minval=SHARES[0], maxval=SHARES[1])
    return (size / jnp.linalg.norm(way, axis=1))[:, None] * way, share


def network(config):
    """The gradient of a tanh network's ½ mean squared error, and the Hessian at 0, a saddle.

    With targets of mean 0 each hidden unit has the curvatures ±‖E[yx]‖ there.
    """
    data, half = digits(), config.examples // 2
    x = jnp.concatenate([jnp.asarray(data.x_train[data.y_train == c][:half]) for c in (0, 1)])
    y = jnp.repeat(jnp.array([-1.0, 1.0]), len(x) // 2, total_repeat_length=len(x))
    net = nn.mlp((config.units, 1), activation=nn.tanh())
    flat = linalg.coordinates(net.init(jax.random.key(0), x.shape[1:])[0])
    objective = lambda v: 0.5 * jnp.mean((net.apply(flat.unravel(v), x)[:, 0] - y) ** 2)
    return jax.grad(objective), linalg.hessian(objective, jnp.zeros(flat.size)).to_dense()


def escapes(config, gradient, hessian, points, share):
    """When each start leaves the ball, if it does, and when theory says; the first one's way."""
    values, vectors = jnp.linalg.eigh(hessian)
    falling = vectors[:, values < 0.5 * values[0]]
    goal = jnp.log(RADIUS / jnp.linalg.norm(points @ falling, axis=1))
    rate = share / jnp.max(jnp.abs(values))
    growth = jnp.log1p(-values[0] * rate)

    def leave(x, rate):
        def step(x, _):
            return x - rate * gradient(x), jnp.linalg.norm(x)

        inside = lambda s: (s[1] < config.steps) & (jnp.linalg.norm(s[0]) < RADIUS)
        return jax.lax.while_loop(inside, lambda s: (step(s[0], None)[0], s[1] + 1), (x, 0))

    steps = jax.jit(jax.vmap(leave))(points, rate)[1]
    path = lambda x, _: (x - rate[0] * gradient(x), jnp.linalg.norm(x))
    return {
        "steps": steps,
        "theory": goal / growth,
        "flow": goal / (-values[0] * rate),
        "alike": goal / jnp.mean(growth),
        "path": jax.jit(lambda x: jax.lax.scan(path, x, None, length=config.steps)[1])(points[0]),
        "line": RADIUS * jnp.exp(jnp.minimum(growth[0] * jnp.arange(config.steps) - goal[0], 99.0)),
    }


def at_the_saddle(config, gradient, hessian, keys):
    """Whether descent that starts at the saddle itself leaves the ball, alone and with kicks."""
    rate = 0.5 / jnp.max(jnp.abs(jnp.linalg.eigvalsh(hessian)))

    def leaves(optimizer):
        def step(run):
            updates, state = optimizer.update(gradient(run[0]), run[1], run[0])
            return run[0] + updates, state, run[2] + 1

        inside = lambda run: (run[2] < config.steps) & (jnp.linalg.norm(run[0]) < RADIUS)
        saddle = jnp.zeros(len(hessian))
        end = jax.lax.while_loop(inside, step, (saddle, optimizer.init(saddle), 0))[0]
        return jnp.linalg.norm(end) >= RADIUS

    kicked = lambda key: leaves(
        optimizers.perturbed_gradient_descent(rate, KICK, KICK, config.steps, key=key)
    )
    return {
        "kicked": jax.jit(jax.vmap(kicked))(keys),
        "alone": jax.jit(lambda: leaves(optimizers.gradient_descent(rate)))(),
    }


def sphere(config, key):
    """Critical points of ½xᵀAx on the unit sphere, and 2·½xᵀAx where projected descent ends."""
    turn_key, start_key = jax.random.split(key)
    n = config.sphere_dimension
    values = jnp.linspace(-1.0, 2.0, n)
    turn = rotation(turn_key, n)
    matrix = (turn * values[None]) @ turn.T
    unit = lambda x: x / jnp.linalg.norm(x)
    energy = lambda x: 0.5 * unit(x) @ (matrix @ unit(x))

    def toward(shift, x):
        # Which of ±new the solution has depends on rounding at an eigenvector: keep x's side.
        new = unit(jnp.linalg.solve(matrix - shift * jnp.eye(n), x))
        return jnp.where(jnp.all(jnp.isfinite(new)), jnp.copysign(1.0, new @ x) * new, x)

    def search(shift, x):
        # Newton's method on the sphere, the Rayleigh quotient iteration, ends at any of them. Its
        # basins at both ends of the spectrum hold 1 start in 500, so that its first step is toward
        # the eigenvalues near a given number.
        newton = lambda x, _: (toward(2 * energy(x), x), None)
        return jax.lax.scan(newton, toward(shift, x), None, length=20)[0]

    def ends(matrix, x):
        step = lambda _, x: unit(x - 0.25 * (matrix @ x))
        x = jax.lax.fori_loop(0, config.steps, step, x)
        return x @ (matrix @ x)

    x = jax.vmap(unit)(jax.random.normal(start_key, (config.sphere_starts, n)))
    points = jnp.concatenate([turn.T, -turn.T])
    largest = jnp.linalg.norm(matrix, ord=jnp.inf)
    shifts = jnp.linspace(-largest, largest, config.sphere_starts)
    both_sides = lambda shift, x: jnp.stack([search(shift, x), search(shift, -x)])
    found = jax.jit(jax.vmap(both_sides))(shifts, x).reshape(-1, n)
    near = found @ points.T > 1 - 1e-9
    below = lambda x: jnp.sum(jnp.linalg.eigvalsh(jax.hessian(energy)(x)) < -1e-8)
    return {
        "critical": jnp.array([jnp.sum(jnp.any(near, axis=0)), jnp.sum(~jnp.any(near, axis=1))]),
        "indices": jax.jit(jax.vmap(below))(points),
        "ends": jax.jit(jax.vmap(lambda x: ends(matrix, x)))(x),
        # In eigenvectors' coordinates, where the one along the lowest is 0 and stays so.
        "beside": jax.jit(jax.vmap(lambda x: ends(jnp.diag(values), x)))(x.at[:, 0].set(0.0)),
        "lowest": values[0],
    }


def verdict(config, metrics):
    def within(name, words, share):
        def off(theory):
            predicted = metrics[f"{name}_{theory}"]
            return np.abs(metrics[f"{name}_steps"] - predicted) / (1 + share * predicted)

        claim = f"{name}: |steps - t|{words} ≤ 1, t = ln(r/y₀)/ln(1 + η|λ|)"
        return bound(claim, 1.0, off("theory"), control=(1.0, off("flow")))

    def correlated(name):
        r = lambda theory: np.corrcoef(metrics[f"{name}_steps"], metrics[f"{name}_{theory}"])[0, 1]
        claim = f"{name}: correlation of measured and predicted steps ≥ {CORRELATION}"
        wrong = (CORRELATION, r("alike"))
        return bound(claim, CORRELATION, r("theory"), at_least=True, control=wrong)

    n, left = config.sphere_dimension, lambda name: metrics[f"{name}_steps"] < config.steps
    lowest = np.full(config.sphere_starts, metrics["lowest"])
    names = ("quadratic", "net", "stable")
    return [
        within("quadratic", "", 0.0),
        within("net", f"/(1 + {NET_BAND}·t)", NET_BAND),
        correlated("quadratic"),
        correlated("net"),
        identity(
            "a start on the stable manifold stays", 0.0, metrics["stable_path"][-1], scale=1.0
        ),
        control(identity("every start leaves", 1.0, np.concatenate([left(s) for s in names]))),
        identity("the one on the stable manifold, turned: rounding helps", 1.0, left("turned")),
        identity("from the saddle of the net: leaves with random kicks", 1.0, metrics["kicked"]),
        control(identity("from the saddle of the net: leaves without", 1.0, metrics["alone"])),
        identity("sphere: 2n critical points found, 0 others", [2 * n, 0], metrics["critical"]),
        identity("their indices: 0 to n - 1", np.tile(np.arange(n), 2), metrics["indices"]),
        identity(
            f"descent: {len(lowest)} of {len(lowest)} at the minimum", lowest, metrics["ends"]
        ),
        control(identity("... from saddles' stable manifolds too", lowest, metrics["beside"])),
    ]


def plot(config, metrics, axes):
    counts, paths = axes
    for name, label, marker in (("quadratic", "quadratic", "o"), ("net", "tanh network", "^")):
        measured, predicted = metrics[f"{name}_steps"], metrics[f"{name}_theory"]
        counts.loglog(predicted, measured, marker, ms=4, alpha=0.6, label=label)
    ends = np.array([predicted.min(), metrics["quadratic_theory"].max()])
    counts.plot(ends, ends, **THEORY, label="theory: y = x")
    counts.set(xlabel="ln(r/y₀)/ln(1 + η|λ|)", ylabel="steps until the ball is left")
    time = np.arange(config.steps)
    for i, name in enumerate(("quadratic", "net", "turned", "stable")):
        label = {"net": "tanh network", "turned": "stable, turned"}.get(name, name)
        paths.loglog(time + 1, metrics[f"{name}_path"], color=f"C{i}", lw=3, alpha=0.6, label=label)
        if i < 2:
            style = THEORY | ({"label": "theory: y₀(1 + η|λ|)^t"} if i == 0 else {})
            paths.plot(time + 1, metrics[f"{name}_line"], **style)
    paths.axhline(RADIUS, color="gray", lw=1, label="radius r")
    paths.set(
        xlabel="step + 1", ylabel="distance from the saddle", xlim=(1, 1000), ylim=(1e-18, 10.0)
    )
    for panel in axes:
        panel.legend()
