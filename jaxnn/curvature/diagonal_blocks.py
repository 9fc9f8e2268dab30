"""Diagonal blocks: a map of parameter space seen by some of the parameters alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, keystr, register_static, tree_flatten_with_path

from jaxnn.errors import invalid
from jaxnn.linalg.operators import LinearOperator
from jaxnn.types import Array, PyTree


def block(operator: LinearOperator, select: str | Callable[[str], bool]) -> LinearOperator:
    """The diagonal block Pᵀ A P of a map A of a space into itself, P being a choice of leaves.

    `select` is the path of a subtree as `jax.tree_util.keystr` writes it, "[0]" or "[0]['W']", and
    the block acts on trees like that subtree; or it is a predicate on the paths of the leaves, and
    the block acts on trees like the whole with None in place of the leaves left out. What is
    declared of A and its cheap quadratic form hold of the block too.

    A product costs one with A, whose other arguments are zero and whose other results, under
    `jit`, are not computed.

    Errors: an operator between different spaces, a path that is none, a choice of no leaf.

    >>> from jaxnn.linalg import from_dense
    >>> params = {"W": jnp.zeros(2), "b": jnp.zeros(1)}
    >>> A = from_dense(jnp.arange(9.0).reshape(3, 3), params, params)
    >>> block(A, "['W']").to_dense()
    Array([[0., 1.],
           [3., 4.]], dtype=float32)
    >>> block(A, lambda path: path.endswith("['b']")) @ {"W": None, "b": jnp.ones(1)}
    {'W': None, 'b': Array([8.], dtype=float32)}
    """
    _require_one_space("block", operator)
    paths = _paths(operator.domain)
    if not isinstance(select, str):
        return _block(operator, "", tuple(bool(select(keystr(path))) for path in paths))
    beneath = tuple(any(keystr(path[:i]) == select for i in range(len(path) + 1)) for path in paths)
    return _block(operator, select, beneath)


def blocks(
    operator: LinearOperator, *, per: Literal["layer", "leaf"] = "layer"
) -> dict[str, LinearOperator]:
    """The diagonal blocks of all layers, or of all leaves, by their paths.

    A layer is what holds leaves directly: {"W": W, "b": b} of `nn.dense` is one, with the path
    "[0]" in the params of an `nn.serial` that it is the first part of. The block of a layer that
    has layers within acts on its own leaves, with None in place of these. The blocks of layers, and
    those of leaves, are disjoint and cover all coordinates.

    Errors: an operator between different spaces; a `per` that is neither.

    >>> from jaxnn.linalg import from_dense
    >>> params = ({"W": jnp.zeros(2), "b": jnp.zeros(1)}, (), {"W": jnp.zeros(1)})
    >>> A = from_dense(jnp.eye(4), params, params)
    >>> {path: B.shape for path, B in blocks(A).items()}
    {'[0]': (3, 3), '[2]': (1, 1)}
    >>> list(blocks(A, per="leaf"))
    ["[0]['W']", "[0]['b']", "[2]['W']"]
    """
    if per not in ("layer", "leaf"):
        raise invalid(
            "blocks(per)",
            got=repr(per),
            expected="'layer' or 'leaf'",
            remedy="For other sets of leaves use block.",
        )
    _require_one_space("blocks", operator)
    owners = [keystr(p[:-1] if per == "layer" else p) for p in _paths(operator.domain)]
    return {
        owner: _block(operator, owner, tuple(other == owner for other in owners))
        for owner in dict.fromkeys(owners)
    }


@register_static
@dataclass(frozen=True)
class _Place:
    """Which leaves of a space a block has: static, and compared by value, not to compile anew."""

    chosen: tuple[bool, ...]
    like: tuple[jax.ShapeDtypeStruct, ...]
    whole: Any  # the structures, whose type jax exports as a value
    part: Any

    def restricted(self, v: PyTree) -> PyTree:
        """Pᵀ v."""
        leaves = zip(jax.tree.leaves(v), self.chosen, strict=True)
        return jax.tree.unflatten(self.part, [leaf for leaf, chosen in leaves if chosen])

    def embedded(self, v: PyTree) -> PyTree:
        """P v: zero in the leaves left out."""
        own = iter(jax.tree.leaves(v))
        zeros = zip(self.like, self.chosen, strict=True)
        leaves = [next(own) if chosen else jnp.zeros(s.shape, s.dtype) for s, chosen in zeros]
        return jax.tree.unflatten(self.whole, leaves)


def _block(operator: LinearOperator, root: str, chosen: tuple[bool, ...]) -> LinearOperator:
    """The block of the chosen leaves, all of which lie in the subtree at the path `root`."""
    like, whole = jax.tree.flatten(operator.domain)
    if not any(chosen):
        raise invalid(
            "block(select)",
            got=f"no leaf at {root!r}" if root else "no leaf",
            expected=f"at least one of {', '.join(map(keystr, _paths(operator.domain)))}",
            remedy="Write paths as jax.tree_util.keystr does.",
        )
    kept = [leaf if c else None for leaf, c in zip(like, chosen, strict=True)]
    domain = next(
        node for path, node in _subtrees(jax.tree.unflatten(whole, kept)) if keystr(path) == root
    )
    place = _Place(chosen, tuple(like), whole, jax.tree.structure(domain))
    return LinearOperator(
        Partial(_restricted, place, operator.matvec),
        Partial(_restricted, place, operator.rmatvec),
        *(domain, domain),
        structure=operator.structure,
        form=Partial(_form, place, operator.form) if operator.form else None,
    )


def _restricted(place: _Place, matvec: Callable, v: PyTree) -> PyTree:
    return place.restricted(matvec(place.embedded(v)))


def _form(place: _Place, form: Callable, v: PyTree) -> Array:
    return form(place.embedded(v))


def _paths(space: PyTree) -> list[tuple]:
    return [path for path, _ in tree_flatten_with_path(space)[0]]


def _subtrees(node: PyTree, path: tuple = ()) -> Iterator[tuple[tuple, PyTree]]:
    """Every node and leaf, with its path."""
    yield path, node
    # The children are the leaves of the tree that is cut below its root.
    for step, child in tree_flatten_with_path(node, is_leaf=lambda n: n is not node)[0]:
        if step:
            yield from _subtrees(child, (*path, *step))


def _require_one_space(function: str, operator: LinearOperator) -> None:
    if jax.tree.flatten(operator.domain) != jax.tree.flatten(operator.codomain):
        raise invalid(
            f"{function}(operator)",
            got=f"an operator of shape {operator.shape} between different spaces",
            expected="a map of one space into itself",
            remedy="A.T @ A and A @ A.T are; of a Jacobian these have blocks.",
        )
