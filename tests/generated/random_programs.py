"""Random programs: drawn from a seed, printed as source that can be pasted, made smaller."""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from steps import STEPS
from weights import weight
from writer import Writer


class Step(NamedTuple):
    """One step: its name, the seed of its choices, how deep the expressions of its weights are."""

    name: str
    seed: int
    depth: int


class Spec(NamedTuple):
    """All that `source` needs.

    data     a name in DATA
    lengths  of x1 and x2 (None: x2 is None)
    head     a name in HEADS
    entry    "ntk", "ntk_operator" or "nngp"
    options  (name, source) of keyword arguments of `ntk`
    jitted   whether the kernel is computed inside `jax.jit`
    single   whether everything is float32
    """

    seed: int
    data: str
    lengths: tuple[int, int | None]
    steps: tuple[Step, ...]
    head: str
    entry: str
    options: tuple[tuple[str, str], ...]
    jitted: bool
    single: bool


DATA: dict[str, tuple[str, tuple[int, ...], str]] = {
    # name: (source of a batch of n examples, shape of an example's part in h, source of h)
    "vectors": ("normal({n}, 3)", (3,), ""),
    "narrow vectors": ("normal({n}, 2)", (2,), ""),
    "single numbers": ("normal({n}, 1)", (1,), ""),
    "numbers": ("normal({n})", (), ""),
    "sequences": ("normal({n}, 2, 3)", (2, 3), ""),
    "images": ("normal({n}, 3, 3, 2)", (3, 3, 2), ""),
    "tokens": ("integers({n}, 3)", (3, 2), "{w}[x]"),
    "tokens as one-hot": ("integers({n}, 3)", (3, 2), "jax.nn.one_hot(x, 6) @ {w}"),
    "tokens out of range": (
        "integers({n}, 3) * 2",
        (3, 2),
        "jnp.take({w}, x, axis=0, mode='clip')",
    ),
    "counts": ("integers({n}, 3)", (3,), "0.3 * x"),
    "bits": ("integers({n}, 2) > 2", (2,), "jnp.where(x, {w}[0], {w}[1])"),
    "pairs": (
        "{{'u': normal({n}, 2), 'ids': integers({n})}}",
        (2,),
        "x['u'] * {w}[x['ids']]",
    ),
}

HEADS: dict[str, Callable[[Writer], None]] = {}


def _head(function: Callable[[Writer], None]) -> Callable[[Writer], None]:
    HEADS[function.__name__] = function
    return function


def _at_most(out: Writer, most: int) -> int:
    size = out.vector()
    if size > most:
        out.let(f"{out.h} @ {weight(out, size, most)}", (most,))
    return out.size


@_head
def vector(out: Writer) -> None:
    _at_most(out, 2)
    out.lines.append(f"return {out.h}")


@_head
def number(out: Writer) -> None:
    out.vector()
    out.lines.append(f"return jnp.sin({out.h}).sum(1)")


@_head
def matrix(out: Writer) -> None:
    _at_most(out, 2)
    out.lines.append(f"return jnp.stack([{out.h}, jnp.sin({out.h})], axis=1)")


@_head
def tree(out: Writer) -> None:
    _at_most(out, 2)
    out.lines.append(f"return {{'a': {out.h}, 'b': jnp.cos({out.h}).sum(1)}}")


def draw(seed: int, *, steps: int) -> Spec:
    """The program of a seed, of at most `steps` ordinary steps and at most one of another kind."""
    rng = random.Random(seed)
    ordinary = [name for name in STEPS if name not in ("placed", "coupled", RARE)]
    count = rng.randint(1, steps)
    names = [rng.choice(ordinary) for _ in range(count)]
    special = rng.random()
    if special < 0.24:
        names.insert(rng.randint(0, count), "placed" if special < 0.13 else "coupled")
    elif special < 0.26:
        names.insert(rng.randint(0, count), RARE)
    steps = tuple(Step(name, rng.randrange(10**6), rng.choice([0, 0, 1, 2])) for name in names)
    n1 = rng.choice([3, 3, 3, 2, 4, 1])
    n2 = rng.choice([None, None, None, None, 2, 3, 1, 5])
    entry = rng.choice(["ntk"] * 14 + ["ntk_operator", "nngp"])
    entry = "ntk" if RARE in names else entry  # operators leave JAX's message as it is
    return Spec(
        seed,
        rng.choice([*DATA, "vectors", "vectors", "sequences", "images"]),
        (n1, n2),
        steps,
        rng.choice([*HEADS, "vector"]),
        entry,
        tuple(_options(rng, coupled="coupled" in names)) if entry == "ntk" else (),
        rng.random() < 0.92,
        rng.random() < 0.04,
    )


RARE = "loop_without_reverse_mode"


def _options(rng: random.Random, *, coupled: bool) -> Iterator[tuple[str, str]]:
    yield "outputs", rng.choice(["'mean'", "'full'", "'full'", "'diagonal'"])
    yield "method", rng.choice(["'auto'", "'structured'", "'structured'", "'jacobian'",
                                "'vector_products'"])  # fmt: skip
    special = rng.random()
    if special < (0.4 if coupled else 0.08):
        yield "coupled", "True"
    elif special > 0.92:
        yield "paired", "True"
    if rng.random() < 0.15:
        yield "groups", rng.choice(["lambda path: path < \"['c']\"", "lambda path: path"])
    if rng.random() < 0.15:
        yield "metric", rng.choice(["{k: 1.0 + i for i, k in enumerate(params)}",
                                    "jax.tree.map(lambda a: a**2, params)"])  # fmt: skip
    if rng.random() < 0.2:
        yield "max_bytes", rng.choice(["1", "2000"])


class Program(NamedTuple):
    """A program's source without its call, the call, and what its writer claims (`Writer`)."""

    single: bool
    definitions: str
    call: str
    kind: str
    fixed: bool

    @property
    def source(self) -> str:
        """What to paste."""
        return f"{PREAMBLE.format(wide=not self.single)}\n{self.definitions}\nprint({self.call})\n"


def written(spec: Spec) -> Program:
    """The program of a specification."""
    n1, n2 = spec.lengths
    out = Writer(n1)
    out.rng = random.Random(spec.seed)
    data, out.shape, start = DATA[spec.data]
    if start:
        shape = (6, 2) if "[x" in start or "x, " in start or "@" in start else (2, 2)
        out.let(start.format(w=weight(out, *shape)), out.shape)
    for name, seed, depth in spec.steps:
        out.rng, out.depth = random.Random(seed), depth
        STEPS[name](out)
        if out.size > 12:
            out.let(f"{out.h}.reshape(n, -1)[:, :8]", (8,))
    out.rng, out.depth = random.Random(spec.seed), 0
    HEADS[spec.head](out)
    if not out.params:
        out.param(2)  # unused
    if (out.fixed or "paired" in dict(spec.options)) and n2 is not None:
        n2 = n1
    length = "x['u'].shape[0]" if spec.data == "pairs" else "x.shape[0]"
    params = ", ".join(f'"{name}": {drawn}' for name, drawn in out.params.items())
    body = "\n".join(f"    {line}" for line in (f"n = {length}", *out.lines))
    definitions = DEFINITIONS.format(
        seed=spec.seed,
        definitions=f"{out.definitions()}\n\n" if out.definitions() else "",
        params=params,
        x1=data.format(n=n1),
        x2="None" if n2 is None else data.format(n=n2),
        body=body,
    )
    arguments = "".join(f", {name}={value}" for name, value in spec.options)
    call = f"kernels.{spec.entry}(f, params, x1, x2{arguments})"
    if spec.entry == "ntk_operator":
        call += ".to_dense()"
    if spec.jitted:
        call = f"jax.jit(lambda params, x1, x2: {call})(params, x1, x2)"
    return Program(spec.single, definitions, call, out.kind, out.fixed)


PREAMBLE = """\
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

jax.config.update("jax_enable_x64", {wide})
from jaxnn import kernels
"""

DEFINITIONS = """\
rng = np.random.default_rng({seed})
normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
integers = lambda *shape: jnp.asarray(rng.integers(0, 6, size=shape))
params = {{{params}}}
x1 = {x1}
x2 = {x2}


{definitions}def f(p, x):
{body}
"""


def smaller(spec: Spec) -> Iterator[Spec]:
    """Specifications with one thing less."""
    for k in range(len(spec.steps)):
        yield spec._replace(steps=spec.steps[:k] + spec.steps[k + 1 :])
    for k, (_, _, depth) in enumerate(spec.steps):
        if depth:
            fewer = spec.steps[k]._replace(depth=depth - 1)
            yield spec._replace(steps=(*spec.steps[:k], fewer, *spec.steps[k + 1 :]))
    for k, (name, _) in enumerate(spec.options):
        if name not in ("outputs", "method"):
            yield spec._replace(options=spec.options[:k] + spec.options[k + 1 :])
    simple = {"data": "vectors", "head": "vector", "jitted": False, "single": False}
    for field, value in simple.items():
        if getattr(spec, field) != value:
            yield spec._replace(**{field: value})
    if spec.lengths[1] is not None:
        yield spec._replace(lengths=(spec.lengths[0], None))


def minimized(spec: Spec, fails: Callable[[Spec], bool]) -> Spec:
    """A smallest specification that still fails."""
    for candidate in smaller(spec):
        if fails(candidate):
            return minimized(candidate, fails)
    return spec
