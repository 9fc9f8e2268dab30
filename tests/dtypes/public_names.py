"""The public functions of jaxnn, by name: what packages hand on, and what single files define."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType

import jaxnn


def public_functions() -> dict[str, Callable]:
    """Name below jaxnn ↦ function, for every module and package."""
    functions: dict[str, Callable] = {}
    for info in pkgutil.iter_modules(jaxnn.__path__):
        functions.update(_functions(importlib.import_module(f"jaxnn.{info.name}"), set()))
    return functions


def _functions(module: ModuleType, seen: set[str]) -> Iterator[tuple[str, Callable]]:
    seen.add(module.__name__)
    package = hasattr(module, "__path__")
    for name in module.__all__ if package else vars(module):
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            if package and value.__name__ not in seen:
                yield from _functions(value, seen)
        elif (
            name[0].islower()  # neither private nor a type
            and callable(value)
            and (package or value.__module__ == module.__name__)
        ):
            yield f"{module.__name__.removeprefix('jaxnn.')}.{name}", value
