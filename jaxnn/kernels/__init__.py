"""Kernels of networks: empirical and of infinite width, and the linear models they belong to."""

from jaxnn.kernels.comparison import (
    alignment,
    centered_alignment,
    effective_rank,
    ntk_trajectory,
    relative_change,
)
from jaxnn.kernels.dense_solves import Solution, solve
from jaxnn.kernels.dynamics import linearize, taylor
from jaxnn.kernels.empirical import nngp, ntk, ntk_operator, plan
from jaxnn.kernels.ensemble import Ensemble, ensemble_predictor, ntk_ensemble
from jaxnn.kernels.flow import (
    Trained,
    gradient_descent,
    gradient_flow,
    trained_parameters,
)
from jaxnn.kernels.iterative import pivoted_cholesky, solve_iteratively
from jaxnn.kernels.loss_flow import FlowOfLoss, gradient_flow_of_loss
from jaxnn.kernels.modes import Modes, eigenmodes, max_learning_rate
from jaxnn.kernels.ode import Solved, integrate
from jaxnn.kernels.output_axes import OutputAxes
from jaxnn.kernels.planning import Plan
from jaxnn.kernels.regression import (
    Posterior,
    class_targets,
    gp_posterior,
    log_marginal_likelihood,
)
from jaxnn.kernels.sampling import MonteCarlo, monte_carlo
from jaxnn.kernels.wide import infinite

__all__ = [
    "Ensemble",
    "FlowOfLoss",
    "Modes",
    "MonteCarlo",
    "OutputAxes",
    "Plan",
    "Posterior",
    "Solution",
    "Solved",
    "Trained",
    "alignment",
    "centered_alignment",
    "class_targets",
    "effective_rank",
    "eigenmodes",
    "ensemble_predictor",
    "gp_posterior",
    "gradient_descent",
    "gradient_flow",
    "gradient_flow_of_loss",
    "infinite",
    "integrate",
    "linearize",
    "log_marginal_likelihood",
    "max_learning_rate",
    "monte_carlo",
    "nngp",
    "ntk",
    "ntk_ensemble",
    "ntk_operator",
    "ntk_trajectory",
    "pivoted_cholesky",
    "plan",
    "relative_change",
    "solve",
    "solve_iteratively",
    "taylor",
    "trained_parameters",
]
