"""Adversarial training: the game's value is a divergence, and its updates need damping.

Against the best discriminator the value is -ln 4 + 2 JSD(p ‖ q) (Goodfellow et al. 2014, theorem
1). Between two points, simultaneous gradient steps leave the equilibrium by a factor √(1 + η²/4)
each, and with the penalty γ/2 E‖∇D‖², γ < 1, the factor is √(1 + η²/4 - ηγ) (after Mescheder,
Geiger & Nowozin 2018). A generator trained with it covers eight clusters.  [S4.7]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import bound, control, identity
from jaxnn import nn, optimizers
from jaxnn.generative import gan

PRECISION = "float64"
PANELS = (2, 2)
POINTS = 8
CLUSTERS = 8
SHARE = 0.03  # of the samples that every cluster has to get; a fair share is 1/8


@dataclass(frozen=True)
class Config:
    pairs: int = 16
    rates: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    penalty: float = 0.5
    dirac_steps: int = 400
    steps: int = 4000
    hidden: int = 64
    batch_size: int = 128


SMOKE = Config(pairs=4, rates=(0.1, 0.4), dirac_steps=200, steps=3000, batch_size=64)
TOUR = Config(pairs=4, rates=(0.1, 0.4), dirac_steps=200, steps=3000, batch_size=64)
PAPER = Config(pairs=256, steps=40_000, hidden=256)


def best_values(counts):
    """The value of the game on K points: theory, by the best free and the best linear D."""
    p, q = (c / c.sum() for c in counts)
    linear = jnp.stack([jnp.ones(POINTS), jnp.linspace(-1.0, 1.0, POINTS)], axis=1)

    def value(features):
        # The library's loss of one real and one fake logit, averaged over all pairs of points.
        pair_loss = jax.vmap(jax.vmap(gan.discriminator_loss, (None, 0)), (0, None))

        def loss(w):
            d = (features @ w)[:, None]
            return p @ pair_loss(d, d) @ q

        newton = lambda _, w: w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w))
        return -loss(jax.lax.fori_loop(0, 30, newton, jnp.zeros(features.shape[1])))

    return jnp.stack([gan.optimal_value(p, q), value(jnp.eye(POINTS)), value(linear)])


def dirac_path(steps, rate, penalty, start):
    """(θ, ψ) after every step: data at 0, the generator a point θ, the discriminator ψx."""
    descent = gan.Players(*(optimizers.gradient_descent(rate),) * 2)
    generator = lambda theta, z: jnp.broadcast_to(theta, z.shape)
    discriminator = lambda psi, x: x @ psi

    def step(params, **origin):
        networks, data = (generator, discriminator), jnp.zeros((1, 1))
        options = {"latent": 1, "steps": 1, "r1_weight": penalty, "simultaneous": True}
        return gan.fit(*networks, params, data, descent, **options, **origin)

    def advance(run, _):
        run = step(run.params, state=run.state)
        return run, jnp.concatenate(run.params)

    first = step(gan.Players(start[:1], start[1:]), key=jax.random.key(0))
    path = jax.lax.scan(advance, first, length=steps - 1)[1]
    return jnp.concatenate([jnp.stack([start, jnp.concatenate(first.params)]), path])


def dirac(config, start):
    """The paths without and with the penalty, for every rate: (2, rates, steps + 1, 2)."""
    path = jax.vmap(lambda rate, penalty: dirac_path(config.dirac_steps, rate, penalty, start))
    rates = jnp.tile(jnp.array(config.rates), 2)
    penalties = jnp.repeat(jnp.array([0.0, config.penalty]), len(config.rates))
    return np.asarray(jax.jit(path)(rates, penalties)).reshape(2, len(config.rates), -1, 2)


def spectral_radius(path):
    """Of the linear map that takes the first states of a path to the next ones."""
    before, after = path[:2].T, path[1:3].T
    return np.abs(np.linalg.eigvals(after @ np.linalg.inv(before))).max()


def clusters(config, key):
    """Data, and samples of a generator before and after training."""
    data_key, noise_key, g_key, d_key, fit_key, sample_key = jax.random.split(key, 6)
    angles = 2 * jnp.pi * jax.random.randint(data_key, (5000,), 0, CLUSTERS) / CLUSTERS
    centers = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    x = centers + 0.05 * jax.random.normal(noise_key, centers.shape)
    g = nn.mlp((config.hidden, config.hidden, 2))
    d = nn.mlp((config.hidden, config.hidden, 1), activation=nn.leaky_relu(0.2))
    start = gan.Players(g.init(g_key, (4,))[0], d.init(d_key, (2,))[0])
    adam = gan.Players(*(optimizers.adam(3e-3, beta1=0.5),) * 2)
    options = {"latent": 4, "batch_size": config.batch_size, "r1_weight": 0.1}
    run = gan.fit(g.apply, d.apply, start, x, adam, steps=config.steps, key=fit_key, **options)
    z = jax.random.normal(sample_key, (2000, 4))
    return x[:2000], g.apply(start.generator, z), g.apply(run.params.generator, z)


def shares(samples):
    """The share of samples within 0.25 of each cluster's center."""
    angles = 2 * np.pi * np.arange(CLUSTERS) / CLUSTERS
    centers = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.mean(np.linalg.norm(samples[:, None] - centers, axis=-1) < 0.25, axis=0)


def run(config, key):
    counts = np.random.default_rng(0).integers(1, 20, (config.pairs, 2, POINTS))
    values = np.asarray(jax.lax.map(best_values, jnp.asarray(counts, float)))
    report_progress(1, 3)
    near = dirac(config, jnp.array([1e-7, 0.0]))
    far = dirac(config, jnp.array([1.0, 0.0]))
    report_progress(2, 3)
    x, untrained, trained = jax.jit(lambda k: clusters(config, k))(key)
    return {
        "values": values,
        "factors": [[spectral_radius(path) for path in paths] for paths in near],
        "growth": (np.linalg.norm(near[0, :, -1], axis=-1) / 1e-7) ** (1 / config.dirac_steps),
        "far": far,
        "data": x,
        "untrained": untrained,
        "trained": trained,
    }


def predicted_factors(config, rates):
    return np.sqrt(1 + rates**2 / 4 - np.outer([0, config.penalty], rates))


def verdict(config, metrics):
    theory, free, linear = metrics["values"].T
    rates = np.array(config.rates)
    plain, damped = predicted_factors(config, rates)
    left = np.linalg.norm(metrics["far"][:, :, -1], axis=-1)
    return [
        identity("value of the best D = -ln 4 + 2 JSD", theory, free),
        control(identity("value of the best linear D", theory, linear)),
        identity("growth a step = √(1 + η²/4), no penalty", plain, metrics["growth"]),
        identity("factor a step = √(1 + η²/4 - ηγ), R1", damped, metrics["factors"][1]),
        control(identity("factor a step = 1, no penalty", 1.0, metrics["factors"][0])),
        bound(
            "R1 contracts from afar to 1/10; control: no penalty",
            0.1,
            left[1],
            control=(0.1, left[0]),
        ),
        bound(
            f"every cluster gets ≥ {SHARE:.0%} of samples; control: untrained",
            SHARE,
            shares(metrics["trained"]),
            at_least=True,
            control=(SHARE, shares(metrics["untrained"])),
        ),
    ]


def plot(config, metrics, axes):
    value, path, factor, ring = axes.ravel()
    theory, free, linear = metrics["values"].T
    value.plot(theory, free, "o", label="best D")
    value.plot(theory, linear, "X", label="control: best linear D")
    value.axline((theory.mean(), theory.mean()), slope=1, **THEORY, label="theory: equal")
    value.set(xlabel="-ln 4 + 2 JSD(p ‖ q)", ylabel="value of the game")

    labels = ["no penalty", f"R1, γ = {config.penalty:g}"]
    for points, label in zip(metrics["far"][:, -1], labels, strict=True):
        path.plot(*points.T, ".-", linewidth=0.7, markersize=3, label=label)
    path.plot(0, 0, "k+", markersize=12, label="equilibrium")
    path.set(xlabel="generator θ", ylabel="discriminator ψ", aspect="equal")
    path.set_title(f"Dirac-GAN, η = {config.rates[-1]:g}")

    rates = np.linspace(0, max(config.rates) * 1.1, 100)
    for i, label in enumerate(labels):
        factor.plot(config.rates, metrics["factors"][i], "o", label=label)
        theory_line = predicted_factors(config, rates)[i]
        factor.plot(rates, theory_line, **THEORY, label="" if i else "theory")
    factor.set(xlabel="learning rate η", ylabel="growth of ‖(θ, ψ)‖ a step")

    for name, color in (("data", "#b0b0b0"), ("untrained", "#E69F00"), ("trained", "#0072B2")):
        ring.plot(*metrics[name].T, ".", markersize=2, alpha=0.5, color=color, label=name)
    ring.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xlabel="x₁", ylabel="x₂")
    ring.legend(markerscale=5, loc="center")
