"""On what it was measured; numbers of other machines do not compare."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
from pathlib import Path

from mothership_backup import __version__

GIB = 1 << 30


def description() -> str:
    """The processor, its cores, the memory, and the versions that matter."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return ", ".join(
        (
            found[1] if found else platform.machine(),
            f"{os.cpu_count()} CPUs",
            f"{memory_bytes / GIB:.0f} GiB",
            f"{platform.system()} {platform.release().partition('-')[0]}",
            f"Python {platform.python_version()}",
            f"SQLite {sqlite3.sqlite_version}",
            f"mothership-backup {__version__}",
        )
    )
