"""What the black-box tests share: the real command in its own process, HTTP, archives, foreign tools."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from processes import children, marked, wait_until

TESTS = Path(__file__).resolve().parent
HOSTS = TESTS / "hosts"
Config = Mapping[str, Mapping[str, object]]


def tool(name: str) -> str:
    """The path of a foreign tool; without it the test is skipped, in CI (`CI` is set) it fails."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


Done = subprocess.CompletedProcess[str]


def run(*command: str | Path, cwd: Path | None = None, seconds: float = 120) -> Done:
    """A command to its end, whatever its exit status."""
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def toml(config: Config) -> str:
    """A configuration file; JSON's scalars and lists are TOML's too."""
    return "".join(
        f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for section, keys in config.items()
    )


def drain(peer: socket.socket) -> tuple[bytes, bool]:
    """What still comes, and whether the connection was reset (not closed) at its end."""
    received = bytearray()
    try:
        while piece := peer.recv(65536):
            received += piece
    except ConnectionResetError:
        return bytes(received), True
    return bytes(received), False


@dataclass(frozen=True)
class Answer:
    """A whole response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:  # whatever the service sent; each test asserts on what it needs
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    def archive(self) -> Archive:
        assert self.status == 200, self.body[:400]
        return Archive(self.body)


class Archive:
    """A fetched archive as Python's zipfile reads it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.zip = zipfile.ZipFile(io.BytesIO(data))
        self.names = self.zip.namelist()
        self.manifest: dict[str, Any] = json.loads(self.zip.read("MANIFEST.json"))

    def read(self, name: str) -> bytes:
        return self.zip.read(name)

    def source(self, name: str) -> dict[str, Any]:
        found = [source for source in self.manifest["sources"] if source["name"] == name]
        assert len(found) == 1, f"{name} stands {len(found)} times in {self.manifest['sources']}"
        return found[0]  # type: ignore[no-any-return]  # JSON

    def statuses(self) -> dict[str, str]:
        return {source["name"]: source["status"] for source in self.manifest["sources"]}

    def database(self, name: str, folder: Path) -> Path:
        """The entry as a file of its own that SQLite can open."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / Path(name).name
        path.write_bytes(self.read(name))
        return path

    def save(self, path: Path) -> Path:
        path.write_bytes(self.data)
        return path


class Service:
    """`mothership-backup serve`, or a host of tests/hosts, as a process group of its own.

    A word in PATH, which every reader inherits too, marks all that it starts, also when its parent is gone.
    """

    def __init__(self, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.mark = f"/nowhere/{secrets.token_hex(8)}"
        self._log = log
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MOTHERSHIP_BACKUP")}
        environment |= {"PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":" + self.mark, **(environ or {})}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = self.process.pid
        try:
            wait_until("the service's URL", lambda: self._url() or self.process.poll() is not None, 30)
            self.url = self._url()
            assert self.url, f"no URL on stderr: {self.log()}"
        except BaseException:
            self.kill()
            raise
        self.port = int(self.url.rpartition(":")[2])
        self.backup_url = self.url + "/api/backup"

    def _url(self) -> str:
        found = re.search(r"listens on (https?://[^\s/]+:\d+)\s", self.log())
        return found[1] if found else ""

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def request(
        self,
        target: str = "/api/backup",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        *,
        seconds: float = 60,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, target, headers=dict(headers or {}))
            response = connection.getresponse()
            head = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, head, response.read())
        finally:
            connection.close()

    def archive(self, query: str = "", *, seconds: float = 60) -> Archive:
        return self.request("/api/backup" + ("?" + query if query else ""), seconds=seconds).archive()

    def connect(self, request: str, *, receive_bytes: int = 0, seconds: float = 30) -> socket.socket:
        """A socket that has sent this request (without its empty line) and read nothing."""
        peer = socket.socket()
        if receive_bytes:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        peer.settimeout(seconds)
        peer.connect(("127.0.0.1", self.port))
        peer.sendall(request.encode() + b"\r\n\r\n")
        return peer

    def stream(self, target: str = "/api/backup", *, version: str = "1.1") -> socket.socket:
        """A backup that has begun: its head has been read up to the first bytes that came with it."""
        peer = self.connect(f"GET {target} HTTP/{version}\r\nHost: localhost", receive_bytes=65536)
        head = peer.recv(4096)
        assert head.split()[1] == b"200", head
        return peer

    def readers(self) -> list[int]:
        return children(self.pid)

    def reader(self) -> int:
        """The one reader that runs now."""
        wait_until("a reader process", self.readers)
        found = self.readers()
        assert len(found) == 1, found
        return found[0]

    def marked(self) -> list[int]:
        """Every living process that this service started, itself included."""
        return marked(self.mark)

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM to this one process, as a service manager without groups does; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.ended(seconds)

    def ended(self, seconds: float) -> int:
        """Its exit status, once it has been told to end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {seconds} s: {self.log()}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def assert_nothing_left(self) -> None:
        """No process that it started lives on; those that do are ended here."""
        with contextlib.suppress(AssertionError):
            wait_until("its processes to end", lambda: not self.marked(), 3)
        left = self.marked()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"{len(left)} processes were left behind"


@contextlib.contextmanager
def serving(
    folder: Path,
    data_dir: Path,
    config: Config | None = None,
    *args: str,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    """The real command over a data directory; it must end by SIGTERM with status 0 and leave nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["-m", "mothership_backup", "serve", "--data-dir", str(data_dir), "--port", "0", *args]
    if config is not None:
        file = folder / "config.toml"
        file.write_text(toml(config))
        command += ["--config", str(file)]
    yield from _until_stopped(Service(command, folder / "service.log", environ))


@contextlib.contextmanager
def hosting(
    folder: Path, host: str, data_dir: Path, config: Config | None = None, *args: str
) -> Iterator[Service]:
    """A host application of tests/hosts with the backup mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**(config or {}), "data": {"dir": str(data_dir), **(config or {}).get("data", {})}}
    command = [str(HOSTS / host), json.dumps(settings), *args]
    yield from _until_stopped(Service(command, folder / "host.log"))


def _until_stopped(service: Service) -> Iterator[Service]:
    try:
        yield service
        ended_by_test = service.process.poll() is not None
        if not ended_by_test:
            assert service.stop() == 0, service.log()
    finally:
        service.kill()
        service.assert_nothing_left()


class MakeDatabase(Protocol):
    def __call__(
        self,
        path: Path,
        journal: str = "wal",
        rows: int = 1000,
        page_size: int = 4096,
        random_bytes: int = 0,
    ) -> Path: ...


def make_data_dir(folder: Path, make_database: MakeDatabase) -> Path:
    """A WAL database, a rollback-journal database, a floor plan."""
    make_database(folder / "events.db")
    make_database(folder / "nodes.db", journal="delete", rows=200)
    (folder / "floor_plan" / "attic").mkdir(parents=True)
    (folder / "floor_plan" / "ground.svg").write_text("<svg>ground</svg>\n")
    (folder / "floor_plan" / "attic" / "beams.json").write_text("{}\n")
    return folder


class StartService(Protocol):
    def __call__(self, data_dir: Path, config: Config | None = None, *args: str) -> Service: ...
