"""Kernels of networks: empirical and of infinite width, and the linear models they belong to."""

from jaxnn.kernels.dynamics import linearize, taylor
from jaxnn.kernels.empirical import nngp, ntk, ntk_operator, plan
from jaxnn.kernels.wide import infinite

__all__ = ["infinite", "linearize", "nngp", "ntk", "ntk_operator", "plan", "taylor"]
