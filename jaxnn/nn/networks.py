"""The standard networks, as one expression each."""

import math
from collections.abc import Sequence
from functools import partial

from jaxnn.errors import invalid
from jaxnn.nn.combinators import serial
from jaxnn.nn.layers import Layer, Parametrization, dense
from jaxnn.nn.nonlinearities import relu


def mlp(
    features: Sequence[int],
    *,
    activation: Layer | None = None,
    weight_std: float = math.sqrt(2.0),
    bias_std: float = 0.0,
    parametrization: Parametrization = "standard",
) -> Layer:
    """A multilayer perceptron: dense layers of the given sizes with an activation between them.

    `activation` is ReLU unless given; none follows the last layer. The other options are those of
    `nn.dense`. The number of parameters is Σ n_l (n_{l-1} + 1) in the standard parametrization.

    Errors: no features.

    >>> import jax
    >>> from jaxnn import tree
    >>> params, _ = mlp((64, 2)).init(jax.random.key(0), (10,))
    >>> tree.size(params)
    834
    """
    if not features:
        raise invalid(
            "mlp(features)",
            got="no size",
            expected="at least one",
            remedy="List the size of every layer, the output last: (512, 512, 10).",
        )
    activation = relu() if activation is None else activation
    layer = partial(
        dense, weight_std=weight_std, bias_std=bias_std, parametrization=parametrization
    )
    hidden = [part for size in features[:-1] for part in (layer(size), activation)]
    return serial(*hidden, layer(features[-1]))
