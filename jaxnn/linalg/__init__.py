"""Linear algebra without matrices: operators on pytrees, and the derivatives that are operators."""

from jaxnn.linalg.batches import mean_over_batches
from jaxnn.linalg.dense import from_dense, storage, stored
from jaxnn.linalg.derivatives import hessian, jacobian
from jaxnn.linalg.eigenpairs import Eigenpairs, eigsh
from jaxnn.linalg.krylov import Iterate, cg
from jaxnn.linalg.operators import LinearOperator
from jaxnn.linalg.spaces import Coordinates, coordinates, prepared
from jaxnn.linalg.tridiagonal import Tridiagonal, lanczos

__all__ = [
    "Coordinates",
    "Eigenpairs",
    "Iterate",
    "LinearOperator",
    "Tridiagonal",
    "cg",
    "coordinates",
    "eigsh",
    "from_dense",
    "hessian",
    "jacobian",
    "lanczos",
    "mean_over_batches",
    "prepared",
    "storage",
    "stored",
]
