"""Optimizers as their equations, and what can be put around any of them."""

from jaxnn.optimizers.equations import (
    AccumulatorState,
    AdamState,
    AMSGradState,
    GradientDescentState,
    LearningRate,
    MomentumState,
    Optimizer,
    adagrad,
    adam,
    adamw,
    amsgrad,
    gradient_descent,
    momentum,
    nesterov,
    rmsprop,
)
from jaxnn.optimizers.saddle_free import SaddleFreeState, saddle_free_newton
from jaxnn.optimizers.saddles import (
    Perturbation,
    PerturbedState,
    perturbation,
    perturbed_gradient_descent,
)
from jaxnn.optimizers.wrappers import NoisyState, clipped, masked, noisy

__all__ = [
    "AMSGradState",
    "AccumulatorState",
    "AdamState",
    "GradientDescentState",
    "LearningRate",
    "MomentumState",
    "NoisyState",
    "Optimizer",
    "Perturbation",
    "PerturbedState",
    "SaddleFreeState",
    "adagrad",
    "adam",
    "adamw",
    "amsgrad",
    "clipped",
    "gradient_descent",
    "masked",
    "momentum",
    "nesterov",
    "noisy",
    "perturbation",
    "perturbed_gradient_descent",
    "rmsprop",
    "saddle_free_newton",
]
