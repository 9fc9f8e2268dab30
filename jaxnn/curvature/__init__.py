"""The shape of a loss around a point: its curvature, as operators, and what follows from it."""

from jaxnn.curvature.diagonal_blocks import block, blocks
from jaxnn.curvature.heads import drawn_labels
from jaxnn.curvature.kronecker import KroneckerFactors, kfac
from jaxnn.curvature.matrices import fisher, gauss_newton
from jaxnn.linalg import hessian

__all__ = [
    "KroneckerFactors",
    "block",
    "blocks",
    "drawn_labels",
    "fisher",
    "gauss_newton",
    "hessian",
    "kfac",
]
