"""Ctrl-C ends the command within seconds, wherever it is, and loses nothing that was finished.

Python runs a signal's handler in the main thread, between two bytecodes, which may be a minute away
inside XLA's compiler. A thread therefore waits for the signal as well: if the main thread has not
reacted after PATIENCE seconds, or on a second Ctrl-C, it ends the process.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells count: 128 + SIGINT."""

PATIENCE = 3.0


class Watch:
    """Whether Ctrl-C was pressed, and what to tell if the main thread cannot.

    farewell  called, in the other thread, before it ends the process
    """

    def __init__(self):
        self.pressed = False
        self.farewell: Callable[[], None] = lambda: None
        self._noticed = threading.Event()

    def notice(self) -> None:
        """Called by the main thread once it reacts: it needs no help to end."""
        self.farewell = lambda: None
        self._noticed.set()

    def wait(self, pipe: socket.socket) -> None:
        """Read the numbers of signals from `pipe` until its other end is closed."""
        with pipe:
            while True:
                try:
                    number = pipe.recv(1)
                except TimeoutError:  # PATIENCE seconds after the first Ctrl-C
                    if not self._noticed.is_set():
                        end_at_once(self.farewell)
                    pipe.settimeout(None)
                    continue
                if not number:
                    return
                if number[0] == signal.SIGINT:
                    if self.pressed:
                        end_at_once(self.farewell)
                    self.pressed = True
                    pipe.settimeout(PATIENCE)


@contextmanager
def watch() -> Iterator[Watch]:
    """Within the context a thread waits for Ctrl-C beside the main one."""
    watched = Watch()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield watched  # somebody else decides what Ctrl-C does
        return
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    before = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watched.wait, args=(theirs,), daemon=True).start()
    try:
        yield watched
    finally:
        signal.set_wakeup_fd(before)
        ours.close()


def end_at_once(farewell: Callable[[], None] = lambda: None) -> None:
    """End the process without the interpreter's own end.

    That one frees what XLA's threads, in the middle of a computation, still use.
    """
    try:
        farewell()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(INTERRUPTED)
