"""Empirical kernels: seconds and memory of every method, beside what the arithmetic alone takes.

    python -m experiments.benchmarks.ntk [--only NAME ...] [--outputs mean full] [--limit SECONDS]

Per workload and method: median seconds after a warm-up, compile seconds, megabytes of temporaries
(XLA's own count), and the ratio to two floors measured in the same process: the counted flops of
the plan at the rate of a large matrix product, and the factors of the gradients alone (forward and
backward passes, no contraction). Methods expected to take longer than the limit are left out.

The MLP and the CNN are the workloads of neural-tangents in ../shared/peers/ntk_peer.py; the views
are the MLP with its weights seen through an operation, and are compared with it.
"""

import argparse
import itertools
import platform
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn import kernels

METHODS = ("auto", "structured", "vector_products", "jacobian")


def normal(seed, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


def stack_of(widths, seed=0):
    """[(W, b), ...] of a multilayer perceptron."""
    pairs = itertools.pairwise(widths)
    return [
        (normal(seed + i, a, b, scale=(2.0 / a) ** 0.5), normal(seed + 50 + i, b, scale=0.05))
        for i, (a, b) in enumerate(pairs)
    ]


def mlp(params, x, view=lambda w: w):
    for i, (w, b) in enumerate(params):
        x = x @ view(w) + b
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def conv(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def cnn(params, x):
    for w, b in params[:-1]:
        x = jax.nn.relu(conv(x, w) + b)
    w, b = params[-1]
    return x.mean((1, 2)) @ w + b


def cnn_params(channels=(1, 64, 64, 64)):
    layers = [
        (normal(i, 3, 3, a, b, scale=(2.0 / (9 * a)) ** 0.5), normal(50 + i, b, scale=0.05))
        for i, (a, b) in enumerate(itertools.pairwise(channels))
    ]
    return [*layers, (normal(9, channels[-1], 10, scale=0.1), normal(59, 10, scale=0.05))]


def residual_cnn(params, x):
    first, blocks, (w, b) = params
    x = conv(x, first)
    for inner, outer in blocks:
        x = x + conv(jax.nn.relu(conv(jax.nn.relu(x), inner)), outer)
    return x.mean((1, 2)) @ w + b


def transformer(params, tokens):
    """Two blocks of one-head attention and an MLP, with embedding and mean pooling."""
    x = params["embedding"][tokens]
    for p in params["blocks"]:
        q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
        weights = jax.nn.softmax(jnp.einsum("ntd,nsd->nts", q, k) / q.shape[-1] ** 0.5)
        x = x + (weights @ v) @ p["out"]
        x = x + jax.nn.gelu(x @ p["up"]) @ p["down"]
    return x.mean(1) @ params["head"]


def transformer_params(vocabulary=1000, d=64):
    def block(seed):
        shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
        return {
            n: normal(seed + i, *s, scale=s[0] ** -0.5) for i, (n, s) in enumerate(shapes.items())
        }

    return {
        "embedding": normal(0, vocabulary, d),
        "blocks": [block(10), block(20)],
        "head": normal(1, d, 10, scale=d**-0.5),
    }


def lstm(params, x):
    w, b, head = params

    def step(carry, x_t):
        h, c = carry
        i, f, g, o = jnp.split(jnp.concatenate([x_t, h], axis=1) @ w + b, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zero = jnp.zeros((x.shape[0], head.shape[0]))
    (h, _), _ = lax.scan(step, (zero, zero), jnp.swapaxes(x, 0, 1))
    return h @ head


def scanned_mlp(params, x):
    (w0, b0), (ws, bs), (w1, b1) = params
    x = jax.nn.relu(x @ w0 + b0)
    x, _ = lax.scan(lambda h, layer: (jax.nn.relu(h @ layer[0] + layer[1]), None), x, (ws, bs))
    return x @ w1 + b1


def scanned(params):
    first, *hidden, last = params
    return [first, jax.tree.map(lambda *a: jnp.stack(a), *hidden), last]


def weight_norm(params, x):
    for i, (v, g, b) in enumerate(params):
        x = x @ (v * (g / jnp.linalg.norm(v, axis=0))[None]) + b
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def low_rank(params, x):
    for i, (a, c, b) in enumerate(params):
        x = x @ (a @ c) + b
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def workloads():
    """name -> (f, params, x, name of the workload it is a view of)."""
    base, images = stack_of([784, 1024, 1024, 1024, 10]), normal(90, 64, 784)
    sliced = [(jnp.pad(w, ((0, 8), (0, 8))), b) for w, b in base]
    trimmed = lambda params, x: mlp([(w[:-8, :-8], b) for w, b in params], x)
    halves = lambda w: (normal(1, w.shape[0], 64, scale=0.1), normal(2, 64, w.shape[1], scale=0.1))
    views = {
        "scaled": (partial(mlp, view=lambda w: 0.5 * w), base),
        "transposed": (partial(mlp, view=lambda w: w.T), [(w.T, b) for w, b in base]),
        "sliced": (trimmed, sliced),
        "remat": (lambda p, x: jax.checkpoint(mlp)(p, x), base),
        "scan": (scanned_mlp, scanned(base)),
        "weight norm": (weight_norm, [(w, jnp.linalg.norm(w, axis=0), b) for w, b in base]),
        "low rank": (low_rank, [(*halves(w), b) for w, b in base]),
    }
    digits = normal(91, 16, 28, 28, 1)
    blocks = [
        (normal(i, 3, 3, 32, 32, scale=0.06), normal(9 + i, 3, 3, 32, 32, scale=0.06))
        for i in (1, 2)
    ]
    residual = (normal(0, 3, 3, 1, 32, scale=0.5), blocks, (normal(5, 32, 10), normal(6, 10)))
    tokens = jax.random.randint(jax.random.key(92), (32, 32), 0, 1000)
    sequences = normal(93, 32, 28, 28)
    recurrent = (
        normal(1, 28 + 128, 512, scale=0.08),
        normal(2, 512),
        normal(3, 128, 10, scale=0.1),
    )
    return {
        "mlp": (mlp, base, images, None),
        **{f"mlp, {name}": (f, p, images, "mlp") for name, (f, p) in views.items()},
        "cnn": (cnn, cnn_params(), digits, None),
        "residual cnn": (residual_cnn, residual, digits, None),
        "transformer": (transformer, transformer_params(), tokens, None),
        "lstm": (lstm, recurrent, sequences, None),
    }


def timed(function, *args, repeats=5):
    """Median seconds, compile seconds and bytes of temporaries of a function."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    return statistics.median(seconds), compile_seconds, getattr(memory, "temp_size_in_bytes", 0)


def matmul_rate(n=2048):
    """Flops per second of a large matrix product."""
    return 2 * n**3 / timed(lambda a: a @ a, jnp.ones((n, n)))[0]


def main():
    parser = argparse.ArgumentParser(description="Time empirical kernels.")
    parser.add_argument("--only", nargs="*", help="names of workloads")
    parser.add_argument("--outputs", nargs="*", default=["mean", "full"])
    parser.add_argument("--limit", type=float, default=20.0, help="seconds expected at most")
    parser.add_argument("--plan", action="store_true", help="print the plans too")
    options = parser.parse_args()
    rate = matmul_rate()
    device = jax.devices()[0]
    print(f"{platform.machine()}, {device.device_kind}, jax {jax.__version__}, float32; ", end="")
    print(f"matrix products at {rate / 1e9:.0f} Gflop/s")
    header = ("workload", "outputs", "method", "seconds", "compile", "MB", "x flops", "x view of")
    print("{:18} {:8} {:26} {:>8} {:>8} {:>8} {:>8} {:>9}".format(*header))
    base: dict[tuple, float] = {}
    for name, (f, params, x, plain) in workloads().items():
        if options.only and name not in options.only:
            continue
        for outputs in options.outputs:
            for method in METHODS:
                plan = kernels.plan(f, params, x, outputs=outputs, method=method)
                cost = plan.costs[plan.method]
                if cost.total / rate > options.limit:
                    print(f"{name:18} {outputs:8} {method:26} expected {cost.total / rate:.0f} s")
                    continue
                if options.plan and method == "structured":
                    print(plan)
                kernel = partial(kernels.ntk, f, outputs=outputs, method=method)
                seconds, compiling, memory = timed(kernel, params, x)
                base[name, outputs, method] = seconds
                against = base.get((plain, outputs, method))
                ratio = "" if against is None else f"{seconds / against:9.2f}"
                label = f"auto: {plan.method}" if method == "auto" else method
                print(
                    f"{name:18} {outputs:8} {label:26} {seconds:8.4f} {compiling:8.2f} "
                    f"{memory / 1e6:8.0f} {seconds * rate / cost.flops:8.1f} {ratio:>9}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
