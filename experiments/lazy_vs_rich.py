"""A large output scale makes a network lazy: its kernel stays, and it is linear; a small one not.

The network α(f_θ - f_θ₀), trained by gradient descent at a rate ~ 1/α² so that α alone changes how
far parameters move: by 1/α of what they are. So does the kernel, and so do the outputs against
those of the linearized network. Width, data and start stay the same. The unscaled distance that
outputs move is the control: it does not depend on α.  Chizat, Oyallon & Bach (2019), theorem 2.4.
[S0.57, S0.66]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import control, exponent
from jaxnn import kernels, nn

BAND = 0.12
NAMES = ("parameters", "kernel", "outputs")


@dataclass(frozen=True)
class Config:
    scales: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0, 64.0)
    width: int = 128
    seeds: int = 16
    examples: int = 24
    steps: int = 300


SMOKE = Config(scales=(4.0, 16.0, 64.0), width=64, seeds=8, examples=12, steps=60)
PAPER = Config(scales=(2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0), width=512, seeds=64, steps=2000)


def run(config, key):
    found = digits()
    pair = found.y_train < 2
    x = jnp.asarray(found.x_train[pair], jnp.float32)[: 2 * config.examples]
    y = jnp.asarray(2.0 * found.y_train[pair] - 1.0, jnp.float32)[: config.examples, None]
    x, new = x[: config.examples], x[config.examples :]
    net = nn.mlp(
        (config.width, config.width, 1), activation=nn.tanh(), parametrization="ntk", weight_std=1.5
    )

    def changes(key, scale):
        """Relative changes of parameters, kernel and test outputs of one network by training."""
        start, _ = net.init(key, x.shape[1:])
        f = lambda p, x: scale * (net.apply(p, x) - net.apply(start, x))
        theta = kernels.ntk(f, start, x)
        rate = 0.5 * kernels.max_learning_rate(theta)
        gradient = jax.grad(lambda p: 0.5 * jnp.sum((f(p, x) - y) ** 2))
        step = lambda _, p: jax.tree.map(lambda p, g: p - rate * g, p, gradient(p))
        end = jax.lax.fori_loop(0, config.steps, step, start)
        linear = kernels.gradient_descent(
            *(theta, y, config.steps), learning_rate=rate, cross=kernels.ntk(f, start, new, x)
        ).test
        flat = lambda p: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(p)])
        apart = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
        return {
            "parameters": apart(flat(end), flat(start)),
            "kernel": apart(kernels.ntk(f, end, x), theta),
            "outputs": apart(f(end, new), linear),
            "moved": jnp.linalg.norm(f(end, new)),
        }

    measured = jax.jit(lambda keys, scale: jax.lax.map(lambda k: changes(k, scale), keys))
    keys, columns = jax.random.split(key, config.seeds), []
    for done, scale in enumerate(config.scales):
        report_progress(done, len(config.scales))
        columns.append(measured(keys, scale))
    return {name: np.stack([c[name] for c in columns], axis=1) for name in columns[0]}


def verdict(config, metrics):
    def falls(name, claim):
        return exponent(claim, -1.0, config.scales, metrics[name], band=BAND)

    return [
        *(falls(name, f"relative change of the {name} ~ 1/α") for name in NAMES),
        control(falls("moved", "distance that test outputs move ~ 1/α")),
    ]


def plot(config, metrics, axes):
    scales = np.array(config.scales)
    for i, name in enumerate(NAMES):
        values = metrics[name]
        axes.loglog(scales, values.mean(0), "os^"[i], label=f"{name}, mean of seeds")
        axes.fill_between(scales, values.min(0), values.max(0), alpha=0.2)
        style = THEORY | ({"label": "theory: 1/α"} if i == 0 else {})
        axes.plot(scales, values.mean(0)[-1] * scales[-1] / scales, **style)
    axes.set_xticks(scales, [f"{s:g}" for s in scales])
    axes.minorticks_off()
    axes.set(xlabel="output scale α", ylabel="relative change by training")
    axes.legend()
