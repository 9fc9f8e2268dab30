"""The results as one self-contained page: verdicts by chapter, each with its picture."""

import base64
import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import NamedTuple

from experiments.catalog import Experiment, UnusableRecord
from experiments.records import Record, load, write
from experiments.verdicts import Status, Verdict

CHAPTERS = (
    ("S0", 10, "Neuron and perceptron"),
    ("S0", 19, "Networks and approximation"),
    ("S0", 30, "Activation functions"),
    ("S0", 48, "Losses, regularization and optimization"),
    ("S0", math.inf, "Theory of deep networks"),
    ("S1", math.inf, "Architectures and expressive power"),
    ("S2", math.inf, "Learning and generalization"),
    ("S3", math.inf, "Training by backpropagation"),
    ("S4", math.inf, "Worked examples"),
    ("", math.inf, "Other measurements"),
)
"""(source, its last item in the chapter, title): the first row that fits is a tag's chapter."""


STATUSES: tuple[Status, ...] = ("holds", "fails", "inconclusive")


class Entry(NamedTuple):
    """An experiment with what its last run left: a record, and a picture if it could be drawn."""

    experiment: Experiment
    record: Record
    png: bytes | None


class Page(NamedTuple):
    """Where a page was written, and why some records are not on it."""

    path: Path
    unusable: list[str]


def chapter(experiment: Experiment) -> str:
    """The title of the chapter that the experiment's first tag belongs to."""
    match = re.match(r"(S\d+)\.(\d+)", (experiment.tags or ("",))[0])  # S1.31 of "S1.31-38"
    source, item = (match[1], int(match[2])) if match else ("", 0)
    return next(title for name, last, title in CHAPTERS if name in (source, "") and item <= last)


def in_order(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Experiments by chapter and name."""
    titles = [title for _, _, title in CHAPTERS]
    return sorted(experiments, key=lambda each: (titles.index(chapter(each)), each.name))


def collect(catalog: Iterable[Experiment], folder: Path) -> tuple[list[Entry], list[str]]:
    """The experiments that have a record in `folder`, and why some records cannot be read."""
    entries, unusable = [], []
    for experiment in in_order(catalog):
        record, png = folder / f"{experiment.name}.json", folder / f"{experiment.name}.png"
        if record.exists():
            picture = png.read_bytes() if png.exists() else None
            try:
                stored = _loaded(record, record.stat().st_mtime_ns)
                entries.append(Entry(experiment, stored, picture))
            except UnusableRecord as error:
                unusable.append(str(error))
    return entries, unusable


@functools.lru_cache(maxsize=100)
def _loaded(path: Path, changed: int) -> Record:
    """The record in a file, read once as long as the file does not change."""
    return load(path)


def write_page(catalog: Iterable[Experiment], folder: Path) -> Page:
    """Write `folder`/index.html from the records and pictures in it.

    A record that cannot be read leaves the others on the page, and a line about itself.
    """
    entries, unusable = collect(catalog, folder)
    path = folder / "index.html"
    write(path, page(entries, unusable).encode())
    return Page(path, unusable)


def page(entries: list[Entry], unusable: Sequence[str] = ()) -> str:
    """The page, which needs nothing from outside: style and pictures are in it."""
    chapters = [
        (title, list(group))
        for title, group in itertools.groupby(entries, lambda e: chapter(e.experiment))
    ]
    rows = "".join(
        f'<tr class="chapter"><th colspan="5" scope="colgroup">{escape(title)}</th></tr>'
        + "".join(_rows(entry) for entry in group)
        for title, group in chapters
    )
    sections = "".join(
        f"<h2>{escape(title)}</h2>" + "".join(_section(entry) for entry in group)
        for title, group in chapters
    )
    return _PAGE.format(
        style=_STYLE,
        summary=_summary(entries),
        notes="".join(f"<p>{escape(note)}</p>" for note in unusable),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        rows=rows,
        sections=sections,
    )


def number(value: float, digits: int = 6) -> str:
    """A number as the tables show it: six digits, or three where it is tiny or huge.

    >>> number(834.0), number(0.6522626), number(3.14159e-16)
    ('834', '0.652263', '3.14e-16')
    """
    plain = value == 0 or not math.isfinite(value) or 1e-4 <= abs(value) < 1e7
    text = f"{value:.{digits}g}" if plain else f"{value:.2e}"
    return text.replace("inf", "∞")


def measured(verdict: Verdict) -> str:
    """The measured value with its interval, if that is one."""
    if verdict.interval is None or verdict.interval[0] == verdict.interval[1]:
        return number(verdict.measured)
    low, high = (number(end, digits=4) for end in verdict.interval)
    return f"{number(verdict.measured)} [{low}, {high}]"


def error_line(record: Record) -> str:
    """What ended the run, in one line: the last of its traceback."""
    return (record.error or "").strip().rpartition("\n")[2]


def _summary(entries: list[Entry]) -> str:
    verdicts = Counter(verdict.status for entry in entries for verdict in entry.record.verdicts)
    found = [f"{verdicts[s]} {_status(s)}" for s in STATUSES if verdicts[s]]
    ended = Counter(entry.record.status for entry in entries)
    found += [f"{ended[s]} {_status(s)}" for s in ("error", "skipped") if ended[s]]
    return f"{len(entries)} experiments, {verdicts.total()} verdicts: {', '.join(found) or 'none'}"


def _rows(entry: Entry) -> str:
    name, record = escape(entry.experiment.name), entry.record
    rows = [
        f'<td>{escape(v.claim)}</td><td class="predicted">{number(v.predicted)}</td>'
        f'<td class="measured">{measured(v)}</td><td>{_status(v.status)}</td>'
        for v in record.verdicts
    ]
    if record.status in ("error", "skipped"):
        message = escape(record.skipped or error_line(record))
        rows.append(f'<td colspan="3">{message}</td><td>{_status(record.status)}</td>')
    head = f'<th scope="row" rowspan="{len(rows)}"><a href="#{name}">{name}</a></th>'
    return "".join(f"<tr>{head if row is rows[0] else ''}{row}</tr>" for row in rows)


def _section(entry: Entry) -> str:
    experiment, record, png = entry
    picture = "<p>No picture.</p>"
    if png is not None:
        data = base64.b64encode(png).decode()
        picture = (
            f'<img src="data:image/png;base64,{data}" alt="{escape(experiment.claim)} '
            f'Data beside theory.">'
        )
    basis = "".join(
        f"<li>{_status(v.status)} {escape(v.claim)} <small>{escape(v.basis)}</small></li>"
        for v in record.verdicts
    )
    error = f"<pre>{escape(record.error)}</pre>" if record.error is not None else ""
    tags = f" [{', '.join(experiment.tags)}]" if experiment.tags else ""
    facts = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(record))
    return (
        f'<article id="{escape(experiment.name)}"><h3>{escape(experiment.name)}</h3>'
        f"<p><strong>{escape(experiment.claim)}</strong> {escape(experiment.source + tags)}</p>"
        f"{picture}<ul>{basis}</ul>{error}<dl>{facts}</dl></article>"
    )


def _facts(record: Record) -> list[tuple[str, str]]:
    config = ", ".join(f"{name} = {value}" for name, value in record.config.items())
    memory = f"{record.peak_memory / 2**20:.0f} MiB" if record.peak_memory else "unknown"
    versions = ", ".join(f"{package} {v}" for package, v in record.versions.items() if v)
    commit = (record.commit or "none")[:12] + (" with uncommitted changes" if record.dirty else "")
    return [
        ("scale", f"{record.scale}, seed {record.seed}"),
        ("config", config or "no fields"),
        ("time", f"{record.seconds:.1f} s, {record.compile_seconds:.1f} s of it compiling"),
        ("memory", f"{memory} at the process's peak"),
        ("on", f"{record.device}, {record.dtype}"),
        ("versions", versions),
        ("commit", commit),
        ("date", record.date),
    ]


def _status(status: str) -> str:
    return f'<span class="{status}">{status}</span>'


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --soft: #666; --line: #ddd;
  --holds: #14703a; --fails: #b3261e; --inconclusive: #8a5a00; --error: #8c1d7a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181b; --soft: #a0a0a0;
  --line: #3a3d42; --holds: #6fcf97; --fails: #ff8a80; --inconclusive: #f0c060;
  --error: #e79be0; } }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --soft: #444;
  --line: #bbb; --holds: #14703a; --fails: #b3261e; --inconclusive: #8a5a00; --error: #8c1d7a; }
  article, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 Georgia, "DejaVu Serif", serif; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { font-size: 1.3rem; margin-top: 2.5rem; }
h3, th a, dl, table, small, pre, span { font-family: system-ui, "DejaVu Sans", sans-serif; }
h3 { font-size: 1.05rem; margin-bottom: 0; } a { color: inherit; }
header p, small, dl { color: var(--soft); }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem;
  border-bottom: 1px solid var(--line); }
tr.chapter th { padding-top: 1.2rem; font-family: Georgia, "DejaVu Serif", serif;
  font-size: 1rem; }
tbody th { font-weight: normal; } td { font-variant-numeric: tabular-nums; }
.holds, .fails, .inconclusive, .error, .skipped { font-weight: 600; font-size: .85rem; }
.holds { color: var(--holds); } .fails { color: var(--fails); }
.inconclusive { color: var(--inconclusive); } .error { color: var(--error); }
.skipped { color: var(--soft); }
img { display: block; max-width: 100%; margin: 1rem 0; padding: .5rem; background: #fff;
  box-sizing: border-box; border: 1px solid var(--line); border-radius: 4px; }
article { margin-bottom: 2.5rem; } ul { padding-left: 1.2rem; columns: 2 24rem; }
li { break-inside: avoid; } li small { display: block; }
dl { font-size: .78rem; display: grid; gap: 0 1.5rem; margin: 0; }
dl div { display: grid; grid-template-columns: 5rem 1fr; } dd { margin: 0; }
dd, pre { overflow-wrap: anywhere; white-space: pre-wrap; } pre { font-size: .78rem; }
@media (max-width: 40rem) { thead { display: none; } table, tbody, tr { display: block; }
  tr { padding: .3rem 0; border-bottom: 1px solid var(--line); }
  th, td { border: 0; padding: 0 .8rem 0 0; } td { display: inline-block; }
  tbody th { display: block; padding-bottom: .3rem; font-size: 1rem; }
  td:has(+ .predicted) { display: block; }
  .predicted::before { content: "predicted "; } .measured::before { content: "measured "; }
  .predicted, .measured { color: var(--soft); } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>jaxnn: theory beside measurement</title>
<style>{style}</style>
</head>
<body>
<header><h1>Theory beside measurement</h1><p>{summary}. Written {date}.</p>{notes}</header>
<div class="table"><table>
<thead><tr><th scope="col">experiment</th><th scope="col">claim</th><th scope="col">predicted</th>
<th scope="col">measured</th><th scope="col">verdict</th></tr></thead>
<tbody>{rows}</tbody>
</table></div>
{sections}
</body>
</html>
"""
