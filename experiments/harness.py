"""Run one experiment: in its precision, timed, judged, recorded."""

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any

import jax
import jax.monitoring

from experiments.catalog import Experiment
from experiments.datasets import DataMissing
from experiments.records import Record, as_arrays, peak_memory
from experiments.verdicts import Verdict
from jaxnn.errors import invalid

_listener: ContextVar[Callable[[float, float], None] | None] = ContextVar("listener", default=None)


def report_progress(done: float, total: float) -> None:
    """Tell whoever watches how much of a run is done; nothing happens where nobody does.

    For use inside `run(config, key)`, between compiled pieces of work.
    """
    listener = _listener.get()
    if listener is not None:
        listener(done, total)


@contextmanager
def progress_to(listener: Callable[[float, float], None]) -> Iterator[None]:
    """Within the context, `report_progress(done, total)` calls `listener(done, total)`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def perform(experiment: Experiment, scale: str, config: Any = None, *, seed: int = 0) -> Record:
    """Run and judge an experiment; what it raises becomes the record's `error`.

    Missing data are no error: the record says so in `skipped`.

    `config` replaces the scale's, and `seed` chooses the key. Whatever the process is set to, the
    run is in float64 where the module says PRECISION = "float64" and in float32 otherwise, and
    matrix products are in full precision: an accelerator's default would round their factors.
    """
    precision, verdicts, error, skipped = "float32", (), None, None
    metrics = {}
    start, compilation = time.perf_counter(), [0.0]
    try:
        module = experiment.load()
        precision = getattr(module, "PRECISION", precision)
        config = experiment.config(scale) if config is None else config
        with _precision(precision):
            with _compilation_time() as compilation, _stoppable():
                start = time.perf_counter()
                metrics = as_arrays(module.run(config, jax.random.key(seed)))
                seconds = time.perf_counter() - start
            verdicts = _judged(module.verdict(config, metrics))
    except DataMissing as missing:
        seconds = time.perf_counter() - start
        skipped = str(missing)
    except Exception:
        seconds = time.perf_counter() - start
        error = traceback.format_exc()
    return Record(
        name=experiment.name,
        scale=scale,
        config={} if config is None else asdict(config),
        metrics=metrics,
        verdicts=verdicts,
        error=error,
        skipped=skipped,
        dtype=precision,
        device=jax.devices()[0].device_kind,
        seconds=seconds,
        compile_seconds=sum(compilation),
        peak_memory=peak_memory(),
        seed=seed,
    )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C ends the run also where something inside catches it, as `training.fit` does.

    What is returned early by it is no measurement.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # somebody else decides what Ctrl-C does
        return
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed:  # whatever it became on its way through a compiled program
            raise KeyboardInterrupt


@contextmanager
def _precision(name: str) -> Iterator[None]:
    if name not in ("float32", "float64"):
        raise invalid(
            "PRECISION",
            got=repr(name),
            expected="'float32' or 'float64'",
            remedy="Leave it out for float32.",
        )
    with jax.enable_x64(name == "float64"), jax.default_matmul_precision("highest"):
        yield


@contextmanager
def _compilation_time() -> Iterator[list[float]]:
    durations: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        # Not the events for tracing: they nest, and a sum would count inner functions twice.
        if event.endswith("/backend_compile_duration"):
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield durations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def _judged(verdicts: Any) -> tuple[Verdict, ...]:
    if not verdicts or not all(isinstance(verdict, Verdict) for verdict in verdicts):
        raise invalid(
            "verdict(config, metrics)",
            got=repr(verdicts),
            expected="a list of at least one Verdict",
            remedy="Build them with the constructors of experiments.verdicts.",
        )
    return tuple(verdicts)
