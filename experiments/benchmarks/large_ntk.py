"""The mean kernel of many MNIST images: seconds, peak memory of the process, and the error.

    python -m experiments.benchmarks.large_ntk [--images 10000] [--max-gigabytes 4]

The network is the multilayer perceptron of `ntk`. The error is that of 20 random entries against
gradients in float64, relative to the largest of them.

Measured with 10,000 images on 2 shared cores (AMD EPYC), Python 3.11, JAX 0.10.1, float32: 136 s at
load 3, 1.49 GiB at the peak, of which .4 are the kernel and .3 the imports.
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from experiments.benchmarks.ntk import mlp, stack_of
from jaxnn import kernels


def entry(params, first, second):
    """One entry of the kernel from the gradients of two images."""

    def gradients(image):
        jacobian = jax.jacrev(lambda params: mlp(params, image[None])[0])(params)
        return [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(jacobian)]

    pairs = zip(gradients(first), gradients(second), strict=True)
    return sum(jnp.sum(a * b) for a, b in pairs) / 10


def main():
    parser = argparse.ArgumentParser(description="Time a large empirical kernel.")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--max-gigabytes", type=float, default=4.0)
    options = parser.parse_args()
    images = datasets.mnist().x_train[: options.images].reshape(options.images, -1)
    x = jnp.asarray((images - images.mean()) / images.std(), jnp.float32)
    params = stack_of([784, 1024, 1024, 1024, 10])
    max_bytes = int(options.max_gigabytes * 2**30)
    print(kernels.plan(mlp, params, x, max_bytes=max_bytes))
    start = time.perf_counter()
    kernel = np.asarray(kernels.ntk(mlp, params, x, max_bytes=max_bytes))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.images} images: {seconds:.0f} s, {peak:.2f} GiB at the peak")
    some = np.random.default_rng(0).integers(0, options.images, (20, 2))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, x))
        exact_entry = jax.jit(entry)
        exact = np.array([exact_entry(wide[0], wide[1][i], wide[1][j]) for i, j in some])
    error = np.abs(kernel[some[:, 0], some[:, 1]] - exact).max() / np.abs(exact).max()
    print(f"largest relative error of 20 entries: {error:.1e}")


if __name__ == "__main__":
    main()
