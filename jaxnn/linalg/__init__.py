"""Linear algebra without matrices: operators on pytrees, and the derivatives that are operators."""

from jaxnn.linalg.derivatives import jacobian
from jaxnn.linalg.krylov import Iterate, cg
from jaxnn.linalg.operators import LinearOperator

__all__ = ["Iterate", "LinearOperator", "cg", "jacobian"]
