"""Kernels of networks: empirical and of infinite width, and the linear models they belong to."""

from jaxnn.kernels.comparison import (
    alignment,
    centered_alignment,
    effective_rank,
    ntk_trajectory,
    relative_change,
)
from jaxnn.kernels.dynamics import linearize, taylor
from jaxnn.kernels.empirical import nngp, ntk, ntk_operator, plan
from jaxnn.kernels.planning import Plan
from jaxnn.kernels.wide import infinite

__all__ = [
    "Plan",
    "alignment",
    "centered_alignment",
    "effective_rank",
    "infinite",
    "linearize",
    "nngp",
    "ntk",
    "ntk_operator",
    "ntk_trajectory",
    "plan",
    "relative_change",
    "taylor",
]
