"""The shape of a loss around a point: its curvature, as operators, and what follows from it."""

from jaxnn.curvature.classification import (
    CriticalPoint,
    Escape,
    Inertia,
    classify,
    escape_direction,
    inertia,
    kinds,
)
from jaxnn.curvature.connectivity import Connection, bezier, connect
from jaxnn.curvature.critical_points import Search, find_critical_point
from jaxnn.curvature.diagonal_blocks import block, blocks
from jaxnn.curvature.heads import drawn_labels
from jaxnn.curvature.kronecker import KroneckerFactors, kfac
from jaxnn.curvature.landscape import (
    PrincipalDirections,
    filter_normalized,
    line_slice,
    plane_slice,
    principal_directions,
    random_direction,
)
from jaxnn.curvature.matrices import fisher, gauss_newton
from jaxnn.curvature.sharpening import (
    Sharpness,
    SharpnessTrajectory,
    sharpness,
    sharpness_trajectory,
)
from jaxnn.curvature.spectrum import (
    Outliers,
    effective_dimension,
    effective_rank,
    outliers,
    participation_ratio,
    stable_rank,
)
from jaxnn.linalg import hessian

__all__ = [
    "Connection",
    "CriticalPoint",
    "Escape",
    "Inertia",
    "KroneckerFactors",
    "Outliers",
    "PrincipalDirections",
    "Search",
    "Sharpness",
    "SharpnessTrajectory",
    "bezier",
    "block",
    "blocks",
    "classify",
    "connect",
    "drawn_labels",
    "effective_dimension",
    "effective_rank",
    "escape_direction",
    "filter_normalized",
    "find_critical_point",
    "fisher",
    "gauss_newton",
    "hessian",
    "inertia",
    "kfac",
    "kinds",
    "line_slice",
    "outliers",
    "participation_ratio",
    "plane_slice",
    "principal_directions",
    "random_direction",
    "sharpness",
    "sharpness_trajectory",
    "stable_rank",
]
