"""The reader process as the service sees it: start it, read its frames, end it."""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from mothership_backup import frames
from mothership_backup.decoder import Decoder, Frame
from mothership_backup.errors import BackupError, CutError, DataDirError, NoMatchError, ReaderError
from mothership_backup.frames import ProtocolError
from mothership_backup.reader.request import Request

SILENCE_SECONDS: Final = 10.0
"""Without a frame for this long the reader counts as hung: it says ALIVE each second."""
END_SECONDS: Final = 0.5
"""How long to wait for a killed reader: one in disk sleep survives that for a while, and a shutdown does not wait."""

_BOOT: Final = (
    "import sys; sys.path += sys.argv[2:]; from mothership_backup.reader.__main__ import main; main()"
)
# glibc would give each block of 1 MiB back to the kernel and take a new one, with a fault and zeros for every page.
_MALLOC: Final = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(32 * 1024 * 1024))
_POLL_SECONDS: Final = 0.25  # a kill is noticed within it, also by a reader that survives it
_STDERR_KEPT_BYTES: Final = 64 * 1024
_CUTS: Final = {
    frames.EXIT_HOLD: ("hold", "its snapshot was held longer than max_hold_seconds"),
    frames.EXIT_WAL_GROWTH: (
        "wal_growth",
        "a WAL grew by more than max_wal_growth_bytes while its snapshot was held",
    ),
    frames.EXIT_DISK_FULL: ("disk_full", "less than min_free_bytes were left beside a WAL that grew"),
}


class ReaderProcess:
    """A running reader. Use it in a ``with``: on leaving, it is killed and waited for, `END_SECONDS` at most.

    All but `kill` and `is_gone` belong to one thread. Raises ReaderError (``reader_start``) if it cannot be started.
    """

    def __init__(self, request: Request) -> None:
        self._began = time.monotonic()
        #: From its start to its first frame; None before.
        self.start_seconds: float | None = None
        try:
            self._process = subprocess.Popen(
                command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=_environment(request),
                cwd="/",
                start_new_session=True,  # a terminal's Ctrl-C is for the service
            )
        except OSError as error:
            raise ReaderError(f"the reader cannot be started: {error}", code="reader_start") from error
        self._pipes = (_opened(self._process.stdout), _opened(self._process.stderr))
        self._output, self._errors = (pipe.fileno() for pipe in self._pipes)
        self._stderr: deque[bytes] = deque(maxlen=_STDERR_KEPT_BYTES // 1024)
        self._is_killed = threading.Event()
        os.set_blocking(self._errors, False)
        # If it died at once, its frames, or their lack, say why.
        with suppress(BrokenPipeError), _opened(self._process.stdin) as stdin:
            stdin.write(request.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        with suppress(subprocess.TimeoutExpired):  # given up for now: its slot stays taken until `is_gone`
            self._wait()
        self._drain_stderr()
        for pipe in self._pipes:
            pipe.close()
        if isinstance(error, ProtocolError):  # seen by whoever read its frames
            raise _broke_the_protocol(error) from error

    def kill(self) -> None:
        """End it at once, from any thread; the kernel frees its locks."""
        self._is_killed.set()
        self._process.kill()

    def is_gone(self) -> bool:
        """False for one that survives its kill in disk sleep."""
        return self._process.poll() is not None

    def sudden_end(self) -> BackupError | None:
        """Why it was ended, by its watch or somebody's signal, if it was; from any thread.

        Whoever reads its frames learns it after the last of them, and a slow client may keep him from that for long.
        """
        status = self._process.poll()
        # After its last frame it may still be on its way out when `__exit__` kills it, and all is well.
        if status is None or self._is_killed.is_set():
            return None
        return self._explain(status) if status in _CUTS or status < 0 else None

    @property
    def stderr(self) -> str:
        """The last of what it wrote on stderr; for the log, never for a client."""
        return b"".join(self._stderr).decode("utf-8", "replace").strip()

    def frames(self) -> Iterator[Frame]:
        """Frame by frame, ending with END, which is yielded only once the pipe has ended after it.

        Raises what an ERROR frame says, CutError for the watch's reasons, and ReaderError: ``reader_silent``,
        ``reader_died``, ``reader_protocol``.
        """
        decoder = Decoder()
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        poll.register(self._errors, select.POLLIN)
        last_heard = time.monotonic()
        last: Frame | None = None
        while True:
            ready = {fd for fd, _ in poll.poll(_POLL_SECONDS * 1000)}
            if self._errors in ready and not self._drain_stderr():
                poll.unregister(self._errors)
            if self._output in ready:
                count = os.readv(self._output, decoder.buffers)
                if count == 0:
                    break
                last_heard = time.monotonic()
                if self.start_seconds is None:
                    self.start_seconds = last_heard - self._began
                for frame in _advance(decoder, count):
                    if last is not None:
                        raise _went_on()
                    if frame.type in (frames.END, frames.ERROR):
                        last = frame
                    else:
                        yield frame
                # The client may have kept us for long: silence is what the reader does, not what we do.
                last_heard = time.monotonic()
            elif self.is_gone() and not poll.poll(0):
                break  # without an end: a process that the host forked meanwhile may hold the pipe's other end
            elif self._is_killed.is_set():
                raise ReaderError("the reader was ended", code="reader_died")
            elif time.monotonic() - last_heard > SILENCE_SECONDS:
                raise ReaderError(
                    f"the reader said nothing for {SILENCE_SECONDS:.0f} s", code="reader_silent"
                )
        if last is None:
            raise self._why_it_died()
        if not decoder.is_between_frames:
            raise _went_on()
        if last.type == frames.ERROR:
            raise _error_of(last)
        yield last

    def _why_it_died(self) -> BackupError:
        """Its status names a reason where there is one; a host that reaps children leaves us without."""
        try:
            status = self._wait()
        except subprocess.TimeoutExpired:
            status = 0
        self._drain_stderr()
        return self._explain(status)

    def _wait(self) -> int:
        """Its status. Raises subprocess.TimeoutExpired after `END_SECONDS`."""
        try:
            handle = os.pidfd_open(self._process.pid)
        except (OSError, AttributeError):  # a host has reaped it; not Linux
            return self._process.wait(END_SECONDS)
        # `wait` with a timeout looks, and sleeps for ever longer: it notices an end after 3 ms.
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(END_SECONDS * 1000):
                raise subprocess.TimeoutExpired(self._process.args, END_SECONDS)
        finally:
            os.close(handle)
        # Not with 0: while another thread asks `sudden_end`, that would say that it still lives.
        return self._process.wait(END_SECONDS)

    def _explain(self, status: int) -> BackupError:
        if status in _CUTS:
            code, message = _CUTS[status]
            return CutError(message, code=code)
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return ReaderError(f"the reader ended {how} before its last frame", code="reader_died")

    def _drain_stderr(self) -> bool:
        """False at its end."""
        while True:
            try:
                chunk = os.read(self._errors, 1024)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self._stderr.append(chunk)


def command() -> list[str]:
    """What starts a reader of this process."""
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOT, str(os.getpid()), *_roots()]


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ReaderError("the reader has no pipe", code="reader_start")
    return pipe


def _advance(decoder: Decoder, count: int) -> Iterator[Frame]:
    try:
        yield from decoder.advance(count)
    except ProtocolError as error:
        raise _broke_the_protocol(error) from error


def _went_on() -> ReaderError:
    return ReaderError("the reader went on after its last frame", code="reader_protocol")


def _broke_the_protocol(error: ProtocolError) -> ReaderError:
    return ReaderError(f"the reader broke the protocol: {error}", code="reader_protocol")


def _error_of(frame: Frame) -> BackupError:
    code = str(frame.document.get("code"))
    message = str(frame.document.get("message"))
    if code.startswith("data_dir_"):
        return DataDirError(message, code=code)
    if code == NoMatchError.code:
        return NoMatchError(message)
    return ReaderError(message, code=code, source=frame.document.get("source"))


def _roots() -> list[str]:
    """The folders above our package and above those of the extra: the reader knows no site-packages."""
    roots: list[str] = []
    for name in ("mothership_backup", "sqlean", "isal"):
        try:
            spec = importlib.util.find_spec(name)  # looked for, not imported
        except ValueError:
            continue  # half-imported, or blocked by the host
        if spec is not None and spec.submodule_search_locations:
            root = str(Path(spec.submodule_search_locations[0]).absolute().parent)
            if root not in roots:
                roots.append(root)
    return roots


def _environment(request: Request) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | _MALLOC | ({"SQLITE_TMPDIR": request.staging_dir} if request.staging_dir else {})
