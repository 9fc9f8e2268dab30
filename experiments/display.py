"""What a run shows on a terminal, and the same in short and plain in a log."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box, progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.catalog import Experiment
from experiments.records import Record
from experiments.report import error_line, measured, number

STYLES = {
    "holds": "green",
    "fails": "bold red",
    "inconclusive": "yellow",
    "error": "bold magenta",
    "skipped": "cyan",
}


def terminal() -> Console:
    """The standard output; as wide as a table needs where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


class Progress:
    """A bar for the experiment that runs, and the time that is left for all of them.

    The time assumes that every experiment takes as long as the mean of what was done so far. Where
    the output is no terminal nothing is shown.
    """

    def __init__(self, console: Console, chosen: Sequence[Experiment]):
        self._console, self._count = console, len(chosen)
        self._start, self._finished, self._bar = time.monotonic(), 0, None

    @contextmanager
    def running(self, name: str) -> Iterator[Callable[[float, float], None]]:
        """Show a bar until the work is done; yields the listener that moves it.

        It pulses until the first report.
        """
        if not self._console.is_terminal:
            yield lambda done, total: None
            return
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            _TimeLeft(self),
            console=self._console,
            transient=True,
        )
        with self._bar as bar:
            task = bar.add_task(f"{name} ({self._finished + 1} of {self._count})", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        self._finished += 1

    def stop(self) -> None:
        """Take the bar away from a terminal that shows one."""
        if self._bar is not None:
            self._bar.stop()

    def left(self, share: float) -> float | None:
        """The seconds left, where `share` of the experiment that runs is done; None at first."""
        done = self._finished + share
        if done == 0:
            return None
        return (time.monotonic() - self._start) * (self._count - done) / done


class _TimeLeft(progress.ProgressColumn):
    def __init__(self, shown: Progress):
        super().__init__()
        self._shown = shown

    def render(self, task: progress.Task) -> Text:
        left = self._shown.left(task.completed / task.total if task.total else 0.0)
        return Text("" if left is None else f"about {duration(left)} left", style="cyan")


def duration(seconds: float) -> str:
    """A time that was estimated, and needs no more digits.

    >>> duration(8.2), duration(100.0), duration(7300.0)
    ('10 s', '1 min 40 s', '122 min')
    """
    seconds = 10 * max(1, round(seconds / 10))
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min {seconds % 60} s" if seconds < 600 else f"{seconds // 60} min"


def line(record: Record, width: int) -> Text:
    """One experiment in one line: status, name, seconds, how many verdicts hold or why none do."""
    held = sum(verdict.status == "holds" for verdict in record.verdicts)
    told = error_line(record) or record.skipped or f"{held} of {len(record.verdicts)} verdicts hold"
    text = _status(record.status, 12)
    return text.append(f"  {record.name:<{width}}  {record.seconds:7.1f} s  {told}", style="none")


def ending(console: Console, records: Sequence[Record], folder: Path, interrupted: bool) -> None:
    """Tell what did not hold, why, and where the page is; of a single experiment everything."""
    console.print()
    if interrupted:
        console.print(f"interrupted; {len(records)} finished")
    if len(records) == 1:
        verdict_table(console, records[0])
    else:
        for record in records:
            _objections(console, record)
    counts = Counter(verdict.status for record in records for verdict in record.verdicts)
    counts.update(record.status for record in records if record.status in ("error", "skipped"))
    console.print(", ".join(f"{status} {counts[status]}" for status in STYLES))
    if records:
        page = (folder / "index.html").resolve()
        console.print(f"open in a browser: {page.as_uri()}", soft_wrap=True)


def verdict_table(console: Console, record: Record) -> None:
    """Print every verdict of an experiment beside its prediction."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("claim", overflow="fold")
    table.add_column("predicted")
    table.add_column("measured")
    for v in record.verdicts:
        claim = v.claim if v.status == "holds" else f"{v.claim}\n{v.basis}"
        table.add_row(_status(v.status), *map(Text, (claim, number(v.predicted), measured(v))))
    if record.verdicts:
        console.print(table)
        console.print()


def _objections(console: Console, record: Record) -> None:
    """What fails in full, what is open by its number; an error or a skip by its reason."""
    if record.status in ("error", "skipped"):
        told = f"  {record.name}: {error_line(record) or record.skipped}"
        console.print(_status(record.status, 12).append(told, style="none"), soft_wrap=True)
    for v in record.verdicts:
        if v.status == "fails":
            told = f"  {record.name}: {v.claim}: predicted {number(v.predicted)}, measured "
            told += f"{measured(v)} ({v.basis})"
            console.print(_status("fails", 12).append(told, style="none"), soft_wrap=True)
    count = sum(v.status == "inconclusive" for v in record.verdicts)
    if count:
        told = f"  {record.name}: {count} of {len(record.verdicts)} verdicts are open"
        console.print(_status("inconclusive", 12).append(told, style="none"))


def _status(status: str, width: int = 0) -> Text:
    return Text(f"{status:<{width}}", style=STYLES[status])
