"""Kernels of infinite width: seconds, memory and error of networks of every kind.

    python -m experiments.benchmarks.infinite [--only NAME ...] [--repeats N] [--max-bytes N]

Per network: number of inputs, median seconds of NNGP and NTK after a warm-up, compile seconds,
megabytes of temporaries and results (XLA's own count), nanoseconds per pair of inputs (of the
triangle that is computed), and the largest error of both kernels and of their diagonals against
float64, relative to the largest entry. `peers` times the first two against neural-tangents.

Measured on 2 idle cores (AMD EPYC, JAX 0.10.1): inf_fcn .0155 s, inf_cnn .10 s, 8000 inputs of 784
through 4 layers .95 s and 492 MB (the results); nanoseconds per pair: ReLU 30, erf 17, GELU 26,
tanh 118, ELU by quadrature 67,000. Errors 1e-7 to 1e-6, ELU 3e-6, on diagonals as elsewhere.
"""

import argparse
import platform
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.peers import infinite_network
from jaxnn import kernels, nn

dense = partial(nn.dense, 1, bias_std=0.1, parametrization="ntk")
conv = partial(nn.conv, 1, (3, 3), bias_std=0.1, parametrization="ntk")
recurrent = partial(nn.rnn, 1, activation=nn.relu(), bias_std=0.1, parametrization="ntk")


def deep(activation):
    return nn.mlp((1,) * 4, activation=activation, bias_std=0.1, parametrization="ntk")


# name: (network, number of inputs, shape of one)
WORKLOADS = {
    "inf_fcn": (infinite_network("inf_fcn"), 1000, (784,)),
    "inf_cnn": (infinite_network("inf_cnn"), 32, (8, 8, 1)),
    "relu, large": (deep(nn.relu()), 8000, (784,)),
    "erf": (deep(nn.erf()), 1000, (784,)),
    "gelu": (deep(nn.gelu()), 1000, (784,)),
    "tanh (expansion)": (deep(nn.tanh()), 1000, (784,)),
    "elu (quadrature)": (deep(nn.elu()), 100, (784,)),
    "cnn, flattened": (
        nn.serial(conv(), nn.relu(), conv(), nn.relu(), nn.flatten(), dense()),
        200,
        (28, 28, 1),
    ),
    "rnn": (nn.serial(recurrent(), dense()), 500, (28, 28)),
}


def measured(net, x, options):
    """Median and compile seconds, bytes, and the kernels."""
    kernel = partial(kernels.infinite, net, max_bytes=options.max_bytes)
    moments = lambda x: (lambda k: (k.nngp, k.ntk))(kernel(x))
    start = time.perf_counter()
    compiled = jax.jit(moments).lower(x).compile()
    compiling = time.perf_counter() - start
    found = jax.block_until_ready(compiled(x))
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(x))
        times.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    size = memory and memory.temp_size_in_bytes + memory.output_size_in_bytes
    return statistics.median(times), compiling, size or 0, found


def errors(net, x, found):
    """Of the whole kernels and of their diagonals, on the first inputs, against float64."""
    some = min(len(x), 32)
    with jax.enable_x64(True):
        exact = jax.jit(partial(kernels.infinite, net))(np.asarray(x[:some], np.float64))
    pairs = [
        (np.asarray(value)[:some, :some], np.asarray(known))
        for value, known in zip(found, (exact.nngp, exact.ntk), strict=True)
    ]
    apart = [np.abs(value - known) / np.max(np.abs(known)) for value, known in pairs]
    return max(map(np.max, apart)), max(np.max(np.diag(a)) for a in apart)


def main():
    parser = argparse.ArgumentParser(description="Time the kernels of infinite width.")
    parser.add_argument("--only", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--max-bytes", type=int, default=2**22)
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"{device} ({platform.machine()}), jax {jax.__version__}, float32")
    print(f"{'':18}{'N':>6}  seconds  compile      MB  ns/pair    error  diagonal")
    for name in options.only:
        net, n, in_shape = WORKLOADS[name]
        x = jax.random.normal(jax.random.key(0), (n, *in_shape), jnp.float32)
        seconds, compiling, size, found = measured(net, x, options)
        whole, diagonal = errors(net, x, found)
        print(
            f"{name:18}{n:>6}  {seconds:7.4f}  {compiling:7.1f}  {size / 2**20:6.1f}  "
            f"{2e9 * seconds / (n * (n + 1)):7.0f}  {whole:7.0e}   {diagonal:7.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
