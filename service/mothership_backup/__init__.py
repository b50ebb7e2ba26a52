"""One GET streams a ZIP of every SQLite database in a directory, consistent while others write.

The way of a backup, each step a module:

    reader/     a child process opens the sources and sends their packed pages as frames
    archive.py  frames -> the chunks of a ZIP
    backup.py   starts the reader, decides, drives, judges: the page to read
    stream.py   the blocking chunks -> an async iterator, bounded in bytes
    web/        the iterator -> a response

This module imports nothing on purpose: the reader process imports the package too, and starts in
30 ms only as long as aiohttp and pydantic stay out of it. ``setup`` and ``METRICS`` are looked up when first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mothership_backup.web.app import setup
    from mothership_backup.web.metrics import METRICS

__version__ = "0.1.0"
__all__ = ["METRICS", "setup"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from mothership_backup.web import app

        return getattr(app, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
