"""The mesh axes that arrays have in their types.

Inside `jax.shard_map` (manual axes) a type names the axes over which a value differs. A gradient
with respect to a value that is the same on all devices is summed over the devices. The gradients of
a kernel are each device's own, so all inputs first get the axes of all others.

On a mesh with explicit axes a type names the axes over which an array is sharded, and every
operation has to say how its result is. A kernel is computed with automatic axes instead.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxnn.types import Array, PyTree, Shape


def manual_axes(*trees: PyTree) -> frozenset[str]:
    """The axes over which an array of the pytrees differs; empty outside of `jax.shard_map`.

    >>> import jax.numpy as jnp
    >>> manual_axes(jnp.ones(2))
    frozenset()
    """
    typed = (
        jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf for leaf in jax.tree.leaves(trees)
    )
    kinds = (getattr(each, "manual_axis_type", None) for each in typed)
    return frozenset().union(*(kind.varying for kind in kinds if kind is not None))


def over(axes: frozenset[str], tree: PyTree) -> PyTree:
    """The pytree, with arrays that are typed as different along `axes`.

    >>> import jax.numpy as jnp
    >>> over(frozenset(), jnp.ones(2))
    Array([1., 1.], dtype=float32)
    """

    def spread(leaf: Array) -> Array:
        missing = axes - manual_axes(leaf)
        return lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(spread, tree) if axes else tree


def shaped(shape: Shape, dtype: Any, like: Any) -> jax.ShapeDtypeStruct:
    """A shape and dtype, different along the same axes as an array.

    >>> import jax.numpy as jnp
    >>> shaped((2, 3), "float32", jnp.ones(2))
    ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    axes = manual_axes(like)
    if not axes:
        return jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(lambda: over(axes, jnp.zeros(shape, dtype)))


def with_automatic_axes(f: Callable[..., PyTree], *arguments: PyTree, rows: PyTree) -> PyTree:
    """f(*arguments), where XLA decides how arrays are sharded over the explicit axes of a mesh.

    The result, arrays (N, ...), is sharded along its first axis as `rows` are, arrays (N, ...).

    >>> with_automatic_axes(lambda x: 2 * x, jnp.ones(2), rows=jnp.ones(2))
    Array([2., 2.], dtype=float32)
    """
    meshes = [
        jax.typeof(leaf).sharding.mesh
        for leaf in jax.tree.leaves((arguments, rows))
        if isinstance(leaf, jax.Array)
    ]
    mesh = next((mesh for mesh in meshes if _explicit(mesh)), None)
    if mesh is None:
        return f(*arguments)
    first = next(iter(jax.typeof(jax.tree.leaves(rows)[0]).sharding.spec), None)
    automatic = jax.sharding.auto_axes(f, axes=_explicit(mesh), out_sharding=PartitionSpec(first))
    with jax.sharding.use_abstract_mesh(mesh):  # the caller may have set none
        return automatic(*arguments)


def _explicit(mesh: Any) -> tuple[str, ...]:
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in pairs if kind == AxisType.Explicit)
