"""What the service asks of the reader: one JSON object on its stdin."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Request:
    """One backup, or its plan alone. Paths are absolute; patterns are relative to ``data_dir``."""

    def __init__(
        self,
        mode: str,  # "backup", "plan", or "probe": only what this process has
        *,
        data_dir: str = "",
        databases: tuple[str, ...] = (),
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        only: tuple[str, ...] = (),  # database=GLOB; empty: all
        version_file: str = "",
        stored: bool = False,
        level: int = 1,
        level_was_set: bool = False,
        check: str = "quick",
        engine: str = "auto",
        busy_timeout_seconds: float = 1.0,
        max_lock_seconds: float = 4.0,
        check_timeout_seconds: float = 300.0,
        staging_memory_bytes: int = 0,
        staging_dir: str = "",  # empty: there is none
        max_hold_seconds: float = 1800.0,
        max_wal_growth_bytes: int = 268_435_456,
        min_free_bytes: int = 268_435_456,
        read_bytes_per_second: int = 0,
        nice: int = 5,
        threads: int = 0,
    ) -> None:
        self.mode = mode
        self.data_dir = data_dir
        self.databases = databases
        self.include = include
        self.exclude = exclude
        self.only = only
        self.version_file = version_file
        self.stored = stored
        self.level = level
        self.level_was_set = level_was_set
        self.check = check
        self.engine = engine
        self.busy_timeout_seconds = busy_timeout_seconds
        self.max_lock_seconds = max_lock_seconds
        self.check_timeout_seconds = check_timeout_seconds
        self.staging_memory_bytes = staging_memory_bytes
        self.staging_dir = staging_dir
        self.max_hold_seconds = max_hold_seconds
        self.max_wal_growth_bytes = max_wal_growth_bytes
        self.min_free_bytes = min_free_bytes
        self.read_bytes_per_second = read_bytes_per_second
        self.nice = nice
        self.threads = threads

    def encode(self) -> bytes:
        """As one line of JSON; names that are no UTF-8 travel as lone surrogates."""
        return json.dumps(vars(self)).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, payload: bytes) -> Request:
        """Raises ValueError or TypeError for anything that `encode` did not make."""
        document = json.loads(payload)
        fields: dict[str, Any] = {  # each of the type that `encode` wrote
            key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
        }
        return cls(**fields)
