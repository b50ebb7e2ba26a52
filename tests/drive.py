"""A backup in a process of another kind: another user's, without a capability, without sqlean and isal.

Run as a program it drives one backup and prints what became of it, then the archive.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Archive, Config, run, tool
from mothership_backup.errors import BackupError
from support import backup_of, codes, engines

NOBODY = 65534
EXTRA = ("sqlean", "isal")


def mounted(script: str) -> list[str]:
    """A command line that runs what follows in a mount namespace of its own, after this script."""
    words = [tool("unshare"), "-m", "--propagation", "private", "sh", "-c"]
    if run(*words, "true").returncode != 0:
        pytest.skip("no mount namespace can be made here")
    return [*words, script, "sh"]


def read_only(folder: Path) -> list[str]:
    """A command line for which this folder is on a read-only mount."""
    return mounted(f'mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && exec "$@"')


def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="mothership-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@functools.cache
def python_of(user: int | None) -> tuple[str, dict[str, str]]:
    """An interpreter that this user may run, and its environment: a virtual environment's often lies in a home."""
    mine = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if user is None:
        return sys.executable, mine
    foreign = [path for path in sys.path if path and not path.startswith(sys.base_prefix)]
    for python, environ in (
        (sys.executable, mine),
        ("/usr/bin/python3", {"PYTHONPATH": os.pathsep.join(foreign)}),
    ):
        with contextlib.suppress(OSError):
            command = [python, "-c", "import mothership_backup.backup"]
            asked = subprocess.run(
                command, user=user, env=os.environ | environ, cwd="/", capture_output=True, check=False
            )
            if asked.returncode == 0:
                return python, environ
    pytest.skip("no interpreter here that another user may run with this package")


@dataclasses.dataclass(frozen=True)
class Driven:
    """What a backup in another process said of itself."""

    outcome: str
    error: dict[str, str] | None
    engines: dict[str, str]
    codes: dict[str, str]
    archive: Archive | None


def drive(
    data_dir: Path,
    config: Config | None = None,
    *,
    user: int | None = None,
    command: Sequence[str] = (),
    without: Iterable[str] = (),
    without_chown: bool = False,
    **options: Any,
) -> Driven:
    """One backup in a process of another kind. ``command`` is put before it (`unshare -m …`)."""
    python, environ = python_of(user)
    words = [*command, python, __file__, str(data_dir), json.dumps(config or {}), json.dumps(options)]
    words += [f"--without={name}" for name in without] + ["--without-chown"] * without_chown
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=60,
            env=os.environ | environ,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            cwd="/",
            check=False,
        )
        output.seek(0)
        head, data = output.readline(), output.read()
    assert done.returncode == 0, done.stderr.decode()
    return Driven(**json.loads(head), archive=Archive(data) if data else None)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("data_dir", type=Path)
    arguments.add_argument("config", type=json.loads)
    arguments.add_argument("options", type=json.loads)
    arguments.add_argument("--without", action="append", default=[])
    arguments.add_argument("--without-chown", action="store_true")
    given = arguments.parse_args()
    for name in given.without:
        sys.modules[name] = None  # type: ignore[assignment]  # how the import system marks what must not be found
    if given.without_chown and ctypes.CDLL(None, use_errno=True).prctl(24, 0, 0, 0, 0):  # PR_CAPBSET_DROP
        raise OSError(ctypes.get_errno(), "CAP_CHOWN cannot be dropped")
    said: dict[str, Any] = {"error": None, "engines": {}, "codes": {}}
    data = b""
    driven = backup_of(given.data_dir, given.config, **given.options)
    try:
        data = b"".join(driven.chunks())
        archive = Archive(data)
        said["engines"] = engines(archive.manifest)
        said["codes"] = codes(archive)
    except BackupError as error:
        said["error"] = {"code": error.code, "message": error.message}
    assert driven.outcome is not None
    sys.stderr.write(driven.reader_stderr)
    print(json.dumps(said | {"outcome": driven.outcome.word}), flush=True)
    sys.stdout.buffer.write(data)


if __name__ == "__main__":
    main()
