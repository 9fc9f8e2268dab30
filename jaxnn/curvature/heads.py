"""Families p(y | z) of labels given the outputs of a network, and the labels to average over."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Float, Shaped

from jaxnn import losses, tree
from jaxnn.errors import invalid, require_examples
from jaxnn.jaxprs import fresh
from jaxnn.linalg.batches import examples_at, gathered
from jaxnn.minibatches import require_at_least_one
from jaxnn.types import Apply, Array, ArrayLike, Key, Params, PyTree

Kind = Literal["exact", "monte_carlo", "empirical"]
"""Over which labels a Fisher matrix averages: all, by probability; drawn ones; the data's own."""

HeadName = Literal["categorical", "bernoulli", "gaussian"]

_OTHER_FAMILY = "For another family write its -ln p(y | z) as a loss, for gauss_newton."


class Head(NamedTuple):
    """A family p(y | z) of labels given the outputs of a network.

    loss         (z, y) -> (N,): -ln p(y | z), up to a constant
    information  (z, u) -> F u, where F = E[∇ℓ ∇ℓᵀ] is block diagonal in the examples
    root         (z, u) -> L u, where F = L Lᵀ
    draw         (key, z) -> y ~ p(y | z)

    All but `draw` are `Partial`s, which an operator carries across `jit`.
    """

    loss: Callable[[Array, Array], Array]
    information: Callable[[Array, Array], Array]
    root: Callable[[Array, Array], Array]
    draw: Callable[[Key, Array], Array]


def labels_of(
    function: str,
    f: Apply,
    params: Params,
    x: PyTree,
    kind: Kind,
    head: HeadName,
    y: ArrayLike | None,
    key: Key | None,
    samples: int,
    batch_size: int | None,
) -> Shaped[Array, "N S ..."] | None:
    """The labels that a Fisher matrix of this kind averages over, None where over all of them."""
    remedy = "'exact' needs neither labels nor a key."
    _require_one_of(f"{function}(kind)", kind, get_args(Kind), remedy)
    _require_one_of(f"{function}(head)", head, HEADS, _OTHER_FAMILY)
    for argument, value, owner in (("y", y, "empirical"), ("key", key, "monte_carlo")):
        if (value is not None) != (kind == owner):
            raise invalid(
                f"{function}({argument})",
                got="None" if value is None else "a value",
                expected=f"{'a value' if kind == owner else 'None'} for kind={kind!r}",
                remedy="'empirical' takes the labels y of the data; 'monte_carlo' draws labels "
                "with a key; 'exact' averages over all labels.",
            )
    require_at_least_one(f"{function}(samples)", samples, "It is the number of labels drawn.")
    if samples != 1 and kind != "monte_carlo":
        raise invalid(
            f"{function}(samples)",
            got=samples,
            expected=f"1 for kind={kind!r}",
            remedy="Only 'monte_carlo' draws labels.",
        )
    z = outputs_of(function, f, params, x)
    _require_one_array(function, z, head)
    if key is not None:
        return drawn_labels(f, params, x, key, head=head, samples=samples, batch_size=batch_size)
    if y is None:
        return None
    jax.eval_shape(HEADS[head].loss, z, y)  # the loss says what does not fit
    return jnp.asarray(y)[:, None]


def drawn_labels(
    f: Apply,
    params: Params,
    x: PyTree,
    key: Key,
    *,
    head: HeadName = "categorical",
    samples: int = 1,
    batch_size: int | None = None,
) -> Shaped[Array, "N S ..."]:
    """`samples` labels per example from p(y | f(θ, x)), those that `fisher` draws with this key.

    Integers for "categorical", booleans for "bernoulli", real numbers for "gaussian". They do not
    depend on `batch_size`, which is how many examples the network sees at once.

    Errors: an unknown head, samples or a batch size below 1, outputs that are not one array of real
    floating point or, for "categorical", have no axis of classes.

    >>> logits = lambda params, x: jnp.stack([0.0 * x, x], axis=-1)
    >>> drawn_labels(logits, (), jnp.array([-50.0, 50.0]), jax.random.key(0), samples=3)
    Array([[0, 0, 0],
           [1, 1, 1]], dtype=int32)
    """
    _require_one_of("drawn_labels(head)", head, HEADS, _OTHER_FAMILY)
    require_at_least_one("drawn_labels(samples)", samples, "It is the number of labels drawn.")
    if batch_size is not None:
        remedy = "None takes all of the data at once."
        require_at_least_one("drawn_labels(batch_size)", batch_size, remedy)
    n = require_examples("drawn_labels(x)", x, remedy="The batch axis comes first in x.")
    _require_one_array("drawn_labels", _shapes_of("drawn_labels", f, params, x), head)
    z = _outputs_in_batches(f, params, x, n, batch_size)
    shape = (z.shape[0], samples, *z.shape[1:])
    return HEADS[head].draw(key, jnp.broadcast_to(z[:, None], shape))


def scores(
    loss: Callable[[Array, Array], Array], z: Array, labels: Shaped[Array, "N S ..."]
) -> Float[Array, "N S ..."]:
    """∇_z ℓ_n for each of S labels per example."""
    total = lambda z, y: jnp.sum(loss(z, y))
    return jax.vmap(jax.grad(total), in_axes=(None, 1), out_axes=1)(z, labels)


def _categorical_information(z: Array, u: Array) -> Array:
    p = jax.nn.softmax(z, axis=-1)
    # Less the mean first: of a u that is large and the same for all classes little is left over.
    return p * (u - jnp.sum(p * u, axis=-1, keepdims=True))


def _categorical_root(z: Array, u: Array) -> Array:
    # L e_y = √p_y (e_y - p), the score of label y times the root of its probability.
    p = jax.nn.softmax(z, axis=-1)
    return jnp.sqrt(p) * u - p * jnp.sum(jnp.sqrt(p) * u, axis=-1, keepdims=True)


def _bernoulli_information(z: Array, u: Array) -> Array:
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z) * u


def _bernoulli_root(z: Array, u: Array) -> Array:
    return jnp.sqrt(jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)) * u


HEADS: dict[str, Head] = {
    "categorical": Head(
        Partial(losses.softmax_cross_entropy),
        Partial(_categorical_information),
        Partial(_categorical_root),
        lambda key, z: jax.random.categorical(key, z).astype(jnp.int32),
    ),
    "bernoulli": Head(
        Partial(losses.sigmoid_cross_entropy),
        Partial(_bernoulli_information),
        Partial(_bernoulli_root),
        lambda key, z: jax.random.bernoulli(key, jax.nn.sigmoid(z)),
    ),
    "gaussian": Head(
        Partial(losses.half_squared_error),
        Partial(lambda z, u: u),
        Partial(lambda z, u: u),
        lambda key, z: z + jax.random.normal(key, z.shape, z.dtype),
    ),
}


def _outputs_in_batches(
    f: Apply, params: Params, x: PyTree, n: int, batch_size: int | None
) -> Array:
    if batch_size is None or batch_size >= n:
        return f(params, x)
    outputs = lambda at, count: gathered(f(params, examples_at(x, at, count)))
    whole = n // batch_size * batch_size
    z = lax.map(
        lambda at: outputs(at, batch_size), jnp.arange(0, whole, batch_size, dtype=jnp.int32)
    )
    z = z.reshape(whole, *z.shape[2:])
    return z if whole == n else jnp.concatenate([z, outputs(whole, n - whole)])


def outputs_of(function: str, f: Apply, params: Params, x: PyTree) -> PyTree:
    """The shapes of the outputs; raises where parameters or outputs cannot be differentiated."""
    tree.require_differentiable(f"{function}(params)", params)
    if tree.size(params) == 0:
        raise invalid(
            f"{function}(params)",
            got="no parameters",
            expected="at least one number",
            remedy="A layer without parameters has params (); take those of the whole network.",
        )
    return _shapes_of(function, f, params, x)


def _shapes_of(function: str, f: Apply, params: Params, x: PyTree) -> PyTree:
    z = jax.eval_shape(fresh(f), params, x)
    tree.require_differentiable(f"{function}(f): its outputs", z)
    if tree.size(z) == 0:
        raise invalid(
            f"{function}(f): its outputs",
            got=jax.tree.map(lambda s: s.shape, z),
            expected="at least one number",
            remedy="Return the predictions for at least one example.",
        )
    return z


def _require_one_array(function: str, z: PyTree, head: HeadName) -> None:
    if not isinstance(z, jax.ShapeDtypeStruct) or z.ndim < 1 + (head == "categorical"):
        raise invalid(
            f"{function}(f): its outputs",
            got=jax.tree.map(lambda s: s.shape, z),
            expected=f"one array {'(N, ..., K)' if head == 'categorical' else '(N, ...)'}",
            remedy="Write several outputs as one array, or the likelihood as a loss for "
            "gauss_newton.",
        )


def _require_one_of(argument: str, value: str, known: Iterable[str], remedy: str) -> None:
    if value not in known:
        names = ", ".join(map(repr, known))
        raise invalid(argument, got=repr(value), expected=f"one of {names}", remedy=remedy)
