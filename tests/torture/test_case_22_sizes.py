"""Case 22: small and huge, few and many: byte-exact, and memory does not follow.

What tests/test_large.py (over a gibibyte at page sizes 512, 4096, 65536: the page of SQLite's locks),
tests/test_archive_length.py (65,534 to 65,536 entries, entries and offsets around 2 and 4 GiB, in unzip, 7z and Python)
and tests/test_waves.py (450 databases) hold is not repeated; here is the running command with both processes measured.

Seen on a copy with waves of 100,000: only the limit of descriptors made waves, of thousands.
Seen before the mend: 70,000 files took 174 MiB (deflate) and 203 MiB (stored) in the
service, whose manifest and sums were each made whole; now 111 and 120 MiB.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import Archive, Config, MakeDatabase, Service, StartService, run, tool
from processes import Samples, peak_memory_bytes, wait_until

MIB = 1024**2
GIB = 1024**3
MOST_BYTES = 128 * MIB
SAME_BYTES = 64 * MIB


@dataclass
class Taken:
    """One backup that was read to its end."""

    path: Path
    size_bytes: int
    peaks: dict[str, int]
    """Of the service and its reader, in bytes."""

    def total(self) -> int:
        return sum(self.peaks.values())


def taken(service: Service, target: Path, query: str = "strict=true", *, seconds: float = 100) -> Taken:
    """Fetched in small pieces, with the peaks of both processes meanwhile."""
    wait_until("no reader", lambda: not service.readers())
    peaks = {"service": 0, "reader": 0}

    def sample() -> list[int]:
        peaks["service"] = max(peaks["service"], peak_memory_bytes(service.pid))
        peaks["reader"] = max([peaks["reader"], *map(peak_memory_bytes, service.readers())])
        return []

    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=seconds)
    with Samples(sample), target.open("wb") as file:
        connection.request("GET", f"/api/backup?{query}")
        response = connection.getresponse()
        assert response.status == 200, response.read()
        shutil.copyfileobj(response, file, MIB)
        size_bytes = file.tell()
    connection.close()
    print(target.name, {name: f"{peak / MIB:.0f} MiB" for name, peak in peaks.items()})
    assert peaks["reader"], "no reader was seen"
    return Taken(target, size_bytes, peaks)


def make_sparse(path: Path, seed: Path, size: int, page_size: int) -> Path:
    """A database of ``size`` bytes that takes no room: pages that belong to nothing, with a mark here and there."""
    shutil.copy(seed, path)
    pages = size // page_size
    with path.open("r+b") as file:
        file.truncate(pages * page_size)
        counter = file.read(28)[24:28]
        file.seek(28)
        file.write(struct.pack(">I", pages))  # the size in pages, which holds while byte 92 is byte 24
        file.seek(92)
        file.write(counter)
        for offset in range(256 * MIB, pages * page_size, 512 * MIB):
            file.seek(offset + 8)
            file.write(offset.to_bytes(8, "big"))
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def baseline(tmp_path: Path, make_database: MakeDatabase, service: StartService) -> int:
    """What 10 MB in one database take."""
    make_database(tmp_path / "ten" / "a.db", rows=10_000, random_bytes=900)
    return taken(service(tmp_path / "ten"), tmp_path / "ten.zip").total()


@pytest.mark.long
@pytest.mark.live_engine
@pytest.mark.parametrize(
    ("gib", "page_size", "compression"), [(2, 4096, "stored"), (2, 65536, "deflate"), (8, 65536, "deflate")]
)
def test_gigabytes_take_the_memory_of_megabytes(
    gib: int,
    page_size: int,
    compression: str,
    baseline: int,
    tmp_path: Path,
    make_database: MakeDatabase,
    service: StartService,
) -> None:
    """And the SHA-256 in the manifest is the file's, the page of SQLite's locks at 1 GiB included."""
    (tmp_path / "data").mkdir()
    seed = make_database(tmp_path / "seed.db", rows=1_000, page_size=page_size)
    path = make_sparse(tmp_path / "data" / "a.db", seed, gib * GIB, page_size)

    with ThreadPoolExecutor() as beside:
        expected = beside.submit(sha256_of, path)
        backup = taken(
            service(tmp_path / "data"), tmp_path / "a.zip", f"check=none&compression={compression}"
        )

    with zipfile.ZipFile(backup.path) as opened:
        sums = opened.read("SHA256SUMS").decode()
        assert opened.getinfo("a.db").file_size == gib * GIB
    assert f"{expected.result()}  a.db\n" in sums
    assert backup.total() < MOST_BYTES, backup.peaks
    assert abs(backup.total() - baseline) < SAME_BYTES, (backup.peaks, baseline)
    backup.path.unlink()


@pytest.mark.long
@pytest.mark.live_engine
def test_an_entry_over_4_gib_is_whole_for_every_tool(
    tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """From the running service, deflated; unzip, 7z and Python count to the last byte."""
    (tmp_path / "data").mkdir()
    seed = make_database(tmp_path / "seed.db", rows=100, page_size=65536)
    size = 4 * GIB + 64 * MIB
    make_sparse(tmp_path / "data" / "a.db", seed, size, 65536)
    make_database(tmp_path / "data" / "b.db", rows=100)

    backup = taken(service(tmp_path / "data"), tmp_path / "a.zip", "check=none")

    for command in (["unzip", "-tqq"], ["7z", "t"]):
        tested = run(tool(command[0]), *command[1:], backup.path, seconds=60)
        assert tested.returncode == 0, tested.stdout[-500:] + tested.stderr[-500:]
    with zipfile.ZipFile(backup.path) as opened:
        assert opened.getinfo("a.db").file_size == size
        assert opened.read("b.db") == (tmp_path / "data" / "b.db").read_bytes()


@pytest.mark.long
@pytest.mark.live_engine
@pytest.mark.parametrize("count", [200, 5_000])
def test_many_databases(
    count: int, baseline: int, tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """In waves of 200: all of them, each its own bytes, and no more memory for 5,000 than for 200."""
    data = tmp_path / "data"
    data.mkdir()
    seed = make_database(tmp_path / "seed.db", rows=10).read_bytes()
    for number in range(count):
        content = bytearray(seed)
        content[60:64] = struct.pack(">I", number)  # user_version
        (data / f"{number:04d}.db").write_bytes(content)
    running = service(data)

    backup = taken(running, tmp_path / "many.zip", "strict=true&check=none")
    archive = Archive(backup.path.read_bytes())

    assert len(archive.names) == count + 3
    assert archive.manifest["instant"].get("waves", 1) == (count + 199) // 200
    for number in range(0, count, 97):
        name = f"{number:04d}.db"
        assert archive.read(name) == (data / name).read_bytes()
        assert archive.source(name)["user_version"] == number
    assert archive.zip.testzip() is None
    assert backup.total() < MOST_BYTES + (64 * MIB if count == 200 else SAME_BYTES), backup.peaks
    assert abs(backup.total() - baseline) < 2 * SAME_BYTES, (backup.peaks, baseline)


@pytest.mark.long
@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_seventy_thousand_files(
    compression: str, tmp_path: Path, make_database: MakeDatabase, service: StartService
) -> None:
    """More than 16 bits can count: from a real tree, in 128 MiB for both processes."""
    plan = tmp_path / "data" / "floor_plan"
    make_database(tmp_path / "data" / "a.db", rows=100)
    for folder in range(100):
        (plan / f"{folder:02d}").mkdir(parents=True)
        for number in range(700):
            (plan / f"{folder:02d}" / f"{number}.svg").write_bytes(b"%d" % (folder * 700 + number))
    config: Config = {"limits": {"stall_timeout_seconds": 60}}
    running = service(tmp_path / "data", config)

    backup = taken(running, tmp_path / "files.zip", f"strict=true&compression={compression}")

    with zipfile.ZipFile(backup.path) as opened:
        names = opened.namelist()
        assert len(names) == 70_000 + 4
        for number in range(0, 70_000, 997):
            name = f"floor_plan/{number // 700:02d}/{number % 700}.svg"
            assert opened.read(name) == b"%d" % number
    for command in (["unzip", "-tqq"], ["7z", "t"]):
        tested = run(tool(command[0]), *command[1:], backup.path, seconds=100)
        assert tested.returncode == 0, tested.stdout[-500:] + tested.stderr[-500:]
    assert max(backup.peaks.values()) < MOST_BYTES, backup.peaks
