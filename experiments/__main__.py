"""Theory beside measurement: run experiments, judge them, draw them.

  python -m experiments                               a tour of the most telling: three minutes
  python -m experiments list                          what there is
  python -m experiments run NAME... [--scale SCALE]   some of them
  python -m experiments run --all [--scale SCALE]     every experiment
  python -m experiments run NAME --FIELD VALUE        one, with a field of its Config replaced
  python -m experiments run NAME --help               the fields of its Config
  python -m experiments plot NAME...                  draw again what is stored
  python -m experiments report                        write the page again

SCALE is smoke (seconds), quick (a quarter of an hour in all; the default) or paper (an
accelerator). A run writes NAME.json, NAME.png and index.html into --results FOLDER (default:
results), and keeps what it compiled in FOLDER/.cache. --seed N replaces the random key's 0.

Exit code: 0 if nothing failed; 1 if a verdict fails or an experiment raises (an inconclusive
verdict is no failure, nor is an experiment skipped for want of data); 2 for a wrong command line;
130 after Ctrl-C, which keeps what is finished.
"""

import argparse
import io
import itertools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.catalog import SCALES, Experiment, UnknownName, UnusableRecord, catalog, select
from experiments.interruption import INTERRUPTED, Watch, end_at_once, watch

# Whatever needs JAX or matplotlib is imported where it is used: `list` or a mistyped name should
# not take their seconds.

SUCCEEDED, FAILED, MISUSED = 0, 1, 2


class UsageError(ValueError):
    """A command line that cannot be followed, and what to write instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Follow a command line; the exit code."""
    # XLA writes pages about each program that it loads from a cache on a processor with
    # preferences beside instructions (such as prefer-no-gather), though nothing is wrong. It reads
    # this once, when JAX is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ≤ in a claim must not end a run on ASCII
    with watch() as watched:
        try:
            return _follow(sys.argv[1:] if argv is None else list(argv), watched)
        except (UnknownName, UsageError) as error:
            print(f"error: {error}", file=sys.stderr)
            return MISUSED
        except UnusableRecord as error:
            print(f"error: {error}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            watched.notice()
        except Exception:
            if not watched.pressed:
                raise
            watched.notice()  # Ctrl-C inside an import or a compiled program can become anything
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _follow(argv: list[str], watched: Watch) -> int:
    options, words, flags = _parsed(argv)
    command, names = (words[0], words[1:]) if words else ("tour", [])
    if options.scale not in (None, *SCALES):
        raise UnknownName("scale", options.scale, SCALES)
    if options.help and (command, len(names)) != ("run", 1):
        print(__doc__)
        return SUCCEEDED
    if flags and command != "run":
        raise UnknownName("option", flags[0], ("--scale", "--seed", "--results", "--help"))
    run_all = "python -m experiments run --all"
    if options.all and (command != "run" or names):
        raise UsageError(f"--all stands for every NAME; write: {run_all}")
    match command:
        case "tour":
            if options.scale:
                raise UsageError(
                    f"the tour has a scale of its own; write: {run_all} --scale {options.scale}"
                )
            return _measure(_tour(), "tour", None, options, watched)
        case "run":
            chosen = list(catalog().values()) if options.all else _chosen(command, names)
            scale, config = options.scale or "quick", None
            if flags or options.help:
                config = _config(chosen, scale, ["--help"] if options.help else flags)
                scale = "custom"
            return _measure(chosen, scale, config, options, watched)
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


def _parsed(argv: list[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """The options of every command, the words before the first field, and the fields."""
    parser = argparse.ArgumentParser("python -m experiments", add_help=False, allow_abbrev=False)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--scale")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("-h", "--help", action="store_true")
    options, rest = parser.parse_known_args(argv)
    if not (options.seed.isdecimal() and int(options.seed) < 2**32):
        raise UsageError(f"--seed {options.seed}: expected a whole number from 0 to 2³² - 1")
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
    return options, words, rest[len(words) :]


def _chosen(command: str, names: list[str]) -> list[Experiment]:
    if not names:
        raise UsageError(f"{command} needs a NAME; python -m experiments list shows them")
    return select(names)


def _tour() -> list[Experiment]:
    """The experiments with a scale for the tour, by chapter."""
    from experiments.report import in_order

    return in_order(experiment for experiment in catalog().values() if experiment.on_tour)


def _config(chosen: list[Experiment], scale: str, flags: list[str]) -> Any:
    if len(chosen) > 1:
        raise UsageError(f"{flags[0]} is a field of one experiment, but {len(chosen)} are named")
    import tyro

    (experiment,) = chosen
    base = experiment.config(scale)
    program = f"python -m experiments run {experiment.name}"
    config = tyro.cli(
        type(base), prog=program, description=experiment.claim, args=flags, default=base
    )
    for name, value in vars(config).items():
        if _counts(getattr(base, name)) and not _counts(value):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {value}: a count, or several, of at least 1 is expected")
    return config


def _counts(value: Any) -> bool:
    """Whether a field is one or several whole numbers above 0."""
    values = value if isinstance(value, tuple) else (value,)
    return bool(values) and all(type(v) is int and v > 0 for v in values)


def _list() -> int:
    found = catalog().values()
    width = max((len(experiment.name) for experiment in found), default=0)
    for experiment in found:
        print(f"{experiment.name:<{width}}  {experiment.claim}")
    return SUCCEEDED


def _measure(
    chosen: list[Experiment], scale: str, config: Any, options: Any, watched: Watch
) -> int:
    _require_writable(options.results)
    from experiments import session

    return session.measure(
        chosen, options.results, watched, scale=scale, seed=int(options.seed), config=config
    )


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"--results {folder}: no folder to write to ({reason})") from error


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
    _require_writable(folder)
    from experiments import report

    page = report.write_page(catalog().values(), folder)
    print(page.path)
    for reason in page.unusable:
        print(f"error: {reason}", file=sys.stderr)
    return FAILED if page.unusable else SUCCEEDED


if __name__ == "__main__":
    code = main()
    if code == INTERRUPTED:
        end_at_once()
    sys.exit(code)
