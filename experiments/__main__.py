"""Theory beside measurement: run experiments, judge them, draw them.

  python -m experiments [--scale SCALE]               every experiment
  python -m experiments list                          what there is
  python -m experiments run NAME... [--scale SCALE]   some of them
  python -m experiments run NAME --FIELD VALUE        one, with a field of its Config replaced
  python -m experiments run NAME --help               the fields of its Config
  python -m experiments plot NAME...                  draw again what is stored
  python -m experiments report                        write the page again

SCALE is smoke (seconds), quick (minutes in all; the default) or paper (an accelerator). A run
writes NAME.json and NAME.png, and at the end index.html, into --results FOLDER (default: results).

Exit code: 0 if nothing failed; 1 if a verdict fails or an experiment raises (an inconclusive
verdict is no failure); 2 for a wrong command line; 130 after Ctrl-C, which keeps what is finished.
"""

import argparse
import io
import itertools
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.catalog import SCALES, Experiment, UnknownName, UnusableRecord, catalog, select

# Whatever needs JAX or matplotlib is imported where it is used: `list` or a mistyped name should
# not take their seconds.

SUCCEEDED, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


class UsageError(ValueError):
    """A command line that cannot be followed, and what to write instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Follow a command line; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ≤ in a claim must not end a run on ASCII
    try:
        return _follow(sys.argv[1:] if argv is None else list(argv))
    except (UnknownName, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISUSED
    except UnusableRecord as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _follow(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m experiments", add_help=False, allow_abbrev=False)
    parser.add_argument("--scale", default="quick")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("-h", "--help", action="store_true")
    options, rest = parser.parse_known_args(argv)
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
    flags = rest[len(words) :]
    command, names = (words[0], words[1:]) if words else ("tour", [])
    if options.scale not in SCALES:
        raise UnknownName("scale", options.scale, SCALES)
    if options.help and (command, len(names)) != ("run", 1):
        print(__doc__)
        return SUCCEEDED
    if flags and command != "run":
        raise UnknownName("option", flags[0], ("--scale", "--results", "--help"))
    match command:
        case "tour":
            return _measure(list(catalog().values()), options.scale, None, options.results)
        case "run":
            chosen = _chosen(command, names)
            scale, config = options.scale, None
            if flags or options.help:
                config = _config(chosen, scale, ["--help"] if options.help else flags)
                scale = "custom"
            return _measure(chosen, scale, config, options.results)
        case "plot":
            return _draw(_chosen(command, names), options.results)
        case "list" | "report" if names:
            raise UsageError(f"{command} takes no names, got {names[0]!r}")
        case "list":
            return _list()
        case "report":
            return _report(options.results)
    if command in catalog():
        raise UsageError(f"{command} is an experiment; write: python -m experiments run {command}")
    raise UnknownName("command", command, ("list", "run", "plot", "report"))


def _chosen(command: str, names: list[str]) -> list[Experiment]:
    if not names:
        raise UsageError(f"{command} needs a NAME; python -m experiments list shows them")
    return select(names)


def _config(chosen: list[Experiment], scale: str, flags: list[str]) -> Any:
    if len(chosen) > 1:
        raise UsageError(f"{flags[0]} is a field of one experiment, but {len(chosen)} are named")
    import tyro

    (experiment,) = chosen
    base = experiment.config(scale)
    program = f"python -m experiments run {experiment.name}"
    return tyro.cli(
        type(base), prog=program, description=experiment.claim, args=flags, default=base
    )


def _list() -> int:
    found = catalog().values()
    width = max((len(experiment.name) for experiment in found), default=0)
    for experiment in found:
        print(f"{experiment.name:<{width}}  {experiment.claim}")
    return SUCCEEDED


def _measure(chosen: list[Experiment], scale: str, config: Any, folder: Path) -> int:
    from experiments import display, harness, records

    console, finished, interrupted = display.terminal(), [], False
    width = max((len(experiment.name) for experiment in chosen), default=0)
    try:
        for position, experiment in enumerate(chosen, start=1):
            label = f"{experiment.name} ({position} of {len(chosen)})"
            with display.progress_bar(console, label) as bar, harness.progress_to(bar):
                record = harness.perform(experiment, scale, config)
                records.save(record, folder)
                if record.error is None:
                    record = _drawn(experiment, record, folder)
            finished.append(record)
            console.print(display.line(record, width))
            if record.error is not None:
                print(record.error, file=sys.stderr)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted")
    display.verdict_table(console, finished)
    _report(folder)
    failed = any(record.status in ("fails", "error") for record in finished)
    return INTERRUPTED if interrupted else FAILED if failed else SUCCEEDED


def _drawn(experiment: Experiment, record: Any, folder: Path) -> Any:
    from experiments import pictures

    try:
        pictures.draw(experiment.load(), record, folder)
    except Exception:  # of the experiment's plot; what it measured stays as it was stored
        return replace(record, error=traceback.format_exc())
    return record


def _draw(chosen: list[Experiment], folder: Path) -> int:
    from experiments import pictures, records

    for experiment in chosen:
        path = folder / f"{experiment.name}.json"
        if not path.exists():
            raise UsageError(
                f"{path} does not exist; python -m experiments run {experiment.name} writes it"
            )
        print(pictures.draw(experiment.load(), records.load(path), folder))
    return _report(folder)


def _report(folder: Path) -> int:
    from experiments import report

    print(report.write_page(catalog().values(), folder))
    return SUCCEEDED


if __name__ == "__main__":
    sys.exit(main())
