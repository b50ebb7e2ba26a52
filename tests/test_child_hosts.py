"""Hosts that fork, reap, ignore or die, and readers that are not what they should be."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import MakeDatabase
from mothership_backup import child, frames
from mothership_backup.errors import BackupError, DataDirError, NoMatchError, ReaderError
from mothership_backup.reader.request import Request
from processes import gone_within
from support import backup_of, plan_of, reading, request_for, take

# A host that starts a reader, perhaps forks a worker, says who they are, and waits to be killed.
HOST = """
import os, signal, subprocess, sys
from pathlib import Path
from support import plan_of, request_for
from mothership_backup import child
from mothership_backup.child import ReaderProcess

folder, moment, forks = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "forks"
if moment == "not asked":
    reader = subprocess.Popen(child.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    worker = os.fork()
    if worker:
        print(reader.pid, worker, flush=True)
    signal.pause()
reader = ReaderProcess(request_for(folder))
incoming = reader.frames()
if moment != "at once":
    plan_of(incoming)
if moment == "streaming":
    next(incoming)
worker = 0
if forks:
    worker = os.fork()
    if not worker:
        signal.pause()
print(reader._process.pid, worker, flush=True)
signal.pause()
"""

# A host with its own ideas of children, and one backup in it: good, or killed in mid-stream.
REAPING = """
import os, signal, sys, threading
from pathlib import Path
from support import backup_of, take

folder, manner, is_killed = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "killed"
if manner == "ignores":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
else:
    def reap():
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                pass
    threading.Thread(target=reap, daemon=True).start()
for _ in range(1 if is_killed else 5):
    run = backup_of(folder, strict=True)
    chunks = run.chunks()
    while not len(next(chunks)):
        pass
    if is_killed:
        os.kill(run._reader._process.pid, signal.SIGKILL)
    try:
        list(chunks)
    except Exception as error:
        print(type(error).__name__, getattr(error, "code", ""), run.outcome.word, run.is_reader_gone())
    else:
        print("no error", run.outcome.word, run.is_reader_gone())
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Path:
    """8 MB that do not compress: more than the pipe holds."""
    folder = tmp_path_factory.mktemp("large")
    make_database(folder / "events.db", rows=8_000, random_bytes=900)
    return folder


def host(code: str, *arguments: str) -> subprocess.Popen[str]:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("moment", "forks"),
    [*itertools.product(["at once", "planned", "streaming"], ["forks", "alone"]), ("not asked", "forks")],
)
def test_it_does_not_outlive_its_service(moment: str, forks: str, large: Path) -> None:
    """Killed, perhaps after it forked a worker that inherited every pipe: the reader is gone within a second."""
    with host(HOST, str(large), moment, forks) as service:
        assert service.stdout is not None
        reader, worker = map(int, service.stdout.readline().split())
        try:
            service.kill()

            assert gone_within(reader, 1)
            assert not worker or not gone_within(worker, 0)
        finally:
            if worker:
                os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("manner", ["ignores", "reaps"])
def test_a_host_that_takes_the_exit_status_away(manner: str, large: Path) -> None:
    """What proves a whole backup is its END frame; a killed reader's status looks like success there."""
    with host(REAPING, str(large), manner, "good") as good:
        output, errors = good.communicate(timeout=60)
    with host(REAPING, str(large), manner, "killed") as killed:
        told, more = killed.communicate(timeout=60)

    assert output.splitlines() == ["no error complete True"] * 5, errors
    assert told.split() == ["ReaderError", "reader_died", "failed", "True"], more


def test_a_request_is_whole_before_its_pipe_ends(large: Path) -> None:
    """A process that the host forked at the wrong moment may hold the pipe's writing end for ever."""
    with subprocess.Popen(child.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(request_for(large, mode="plan").encode())
        reader.stdin.flush()

        said = reader.stdout.read()

        reader.stdin.close()
    assert frames.encode_document(frames.END, {"entries": 0, "size_bytes": 0}) in said


def test_a_reader_alone_says_what_the_service_reads(large: Path) -> None:
    """Plan, entries, verdicts, END; and then its pipe ends."""
    with reading(request_for(large)) as (reader, incoming):
        sources, rest = plan_of(incoming)
        types = [frame.type for frame in incoming]
        status = reader._process.wait(2)

    assert [source["path"] for source in sources] == ["events.db"]
    assert rest["waves"] == 1
    assert types[-1] == frames.END
    assert types.count(frames.END_OF_ENTRY) == types.count(frames.CHECK) == 1
    assert status == 0


# Readers that are none.


class Pretender:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def says(self, *said: bytes, then: str = "") -> None:
        (self._folder / "frames").write_bytes(b"".join(said))
        script = self._folder / "python"
        script.write_text(f"#!/bin/sh\ncat >/dev/null\ncat {self._folder}/frames\n{then}\n")
        script.chmod(0o755)

    def heard(self) -> list[int]:
        """The types of the frames that come out of it."""
        with reading(Request("plan")) as (_, incoming):
            return [frame.type for frame in incoming]

    def failure(self) -> BackupError:
        with pytest.raises(BackupError) as caught:
            self.heard()
        return caught.value


@pytest.fixture
def pretender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretender:
    """What stands in the reader's place: a script that takes the request and says what it is told to."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return Pretender(tmp_path)


ALIVE = frames.encode_document(frames.ALIVE, {})
END = frames.encode_document(frames.END, {"entries": 0, "size_bytes": 0})


def error_frame(code: str) -> bytes:
    return frames.encode_document(frames.ERROR, {"code": code, "message": "why", "source": "a.db"})


@pytest.mark.parametrize("status", [0, 1, 7])
def test_an_end_frame_and_the_end_of_its_pipe_are_the_end(status: int, pretender: Pretender) -> None:
    """Its exit status proves nothing, neither way."""
    pretender.says(ALIVE, END, then=f"exit {status}")

    assert pretender.heard() == [frames.ALIVE, frames.END]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([], "reader_died"),
        ([ALIVE], "reader_died"),
        ([ALIVE, END[:-1]], "reader_died"),
        ([ALIVE, END[:3]], "reader_died"),
        ([END, b"\x06"], "reader_protocol"),
        ([END, END], "reader_protocol"),
        ([b"Traceback (most recent call last)"], "reader_protocol"),
        ([b"\x01\x00\x00\x00\x02[]"], "reader_protocol"),
    ],
)
def test_anything_else_is_a_failure(said: list[bytes], code: str, pretender: Pretender) -> None:
    """Also with the best of exit statuses."""
    pretender.says(*said, then="exit 0")

    failure = pretender.failure()

    assert isinstance(failure, ReaderError)
    assert failure.code == code


def test_what_it_says_went_wrong_comes_out(pretender: Pretender) -> None:
    """Each code as the error that the layers above know."""
    kinds = {}
    for code in ("data_dir_missing", "no_match", "source_failed"):
        pretender.says(error_frame(code))
        failure = pretender.failure()
        assert (failure.code, failure.message) == (code, "why")
        kinds[code] = type(failure)

    assert kinds == {"data_dir_missing": DataDirError, "no_match": NoMatchError, "source_failed": ReaderError}


def test_a_pipe_that_somebody_else_holds_open_does_not_hang_the_end(pretender: Pretender) -> None:
    """A process that the host forked at the wrong moment has inherited its writing end."""
    pretender.says(END, then="sleep 20 2>/dev/null & exec 2>&-; exit 0")

    assert pretender.heard() == [frames.END]


def test_a_talkative_one_does_not_stop_at_its_stderr(pretender: Pretender) -> None:
    """It is drained, and the last of it is kept."""
    flood = "yes 0123456789abcde | head -n 200000 >&2; echo the last words >&2"
    pretender.says(then=f"{flood}; cat {pretender._folder}/later")
    (pretender._folder / "later").write_bytes(END)

    with reading(Request("plan")) as (reader, incoming):
        types = [frame.type for frame in incoming]

    assert types == [frames.END]
    assert reader.stderr.endswith("the last words")
    assert len(reader.stderr) <= 64 * 1024


def test_without_an_interpreter_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen application, or one whose Python was upgraded away under it."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-such-python"))

    with pytest.raises(ReaderError) as caught:
        take(backup_of(tmp_path))

    assert caught.value.code == "reader_start"
