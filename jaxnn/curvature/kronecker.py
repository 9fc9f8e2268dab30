"""Kronecker factors of the Fisher matrix (K-FAC) for the dense and convolutional layers of a net.

A layer computes s = āᵀV, where V (m, n) stacks the rows of W and b, and ā is its input, or the
patch of it, with a 1 for the bias. A gradient with respect to V is Σ_t ā_t g_tᵀ over positions t,
g being that with respect to s, and so the Fisher block E[Σ_t Σ_t' ā_t ā_t'ᵀ ⊗ g_t g_t'ᵀ]. K-FAC
takes ā and g for independent, and the g of different positions for uncorrelated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial, keystr, tree_flatten_with_path
from jaxtyping import Float, Shaped

from jaxnn import tree
from jaxnn.curvature.heads import HEADS, HeadName, Kind, labels_of, scores
from jaxnn.errors import invalid, require_between
from jaxnn.linalg.batches import gathered, mean_over_batches, require_separate
from jaxnn.linalg.operators import LinearOperator, Static
from jaxnn.nn import Layer, Sequences
from jaxnn.types import Array, ArrayLike, Key, Params, PyTree

_HIGHEST = lax.Precision.HIGHEST


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerFactors:
    """The block A ⊗ G of a layer, by its factors; a frozen pytree of A and G.

    A  (m, m): second moments of the inputs ā, the bias's 1 last
    G  (n, n): second moments of the gradients with respect to the n features
    W  shape (..., n) and dtype of the layer's W, m or, with a bias, m - 1 rows
    b  those of its bias (n,); None without one

    The block acts on the layer's params {"W": W, "b": b}, or {"W": W}, as V ↦ A V G. Products are
    computed in the dtype of the factors, which is wider than that of the params where x is.
    """

    A: Float[Array, "m m"]
    G: Float[Array, "n n"]
    W: jax.ShapeDtypeStruct
    b: jax.ShapeDtypeStruct | None = None

    def __repr__(self) -> str:
        sizes = " ⊗ ".join(f"{len(factor)} × {len(factor)}" for factor in (self.A, self.G))
        return f"KroneckerFactors({sizes}, {self.A.dtype})"

    @property
    def operator(self) -> LinearOperator:
        """The operator A ⊗ G, positive semidefinite: `kron(A, G)` in raveled coordinates."""
        return self._operator(Partial(_between_factors, self.A, self.G))

    def inverse(self, damping: ArrayLike) -> LinearOperator:
        """The operator (A ⊗ G + λ)⁻¹ for a damping λ > 0, by the eigenvectors of A and G.

        With A = U diag(α) Uᵀ and G = V diag(γ) Vᵀ it maps X to U [(Uᵀ X V)_ij / (α_i γ_j + λ)] Vᵀ:
        exact, where (A + π√λ)⁻¹ ⊗ (G + √λ/π)⁻¹ damps by more than λ (Martens & Grosse 2015, section
        6.3). Eigenvalues that rounding has made negative count as 0.

        Errors: a damping ≤ 0.

        Source: George et al. (2018), section 3, for the basis.

        >>> W = jax.ShapeDtypeStruct((2, 1), jnp.float32)
        >>> factors = KroneckerFactors(jnp.diag(jnp.array([1.0, 3.0])), jnp.eye(1), W)
        >>> factors.inverse(1.0) @ {"W": jnp.ones((2, 1))}
        {'W': Array([[0.5 ], [0.25]], dtype=float32)}
        """
        require_between(
            "KroneckerFactors.inverse(damping)",
            damping,
            0.0,
            math.inf,
            low_open=True,
            remedy="The factors of few examples are singular.",
        )
        (alpha, U), (gamma, V) = jnp.linalg.eigh(self.A), jnp.linalg.eigh(self.G)
        values = jnp.outer(jnp.maximum(alpha, 0), jnp.maximum(gamma, 0))
        return self._operator(Partial(_solve, U, V, values + jnp.asarray(damping, values.dtype)))

    def _operator(self, function: Callable[[Array], Array]) -> LinearOperator:
        product = Partial(_on_params, Static(self.A.dtype), function)
        space = {"W": self.W} if self.b is None else {"W": self.W, "b": self.b}
        return LinearOperator(
            *(product, product), *(space, space), structure="positive_semidefinite"
        )


def _unflatten(layer: tuple, children: tuple) -> KroneckerFactors:
    factors = object.__new__(KroneckerFactors)
    # No checks: JAX unflattens with placeholders in the place of arrays.
    for name, value in zip("AGWb", (*children, *layer), strict=True):
        object.__setattr__(factors, name, value)
    return factors


jax.tree_util.register_pytree_node(KroneckerFactors, lambda f: ((f.A, f.G), (f.W, f.b)), _unflatten)


def kfac(
    net: Layer,
    params: Params,
    x: PyTree,
    *,
    kind: Kind = "exact",
    head: HeadName = "categorical",
    y: Shaped[ArrayLike, "N ..."] | None = None,
    key: Key | None = None,
    samples: int = 1,
    batch_size: int | None = None,
) -> dict[str, KroneckerFactors]:
    """The Kronecker factors of the Fisher matrix's block of every dense and convolutional layer.

        A = (1/N) Σ_n Σ_t ā_nt ā_ntᵀ,   G = (1/NT) Σ_n Σ_t E[g_nt g_ntᵀ]

    over N examples and the T positions at which a layer's weights are used: 1 for `nn.dense` on
    (N, features), the places of the window for `nn.conv`. The sum over positions is in A, their
    mean in G. ā holds the scales of the parametrization ("ntk": weight_std/√fan_in for the input,
    bias_std for the bias), so that A ⊗ G is a block for the params as they are stored.

    The other arguments are those of `fisher`, and with the same key the labels drawn are the same.
    The result has the paths of the layers, as `blocks(fisher(net.apply, params, x))` has. The
    blocks are exact for one example without positions, and where the g are the same for all
    examples, as in deep linear networks with the Gaussian head (Bernacchia et al. 2018).

    Layers without parameters may be any that treat every example by itself. One reverse pass per
    output is needed for "exact", one per label otherwise.

    Errors: those of `fisher`; a layer with parameters that is neither `nn.dense` nor `nn.conv` with
    groups=1, named by its path; x that are `nn.Sequences`, whose padding would count as positions.

    Source: Martens & Grosse (2015), section 3; Grosse & Martens (2016), theorem 1, for conv.

    >>> from jaxnn import nn
    >>> net = nn.serial(nn.dense(4), nn.tanh(), nn.dense(3))
    >>> params, _ = net.init(jax.random.key(0), (2,))
    >>> factors = kfac(net, params, jnp.ones((5, 2)))
    >>> {path: (layer.A.shape, layer.G.shape) for path, layer in factors.items()}
    {'[0]': ((3, 3), (4, 4)), '[2]': ((5, 5), (3, 3))}
    >>> step = factors["[0]"].inverse(1e-3) @ params[0]
    """
    if isinstance(x, Sequences):
        raise invalid(
            "kfac(x)",
            got="nn.Sequences",
            expected="an array of examples",
            remedy="Their padding would count as positions.",
        )
    labels = labels_of("kfac", net.apply, params, x, kind, head, y, key, samples, batch_size)
    require_separate("kfac(net)", net.apply, params, x, batch_size)
    data = (x,) if labels is None else (x, labels)
    moments = mean_over_batches(partial(_moments, net, head, params), data, batch_size)
    # In the order of the params.
    layers: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for path, leaf in tree_flatten_with_path(params)[0]:
        struct = jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
        layers.setdefault(keystr(path[:-1]), {})[path[-1].key] = struct
    return {path: KroneckerFactors(*moments[path], **layer) for path, layer in layers.items()}


class _Record:
    """What a pass through a network leaves behind, by the paths of its layers."""

    def __init__(self, shifts: dict[str, Array]) -> None:
        self.shifts = shifts
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}

    def apply(self, path: str, layer: Layer, params: Params, x: Any, **options: Any) -> Any:
        """The layer's output, plus the shift for it."""
        y = layer.apply(params, x, **options)
        if tree.size(params) == 0:
            return y
        _require_affine(path, layer, params, x)
        self.inputs[path] = _rows(layer, params, x)
        self.outputs[path] = y
        return y + self.shifts[path] if path in self.shifts else y


def _recorded(
    net: Layer, params: Params, x: PyTree, shifts: dict[str, Array]
) -> tuple[Array, _Record]:
    record = _Record(shifts)
    return _tapped(net, "", record).apply(params, x), record


def _tapped(layer: Layer, path: str, record: _Record) -> Layer:
    if layer.join is None:
        return layer._replace(apply=partial(record.apply, path, layer))
    parts = (_tapped(part, f"{path}[{i}]", record) for i, part in enumerate(layer.parts))
    return layer.join(*parts)


def _moments(
    net: Layer, head: HeadName, params: Params, x: PyTree, *labels: Array
) -> dict[str, tuple[Array, Array]]:
    """A and G of one batch."""
    outputs = jax.eval_shape(lambda: _recorded(net, params, x, {})[1].outputs)
    shifts = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), outputs)

    def shifted(shifts: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        z, record = _recorded(net, params, x, shifts)
        return z, record.inputs

    z, pull, inputs = jax.vjp(shifted, shifts, has_aux=True)
    n = z.shape[0]
    if labels:
        # r_s/√S for S labels: the mean of r rᵀ is a sum.
        cotangents = scores(HEADS[head].loss, z, labels[0]) / math.sqrt(labels[0].shape[1])
        seeds, cotangent = jnp.moveaxis(cotangents, 1, 0), lambda r: r
    else:
        # The columns of L, where L Lᵀ is the Fisher information of the outputs.
        seeds = jnp.eye(math.prod(z.shape[1:]), dtype=z.dtype).reshape(-1, *z.shape[1:])
        cotangent = lambda e: HEADS[head].root(z, jnp.broadcast_to(e, z.shape))

    def add(sums: dict[str, Array], seed: Array) -> tuple[dict[str, Array], None]:
        (g,) = pull(cotangent(seed))
        # The mean over examples and positions.
        means = {path: _gram(gl, math.prod(gl.shape[:-1])) for path, gl in g.items()}
        return tree.add(sums, means), None

    zero = {path: jnp.zeros((s.shape[-1], s.shape[-1]), s.dtype) for path, s in outputs.items()}
    G = lax.scan(add, zero, seeds)[0]
    return {path: (_gram(a, n), G[path]) for path, a in inputs.items()}


def _gram(rows: Array, count: int) -> Array:
    flat = gathered(rows).reshape(-1, rows.shape[-1])
    return jnp.matmul(flat.T, flat, precision=_HIGHEST) / count


def _rows(layer: Layer, params: Params, x: Array) -> Array:
    """ā (N, ..., m) at every position: what the layer makes of the unit vectors as weights.

    This has its strides, borders and scales from the layer itself. It costs N·T·m², as A does.
    """
    shape = params["W"].shape
    fan_in = math.prod(shape[:-1])
    m = fan_in + ("b" in params)
    units = {"W": jnp.eye(fan_in, m, dtype=params["W"].dtype).reshape(*shape[:-1], m)}
    if "b" in params:
        units["b"] = jnp.eye(m, dtype=params["b"].dtype)[-1]
    with jax.default_matmul_precision("highest"):
        return layer.apply(units, x)


def _require_affine(path: str, layer: Layer, params: Params, x: Any) -> None:
    known = layer.name in ("dense", "conv") and set(params) <= {"W", "b"}
    if known and x.shape[-1] == params["W"].shape[-2]:
        return
    raise invalid(
        f"kfac(net): the layer at params{path}",
        got=f"{layer.name} with groups" if known else layer.name,
        expected="nn.dense, nn.conv with groups=1, or a layer without parameters",
        remedy="Other blocks are those of blocks(fisher(net.apply, params, x)).",
    )


def _between_factors(A: Array, G: Array, X: Array) -> Array:
    return jnp.matmul(jnp.matmul(A, X, precision=_HIGHEST), G, precision=_HIGHEST)


def _solve(U: Array, V: Array, values: Array, X: Array) -> Array:
    return _between_factors(U, V.T, _between_factors(U.T, V, X) / values)


def _on_params(dtype: Static, function: Callable[[Array], Array], v: Params) -> Params:
    """The map of matrices V (m, n) on a layer's params, computed in this dtype."""
    W = v["W"]
    rows = W.reshape(-1, W.shape[-1]).astype(dtype.value)
    if "b" in v:
        rows = jnp.concatenate([rows, v["b"][None].astype(dtype.value)])
    image = function(rows)
    parts = {"W": image[: W.size // W.shape[-1]], "b": image[-1]}
    return {name: parts[name].reshape(leaf.shape).astype(leaf.dtype) for name, leaf in v.items()}
