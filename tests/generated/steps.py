"""What a program is made of: each step writes the next value h."""

# ruff: noqa: E501 (an expression stays on one line, as in the programs)

from collections.abc import Callable

from expressions import ALONG, ELEMENTWISE, FORWARD_ONLY, PLACED, fill
from weights import weight
from writer import Writer

STEPS: dict[str, Callable[[Writer], None]] = {}


def step(function: Callable[[Writer], None]) -> Callable[[Writer], None]:
    STEPS[function.__name__] = function
    return function


def _add_trailing_axis(out: Writer) -> None:
    if not out.shape:
        out.vector()


# Products with weights.


@step
def dense(out: Writer) -> None:
    _add_trailing_axis(out)
    *before, size = out.shape
    width = out.rng.choice([1, 2, 3, 4])
    out.let(f"jnp.tanh({out.h} @ {weight(out, size, width)})", (*before, width))


@step
def dense_on_the_left(out: Writer) -> None:
    size, width = out.vector(), out.rng.choice([2, 3])
    out.let(f"({weight(out, width, size)} @ {out.h}.T).T", (width,))


@step
def bias(out: Writer) -> None:
    own = out.rng.choice([out.shape, out.shape[-1:], (), (1, *out.shape)])
    operation = out.rng.choice("+-*")
    out.let(f"{out.h} {operation} {weight(out, *own)}", out.shape)


@step
def distance(out: Writer) -> None:
    size = out.vector()
    centers = out.name(weight(out, 3, size))
    out.let(f"jnp.exp(-jnp.sum(({out.h}[:, None] - {centers}) ** 2, -1) / 4.0)", (3,))


@step
def bilinear(out: Writer) -> None:
    size = out.vector()
    w = weight(out, size, size)
    out.let(f"jnp.einsum('ni,ij,nj->n', {out.h}, {w}, jnp.sin({out.h}))", ())


@step
def gate(out: Writer) -> None:
    size = out.vector()
    out.let(f"{out.h} * jax.nn.sigmoid({out.h} @ {weight(out, size, size)})", out.shape)


@step
def heads(out: Writer) -> None:
    steps, size = out.sequence()
    spec = out.rng.choice(["ntd,tdk->ntk", "ntd,dk->nkt", "ntd,tk->nkd", "ntd,tdk->nk"])
    letters = {"t": steps, "d": size, "k": 2}
    own, result = spec.split(",")[1].split("->")
    w = weight(out, *(letters[c] for c in own))
    out.let(f"jnp.einsum('{spec}', {out.h}, {w})", tuple(letters[c] for c in result[1:]))


@step
def appended(out: Writer) -> None:
    size = out.vector()
    row = f"jnp.broadcast_to({weight(out, 2)}, (n, 2))"
    out.let(f"jnp.concatenate([{out.h}, {row}], axis=1)", (size + 2,))


@step
def convolution_1d(out: Writer) -> None:
    steps, size = out.sequence()
    width, window = out.rng.choice([2, 3]), out.rng.choice([1, 2])
    layouts = {"NWC": "h", "NCW": "jnp.swapaxes(h, 1, 2)", "WNC": "jnp.swapaxes(h, 0, 1)"}
    lhs = out.rng.choice(list(layouts))
    rhs = out.rng.choice(["WIO", "OIW", "IOW"])
    sizes = {"W": window, "I": size, "O": width}
    w = weight(out, *(sizes[c] for c in rhs))
    x = layouts[lhs].replace("h", out.h)
    out.let(
        f"lax.conv_general_dilated({x}, {w}, (1,), 'SAME', rhs_dilation=({out.rng.choice([1, 2])},),"
        f" dimension_numbers=('{lhs}', '{rhs}', 'NWC'))",
        (steps, width),
    )


@step
def convolution_2d(out: Writer) -> None:
    height, width, size = out.image()
    groups = out.rng.choice([g for g in (1, 2, size) if size % g == 0 and size <= 4] or [1])
    features = 2 * groups if groups > 1 else out.rng.choice([1, 2])
    strides, dilation = out.rng.choice([(1, 1), (2, 1)]), out.rng.choice([1, 1, 2])
    spread = out.rng.choice([1, 1, 2])
    padding = out.rng.choice(["'SAME'", "((1, 0), (0, 2))", "'VALID'"])
    if spread > 1 or dilation > 1:
        padding = "((1, 1), (0, 2))"
    window = min(2, height), min(2, width)
    w = weight(out, *window, size // groups, features)
    out.let(
        f"lax.conv_general_dilated({out.h}, {w}, {strides}, {padding}, rhs_dilation=({dilation},) * 2,"
        f" lhs_dilation=({spread},) * 2, feature_group_count={groups},"
        " dimension_numbers=('NHWC', 'HWIO', 'NHWC'))",
        (),
    )
    out.lines[-1] += ".sum((1, 2))"
    out.shape = (features,)


@step
def convolution_transposed(out: Writer) -> None:
    steps, size = out.sequence()
    w = weight(out, 2, size, 2)
    x = f"lax.conv_transpose({out.h}, {w}, (2,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'))"
    out.let(x, (2 * steps, 2))
    out.let(f"{out.h}.reshape(n, 2, {steps}, 2).sum(1)", (steps, 2))


@step
def patches(out: Writer) -> None:
    height, width, size = out.image()
    window = min(2, height), min(2, width)
    taken = (
        f"lax.conv_general_dilated_patches({out.h}, {window}, (1, 1), 'VALID',"
        " dimension_numbers=('NHWC', 'HWIO', 'NHWC'))"
    )
    features = size * window[0] * window[1]
    out.let(taken, (height - window[0] + 1, width - window[1] + 1, features))
    out.let(f"({out.h} @ {weight(out, features, 2)}).mean((1, 2))", (2,))


@step
def embedding(out: Writer) -> None:
    """Look-ups of rows of a weight at numbers that are computed from the data."""
    size = out.vector()
    rows = 5
    numbers = out.name(f"jnp.int32(jnp.floor(2.0 * jnp.sin({out.h}))) + 2")
    w = weight(out, rows, 2)
    ways = (
        f"{w}[{numbers}]",
        f"jnp.take({w}, {numbers} + 1, axis=0, mode='clip')",
        f"jnp.take({w}, {numbers} + 2, axis=0, fill_value=0.5)",
        f"{w}.at[{numbers}].get(mode='promise_in_bounds')",
        f"jax.nn.one_hot({numbers}, {rows}, dtype={out.h}.dtype) @ {w}",
        f"jax.vmap(jax.vmap(lambda k: lax.dynamic_index_in_dim({w}, k, keepdims=False)))({numbers})",
        f"jnp.take_along_axis({w}[None], {numbers}[..., None], axis=1)",
    )
    before = out.h
    embedded = out.let(out.rng.choice(ways), (size, 2))
    out.let(f"{embedded} * (1.0 + {before}[..., None])", (size, 2))


# Alone: expressions of h, of h and values before it, of h along an axis.


@step
def elementwise(out: Writer) -> None:
    template = out.rng.choice(list(ELEMENTWISE.values()))
    out.let(template.format(h=out.h), out.shape)


@step
def along(out: Writer) -> None:
    _add_trailing_axis(out)
    axis = out.rng.randrange(1, 1 + len(out.shape))
    template = out.rng.choice([*ALONG.values(), *PLACED.values()])
    out.let(fill(template, out.h, 1 + len(out.shape), axis, out.shape[axis - 1]), out.shape)


@step
def loop_without_reverse_mode(out: Writer) -> None:
    out.let(FORWARD_ONLY["while"].format(h=out.h), out.shape)


@step
def residual(out: Writer) -> None:
    equal = [name for name, shape in out.older if shape == out.shape]
    template = out.rng.choice(
        ["{h} + {o}", "{h} * {o}", "{h} - 0.5 * {o}", "jnp.maximum({h}, {o})", "{h} / (1.5 + {o} ** 2)",
         "jnp.where({o} > 0, {h}, {o})", "jnp.arctan2({h}, 1.1 + {o} ** 2)", "jnp.logaddexp({h}, {o})",
         "jnp.stack([{h}, {o}]).mean(0)", "jnp.hypot({h}, 1.0 + {o})"]
    )  # fmt: skip
    other = out.rng.choice(equal) if equal else out.h
    out.let(template.format(h=out.h, o=other), out.shape)


@step
def reduction(out: Writer) -> None:
    _add_trailing_axis(out)
    axis = out.rng.randrange(1, 1 + len(out.shape))
    way = out.rng.choice(
        ["{h}.sum({a})", "{h}.mean({a})", "{h}.max({a})", "{h}.min({a})", "jnp.tanh({h}).prod({a})",
         "jax.nn.logsumexp({h}, axis={a})", "{h}.std({a})", "jnp.sum({h} ** 3, {a})",
         "jnp.argmax({h}, axis={a}) * {h}.sum({a})", "jnp.median({h}, axis={a})",
         "lax.reduce({h}, jnp.zeros((), {h}.dtype), lambda a, b: a + b, ({a},))", "jnp.take({h}, 0, axis={a})"]
    )  # fmt: skip
    shape = (*out.shape[: axis - 1], *out.shape[axis:])
    out.let(way.format(h=out.h, a=axis), shape)


@step
def pooling(out: Writer) -> None:
    height, width, size = out.image()
    start, operation = out.rng.choice([("-jnp.inf", "max"), ("0.0", "add"), ("jnp.inf", "min")])
    strides, padding = out.rng.choice([(1, 2)]), out.rng.choice(["'SAME'", "'VALID'"])
    window = min(2, height), min(2, width)
    out.let(
        f"lax.reduce_window({out.h}, {start}, lax.{operation}, (1, *{window}, 1), (1, *{strides}, 1),"
        f" {padding}).sum((1, 2))",
        (size,),
    )


@step
def normalization(out: Writer) -> None:
    _add_trailing_axis(out)
    centered = out.name(f"{out.h} - {out.h}.mean(-1, keepdims=True)")
    scale = weight(out, out.shape[-1])
    normal = f"{centered} * lax.rsqrt({centered}.var(-1, keepdims=True) + 0.1)"
    out.let(f"{normal} * {scale}", out.shape)


@step
def attention(out: Writer) -> None:
    steps, size = out.sequence()
    q, k, v = (out.name(f"{out.h} @ {weight(out, size, 2)}") for _ in range(3))
    scores = out.name(f"jnp.einsum('nid,njd->nij', {q}, {k})")
    mask = out.rng.choice(["", f"jnp.tril(jnp.ones(({steps}, {steps}), bool))"])
    if mask:
        scores = out.name(f"jnp.where({mask}, {scores}, -jnp.inf)")
    out.let(f"jax.nn.softmax({scores}) @ {v}", (steps, 2))


@step
def rearranged(out: Writer) -> None:
    steps, size = out.sequence()
    ways = {
        "jnp.swapaxes({h}, 1, 2)": (size, steps),
        "{h}.reshape(n, {size}, {steps})": (size, steps),
        "jnp.flip({h}, 1)": (steps, size),
        "jnp.pad({h}, ((0, 0), (1, 0), (0, 0)))": (steps + 1, size),
        "jnp.tile({h}, (1, 2, 1))": (2 * steps, size),
        "jnp.concatenate([{h}, jnp.sin({h})], axis=-1)": (steps, 2 * size),
        "jnp.stack([{h}[:, 0], {h}[:, -1]], axis=1)": (2, size),
        "{h}[:, ::-1, : {size} : 2]": (steps, (size + 1) // 2),
        "jnp.moveaxis(jnp.moveaxis({h}, 0, 2) * 2.0, 2, 0)": (steps, size),
        "jnp.concatenate(jnp.split({h}, {steps}, axis=1)[::-1], axis=1)": (steps, size),
        "jnp.einsum('ntd->dtn', {h}).T": (steps, size),
        "jnp.rot90({h}, axes=(1, 2))": (size, steps),
        "{h}.reshape(n * {steps}, {size}).reshape({steps}, -1, {size})"
        ".reshape(n, {steps}, {size})": (steps, size),
        "jnp.repeat({h}, 2, axis=0)[::2]": (steps, size),
        "jnp.broadcast_to({h}[:, None], (n, 2, {steps}, {size})).sum(1)": (steps, size),
    }
    template = out.rng.choice(list(ways))
    out.let(template.format(h=out.h, steps=steps, size=size), ways[template])


@step
def selected(out: Writer) -> None:
    size = out.vector()
    count = max(1, size // 2)
    number = f"jnp.argmax(jnp.sin(3.0 * {out.h}), axis=1)"
    ways = {
        f"lax.top_k({out.h}, {count})[0]": count,
        f"lax.top_k({out.h}, {count})[1] * {out.h}[:, :{count}]": count,
        f"jnp.take_along_axis({out.h}, {number}[:, None], axis=1)": 1,
        f"{out.h}[jnp.arange(n), {number}][:, None]": 1,
        f"jax.vmap(lambda v, k: v[k])({out.h}, {number})[:, None]": 1,
        f"jax.vmap(lambda v: lax.dynamic_slice(v, (jnp.argmin(v),), ({count},)))({out.h})": count,
        f"jax.nn.one_hot({number}, {size}) * {out.h}": size,
        f"{out.h}.at[jnp.arange(n), {number}].multiply(3.0)": size,
        f"jnp.zeros_like({out.h}).at[:, np.arange({size})[::-1]].add({out.h})": size,
        f"{out.h}.at[:, 0].set(2.0)": size,
        f"jax.vmap(lambda v: jax.ops.segment_sum(v, jnp.arange({size}) // 2, {size}))({out.h})": size,
        f"jnp.sort(jnp.sin({out.h}), axis=1)[:, ::-1]": size,
        f"lax.sort([jnp.cos({out.h}), {out.h}], dimension=1, num_keys=1)[1]": size,
    }
    way = out.rng.choice(list(ways))
    out.let(way, (ways[way],))


@step
def linear_algebra(out: Writer) -> None:
    order, _ = out.matrix()
    h, eye = out.h, f"np.eye({order})"
    positive = out.name(f"{h} @ jnp.swapaxes({h}, 1, 2) + {eye}")
    rhs = out.rng.choice([h, f"jnp.sin({h})", weight(out, order, order)])
    ways = {
        f"jnp.linalg.solve({positive}, jnp.broadcast_to({rhs}, {h}.shape))": (order, order),
        f"jnp.linalg.cholesky({positive})": (order, order),
        f"jnp.linalg.inv({positive})": (order, order),
        f"jnp.linalg.slogdet({positive})[1]": (),
        f"jnp.linalg.det({positive} + {rhs})": (),
        f"lax.linalg.triangular_solve({positive}, {h}, left_side=True, lower=True)": (order, order),
        f"lax.linalg.triangular_solve({positive}, {h}, transpose_a=True)": (order, order),
        f"jnp.linalg.eigvalsh({positive})": (order,),
        f"jnp.linalg.qr({positive})[1]": (order, order),
        f"jnp.linalg.norm({positive} @ {rhs}, axis=(1, 2))": (),
        f"jnp.trace({positive} @ {rhs}, axis1=1, axis2=2)": (),
        f"jnp.linalg.svd({positive} + np.diag([0.0, 1.0]), compute_uv=False)": (order,),
        f"jax.vmap(lambda a: jax.scipy.linalg.expm(0.1 * a))({positive})": (order, order),
        f"jnp.diagonal({positive} @ {rhs}, axis1=1, axis2=2)": (order,),
        f"jnp.einsum('nij,jk->nik', {positive}, {weight(out, order, order)})": (order, order),
    }  # fmt: skip
    way = out.rng.choice(list(ways))
    out.let(way, ways[way])


@step
def spectral_filter(out: Writer) -> None:
    size = out.vector()
    half = size // 2 + 1
    filtered = f"({weight(out, half)} + 1j * {weight(out, half)})"
    ways = (
        f"jnp.fft.irfft(jnp.fft.rfft({out.h}) * {filtered}, n={size})",
        f"jnp.real(jnp.fft.ifft(jnp.fft.fft({out.h}) @ ({weight(out, size, size)} + 0.5j)))",
        f"jnp.abs(({out.h} * (1 + 2j)) @ {weight(out, size, size)}) ** 2",
        f"jnp.imag(jnp.fft.fft({out.h}) @ ({weight(out, size, 2)} @ {weight(out, 2, size)}))",
        f"jnp.real(({out.h} + 1j * jnp.sin({out.h})) * {weight(out, size)} * (1 - 1j))",
    )
    out.let(out.rng.choice(ways), (size,))


# Programs in programs.


@step
def stacked_layers(out: Writer) -> None:
    size = out.vector()
    w, b = weight(out, 2, size, size), weight(out, 2, size)
    body = out.rng.choice(
        ["jnp.tanh(h @ w[0] + w[1])", "h + jnp.sin(h) @ w[0].T * w[1]", "jnp.tanh(h @ w[0]) * w[1]"]
    )
    reverse, unroll = out.rng.choice([True, False]), out.rng.choice([1, 1, 2])
    out.let(
        f"lax.scan(lambda h, w: ({body}, None), {out.h}, ({w}, {b}), reverse={reverse},"
        f" unroll={unroll})[0]",
        (size,),
    )


@step
def shared_layers(out: Writer) -> None:
    size = out.vector()
    w = weight(out, size, size)
    ways = (
        f"lax.scan(lambda h, _: (jnp.tanh(h @ {w}), None), {out.h}, length=2)[0]",
        f"lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ {w} + i), {out.h})",
        f"lax.scan(lambda h, i: (jnp.tanh(h @ {w}) * i, h), {out.h}, jnp.arange(2.0))[1][1]",
        f"lax.scan(jax.checkpoint(lambda h, _: (jnp.tanh(h @ {w}), None)), {out.h}, length=2)[0]",
    )
    out.let(out.rng.choice(ways), (size,))


@step
def recurrence(out: Writer) -> None:
    steps, size = out.sequence()
    w, u = weight(out, size, 2), weight(out, 2, 2)
    start = out.rng.choice([f"jnp.zeros((n, 2), {out.h}.dtype)",
                            f"jnp.broadcast_to({weight(out, 2)}, (n, 2))"])  # fmt: skip
    which = out.rng.randrange(2)
    over = f"jnp.moveaxis({out.h}, 1, 0)"
    scanned = f"lax.scan(lambda s, e: (jnp.tanh(e @ {w} + s @ {u}), s), {start}, {over})[{which}]"
    if which:
        out.let(f"jnp.moveaxis({scanned}, 0, 1)", (steps, 2))
    else:
        out.let(scanned, (2,))


@step
def over_examples(out: Writer) -> None:
    size = out.vector()
    w = out.name(weight(out, size, 2))
    ways = (
        f"jax.vmap(lambda v: jnp.tanh(v @ {w}))({out.h})",
        f"jax.vmap(lambda v, w: jnp.tanh(v @ w), in_axes=(0, None))({out.h}, {w})",
        f"lax.map(lambda v: jnp.tanh(v @ {w}), {out.h})",
        f"lax.scan(lambda c, v: (c, jnp.tanh(v @ {w})), 0, {out.h})[1]",
        f"jax.vmap(lambda v: jax.vmap(lambda u: jnp.sin(v @ u), in_axes=1)({w}))({out.h})",
        f"jax.vmap(lambda v: lax.cond(v.sum() > 0, jnp.sin, jnp.cos, v @ {w}))({out.h})",
        f"jax.vmap(lambda u: jnp.sin({out.h} @ u), in_axes=1, out_axes=1)({w})",
        f"jax.vmap(jax.grad(lambda v: jnp.sum(jnp.sin(v @ {w})) + v[0]))({out.h})[:, :1] * jnp.ones(2)",
        f"jax.grad(lambda h: jnp.sum(jnp.sin(h @ {w})))({out.h})[:, :1] * jnp.ones(2)",
        f"jax.vmap(lambda v: jnp.diag(jax.hessian(lambda u: jnp.sum(jnp.sin(u @ {w})))(v))[:1])({out.h})"
        " * jnp.ones(2)",
        f"jax.jvp(lambda h: jnp.sin(h @ {w}), ({out.h},), (jnp.cos({out.h}),))[1]",
        f"jax.vmap(lambda v: lax.switch(jnp.argmax(v) % 2, [jnp.sin, jnp.tanh], v @ {w}))({out.h})",
        f"jnp.stack([row @ {w} for row in {out.h}])",
        f"jnp.stack([{out.h}[i] @ {w} for i in range(n)])",
        f"jax.vmap(lambda v: lax.while_loop(lambda i: (i < 3) & (i < 4.0 * jnp.abs(v[0])), "
        f"lambda i: i + 1, 0))(lax.stop_gradient({out.h}))[:, None] * ({out.h} @ {w})",
    )
    out.let(out.rng.choice(ways), (2,))


@step
def branch(out: Writer) -> None:
    """A branch chosen by parameters: by one that is a weight elsewhere, or by one of its own."""
    size = out.vector()
    w = out.name(weight(out, size, size))
    test = out.rng.choice([f"{w}[0, 0] > 0", f"jnp.sum({weight(out, 2)}) > 0"])
    ways = (
        f"lax.cond({test}, lambda h: h @ {w}, lambda h: jnp.sin(h), {out.h})",
        f"lax.switch(jnp.int32({test}) + 1, [jnp.sin, lambda h: h @ {w}.T, jnp.cos], {out.h})",
        f"jnp.where({test}, {out.h} @ {w}, {out.h})",
    )
    out.let(out.rng.choice(ways), (size,))


@step
def custom_product(out: Writer) -> None:
    size = out.vector()
    out.let(f"affine({weight(out, size, 2)}, {out.h})", (2,))


@step
def weights_of_data(out: Writer) -> None:
    """A matrix per example, made from the example."""
    size = out.vector()
    w = weight(out, size, size * 2)
    made = out.name(f"({out.h} @ {w}).reshape(n, {size}, 2)")
    out.let(f"jnp.einsum('ni,nik->nk', jnp.sin({out.h}), {made})", (2,))


# Examples treated by their number, and examples that meet.


@step
def placed(out: Writer) -> None:
    size = out.vector()
    rows = weight(out, out.length, size)
    ways = (
        *(fill(t, out.h, 2, 0, "n") for t in PLACED.values()),
        f"{out.h} / n",
        f"{out.h} if n > 2 else jnp.sin({out.h})",
        f"averaged({out.h})",
        f"{out.h} * np.cos(np.arange({out.length}.0))[:, None]",
        f"{out.h} * {rows}",
        f"{out.h} + jnp.eye({out.length}, {size})",
        f"jax.vmap(lambda v, k: v + jax.random.normal(k, v.shape))"
        f"({out.h}, jax.random.split(jax.random.key(1), n))",
        f"{out.h} @ {weight(out, size, size)} * (jnp.arange(n)[:, None] + 1.0)",
        f"lax.scan(lambda c, v: (c + 1.0, v * c), 1.0, {out.h})[1]",
        f"jnp.pad({out.h}[1:], ((1, 0), (0, 0)), constant_values=0.5)",
    )
    number = out.rng.randrange(len(ways))
    out.fixed |= f"({out.length}" in ways[number] or rows in ways[number]
    out.become("coupled" if "[1:]" in ways[number] else "placed")
    out.let(ways[number], (size,))


@step
def coupled(out: Writer) -> None:
    size = out.vector()
    h = out.h
    ways = (
        *(fill(t, h, 2, 0, "n") for t in ALONG.values()),
        f"{h}[::-1]",
        f"{h} + {h}[0]",
        f"{h} @ {h}.T @ {h} / n",
        f"jax.nn.softmax({h} @ {h}.T) @ {h}",
        f"{h}.reshape({size}, -1).T",
        f"{h}.reshape(-1)[::-1].reshape(n, {size})",
        f"{h}[jnp.argsort({h}[:, 0])]",
        f"{h} * {h}.sum()",
        f"lax.cond({h}.sum() > 0, jnp.sin, jnp.cos, {h})",
        f"lax.scan(lambda c, v: (jnp.tanh(c + v), c), jnp.zeros({size}, {h}.dtype), {h})[1]",
        f"{h} - lax.stop_gradient({h}.mean(0))",
        f"jnp.concatenate([{h}[:1], {h}[:-1]])",
        f"{h}.at[0].add({h}[-1])",
        f"jnp.where(jnp.eye(n)[..., None] > 0, {h}[:, None], {h}[None]).sum(1)",
        f"jnp.broadcast_to({h}.mean(0), {h}.shape)",
    )
    out.become("coupled")
    out.let(out.rng.choice(ways), (size,))
