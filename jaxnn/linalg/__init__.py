"""Linear algebra without matrices: operators on pytrees, and the derivatives that are operators."""

from jaxnn.linalg.batches import mean_over_batches
from jaxnn.linalg.dense import from_dense, storage, stored
from jaxnn.linalg.derivatives import hessian, jacobian
from jaxnn.linalg.eigenpairs import Eigenpairs, eigsh
from jaxnn.linalg.estimates import Estimate
from jaxnn.linalg.krylov import Iterate, cg
from jaxnn.linalg.minimal_residual import minres
from jaxnn.linalg.operators import LinearOperator
from jaxnn.linalg.pseudo_inverse import LeastSquares, minres_qlp
from jaxnn.linalg.quadrature import (
    LogDeterminant,
    SpectralDensity,
    density,
    logdet,
    spectral_density,
)
from jaxnn.linalg.spaces import prepared
from jaxnn.linalg.stochastic import diagonal, trace
from jaxnn.linalg.tridiagonal import Tridiagonal, lanczos
from jaxnn.linalg.vectors import Coordinates, coordinates

__all__ = [
    "Coordinates",
    "Eigenpairs",
    "Estimate",
    "Iterate",
    "LeastSquares",
    "LinearOperator",
    "LogDeterminant",
    "SpectralDensity",
    "Tridiagonal",
    "cg",
    "coordinates",
    "density",
    "diagonal",
    "eigsh",
    "from_dense",
    "hessian",
    "jacobian",
    "lanczos",
    "logdet",
    "mean_over_batches",
    "minres",
    "minres_qlp",
    "prepared",
    "spectral_density",
    "storage",
    "stored",
    "trace",
]
