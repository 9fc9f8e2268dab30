"""Kernels of random programs are right or refused, never wrong: see `programs` and `expressions`.

A failure prints a program that can be pasted, made as small as it gets.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from oracles import unchecked
from random_programs import draw, minimized
from verdicts_of_programs import Verdict, case, judged

from jaxnn import kernels

BATCH = 25
QUICK, SLOW = 200, 10_000


@pytest.fixture(autouse=True)
def _as_users_run_it(standard_promotion):
    with unchecked(), jax.enable_x64(True):
        yield


quick: dict[int, list[Verdict]] = {}


def failures(verdicts: list[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if v.kind in ("wrong", "crashed")]


def explained(verdict: Verdict) -> str:
    def same(spec) -> bool:
        try:
            (again,) = judged([spec])
        except Exception:
            return False
        return again.kind == verdict.kind and bool(failures([again]))

    (small,) = judged([minimized(verdict.spec, same)])
    return f"\nseed {verdict.spec.seed}: {small.kind}, {small.message}\n\n{small.program.source}"


@pytest.mark.parametrize("start", range(0, QUICK, BATCH))
def test_small_programs(start):
    quick[start] = judged(
        [draw(seed, steps=2 if seed % 4 == 0 else 1) for seed in range(start, start + BATCH)]
    )
    failed = failures(quick[start])
    assert not failed, explained(failed[0])


def test_most_programs_without_couplings_are_answered():
    verdicts = [v for batch in quick.values() for v in batch if v.program.kind == "independent"]
    answered = [v for v in verdicts if v.kind == "right"]
    assert len(answered) >= 0.7 * len(verdicts)
    undecided = [v for batch in quick.values() for v in batch if v.kind == "undecided"]
    assert len(undecided) <= 0.05 * QUICK


def primitives(jaxpr: Jaxpr) -> set[str]:
    found = set()
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if isinstance(inner, Jaxpr | ClosedJaxpr):
                    found |= primitives(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
    return found


def test_programs_are_made_of_many_primitives():
    found: set[str] = set()
    for seed in range(1000, 1100):
        each = case(draw(seed, steps=2))
        params, x1, _ = each.arguments
        with jax.enable_x64(not each.spec.single):
            found |= primitives(jax.make_jaxpr(each.names["f"])(params, x1).jaxpr)
    assert len(found) >= 60, sorted(found)


def test_a_wrong_kernel_is_found_and_its_program_made_smaller(monkeypatch):
    spec = draw(0, steps=1)._replace(data="vectors", lengths=(3, None), head="vector", steps=())
    spec = spec._replace(entry="nngp", options=(), jitted=False, single=False)
    monkeypatch.setattr(kernels, "nngp", lambda f, p, x1, x2: np.ones((3, 3)))
    assert judged([spec])[0].kind == "wrong"
    large = draw(1, steps=4)
    small = minimized(large, lambda s: "method" in dict(s.options))
    assert len(large.steps) > 1
    assert small.steps == ()
    assert (small.data, small.head, small.lengths[1]) == ("vectors", "vector", None)


def test_an_operation_without_a_backward_pass_is_refused():
    def f(p, x):
        start = jnp.zeros((), x.dtype)  # of a start that is no constant, JAX knows no sum
        return lax.reduce_window(x @ p, start, lax.add, (1, 2), (1, 1), "SAME")

    with pytest.raises(ValueError, match=r"params through an operation without reverse mode, exp"):
        kernels.ntk(f, jnp.ones((3, 2)), jnp.ones((4, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(QUICK, QUICK + SLOW, 100))
def test_programs(start):
    for first in range(start, start + 100, BATCH):
        failed = failures(judged([draw(seed, steps=4) for seed in range(first, first + BATCH)]))
        assert not failed, explained(failed[0])
    jax.clear_caches()
