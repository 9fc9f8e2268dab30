"""Data sets as arrays: split, standardized, in batches, augmented, with noise."""

from jaxnn.data.augmentation import (
    Augmentation,
    compose,
    crop,
    displace,
    flip,
    rotate,
    rotated,
    warp,
)
from jaxnn.data.examples import Split, Standardization, batches, one_hot, split, standardize
from jaxnn.data.noise import augmented, noisy_weights, perturb

__all__ = [
    "Augmentation",
    "Split",
    "Standardization",
    "augmented",
    "batches",
    "compose",
    "crop",
    "displace",
    "flip",
    "noisy_weights",
    "one_hot",
    "perturb",
    "rotate",
    "rotated",
    "split",
    "standardize",
    "warp",
]
