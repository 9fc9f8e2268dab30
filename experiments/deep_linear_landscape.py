"""Two linear layers have no bad critical point; from three on, the origin is one that is flat.

½‖W_H···W_1 - A‖² for a random A, with a bottleneck. At depth H = 2 every critical point is a global
minimum, ½ of the squared singular values beyond the bottleneck's width, or a strict saddle. From
H = 3 on there are others: at the origin the whole Hessian is 0. It is no minimum, as along
W_i = t·(a top singular direction) the loss falls by σ₁tᴴ - ½t²ᴴ; second derivatives alone cannot
tell, and `classify` has to call it degenerate. Controls: the claim of depth 2 at depths 3 and 4; a
Hessian of 0 at the origin at depth 2.  Kawaguchi (2016), theorem 2.3.  [S0.64, S0.52]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import control, identity
from jaxnn import curvature

PANELS = (1, 3)
PRECISION = "float64"
GLOBAL = 1e-9  # distance from the least loss that counts as none
TIMES = np.linspace(0.05, 0.5, 10)


@dataclass(frozen=True)
class Config:
    inputs: int = 4
    outputs: int = 3
    width: int = 2
    deeper: tuple[int, ...] = (3, 4)
    starts: int = 400
    steps: int = 150


SMOKE = Config(deeper=(3,), starts=100)
PAPER = Config(inputs=6, outputs=5, width=3, starts=4000, steps=600)


def run(config, key):
    matrix_key, search_key = jax.random.split(key)
    a = jax.random.normal(matrix_key, (config.outputs, config.inputs))
    left, values, right = jnp.linalg.svd(a)
    metrics = {
        "least": 0.5 * jnp.sum(values[config.width :] ** 2),
        "top": values[0],
        "origin_loss": 0.5 * jnp.sum(a**2),
    }
    for depth in (2, *config.deeper):
        report_progress(depth - 2, len(config.deeper) + 1)
        sizes = (config.inputs, *[config.width] * (depth - 1), config.outputs)
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))

        def loss(weights):
            return 0.5 * jnp.sum((jnp.linalg.multi_dot(weights[::-1]) - a) ** 2)

        def end(key, method, shapes=shapes, loss=loss):
            scale_key, *keys = jax.random.split(key, len(shapes) + 1)
            scale = jnp.exp(jax.random.uniform(scale_key, minval=-4.0, maxval=1.0))
            start = [scale * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
            options = {"method": method, "max_steps": config.steps}
            found = curvature.find_critical_point(loss, start, **options)
            return found, curvature.inertia(loss, found.params)

        # One method seeks any critical point, one seeks minima.
        halves = jnp.split(jax.random.split(search_key, config.starts), [config.starts // 2])
        ends = [
            jax.jit(jax.vmap(lambda key, e=end, m=method: e(key, m)))(keys)
            for method, keys in zip(("newton", "saddle_free"), halves, strict=True)
        ]
        found, signs = jax.tree.map(lambda *parts: jnp.concatenate(parts), *ends)
        origin = curvature.inertia(loss, [jnp.zeros(shape) for shape in shapes])
        # The product of these is left[:, 0] right[0], the top singular direction of A.
        units = [jnp.zeros(shape).at[0, 0].set(1.0) for shape in shapes]
        ways = [units[0].at[0].set(right[0]), *units[1:-1], units[-1].at[:, 0].set(left[:, 0])]
        metrics |= {
            f"losses_{depth}": found.value,
            f"lowest_{depth}": signs.eigenvalues[:, 0],
            f"strict_{depth}": signs.negative > 0,
            f"critical_{depth}": found.converged,
            f"origin_eigenvalues_{depth}": origin.eigenvalues,
            f"origin_unclear_{depth}": origin.zero,
            f"fall_{depth}": jax.vmap(lambda t, w=ways, f=loss: f([t * leaf for leaf in w]))(TIMES),
        }
    return metrics


def kinds(metrics, depth):
    """Of the critical points found: which are global minima, strict saddles, neither."""
    at = metrics[f"critical_{depth}"].astype(bool)
    least = metrics[f"losses_{depth}"][at] <= metrics["least"] + GLOBAL
    strict = metrics[f"strict_{depth}"][at].astype(bool)
    return least, strict, ~least & ~strict


def verdict(config, metrics):
    exact = {"tolerance": 1e-10, "scale": 1.0}

    def neither(depth):
        least, strict, others = kinds(metrics, depth)
        counts = f"{least.sum()} global, {strict.sum()} strict saddles"
        return identity(f"depth {depth}: other than these: {counts}", 0, others.sum(), **exact)

    def flat(depth):
        size = np.abs(metrics[f"origin_eigenvalues_{depth}"]).max()
        return identity(f"depth {depth}: largest |eigenvalue| at the origin", 0, size, **exact)

    least, strict, _ = kinds(metrics, 2)
    overlap = identity(
        "depth 2: minima that are strict saddles", 0, (least & strict).sum(), **exact
    )
    claims = [neither(2), overlap, control(flat(2))]
    for depth in config.deeper:
        falls = metrics["top"] * TIMES**depth - 0.5 * TIMES ** (2 * depth)
        unclear, n = (metrics[f"origin_{n}_{depth}"] for n in ("unclear", "eigenvalues"))
        claims += [
            control(neither(depth)),
            flat(depth),
            identity(f"depth {depth}: eigenvalues there that are not clear", n.size, unclear),
            identity(
                f"depth {depth}: L falls by σ₁tᴴ - ½t²ᴴ > 0 along a line from there",
                *(falls, metrics["origin_loss"] - metrics[f"fall_{depth}"]),
                tolerance=1e-12,
            ),
        ]
    return claims


def plot(config, metrics, axes):
    for panel in axes[len(config.deeper) + 1 :]:
        panel.set_visible(False)
    for panel, depth in zip(axes, (2, *config.deeper), strict=False):
        at = metrics[f"critical_{depth}"].astype(bool)
        above = metrics[f"losses_{depth}"][at] - metrics["least"]
        lowest = metrics[f"lowest_{depth}"][at]
        for which, marker, label in zip(
            *(kinds(metrics, depth), "osX", ("global minima", "strict saddles", "neither")),
            strict=True,
        ):
            panel.plot(
                above[which], lowest[which], marker, alpha=0.5, label=f"{which.sum()} {label}"
            )
        panel.axhline(0, **THEORY)
        panel.set(
            title=f"depth {depth}, {at.sum()} of {at.size} searches",
            xlabel="loss above its least",
            ylabel="lowest eigenvalue of the Hessian",
        )
        panel.legend(loc="lower left")
