"""A run of experiments: each measured, stored and drawn, and the page written after every one."""

import functools
import hashlib
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from experiments import display, harness, pictures, records, report
from experiments.catalog import Experiment, catalog
from experiments.interruption import INTERRUPTED, Watch

SUCCEEDED, FAILED = 0, 1


def measure(
    chosen: Sequence[Experiment],
    folder: Path,
    watched: Watch,
    *,
    scale: str,
    seed: int = 0,
    config: Any = None,
) -> int:
    """Run experiments and leave records, pictures and the page in `folder`; the exit code."""
    keep_compiled(folder / ".cache")
    console, finished = display.terminal(), []
    shown = display.Progress(console, chosen)
    interrupted, page, known = False, None, catalog().values()

    def farewell() -> None:
        shown.stop()
        display.ending(console, finished, folder, interrupted=True)

    watched.farewell = farewell
    try:
        for experiment in chosen:
            with shown.running(experiment.name) as listener, harness.progress_to(listener):
                record = harness.perform(experiment, scale, config, seed=seed)
                records.save(record, folder)
                if record.error is None and record.skipped is None:
                    record = drawn(experiment, record, folder)
                finished.append(record)
                page = report.write_page(known, folder)
            told = display.line(record, max(len(each.name) for each in chosen))
            console.print(told, soft_wrap=True)
            if record.error is not None:
                print(record.error, file=sys.stderr)
    except KeyboardInterrupt:
        watched.notice()
        interrupted = True
        page = report.write_page(known, folder)  # with what was stored but not drawn
    display.ending(console, finished, folder, interrupted)
    for reason in page.unusable if page is not None else ():
        print(f"not on the page: {reason}", file=sys.stderr)
    failed = any(record.status in ("fails", "error") for record in finished)
    return INTERRUPTED if interrupted else FAILED if failed else SUCCEEDED


def drawn(experiment: Experiment, record: records.Record, folder: Path) -> records.Record:
    """The record, its picture written; an error of the experiment's plot is in the record."""
    try:
        pictures.draw(experiment.load(), record, folder)
    except Exception:  # what was measured stays as it was stored
        return replace(record, error=traceback.format_exc())
    return record


def keep_compiled(folder: Path) -> None:
    """Have JAX keep compiled programs in `folder`, where the user has chosen no other place.

    Programs for one processor can crash on another, and JAX's names for them do not tell
    processors apart: each kind has a folder of its own, in case several machines share `folder`.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
        jax.config.update("jax_compilation_cache_dir", str(folder / processor()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@functools.cache
def processor() -> str:
    """A name for this kind of processor, from all that Linux tells about its instructions."""
    told = platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(told.encode()).hexdigest()[:12]
