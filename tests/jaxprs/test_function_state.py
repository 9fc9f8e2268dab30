"""The state of a function has in it whatever the function reads, or is unknown."""

import functools
import itertools
import math
import sys
import types
from dataclasses import dataclass

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import nn
from jaxnn.jaxprs.function_state import UnknownStateError, function_state

SCALE = 2.0
BOX = {0: [1.0]}


def reads_a_global(w, x):
    return SCALE * w * x


def calls_what_reads_a_global(w, x):
    return reads_a_global(w, x)


def reads_it_in_a_lambda(w, x):
    return jax.tree.map(lambda leaf: SCALE * leaf, w * x)


def recursive(w, x, depth=2):
    return SCALE * w * x if depth == 0 else recursive(w, x, depth - 1)


@functools.wraps(jnp.sin)
def says_it_is_of_a_library(w):
    return SCALE * w


def reads_a_dictionary(w, x):
    return BOX[0][0] * w * x


@pytest.mark.parametrize(
    "f",
    [
        reads_a_global,
        calls_what_reads_a_global,
        reads_it_in_a_lambda,
        recursive,
        reads_a_dictionary,
    ],
)
def test_globals_are_part_of_it(f, monkeypatch):
    before = function_state(f)
    assert function_state(f) == before
    with monkeypatch.context() as change:
        change.setitem(globals(), "SCALE", 3.0)
        change.setitem(BOX, 0, [3.0])
        assert function_state(f) != before
    assert function_state(f) == before


def capturing(value):
    return lambda w: (value, w)


def closures():
    """Pairs of functions that differ in one thing that they read."""
    cell, attribute = ([lambda w, v=v: v * w for v in (1.0, 2.0)] for _ in range(2))
    for f, v in zip(attribute, (1.0, 2.0), strict=True):
        f.scale = v
    keywords = [eval(f"lambda w, *, v={v}: v * w") for v in (1.0, 2.0)]
    values = [1, 1.0, True, "1", b"1", None, (1,), [1], {"a": 1}, {"b": 1}, -0.0, 0.0, math.nan]
    values += [jnp.ones(2), jnp.ones(3), jnp.ones(2, jnp.int32), np.ones(2), jax.random.key(0)]
    values += [jnp.float32, jnp.float16, jnp.sin, jax.nn.relu, nn.tanh(), nn.sin(), nn.dense(2)]
    values += [nn.dense(3), slice(1, 2), slice(1, 3), np.dtype("int8"), 1 + 0j, ...]
    captured = [capturing(v) for v in values]
    yield from (cell, attribute, keywords)
    yield from itertools.combinations(captured, 2)


def test_what_differs_has_another_state():
    for first, second in closures():
        assert function_state(first) != function_state(second)
        assert function_state(first) == function_state(first)
        assert hash(function_state(first)) == hash(function_state(first))


def test_what_is_made_alike_has_the_same_state():
    for make in (
        lambda: nn.mlp((8, 3)).apply,
        lambda: nn.serial(nn.residual(nn.dense(4)), nn.layer_norm(), nn.conv(2, (3,))).apply,
        lambda: nn.elementwise(jnp.tanh).apply,
        lambda: capturing(jnp.arange(3.0)),
        lambda: flax.linen.Dense(3).apply,
    ):
        assert function_state(make()) == function_state(make())
    assert function_state(flax.linen.Dense(3).apply) != function_state(flax.linen.Dense(2).apply)


class Plain:
    scale = 2.0


@dataclass
class Mutable:
    scale: float


@dataclass(frozen=True)
class Frozen:
    scale: float

    def apply(self, w):
        return self.scale * w


plain, mutable = Plain(), Mutable(2.0)
settings = types.ModuleType("settings")


def imports_in_its_body(w):
    import settings

    return settings.scale * w


@pytest.mark.parametrize(
    "f",
    [
        lambda w: plain.scale * w,
        lambda w: Plain.scale * w,
        lambda w: mutable.scale * w,
        lambda w: settings.scale * w,
        lambda w: sys.modules["settings"].scale * w,
        imports_in_its_body,
    ],
)
def test_objects_with_a_state_of_their_own_are_unknown(f):
    with pytest.raises(UnknownStateError):
        function_state(f)


def test_objects_compared_by_value_are_values():
    assert function_state(Frozen(2.0).apply) == function_state(Frozen(2.0).apply)
    assert function_state(Frozen(2.0).apply) != function_state(Frozen(3.0).apply)


def test_traced_values_are_unknown():
    def outer(v):
        with pytest.raises(UnknownStateError):
            function_state(lambda w: v * w)
        return v

    jax.jit(outer)(1.0)


def test_a_variable_without_a_value_is_unknown():
    def f():
        return later

    with pytest.raises(UnknownStateError):
        function_state(f)
    later = 1.0
    assert function_state(f) == function_state(f)
