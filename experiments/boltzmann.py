"""Boltzmann machines: what sampling and mean field estimate is what enumeration gives.

On tiny machines partition function, conditionals and gradients are sums over all states, and the
bias of contrastive divergence falls at least as fast as the second eigenvalue of the Gibbs chain
(χ² contraction of a reversible chain). A belief network with tied weights is the restricted
machine (Hinton, Osindero & Teh 2006). On binarized digits annealed importance sampling agrees
with the 2^16 hidden states (Salakhutdinov & Murray 2008), and the mean-field bound of a deep
machine stays below its likelihood.  [S1.15, S1.16, S1.17, S1.18, S1.19, S1.20]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY, show_images
from experiments.verdicts import bound, control, direction, identity, statistical
from jaxnn import optimizers, tree
from jaxnn.generative import dbm, dbn, partition, rbm, units

PRECISION = "float64"
PANELS = (2, 3)
TINY = (6, 5)


@dataclass(frozen=True)
class Config:
    seeds: int = 8
    gibbs_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    draws: int = 64
    chains_per_draw: int = 4096
    hidden: int = 16
    deep: tuple[int, ...] = (16, 8)
    steps: int = 2000
    annealing_steps: int = 1000
    annealing_chains: int = 100


SMOKE = Config(seeds=2, draws=16, chains_per_draw=2048, hidden=6, deep=(6, 4), steps=150,
               annealing_steps=200, annealing_chains=50)  # fmt: skip
PAPER = Config(seeds=64, draws=256, steps=30_000, annealing_steps=10_000, annealing_chains=500)


def tiny_machine(key):
    W, b, c = jax.random.split(key, 3)
    visible, hidden = TINY
    return {
        "W": jax.random.normal(W, TINY),
        "b": 0.5 * jax.random.normal(b, (visible,)),
        "c": 0.5 * jax.random.normal(c, (hidden,)),
    }


@jax.jit
def library_values(params, data):
    """Of a machine: ln Z, means of hidden given visible units, gradient, p(v) of a tied network."""
    v = units.states(TINY[0])
    log_z = partition.log_partition(params)
    gradient = tree.sub(rbm.statistics(params, data), partition.model_statistics(params))

    def mean_log_likelihood(p):
        return jnp.mean(rbm.log_likelihood(p, data, partition.log_partition(p)))

    tied = dbn.unrolled(params, 3)
    untied = (*tied[:2], {**tied[2], "W": 1.01 * tied[2]["W"]})
    networks = [dbn.log_likelihood(n, v, partition.log_partition(n[-1])) for n in (tied, untied)]
    return {
        "log_partition": log_z,
        "hidden_mean": rbm.hidden_mean(params, v),
        "gradient": ravel_pytree(gradient)[0],
        "derivative": ravel_pytree(jax.grad(mean_log_likelihood)(params))[0],
        "log_likelihood": rbm.log_likelihood(params, v, log_z),
        "tied": networks[0],
        "untied": networks[1],
    }


def enumerated(config, params, data):
    """The same from the joint table in NumPy, with the exact bias of CD-k and its bound."""
    W, b, c = (np.asarray(params[name]) for name in "Wbc")
    v, h = (np.asarray(units.states(n)) for n in TINY)
    table = np.exp((v @ b)[:, None] + h @ c + v @ W @ h.T)
    z = table.sum()
    given_v, given_h, p = table / table.sum(1)[:, None], table / table.sum(0), table.sum(1) / z
    hidden = given_v @ h
    stats = np.concatenate([np.einsum("ni,nj->nij", v, hidden).reshape(len(v), -1), v, hidden], 1)
    chain = given_v @ given_h.T
    root = np.sqrt(p)
    second = np.linalg.eigvalsh(root[:, None] * chain / root)[-2]
    code = np.asarray(data).astype(int) @ 2 ** np.arange(TINY[0])
    start = np.bincount(code, minlength=len(v)) / len(code)
    chi = np.sqrt(np.sum((start - p) ** 2 / p))
    spread = np.sqrt(p @ (stats - p @ stats) ** 2)
    after = [start @ np.linalg.matrix_power(chain, k) for k in config.gibbs_steps]
    return {
        "log_partition": np.log(z),
        "hidden_mean": hidden,
        "bias": np.array([a @ stats - p @ stats for a in after]),
        "bias_bound": np.array([chi * spread * second**k for k in config.gibbs_steps]),
        "false_bound": np.array([chi * spread * second ** (2 * k) for k in config.gibbs_steps]),
        "contrastive": start @ stats - after[0] @ stats,
        "true_gradient": start @ stats - p @ stats,
    }


def trained(config, key, x, x_test):
    """A restricted machine on the digits: likelihoods of it and of independent pixels, Z, AIS."""
    init_key, fit_key = jax.random.split(key)
    start = rbm.init(init_key, 64, config.hidden, mean=x.mean(0))
    adam = optimizers.adam(2e-3)
    fit = rbm.fit(start, x, adam, steps=config.steps, batch_size=100, key=fit_key, chains=100)
    log_z = partition.log_partition(fit.params)
    independent = rbm.log_likelihood(
        {**start, "W": 0 * start["W"]},
        x_test,
        jnp.sum(jax.nn.softplus(start["b"])) + config.hidden * jnp.log(2.0),
    )
    score = jnp.mean(rbm.log_likelihood(fit.params, x_test, log_z))
    return fit.params, fit.state.chains, log_z, score, jnp.mean(independent)


def deep_machine(config, key, x, x_test):
    init_key, fit_key = jax.random.split(key)
    start = dbm.init(init_key, (64, *config.deep), mean=x.mean(0), weight_std=0.05)
    # Strong from the start: weak ones stay so, and the hidden layers would be independent.
    start["W"] = (start["W"][0], *(20.0 * W for W in start["W"][1:]))
    options = {"steps": config.steps, "batch_size": 100, "key": fit_key}
    fit = dbm.fit(start, x, optimizers.adam(2e-3), **options)
    log_z = partition.log_partition(dbm.as_rbm(fit.params))
    means = dbm.mean_field(fit.params, x_test).means
    entropy = sum(
        jnp.sum(jax.scipy.special.entr(m) + jax.scipy.special.entr(1 - m), axis=1) for m in means
    )
    below = dbm.bound(fit.params, x_test, means, log_z)
    return {
        "deep_bound": below,
        "deep_false_bound": below + (1 / np.log(2) - 1) * entropy,  # its entropy in bits
        "deep_log_likelihood": dbm.log_likelihood(fit.params, x_test, log_z),
        "deep_samples": dbm.layer_mean(fit.params, fit.state.chains, 0)[:30],
    }


def run(config, key):
    tiny_key, draw_key, train_key, anneal_key, deep_key = jax.random.split(key, 5)
    tiny = jax.jit(tiny_machine)
    data = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, TINY[0])).astype(float))
    machines = [tiny(k) for k in jax.random.split(tiny_key, config.seeds)]
    ours = [library_values(m, data) for m in machines]
    exact = [enumerated(config, m, data) for m in machines]
    repeated = jnp.repeat(data, config.chains_per_draw // 4, axis=0)
    draw = jax.jit(lambda k: ravel_pytree(rbm.contrastive_divergence(k, machines[0], repeated))[0])
    # ravel_pytree goes by name, W, b, c, as the table's statistics do.
    draws = np.stack([draw(k) for k in jax.random.split(draw_key, config.draws)])
    toward = exact[0]["contrastive"] / np.linalg.norm(exact[0]["contrastive"])
    report_progress(1, 4)

    found = digits()
    x, x_test = (jnp.asarray(a > 0.5, float) for a in (found.x_train, found.x_test))
    fit = jax.jit(trained, static_argnums=0)
    fits = [fit(config, k, x, x_test) for k in jax.random.split(train_key, config.seeds)]
    report_progress(2, 4)
    params, chains, log_z, _, _ = fits[0]
    betas = jnp.linspace(0.0, 1.0, config.annealing_steps + 1)
    options = {
        "chains": config.annealing_chains,
        "base": rbm.init(key, 64, 1, mean=x.mean(0))["b"],
    }
    keys = jax.random.split(anneal_key, 8)

    @jax.jit
    def annealing(betas):
        estimate = lambda k: partition.annealed_log_partition(k, params, betas=betas, **options)
        return jax.lax.map(estimate, keys)

    annealed, false = annealing(betas), annealing(jnp.floor(betas))
    report_progress(3, 4)
    return {
        **{f"tiny_{name}": np.stack([o[name] for o in ours]) for name in ours[0]},
        **{f"exact_{name}": np.stack([e[name] for e in exact]) for name in exact[0]},
        "cd_along": draws @ toward,
        "cd_exact": exact[0]["contrastive"] @ toward,
        "cd_unbiased": exact[0]["true_gradient"] @ toward,
        "log_partition": log_z,
        "annealed": annealed.log_partition,
        "annealed_error": annealed.standard_error,
        "log_weights": annealed.log_weights,
        "jumped": false.log_partition,
        "jumped_error": false.standard_error,
        "test": [score for _, _, _, score, _ in fits],
        "independent": [score for _, _, _, _, score in fits],
        "data": x[:30],
        "samples": rbm.visible_mean(params, rbm.hidden_mean(params, chains[:30])),
        "weights": params["W"].T,
        **jax.jit(deep_machine, static_argnums=0)(config, deep_key, x, x_test),
    }


def verdict(config, metrics):
    m = metrics
    deviation = np.abs(m["annealed"] - m["log_partition"]) / m["annealed_error"]
    false = np.abs(m["jumped"] - m["log_partition"]) / m["jumped_error"]
    bias, rounding = np.abs(m["exact_bias"]), 1e-12
    sizes = np.linalg.norm(m["exact_bias"], axis=-1)
    weights = np.exp(m["log_weights"] - m["log_partition"]).ravel()
    return [
        identity(
            "ln Z = sum over the joint table", m["exact_log_partition"], m["tiny_log_partition"]
        ),
        identity(
            "p(h | v) = that of the joint table", m["exact_hidden_mean"], m["tiny_hidden_mean"]
        ),
        identity("data - model statistics = ∇ ln p", m["tiny_derivative"], m["tiny_gradient"]),
        identity("tied belief network = RBM, ln p(v)", m["tiny_log_likelihood"], m["tiny_tied"]),
        control(identity("untied network = RBM", m["tiny_log_likelihood"], m["tiny_untied"])),
        bound(
            "bias of CD-k ≤ √χ²·sd·λ₂^k; control: λ₂^2k",
            m["exact_bias_bound"] + rounding,
            bias,
            control=(m["exact_false_bound"] + rounding, bias),
            tolerance=1e-9,
        ),
        direction("bias of CD falls from first to last k", sizes[:, 0], sizes[:, -1]),
        statistical("CD-1 drawn = its exact mean", m["cd_exact"].item(), m["cd_along"]),
        control(statistical("CD-1 = gradient", m["cd_unbiased"].item(), m["cd_along"])),
        statistical("annealed E w = Z, digits", 1.0, weights),
        bound("annealed ln Z within 4 SE; control: one jump", 4.0, deviation, control=(4.0, false)),
        direction("RBM beats independent pixels on test digits", m["test"], m["independent"]),
        bound(
            "mean-field bound ≤ ln p(v); control: entropy in bits",
            m["deep_log_likelihood"],
            m["deep_bound"],
            control=(m["deep_log_likelihood"], m["deep_false_bound"]),
        ),
    ]


def plot(config, metrics, axes):
    m = metrics
    bias, annealing, deep, *pictures = axes.ravel()
    sizes = np.linalg.norm(m["exact_bias"], axis=-1)
    limits = np.linalg.norm(m["exact_bias_bound"], axis=-1)
    for i, (size, limit) in enumerate(zip(sizes, limits, strict=True)):
        bias.plot(config.gibbs_steps, size, "o-", color="#0072B2", alpha=0.5,
                  label="" if i else "exact bias, a machine each")  # fmt: skip
        bias.plot(config.gibbs_steps, limit, **{**THEORY, "linewidth": 0.8}, alpha=0.6,
                  label="" if i else "theory: its bound, ∝ λ₂^k")  # fmt: skip
    bias.set(xscale="log", yscale="log", xlabel="Gibbs steps k", ylabel="‖bias of CD-k‖")
    bias.set_xticks(config.gibbs_steps, config.gibbs_steps)
    bias.minorticks_off()
    bias.set_ylim(bottom=max(1e-12, sizes.min() / 3))

    runs = np.arange(1, len(m["annealed"]) + 1)
    exact = m["log_partition"]
    annealing.errorbar(runs, m["annealed"] - exact, 4 * m["annealed_error"], fmt="o", capsize=3,
                       label="annealed ± 4 SE")  # fmt: skip
    annealing.errorbar(runs + 0.3, m["jumped"] - exact, 4 * m["jumped_error"], fmt="X", capsize=3,
                       label="control: one jump from β = 0 to 1")  # fmt: skip
    annealing.axhline(0, **THEORY, label="enumeration")
    annealing.set(xlabel="run", ylabel="ln Z less its exact value", xticks=runs)
    annealing.set_ylim(top=annealing.get_ylim()[1] * 1.7)  # room for the legend
    annealing.legend(loc="upper left")

    order = np.argsort(m["deep_log_likelihood"])
    gap = m["deep_log_likelihood"] - m["deep_bound"]
    false = m["deep_log_likelihood"] - m["deep_false_bound"]
    rank = np.arange(len(order))
    deep.plot(rank, gap[order], ".", label="ln p(v) - mean-field bound")
    deep.plot(rank, false[order], ".", markersize=3, label="control: entropy in bits")
    deep.axhline(0, **THEORY, label="theory: ≥ 0")
    deep.set(xlabel="test digit, by ln p(v)", ylabel="gap (nats)")
    deep.set_yscale("symlog", linthresh=0.01)
    deep.legend(loc="center right")

    titles = ["digits, binarized", "samples of the RBM (PCD chains)", "weights of its hidden units"]
    names = ["data", "samples", "weights"]
    for panel, title, name in zip(pictures, titles, names, strict=True):
        columns = 4 if name == "weights" else 6
        show_images(panel, m[name].reshape(-1, 8, 8), columns, diverging=name == "weights")
        panel.set_title(title)
