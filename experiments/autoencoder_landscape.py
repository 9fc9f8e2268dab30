"""A linear autoencoder has one kind of critical point for each subset of principal directions.

½E‖x - W₂W₁x‖², width p, covariance eigenvalues λ in d dimensions. At its critical points W₂W₁
projects onto the eigenvectors of a subset S of at most p, so that the loss is ½(Σλ - Σ_S λ) and
#{i ∈ S, j ∉ S: λⱼ > λᵢ} + (p - |S|)(d - |S|) eigenvalues of the Hessian are negative. Searches have
to find all, and nothing else. Half of them start at random, from where the rarest kind is found
once in 200 times; so the others start beside the kinds in turn. Controls: the index without its
second term; the loss at the starts; a copy of the loss that is nowhere critical, as it also slopes
by ε + u² along one more parameter u: searches stop where u is 0, and must not report it.
Baldi & Hornik (1989), fact 4; Frye et al. (2019) for the searches.  [S0.52, S0.64]
"""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.verdicts import control, identity
from jaxnn import curvature

PRECISION = "float64"
SLOPE = 1e-3  # ε, the least ‖∇L‖ of the impostor


@dataclass(frozen=True)
class Config:
    variances: tuple[float, ...] = (2.0, 1.7, 1.5, 1.25, 0.9)  # no two subsets have the same sum
    width: int = 3
    starts: int = 1500
    impostor_starts: int = 100
    steps: int = 150


SMOKE = Config(starts=500, impostor_starts=20)
PAPER = Config(starts=20_000, impostor_starts=1000, steps=1000)


def chosen(config, size):
    return itertools.combinations(range(len(config.variances)), size)


def subsets(config):
    """All of them, with the loss, the index and the index without (p - |S|)(d - |S|) of each."""
    variances, rows = np.array(config.variances), []
    for size in range(config.width + 1):
        for inside in chosen(config, size):
            outside = [j for j in range(variances.size) if j not in inside]
            better = sum(variances[j] > variances[i] for i in inside for j in outside)
            free = (config.width - size) * len(outside)
            rows.append((0.5 * variances[outside].sum(), better + free, better))
    return np.array(rows).T


def run(config, key):
    d, keys = len(config.variances), jax.random.split(key, 5)
    basis = jnp.linalg.qr(jax.random.normal(keys[0], (d, d)))[0]
    covariance = (basis * jnp.array(config.variances)) @ basis.T

    def loss(params):
        rest = jnp.eye(d) - params["W2"] @ params["W1"]
        return 0.5 * jnp.sum((rest @ covariance) * rest)

    def impostor(params):
        return loss(params) + SLOPE * params["u"] + params["u"] ** 3 / 3

    def start(key, **more):
        # From half to twice of what a projection needs.
        scale_key, *draws = jax.random.split(key, 3)
        scale = jnp.exp(jax.random.uniform(scale_key, minval=jnp.log(0.2), maxval=jnp.log(1.5)))
        shapes = {"W1": (config.width, d), "W2": (d, config.width)}
        pairs = zip(shapes.items(), draws, strict=True)
        return {name: scale * jax.random.normal(k, shape) for (name, shape), k in pairs} | more

    def start_beside(key, projection):
        draws = zip(jax.random.split(key), projection, strict=True)
        W2, W1 = (W + 0.1 * jax.random.normal(k, W.shape) for k, W in draws)
        return {"W1": W1, "W2": W2}

    def search(objective, params):
        options = {"method": "gradient_norm", "max_steps": config.steps}
        found = curvature.find_critical_point(objective, params, **options)
        return found, curvature.inertia(objective, found.params)

    at_random, beside = jnp.split(jax.random.split(keys[1], config.starts), [config.starts // 2])
    kinds = projections(config, basis)[np.arange(len(beside)) % len(subsets(config)[0])]
    starts = jax.tree.map(
        lambda *parts: jnp.concatenate(parts),
        jax.vmap(start)(at_random),
        jax.vmap(start_beside)(beside, (kinds, kinds.mT)),
    )
    found, signs = jax.jit(jax.vmap(lambda start: search(loss, start)))(starts)
    seeds = jax.random.split(keys[2], config.impostor_starts)
    offsets = jax.random.normal(keys[3], (config.impostor_starts,))
    fooled, _ = jax.jit(jax.vmap(lambda k, u: search(impostor, start(k, u=u))))(seeds, offsets)
    return {
        "start_losses": jax.vmap(loss)(starts),
        "losses": found.value,
        "index": signs.negative,
        "converged": found.converged,
        "gradient_flat": found.gradient_flat,
        "impostor_converged": fooled.converged,
        "impostor_flat": fooled.gradient_flat,
        "impostor_gradient": fooled.gradient_norm,
    }


def projections(config, basis):
    """W₂ of each subset, (kinds, d, width); W₁ is its transpose."""
    insides = [s for size in range(config.width + 1) for s in chosen(config, size)]
    found = np.zeros((len(insides), len(config.variances), config.width))
    for kind, inside in enumerate(insides):
        found[kind, :, : len(inside)] = basis[:, list(inside)]
    return jnp.asarray(found)


def matched(config, losses):
    """The nearest subset to each loss: its number."""
    return np.abs(losses[:, None] - subsets(config)[0]).argmin(1)


def verdict(config, metrics):
    loss, index, wrong_index = subsets(config)
    ok, starts = metrics["converged"].astype(bool), metrics["start_losses"]
    at = matched(config, metrics["losses"])[ok]
    small = (metrics["impostor_gradient"] < 2 * SLOPE).sum()
    reported = metrics["impostor_converged"].sum()
    flat = f"{metrics['impostor_flat'].sum()} searches that end gradient-flat"
    exact = {"tolerance": 1e-10, "scale": 1.0}
    return [
        identity(
            f"kinds of critical points found from {ok.size} starts, of which {ok.sum()} converged",
            *(loss.size, np.unique(at).size),
            **exact,
        ),
        identity("loss = ½(Σλ - Σ_S λ) at each", loss[at], metrics["losses"][ok], **exact),
        identity("negative eigenvalues at each, by the formula", index[at], metrics["index"][ok]),
        control(identity("without (p - |S|)(d - |S|)", wrong_index[at], metrics["index"][ok])),
        identity(f"nowhere critical: reported by {flat}", 0, reported, **exact),
        control(identity("nowhere critical: ‖∇L‖ near its least", 0, small, **exact)),
        control(identity("loss at each start", loss[matched(config, starts)], starts, **exact)),
    ]


def plot(config, metrics, axes):
    loss, index, _ = subsets(config)
    ok = metrics["converged"].astype(bool)
    subset = matched(config, metrics["losses"])
    ranks = np.array([size for size in range(config.width + 1) for _ in chosen(config, size)])
    for rank in range(config.width + 1):
        at = ok & (ranks[subset] == rank)
        axes.plot(
            *(metrics["index"][at], metrics["losses"][at]),
            "o",
            label=f"found with W₂W₁ of rank {rank}, {at.sum()} times",
        )
    axes.plot(index, loss, "o", mfc="none", ms=11, color="black", label="theory: one per subset")
    axes.set(xlabel="negative eigenvalues of the Hessian", ylabel="loss")
    axes.legend(loc="upper left")
