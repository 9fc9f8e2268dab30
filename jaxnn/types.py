"""The words of every signature: arrays, keys, parameters, functions of parameters."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.typing import ArrayLike
from jaxtyping import Key as _Key
from jaxtyping import PyTree

Array: TypeAlias = jax.Array
Key: TypeAlias = _Key[Array, ""]
"""A typed random key, `jax.random.key(seed)`."""

Params: TypeAlias = PyTree
"""A pytree of floating-point arrays: a point θ of parameter space."""

Shape: TypeAlias = tuple[int, ...]
Apply: TypeAlias = Callable[..., Any]
"""f(params, x): a network, batch axis first in `x` and in what is returned."""

Objective: TypeAlias = Callable[[Params], Array]
"""A scalar function of the parameters."""

Schedule: TypeAlias = Callable[[Array], ArrayLike]
"""step ↦ learning rate; steps count from 0."""

__all__ = [
    "Apply",
    "Array",
    "ArrayLike",
    "Key",
    "Objective",
    "Params",
    "PyTree",
    "Schedule",
    "Shape",
]
