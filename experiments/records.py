"""What a run leaves behind: one JSON file per experiment, written whole or not at all.

Metrics come back as the arrays they were: same dtype and shape, every bit of every number, NaN
and infinities included. JSON has no tuples, so that those of a config come back as such too.
"""

import functools
import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.catalog import UnusableRecord
from experiments.verdicts import Verdict
from jaxnn.errors import invalid


@dataclass(frozen=True)
class Record:
    """One run of one experiment: what it was given, what it measured, where and at what cost.

    scale           tour, smoke, quick, paper, or custom where fields were changed
    error           the exception that ended the run, None if there was none
    commit, dirty   of the source tree; None outside git
    compile_seconds the part of `seconds` that XLA spent compiling
    peak_memory     bytes of host memory, the highest of the process so far
    seed            of the run's random key
    skipped         which data were missing, None if none were
    """

    name: str
    scale: str
    config: dict[str, Any]
    metrics: dict[str, np.ndarray]
    verdicts: tuple[Verdict, ...]
    error: str | None
    dtype: str
    device: str
    seconds: float
    compile_seconds: float
    peak_memory: int | None
    seed: int = 0
    skipped: str | None = None
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    commit: str | None = field(default_factory=lambda: source_state()[0])
    dirty: bool | None = field(default_factory=lambda: source_state()[1])
    versions: dict[str, str | None] = field(default_factory=lambda: versions())

    @property
    def status(self) -> str:
        """One word for the run: error, skipped, or the worst of its verdicts."""
        if self.error is not None:
            return "error"
        if self.skipped is not None:
            return "skipped"
        found = {verdict.status for verdict in self.verdicts}
        return next(status for status in ("fails", "inconclusive", "holds") if status in found)


def save(record: Record, folder: Path) -> Path:
    """Write `folder`/NAME.json and return its path; a picture of an earlier run goes."""
    content = {f.name: getattr(record, f.name) for f in fields(record)}
    content["verdicts"] = [verdict._asdict() for verdict in record.verdicts]
    # allow_nan=False: NaN is no JSON, and other readers of the file would stumble over it.
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, allow_nan=False, ensure_ascii=False)}"
        for key, value in _encoded(content).items()
    ]
    path = folder / f"{record.name}.json"
    path.with_suffix(".png").unlink(missing_ok=True)
    write(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    return path


def load(path: Path) -> Record:
    """The record in a file that `save` wrote.

    Errors: FileNotFoundError; UnusableRecord where the file holds something else.
    """
    try:
        content = _decoded(json.loads(path.read_text(encoding="utf-8")))
        content["verdicts"] = tuple(Verdict(**verdict) for verdict in content["verdicts"])
        return Record(**content)
    except (ValueError, TypeError, KeyError) as error:
        raise UnusableRecord(str(path), f"no record of this version ({error})") from error


def write(path: Path, content: bytes) -> None:
    """Replace a file by one rename, so that no reader and no Ctrl-C ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def as_arrays(metrics: Any) -> dict[str, np.ndarray]:
    """Metrics as NumPy arrays: what verdicts and plots see, fresh from a run or from a file.

    Errors: metrics that are no dict of names to arrays of numbers.
    """
    if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
        raise invalid(
            "run(config, key): metrics",
            got=type(metrics).__name__,
            expected="a dict of names to arrays",
            remedy='Return {"error": error, ...}.',
        )
    arrays = {name: np.asarray(value) for name, value in metrics.items()}
    for name, array in arrays.items():
        if not (array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)):
            raise invalid(
                f"run(config, key): metrics[{name!r}]",
                got=f"dtype {array.dtype}",
                expected="an array of numbers",
                remedy="Put each quantity under a name of its own.",
            )
    return arrays


@functools.cache
def source_state() -> tuple[str | None, bool | None]:
    """The commit of the source tree, and whether files differ from it; (None, None) outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


@functools.cache
def versions() -> dict[str, str | None]:
    """What computed: Python and the packages the numbers depend on; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "numpy", "jaxnn", "optax"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def peak_memory() -> int | None:
    """The most host memory this process has held so far, in bytes; None where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        numbers = array
        if array.dtype.kind == "c":
            numbers = np.stack([array.real, array.imag], axis=-1)
        elif array.dtype.kind == "V":  # bfloat16 and its kin, exact in float64
            numbers = array.astype(float)
        content = {"dtype": array.dtype.name, "shape": array.shape, "data": numbers.tolist()}
        return {"array": {**content, "data": _encoded_floats(content["data"])}}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, dict):
        return {key: _encoded(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encoded(item) for item in value]
    return value


def _encoded_floats(data: Any) -> Any:
    if isinstance(data, list):
        return [_encoded_floats(item) for item in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    if value.keys() == {"float"}:
        return float(value["float"])
    if value.keys() == {"array"}:
        return _array(**value["array"])
    return {key: _decoded(item) for key, item in value.items()}


def _array(dtype: str, shape: list[int], data: Any) -> np.ndarray:
    wanted = jnp.dtype(dtype)
    part = wanted.type(0).real.dtype if wanted.kind == "c" else wanted
    # Through objects: converting them calls float(), which reads "nan" and "inf".
    numbers = np.array(data, object).astype(float if part.kind == "V" else part).astype(part)
    return np.ascontiguousarray(numbers).view(wanted).reshape(shape)
