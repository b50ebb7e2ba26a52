"""The error tree. Domain errors know nothing of HTTP or exit codes: one table each in web/ and cli/ maps them.

BackupError
 ├── ConfigError            a bad configuration or command line
 ├── SetupError             cannot be mounted into this application
 ├── DataDirError           the data directory is missing, no directory, or unreadable
 ├── NoMatchError           the databases that were asked for do not exist
 ├── NoneReadableError      there are databases, and none of them can be read
 ├── IncompleteError        strict, and a source failed
 ├── TooManyDatabasesError  more than can be pinned at once, and the length must be known
 ├── BusyError              as many backups run as may
 ├── ClosingError           the service is shutting down
 ├── SourceError            one source cannot be read (the others can)
 ├── OutputError            the output file cannot be written
 ├── HistoryError           the record of past backups cannot be read
 ├── InputError             the archive's file cannot be read
 ├── ArchiveError           the archive is not whole, or none
 ├── RestoreError           the archive cannot be restored there (now)
 ├── FetchError             no archive came, or none that is whole
 ├── ReaderError            the reader process failed
 ├── CutError               a guard ended the backup; its code is the reason
 └── ClientLeftError        the client closed the connection
"""

from __future__ import annotations


class BackupError(Exception):
    """Something went wrong that a person must hear of.

    ``code`` is one stable word for machines, ``source`` the name of the database or file it is about.
    The message says what, where, why, and what to do where that is known.
    """

    code = "failed"

    def __init__(self, message: str, *, code: str | None = None, source: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.source = source
        if code is not None:
            self.code = code


class ConfigError(BackupError):
    """A bad configuration or command line."""

    code = "config"


class SetupError(BackupError):
    """The backup cannot be mounted into this application."""

    code = "setup"


class DataDirError(BackupError):
    """Codes: ``data_dir_missing``, ``data_dir_not_a_directory``, ``data_dir_unreadable``."""

    code = "data_dir_missing"


class NoMatchError(BackupError):
    """The databases that were asked for by name do not exist."""

    code = "no_match"


class NoneReadableError(BackupError):
    """There are databases, and none of them can be read."""

    code = "none_readable"


class IncompleteError(BackupError):
    """Strict was asked for, and a source failed before the first byte."""

    code = "incomplete"


class TooManyDatabasesError(BackupError):
    """More databases than can be pinned at once, while the archive's length must be known."""

    code = "too_many_databases"


class BusyError(BackupError):
    """As many backups run already as may run at once."""

    code = "busy"


class ClosingError(BackupError):
    """The service is shutting down and takes no new backup."""

    code = "shutting_down"


class SourceError(BackupError):
    """One source cannot be read; the backup goes on without it and says so."""

    code = "not_readable"


class OutputError(BackupError):
    """The output file cannot be written."""

    code = "output"


class HistoryError(BackupError):
    """The record of past backups cannot be read (now)."""

    code = "history"


class InputError(BackupError):
    """The file of an archive cannot be read: it says nothing about what is in it."""

    code = "input"


class ArchiveError(BackupError):
    """What was given is no whole archive.

    Codes: ``not_a_zip``, ``truncated``, ``malformed``, ``unsupported``, ``unsafe``, ``too_large``, ``manifest``,
    ``newer_format``, ``contents``, ``damaged``.
    """

    code = "damaged"


class RestoreError(BackupError):
    """Nothing was restored, or a restore was interrupted. The message says what to do.

    Codes: ``not_empty``, ``in_use``, ``maybe_in_use``, ``in_progress``, ``conflict``, ``no_room``, ``no_right``, …
    """

    code = "restore"


class FetchError(BackupError):
    """The archive did not come, after all tries."""

    code = "fetch"


class ReaderError(BackupError):
    """Codes: ``reader_start``, ``reader_died``, ``reader_silent``, ``reader_protocol``, ``source_failed``."""

    code = "reader_died"


class CutError(BackupError):
    """A guard ended a running backup.

    Codes: ``stall``, ``hold``, ``wal_growth``, ``disk_full``, ``shutdown``, ``check``.
    """

    code = "shutdown"


class ClientLeftError(BackupError):
    """The client closed the connection before the last byte."""

    code = "client_left"
