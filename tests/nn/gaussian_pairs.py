"""Expectations over Gaussian pairs by brute force in float64, and the activations they test."""

import math
from functools import cache, partial

import numpy as np
from scipy import special

from jaxnn import nn

SLOPE = 0.2
normal = lambda u: special.ndtr(u)
density = lambda u: np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
logistic = special.expit

# name: (layer, φ, φ')
ACTIVATIONS = {
    "relu": (nn.relu, lambda u: np.maximum(u, 0), lambda u: np.where(u > 0, 1.0, 0.0)),
    "leaky_relu": (
        partial(nn.leaky_relu, SLOPE),
        lambda u: np.where(u > 0, u, SLOPE * u),
        lambda u: np.where(u > 0, 1.0, SLOPE),
    ),
    "abs": (nn.abs, np.abs, np.sign),
    "piecewise_linear": (
        partial(nn.piecewise_linear, -0.5, 1.5),
        lambda u: np.where(u > 0, 1.5 * u, -0.5 * u),
        lambda u: np.where(u > 0, 1.5, -0.5),
    ),
    "erf": (nn.erf, special.erf, lambda u: 2 / math.sqrt(math.pi) * np.exp(-(u**2))),
    "scaled erf": (
        partial(nn.erf, 0.5, 0.4, 0.7),
        lambda u: 0.5 * special.erf(0.4 * u) + 0.7,
        lambda u: 0.4 / math.sqrt(math.pi) * np.exp(-((0.4 * u) ** 2)),
    ),
    "gelu": (nn.gelu, lambda u: u * normal(u), lambda u: normal(u) + u * density(u)),
    "sin": (nn.sin, np.sin, np.cos),
    "cos": (nn.cos, np.cos, lambda u: -np.sin(u)),
    "rbf": (
        partial(nn.rbf, 0.3),
        lambda u: math.sqrt(2) * np.sin(math.sqrt(0.6) * u + math.pi / 4),
        lambda u: math.sqrt(1.2) * np.cos(math.sqrt(0.6) * u + math.pi / 4),
    ),
    "gaussian": (
        partial(nn.gaussian, 0.4),
        lambda u: np.exp(-0.4 * u**2),
        lambda u: -0.8 * u * np.exp(-0.4 * u**2),
    ),
    "monomial": (partial(nn.monomial, 3), lambda u: u**3, lambda u: 3 * u**2),
    "polynomial": (
        partial(nn.polynomial, (0.5, -1.0, 0.0, 0.25)),
        lambda u: 0.5 - u + 0.25 * u**3,
        lambda u: -1 + 0.75 * u**2,
    ),
    "hermite": (
        partial(nn.hermite, 4),
        lambda u: (u**4 - 6 * u**2 + 3) / math.sqrt(24),
        lambda u: (4 * u**3 - 12 * u) / math.sqrt(24),
    ),
    "rectified square": (
        partial(nn.rectified_monomial, 2),
        lambda u: np.maximum(u, 0) ** 2,
        lambda u: 2 * np.maximum(u, 0),
    ),
    "rectified cube": (
        partial(nn.rectified_monomial, 3),
        lambda u: np.maximum(u, 0) ** 3,
        lambda u: 3 * np.maximum(u, 0) ** 2,
    ),
    "sign": (nn.sign, np.sign, np.zeros_like),
    "threshold": (nn.threshold, lambda u: np.where(u >= 0, 1.0, 0.0), np.zeros_like),
    "tanh": (nn.tanh, np.tanh, lambda u: 1 / np.cosh(np.clip(u, -300, 300)) ** 2),
    "sigmoid": (nn.sigmoid, logistic, lambda u: logistic(u) * logistic(-u)),
    "softplus": (nn.softplus, lambda u: np.logaddexp(0, u), logistic),
    "swish": (
        nn.swish,
        lambda u: u * logistic(u),
        lambda u: logistic(u) + u * logistic(u) * logistic(-u),
    ),
    "elu": (
        nn.elu,
        lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))),
        lambda u: np.where(u > 0, 1.0, np.exp(np.minimum(u, 0))),
    ),
}
# By quadrature: where its error is known to be small, on standard deviations up to 2.
NUMERICAL = ("tanh", "sigmoid", "softplus", "swish", "elu")
# Derivatives of these are 0 where JAX takes them, not in expectation.
FLAT = ("sign", "threshold")
HOMOGENEOUS = ("relu", "leaky_relu", "abs")

# (v₁, v₂, correlation)
MOMENTS = [
    *((1.3, 0.4, r) for r in (-0.999, -0.6, 0.0, 0.3, 0.95, 0.999)),
    *((0.02, 7.0, r) for r in (-0.999, -0.2, 0.0, 0.8, 0.999)),
    *((3e-6, 1e-6, r) for r in (-0.7, 0.0, 0.99)),
    *((9.0, 5.0, r) for r in (-0.97, 0.0, 0.5)),
    (2.5, 2.5, 1.0),
    (2.5, 0.1, -1.0),
]


@cache
def polar_nodes(angle):
    """Nodes r, t and weights of the plane's standard normal, in 4 sectors where cos t and
    cos(t - angle) have no zero, so that a kink of an activation at 0 costs no accuracy.
    """
    cuts = [0.0, 2 * math.pi, *(k * math.pi / 2 for k in (1, 3))]
    cuts = np.unique([*cuts, *((angle + k * math.pi / 2) % (2 * math.pi) for k in (1, 3))])
    node, weight = np.polynomial.legendre.leggauss(60)
    half = np.diff(cuts) / 2
    t = ((cuts[:-1] + cuts[1:]) / 2 + half * node[:, None]).ravel()
    node, r_weight = np.polynomial.legendre.leggauss(80)
    r = 5.0 * (node[:, None] + 1)  # the mass beyond 10 is below 1e-21
    density = r * np.exp(-(r**2) / 2) / (2 * math.pi)
    return r, t, 5.0 * r_weight[:, None] * density * (half * weight[:, None]).ravel()


def expectation(g, h, v1, v2, correlation):
    """E[g(u)h(w)] for centered Gaussian (u, w), by Gauss-Legendre quadrature in float64."""
    angle = math.acos(max(-1.0, min(1.0, correlation)))
    r, t, weight = polar_nodes(angle)
    u, w = math.sqrt(v1) * r * np.cos(t), math.sqrt(v2) * r * np.cos(t - angle)
    return np.sum(weight * g(u) * h(w))


def covariance(g, k, v1, v2):
    return expectation(g, g, v1, v2, k / math.sqrt(v1 * v2))
