"""Networks as pure functions over parameter pytrees, with their infinite-width limits."""

from jaxnn.nn import activations, initializers, limit
from jaxnn.nn.combinators import parallel, residual, serial
from jaxnn.nn.layers import Layer, dense, dropout, flatten, identity, stateless
from jaxnn.nn.limit import Kernel
from jaxnn.nn.networks import mlp
from jaxnn.nn.nonlinearities import (
    abs,
    cos,
    elementwise,
    elu,
    erf,
    gelu,
    gelu_tanh,
    leaky_relu,
    prelu,
    relu,
    selu,
    sigmoid,
    sin,
    softmax,
    softplus,
    swish,
    tanh,
    threshold,
)

__all__ = [
    "Kernel",
    "Layer",
    "abs",
    "activations",
    "cos",
    "dense",
    "dropout",
    "elementwise",
    "elu",
    "erf",
    "flatten",
    "gelu",
    "gelu_tanh",
    "identity",
    "initializers",
    "leaky_relu",
    "limit",
    "mlp",
    "parallel",
    "prelu",
    "relu",
    "residual",
    "selu",
    "serial",
    "sigmoid",
    "sin",
    "softmax",
    "softplus",
    "stateless",
    "swish",
    "tanh",
    "threshold",
]
