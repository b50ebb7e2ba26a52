"""`verify` as a script meets it: exit code and reason, no trust in what an archive says of itself, nothing left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archives import (
    Item,
    Manifest,
    as_ours,
    command,
    invoked,
    judged,
    manifest_for,
    plain_zip,
    raw_zip,
    refused,
    repacked,
)
from harness import MakeDatabase, run, tool
from mothership_backup.errors import ArchiveError
from mothership_backup.reader.sqlite import choose_library
from mothership_backup.verify.archive_file import open_archive
from mothership_backup.verify.contents import read_contents
from mothership_backup.verify.scratch import Scratch, ScratchFile
from mothership_backup.verify.verdict import verify
from processes import open_paths, wait_until
from support import archive_of
from test_check import add_collation, flip_a_page, unsort
from test_cli import environment
from test_pace import slow_to_check

COMPRESSIONS = pytest.mark.parametrize("compression", ["deflate", "stored"])
FILES = {"a.json": b"{}\n" * 9, "b.svg": b"<svg/>"}


def lines(result: subprocess.CompletedProcess[bytes]) -> list[str]:
    """What it said on stderr, without its own name."""
    return [line.removeprefix("mothership-backup: ") for line in result.stderr.decode().splitlines()]


@pytest.fixture
def whole(data_dir: Path, tmp_path: Path) -> Path:
    return archive_of(data_dir).save(tmp_path / "whole.zip")


@pytest.fixture
def damaged_dir(data_dir: Path, make_database: MakeDatabase) -> Path:
    flip_a_page(make_database(data_dir / "flipped.db", rows=5000))
    return data_dir


# The command.


@COMPRESSIONS
def test_a_whole_archive(compression: str, data_dir: Path, tmp_path: Path) -> None:
    """Exit code 0 and one line."""
    path = archive_of(data_dir, compression=compression).save(tmp_path / "whole.zip")

    result = command("verify", path)

    assert result.returncode == 0
    assert result.stdout == b""
    assert len(lines(result)) == 1
    assert lines(result)[0].startswith(f"{path}: whole: 2 databases, 2 files, ")


def test_json_says_the_same_of_each_source(whole: Path) -> None:
    """On stdout; what is there to read stays on stderr."""
    result = invoked("verify", whole, "--json")

    document = json.loads(result.stdout)
    assert result.returncode == 0
    assert (document["verdict"], document["complete"], document["has_manifest"]) == ("whole", True, True)
    assert document["archive_bytes"] == whole.stat().st_size
    assert {source["name"]: (source["kind"], source["status"]) for source in document["sources"]} == {
        "events.db": ("database", "ok"),
        "nodes.db": ("database", "ok"),
        "floor_plan/attic/beams.json": ("file", "ok"),
        "floor_plan/ground.svg": ("file", "ok"),
    }
    assert document["sources"][0]["check"] == {"verdict": "ok", "text": ""}


def test_json_of_what_is_refused(tmp_path: Path) -> None:
    """With the code that names the reason."""
    (tmp_path / "a.zip").write_bytes(b"<html>")

    result = invoked("verify", tmp_path / "a.zip", "--json")

    assert result.returncode == 4
    assert json.loads(result.stdout) == {
        "archive": str(tmp_path / "a.zip"),
        "verdict": "not_whole",
        "error": {"code": "not_a_zip", "message": "it is no ZIP archive: it looks like a web page, or XML"},
    }
    assert lines(result) == [f"{tmp_path / 'a.zip'}: it is no ZIP archive: it looks like a web page, or XML"]


def test_a_pipe_and_its_limit(whole: Path) -> None:
    """As in `curl … | mothership-backup verify -`; a stream without an end is not kept without an end."""
    good = command("verify", "-", stdin=whole.read_bytes())
    long = command("verify", "-", "--max-bytes", "1000", "--json", stdin=whole.read_bytes())
    nothing = command("verify", "-")

    assert (good.returncode, lines(good)[0].partition(":")[0]) == (0, "standard input")
    assert (long.returncode, lines(long)) == (4, ["standard input: it is longer than --max-bytes (1000)"])
    assert json.loads(long.stdout)["error"]["code"] == "too_large"
    assert (nothing.returncode, lines(nothing)) == (4, ["standard input: it is empty"])


def test_a_named_pipe(whole: Path, tmp_path: Path) -> None:
    """Spooled like standard input."""
    os.mkfifo(tmp_path / "pipe.zip")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe.zip").write_bytes(whole.read_bytes()))
    writer.start()

    result = command("verify", tmp_path / "pipe.zip")

    writer.join()
    assert result.returncode == 0


def test_a_pipe_that_does_not_block(whole: Path) -> None:
    """Nothing there yet is not the end. Seen before the mend: `it is empty`, exit code 4."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "mothership_backup", "verify", "-"],
            env=environment({}),
            stdin=ours,
            capture_output=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)

    assert result.returncode == 1
    assert b"Resource temporarily unavailable" in result.stderr


def test_max_bytes_is_of_the_file_and_of_what_is_in_it(tmp_path: Path) -> None:
    """Whether it comes as a file or as a stream."""
    path = tmp_path / "a.zip"
    path.write_bytes(as_ours({"zeros": bytes(100_000)}))

    for max_bytes, code in ((path.stat().st_size - 1, "too_large"), (100_000, "too_large")):
        with pytest.raises(ArchiveError) as caught:
            judged(path, max_bytes=max_bytes)
        assert caught.value.code == code
    assert judged(path, max_bytes=110_000).word == "whole"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("/nowhere/a.zip",), 1, "/nowhere/a.zip: No such file or directory"),
        (("/dev",), 1, "/dev: Is a directory"),
        (("/dev/null", "--check", "deep"), 2, "--check: 'deep' is not none, quick or full"),
    ],
)
def test_what_says_nothing_about_an_archive(arguments: tuple[str, ...], code: int, message: str) -> None:
    """Exit codes 1 and 2, which are not 4."""
    result = invoked("verify", *arguments)

    assert (result.returncode, lines(result)) == (code, [message])


def test_no_room_says_nothing_about_an_archive(whole: Path, tmp_path: Path) -> None:
    """Exit code 1, with the remedy: a limit stands for the full disk."""
    result = subprocess.run(
        ["prlimit", "--fsize=8192", sys.executable, "-m", "mothership_backup", "verify", str(whole)],
        env=environment({}),
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 1
    assert lines(result) == ["the archive cannot be unpacked here: File too large"]


# Databases.


@pytest.mark.parametrize("check", ["none", "quick"])
def test_a_damaged_database(check: str, damaged_dir: Path, tmp_path: Path) -> None:
    """Exit code 4, by name; what the backup's own check found is said to be older than the archive."""
    path = archive_of(damaged_dir, check=check).save(tmp_path / "a.zip")

    result = invoked("verify", path)

    assert result.returncode == 4
    assert lines(result)[0].startswith("flipped.db: SQLite finds it damaged: ")
    assert ("(it was so when it was backed up)" in lines(result)[0]) == (check == "quick")
    assert lines(result)[-1].startswith(f"{path}: damaged: 3 databases, 2 files, ")


def test_what_was_missing_already(damaged_dir: Path, tmp_path: Path) -> None:
    """Exit code 3 when the backup lacked something, 4 when something is damaged besides."""
    (damaged_dir / "link.db").symlink_to("events.db")
    both = archive_of(damaged_dir, check="none").save(tmp_path / "both.zip")
    (damaged_dir / "flipped.db").unlink()
    lacking = archive_of(damaged_dir).save(tmp_path / "lacking.zip")

    incomplete, damaged = invoked("verify", lacking), invoked("verify", both, "--json")

    assert incomplete.returncode == 3
    assert lines(incomplete)[0].startswith("link.db: failed when it was backed up: a symbolic link")
    assert lines(incomplete)[1].startswith(f"{lacking}: incomplete: 2 databases, 2 files, ")
    assert damaged.returncode == 4
    document = json.loads(damaged.stdout)
    assert (document["verdict"], document["complete"]) == ("damaged", False)
    assert [source["name"] for source in document["failed"]] == ["link.db"]
    assert [s["name"] for s in document["sources"] if s["status"] == "damaged"] == ["flipped.db"]


def test_a_database_that_only_its_application_can_check(data_dir: Path, tmp_path: Path) -> None:
    """A collation that SQLite does not know: said, and no damage."""
    add_collation(data_dir / "nodes.db")
    path = archive_of(data_dir).save(tmp_path / "a.zip")

    result = invoked("verify", path)

    assert result.returncode == 0
    assert lines(result)[0] == "nodes.db: could not be checked: no such collation sequence: HOUSE"


def test_each_check_finds_its_own(data_dir: Path, tmp_path: Path) -> None:
    """`none` proves bytes only, `quick` finds a flipped page, `full` an index that says something else."""
    flip_a_page(data_dir / "events.db")
    unsort(data_dir / "nodes.db")
    path = archive_of(data_dir, check="none").save(tmp_path / "a.zip")

    damaged = {kind: [f.name for f in judged(path, kind).damaged] for kind in ("none", "quick", "full")}

    assert damaged == {"none": [], "quick": ["events.db"], "full": ["events.db", "nodes.db"]}


@pytest.mark.parametrize("versions", [b"\x01\x01", b"\x02\x02", b"\x01\x02"])
def test_a_database_of_either_journal_mode_is_good(
    versions: bytes, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """Also one that was in WAL mode, whose WAL is in it already."""
    content = bytearray(make_database(tmp_path / "a.db", rows=50).read_bytes())
    content[18:20] = versions
    (tmp_path / "a.zip").write_bytes(as_ours({"a.db": bytes(content)}))

    assert judged(tmp_path / "a.zip", "full").word == "whole"


def test_a_database_that_no_sqlite_opens(tmp_path: Path, make_database: MakeDatabase) -> None:
    """Its read version is none. Seen before the mend: it was written over for the check, which found nothing."""
    content = bytearray(make_database(tmp_path / "a.db", rows=50).read_bytes())
    content[19] = 9
    (tmp_path / "a.zip").write_bytes(as_ours({"a.db": bytes(content)}))

    assert [finding.name for finding in judged(tmp_path / "a.zip").damaged] == ["a.db"]


def test_what_is_called_a_database_must_be_one(tmp_path: Path) -> None:
    """The manifest says so, and SQLite cannot open it; an empty file is a database without pages."""
    (tmp_path / "a.zip").write_bytes(as_ours({"a.db": b"no database" * 100, "empty.db": b""}))

    assert [finding.name for finding in judged(tmp_path / "a.zip").damaged] == ["a.db"]


def test_a_schema_is_input(data_dir: Path) -> None:
    """Nothing in it may run, no file of it is mapped into memory."""
    wanted = {"trusted_schema": 0, "cell_size_check": 1, "mmap_size": 0}
    place = ScratchFile(choose_library())
    try:
        os.write(place.fd, (data_dir / "nodes.db").read_bytes())

        assert place.connect().execute("SELECT count(*) FROM reading").fetchone() == (200,)
        for pragma, value in wanted.items():
            assert place.connect().execute(f"PRAGMA {pragma}").fetchone() == (value,), pragma
    finally:
        place.close()


# A manifest that lies.

Change = Callable[[Manifest, dict[str, bytes]], Any]


def second(**fields: Any) -> Change:
    return lambda manifest, files: manifest["sources"][1].update(fields)


def without(key: str) -> Change:
    return lambda manifest, files: manifest["sources"][1].pop(key)


def head(**fields: Any) -> Change:
    return lambda manifest, files: manifest.update(fields)


LIES: dict[str, tuple[str, Change]] = {
    "that it is complete": ("manifest", second(status="failed")),
    "that it is not": ("manifest", head(complete=False)),
    "a longer file": ("contents", second(size_bytes=7)),
    "a shorter file": ("contents", second(size_bytes=5)),
    "another SHA-256": ("contents", second(sha256="0" * 64)),
    "another name": ("contents", second(name="c.svg")),
    "a name that is not there": ("contents", lambda m, f: m["sources"].append(m["sources"][1] | {"name": "c"})),
    "one less": ("contents", lambda m, f: m["sources"].pop()),
    "none": ("contents", head(sources=[])),
    "the same twice": ("contents", lambda m, f: m["sources"].append(m["sources"][1])),
    "another order": ("contents", lambda m, f: m["sources"].reverse()),
    "one more in the archive": ("contents", lambda m, f: f.update(c=b"")),
    "a failed one that is there": ("contents", lambda m, f: (without("sha256")(m, f), second(status="skipped")(m, f))),
    "ok without a SHA-256": ("manifest", without("sha256")),
    "a SHA-256 that is none": ("manifest", second(sha256="0" * 63 + "G")),
    "a SHA-256 that is a number": ("manifest", second(sha256=0)),
    "a size below nothing": ("manifest", second(size_bytes=-1)),
    "a size that is no number": ("manifest", second(size_bytes=True)),
    "a size without end": ("manifest", second(size_bytes=1e400)),
    "no name": ("manifest", without("name")),
    "a name that is half a character": ("manifest", second(name="\ud800")),
    "no kind": ("manifest", without("kind")),
    "a status of its own": ("manifest", second(status="fine")),
    "pages that are none": ("manifest", second(page_count="many")),
    "an error that is none": ("manifest", second(error="none")),
    "a check that is none": ("manifest", second(check=[])),
    "a source that is none": ("manifest", lambda m, f: m["sources"].append("a.db")),
    "sources that are none": ("manifest", head(sources={})),
    "a time that is none": ("manifest", head(created_at=0)),
    "a version that is half a character": ("manifest", head(app_version="\udcff")),
    "another version": ("contents", head(app_version="1.3")),
    "a generator that is none": ("manifest", head(generator="us")),
    "no instant": ("manifest", lambda m, f: m.pop("instant")),
    "complete that is a word": ("manifest", head(complete="yes")),
    "a newer format": ("newer_format", head(format=2)),
    "an older format": ("manifest", head(format=0)),
    "a format that is a word": ("manifest", head(format="1")),
    "no format": ("manifest", lambda m, f: m.pop("format")),
}  # fmt: skip


@pytest.mark.parametrize(("code", "change"), LIES.values(), ids=LIES)
def test_a_manifest_that_lies(code: str, change: Change, tmp_path: Path) -> None:
    """Each is refused with its reason.

    Seen before the mends: half a character was a UnicodeEncodeError.
    """
    manifest, files = manifest_for(FILES), dict(FILES)
    change(manifest, files)

    found, reason = refused(as_ours(files, manifest), tmp_path)

    assert (found, bool(reason)) == (code, True)


def test_a_sha256_that_everything_else_agrees_with(tmp_path: Path) -> None:
    """The bytes are what counts."""
    manifest = manifest_for(FILES)
    true, manifest["sources"][1]["sha256"] = manifest["sources"][1]["sha256"], "0" * 64
    data = as_ours(FILES, manifest, sums=lambda good: good.replace(true.encode(), b"0" * 64))

    assert refused(data, tmp_path) == ("damaged", "b.svg: its SHA-256 is not the one in MANIFEST.json")


def test_a_manifest_that_does_not_lie(tmp_path: Path) -> None:
    """So the lies above are what is refused."""
    (tmp_path / "a.zip").write_bytes(as_ours(FILES))

    assert judged(tmp_path / "a.zip").word == "whole"


def test_a_folder_is_no_empty_file(tmp_path: Path) -> None:
    """Seen before the mend: it was accepted, with whatever SHA-256 the manifest claimed."""
    manifest = manifest_for({"a": b""})
    data = as_ours({"a/": b""}, manifest, sums=lambda good: good.replace(b"  a/\n", b"  a\n"))

    assert refused(data, tmp_path)[0] == "contents"


TEXTS = {
    "nothing": b"",
    "no JSON": b"hello",
    "half of it": json.dumps(manifest_for(FILES)).encode()[:-20],
    "a list": b"[]",
    "null": b"null",
    "a hundred thousand lists": b"[" * 100_000,
    "a hundred thousand objects": b'{"a":' * 100_000,
    "a number without end": b'{"format": ' + b"9" * 10_000 + b"}",
    "no UTF-8": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_manifest_that_is_none(text: bytes, tmp_path: Path) -> None:
    """Whatever the parser makes of it."""
    assert refused(as_ours(FILES, text), tmp_path)[0] == "manifest"


def test_a_manifest_without_end(tmp_path: Path) -> None:
    """It would be held in memory: what claims more than that is not unpacked."""
    own = [Item(b"VERSION"), Item(b"MANIFEST.json", both={"size": 2**31, "method": 8}), Item(b"SHA256SUMS")]

    assert refused(raw_zip(*own), tmp_path)[0] == "too_large"


OWN = {"VERSION": b"1.2\n", "MANIFEST.json": json.dumps(manifest_for({})).encode(), "SHA256SUMS": b""}


@pytest.mark.parametrize(
    "names",
    [
        ("VERSION", "SHA256SUMS"),
        ("VERSION", "MANIFEST.json"),
        ("MANIFEST.json", "SHA256SUMS"),
        ("SHA256SUMS", "MANIFEST.json", "VERSION"),
        ("VERSION", "MANIFEST.json", "SHA256SUMS", "more"),
    ],
    ids=" ".join,
)
def test_only_some_of_our_own_entries(names: tuple[str, ...], tmp_path: Path) -> None:
    """Then somebody took one away, and it is no archive from before this program."""
    data = plain_zip({name: OWN.get(name, b"") for name in names})

    assert refused(data, tmp_path)[0] == "contents"


@pytest.mark.parametrize(
    "change",
    [
        lambda good: good + b"0" * 64 + b"  more\n",
        lambda good: good[: good.rindex(b"\n", 0, -1) + 1],
        lambda good: good[good.index(b"\n") + 1 :],
        lambda good: good[:-1],
        lambda good: good.replace(b"  ", b" *"),
        lambda good: b"f" * 64 + good[64:],
        lambda good: b"".join(reversed(good.splitlines(keepends=True))),
        lambda good: b"",
    ],
    ids=[
        "more",
        "less at its end",
        "less at its begin",
        "no line break",
        "binary",
        "another sum",
        "order",
        "none",
    ],
)
def test_sums_that_are_not_the_manifests(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """`sha256sum -c` would say something else than verify."""
    assert refused(as_ours(FILES, sums=change), tmp_path)[0] == "contents"


def test_a_version_that_is_not_the_manifests(tmp_path: Path) -> None:
    """Both are read by people."""
    assert refused(as_ours(FILES, version=b"1.3\n"), tmp_path)[0] == "contents"


def test_bytes_that_were_changed_with_their_sums(data_dir: Path, tmp_path: Path) -> None:
    """It is no signature: who can write the archive can write the sums."""

    def change(manifest: Manifest, files: dict[str, bytes]) -> None:
        files["floor_plan/ground.svg"] = b"<svg>grOund</svg>\n"
        good = manifest_for(files)["sources"]
        for source, true in zip(manifest["sources"], good, strict=True):
            source["sha256"] = true["sha256"]

    (tmp_path / "a.zip").write_bytes(repacked(archive_of(data_dir), change))

    assert judged(tmp_path / "a.zip").word == "whole"


# Archives from before this program.


def by_zipfile(path: Path) -> None:
    path.write_bytes(plain_zip({name: Path(name).read_bytes() for name in ("a.db", "plan/b.svg")}))


def by_zipfile_deflated(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in ("a.db", "plan", "plan/b.svg"):
            opened.write(name)


def by_zipfile_into_a_pipe(path: Path) -> None:
    """With data descriptors: it cannot go back to a header."""

    class Pipe(io.RawIOBase):
        content = b""

        def writable(self) -> bool:
            return True

        def write(self, piece: Any) -> int:
            self.content += bytes(piece)
            return len(piece)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.write("a.db")
        with opened.open("plan/b.svg", "w", force_zip64=True) as entry:
            entry.write(Path("plan/b.svg").read_bytes())
    path.write_bytes(pipe.content)


def by_zip(path: Path) -> None:
    assert run(tool("zip"), "-qr", path, "a.db", "plan", cwd=Path.cwd()).returncode == 0


def by_zip_stored(path: Path) -> None:
    assert run(tool("zip"), "-q0rX", path, "a.db", "plan", cwd=Path.cwd()).returncode == 0


def by_7z(path: Path) -> None:
    assert run(tool("7z"), "a", "-tzip", path, "a.db", "plan", cwd=Path.cwd()).returncode == 0


def by_bsdtar(path: Path) -> None:
    made = run(tool("bsdtar"), "--format", "zip", "-cf", path, "a.db", "plan", cwd=Path.cwd())
    assert made.returncode == 0


MAKERS = (
    *(by_zipfile, by_zipfile_deflated, by_zipfile_into_a_pipe),
    *(by_zip, by_zip_stored, by_7z, by_bsdtar),
)


@pytest.fixture
def old(tmp_path: Path, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database and a folder, below the current directory."""
    monkeypatch.chdir(tmp_path)
    make_database(tmp_path / "a.db", rows=5000)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "b.svg").write_text("<svg/>")
    return tmp_path / "old.zip"


@pytest.mark.parametrize("make", MAKERS)
def test_an_archive_of_another_program(make: Callable[[Path], None], old: Path) -> None:
    """Its databases are checked; one that is damaged is found."""
    make(old)
    good = judged(old)
    old.unlink()
    flip_a_page(Path("a.db"))
    make(old)

    assert [(finding.name, finding.is_database) for finding in good.findings if finding.size_bytes] == [
        ("a.db", True),
        ("plan/b.svg", False),
    ]
    assert (good.word, good.claims) == ("whole", None)
    assert [finding.name for finding in judged(old).damaged] == ["a.db"]


def test_the_command_says_that_nothing_says_what_should_be_there(old: Path) -> None:
    """Exit code 0, as far as that goes."""
    by_zip(old)

    result = invoked("verify", old, "--json")

    assert result.returncode == 0
    assert lines(result)[0].endswith(
        "has no manifest: nothing says what should be in it, so only what is there was proved"
    )
    assert json.loads(result.stdout)["has_manifest"] is False


# What is left.


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """An archive whose one database takes minutes to check."""
    slow_to_check(tmp_path / "data" / "slow.db", 300)
    return archive_of(tmp_path / "data", check="none").save(tmp_path / "slow.zip")


@contextlib.contextmanager
def checking(archive: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`verify` in mid-check, which has nothing in its folder for temporary files that has a name."""
    folder.mkdir()
    command = [sys.executable, "-m", "mothership_backup", "verify", str(archive)]
    environ = environment({"TMPDIR": str(folder)})
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE) as process:

        def is_checking() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read()
            threads = list(Path(f"/proc/{process.pid}/task").iterdir())
            return any(str(folder) in path for path in open_paths(process.pid)) and len(threads) > 1

        try:
            wait_until("a check", is_checking)
            assert os.listdir(folder) == []
            yield process
        finally:
            process.kill()  # not to be left behind by a test that fails


def test_killed_in_mid_check_it_leaves_nothing(slow: Path, tmp_path: Path) -> None:
    """What it unpacks to has no name."""
    with checking(slow, tmp_path / "tmp") as process:
        process.kill()

    assert os.listdir(tmp_path / "tmp") == []


def test_stopped_in_mid_check_it_ends_at_once(slow: Path, tmp_path: Path) -> None:
    """It does not wait for a verdict that nobody wants. Seen before the mend: it ended with the check."""
    with checking(slow, tmp_path / "tmp") as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)

    assert (process.returncode, said) == (1, b"mothership-backup: interrupted\n")
    assert os.listdir(tmp_path / "tmp") == []


def test_interrupted_as_a_check_begins_it_ends_the_check(slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal may come when its thread runs and nobody has been told. Seen: "interrupted", and minutes of CPU."""
    start = threading.Thread.start
    begun: list[threading.Thread] = []

    def start_interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("verify-check"):
            begun.append(thread)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_interrupted)
    with open_archive(str(slow)) as opened, pytest.raises(KeyboardInterrupt):
        verify(opened, read_contents(opened), check="quick", make_place=Scratch())

    begun[0].join(10)
    assert not begun[0].is_alive()


def test_a_signal_that_does_not_wake_it_is_looked_at(slow: Path) -> None:
    """As one that comes just before it waits does not. Here another thread gets it. Seen: it ended with the check."""
    main_thread = threading.get_ident()

    def is_waiting() -> bool:
        names = [thread.name for thread in threading.enumerate()]
        frame = sys._current_frames()[main_thread]
        return any(name.startswith("verify-check") for name in names) and frame.f_code.co_name == "wait"

    def strike() -> None:
        wait_until("the wait for the check", is_waiting)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop)
    striker = threading.Thread(target=strike)
    try:
        with open_archive(str(slow)) as opened:
            contents = read_contents(opened)
            striker.start()
            with pytest.raises(KeyboardInterrupt):
                verify(opened, contents, check="quick", make_place=Scratch())
    finally:
        striker.join()
        signal.signal(signal.SIGUSR1, before)


def test_killed_in_mid_stream_it_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    """What it spools has no name."""
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "mothership_backup", "verify", "-"],
        env=environment({"TMPDIR": str(tmp_path / "tmp")}),
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(whole.read_bytes()[:5000])
    process.stdin.flush()
    wait_until("a spool", lambda: any(str(tmp_path / "tmp") in path for path in open_paths(process.pid)))

    assert os.listdir(tmp_path / "tmp") == []
    process.kill()
    process.communicate()
    assert os.listdir(tmp_path / "tmp") == []
