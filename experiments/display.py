"""What a tour shows on a terminal, and the same in short and plain in a log."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from experiments.records import Record
from experiments.report import error_line, measured, number

STYLES = {"holds": "green", "fails": "bold red", "inconclusive": "yellow", "error": "bold magenta"}


def terminal() -> Console:
    """The standard output; as wide as a table needs where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


@contextmanager
def progress_bar(console: Console, label: str) -> Iterator[Callable[[float, float], None]]:
    """A bar that is gone when the work is; yields the listener that moves it.

    It pulses until the first report. Where the output is no terminal there is none.
    """
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def line(record: Record, width: int) -> Text:
    """One experiment in one line: status, name, how many verdicts hold, seconds."""
    held = sum(verdict.status == "holds" for verdict in record.verdicts)
    told = error_line(record) or f"{held} of {len(record.verdicts)} verdicts hold"
    text = _status(record.status, 12)
    return text.append(f"  {record.name:<{width}}  {record.seconds:7.1f} s  {told}", style="none")


def verdict_table(console: Console, records: list[Record]) -> None:
    """Print every verdict beside its prediction, and how many there are of each kind."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("experiment", no_wrap=True)
    table.add_column("claim", overflow="fold")
    table.add_column("predicted")
    table.add_column("measured")
    for record in records:
        for v in record.verdicts:
            claim = v.claim if v.status == "holds" else f"{v.claim}\n{v.basis}"
            cells = (record.name, claim, number(v.predicted), measured(v))
            table.add_row(_status(v.status), *map(Text, cells))
        if record.error is not None:
            table.add_row(_status("error"), Text(record.name), Text(error_line(record)))
    console.print()
    console.print(table)
    counts = Counter(verdict.status for record in records for verdict in record.verdicts)
    counts["error"] = sum(record.error is not None for record in records)
    console.print()
    console.print(", ".join(f"{status} {counts[status]}" for status in STYLES))


def _status(status: str, width: int = 0) -> Text:
    return Text(f"{status:<{width}}", style=STYLES[status])
