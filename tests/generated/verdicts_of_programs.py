"""Programs against brute force: kernels from the Jacobian of the whole batch, in float64."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from random_programs import Program, Spec, written

from jaxnn import kernels

REFUSAL = re.compile(r"[^\n]+?: got .+, expected .+\. \S.*", re.DOTALL)
"""The form of `jaxnn.errors.invalid`."""

CHEAP = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
"""Options of XLA that compile in a third of the time, where it has them."""


@cache
def cheap() -> dict[str, Any]:
    """The options that this version of XLA knows."""
    known = {}
    for name, value in CHEAP.items():
        try:
            jax.jit(jnp.sin, compiler_options={name: value})(1.0)
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


class Verdict(NamedTuple):
    """What came of a program.

    kind     "right"; "refused" by an error of the library's form; "wrong" values; "crashed" with
             another error; "undecided" where the oracle has no finite value, or one that hangs on
             rounding
    message  of the error, or the deviation
    """

    spec: Spec
    program: Program
    kind: Literal["right", "refused", "wrong", "crashed", "undecided"]
    message: str


class _Case(NamedTuple):
    spec: Spec
    program: Program
    names: dict[str, Any]

    @property
    def arguments(self) -> tuple:
        return tuple(self.names[name] for name in ("params", "x1", "x2"))

    def option(self, name: str) -> Any:
        return eval(dict(self.spec.options).get(name, "None"), self.names)

    @property
    def alone(self) -> bool:
        """Whether the call is compiled by itself."""
        return self.spec.single or not self.spec.jitted

    def found(self, arguments: tuple) -> Any:
        given = dict(zip(("params", "x1", "x2"), arguments, strict=True))
        with jax.enable_x64(not self.spec.single):
            return eval(self.program.call, {**self.names, **given})


def case(spec: Spec) -> _Case:
    """The program, run up to its call."""
    program = written(spec)
    names: dict[str, Any] = {"jax": jax, "jnp": jnp, "np": np, "lax": lax, "kernels": kernels}
    with jax.enable_x64(not spec.single):
        exec(compile(program.definitions, f"<program {spec.seed}>", "exec"), names)
    return _Case(spec, program, names)


def judged(specs: Sequence[Spec]) -> list[Verdict]:
    """The verdicts on programs; the oracles, and the kernels inside `jit`, compile as one."""
    cases = [case(spec) for spec in specs]
    errors: dict[int, Exception] = {}

    def together(arguments: list) -> list:
        results = []
        for k, (each, own) in enumerate(zip(cases, arguments, strict=True)):
            found = ()
            if not each.alone:
                try:
                    found = each.found(own)
                except Exception as error:
                    errors[k] = error
            results.append((found, expected(each, own)))
        return results

    options = cheap() if jax.default_backend() == "cpu" else None
    compiled = jax.jit(together, compiler_options=options)
    results = compiled([each.arguments for each in cases])
    verdicts = []
    for k, (each, (found, truth)) in enumerate(zip(cases, results, strict=True)):
        if each.alone:
            try:
                found = each.found(each.arguments)
            except Exception as error:
                errors[k] = error
        kind, message = _verdict(each, found, truth, errors.get(k))
        verdicts.append(Verdict(each.spec, each.program, kind, message))
    return verdicts


def _verdict(each: _Case, found: Any, truth: Any, error: Exception | None) -> tuple[Any, str]:
    if error is not None:
        refused = type(error) is ValueError and REFUSAL.fullmatch(str(error))
        return "refused" if refused else "crashed", f"{type(error).__name__}: {error}"
    if jax.tree.structure(found) != jax.tree.structure(truth):
        return "wrong", f"{jax.tree.structure(found)} instead of {jax.tree.structure(truth)}"
    found, truth = jax.tree.leaves(found), jax.tree.leaves(truth)
    shapes = [[np.shape(leaf) for leaf in leaves] for leaves in (found, truth)]
    if shapes[0] != shapes[1]:
        return "wrong", f"shapes {shapes[0]} instead of {shapes[1]}"
    if not all(np.isfinite(leaf).all() for leaf in truth):
        return "undecided", "the oracle is not finite"
    scale = max((np.abs(leaf).max() for leaf in truth if leaf.size), default=0.0)
    pairs = zip(found, truth, strict=True)
    error_size = max((np.abs(a - b).max() for a, b in pairs if np.size(b)), default=0.0)
    if error_size <= (2e-3 if each.spec.single else 1e-8) * scale + 1e-14:
        return "right", ""
    if _hangs_on_rounding(each, scale):
        return "undecided", "the oracle hangs on rounding"
    return "wrong", f"off by {error_size:.2g}, where the largest value is {scale:.2g}"


def _hangs_on_rounding(each: _Case, scale: float) -> bool:
    params, x1, x2 = each.arguments
    rng = np.random.default_rng(0)
    size = 1e-6 if each.spec.single else 1e-11
    compiled = jax.jit(lambda *arguments: expected(each, arguments))
    first = jax.tree.leaves(compiled(params, x1, x2))
    for _ in range(3):
        moved = jax.tree.map(lambda a: a * (1.0 + size * rng.normal(size=a.shape)), params)
        second = jax.tree.leaves(compiled(moved, x1, x2))
        if (
            max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))
            > 1e4 * size * scale
        ):
            return True
    return False


# The oracle.


def expected(each: _Case, arguments: tuple) -> Any:
    """What the call should return, from Jacobians of whole batches in float64."""
    params, x1, x2 = jax.tree.map(_wide, arguments)
    x2 = x1 if x2 is None else x2
    f = each.names["f"]
    if each.spec.entry == "nngp":
        y1, y2 = (jnp.concatenate(_flat(f(params, x)), axis=1) for x in (x1, x2))
        return y1 @ y2.T / y1.shape[1]
    first, second = (jacobian(f, params, x) for x in (x1, x2))
    if each.spec.entry == "ntk_operator":
        rows = [
            jnp.concatenate([jnp.concatenate(row, axis=2).reshape(-1, _count(row)) for row in j])
            for j in (first, second)
        ]
        return rows[0] @ rows[1].T
    return _kernels(each, params, first, second)


def jacobian(f: Any, params: dict, x: Any) -> list[list]:
    """By output leaf and parameter: (N, entries of an example's output, entries)."""

    def leaves(p: dict) -> list:
        return jax.tree.leaves(f(p, x))

    shapes = [y.shape for y in jax.eval_shape(leaves, params)]
    try:
        rows = jax.jacrev(leaves)(params)
    except ValueError:  # a loop without reverse mode: nothing to compare with
        rows = [{k: jnp.full((*y, *p.shape), jnp.nan) for k, p in params.items()} for y in shapes]
    return [
        [row[name].reshape(y[0], int(np.prod(y[1:])), -1) for name in params]
        for y, row in zip(shapes, rows, strict=True)
    ]


def _kernels(each: _Case, params: dict, first: list[list], second: list[list]) -> Any:
    groups, metric = each.option("groups"), each.option("metric")
    names = list(params)
    labels = [None if groups is None else groups(f"['{name}']") for name in names]
    shapes = jax.eval_shape(each.names["f"], params, jax.tree.map(_wide, each.names["x1"]))
    outputs = each.option("outputs")
    found = {}
    for label in dict.fromkeys(labels):
        full = [[0.0 for _ in second] for _ in first]
        for k, name in enumerate(names):
            if labels[k] != label:
                continue
            m = (
                1.0
                if metric is None
                else jnp.broadcast_to(metric[name], params[name].shape).ravel()
            )
            for a, one in enumerate(first):
                for b, two in enumerate(second):
                    full[a][b] += jnp.einsum("nap,mbp->nmab", one[k] * m, two[k])
        found[label] = _as_asked(outputs, full, shapes)
    if each.option("paired"):
        found = jax.tree.map(lambda k: jnp.moveaxis(jnp.diagonal(k), -1, 0), found)
    return found if groups is not None else found[None]


def _as_asked(outputs: str, full: list[list], shapes: Any) -> Any:
    leaves, structure = jax.tree.flatten(shapes)
    outer = [leaf.shape[1:] for leaf in leaves]
    if outputs == "mean":
        count = sum(int(np.prod(shape)) for shape in outer)
        traces = (jnp.trace(row[a], axis1=2, axis2=3) for a, row in enumerate(full))
        return sum(traces) / count
    if outputs == "diagonal":
        parts = [
            jnp.diagonal(row[a], axis1=2, axis2=3).reshape(*row[a].shape[:2], *shape)
            for a, (row, shape) in enumerate(zip(full, outer, strict=True))
        ]
        return jax.tree.unflatten(structure, parts)
    rows = [
        jax.tree.unflatten(
            structure,
            [k.reshape(*k.shape[:2], *s1, *s2) for k, s2 in zip(row, outer, strict=True)],
        )
        for row, s1 in zip(full, outer, strict=True)
    ]
    return jax.tree.unflatten(structure, rows)


def _wide(a: Any) -> Any:
    return jnp.asarray(a, "float64") if jnp.issubdtype(a.dtype, jnp.floating) else a


def _flat(y: Any) -> list:
    return [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(y)]


def _count(row: list) -> int:
    return sum(entry.shape[2] for entry in row)
