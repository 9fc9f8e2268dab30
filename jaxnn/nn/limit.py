"""Networks of infinite width: the covariance recursion that every layer's `.kernel` is a step of.

At random weights and infinite width the features of a layer are independent draws of one centered
Gaussian process. A `Kernel` holds its covariance (NNGP) and the tangent kernel (NTK) for pairs of
inputs; a layer maps one `Kernel` to the next. Source: Neal (1996); Lee et al. (2018);
Jacot, Gabriel & Hongler (2018); with positions Novak et al. (2019); Yang (2019).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from jaxnn.errors import invalid
from jaxnn.nn.duals import DualActivation
from jaxnn.nn.parametrization import like
from jaxnn.nn.positions import Positions
from jaxnn.nn.windows import Windows
from jaxnn.precision import common, wide
from jaxnn.types import Array, ArrayLike

MOMENTS = ("nngp", "ntk", "covariance1", "covariance2")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """Second moments of a layer's features over pairs of inputs, and the tangent kernel.

    nngp         E[h(x, s) h(x', s')], per feature, (*positions, N1, N2)
    ntk          Σ_θ ∂f(x, s)/∂θ · ∂f(x', s')/∂θ, per output, (*positions, N1, N2)
    covariance1  E[h(x, s) h(x, s')] of each x in x1, (*positions, N1, 1)
    covariance2  E[h(x', s) h(x', s')] of each x' in x2, (*positions, 1, N2)
    width        number of features (static); scales the NTK in the standard parametrization
    positions    pixels or times, and for which pairs (s, s') of them there are entries (static)
    twins        whether x2 is x1 (static): then (x, s) and (x', s') may be one and the same, and
                 their angle is exactly 0
    depth        number of weight layers on the shortest path here (static)
    gaussian     whether the features are centered Gaussian (static): activations need it to be so
    scaled       whether they are Gaussian but for a learned scale of each (static)
    lengths1     of padded sequences x1 the number of times of each, (N1,), else None
    lengths2     the same of x2, (N2,)
    """

    nngp: Float[Array, "..."]
    ntk: Float[Array, "..."]
    covariance1: Float[Array, "..."]
    covariance2: Float[Array, "..."]
    width: int = field(metadata={"static": True})
    positions: Positions = field(default=Positions(), metadata={"static": True})
    twins: bool = field(default=False, metadata={"static": True})
    depth: int = field(default=0, metadata={"static": True})
    gaussian: bool = field(default=False, metadata={"static": True})
    scaled: bool = field(default=False, metadata={"static": True})
    lengths1: Int[Array, "N1"] | None = None
    lengths2: Int[Array, "N2"] | None = None

    def __repr__(self) -> str:
        """One line: shapes in place of numbers."""
        shape = getattr(self.nngp, "shape", None)
        dtype = getattr(self.nngp, "dtype", None)
        return (
            f"Kernel(nngp and ntk of shape {shape} in {dtype}, width={self.width}, "
            f"depth={self.depth}, gaussian={self.gaussian}, positions={self.positions.shape})"
        )

    def map(self, f: Callable[[Array], Array], **changes) -> "Kernel":
        """f of the four moments, and other changes."""
        return replace(self, **{name: f(getattr(self, name)) for name in MOMENTS}, **changes)


def inputs(
    x1: Shaped[Array, "N1 *S d"],
    x2: Shaped[Array, "N2 *S d"] | None = None,
    *,
    crossed: bool = False,
    lengths1: Int[Array, "N1"] | None = None,
    lengths2: Int[Array, "N2"] | None = None,
) -> Kernel:
    """The kernel of the data: k((x, s), (x', s')) = x_s · x'_s'/d and no tangent part.

    x2=None means x1. `crossed` asks for pairs of different positions s and s' as well. Integers
    are promoted to the default float, and data of half precision to float32. The lengths are those
    of padded sequences, as of `nn.Sequences`; they need `crossed`, and with x2=None both are
    `lengths1`.

    Errors: complex data.

    >>> inputs(jnp.ones((2, 4)), 2.0 * jnp.ones((3, 4))).nngp.shape
    (2, 3)
    >>> inputs(jnp.ones((2, 8, 3)), crossed=True).nngp.shape
    (8, 8, 2, 2)
    """
    x1, other = (wide(x) for x in common(x1, x1 if x2 is None else x2))
    if jnp.iscomplexobj(x1):
        raise invalid(
            "limit.inputs: the data",
            got=f"dtype {x1.dtype}",
            expected="real numbers",
            remedy="Stack real and imaginary parts as features.",
        )
    positions = Positions(x1.shape[1:-1], crossed and x1.ndim > 2)
    nngp = positions.covariance(x1, other)
    return Kernel(
        nngp=nngp,
        ntk=jnp.zeros_like(nngp),
        covariance1=positions.own_covariance(x1)[..., :, None],
        covariance2=positions.own_covariance(other)[..., None, :],
        width=x1.shape[-1],
        positions=positions,
        twins=x2 is None,
        lengths1=lengths1,
        lengths2=lengths1 if x2 is None else lengths2,
    )


def affine(
    kernel: Kernel,
    width: int,
    weight_std: ArrayLike,
    bias_std: ArrayLike | None,
    parametrization: str,
) -> Kernel:
    """A dense layer: K' = σ_w²K + σ_b², and Θ' = σ_w²Θ + (what its own parameters add).

    Its own parameters add K' in the NTK parametrization (σ_w, σ_b multiply in apply) and nK + 1 in
    the standard one, n being the width below; nK without a bias, which is bias_std=None.
    Source: Lee et al. (2019), appendix E; Sohl-Dickstein et al. (2020), section 2.
    """
    w2 = like(weight_std, kernel.nngp) ** 2
    b2 = 0.0 if bias_std is None else like(bias_std, kernel.nngp) ** 2
    after = kernel.map(
        lambda k: w2 * k + b2, width=width, depth=kernel.depth + 1, gaussian=True, scaled=False
    )
    own = after.nngp
    if parametrization == "standard":
        own = kernel.width * kernel.nngp + (0.0 if bias_std is None else 1.0)
    return replace(after, ntk=w2 * kernel.ntk + own)


def activate(kernel: Kernel, dual: DualActivation, *, layer: str) -> Kernel:
    """An elementwise activation: K' = E[φφ], Θ' = Θ·E[φ'φ'].

    Source: Cho & Saul (2009); Daniely, Frostig & Singer (2016), definition 4.
    """
    require_gaussian(kernel, layer)
    return replace(_transformed(kernel, dual), gaussian=False)


def patches(kernel: Kernel, windows: Windows) -> Kernel:
    """The features of all entries of a window side by side, at the positions of the windows.

    A convolution is an affine map of these. Source: Novak et al. (2019), equation 6.
    """
    require_axes("conv", kernel, len(windows.size))
    size = math.prod(windows.size)
    return kernel.map(
        lambda k: kernel.positions.joint_sum(k, windows) / size,
        width=kernel.width * size,
        positions=kernel.positions.moved(windows),
    )


def transposed_patches(kernel: Kernel, windows: Windows) -> Kernel:
    """The entries that each output of a transposed convolution reads, zeros between and beyond."""
    require_axes("conv_transpose", kernel, len(windows.size))
    size = math.prod(windows.size)
    return kernel.map(
        lambda k: kernel.positions.transposed_sum(k, windows) / size,
        width=kernel.width * size,
        positions=kernel.positions.spread(windows),
    )


def mix(kernel: Kernel, matrices: tuple[Array, ...], *, layer: str) -> Kernel:
    """A linear map of the positions, a matrix A for each spatial axis: K' = A K Aᵀ."""
    require_axes(layer, kernel, len(matrices))
    require_crossed(layer, kernel)
    for axis, (matrix, n) in enumerate(zip(matrices, kernel.positions.shape, strict=True)):
        if matrix.shape[1] != n:
            raise invalid(
                f"{layer}.kernel: spatial axis {axis}",
                got=f"{n} positions",
                expected=f"{matrix.shape[1]}, the columns of the matrix",
                remedy="Pass data of the shape that the layer was made for.",
            )
    shape = tuple(matrix.shape[0] for matrix in matrices)
    positions = kernel.positions
    return kernel.map(
        lambda k: positions.mixed(k, matrices), positions=replace(positions, shape=shape)
    )


def drop(kernel: Kernel, keep_probability: ArrayLike) -> Kernel:
    """Independent masks m of mean 1 for each example, position and unit: E[m²] = 1/p where p keeps.

    A unit meets its own mask only on the diagonal: of equal positions of one and the same example.
    """
    factor = 1.0 / like(keep_probability, kernel.nngp)
    own = lambda k: jnp.where(kernel.positions.coincident(), factor * k, k)
    same = _identical(kernel)
    pairs = lambda k: k if same is None else jnp.where(same, factor * k, k)
    return replace(
        kernel,
        nngp=pairs(kernel.nngp),
        ntk=pairs(kernel.ntk),
        covariance1=own(kernel.covariance1),
        covariance2=own(kernel.covariance2),
        gaussian=False,
    )


def pool(kernel: Kernel, windows: Windows, *, layer: str, mean: bool, border: bool) -> Kernel:
    """The sum or mean over windows, the mean with or without the zeros of the `border`."""
    require_axes(layer, kernel, len(windows.size))
    require_crossed(layer, kernel)

    def pooled(k: Array) -> Array:
        total = kernel.positions.separate_sum(k, windows)
        if not mean:
            return total
        if border:
            return total / math.prod(windows.size) ** 2
        return total / kernel.positions.entries(windows, k.dtype)[..., None, None]

    return kernel.map(pooled, positions=kernel.positions.moved(windows))


def global_pool(kernel: Kernel, *, layer: str, mean: bool) -> Kernel:
    """The sum or mean over all positions."""
    require_axes(layer, kernel, None)
    require_crossed(layer, kernel)
    axes = tuple(range(len(kernel.positions.axes)))
    over = jnp.mean if mean else jnp.sum
    return kernel.map(
        lambda k: over(k, axis=axes), positions=Positions(), lengths1=None, lengths2=None
    )


def flatten(kernel: Kernel) -> Kernel:
    """The features of all positions side by side: a mean over pairs of equal positions."""
    positions = kernel.positions
    if not positions.shape:
        return kernel
    width = kernel.width * math.prod(positions.shape)
    return kernel.map(
        positions.traced,
        width=width,
        positions=Positions(),
        gaussian=False,
        lengths1=None,
        lengths2=None,
    )


def normalize(kernel: Kernel, epsilon: float, *, scale: bool, shift: bool) -> Kernel:
    """Layer normalization of centered features, K' = K/√((v₁ + ε)(v₂ + ε)).

    The mean over features vanishes, so does the derivative of the mean and of the variance. The
    learned scale adds K' to the NTK, the shift 1. A feature's own scale depends on that feature,
    so that no activation may follow before weights mix the features.
    """
    require_gaussian(kernel, "layer_norm")

    def dual(k: Array, v1: Array, v2: Array) -> tuple[Array, Array]:
        derivative = 1.0 / jnp.sqrt(v1 + epsilon) / jnp.sqrt(v2 + epsilon)
        return k * derivative, derivative

    normal = _transformed(kernel, dual)
    ntk = normal.ntk + (normal.nngp if scale else 0.0) + (1.0 if shift else 0.0)
    return replace(normal, ntk=ntk, gaussian=not scale, scaled=scale)


def add(kernel: Kernel, branches: tuple[Kernel, ...], *, layer: str) -> Kernel:
    """The sum of branches that all start at `kernel`: covariances add.

    True only if cross-covariances vanish: on all paths through all branches but one, a weight
    layer comes last (x + x has covariance 4K, not 2K).
    """
    _require_independent(kernel, branches, layer)
    gaussian = all(b.gaussian for b in branches)
    return _weighted_sum(branches, [1.0] * len(branches), branches[0].width, gaussian)


def multiply(kernel: Kernel, branches: tuple[Kernel, ...], *, layer: str) -> Kernel:
    """The product of independent branches: K' = Π K_b and Θ' = Σ_b Θ_b Π_{c ≠ b} K_c."""
    _require_independent(kernel, branches, layer)

    def both(a: Kernel, b: Kernel) -> Kernel:
        moments = {name: getattr(a, name) * getattr(b, name) for name in MOMENTS}
        moments["ntk"] = a.ntk * b.nngp + a.nngp * b.ntk
        return replace(a, **moments, depth=min(a.depth, b.depth), gaussian=False, scaled=False)

    return reduce(both, branches[1:], replace(branches[0], gaussian=False))


def concatenate(branches: tuple[Kernel, ...], *, layer: str) -> Kernel:
    """The features of all branches side by side: an average weighted by width."""
    _require_equal("positions", [b.positions for b in branches], layer)
    width = sum(b.width for b in branches)
    return _weighted_sum(branches, [b.width / width for b in branches], width, False)


def no_limit(layer: str, remedy: str) -> Callable[[Kernel], Kernel]:
    """The `.kernel` of a layer with no known infinite-width limit: it raises, naming the layer."""

    def kernel(kernel: Kernel) -> Kernel:
        raise invalid(
            f"{layer}.kernel",
            got="a layer without an infinite-width limit",
            expected="dense, conv, average and sum pools, flatten, identity, dropout, layer_norm, "
            "aggregate, resize, conv_transpose, "
            "rnn, self_attention(scaling='linear') or an elementwise activation, joined by serial, "
            "parallel or residual",
            remedy=remedy,
        )

    return kernel


def require_gaussian(kernel: Kernel, layer: str) -> None:
    """Raise unless the features are centered Gaussian."""
    if kernel.scaled:
        raise invalid(
            f"{layer}.kernel: the features entering {layer}",
            got="the output of a layer_norm with a learned scale for each feature",
            expected="features that are all alike, so that the scale can be averaged over",
            remedy=f"Use nn.layer_norm(scale=False) before {layer}, or put a dense layer between.",
        )
    if not kernel.gaussian:
        raise invalid(
            f"{layer}.kernel: the features entering {layer}",
            got="features that are not Gaussian (raw inputs, activations, dropout's output or a "
            "concatenation)",
            expected="Gaussian features",
            remedy=f"Put a dense or convolutional layer directly before {layer}; between them only "
            "nn.layer_norm(scale=False).",
        )


def require_axes(layer: str, kernel: Kernel, count: int | None) -> None:
    """Raise unless the features have `count` spatial axes (None: at least one)."""
    axes = len(kernel.positions.shape)
    if axes != count if count is not None else axes == 0:
        raise invalid(
            f"{layer}.kernel: the spatial axes",
            got=f"{axes} of them",
            expected="at least one" if count is None else f"{count}, as the window has",
            remedy="Pass data (N, *spatial, C), channels last.",
        )


def require_times(layer: str, kernel: Kernel) -> None:
    """Raise unless the features have one spatial axis, time."""
    axes = len(kernel.positions.shape)
    if axes != 1:
        raise invalid(
            f"{layer}.kernel: the axes between batch and features",
            got=f"{axes} of them",
            expected="1, time: data (N, T, d)",
            remedy="Reshape images to sequences of pixels, x.reshape(N, H * W, C).",
        )


def require_crossed(layer: str, kernel: Kernel) -> None:
    """Raise unless the kernel has entries for pairs of different positions."""
    if kernel.positions.shape and not kernel.positions.crossed:
        raise invalid(
            f"{layer}.kernel: the covariances",
            got="covariances between equal positions only",
            expected=f"those between any two positions, which {layer} mixes",
            remedy="Start from nn.limit.inputs(x1, x2, crossed=True), as kernels.infinite does "
            "for a layer with mixes_positions=True.",
        )


def _transformed(kernel: Kernel, dual: DualActivation) -> Kernel:
    """K' and Θ' = Θ·(derivative) of every pair, from its covariance and its two variances."""
    positions = kernel.positions
    v1 = positions.variances(kernel.covariance1)
    v2 = positions.variances(kernel.covariance2, second=True)
    nngp, derivative = dual(_coincided(kernel, v1), v1, v2)

    def own(covariance: Array) -> Array:
        first, second = (positions.variances(covariance, second=s) for s in (False, True))
        return dual(jnp.where(positions.coincident(), first, covariance), first, second)[0]

    return replace(
        kernel,
        nngp=nngp,
        ntk=kernel.ntk * derivative,
        covariance1=own(kernel.covariance1),
        covariance2=own(kernel.covariance2),
    )


def _coincided(kernel: Kernel, v1: Array) -> Array:
    """`nngp` with v₁ itself, bit by bit, where (x, s) and (x', s') are one and the same.

    Rounding would make an angle of √ε of what is 0, which is large against ε.
    """
    same = _identical(kernel)
    return kernel.nngp if same is None else jnp.where(same, v1, kernel.nngp)


def _identical(kernel: Kernel) -> Array | None:
    """Where (x, s) and (x', s') are one and the same; None for nowhere."""
    if not kernel.twins:
        return None
    n = jnp.arange(kernel.nngp.shape[-1])
    examples = (n[:, None] == n[None, :])[(None,) * len(kernel.positions.axes)]
    return kernel.positions.coincident() & examples


def _require_independent(kernel: Kernel, branches: tuple[Kernel, ...], layer: str) -> None:
    _require_equal("widths", [b.width for b in branches], layer)
    _require_equal("positions", [b.positions for b in branches], layer)
    dependent = [b for b in branches if not (b.gaussian and b.depth > kernel.depth)]
    if len(dependent) > 1:
        raise invalid(
            f"{layer}.kernel: the branches of {layer}",
            got=f"{len(dependent)} branches that do not end in weights of their own",
            expected="at most one",
            remedy="End every branch but one with a dense layer.",
        )


def _require_equal(what: str, values: list, layer: str) -> None:
    if len(set(values)) > 1:
        raise invalid(
            f"{layer}.kernel: the branches of {layer}",
            got=f"{what} {values}",
            expected=f"equal {what}",
            remedy="Give the branches the same number of features and the same spatial axes.",
        )


def _weighted_sum(
    branches: tuple[Kernel, ...], weights: list[float], width: int, gaussian: bool
) -> Kernel:
    def total(moment: str) -> Array:
        terms = [w * getattr(b, moment) for w, b in zip(weights, branches, strict=True)]
        return reduce(jnp.add, terms)

    return replace(
        branches[0],
        **{name: total(name) for name in MOMENTS},
        width=width,
        depth=min(b.depth for b in branches),
        gaussian=gaussian,
        scaled=False,
    )
