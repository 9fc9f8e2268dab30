"""Linear algebra without matrices: operators on pytrees, and the derivatives that are operators."""

from jaxnn.linalg.batches import mean_over_batches
from jaxnn.linalg.dense import from_dense, storage, stored
from jaxnn.linalg.derivatives import hessian, jacobian
from jaxnn.linalg.krylov import Iterate, cg
from jaxnn.linalg.operators import LinearOperator
from jaxnn.linalg.spaces import Coordinates, coordinates, prepared

__all__ = [
    "Coordinates",
    "Iterate",
    "LinearOperator",
    "cg",
    "coordinates",
    "from_dense",
    "hessian",
    "jacobian",
    "mean_over_batches",
    "prepared",
    "storage",
    "stored",
]
