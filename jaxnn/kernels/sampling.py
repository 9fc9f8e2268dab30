"""Kernels of random networks, averaged: what the limit of infinite width is checked against."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid
from jaxnn.kernels.empirical import nngp, ntk
from jaxnn.kernels.examples import num_examples
from jaxnn.nn import Layer, Sequences
from jaxnn.types import Array, Key, PyTree


class MonteCarlo(NamedTuple):
    """Means over random networks, (N1, N2), and the standard errors of these means."""

    nngp: Float[Array, "N1 N2"]
    ntk: Float[Array, "N1 N2"]
    nngp_error: Float[Array, "N1 N2"]
    ntk_error: Float[Array, "N1 N2"]


def monte_carlo(
    net: Layer,
    key: Key,
    x1: PyTree[Shaped[Array, "N1 ..."]],
    x2: PyTree[Shaped[Array, "N2 ..."]] | None = None,
    *,
    num_samples: int,
    batch_size: int | None = None,
) -> MonteCarlo:
    """The empirical NNGP and NTK of `net`, averaged over networks drawn from `key`.

    Their expectations differ from `kernels.infinite` by O(1/width), and not at all where only the
    last weights read random features. `batch_size` networks are run at once; default: one. The
    inputs are arrays, `nn.Sequences`, or pytrees of arrays for a network whose `init` takes the
    pytree of their shapes.

    Errors: num_samples < 2, which has no standard error; outputs that are not (N, features); a
    `net` without init and apply.

    Source: Novak et al. (2019), section 4.

    >>> from jaxnn import nn
    >>> net = nn.dense(4, weight_std=1.0, parametrization="ntk")
    >>> found = monte_carlo(net, jax.random.key(0), jnp.eye(3), num_samples=100)
    >>> bool(jnp.allclose(found.ntk, jnp.eye(3) / 3, atol=1e-6))
    True
    """
    if num_samples < 2:
        raise invalid(
            "monte_carlo(num_samples)",
            got=num_samples,
            expected="an integer ≥ 2",
            remedy="The standard error needs two networks at least.",
        )
    if not (callable(getattr(net, "init", None)) and callable(getattr(net, "apply", None))):
        raise invalid(
            "monte_carlo(net)",
            got=f"{type(net).__name__} without init and apply",
            expected="a network, whose parameters can be drawn",
            remedy="A layer of jaxnn has both; kernels.ntk(f, params, x) takes a function.",
        )
    num_examples("x1", x1)
    in_shape = _in_shape(x1)
    out_shape = jax.eval_shape(lambda k: net.apply(net.init(k, in_shape)[0], x1), key).shape
    if len(out_shape) != 2:
        raise invalid(
            "monte_carlo(net)",
            got=f"outputs of shape {out_shape}",
            expected="(N, features)",
            remedy="End the network with nn.flatten() or a global pool, and a dense layer.",
        )

    def sample(key: Key) -> tuple[Array, Array]:
        params, _ = net.init(key, in_shape)
        return nngp(net.apply, params, x1, x2), ntk(net.apply, params, x1, x2)

    keys = jax.random.split(key, num_samples)
    draws = jax.lax.map(sample, keys, batch_size=batch_size)
    means = [jnp.mean(d, axis=0) for d in draws]
    errors = [jnp.std(d, axis=0, ddof=1) / num_samples**0.5 for d in draws]
    return MonteCarlo(*means, *errors)


def _in_shape(x: PyTree) -> PyTree:
    if isinstance(x, Sequences):
        return x.values.shape[1:]
    return jax.tree.map(lambda leaf: leaf.shape[1:], x)
