"""Matrices of curvature that pass through the outputs: Gauss-Newton and Fisher, G = E[Jᵀ M J].

M is a positive semidefinite matrix for every example's outputs: the Hessian of a convex loss, or
the Fisher information of a family of distributions. J is never stored. A product is a forward
pass, M and a reverse pass; a quadratic form ⟨Jv, M J v⟩ needs no reverse pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Shaped

from jaxnn import tree
from jaxnn.curvature.heads import HEADS, HeadName, Kind, labels_of, outputs_of, scores
from jaxnn.errors import invalid
from jaxnn.jaxprs import has_forward_mode
from jaxnn.linalg.batches import mean_over_batches, require_separate
from jaxnn.linalg.derivatives import push_by_reverse
from jaxnn.linalg.operators import LinearOperator, Static, carried
from jaxnn.types import Apply, Array, ArrayLike, Key, Params, PyTree


def gauss_newton(
    f: Apply,
    loss: Callable[[PyTree, Any], Array],
    params: Params,
    x: PyTree,
    y: PyTree,
    *,
    batch_size: int | None = None,
) -> LinearOperator:
    """The generalized Gauss-Newton matrix of the mean loss, a positive semidefinite operator.

        G = (1/N) Σ_n J_nᵀ ∇²ℓ_n J_n,   J_n = ∂f(θ, x_n)/∂θ

    ∇²ℓ_n is the Hessian of a convex loss in the outputs, so that G is the Hessian without the term
    (1/N) Σ_n Σ_k ∂ℓ_n/∂f_k ∇²f_k, which vanishes for an f linear in θ. `loss(f(params, x), y)` is
    (N,), one number per example (`jaxnn.losses`), or already their mean; outputs, x and y may be
    pytrees. Arrays are carried by the operator, so it can cross `jit` without becoming constants.

    With `batch_size`, x and y have N examples along their first axes and are taken batch after
    batch, as `mean_over_batches` does. That is exact where f treats every example by itself, which
    is checked on the first batch where arrays have values: batch norm is refused.

    That the loss is convex is believed; if it is not, G is indefinite and the declaration wrong.

    Errors: parameters or outputs that are none or not real floating point, a loss of another shape,
    with `batch_size` an f whose outputs depend on the other examples or on the place in a batch.

    Source: Schraudolph (2002), section 3; Martens (2020), section 8.

    >>> from jaxnn.losses import half_squared_error
    >>> x, y = jnp.array([1.0, 2.0]), jnp.zeros(2)
    >>> G = gauss_newton(lambda w, x: w * x, half_squared_error, jnp.array([3.0]), x, y)
    >>> G @ jnp.array([1.0]), G.quadratic_form(jnp.array([2.0]))
    (Array([2.5], dtype=float32), Array(10., dtype=float32))
    """
    z = outputs_of("gauss_newton", f, params, x)
    loss = carried(loss, z, y, order=2)
    value = jax.eval_shape(loss, z, y)
    n = jnp.shape(jax.tree.leaves(z)[0])[:1]
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape not in ((), n):
        raise invalid(
            "gauss_newton(loss)",
            got=f"shape {getattr(value, 'shape', type(value).__name__)} for outputs "
            f"{jax.tree.map(lambda s: s.shape, z)}",
            expected="(N,), one number per example, or a scalar, their mean",
            remedy="Sum over the outputs of an example, as the losses of jaxnn.losses do.",
        )
    metric = Partial(_loss_hessian, loss)
    return _through_outputs("gauss_newton", f, metric, params, (x, y), batch_size)


def fisher(
    f: Apply,
    params: Params,
    x: PyTree,
    *,
    kind: Kind = "exact",
    head: HeadName = "categorical",
    y: Shaped[ArrayLike, "N ..."] | None = None,
    key: Key | None = None,
    samples: int = 1,
    batch_size: int | None = None,
) -> LinearOperator:
    """The Fisher information of p(y | f(θ, x)), averaged over x; a positive semidefinite operator.

        F = (1/N) Σ_n E[g_n g_nᵀ],   g_n = -∇ ln p(y | f(θ, x_n))

    `head` names the family, as in `losses.negative_log_likelihood` (the Gaussian with s = 1). What
    the expectation is over is the `kind`:

    "exact"        all y, by their probability: (1/N) Σ_n J_nᵀ F_out J_n with F_out = diag(p) - ppᵀ
                   (categorical), diag(p(1 - p)) (Bernoulli) or 1 (Gaussian), which is the
                   Gauss-Newton matrix of that negative log-likelihood
    "monte_carlo"  `samples` labels per example, drawn once from the model with `key`: an unbiased
                   estimate, and a fixed operator (`drawn_labels` has its labels)
    "empirical"    the labels `y` of the data. It does not estimate F unless the model has fitted
                   the distribution of the data (Kunstner, Hennig & Balles 2019)

    Outputs are (N, ...), for "categorical" with the classes on the last axis. `batch_size` is that
    of `gauss_newton`; the labels drawn do not depend on it.

    Errors: an unknown kind or head; y, key or samples that the kind needs and lacks, or does not
    use; labels that do not fit the outputs, outputs that are no array of real floating point.

    Source: Amari (1998), section 3; Martens (2020), sections 5 and 11.

    >>> F = fisher(lambda z, x: z * x, jnp.array([0.0, 0.0]), jnp.array([[1.0], [2.0]]))
    >>> F.to_dense()  # E[x²] (diag(p) - ppᵀ)
    Array([[ 0.625, -0.625],
           [-0.625,  0.625]], dtype=float32)
    """
    labels = labels_of("fisher", f, params, x, kind, head, y, key, samples, batch_size)
    if labels is None:
        metric, data = Partial(_mean_information, HEADS[head].information), (x,)
    else:
        metric, data = Partial(_score_products, HEADS[head].loss), (x, labels)
    return _through_outputs("fisher", f, metric, params, data, batch_size)


def _through_outputs(
    function: str, f: Apply, metric: Partial, params: Params, data: tuple, batch_size: int | None
) -> LinearOperator:
    """Jᵀ M J, where `metric(z, *targets, u)` is M u, with the 1/N of the mean over a batch."""
    f = carried(f, params, data[0])
    require_separate(f"{function}(f)", f, params, data[0], batch_size)
    bound = (Static(batch_size), f, metric, params, data)
    by_rule = not has_forward_mode(jax.make_jaxpr(f)(params, data[0]).eqns)
    product = Partial(_product_by_reverse if by_rule else _product, *bound)
    return LinearOperator(
        product,
        product,
        domain=params,
        codomain=params,
        structure="positive_semidefinite",
        form=None if by_rule else Partial(_form, *bound),
    )


def _product(
    batch_size: Static, f: Callable, metric: Callable, params: Params, data: tuple, v: PyTree
) -> PyTree:
    def product(x: PyTree, *targets: PyTree) -> PyTree:
        z, push = jax.linearize(lambda p: f(p, x), params)
        pull = jax.linear_transpose(push, params)
        return pull(metric(z, *targets, push(v)))[0]

    return mean_over_batches(product, data, batch_size.value)


def _product_by_reverse(
    batch_size: Static, f: Callable, metric: Callable, params: Params, data: tuple, v: PyTree
) -> PyTree:
    def product(x: PyTree, *targets: PyTree) -> PyTree:
        z, pull = jax.vjp(lambda p: f(p, x), params)
        return pull(metric(z, *targets, push_by_reverse(f, params, (x,), v)))[0]

    return mean_over_batches(product, data, batch_size.value)


def _form(
    batch_size: Static, f: Callable, metric: Callable, params: Params, data: tuple, v: PyTree
) -> Array:
    def form(x: PyTree, *targets: PyTree) -> Array:
        z, u = jax.jvp(lambda p: f(p, x), (params,), (v,))
        return tree.dot(u, metric(z, *targets, u))

    return mean_over_batches(form, data, batch_size.value)


def _loss_hessian(loss: Callable, z: PyTree, y: PyTree, u: PyTree) -> PyTree:
    gradient = jax.grad(lambda z: jnp.mean(loss(z, y)))
    return jax.jvp(gradient, (z,), (u,))[1]


def _mean_information(information: Callable, z: Array, u: Array) -> Array:
    return information(z, u) / z.shape[0]


def _score_products(loss: Callable, z: Array, labels: Array, u: Array) -> Array:
    """(1/NS) Σ_s r_s ⟨r_s, u_n⟩ for the scores r of example n."""
    r = scores(loss, z, labels)
    n, s = r.shape[:2]
    r = r.reshape(n, s, -1)
    highest = lax.Precision.HIGHEST
    slopes = jnp.einsum("nsk,nk->ns", r, u.reshape(n, -1), precision=highest)
    return jnp.einsum("nsk,ns->nk", r, slopes / (n * s), precision=highest).reshape(z.shape)
