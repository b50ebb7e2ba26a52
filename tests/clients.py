"""Foreign programs: curl and wget, whom a failure must reach, and what unpacks an archive."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
from collections.abc import Callable
from pathlib import Path

from harness import Archive, Config, Service, run, tool
from processes import wait_until

SLOW: Config = {"limits": {"read_bytes_per_second": 12_000_000}}  # `big_dir` takes about 2 s


def fetch_and(strike: Callable[[], None], command: list[str], target: Path) -> int:
    """The exit status of a client to whom `strike` happens in mid-stream."""
    client = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until("the stream's first bytes", lambda: target.exists() and target.stat().st_size > 300_000)
        assert client.poll() is None, "it ended before anything happened to it"
        strike()
        return client.wait(30)
    finally:
        client.kill()
        client.wait()


def curl(service: Service, target: Path, query: str = "", *options: str) -> list[str]:
    url = service.backup_url + query
    return [tool("curl"), "-q", "-sSfN", "--noproxy", "*", *options, "-o", str(target), url]


def wget(service: Service, target: Path, query: str = "", *options: str) -> list[str]:
    url = service.backup_url + query
    return [tool("wget"), "--no-config", "--no-proxy", "-q", *options, "-O", str(target), url]


def assert_looks_failed(body: bytes, archive: Path) -> None:
    """Nothing was appended to what had been sent, and nobody takes it for an archive."""
    assert b"host-error" not in body
    assert b"HTTP/1." not in body
    assert b'"code"' not in body[-4096:]
    assert b"PK\x05\x06" not in body[-65536:]
    assert run(tool("unzip"), "-tqq", archive).returncode != 0


def status_of(service: Service) -> int:
    """The status of a GET whose body nobody wants."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)) as connection:
        connection.request("GET", "/api/backup")
        return connection.getresponse().status


def by_unzip(archive: Path, target: Path) -> None:
    assert run(tool("unzip"), "-q", archive, "-d", target).returncode == 0


def by_7z(archive: Path, target: Path) -> None:
    assert run(tool("7z"), "x", "-y", f"-o{target}", archive).returncode == 0


def by_bsdtar(archive: Path, target: Path) -> None:
    target.mkdir()
    assert run(tool("bsdtar"), "-xf", archive, "-C", target).returncode == 0


def by_python(archive: Path, target: Path) -> None:
    Archive(archive.read_bytes()).zip.extractall(target)


EXTRACTORS: tuple[Callable[[Path, Path], None], ...] = (by_unzip, by_7z, by_bsdtar, by_python)


def files_below(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
