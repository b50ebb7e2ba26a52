"""What a person reads in a terminal: lines on stderr, safe names, sizes."""

from __future__ import annotations

import sys
from typing import Final

from mothership_backup.errors import OutputError

STANDARD_OUTPUT: Final = "standard output"


def complain(message: str) -> None:
    """One line on stderr."""
    say(f"mothership-backup: {message}")


def say(line: str) -> None:
    """A line on stderr: stdout is for data."""
    print(printable(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Text on stdout, at once: a full disk is told here, not by a traceback at the interpreter's end."""
    if sys.stdout is None:
        raise OutputError(f"{STANDARD_OUTPUT} is closed")
    encoding = sys.stdout.encoding  # a name may have characters that it lacks
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        raise cannot_write(STANDARD_OUTPUT, error) from error


def cannot_write(place: str, error: OSError) -> OutputError:
    """The one line for an output that takes no more."""
    return OutputError(f"cannot write {place}: {error.strerror or error}")


def printable(text: str) -> str:
    """The text on one line, with nothing in it that a terminal would obey: a source's name is input."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def human_bytes(size_bytes: float) -> str:
    """12345678 -> 11.8 MiB."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        size_bytes /= 1024
        if size_bytes < 1024:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1024:.1f} TiB"


def count(number: int, noun: str) -> str:
    """1 database, 2 databases."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
