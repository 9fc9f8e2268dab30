"""Checkpoints: pytrees in npz files, whole or not at all, and never unpickled.

An array's name in the file is its path in the tree, `['params'][0]['W']`, so that NumPy alone can
read it. One more entry, "jaxnn", is JSON: the format's version, and for each leaf its dtype or, of
a random key, its implementation. What NumPy has no dtype for (bfloat16) is stored as bits.
"""

import io
import json
import os
import uuid
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.errors import invalid
from jaxnn.types import PyTree

_FORMAT = 1
_HEADER = "jaxnn"


def save(path: str | os.PathLike, tree: PyTree) -> None:
    """Write the arrays and random keys of a tree to a file, so that it is never half written.

    The file is written under a name of its own beside `path`, forced to the disk, and renamed:
    whenever the process is killed, `path` is the old checkpoint or the new one; of two processes or
    threads that save to one path, it is the checkpoint of one. The tree's structure is not stored,
    but asked of `load`.

    Errors: leaves that are neither arrays of numbers nor keys, a folder that does not exist.

    >>> import tempfile
    >>> tree = {"W": jnp.ones(2), "key": jax.random.key(0)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/run.npz", tree)
    ...     load(f"{folder}/run.npz", tree)["W"]
    Array([1., 1.], dtype=float32)
    """
    path = Path(path)
    entries, kinds = {}, {}
    for name, leaf in _named(tree):
        entries[name], kinds[name] = _encoded(name, leaf)
    header = json.dumps({"format": _FORMAT, "leaves": kinds})
    entries[_HEADER] = np.frombuffer(header.encode(), np.uint8)
    # Another name for every call: two that write to one file would leave neither checkpoint.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            np.savez(file, allow_pickle=False, **entries)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def load(path: str | os.PathLike, like: PyTree) -> PyTree:
    """The tree that `save` wrote to a file, in the structure of `like`.

    `like` is a tree of arrays, keys or `jax.ShapeDtypeStruct`s of the shapes and dtypes that are
    expected, such as the start of the run: (params, initial_state(params, optimizer, key)). Where
    it has Python numbers or NumPy arrays, so has what is returned.

    Errors: ValueError, naming the file, where it is cut off or changed, of another program, or
    holds another tree, naming the first leaf that differs, or numbers of 64 bits where JAX holds
    32; FileNotFoundError.
    """
    path = Path(path)
    kinds, arrays = _read(path)
    leaves, structure = jax.tree.flatten(like)
    names = [name for name, _ in _named(like)]
    for missing, where in ((set(names) - set(kinds), "file"), (set(kinds) - set(names), "like")):
        if missing:
            raise invalid(
                str(path),
                got=f"no {min(missing)} in the {where}",
                expected="a checkpoint of a tree like `like`",
                remedy="Pass a tree of the structure that was saved.",
            )
    restored = [
        _decoded(path, name, arrays[name], kinds[name], leaf)
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, restored)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.dtype(object)), jax.dtypes.prng_key)


def _encoded(name: str, leaf: Any) -> tuple[np.ndarray, dict[str, str]]:
    """The array to store, and what it is."""
    if _is_key(leaf):
        return np.asarray(jax.random.key_data(leaf)), {"key": str(jax.random.key_impl(leaf))}
    array = np.asarray(leaf)
    try:
        jnp.dtype(array.dtype)
        numeric = array.dtype.kind not in "OSUMm"
    except TypeError:
        numeric = False
    if not numeric:
        raise invalid(
            f"save(tree): {name}",
            got=f"a leaf of type {type(leaf).__name__}",
            expected="an array of numbers, or a random key",
            remedy="Close over what is no state of the run.",
        )
    kind = {"dtype": array.dtype.name}
    if array.dtype.kind == "V":  # bfloat16 and its like: NumPy would read back bare bytes
        array = array.view(f"u{array.dtype.itemsize}")
    return array, kind


def _decoded(path: Path, name: str, array: np.ndarray, kind: dict[str, str], like: Any) -> Any:
    """The leaf as `like` is one: a key, a JAX or NumPy array, or a Python number."""
    if "key" in kind:
        value = jax.random.wrap_key_data(jnp.asarray(array), impl=kind["key"])
    else:
        value = array.view(jnp.dtype(kind["dtype"]))
    if isinstance(like, bool | int | float | complex):
        expected = np.asarray(like)
        if "key" in kind or (value.dtype.kind, value.shape) != (expected.dtype.kind, ()):
            raise _differs(path, name, f"{value.dtype} {value.shape}", type(like).__name__)
        return value.item()
    if value.dtype != like.dtype:
        raise _differs(path, name, f"dtype {value.dtype}", f"dtype {like.dtype}")
    if value.shape != like.shape:
        raise _differs(path, name, f"shape {value.shape}", f"shape {like.shape}")
    if isinstance(like, np.ndarray | np.generic):
        return value
    if jnp.result_type(value) != value.dtype:
        raise invalid(
            f"{path}: {name}",
            got=f"dtype {value.dtype}",
            expected=f"numbers of 32 bits, as JAX is set to hold, such as {jnp.result_type(value)}",
            remedy="Set jax_enable_x64, or pass a NumPy array in `like` to get one back.",
        )
    return jnp.asarray(value)


def _differs(path: Path, name: str, got: str, expected: str) -> ValueError:
    return invalid(
        f"{path}: {name}",
        got=got,
        expected=f"{expected}, as in `like`",
        remedy="It is the checkpoint of another run: its network, optimizer or precision differ.",
    )


def _read(path: Path) -> tuple[dict[str, dict[str, str]], dict[str, np.ndarray]]:
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop(_HEADER).tobytes())
        kinds = header["leaves"]
        known = header["format"] == _FORMAT and set(kinds) == set(arrays)
    except Exception as error:  # damage shows in whatever part of zip, npy or JSON it hits
        raise _foreign(
            path, f"a file that is cut off, damaged or none of this library ({error})"
        ) from error
    if not known:
        raise _foreign(path, f"a file of format {header['format']}")
    return kinds, arrays


def _foreign(path: Path, got: str) -> ValueError:
    return invalid(
        str(path),
        got=got,
        expected=f"a checkpoint by jaxnn.training.save, of format {_FORMAT}",
        remedy="Take an earlier checkpoint, or begin anew.",
    )


def _sync_folder(folder: Path) -> None:
    """Force the renaming itself to the disk, where folders can be opened at all."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
