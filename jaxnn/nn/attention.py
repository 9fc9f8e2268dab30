"""Tokens, their places, and the attention that they pay each other."""

import math
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp

from jaxnn.errors import invalid, require_between, require_real
from jaxnn.nn import lengths, limit
from jaxnn.nn.initializers import Initializer, normal
from jaxnn.nn.layers import Layer, Sequences, dense, require_count, require_in_shape, stateless
from jaxnn.nn.limit import Kernel
from jaxnn.nn.parametrization import Parametrization, default_float
from jaxnn.precision import accumulated, wide
from jaxnn.types import Array, ArrayLike, Key, Params, Shape


def embedding(
    vocabulary: int,
    features: int,
    *,
    weight_std: ArrayLike = 1.0,
    weight_init: Initializer | None = None,
) -> Layer:
    """A vector for each token, y = W[x] for integers 0 ≤ x < vocabulary.

    W is (vocabulary, features) of N(0, weight_std²), or as `weight_init` draws it; params {"W": W}.
    x is (N, ...), y is (N, ..., features). A token outside the vocabulary becomes NaN.

    Errors: sizes < 1, a negative standard deviation, tokens that are not integers.

    Source: Bengio et al. (2003), section 2.

    >>> layer = embedding(100, 8)
    >>> params, out_shape = layer.init(jax.random.key(0), (5,))
    >>> out_shape, layer.apply(params, jnp.zeros((2, 5), int)).shape
    ((5, 8), (2, 5, 8))
    """
    require_count("embedding(vocabulary)", vocabulary, "It is the number of tokens.")
    require_count("embedding(features)", features, "It is the size of a token's vector.")
    remedy = "It is a standard deviation."
    require_between("embedding(weight_std)", weight_std, 0.0, math.inf, remedy=remedy)

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        require_in_shape("embedding", in_shape, min_rank=0)
        draw = weight_init or normal(weight_std)
        return {"W": draw(key, (vocabulary, features), default_float())}, (*in_shape, features)

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise invalid(
                "embedding.apply: x",
                got=f"dtype {x.dtype}",
                expected="integers, the numbers of tokens",
                remedy="Convert tokens with astype(int); use nn.dense for real data.",
            )
        # Not JAX's default, by which -1 is the last token and a number too large the last one too.
        # Compared before they are narrowed, so that none is wrapped around into the vocabulary.
        tokens = x.astype(int)
        tokens = jnp.where((tokens < 0) | (tokens >= vocabulary), vocabulary, tokens)
        return params["W"].at[tokens].get(mode="fill", fill_value=jnp.nan)

    no_limit = limit.no_limit("embedding", "Take the kernel of what follows, on one-hot data.")
    return Layer(init, apply, no_limit, "embedding")


def positional_encoding(*, base: float = 10000.0) -> Layer:
    """x plus sines and cosines of the time t at geometric frequencies, without parameters.

        p[t, i] = sin(t ω_i) for i < d/2 rounded up, cos(t ω_{i - ⌈d/2⌉}) after,  ω_i = base^{-2i/d}

    x is (N, T, d).

    Errors: a base outside (0, ∞), an x of another rank.

    Source: Vaswani et al. (2017), section 3.5, sines and cosines side by side, not interleaved.

    >>> positional_encoding().apply((), jnp.zeros((1, 2, 2)))
    Array([[[0.        , 1.        ],
            [0.84147096, 0.5403023 ]]], dtype=float32)
    """
    require_between(
        "positional_encoding(base)",
        base,
        0.0,
        math.inf,
        low_open=True,
        remedy="2π times it is the longest wavelength.",
    )

    def encoded(x: Array) -> Array:
        _require_sequences("positional_encoding", x, None)
        return accumulated(_with_waves, x, base=base)

    no_limit = limit.no_limit("positional_encoding", "Add it to the data instead.")
    return stateless("positional_encoding", encoded, no_limit)


def _with_waves(x: Array, *, base: float) -> Array:
    times, d = x.shape[1:]
    sines = (d + 1) // 2
    frequencies = base ** (-2.0 / d * jnp.arange(sines, dtype=x.dtype))
    angles = jnp.outer(jnp.arange(times, dtype=x.dtype), frequencies)
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles[:, : d - sines])], axis=1)
    return x + jnp.broadcast_to(waves, x.shape)


def self_attention(
    heads: int,
    *,
    features: int | None = None,
    causal: bool = False,
    scaling: Literal["root", "linear"] = "root",
    weight_std: ArrayLike = 1.0,
    bias_std: ArrayLike | None = 0.0,
    parametrization: Parametrization = "standard",
) -> Layer:
    """Multi-head scaled dot-product attention of a sequence to itself.

        y = concat_h(softmax(Q_h K_hᵀ/√k) V_h) W_O + b_O,   Q = xW_Q + b_Q, likewise K and V

    x is (N, T, d) or `Sequences`, whose times beyond the length are neither read nor written (0).
    Q, K, V have `features` (d unless given) = heads·k columns; y has d. With `causal`, a time reads
    only times up to its own. With scaling "linear" the logits are Q_h K_hᵀ/k, and query and key are
    drawn equal, so that the attention of a wide layer at random weights is a known matrix and the
    layer has a `.kernel`: softmax(K(x, x)) on either side of that of the values.

    Params are {"query", "key", "value", "out"}, each as of `nn.dense`,
    whose options the others are. Logits and softmax of half-precision data are taken in float32.

    Errors: heads < 1, features that heads do not divide, an unknown scaling, an x of another shape.

    Source: Vaswani et al. (2017), section 3.2; Hron et al. (2020), theorem 3, for the limit.

    >>> layer = self_attention(2)
    >>> params, out_shape = layer.init(jax.random.key(0), (5, 8))
    >>> out_shape, params["query"]["W"].shape
    ((5, 8), (8, 8))
    """
    require_count("self_attention(heads)", heads, "It is the number of heads.")
    if scaling not in ("root", "linear"):
        raise invalid(
            "self_attention(scaling)",
            got=repr(scaling),
            expected="'root' or 'linear'",
            remedy="'root' divides logits by √k as is usual, 'linear' by k.",
        )
    options = {"weight_std": weight_std, "bias_std": bias_std, "parametrization": parametrization}
    # A dense layer knows its fan-in from the weights: any size serves to apply it.
    project = dense(1, **options).apply

    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        require_in_shape("self_attention", in_shape, min_rank=2)
        times, d = in_shape[-2:]
        inner = d if features is None else features
        if len(in_shape) != 2 or inner % heads:
            raise invalid(
                "self_attention.init: in_shape",
                got=f"{in_shape!r} for {inner} features in {heads} heads",
                expected="(T, d), and features that the heads share equally",
                remedy="Choose features= as a multiple of heads.",
            )
        keys = list(jax.random.split(key, 4))
        if scaling == "linear":
            keys[1] = keys[0]
        params = {
            name: dense(inner, **options).init(k, (times, d))[0]
            for name, k in zip(("query", "key", "value"), keys, strict=False)
        }
        return {**params, "out": dense(d, **options).init(keys[3], (times, inner))[0]}, in_shape

    def apply(
        params: Params, x: Array | Sequences, *, key: Key | None = None, stats: Params = None
    ) -> Array | Sequences:
        values = x.values if isinstance(x, Sequences) else x
        _require_sequences("self_attention", values, params["query"]["W"].shape[0])
        n, times, _ = values.shape
        query, keys, value = (
            project(params[name], values).reshape(
                n, times, heads, params[name]["W"].shape[1] // heads
            )
            for name in ("query", "key", "value")
        )
        require_real("self_attention.apply: x", query, keys)  # shares are ordered
        size = query.shape[-1]
        logits = jnp.einsum("nthk,nshk->nhts", wide(query), wide(keys))
        logits = logits / (size if scaling == "linear" else math.sqrt(size))
        read = jnp.tril(jnp.ones((times, times), bool)) if causal else None
        if isinstance(x, Sequences):
            within = jnp.broadcast_to(x.mask()[:, None, None, :], logits.shape)
            read = within if read is None else within & jnp.broadcast_to(read, logits.shape)
        if read is not None:
            # Not -∞, of which a row without anything to read would make NaN.
            lowest = jnp.full_like(logits, jnp.finfo(logits.dtype).min)
            logits = jnp.where(jnp.broadcast_to(read, logits.shape), logits, lowest)
        share = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        heard = jnp.einsum("nhts,nshk->nthk", share, value)
        heard = heard.reshape(n, times, heads * heard.shape[-1])
        y = project(params["out"], heard)
        if not isinstance(x, Sequences):
            return y
        inside = jnp.broadcast_to(x.mask()[..., None], y.shape)
        return Sequences(jnp.where(inside, y, jnp.zeros_like(y)), x.lengths)

    def kernel(kernel: Kernel) -> Kernel:
        limit.require_times("self_attention", kernel)
        limit.require_crossed("self_attention", kernel)
        wide = kernel.width if features is None else features
        std = (weight_std, bias_std, parametrization)
        value = limit.affine(kernel, wide, *std)
        inside = None if kernel.lengths1 is None else lengths.within(kernel)
        share1 = share(value.covariance1, inside and inside[0][None, :, :, None])
        share2 = share(value.covariance2, inside and inside[1][None, :, None, :])
        heard = replace(
            value,
            nngp=_weighed(share1, value.nngp, share2),
            ntk=_weighed(share1, value.ntk, share2),
            covariance1=_weighed(share1, value.covariance1, share1),
            covariance2=_weighed(share2, value.covariance2, share2),
        )
        written = limit.affine(heard, kernel.width, *std)
        return written if inside is None else lengths.weigh(written, *inside)

    def share(logits: Array, inside: Array | None) -> Array:
        # Query and key are drawn as the value is, so that its covariance is that of both.
        times = logits.shape[0]
        if causal:
            read = jnp.tril(jnp.ones((times, times), bool))[..., None, None]
            logits = jnp.where(read, logits, jnp.finfo(logits.dtype).min)
        if inside is not None:
            logits = jnp.where(inside, logits, jnp.finfo(logits.dtype).min)
        return jax.nn.softmax(logits, axis=1)

    remedy = "Take self_attention(scaling='linear'), or the kernel of the finite network."
    unknown = limit.no_limit("self_attention(scaling='root')", remedy)
    limit_of = kernel if scaling == "linear" else unknown
    return Layer(init, apply, limit_of, "self_attention", reads_lengths=True, mixes_positions=True)


def _weighed(share1: Array, k: Array, share2: Array) -> Array:
    """Σ_{s, t} share1[a, s] k[s, t] share2[b, t], all with the axes (T, T, N1, N2)."""
    half = jnp.sum(share1[:, :, None] * k[None], axis=1)
    return jnp.sum(half[:, None] * share2[None], axis=2)


def _require_sequences(layer: str, x: Array, features: int | None) -> None:
    if jnp.ndim(x) != 3 or features not in (None, x.shape[2]):
        raise invalid(
            f"{layer}.apply: x",
            got=f"shape {jnp.shape(x)}",
            expected=f"(N, T, {'d' if features is None else features}), batch axis first",
            remedy="Use the in_shape of init, or x[None] for one sequence.",
        )
