"""Normalization: over the batch, with population statistics for inference, or over the features."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn import tree
from jaxnn.errors import invalid, require_between, require_real
from jaxnn.nn import limit
from jaxnn.nn.layers import Layer, require_count, require_in_shape
from jaxnn.nn.parametrization import default_float
from jaxnn.precision import accumulated
from jaxnn.types import Array, ArrayLike, Key, Params, PyTree, Shape


def batch_norm(*, epsilon: float = 1e-5, scale: bool = True, shift: bool = True) -> Layer:
    """Every feature (last axis) normalized over the batch and all spatial axes.

        y = γ (x - μ)/√(σ² + ε) + β

    μ and σ² = mean((x - μ)²) are those of the batch if `stats` is None, those of the population
    otherwise: stats {"mean": μ, "variance": σ²}, which `nn.calibrate` computes. Params are
    {"scale": γ, "shift": β}, 1 and 0 at first; an option left out leaves its entry out.
    Half-precision data are normalized in float32.

    Errors: epsilon < 0, stats without mean and variance.

    Source: Ioffe & Szegedy (2015), algorithm 1.

    >>> layer = batch_norm()
    >>> params, _ = layer.init(jax.random.key(0), (1,))
    >>> layer.apply(params, jnp.array([[1.0], [3.0]])).ravel()
    Array([-0.999995,  0.999995], dtype=float32)
    """
    _require_epsilon("batch_norm", epsilon)
    remedy = "Take the kernel of the finite network with its calibrated stats."

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        _require_batch("batch_norm", x)

        def normalized(x: Array, *affine: Array) -> Array:
            if stats is None or isinstance(stats, _Recorder):
                axes = tuple(range(x.ndim - 1))
                mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
                if isinstance(stats, _Recorder):
                    stats.record(mean, variance, x.size // x.shape[-1])
            else:
                mean, variance = (moment.astype(x.dtype) for moment in _moments(stats))
            y = _normalized(x, mean, variance, epsilon)
            return _affine(dict(zip(params, affine, strict=True)), y)

        return accumulated(normalized, x, *params.values())

    init = _init("batch_norm", scale, shift)
    return Layer(init, apply, limit.no_limit("batch_norm", remedy), "batch_norm")


def layer_norm(*, epsilon: float = 1e-6, scale: bool = True, shift: bool = True) -> Layer:
    """Every example's features (last axis) normalized to mean 0 and variance 1.

        y = γ (x - μ)/√(σ² + ε) + β,   μ and σ² over the last axis alone

    Params are as for `nn.batch_norm`; no `stats` are needed.

    Errors: epsilon < 0.

    Source: Ba, Kiros & Hinton (2016), equation 4.

    >>> layer = layer_norm()
    >>> params, _ = layer.init(jax.random.key(0), (2,))
    >>> layer.apply(params, jnp.array([[1.0, 3.0]]))
    Array([[-0.9999995,  0.9999995]], dtype=float32)
    """
    _require_epsilon("layer_norm", epsilon)

    def apply(params: Params, x: Array, *, key: Key | None = None, stats: Params = None) -> Array:
        _require_batch("layer_norm", x)

        def normalized(x: Array, *affine: Array) -> Array:
            mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
            y = _normalized(x, mean, variance, epsilon)
            return _affine(dict(zip(params, affine, strict=True)), y)

        return accumulated(normalized, x, *params.values())

    init = _init("layer_norm", scale, shift)
    kernel = partial(limit.normalize, epsilon=epsilon, scale=scale, shift=shift)
    return Layer(init, apply, kernel, "layer_norm")


def apply_with_stats(
    net: Layer, params: Params, x: PyTree, *, key: Key | None = None
) -> tuple[Any, PyTree]:
    """y = net.apply(params, x, key=key) by batch statistics, and these as stats, in one pass.

    The variances are the unbiased σ² m/(m - 1) of m numbers per feature. For layers without
    statistics the entry is None. Works inside jit and grad (has_aux), for layers joined by serial,
    parallel and residual.

    Errors: a batch with a single number per feature.

    >>> net = batch_norm()
    >>> params, _ = net.init(jax.random.key(0), (1,))
    >>> apply_with_stats(net, params, jnp.array([[1.0], [3.0]]))[1]
    {'mean': Array([2.], dtype=float32), 'variance': Array([2.], dtype=float32)}
    """
    recorders = _recorders(params)
    y = net.apply(params, x, key=key, stats=recorders)
    return y, _recorded(recorders)


def calibrate(net: Layer, params: Params, x: PyTree, *, batch_size: int | None = None) -> PyTree:
    """Population statistics of all batch norms of a trained network: the `stats` for inference.

        μ = mean over batches of μ_B,   σ² = m/(m - 1) · mean over batches of σ²_B

    The batches are consecutive `batch_size` examples of x (a remainder is left out), of m numbers
    per feature; all of x is one batch unless given. They should be drawn as in training, and as
    large: each batch norm sees what its predecessors make of the batch. Afterwards
    `partial(net.apply, stats=stats)` is an ordinary f(params, x).

    Errors: batch_size not from 1 to N, a batch with a single number per feature.

    Source: Ioffe & Szegedy (2015), algorithm 2, steps 8 to 10.

    >>> from jaxnn import nn
    >>> net = nn.serial(nn.dense(3), nn.batch_norm(), nn.relu())
    >>> params, _ = net.init(jax.random.key(0), (2,))
    >>> stats = calibrate(net, params, jnp.eye(2))
    >>> stats[0] is None, stats[1]["mean"].shape
    (True, (3,))
    """
    examples = jax.tree.leaves(x)[0].shape[0]
    if batch_size is None:
        return apply_with_stats(net, params, x)[1]
    require_count("calibrate(batch_size)", batch_size, "It is the number of examples per batch.")
    if batch_size > examples:
        raise invalid(
            "calibrate(batch_size)",
            got=batch_size,
            expected=f"at most the number of examples, {examples}",
            remedy="None takes all of x as one batch.",
        )
    count = examples // batch_size
    batches = jax.tree.map(
        lambda a: a[: count * batch_size].reshape(count, batch_size, *a.shape[1:]), x
    )
    stats = lax.map(lambda batch: apply_with_stats(net, params, batch)[1], batches)
    return jax.tree.map(lambda s: jnp.mean(s, axis=0), stats)


def moving_average(average: PyTree, stats: PyTree, decay: ArrayLike = 0.99) -> PyTree:
    """The update decay·average + (1 - decay)·stats of running statistics, a pure function.

    An alternative to `nn.calibrate` during training: start from the stats of the first batch and
    update by those of each step, which `nn.apply_with_stats` returns.

    Errors: decay outside [0, 1].

    Source: Ioffe & Szegedy (2015), section 3.1.

    >>> moving_average({"mean": jnp.ones(1)}, {"mean": 2.0 * jnp.ones(1)}, 0.75)
    {'mean': Array([1.25], dtype=float32)}
    """
    require_between(
        "moving_average(decay)",
        decay,
        0.0,
        1.0,
        high_open=False,
        remedy="It is the weight of the past.",
    )
    return tree.axpy(1.0 - decay, stats, tree.scale(decay, average))


class _Recorder:
    """Stands in the place of one layer's stats, and keeps the moments that the layer computes.

    It lives within one call of `apply_with_stats`, which returns what it holds.
    """

    def __init__(self) -> None:
        self.stats: dict[str, Array] | None = None

    def record(self, mean: Array, variance: Array, m: int) -> None:
        if m < 2:
            raise invalid(
                "apply_with_stats: the batch",
                got="1 number per feature",
                expected="at least 2, to estimate a variance",
                remedy="Pass more examples.",
            )
        self.stats = {"mean": mean, "variance": m / (m - 1) * variance}


def _recorders(params: Params) -> Any:
    """A recorder for every layer: a combinator's params are a tuple of its layers' own."""
    if isinstance(params, (tuple, list)):
        return tuple(_recorders(p) for p in params)
    return _Recorder()


def _recorded(recorders: Any) -> PyTree:
    if isinstance(recorders, tuple):
        return tuple(_recorded(r) for r in recorders)
    return recorders.stats


def _moments(stats: Any) -> tuple[Array, Array]:
    if not isinstance(stats, dict) or set(stats) != {"mean", "variance"}:
        raise invalid(
            "batch_norm.apply: stats",
            got=sorted(stats) if isinstance(stats, dict) else type(stats).__name__,
            expected="a dict of mean and variance",
            remedy="Pass what nn.calibrate(net, params, x) returns.",
        )
    return stats["mean"], stats["variance"]


def _init(name: str, scale: bool, shift: bool):
    def init(key: Key, in_shape: Shape) -> tuple[Params, Shape]:
        require_in_shape(name, in_shape, min_rank=1)
        features, dtype = in_shape[-1:], default_float()
        params = {"scale": jnp.ones(features, dtype)} if scale else {}
        return params | ({"shift": jnp.zeros(features, dtype)} if shift else {}), in_shape

    return init


def _normalized(x: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    centered = x - jnp.broadcast_to(mean, x.shape)
    return centered * jnp.broadcast_to(lax.rsqrt(variance + epsilon), x.shape)


def _affine(params: Params, y: Array) -> Array:
    if "scale" in params:
        y = y * jnp.broadcast_to(params["scale"], y.shape)
    if "shift" in params:
        y = y + jnp.broadcast_to(params["shift"], y.shape)
    return y


def _require_epsilon(name: str, epsilon: float) -> None:
    remedy = "It keeps the division finite where a feature is constant."
    require_between(f"{name}(epsilon)", epsilon, 0.0, float("inf"), remedy=remedy)


def _require_batch(name: str, x: Array) -> None:
    if jnp.ndim(x) < 2:
        raise invalid(
            f"{name}.apply: x",
            got=f"shape {jnp.shape(x)}",
            expected="(N, ..., features), batch axis first",
            remedy="Use x[None] for one example.",
        )
    require_real(f"{name}.apply: x", x)
