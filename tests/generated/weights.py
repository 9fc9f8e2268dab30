"""Weights: expressions of parameters alone, in the shape that a layer asks for."""

import math
from collections.abc import Callable

from expressions import ALONG, ELEMENTWISE, fill
from writer import Shape, Writer

WEIGHTS: dict[str, Callable[[Writer, Shape], str | None]] = {}


def weight(out: Writer, *shape: int) -> str:
    """An expression of parameters of this shape."""
    if out.depth <= 0 or out.rng.random() < 0.4:
        return out.param(*shape)
    out.depth -= 1
    while True:
        found = WEIGHTS[out.rng.choice(list(WEIGHTS))](out, shape)
        if found is not None:
            return f"({found})"


def kind(function: Callable[[Writer, Shape], str | None]) -> Callable:
    WEIGHTS[function.__name__] = function
    return function


def table(name: str, template: str, *, least: int = 0) -> None:
    """A kind of weight that is a function of one weight of the same shape."""

    def build(out: Writer, shape: Shape) -> str | None:
        if len(shape) < least:
            return None
        w = weight(out, *shape)
        return template.format(w=w if template.count("{w}") == 1 else out.name(w))

    WEIGHTS[name] = build


@kind
def elementwise(out: Writer, shape: Shape) -> str:
    w = weight(out, *shape)
    return ELEMENTWISE[out.rng.choice(list(ELEMENTWISE))].format(h=out.name(w))


@kind
def along(out: Writer, shape: Shape) -> str | None:
    if not shape:
        return None
    axis = out.rng.randrange(len(shape))
    template = ALONG[out.rng.choice(list(ALONG))]
    return fill(template, out.name(weight(out, *shape)), len(shape), axis, shape[axis])


@kind
def transposed(out: Writer, shape: Shape) -> str | None:
    if len(shape) < 2:
        return None
    order = list(range(len(shape)))
    out.rng.shuffle(order)
    inverse = [order.index(k) for k in range(len(shape))]
    return f"jnp.transpose({weight(out, *(shape[k] for k in inverse))}, {order})"


@kind
def reshaped(out: Writer, shape: Shape) -> str:
    return f"jnp.reshape({weight(out, math.prod(shape))}, {shape})"


@kind
def sliced(out: Writer, shape: Shape) -> str | None:
    if not shape:
        return None
    first, step = out.rng.randrange(2), out.rng.choice([1, 1, 2])
    longer = weight(out, first + (shape[0] - 1) * step + 1 + out.rng.randrange(2), *shape[1:])
    return f"{longer}[{first}:{first + (shape[0] - 1) * step + 1}:{step}]"


@kind
def joined(out: Writer, shape: Shape) -> str | None:
    axis = out.rng.randrange(len(shape)) if shape else 0
    if not shape or shape[axis] < 2:
        return None
    first = [*shape[:axis], 1, *shape[axis + 1 :]]
    second = [*shape[:axis], shape[axis] - 1, *shape[axis + 1 :]]
    return f"jnp.concatenate([{weight(out, *first)}, {weight(out, *second)}], axis={axis})"


@kind
def stacked(out: Writer, shape: Shape) -> str | None:
    if not shape or shape[0] > 4:
        return None
    return f"jnp.stack([{', '.join(weight(out, *shape[1:]) for _ in range(shape[0]))}])"


@kind
def padded(out: Writer, shape: Shape) -> str | None:
    if not shape or shape[-1] < 2:
        return None
    before = out.rng.randrange(2)
    widths = [(0, 0)] * (len(shape) - 1) + [(before, 1 - before)]
    return f"jnp.pad({weight(out, *shape[:-1], shape[-1] - 1)}, {widths})"


@kind
def broadcast(out: Writer, shape: Shape) -> str | None:
    if not shape:
        return None
    return f"jnp.broadcast_to({weight(out, *shape[1:])}, {shape})"


@kind
def gathered(out: Writer, shape: Shape) -> str | None:
    if not shape:
        return None
    rows = shape[0] + out.rng.choice([-1, 0, 2])
    if rows < 1:
        return None
    numbers = [out.rng.randrange(rows) for _ in range(shape[0])]
    return f"{weight(out, rows, *shape[1:])}[np.array({numbers})]"


@kind
def scattered(out: Writer, shape: Shape) -> str | None:
    if not shape:
        return None
    how = out.rng.choice(["set", "add", "max", "multiply"])
    count = 1 if how in ("set", "multiply") else 2
    numbers = [out.rng.randrange(shape[0]) for _ in range(count)]
    w, rows = weight(out, *shape), weight(out, count, *shape[1:])
    unique = ", unique_indices=True" if how == "multiply" else ""
    return f"{w}.at[np.array({numbers})].{how}({rows}{unique})"


@kind
def low_rank(out: Writer, shape: Shape) -> str | None:
    if len(shape) != 2:
        return None
    rank = out.rng.choice([1, 2, 3])
    return f"{weight(out, shape[0], rank)} @ {weight(out, rank, shape[1])}"


@kind
def outer(out: Writer, shape: Shape) -> str | None:
    if len(shape) != 2:
        return None
    return f"jnp.outer({weight(out, shape[0])}, {weight(out, shape[1])})"


@kind
def combined(out: Writer, shape: Shape) -> str:
    operation = out.rng.choice(["+", "-", "*", "+ 0.3 *", "- 2.0 *"])
    return f"{weight(out, *shape)} {operation} {weight(out, *shape)}"


@kind
def learned_scale(out: Writer, shape: Shape) -> str:
    own = out.rng.choice([(), shape[-1:], (1,) * len(shape)])
    return f"{weight(out, *own)} * {weight(out, *shape)}"


@kind
def frozen_part(out: Writer, shape: Shape) -> str:
    constant = f"np.cos(np.arange({math.prod(shape)}.0)).reshape({shape})"
    return f"{constant} {out.rng.choice('+*')} {weight(out, *shape)}"


@kind
def masked(out: Writer, shape: Shape) -> str:
    mask = f"np.arange({math.prod(shape)}).reshape({shape}) % 3 > 0"
    other = out.rng.choice(["0.0", weight(out, *shape)])
    return f"jnp.where({mask}, {weight(out, *shape)}, {other})"


@kind
def chosen(out: Writer, shape: Shape) -> str:
    """By an entry of a parameter that is a weight as well."""
    w = out.name(weight(out, *shape))
    entry = f"{w}[{', '.join('0' for _ in shape)}]" if shape else w
    ways = (
        f"lax.cond({entry} > 0.1, lambda w: w, lambda w: 2.0 * jnp.sin(w), {w})",
        f"lax.switch(jnp.int32({entry}) % 2, [lambda w: w * w, lambda w: -w], {w})",
        f"jnp.where({entry} > 0, {w}, 0.5 * {w})",
        f"lax.select({entry} > 0, {w}, jnp.tanh({w}))",
        f"{w} * jnp.argmax({weight(out, 3)})",
        f"{w} * jnp.searchsorted(jnp.array([-0.5, 0.5]), {entry})",
    )
    return out.rng.choice(ways)


@kind
def chosen_rows(out: Writer, shape: Shape) -> str | None:
    if not shape:
        return None
    w = out.name(weight(out, shape[0] + 1, *shape[1:]))
    scores = out.rng.choice([w, weight(out, shape[0] + 1, *shape[1:])])
    sums = f"{scores}.reshape({shape[0] + 1}, -1).sum(1)"
    ways = (
        f"{w}[jnp.argsort({sums})[:{shape[0]}]]",
        f"lax.dynamic_slice_in_dim({w}, jnp.argmax({sums}) % 2, {shape[0]})",
        f"{w}[lax.top_k({sums}, {shape[0]})[1]]",
    )
    return out.rng.choice(ways)


@kind
def scanned(out: Writer, shape: Shape) -> str:
    stack = weight(out, 3, *shape)
    step = out.rng.choice(["c + w", "jnp.tanh(c * w)", "c * jnp.cos(w)"])
    which = out.rng.randrange(2)
    start = f"jnp.ones({shape})"
    return f"lax.scan(lambda c, w: ({step},) * 2, {start}, {stack})[{which}]{'[-1]' * which}"


@kind
def mapped(out: Writer, shape: Shape) -> str | None:
    if not shape:
        return None
    over = out.rng.choice(["jax.vmap(lambda w: w / (1.0 + jnp.sum(w**2)))({w})",
                           "lax.map(lambda w: jnp.sin(w) * jnp.sum(w), {w})"])  # fmt: skip
    return over.format(w=weight(out, *shape))


@kind
def complex_parts(out: Writer, shape: Shape) -> str:
    z = f"({weight(out, *shape)} + 1j * {weight(out, *shape)})"
    return out.rng.choice(
        [f"jnp.real({z} ** 2)", f"jnp.abs({z} + 0.1)", f"jnp.imag({z} * (1 - 2j))"]
    )


@kind
def kronecker(out: Writer, shape: Shape) -> str | None:
    if len(shape) != 2 or shape[0] % 2 or shape[1] % 2:
        return None
    return f"jnp.kron({weight(out, 2, 2)}, {weight(out, shape[0] // 2, shape[1] // 2)})"


@kind
def solved(out: Writer, shape: Shape) -> str | None:
    if len(shape) != 2 or shape[0] > 4:
        return None
    a = out.name(weight(out, shape[0], shape[0]))
    positive = f"{a} @ {a}.T + np.eye({shape[0]})"
    ways = (
        f"jnp.linalg.solve({positive}, {weight(out, *shape)})",
        f"jax.scipy.linalg.solve_triangular(jnp.tril(0.3 * {a}) + 2.0 * np.eye({shape[0]}), "
        f"{weight(out, *shape)}, lower=True)",
        f"jnp.linalg.cholesky({positive}) @ {weight(out, *shape)}",
        f"jnp.linalg.inv({positive}) @ {weight(out, *shape)}",
        f"jax.scipy.linalg.expm(0.3 * ({a} - {a}.T)) @ {weight(out, *shape)}",
        f"jnp.linalg.qr({positive})[0] @ {weight(out, *shape)}",
    )
    return out.rng.choice(ways)


@kind
def normed(out: Writer, shape: Shape) -> str | None:
    if len(shape) < 2:
        return None
    w = out.name(weight(out, *shape))
    axis = out.rng.choice([None, 0, 1])
    gain = out.rng.choice(["", f" * {weight(out, shape[-1])}"])
    return f"{w} / jnp.sqrt(jnp.sum({w} ** 2, axis={axis}, keepdims=True)){gain}"


for name, template, least in (
    ("flipped", "jnp.flip({w}, 0)", 1),
    ("swapped twice", "jnp.swapaxes(jnp.swapaxes({w}, 0, 1) * 2.0, 0, 1)", 2),
    ("lower triangle", "jnp.tril({w})", 2),
    ("rematerialized", "jax.checkpoint(lambda w: jnp.sin(w) * w)({w})", 0),
    ("called", "jax.jit(lambda w: 2.0 * w)({w})", 0),
    ("partly stopped", "{w} + lax.stop_gradient(jnp.sin({w}))", 0),
    ("times its copy", "{w} * lax.stop_gradient({w})", 0),
    ("narrowed", "lax.reduce_precision({w}, 11, 52)", 0),
    ("of another view", "{w} + {w}[::-1]", 1),
    ("gradient of", "jax.grad(lambda w: jnp.sum(jnp.sin(w) ** 2))({w})", 0),
):
    table(name, template, least=least)
