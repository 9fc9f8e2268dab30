"""Expressions that keep the shape of an array: {h} is the array, the rest is said in `fill`.

They serve data and weights alike. ALONG work along one axis: along an axis of features they treat
examples independently, along axis 0 they couple them.
"""

# ruff: noqa: E501 (an expression stays on one line, as in the programs)

ELEMENTWISE = {
    "tanh": "jnp.tanh({h})",
    "sine": "jnp.sin({h})",
    "cosine": "jnp.cos({h})",
    "gaussian": "jnp.exp(-({h} ** 2))",
    "sigmoid": "jax.nn.sigmoid({h})",
    "erf": "lax.erf({h})",
    "erfc": "lax.erfc({h})",
    "erf_inv": "lax.erf_inv(0.9 * jnp.tanh({h}))",
    "softplus": "jax.nn.softplus({h})",
    "relu": "jax.nn.relu({h} + 0.3)",
    "gelu": "jax.nn.gelu({h})",
    "elu": "jax.nn.elu({h})",
    "absolute": "jnp.abs({h})",
    "root": "jnp.sqrt(1.0 + {h} ** 2)",
    "inverse root": "lax.rsqrt(1.0 + {h} ** 2)",
    "cube": "{h} ** 3 / (1.0 + {h} ** 2)",
    "angle": "jnp.arctan2({h}, 1.5)",
    "expm1": "jnp.expm1(jnp.tanh({h}))",
    "log1p": "jnp.log1p({h} ** 2)",
    "logarithm": "jnp.log(2.0 + jnp.cos({h}))",
    "hyperbolic sine": "jnp.sinh(jnp.tanh({h}))",
    "hyperbolic cosine": "jnp.cosh(jnp.tanh({h}))",
    "arsinh": "jnp.arcsinh({h})",
    "artanh": "jnp.arctanh(0.9 * jnp.tanh({h}))",
    "arcsine": "jnp.arcsin(0.9 * jnp.tanh({h}))",
    "arccosine": "jnp.arccos(0.9 * jnp.tanh({h}))",
    "tangent": "jnp.tan(jnp.tanh({h}))",
    "cube root": "lax.cbrt(2.0 + jnp.tanh({h}))",
    "power": "(1.5 + jnp.tanh({h})) ** 0.7",
    "power of two": "jnp.exp2(jnp.sin({h}))",
    "digamma": "lax.digamma(1.5 + jnp.tanh({h}))",
    "lgamma": "lax.lgamma(1.5 + jnp.tanh({h}))",
    "bessel": "lax.bessel_i1e({h})",
    "clip": "jnp.clip({h}, -0.7, 0.9)",
    "maximum": "jnp.maximum({h}, 0.1 * {h})",
    "minimum": "jnp.minimum({h}, 0.4)",
    "selected": "jnp.where({h} > 0.1, {h}, jnp.sin({h}))",
    "masked": "{h} * ({h} > 0.2)",
    "signs": "{h} * jnp.sign({h} - 0.1)",
    "fraction": "{h} - jnp.floor({h})",
    "rounded factor": "{h} * jnp.round(2.0 * {h})",
    "remainder": "{h} % 1.3",
    "integer part": "{h} * (3.0 * {h}).astype(jnp.int32)",
    "bits": "{h} * ((5.0 * {h}).astype(jnp.int32) & 3)",
    "not stopped": "{h} - 0.5 * lax.stop_gradient({h})",
    "stopped factor": "{h} * lax.stop_gradient(jnp.cos({h}))",
    "real part": "jnp.real(jnp.exp(1j * {h}))",
    "imaginary part": "jnp.imag(({h} + 1j) ** 2 * (0.3 - 1j))",
    "modulus": "jnp.abs({h} + 0.5j)",
    "argument": "jnp.angle({h} + 1j)",
    "conjugate": "jnp.real(jnp.conj({h} * (1 + 2j)) * jnp.exp(1j * {h}))",
    "custom jvp": "smooth({h})",
    "custom vjp": "clipped({h})",
    "remat": "jax.checkpoint(lambda v: jnp.sin(jnp.tanh(v)))({h})",
    "jit in jit": "jax.jit(lambda v: v * jax.jit(jnp.tanh)(2.0 * v))({h})",
    "barrier": "jnp.sin(lax.optimization_barrier({h}))",
    "fori": "lax.fori_loop(0, 3, lambda i, v: jnp.sin(v + i), {h})",
    "scan of a value": "lax.scan(lambda v, c: (jnp.tanh(c * v), None), {h}, np.array([0.5, 2.0]))[0]",
    "switch of numbers": "lax.switch(1, [jnp.sin, jnp.tanh, jnp.cos], {h})",
    "derivative": "jax.jvp(jnp.sin, ({h},), (jnp.ones_like({h}),))[1]",
    "copy": "jnp.array({h}, copy=True) + jnp.zeros_like({h})",
    "scaled": "0.7 * {h}",
    "divided": "{h} / -3.0",
    "shifted": "{h} + 0.5",
}

FORWARD_ONLY = {
    "while": "lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, {h}))[1]",
}

ALONG = {
    # {axis} counts from the front, {size} is its length, {ones} the shape (1, ..., size, ..., 1)
    # and {window} a window of 2 along it.
    "softmax": "jax.nn.softmax({h}, axis={axis})",
    "log softmax": "jax.nn.log_softmax({h}, axis={axis})",
    "sort": "jnp.sort({h}, axis={axis})",
    "cumulative sum": "jnp.cumsum({h}, axis={axis})",
    "cumulative product": "jnp.cumprod(jnp.tanh({h}), axis={axis})",
    "cumulative maximum": "lax.cummax({h}, axis={axis})",
    "cumulative minimum": "lax.cummin({h}, axis={axis}, reverse=True)",
    "cumulative logsumexp": "lax.cumlogsumexp({h}, axis={axis})",
    "centered": "{h} - {h}.mean(axis={axis}, keepdims=True)",
    "standardized": "{h} / jnp.sqrt(0.1 + {h}.var(axis={axis}, keepdims=True))",
    "normalized": "{h} / jnp.sqrt(0.1 + jnp.sum({h} ** 2, axis={axis}, keepdims=True))",
    "norm": "{h} / (1.0 + jnp.linalg.norm({h}, axis={axis}, keepdims=True))",
    "reversed": "jnp.flip({h}, {axis}) * 0.5 + {h}",
    "rolled": "jnp.roll({h}, 1, axis={axis})",
    "real Fourier": "jnp.real(jnp.fft.fft({h}, axis={axis}))",
    "imaginary Fourier": "jnp.imag(jnp.fft.ifft({h} * (1 + 2j), axis={axis}))",
    "half Fourier": "jnp.fft.irfft(jnp.fft.rfft({h}, axis={axis}) * (0.5 + 0.2j), n={size}, axis={axis})",
    "sorted by another": "jnp.take_along_axis({h}, jnp.argsort(jnp.sin(3.0 * {h}), axis={axis}), axis={axis})",
    "largest": "jnp.where({h} == {h}.max(axis={axis}, keepdims=True), 2.0 * {h}, {h})",
    "argmax": "{h} * (1.0 + jnp.argmax({h}, axis={axis}, keepdims=True))",
    "logsumexp": "{h} + jax.nn.logsumexp({h}, axis={axis}, keepdims=True)",
    "product": "{h} + jnp.prod(jnp.tanh({h}), axis={axis}, keepdims=True)",
    "smallest": "{h} - {h}.min(axis={axis}, keepdims=True)",
    "any": "{h} * jnp.any({h} > 0.8, axis={axis}, keepdims=True)",
    "associative scan": "lax.associative_scan(lambda a, b: jnp.tanh(a) * b + a, {h}, axis={axis})",
    "scan along": "jnp.moveaxis(lax.scan(lambda c, v: (jnp.tanh(c + v), c * v), jnp.moveaxis({h}, {axis}, 0)[0], jnp.moveaxis({h}, {axis}, 0))[1], 0, {axis})",
    "windows": "lax.reduce_window({h}, 0.0, lax.add, {window}, (1,) * {h}.ndim, 'SAME')",
    "largest of windows": "lax.reduce_window({h}, -jnp.inf, lax.max, {window}, (1,) * {h}.ndim, 'SAME')",
    "first": "{h} + lax.slice_in_dim({h}, 0, 1, axis={axis})",
    "last at run time": "{h} * lax.dynamic_slice_in_dim({h}, jnp.argmin(jnp.zeros(2)), 1, axis={axis})",
    "taken": "jnp.take({h}, np.arange({size})[::-1] // 2, axis={axis})",
    "differences": "jnp.diff({h}, axis={axis}, append=0.0)",
    "repeated": "lax.slice_in_dim(jnp.repeat({h}, 2, axis={axis}), 0, {size}, axis={axis})",
}
"""Each of these depends, for every entry, on others along the axis."""

PLACED = {
    "row numbers": "{h} * (1.0 + jnp.arange({size}).reshape({ones}))",
    "offsets": "{h} + jnp.linspace(-1.0, 1.0, {size}).reshape({ones})",
    "noise": "{h} + 0.3 * jax.random.normal(jax.random.key(3), {h}.shape, {h}.dtype)",
    "dropout": "jnp.where(jax.random.bernoulli(jax.random.key(4), 0.6, {h}.shape), {h} / 0.6, 0.0)",
    "alternating": "jnp.where(jnp.arange({size}).reshape({ones}) % 2 == 0, {h}, jnp.sin({h}))",
    "split at 1": "jnp.concatenate([lax.slice_in_dim({h}, 0, 1, axis={axis}), jnp.cos(lax.slice_in_dim({h}, 1, {size}, axis={axis}))], axis={axis})",
    "written": "{h}.at[(slice(None),) * {axis} + (0,)].multiply(2.0)",
    "index update": "lax.dynamic_update_slice_in_dim({h}, jnp.sin(lax.slice_in_dim({h}, 0, 1, axis={axis})), 0, axis={axis})",
}
"""These treat the entries along the axis independently, but not alike."""

PRELUDE = {
    "smooth": """\
@jax.custom_jvp
def smooth(v):
    return jnp.sin(v)


@smooth.defjvp
def _(primals, tangents):
    return smooth(*primals), tangents[0] * (jnp.cos(primals[0]) + 0.1)
""",
    "clipped": """\
@jax.custom_vjp
def clipped(v):
    return v * 1.5


clipped.defvjp(lambda v: (v * 1.5, v), lambda v, ct: (ct * jnp.cos(v),))
""",
    "averaged": """\
@jax.custom_vjp
def averaged(v):
    return v * 1.5


averaged.defvjp(lambda v: (v * 1.5, v), lambda v, ct: (ct * v / v.shape[0],))
""",
    "affine": """\
@jax.custom_vjp
def affine(w, v):
    return v @ w


affine.defvjp(
    lambda w, v: (v @ w, (w, v)),
    lambda s, ct: (s[1].T @ (1.1 * ct), ct @ jnp.sin(s[0]).T),
)
""",
}
"""Definitions that a program writes above f if it uses their name."""


def fill(template: str, h: str, ndim: int, axis: int, size: int | str) -> str:
    """The expression for an array h with an axis of this size."""
    ones, window = (
        "(" + "".join(f"{number if k == axis else 1}, " for k in range(ndim)) + ")"
        for number in (size, 2)
    )
    return template.format(h=h, axis=axis, size=size, ones=ones, window=window)
