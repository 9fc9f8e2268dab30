"""Splitting a hidden unit turns a critical point into a line of critical points.

f(x) = Σ_h v_h tanh(w_h·x). Replace a unit (w, v) of a critical point by two, (w, λv) and
(w, (1-λ)v): the loss and its zero gradient stay for every λ, and the Hessian of the wider network
is zero along the line. Moving the two apart, by (1-λ)δ and -λδ, has the curvature λ(1-λ) δᵀBδ with
B = v E[∂ℓ/∂f tanh''(w·x) x xᵀ], so the index is the old one and the number of negative eigenvalues
of λ(1-λ)B: where this is positive definite, a minimum stays a minimum that is not strict, and
elsewhere it becomes a saddle. Output weights that add up to 1.1 v are the control.
Fukumizu & Amari (2000), sections 3 and 4.  [S0.64, S0.52]
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import report_progress
from experiments.pictures import BAND, THEORY
from experiments.verdicts import control, identity
from jaxnn.losses import half_squared_error

PRECISION, PANELS = "float64", (1, 2)
ZERO, INDICES = 1e-10, 3  # of the largest eigenvalue; indices 0, 1, 2 are looked for


@dataclass(frozen=True)
class Config:
    problems: int = 6
    starts: int = 100
    steps: int = 300
    splits: int = 24
    hidden: int = 2
    inputs: int = 2
    examples: int = 30


SMOKE = Config(problems=3, starts=60)
PAPER = Config(problems=64, starts=1000, steps=1000, hidden=3, inputs=3, examples=60)


def loss(units, x, y):
    """Of a network whose rows are its units, (w, v)."""
    return jnp.mean(half_squared_error(jnp.tanh(x @ units[:, :-1].T) @ units[:, -1], y))


def hessian(units, x, y):
    return jax.hessian(loss)(units, x, y).reshape(units.size, units.size)


def problem(config, key):
    """Inputs, and what a network of five units and noise make of them."""
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], (config.examples, config.inputs))
    teacher = jnp.tanh(1.5 * x @ jax.random.normal(keys[1], (config.inputs, 5)))
    noise = 0.3 * jax.random.normal(keys[2], (config.examples,))
    return x, teacher @ jax.random.normal(keys[3], (5,)) + noise


@functools.partial(jax.jit, static_argnums=0)
def search(config, key, x, y):
    """Ends of Newton's method with |H|, upward along the lowest eigenvectors: 0, 1 or 2 of them."""
    starts = jax.random.normal(key, (config.starts, config.hidden, config.inputs + 1))

    def end(units, index):
        signs = jnp.where(jnp.arange(units.size) < index, -1.0, 1.0)

        def step(units, _):
            values, vectors = jnp.linalg.eigh(hessian(units, x, y))
            gradient = jax.grad(loss)(units, x, y).ravel()
            move = vectors @ (signs * (vectors.T @ gradient) / jnp.maximum(jnp.abs(values), 1e-8))
            move = move / jnp.maximum(1.0, jnp.linalg.norm(move) / 0.3)
            return units - move.reshape(units.shape), None

        units = jax.lax.scan(step, units, None, length=config.steps)[0]
        slope = jnp.linalg.norm(jax.grad(loss)(units, x, y))
        return units, loss(units, x, y), slope, jnp.linalg.eigvalsh(hessian(units, x, y))

    over_indices = jax.vmap(end, (None, 0))
    return jax.vmap(over_indices, (0, None))(starts, jnp.arange(INDICES))


def critical_points(config, key, x, y):
    """Nondegenerate, with no unit that does nothing; one of those that are equal up to symmetry."""
    found = jax.tree.map(
        lambda a: np.asarray(a).reshape(-1, *a.shape[2:]), search(config, key, x, y)
    )
    units, values, slopes, eigenvalues = found
    sizes = np.abs(eigenvalues)
    good = (slopes <= 1e-10) & (sizes.min(1) > 1e-5 * sizes.max(1))
    good &= (np.abs(units[..., -1]).min(1) > 0.05) & (np.abs(units).max((1, 2)) < 50)
    kept = np.unique(values[good].round(8), return_index=True)[1]
    return units[good][kept], (eigenvalues[good][kept] < 0).sum(1)


@jax.jit
def split(units, x, y, h, share):
    """What there is to know of the wider network whose unit h is split into λ and 1 - λ."""
    w, v = units[h, :-1], units[h, -1]
    activation = jnp.tanh(x @ w)
    residual = jnp.tanh(x @ units[:, :-1].T) @ units[:, -1] - y
    second = residual * -2.0 * activation * (1.0 - activation**2)
    B = v * (x.T * second) @ x / len(y)
    values, vectors = jnp.linalg.eigh(B)

    def wider(total):
        first, last = units.at[h, -1].set(share * v), units[h].at[-1].set((total - share) * v)
        return jnp.vstack([first, last])

    wide = wider(1.0)
    H = hessian(wide, x, y)
    embed = lambda a, b: jnp.zeros_like(wide).at[h].set(a).at[-1].set(b).ravel()
    output = jnp.zeros_like(units[h]).at[-1].set(0.5**0.5)
    apart = lambda d: embed(jnp.append((1 - share) * d, 0.0), jnp.append(-share * d, 0.0))
    moves = jax.vmap(apart)(vectors.T)
    eigenvalues = jnp.linalg.eigvalsh(H)
    zero = ZERO * jnp.abs(eigenvalues).max()
    slope = lambda total: jnp.linalg.norm(jax.grad(loss)(wider(total), x, y))
    return {
        "gradient": slope(1.0),
        "gradient_control": slope(1.1),
        "loss_ratio": loss(wide, x, y) / loss(units, x, y),
        "flatness": jnp.linalg.norm(H @ embed(output, -output)) / jnp.linalg.norm(H),
        "curvature": jnp.einsum("ki,ij,kj->k", moves, H, moves),
        "curvature_theory": share * (1 - share) * values,
        "negative": jnp.sum(eigenvalues < -zero),
        "negative_theory": jnp.sum(share * (1 - share) * values < 0),
        "zeros": jnp.sum(jnp.abs(eigenvalues) <= zero),
    }


def shares(config):
    """λ on both sides of [0, 1] and inside, without the ends for an even number of them."""
    return -1.0 + 3.0 * (np.arange(config.splits) + 0.5) / config.splits


def run(config, key):
    rows, indices = [], []
    along = jax.vmap(split, (None, None, None, None, 0))
    for i in range(config.problems):
        report_progress(i, config.problems)
        problem_key, start_key = jax.random.split(jax.random.fold_in(key, i))
        x, y = problem(config, problem_key)
        for units, index in zip(*critical_points(config, start_key, x, y), strict=True):
            for h in range(config.hidden):
                rows.append(along(units, x, y, h, jnp.asarray(shares(config))))
                indices.append(index)
    metrics = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    return metrics | {"index": np.array(indices)}


def verdict(config, metrics):
    curvature, index = metrics["curvature_theory"], metrics["index"][:, None]
    constant = np.broadcast_to(index, metrics["negative"].shape)
    zero = lambda claim, values: identity(claim, 0, values, scale=1.0)
    return [
        zero("‖∇L‖ = 0 on the line, weights λ and 1 - λ", metrics["gradient"]),
        control(zero("‖∇L‖ = 0, weights λ and 1.1 - λ", metrics["gradient_control"].min())),
        identity("loss on the line / loss of the narrower net = 1", 1, metrics["loss_ratio"]),
        zero("‖Hu‖/‖H‖ = 0 for u along the line", metrics["flatness"]),
        identity("curvature of a split = λ(1-λ) δᵀBδ", curvature, metrics["curvature"]),
        identity("zero eigenvalues of the Hessian = 1", 1, metrics["zeros"]),
        identity(
            "index = index before + negative eigenvalues of λ(1-λ)B",
            index + metrics["negative_theory"],
            metrics["negative"],
        ),
        control(identity("index = index before", constant, metrics["negative"])),
    ]


def plot(config, metrics, axes):
    gradients, splits = axes
    share = shares(config)
    gradients.axhspan(1e-19, 1e-10, **BAND, label="theory: 0, to rounding (1e-10)")
    for name, label in (("gradient", "weights λ, 1 - λ"), ("gradient_control", "λ, 1.1 - λ")):
        values = metrics[name]
        (line,) = gradients.semilogy(share, np.median(values, 0), "o", label=label)
        gradients.fill_between(
            share, values.min(0), values.max(0), color=line.get_color(), alpha=0.25
        )
    gradients.set(ylabel="‖∇L‖, median and range over lines", ylim=(1e-19, 10))
    gradients.legend(loc="center right")
    # Of each kind of B the line of lowest index: of a minimum, where there is one.
    B = metrics["curvature_theory"] / (share * (1 - share))[:, None]
    same_sign = np.ptp(np.sign(B[:, 0]), axis=1) == 0
    for i, (name, kind) in enumerate({"definite": same_sign, "indefinite": ~same_sign}.items()):
        for line in np.flatnonzero(kind)[np.argsort(metrics["index"][kind])][:1]:
            scale = np.abs(B[line]).max()
            stays = metrics["negative"][line] == 0
            for marked, fill in ((stays, f"C{i}"), (~stays, "white")):
                points = np.where(marked[:, None], metrics["curvature"][line] / scale, np.nan)
                splits.plot(share, points, "os"[i], color=f"C{i}", mfc=fill)
            splits.plot([], [], "os"[i], color=f"C{i}", label=f"B {name}")
            splits.plot(share, metrics["curvature_theory"][line] / scale, **THEORY)
    splits.plot([], [], **THEORY, label="theory: λ(1-λ) δᵀBδ")
    splits.set(ylabel="curvature of a split / ‖B‖", title="filled: minima, open: saddles")
    splits.legend()
    for panel in axes:
        panel.set_xlabel("share λ of the first half")
