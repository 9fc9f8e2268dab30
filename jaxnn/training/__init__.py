"""Training: runs of an optimizer, when to stop them, and how to go on after a crash."""

from jaxnn.training.checkpoints import load, save
from jaxnn.training.fitting import Fit, Progress, chunk_length, fit
from jaxnn.training.steps import State, descend, initial_state
from jaxnn.training.stopping import Best, EarlyStopping, each

__all__ = [
    "Best",
    "EarlyStopping",
    "Fit",
    "Progress",
    "State",
    "chunk_length",
    "descend",
    "each",
    "fit",
    "initial_state",
    "load",
    "save",
]
