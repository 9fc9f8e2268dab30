"""Kernels of infinitely wide networks."""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Float

from jaxnn.errors import invalid
from jaxnn.nn import Kernel, Layer, limit
from jaxnn.types import Array


def infinite(
    net: Layer, x1: Float[Array, "N1 *features"], x2: Float[Array, "N2 *features"] | None = None
) -> Kernel:
    """The NNGP and NTK that `net` has at infinite width, between the inputs x1 and x2.

    K(x, x') = E[f(x)f(x')] and Θ(x, x') = E[Σ_θ ∂f(x)/∂θ · ∂f(x')/∂θ] at random weights, per
    output, as `Kernel.nngp` and `Kernel.ntk` of shape (N1, N2). Inputs are (N, d). In the standard
    parametrization Θ grows with the widths that `net` states; in the NTK parametrization it does
    not. With x2=None the diagonal comes from the recursion of single inputs, where the angle is
    exactly 0, so that it has no cancellation error.

    Errors: inputs that are not (N, d), different d, a layer without a limit (by its name).

    Source: Jacot, Gabriel & Hongler (2018), theorem 1; Lee et al. (2018), equation 5.

    >>> from jaxnn import nn
    >>> net = nn.serial(nn.dense(512, parametrization="ntk"), nn.relu(),
    ...                 nn.dense(1, parametrization="ntk"))
    >>> infinite(net, jnp.eye(2)).ntk
    Array([[2.        , 0.31830987],
           [0.31830987, 2.        ]], dtype=float32)
    """
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None and (x.ndim != 2 or x.shape[1] != x1.shape[-1]):
            raise invalid(
                f"infinite({name})",
                got=f"shape {x.shape}",
                expected=f"(N, {x1.shape[-1]})" if name == "x2" else "(N, d)",
                remedy="Flatten every example to one axis: x.reshape(len(x), -1).",
            )
    if x2 is not None:
        return net.kernel(limit.inputs(x1, x2))
    kernel = net.kernel(limit.inputs(x1, x1))
    single = net.kernel(limit.paired_inputs(x1))
    n = jnp.arange(x1.shape[0])
    return replace(
        kernel,
        nngp=kernel.nngp.at[n, n].set(single.nngp),
        ntk=kernel.ntk.at[n, n].set(single.ntk),
    )
