"""The top of the Hessian of a million parameters on all of MNIST: seconds, peak memory, residuals.

    python -m experiments.benchmarks.large_hessian [--images 60000] [--count 10] [--batch-size 2000]

A 784-1024-192-10 ReLU network (1,002,570 parameters) after an epoch of Adam; the mean softmax
cross-entropy of all images, summed batch after batch. The largest residual is checked against one
more product in batches of another size.

Measured on 2 idle cores (AMD EPYC), JAX 0.10.1, float32: 63 s, 52 products, converged, 1.21 GiB at
the peak, of which .60 were there before the first product (218 s at load 5).
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from jaxnn import linalg, losses, nn, optimizers, training, tree

NETWORK = nn.mlp((1024, 192, 10))


def objective(params, x, y):
    """The mean loss of some images."""
    return jnp.mean(losses.softmax_cross_entropy(NETWORK.apply(params, x), y))


def main():
    parser = argparse.ArgumentParser(description="Time the top eigenvalues of a large Hessian.")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=2000)
    options = parser.parse_args()
    mnist = datasets.mnist()
    images = mnist.x_train[: options.images].reshape(options.images, -1)
    x = jnp.asarray(images)
    y = jnp.asarray(mnist.y_train[: options.images])
    del mnist, images
    params, _ = NETWORK.init(jax.random.key(0), (784,))
    fit = training.fit(
        *(NETWORK.apply, params, losses.softmax_cross_entropy, (x, y), optimizers.adam(1e-3)),
        **{"steps": options.images // 100, "batch_size": 100, "key": jax.random.key(1)},
    )
    params = fit.params
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    H = linalg.hessian(objective, params, x, y, batch_size=options.batch_size)
    start = time.perf_counter()
    found = jax.block_until_ready(linalg.eigsh(H, options.count, key=jax.random.key(2)))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{tree.size(params)} parameters, {options.images} images: {seconds:.0f} s")
    print(f"{int(found.products)} products, converged {bool(found.converged)}")
    print(f"{peak:.2f} GiB at the peak, {before:.2f} of them before the first product")
    print("eigenvalues", np.array2string(np.asarray(found.values), precision=4))
    print("residuals", np.array2string(np.asarray(found.residuals), precision=1))
    worst = int(jnp.argmax(found.residuals))
    v = jax.tree.map(lambda a: a[worst], found.vectors)
    other = linalg.hessian(objective, params, x, y, batch_size=options.batch_size // 3 + 1)
    image = jax.jit(lambda H, v: H @ v)(other, v)
    residual = float(tree.norm(tree.axpy(-found.values[worst], v, image)))
    print(f"largest residual {float(found.residuals[worst]):.1e}, by other batches {residual:.1e}")


if __name__ == "__main__":
    main()
