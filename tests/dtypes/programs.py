"""What a program computes, read from its jaxpr: whether two are the same, and where sums are."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat"}
ACCUMULATING = {"reduce_sum", "cumsum", "cumprod", "reduce_prod", "reduce_window_sum", "iota"}


def fingerprint(f: Callable, args: Any) -> tuple:
    """Equal for programs that apply the same operations to the same arguments, in any order."""
    closed = jax.make_jaxpr(f)(*args)
    inputs = [("input", i) for i, _ in enumerate(closed.jaxpr.invars)]
    return tuple(_outputs(closed, inputs))


def halves_accumulated(f: Callable, args: Any) -> list[str]:
    """The sums, products and running numbers that a program forms in half precision."""
    equations = _equations(jax.make_jaxpr(f)(*args).jaxpr)
    return [str(e) for e in equations if e.primitive.name in ACCUMULATING and _is_half(e.outvars)]


def _is_half(variables: Any) -> bool:
    dtypes = (v.aval.dtype for v in variables)
    return any(jnp.issubdtype(d, jnp.floating) and jnp.finfo(d).bits < 32 for d in dtypes)


def _outputs(closed: Any, inputs: list[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, map(_value, closed.consts), strict=True))
    env |= dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda v: _value(v.val) if hasattr(v, "val") else env[v]
    for eqn in jaxpr.eqns:
        name, operands = eqn.primitive.name, [read(v) for v in eqn.invars]
        body = next(iter(_bodies(eqn.params)), None)
        if name in CALLS and body is not None:
            results = _outputs(body, operands)
        else:
            key = hash((name, _params(eqn.params), tuple(operands)))
            results = [(key, i) for i, _ in enumerate(eqn.outvars)]
        env |= dict(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _params(params: dict[str, Any]) -> str:
    """The parameters of an equation as text, its bodies by what they compute."""
    parts = []
    for name, value in sorted(params.items()):
        bodies = list(_bodies({name: value}))
        if bodies:
            inner = [_outputs(b, [("input", i) for i, _ in enumerate(b.in_avals)]) for b in bodies]
            parts.append(f"{name}={inner}")
        elif not callable(value):
            parts.append(f"{name}={value}")
    return " ".join(parts)


def _bodies(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "jaxpr") and hasattr(part, "consts"):
                yield part


def _equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for body in _bodies(eqn.params):
            yield from _equations(body.jaxpr)


def _value(x: Any) -> Any:
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = np.asarray(x)
    return (str(x.dtype), x.shape, x.tobytes())
