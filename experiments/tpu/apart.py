"""Work in a process of its own: where XLA meets a bug of its own it ends the process."""

import contextlib
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Crashed(Exception):
    """The process has ended before its work; the message is its last words."""


def apart(work: Callable[..., Any], *args: Any) -> Any:
    """The result of ``work(*args)``, all of which can be pickled; what it raises is raised here.

    An interruption ends the process at once, in the middle of a compilation too. What it writes to
    its standard error is not shown.

    Raises:
        Crashed: if there is none.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        process = context.Process(target=_work, args=(sending, log, work, args), daemon=True)
        process.start()
        sending.close()  # so that its end is the end
        try:
            result, error = receiving.recv()
        except EOFError:
            raise Crashed(_last_words(log)) from None
        finally:
            process.kill()
            process.join()
    if error is not None:
        raise error
    return result


def _work(sending: Connection, log: Path, work: Callable[..., Any], args: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who waits will end this
    with log.open("w") as words:
        os.dup2(words.fileno(), 2)
    try:
        found = work(*args), None
    except Exception as error:
        found = None, error
    sending.send(found)


def _last_words(log: Path) -> str:
    """What failed, as XLA says it, or the last line."""
    text = ""
    with contextlib.suppress(OSError):  # it may not have come so far
        text = log.read_text(errors="replace")
    if found := re.search(r"Check failed: .*", text):
        return found[0]
    return (text.strip().splitlines() or ["it said nothing"])[-1]
