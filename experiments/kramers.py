"""Noise lifts descent over a barrier ΔU after a time whose logarithm grows as ΔU/T.

Stochastic gradient descent in an asymmetric double well. A batch of b is drawn with replacement
from two examples, with the losses U(x) + sx and U(x) - sx, and the learning rate is η: the
temperature is T = ηs²/2b. The mean time from one minimum to the other tends to
2π/√(U''(minimum)·|U''(saddle)|)·e^{ΔU/T} as η → 0 and T → 0; at T > 0 it is a double integral. A
walker that arrives is put back, so that time per arrival is the mean time. The controls expect the
other well's barrier, half the time (that to the saddle), and escapes without noise.
Kramers (1940), large viscosity; Gardiner (2009), section 5.2.  [S3.11, S0.65]
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import bound, control, exponent, identity

PANELS = (1, 2)
BATCH = 32  # one random bit an example
STIFFNESS, SADDLE = 4.0, 0.1  # U'(x) = 4(x + 1)(x - 0.1)(x - 1)
MINIMA = np.array([-1.0, 1.0])
SLOPE_BAND, TIME_BAND = 0.10, 0.15
ASYMPTOTE_BAND = 0.25  # at ΔU/T = 7 the double integral is 9 % above its asymptote


@dataclass(frozen=True)
class Config:
    barriers: tuple[float, ...] = (4.0, 4.75, 5.5, 6.25, 7.0)  # ΔU/T
    learning_rate: float = 0.005
    runs: int = 16
    walkers: int = 64
    escapes: float = 96.0  # expected in a run


SMOKE = Config(barriers=(4.0, 5.5, 7.0), escapes=64.0)
TOUR = Config(barriers=(4.0, 5.5, 7.0), escapes=64.0)
PAPER = Config(barriers=(4.0, 5.0, 6.0, 7.0, 8.0, 9.0), learning_rate=0.002, runs=64, walkers=1024)


def potential(x):
    return STIFFNESS * (x**4 / 4 - SADDLE * x**3 / 3 - x**2 / 2 + SADDLE * x)


def curvature(x):
    return STIFFNESS * (3 * x**2 - 2 * SADDLE * x - 1)


HEIGHTS = (potential(SADDLE) - potential(MINIMA)).tolist()
PREFACTORS = 2 * np.pi / np.sqrt(curvature(MINIMA) * -curvature(SADDLE))


def run(config, key):
    eta, shape = config.learning_rate, (config.runs, config.walkers)

    @partial(jax.jit, static_argnums=1)
    def arrivals(key, well, noise, steps):
        """From one minimum to the other within so many steps, by run, (runs,)."""
        start, goal = MINIMA[well], MINIMA[1 - well]

        def step(i, state):
            x, count = state
            bits = jax.random.bits(jax.random.fold_in(key, i), shape, jnp.uint32)
            ones = jax.lax.population_count(bits).astype(jnp.float32)
            slope = STIFFNESS * (x - start) * (x - SADDLE) * (x - goal)
            x = x - eta * (slope + noise * (2.0 * ones / BATCH - 1.0))
            arrived = (x - goal) * np.sign(goal) >= 0
            return jnp.where(arrived, start, x), count + jnp.sum(arrived, axis=1)

        walkers = jnp.full(shape, start, jnp.float32)
        return jax.lax.fori_loop(0, steps, step, (walkers, jnp.zeros(config.runs, int)))[1]

    times, still, exact = [], [], []
    for well in (0, 1):
        for i, barrier in enumerate(config.barriers):
            report_progress(well * len(config.barriers) + i, 2 * len(config.barriers))
            temperature = HEIGHTS[well] / barrier
            expected = PREFACTORS[well] * np.exp(barrier)
            steps = int(config.escapes * expected / (eta * config.walkers)) + 1
            noise = np.float32(np.sqrt(2 * BATCH * temperature / eta))
            here = jax.random.fold_in(jax.random.fold_in(key, well), i)
            counts = np.asarray(arrivals(here, well, noise, steps))
            if barrier == max(config.barriers):
                still.append(arrivals(here, well, np.float32(0.0), steps))
            times.append(steps * eta * config.walkers / np.maximum(counts, 1))
            exact.append(mean_time(well, temperature))
    points = (2, len(config.barriers))
    return {
        "time": np.reshape(times, (*points, config.runs)),
        "exact": np.reshape(exact, points),
        "still": np.stack(still),
    }


def mean_time(well, temperature):
    """T⁻¹ ∫_start^goal e^{U(y)/T} ∫_{-∞}^y e^{-U(z)/T} dz dy, with distances taken from the start.

    The trapezoidal rule; beyond 1.5 behind the minimum there is no weight.
    """
    start = MINIMA[well]
    x, width = np.linspace(-1.5, 2.0, 35_001, retstep=True)
    energy = (potential(start - np.sign(start) * x) - potential(start)) / temperature
    weight = np.exp(-energy)
    below = width * (np.cumsum(weight) - weight / 2)
    ahead = x >= -width / 2
    return np.trapezoid((np.exp(energy) * below)[ahead], dx=width) / temperature


def verdict(config, metrics):
    inverse = np.array(config.barriers)[None] / np.array(HEIGHTS)[:, None]  # 1/T
    means = metrics["time"].mean(2)
    off = lambda predicted: np.abs(means / predicted - 1).max(1)

    def slope(well, predicted, claim):
        times, height = metrics["time"][well].T, HEIGHTS[predicted]
        return exponent(claim, height, np.exp(inverse[well]), times, band=SLOPE_BAND * height)

    names = ("deep", "shallow")
    return [
        *(slope(i, i, f"slope of ln τ against 1/T = ΔU, {names[i]} well") for i in (0, 1)),
        *(control(slope(i, 1 - i, f"... = the other ΔU, {names[i]} well")) for i in (0, 1)),
        bound(
            f"|τ/the double integral - 1| ≤ {TIME_BAND}, both wells, worst temperature",
            TIME_BAND,
            off(metrics["exact"]),
            control=(TIME_BAND, off(metrics["exact"] / 2)),
        ),
        identity(
            f"τ = 2π/√(U''|U''|)·e^{{ΔU/T}} at the lowest T within {ASYMPTOTE_BAND}",
            np.ones(2),
            means[:, -1] / (PREFACTORS * np.exp(config.barriers[-1])),
            tolerance=ASYMPTOTE_BAND,
        ),
        control(identity("some walker escapes without noise", 1.0, np.mean(metrics["still"] > 0))),
    ]


def plot(config, metrics, axes):
    barriers, (arrhenius, ratio) = np.array(config.barriers), axes
    fine = np.linspace(barriers[0] - 0.3, barriers[-1] + 0.3)
    for well, name in enumerate(("deep", "shallow")):
        times, height = metrics["time"][well], HEIGHTS[well]
        error = 2 * times.std(1, ddof=1) / config.runs**0.5
        kramers = PREFACTORS[well] * np.exp(barriers)
        label = f"{name} well, ΔU = {height:.2f}"
        arrhenius.semilogy(barriers / height, times.mean(1), "os"[well], label=label)
        style = THEORY | ({"label": "theory: Kramers (1940)"} if well == 0 else {})
        arrhenius.plot(fine / height, PREFACTORS[well] * np.exp(fine), **style)
        ratio.errorbar(barriers, times.mean(1) / kramers, error / kramers, fmt="os"[well])
        style = {"color": f"C{well}", "linestyle": ":", "lw": 2}
        ratio.plot(barriers, metrics["exact"][well] / kramers, **style, label=f"exact, {name} well")
    arrhenius.set(xlabel="1/T", ylabel="mean time τ to the other minimum")
    ratio.axhline(1.0, **THEORY, label="theory: Kramers (1940)")
    ratio.set(xlabel="ΔU/T", ylabel="τ/Kramers' time, ± 2 SE", ylim=(0.85, 1.4))
    for panel in axes:
        panel.legend()
