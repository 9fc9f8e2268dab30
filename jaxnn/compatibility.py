"""Refuse the jaxlib releases that compute wrong numbers, before anything is computed."""

import os
from collections.abc import Mapping

from jaxlib.version import __version__ as jaxlib_version

_DISABLE_FUSION = "--xla_cpu_experimental_ynn_fusion_type="

_FAULTS = {
    "0.10.2": ("computes wrong reductions on CPU", "39103"),
    "0.11.0": ("crashes in fused reductions on CPU", "39257"),
}


def jaxlib_fault(version: str, environ: Mapping[str, str]) -> str | None:
    """Why this jaxlib cannot be trusted, or None if it can.

    The decision needs the version and the environment alone. No backend is initialized, so that
    `jax.distributed.initialize` can still come after `import jaxnn`.

    Source: jax-ml/jax issues 39103 and 39257.

    >>> jaxlib_fault("0.10.1", {}) is None
    True
    >>> "39103" in jaxlib_fault("0.10.2", {})
    True
    >>> flag = "--xla_cpu_experimental_ynn_fusion_type="
    >>> jaxlib_fault("0.10.2", {"XLA_FLAGS": flag}) is None
    True
    """
    release = version.partition("+")[0]  # a local label (0.10.2+cuda13) marks the same sources
    if release not in _FAULTS:
        return None
    # XLA takes the last occurrence of a flag; only the empty value turns the fusion off.
    flags = [f for f in environ.get("XLA_FLAGS", "").split() if f.startswith(_DISABLE_FUSION)]
    if flags and flags[-1] == _DISABLE_FUSION:
        return None
    fault, issue = _FAULTS[release]
    return (
        f"jaxlib {version} {fault} (jax issue {issue}), so jaxnn refuses to run on it. Install "
        "another version (`pip install 'jax!=0.10.2,!=0.11.0' 'jaxlib!=0.10.2,!=0.11.0'`), or "
        f"set XLA_FLAGS={_DISABLE_FUSION} (empty value), with which it computes correctly."
    )


_fault = jaxlib_fault(jaxlib_version, os.environ)
if _fault is not None:
    raise ImportError(_fault)
