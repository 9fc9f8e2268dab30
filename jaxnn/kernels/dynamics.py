"""The model that a wide network becomes: its Taylor expansion in the parameters."""

import math
from functools import partial
from numbers import Integral
from typing import Any

import jax

from jaxnn import tree
from jaxnn.errors import invalid
from jaxnn.kernels.examples import require_function
from jaxnn.types import Apply, Params, PyTree


def linearize(f: Apply, params: Params) -> Apply:
    """f_lin(θ', x) = f(θ, x) + J(θ, x)(θ' - θ), the network linearized around θ = `params`.

    The cost is that of one forward-mode derivative per call. The model takes the arguments of f:
    whatever follows the parameters, by position or by keyword, is handed to f.

    Source: Lee et al. (2019), equation 4.

    >>> import jax.numpy as jnp
    >>> f = lambda w, x: x * w**2
    >>> linearize(f, jnp.array(1.0))(jnp.array(1.5), jnp.ones(2))
    Array([2., 2.], dtype=float32)
    """
    return taylor(f, params, 1)


def taylor(f: Apply, params: Params, degree: int) -> Apply:
    """The expansion Σ_{k ≤ degree} (1/k!) dᵏ/dtᵏ f(θ + t(θ' - θ), x)|_{t=0} around θ = `params`.

    f is to be `degree` times differentiable in forward mode; the cost grows as 2^degree. `f` may
    return any pytree, and its other arguments (x, keywords) may be any.

    Errors: degree that is no integer ≥ 0, an f that is no function, parameters that are not real
    floating point, θ' of another structure.

    >>> import jax.numpy as jnp
    >>> f = lambda w, x: x * w**2
    >>> taylor(f, jnp.array(1.0), 2)(jnp.array(1.5), jnp.ones(2))
    Array([2.25, 2.25], dtype=float32)
    """
    require_function("f", f)
    if not isinstance(degree, Integral) or degree < 0:
        raise invalid(
            "taylor(degree)", got=degree, expected="an integer ≥ 0", remedy="0 is f(params, x)."
        )
    tree.require_differentiable("params", params)

    def expansion(other: Params, *inputs: PyTree, **keywords: Any) -> PyTree:
        direction = tree.sub(other, params)

        def term(k: int, base: Params) -> PyTree:
            if k == 0:
                return f(base, *inputs, **keywords)
            return jax.jvp(partial(term, k - 1), (base,), (direction,))[1]

        terms = [tree.scale(1.0 / math.factorial(k), term(k, params)) for k in range(degree + 1)]
        total = terms[0]
        for t in terms[1:]:
            total = tree.add(total, t)
        return total

    return expansion
