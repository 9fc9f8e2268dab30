"""Arrays compared by their entries."""

import hashlib
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_known: dict[int, tuple[weakref.ref, bytes]] = {}
"""By id of an array of JAX, which cannot change: a weak reference to it, and its digest."""


def digest(array: Any) -> bytes:
    """Dtype, shape and a hash of the entries of an array or of random keys.

    Arrays of JAX are read once, however often they are asked for.

    Errors: ValueError for an array of which this process has only a part.

    >>> digest(jnp.ones(2)) == digest(np.ones(2, "float32")), digest(jnp.ones(2)) == digest(1.0)
    (True, False)
    """
    if not isinstance(array, jax.Array):
        return _of_entries(np.asarray(array))
    number = id(array)
    known = _known.get(number)
    if known is not None and known[0]() is array:
        return known[1]
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        found = str(array.dtype).encode() + _of_entries(np.asarray(jax.random.key_data(array)))
    elif not array.is_fully_addressable:
        raise ValueError("an array of which this process has only a part")
    else:
        found = _of_entries(np.asarray(array))
    _known[number] = weakref.ref(array, lambda _: _known.pop(number, None)), found
    return found


def _of_entries(entries: np.ndarray) -> bytes:
    content = np.ascontiguousarray(entries).reshape(-1).view(np.uint8).data
    header = f"{entries.dtype} {entries.shape} ".encode()
    return header + hashlib.blake2b(content, digest_size=16).digest()
