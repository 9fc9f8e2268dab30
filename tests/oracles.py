"""What several tests share: coordinates in NumPy float64, random trees, life without checks."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np


def flat(tree) -> np.ndarray:
    """The coordinates of a pytree in float64 (complex128), leaf after leaf, each in C order."""
    leaves = [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    wide = np.result_type(np.float64, *leaves)
    return np.concatenate([np.zeros(0, wide), *(leaf.astype(wide) for leaf in leaves)])


def random_tree(seed: int, shapes, dtype):
    """Standard normal leaves, of the shapes that are the leaves of `shapes`, drawn by NumPy."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple) and all(isinstance(n, int) for n in s),
    )


@contextmanager
def unchecked() -> Iterator[None]:
    """No type checks of signatures: what a user has, and the only way to see our own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
