"""Request in, frames out. Started by child.py with its parent's id and where to import from, never by hand.

The order of things is the point: what looks at files comes before SQLite opens anything, the threads that may
create files start before Landlock, and everything that holds a lock is known to the watch.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

from mothership_backup import deflate, frames
from mothership_backup.errors import BackupError, NoMatchError, SourceError
from mothership_backup.reader import sqlite
from mothership_backup.reader.discover import Discovery, read_version
from mothership_backup.reader.entries import Entries
from mothership_backup.reader.instant import Instant, Pinner
from mothership_backup.reader.output import FrameWriter, take_stdout
from mothership_backup.reader.request import Request
from mothership_backup.reader.source import DATABASE, FILE, Source
from mothership_backup.reader.staging import Stager
from mothership_backup.reader.watch import Watch

_WAVE_DATABASES = 200  # about 250 KiB a pinned connection
_DESCRIPTORS_PER_DATABASE = 5  # database and WAL, pinned and as witness, and one -shm
_DESCRIPTORS_KEPT = 400  # plain files that stay open since the plan, pipes, libraries
_PLAN_BATCH = 128
_PACK_MAX_BYTES = 256 * 1024 * 1024  # zlib at level 1 is slow, and the pin waits for it


def main() -> None:
    """The whole life of a reader process; ends it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # a unit's stop signal goes to the group; running backups may finish
    output_fd = take_stdout()
    # A process that the host forked meanwhile may hold the pipe's other end. So the watch comes first, as the request
    # may never come; and it is one line, not all there is.
    watch = Watch(int(sys.argv[1]))
    request = Request.decode(sys.stdin.buffer.readline())
    watch.begin(request)
    output = FrameWriter(output_fd)
    status = 1
    try:
        _run(request, output, watch)
        status = 0
    except BackupError as error:
        _tell(output, error.code, error.message, error.source)
    except BrokenPipeError:
        pass  # the service has hung up: nobody is left to tell
    except BaseException:
        import traceback  # 7 ms that no good backup needs

        traceback.print_exc()
        last_line = traceback.format_exc().strip().splitlines()[-1]
        _tell(output, "reader_defect", f"the reader failed: {last_line}", None)
    # Nothing of this process needs tidying, and a daemon thread may stand in a read that never ends.
    output.close()
    sys.stderr.flush()
    os._exit(status)


def _tell(output: FrameWriter, code: str, message: str, source: str | None) -> None:
    with suppress(BrokenPipeError):
        output.send(frames.ERROR, {"code": code, "message": message, "source": source})


def _run(request: Request, output: FrameWriter, watch: Watch) -> None:
    library = sqlite.choose_library()
    if request.mode == "probe":
        output.send(frames.PLAN_END, _describe_engine(library))
        output.send(frames.END, {"entries": 0, "size_bytes": 0})
        return
    output.send(frames.ALIVE, {})  # its start is over: the service measures that
    os.nice(request.nice)
    discovery = Discovery(
        os.path.realpath(request.data_dir),
        databases=request.databases,
        include=request.include,
        exclude=request.exclude,
        only=request.only,
    )
    if not discovery.databases_asked_for:
        raise NoMatchError(f"no database matches {', '.join(request.only)}")
    sources = discovery.sources
    app_version = _find_version(request, sources)
    waves = _assign_waves(sources)
    pinner = Pinner(request, library, watch)
    stager = Stager(request, library, watch)
    _keep_out_of_foreign_folders(sources)
    entries = Entries(request, library, output, pinner, stager, sources)
    instant = entries.begin_wave(1)
    if request.mode == "backup" and request.stored and waves == 1:
        # Their lengths stand in the headers, so they are fixed before the plan; see DESIGN.
        entries.wait_for_staging()
    _choose_packing(request, sources)
    _send_plan(output, sources, _describe_engine(library), app_version, waves, instant)
    if request.mode == "plan":
        output.send(frames.END, {"entries": 0, "size_bytes": 0})
        return
    entries.send_all()


def _describe_engine(library: sqlite.Library) -> dict[str, object]:
    return {
        "sqlite": library.version,
        "library": "sqlite3" if library.module.__name__ == "sqlite3" else "sqlean",
        "dbpage": library.has_dbpage,
        "deflate": deflate.COMPRESSOR,
    }


def _find_version(request: Request, sources: list[Source]) -> str:
    """From `version_file`, whose failure is a failed source: a backup without its version is not complete."""
    if not request.version_file:
        return ""
    try:
        return read_version(request.data_dir, request.version_file)
    except SourceError as error:
        known = next((source for source in sources if source.path == request.version_file), None)
        if known is None:
            known = Source(request.version_file, request.data_dir, FILE, os.stat(request.data_dir))
            known.size_bytes = 0
            sources.append(known)
        known.fail(error)
        return ""


def _assign_waves(sources: Iterable[Source]) -> int:
    """Number the waves in which the databases are taken; returns how many there are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    size = _WAVE_DATABASES
    if hard != resource.RLIM_INFINITY:
        size = max(1, min(size, (hard - _DESCRIPTORS_KEPT) // _DESCRIPTORS_PER_DATABASE))
    wave = 1
    for number, source in enumerate(_databases(sources)):
        wave = source.wave = 1 + number // size
    return wave


def _databases(sources: Iterable[Source]) -> Iterator[Source]:
    return (source for source in sources if source.kind == DATABASE and source.status == "ok")


def _keep_out_of_foreign_folders(sources: Iterable[Source]) -> None:
    """No sidecar of ours beside a database of another owner, who could not write to it any more."""
    foreign = [source for source in _databases(sources) if source.is_wal and not _may_own(source)]
    if not foreign:
        return
    from mothership_backup.reader import landlock  # 3 ms, for ctypes

    if landlock.deny_create_and_remove():
        return
    for source in foreign:
        if os.access(os.path.dirname(source.full_path), os.W_OK, effective_ids=True):
            message = (
                "it belongs to another user, this kernel has no Landlock, and reading it could leave a -wal and -shm"
                " that its owner cannot write to; run as its owner, or mount the folder read-only"
            )
            source.fail(SourceError(message, code="foreign_owner"))


def _may_own(source: Source) -> bool:
    """True for the owner, and for root while it may hand a file over (SQLite does, as root)."""
    user = os.geteuid()
    return source.stat.st_uid == user or (user == 0 and _has_chown())


def _has_chown() -> bool:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            effective = next(line for line in lines if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return False
    return bool(int(effective.split()[1], 16) & 1)  # bit 0 is CAP_CHOWN


def _choose_packing(request: Request, sources: Iterable[Source]) -> None:
    if deflate.COMPRESSOR == "isal" or request.level_was_set:
        return
    for source in _databases(sources):
        source.is_packed = not (source.is_wal and source.size_bytes > _PACK_MAX_BYTES)


def _send_plan(
    output: FrameWriter,
    sources: list[Source],
    engine: dict[str, object],
    app_version: str,
    waves: int,
    instant: Instant,
) -> None:
    for begin in range(0, len(sources), _PLAN_BATCH):
        batch = [source.describe() for source in sources[begin : begin + _PLAN_BATCH]]
        output.send(frames.PLAN, {"sources": batch})
    output.send(
        frames.PLAN_END, engine | {"app_version": app_version, "waves": waves, "instant": instant.describe()}
    )


if __name__ == "__main__":
    main()
