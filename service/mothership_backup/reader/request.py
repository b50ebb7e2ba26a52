"""What the service asks of the reader: one JSON object on its stdin."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Request(NamedTuple):
    """One backup, or its plan alone. Paths are absolute; patterns are relative to ``data_dir``."""

    mode: str  # "backup", "plan", or "probe": only what this process has
    parent_pid: int
    data_dir: str = ""
    databases: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # database=GLOB; empty: all
    version_file: str = ""
    stored: bool = False
    level: int = 1
    level_was_set: bool = False
    check: str = "quick"
    engine: str = "auto"
    busy_timeout_seconds: float = 1.0
    max_lock_seconds: float = 4.0
    check_timeout_seconds: float = 300.0
    staging_memory_bytes: int = 0
    staging_dir: str = ""  # empty: there is none
    max_hold_seconds: float = 1800.0
    max_wal_growth_bytes: int = 268_435_456
    min_free_bytes: int = 268_435_456
    read_bytes_per_second: int = 0
    nice: int = 5
    threads: int = 0

    def encode(self) -> bytes:
        """As one line of JSON; names that are no UTF-8 travel as lone surrogates."""
        return json.dumps(self._asdict()).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, payload: bytes) -> Request:
        """Raises ValueError or TypeError for anything that `encode` did not make."""
        document = json.loads(payload)
        fields: dict[str, Any] = {  # each of the type that `encode` wrote
            key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
        }
        return cls(**fields)
