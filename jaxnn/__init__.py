"""Neural networks as mathematical objects: functions, kernels, curvature, theorems.

Modules are loaded when they are first named: `import jaxnn` costs little more than `import jax`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxnn import compatibility as compatibility  # refuses a jaxlib that computes wrong numbers

if TYPE_CHECKING:
    from jaxnn import (
        curvature,
        data,
        generative,
        kernels,
        linalg,
        losses,
        metrics,
        nn,
        optimizers,
        pruning,
        regularizers,
        schedules,
        search,
        signal,
        training,
        tree,
    )

__all__ = [
    "curvature",
    "data",
    "generative",
    "kernels",
    "linalg",
    "losses",
    "metrics",
    "nn",
    "optimizers",
    "pruning",
    "regularizers",
    "schedules",
    "search",
    "signal",
    "training",
    "tree",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jaxnn")
    if name in __all__:
        return importlib.import_module(f"jaxnn.{name}")
    raise AttributeError(f"module 'jaxnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
