"""`jax.jit` for functions whose static arguments may be functions and objects that change."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from jaxnn.jaxprs.function_state import Identity, UnknownStateError, function_state

Function = TypeVar("Function", bound=Callable)


class _Constants:
    """The static arguments of a call, hashed and compared by what they hold."""

    def __init__(self, values: dict[str, Any]):
        self.values = values
        try:
            self.state = function_state(values)
        except UnknownStateError:
            self.state = Identity(values)

    def __hash__(self) -> int:
        return hash(self.state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constants) and self.state == other.state


def compiled(*, static_argnames: Sequence[str]) -> Callable[[Function], Function]:
    """A decorator like `jax.jit`, whose static arguments are compared by value.

    A program is used again if the static arguments are numbers, functions, or containers of such
    that hold the same as before (`function_state`). With an object that has a state of its own, as
    an optimizer with attributes, every call compiles: the object may have changed.

    >>> @compiled(static_argnames=["f"])
    ... def at_two(f, scale):
    ...     return f(2.0) * scale
    >>> at_two(lambda x: x**2, 3.0)
    Array(12., dtype=float32, weak_type=True)
    """

    def decorated(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.partial(jax.jit, static_argnums=0)
        def program(constants: _Constants, arguments: dict[str, Any]) -> Any:
            bound = signature.bind_partial()
            bound.arguments.update({**constants.values, **arguments})
            return function(*bound.args, **bound.kwargs)

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            arguments = signature.bind(*args, **keywords)
            arguments.apply_defaults()
            constants = {name: arguments.arguments.pop(name) for name in static_argnames}
            return program(_Constants(constants), dict(arguments.arguments))

        return call  # type: ignore[return-value]

    return decorated
