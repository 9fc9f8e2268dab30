"""Recurrent layers: a cell, which is one step in time, and its scan over sequences."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid, require_between
from jaxnn.nn import limit, recurrence
from jaxnn.nn.initializers import Initializer, lecun_normal, normal, orthogonal, zeros
from jaxnn.nn.layers import Layer, Sequences, require_count, require_in_shape
from jaxnn.nn.limit import Kernel
from jaxnn.nn.nonlinearities import tanh
from jaxnn.nn.parametrization import Parametrization, default_float, like, weights
from jaxnn.precision import inexact
from jaxnn.types import Array, ArrayLike, Key, Params, Shape

Output = Literal["last", "sequence"]


def rnn_cell(
    params: Params,
    h: Shaped[Array, "N h"],
    x: Shaped[Array, "N d"],
    activation: Callable[[Array], Array] = jnp.tanh,
) -> Float[Array, "N h"]:
    """One step of the simple recurrent network, h' = φ(xW + hU + b).

    Source: Elman (1990).

    >>> params = {"W": jnp.ones((1, 1)), "U": jnp.ones((1, 1)), "b": jnp.zeros(1)}
    >>> rnn_cell(params, jnp.ones((1, 1)), jnp.ones((1, 1)), lambda u: u)
    Array([[2.]], dtype=float32)
    """
    return _rnn_step(activation)(params, inexact(h, params["U"]), _projected(params, x))


def lstm_cell(
    params: Params, state: tuple[Array, Array], x: Shaped[Array, "N d"]
) -> tuple[Array, Array]:
    """One step (h, c) ↦ (h', c') of long short-term memory.

        c' = σ(f)·c + σ(i)·tanh(g),   h' = σ(o)·tanh(c'),   (i, f, g, o) = xW + hU + b

    W is (d, 4h), U is (h, 4h), b is (4h,), the four blocks side by side.

    Source: Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000).

    >>> params = {"W": jnp.zeros((1, 4)), "U": jnp.zeros((1, 4)), "b": jnp.zeros(4)}
    >>> lstm_cell(params, (jnp.ones((1, 1)), jnp.ones((1, 1))), jnp.ones((1, 1)))[1]
    Array([[0.5]], dtype=float32)
    """
    h, c = (inexact(part, params["U"]) for part in state)
    return _lstm_step(params, (h, c), _projected(params, x))


def gru_cell(
    params: Params, h: Shaped[Array, "N h"], x: Shaped[Array, "N d"]
) -> Float[Array, "N h"]:
    """One step of the gated recurrent unit, h' = (1 - z)·n + z·h.

        r, z = σ(xW_r + hU_r + b_r), σ(xW_z + hU_z + b_z),   n = tanh(xW_n + b_n + r·(hU_n + c))

    W is (d, 3h), U is (h, 3h), b is (3h,), the blocks r, z, n side by side; c is (h,).

    Source: Cho et al. (2014), with the reset gate after the product, as in cuDNN.

    >>> params = {"W": jnp.zeros((1, 3)), "U": jnp.zeros((1, 3)), "b": jnp.zeros(3)}
    >>> gru_cell({**params, "c": jnp.zeros(1)}, jnp.ones((1, 1)), jnp.ones((1, 1)))
    Array([[0.5]], dtype=float32)
    """
    return _gru_step(params, inexact(h, params["U"]), _projected(params, x))


def rnn(
    features: int,
    *,
    output: Output = "last",
    activation: Layer | None = None,
    reverse: bool = False,
    weight_std: ArrayLike = 1.0,
    recurrent_std: ArrayLike = 1.0,
    bias_std: ArrayLike | None = 0.0,
    parametrization: Parametrization = "standard",
    weight_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer | None = None,
) -> Layer:
    """The simple recurrent network h_t = φ(x_t W + h_{t-1} U + b) from h_0 = 0: see `rnn_cell`.

    x is (N, T, d), or `Sequences` of them; y is the state after the last step, (N, features), or
    with output "sequence" that after every step, (N, T, features). Of `Sequences` the last state is
    that at each one's own length, and states beyond are 0. `reverse` runs from the end of each
        sequence to its start. `activation` is tanh unless given.

    Params are {"W": (d, features), "U": (features, features), "b"}. At initialization W and b are
    as those of `nn.dense`, and U is recurrent_std times a random orthogonal matrix; in the "ntk"
    parametrization N(0, 1) entries, scaled by recurrent_std/√features in `apply`. `weight_init`,
    `recurrent_init` and `bias_init` replace the stored draws; a limit is then no longer known.

    Errors: features < 1, an unknown output or parametrization, an x of another shape.

    Source: Elman (1990); Saxe, McClelland & Ganguli (2014) for orthogonal U; Yang (2019), section
    4, and Alemohammad et al. (2021), theorem 1, for the limit.

    >>> layer = rnn(5, output="sequence")
    >>> layer.init(jax.random.key(0), (7, 3))[1]
    (7, 5)
    """
    phi = tanh() if activation is None else activation
    own = weights(
        "rnn",
        weight_std=weight_std,
        bias_std=bias_std,
        parametrization=parametrization,
        weight_init=weight_init,
        bias_init=bias_init,
    )
    remedy = "It is that of the recurrent weights."
    require_between("rnn(recurrent_std)", recurrent_std, 0.0, math.inf, remedy=remedy)
    scaled = parametrization == "ntk"
    gain = recurrent_std if scaled else None
    step = _rnn_step(lambda u: phi.apply((), u), gain)
    same = lambda h: h
    layer = _recurrent(
        *("rnn", features, 1, step, same, same, output, reverse, (None, None, None)),
        project=lambda params, x: own.shift(params, x @ params["W"], params["W"].shape[0]),
    )

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        weight_key, recurrent_key = jax.random.split(key)
        _require_times("rnn", in_shape)
        recurrent = recurrent_init or (normal(1.0) if scaled else orthogonal(recurrent_std))
        square = recurrent(recurrent_key, (features, features), default_float())
        params = own.draw(weight_key, (in_shape[1], features), in_shape[1])
        return {**params, "U": square}, _recurrent_shape(in_shape, features, output)

    def kernel(kernel: Kernel) -> Kernel:
        limit.require_times("rnn", kernel)
        std = weight_std, bias_std, recurrent_std
        return recurrence.limit_of(
            kernel, phi, features, std, parametrization, last=output == "last", reverse=reverse
        )

    if own.given or recurrent_init is not None:
        remedy = "Leave them None and choose weight_std, recurrent_std and bias_std."
        return layer._replace(init=init, kernel=limit.no_limit("rnn with initializers", remedy))
    return layer._replace(init=init, kernel=kernel)


def lstm(
    features: int,
    *,
    output: Output = "last",
    reverse: bool = False,
    forget_bias: float = 1.0,
    weight_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer | None = None,
) -> Layer:
    """Long short-term memory from h_0 = c_0 = 0: see `lstm_cell` for the equations, `rnn` for x, y.

    Params are {"W": (d, 4·features), "U": (features, 4·features), "b"}. `forget_bias` is added to
    the drawn biases of the forget gate, so that memory lasts at first. U is drawn gate by gate.

    Errors: as for `rnn`.

    Source: Hochreiter & Schmidhuber (1997); Jozefowicz, Zaremba & Sutskever (2015) for the bias.

    >>> layer = lstm(5)
    >>> layer.init(jax.random.key(0), (7, 3))[1]
    (5,)
    """
    draws = weight_init, recurrent_init, bias_init
    layer = _recurrent(
        "lstm",
        features,
        4,
        _lstm_step,
        lambda zero: (zero, zero),
        lambda s: s[0],
        output,
        reverse,
        draws,
    )

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        params, out_shape = layer.init(key, in_shape)
        remembered = params["b"].at[features : 2 * features].add(forget_bias)
        return {**params, "b": remembered}, out_shape

    return layer._replace(init=init)


def gru(
    features: int,
    *,
    output: Output = "last",
    reverse: bool = False,
    weight_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer | None = None,
) -> Layer:
    """The gated recurrent unit from h_0 = 0: see `gru_cell` for the equations, `rnn` for x and y.

    Params are {"W": (d, 3·features), "U": (features, 3·features), "b", "c": (features,)}.

    Errors: as for `rnn`.

    Source: Cho et al. (2014).

    >>> layer = gru(5)
    >>> layer.init(jax.random.key(0), (7, 3))[1]
    (5,)
    """
    draws = weight_init, recurrent_init, bias_init
    layer = _recurrent(
        "gru", features, 3, _gru_step, lambda zero: zero, lambda h: h, output, reverse, draws
    )

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        own_key, inner_key = jax.random.split(key)
        params, out_shape = layer.init(own_key, in_shape)
        inner = (bias_init or zeros())(inner_key, (features,), default_float())
        return {**params, "c": inner}, out_shape

    return layer._replace(init=init)


def _recurrent(
    name: str,
    features: int,
    gates: int,
    step: Callable[[Params, Any, Array], Any],
    start: Callable[[Array], Any],
    visible: Callable[[Any], Array],
    output: Output,
    reverse: bool,
    draws: tuple[Initializer | None, Initializer | None, Initializer | None],
    *,
    project: Callable[[Params, Array], Array] | None = None,
) -> Layer:
    """The scan of `step`(params, state, xW + b) from `start`(0); `visible`(state) is h."""
    project = _projected if project is None else project
    require_count(f"{name}(features)", features, "It is the size of the state.")
    if output not in ("last", "sequence"):
        raise invalid(
            f"{name}(output)",
            got=repr(output),
            expected="'last' or 'sequence'",
            remedy="Return the state after the last step or after every step.",
        )

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        _require_times(name, in_shape)
        weight_key, bias_key, *keys = jax.random.split(key, 2 + gates)
        draw_weight, draw_recurrent, draw_bias = (
            given or default
            for given, default in zip(draws, (lecun_normal(), orthogonal(), zeros()), strict=True)
        )
        dtype = default_float()
        blocks = [draw_recurrent(k, (features, features), dtype) for k in keys]
        params = {
            "W": draw_weight(weight_key, (in_shape[1], gates * features), dtype),
            "U": jnp.concatenate(blocks, axis=1),
            "b": draw_bias(bias_key, (gates * features,), dtype),
        }
        return params, _recurrent_shape(in_shape, features, output)

    def apply(
        params: Params, x: Array | Sequences, *, key: Key | None = None, stats: Params = None
    ) -> Array | Sequences:
        values, lengths = x if isinstance(x, Sequences) else (x, None)
        d = params["W"].shape[0]
        if jnp.ndim(values) != 3 or values.shape[2] != d:
            raise invalid(
                f"{name}.apply: x",
                got=f"shape {jnp.shape(values)}",
                expected=f"(N, T, {d}), batch axis first",
                remedy="Use the in_shape of init, or x[None] for one sequence.",
            )
        values = inexact(values, params["W"])
        times = jnp.moveaxis(values, 1, 0)
        within = jnp.moveaxis(x.mask(), 1, 0) if isinstance(x, Sequences) else None

        def advance(state: Any, at: tuple[Array, Array | None]) -> tuple[Any, Array]:
            # Not one product for all times beforehand: reading and writing N·T·4h numbers, twice
            # with the gradient, took longer than it saved.
            xt, inside = at
            after = step(params, state, project(params, xt))
            if inside is not None:
                inside = jnp.broadcast_to(inside[:, None], visible(after).shape)
                after = jax.tree.map(lambda a, b: jnp.where(inside, a, b), after, state)
            h = visible(after)
            shown = h if inside is None else jnp.where(inside, h, jnp.zeros_like(h))
            return after, shown if output == "sequence" else shown[:0]

        zero = jnp.zeros((values.shape[0], features), jnp.result_type(values, params["W"]))
        end, states = lax.scan(advance, start(zero), (times, within), reverse=reverse)
        if output == "last":
            return visible(end)
        y = jnp.moveaxis(states, 0, 1)
        return y if lengths is None else Sequences(y, lengths)

    remedy = "Take the kernel of the finite network."
    return Layer(init, apply, limit.no_limit(name, remedy), name, reads_lengths=True)


def _require_times(name: str, in_shape: Shape) -> None:
    require_in_shape(name, in_shape, min_rank=2)
    if len(in_shape) != 2:
        raise invalid(
            f"{name}.init: in_shape",
            got=repr(in_shape),
            expected="(T, d), time and features",
            remedy="Reshape each time's input to one axis.",
        )


def _recurrent_shape(in_shape: Shape, features: int, output: Output) -> Shape:
    return (features,) if output == "last" else (in_shape[0], features)


def _projected(params: Params, x: Array) -> Array:
    y = inexact(x, params["W"]) @ params["W"]
    return y + jnp.broadcast_to(params["b"], y.shape)


def _rnn_step(
    activation: Callable[[Array], Array], recurrent_std: ArrayLike | None = None
) -> Callable[[Params, Array, Array], Array]:
    """The step, with U scaled by recurrent_std/√features where that is given."""

    def step(params: Params, h: Array, xw: Array) -> Array:
        fed_back = h @ params["U"]
        if recurrent_std is not None:
            fed_back = like(recurrent_std, fed_back) / math.sqrt(h.shape[-1]) * fed_back
        return activation(xw + fed_back)

    return step


def _lstm_step(params: Params, state: tuple[Array, Array], xw: Array) -> tuple[Array, Array]:
    h, c = state
    i, f, g, o = jnp.split(xw + h @ params["U"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru_step(params: Params, h: Array, xw: Array) -> Array:
    xr, xz, xn = jnp.split(xw, 3, axis=-1)
    hr, hz, hn = jnp.split(h @ params["U"], 3, axis=-1)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + r * (hn + jnp.broadcast_to(params["c"], hn.shape)))
    return (1.0 - z) * n + z * h
