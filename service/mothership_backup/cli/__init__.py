"""The command line's frame: one line on stderr and an exit code for every expected error."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final, NoReturn

from mothership_backup.cli.terminal import complain
from mothership_backup.errors import (
    ArchiveError,
    BackupError,
    ConfigError,
    CutError,
    IncompleteError,
    RestoreError,
    SetupError,
)

GOOD: Final = 0
FAILED: Final = 1
MISUSE: Final = 2
INCOMPLETE: Final = 3
NOT_WHOLE: Final = 4

EXIT_CODES: Final[Mapping[type[BackupError], int]] = {
    ConfigError: MISUSE,
    SetupError: MISUSE,
    IncompleteError: INCOMPLETE,
    ArchiveError: NOT_WHOLE,
    BackupError: FAILED,
}


def main() -> NoReturn:
    """Run the command that ``sys.argv`` names and leave."""
    sys.exit(_run())


def exit_code(error: BackupError) -> int:
    """What the process ends with because of ``error``."""
    if isinstance(error, CutError) and error.code == "check":
        return INCOMPLETE  # strict, and a check found damage
    if isinstance(error, RestoreError) and error.code in ("not_empty", "maybe_in_use"):
        return MISUSE  # one more option is asked for
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def _run() -> int:
    if sys.platform == "win32":
        complain("Windows is not supported: run it in WSL 2 or in a Linux container")
        return MISUSE
    code = GOOD
    try:
        if sys.argv[1:2] == ["healthcheck"]:
            from mothership_backup.cli import healthcheck  # before typer, which is slow to import

            sys.exit(healthcheck.main(sys.argv[2:]))
        from mothership_backup.cli.app import build  # not before: it needs what Windows has not

        build(sys.argv[1:])(prog_name="mothership-backup")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else FAILED
    except KeyboardInterrupt:
        code = 128 + 2
    except BackupError as error:
        complain(error.message)
        code = exit_code(error)
    if code == 128 + 2:
        complain("interrupted")
        code = FAILED
    _forget_unwritten()
    return code


def _forget_unwritten() -> None:
    """What stdout could not take was told already; at its end the interpreter would tell it by a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
