"""The tangent kernel and the Gauss-Newton matrix have the same nonzero eigenvalues.

With the Jacobian J of N·K outputs by P parameters, J Jᵀ is the kernel and Jᵀ J the Gauss-Newton
matrix of the squared error; the larger of the two has |P - N·K| more zeros. Of a loss with Hessian
H in the outputs it is Jᵀ H J and H^½ J Jᵀ H^½. The Hessian of the loss shares the spectrum where
the network interpolates, as the residuals weigh what it has besides; away from there, as a control,
it does not, nor does the kernel of other data.
Jacot, Gabriel & Hongler (2018), section 4; Schraudolph (2002), section 3.  [S0.57, S0.52]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.harness import report_progress
from experiments.pictures import THEORY
from experiments.verdicts import control, identity
from jaxnn import curvature, kernels, linalg, losses, nn

PRECISION, PANELS = "float64", (1, 2)
ZERO = 1e-13  # of the largest eigenvalue: what rounding makes of a zero


@dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (4, 10, 16)
    depths: tuple[int, ...] = (1, 2)  # hidden layers
    examples: int = 32
    pixels: int = 16


SMOKE = Config(widths=(4, 16), depths=(1,), examples=16)
TOUR = Config(widths=(4, 16), depths=(1,), examples=16)
PAPER = Config(widths=(4, 10, 16, 32), depths=(1, 2, 3, 4), examples=64)


def nets(config):
    return [(width, depth) for depth in config.depths for width in config.widths]


def data(config):
    """Two disjoint sets of digits, of the pixels that vary most: a dead one has no gradient."""
    found = digits()
    pixels = np.argsort(-found.x_train.var(axis=0))[: config.pixels]
    x = jnp.asarray(found.x_train[: 2 * config.examples, pixels])
    return x[: config.examples], x[config.examples :], found.y_train[: config.examples]


def spectrum(matrix):
    return np.linalg.eigvalsh(np.asarray(matrix))[::-1]


def square(theta):
    """(N, N, K, K) as a matrix over pairs of an example and an output."""
    n, _, k, _ = theta.shape
    return theta.transpose(0, 2, 1, 3).reshape(n * k, n * k)


def spectra(net, params, x, other, labels):
    """Of kernels and of matrices of the parameters, each of a mean over the examples."""
    n, outputs = len(x), net.apply(params, x)
    mean = lambda loss: lambda p, y: jnp.mean(loss(net.apply(p, x), y))
    theta = square(kernels.ntk(net.apply, params, x, outputs="full")) / n
    unrelated = square(kernels.ntk(net.apply, params, other, outputs="full")) / n
    # H^½ of every example, diag(p) - ppᵀ, by its eigenvalues; rounding can make a zero negative.
    p = jax.nn.softmax(outputs)
    values, vectors = jnp.linalg.eigh(
        p[:, :, None] * jnp.eye(p.shape[1]) - p[:, :, None] * p[:, None]
    )
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None]) @ vectors.mT
    half = jax.scipy.linalg.block_diag(*root)
    targets = jax.nn.one_hot(labels, p.shape[1], dtype=p.dtype)
    squared, entropy = losses.half_squared_error, losses.softmax_cross_entropy
    matrix = lambda loss, y: curvature.gauss_newton(net.apply, loss, params, x, y).to_dense()
    hessian = lambda y: linalg.hessian(mean(squared), params, y, check=False).to_dense()
    return {
        "ntk": theta,
        "gauss_newton": matrix(squared, targets),
        "ntk_entropy": half @ theta @ half,
        "gauss_newton_entropy": matrix(entropy, labels),
        "hessian_interpolating": hessian(outputs),
        "hessian": hessian(targets),
        "ntk_other_data": unrelated,
    }


def run(config, key):
    x, other, labels = data(config)
    metrics = {}
    for i, (width, depth) in enumerate(nets(config)):
        report_progress(i, len(nets(config)))
        net = nn.mlp((width,) * depth + (10,), activation=nn.tanh(), bias_std=0.3)
        params, _ = net.init(jax.random.fold_in(key, i), x.shape[1:])
        matrices = jax.jit(lambda p, net=net: spectra(net, p, x, other, jnp.asarray(labels)))(
            params
        )
        metrics |= {f"{name}_{i}": spectrum(matrix) for name, matrix in matrices.items()}
    return metrics


def distances(config, metrics, one, two):
    """The largest between the leading eigenvalues, relative to the largest, (nets,)."""
    found = []
    for i in range(len(nets(config))):
        a, b = metrics[f"{one}_{i}"], metrics[f"{two}_{i}"]
        shared = min(a.size, b.size)
        found.append(np.abs(a[:shared] - b[:shared]).max() / a[0])
    return np.array(found)


def verdict(config, metrics):
    count = range(len(nets(config)))
    sizes, zeros = [], []
    for i in count:
        pair = [metrics[f"{name}_{i}"] for name in ("gauss_newton", "ntk")]
        sizes.append(pair[0].size - pair[1].size)
        zeros.append(np.subtract(*(np.sum(values < ZERO * values[0]) for values in pair)))
    same = lambda claim, *names: identity(claim, 0, distances(config, metrics, *names), scale=1.0)
    refuted = lambda claim, *names: control(
        identity(claim, 0, distances(config, metrics, *names).min(), scale=1.0)
    )
    return [
        same("squared error: spectrum of Jᵀ J = that of J Jᵀ", "ntk", "gauss_newton"),
        same(
            "cross-entropy: that of Jᵀ H J = that of H^½ J Jᵀ H^½",
            "ntk_entropy",
            "gauss_newton_entropy",
        ),
        identity("zeros of Jᵀ J less those of J Jᵀ = P - N·K", sizes, zeros),
        same(
            "interpolating: spectrum of the Hessian = that of J Jᵀ", "ntk", "hessian_interpolating"
        ),
        refuted("elsewhere: spectrum of the Hessian = that of J Jᵀ", "ntk", "hessian"),
        refuted("spectrum of Jᵀ J = that of J Jᵀ of other data", "ntk_other_data", "gauss_newton"),
    ]


def plot(config, metrics, axes):
    # The fewest and the most parameters.
    order = np.argsort([metrics[f"gauss_newton_{i}"].size for i in range(len(nets(config)))])
    for panel, i in zip(axes, (order[0], order[-1]), strict=True):
        kernel, matrix = metrics[f"ntk_{i}"], metrics[f"gauss_newton_{i}"]
        hessian = np.sort(np.abs(metrics[f"hessian_{i}"]))[::-1]
        marks = {"ms": 4, "alpha": 0.6, "linestyle": "none"}
        index = np.arange(1, matrix.size + 1)
        positive = matrix > ZERO * matrix[0]
        panel.loglog(index[positive], matrix[positive], "o", label="Gauss-Newton JᵀJ", **marks)
        panel.loglog(index, hessian, "^", label="|Hessian|, residuals ≠ 0", **marks)
        rank = np.sum(kernel > ZERO * kernel[0])
        panel.plot(
            np.arange(1, rank + 1), kernel[:rank], **THEORY, label="theory: tangent kernel JJᵀ"
        )
        panel.axvline(kernel.size, color="gray", lw=1, label=f"N·K = {kernel.size}")
        panel.set(xlabel="index of the eigenvalue", ylabel="eigenvalue")
        panel.set_ylim(matrix[positive].min() / 30, 3 * matrix[0])
        width, depth = nets(config)[i]
        panel.set_title(f"{depth} × {width} hidden units: P = {matrix.size}, rank {rank}")
        panel.legend(loc="lower left")
