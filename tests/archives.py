"""Archives made by hand: as ours from any manifest, ZIPs whose records say whatever a test wants, and a judge."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Archive, sha256
from mothership_backup.cli import main
from mothership_backup.cli.stopping import STOP_SIGNALS
from mothership_backup.errors import ArchiveError
from mothership_backup.verify.archive_file import open_archive
from mothership_backup.verify.contents import read_contents
from mothership_backup.verify.scratch import Scratch
from mothership_backup.verify.verdict import Check, Report, verify
from test_cli import environment

OWN = ("VERSION", "MANIFEST.json", "SHA256SUMS")
Manifest = dict[str, Any]


# As ours.


def manifest_for(files: Mapping[str, bytes], **head: Any) -> Manifest:
    """A true manifest of these files; a name that ends in `.db` is a database's."""
    sources = [
        {
            "name": name,
            "kind": "database" if name.endswith(".db") else "file",
            "status": "ok",
            "size_bytes": len(content),
            "sha256": sha256(content),
            "engine": None,
        }
        for name, content in files.items()
    ]
    manifest: Manifest = {
        "format": 1,
        "backup_id": "a" * 32,
        "created_at": "2026-11-23T02:00:00.123Z",
        "app_version": "1.2",
        "generator": {"name": "mothership-backup", "version": "0.1.0", "sqlite": "3.50.4"},
        "complete": True,
        "instant": {"exact": True},
        "sources": sources,
    }
    return manifest | head


def sums_for(files: Mapping[str, bytes], version: bytes, manifest: bytes) -> bytes:
    """SHA256SUMS as it should be."""
    everything = {**files, "VERSION": version, "MANIFEST.json": manifest}
    return "".join(f"{sha256(content)}  {name}\n" for name, content in everything.items()).encode()


def as_ours(
    files: Mapping[str, bytes],
    manifest: Manifest | bytes | None = None,
    *,
    version: bytes = b"1.2\n",
    sums: Callable[[bytes], bytes] = lambda good: good,
) -> bytes:
    """Entries, VERSION, the manifest (true unless given), and SHA256SUMS, which ``sums`` may change."""
    document = manifest_for(files) if manifest is None else manifest
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    own = {"VERSION": version, "MANIFEST.json": text, "SHA256SUMS": sums(sums_for(files, version, text))}
    return plain_zip({**files, **own}, zipfile.ZIP_DEFLATED)


def plain_zip(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """As Python's zipfile makes one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name that is in it twice
        for name, content in files.items():
            opened.writestr(name, content)
    return packed.getvalue()


def repacked(archive: Archive, change: Callable[[Manifest, dict[str, bytes]], None]) -> bytes:
    """The archive with a manifest, or files, that ``change`` changed."""
    manifest = json.loads(archive.read("MANIFEST.json"))
    files = {name: archive.read(name) for name in archive.names if name not in OWN}
    change(manifest, files)
    return as_ours(files, manifest, version=archive.read("VERSION"))


# Any records.

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
Fields = Mapping[str, Any]
_LOCAL_FIELDS = (
    *("signature", "needed", "flags", "method", "time", "date", "crc", "packed", "size"),
    *("name_bytes", "extra_bytes"),
)
_CENTRAL_FIELDS = (
    *("signature", "made_by", "needed", "flags", "method", "time", "date", "crc", "packed", "size"),
    *("name_bytes", "extra_bytes", "comment_bytes", "disk", "internal", "attributes", "offset"),
)
_END_FIELDS = (
    *("signature", "disk", "first_disk", "here", "entries", "directory_bytes", "offset", "comment_bytes"),
)


@dataclass(frozen=True)
class Item:
    """One entry; ``both``, ``local`` and ``central`` are fields that say something else than the truth.

    ``payload`` are its packed bytes where they are not the content's.
    """

    name: bytes
    content: bytes = b"content"
    payload: bytes | None = None
    mode: int = 0o100644
    before: bytes = b""
    behind: bytes = b""
    local_name: bytes | None = None
    extra: bytes = b""
    local_extra: bytes | None = None
    both: Fields = field(default_factory=dict)
    local: Fields = field(default_factory=dict)
    central: Fields = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        payload = self.content if self.payload is None else self.payload
        known: dict[str, Any] = dict.fromkeys(_LOCAL_FIELDS + _CENTRAL_FIELDS, 0)
        known |= {"made_by": 3 << 8 | 20, "needed": 20, "flags": 0x0800, "date": 0x5AA1}
        known |= {"crc": zlib.crc32(self.content), "packed": len(payload), "size": len(self.content)}
        return known | {"attributes": self.mode << 16} | dict(self.both)

    def local_record(self) -> bytes:
        name = self.name if self.local_name is None else self.local_name
        extra = self.extra if self.local_extra is None else self.local_extra
        fields = self.fields() | {"signature": b"PK\x03\x04", "name_bytes": len(name)}
        fields |= {"extra_bytes": len(extra), **self.local}
        header = LOCAL.pack(*(fields[key] for key in _LOCAL_FIELDS))
        return header + name + extra + (self.content if self.payload is None else self.payload)

    def central_record(self, offset: int) -> bytes:
        fields = self.fields() | {"signature": b"PK\x01\x02", "offset": offset, "name_bytes": len(self.name)}
        fields |= {"extra_bytes": len(self.extra), **self.central}
        return CENTRAL.pack(*(fields[key] for key in _CENTRAL_FIELDS)) + self.name + self.extra


def deflated(name: bytes, content: bytes, **fields: Any) -> Item:
    """A packed entry."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    payload = packer.compress(content) + packer.flush()
    return Item(name, content, payload, both={"method": 8, **fields.pop("both", {})}, **fields)


def raw_zip(
    *items: Item, unlisted: Sequence[int] = (), ghosts: Sequence[Item] = (), behind: bytes = b"", **end: Any
) -> bytes:
    """A ZIP of these records. Items by number may be left out of the directory, ghosts are only there."""
    body = bytearray()
    directory = b""
    for number, item in enumerate(items):
        body += item.before
        if number not in unlisted:
            directory += item.central_record(len(body))
        body += item.local_record() + item.behind
    for ghost in ghosts:
        directory += ghost.central_record(len(body))
    listed = len(items) - len(unlisted) + len(ghosts)
    fields = {"signature": b"PK\x05\x06", "disk": 0, "first_disk": 0, "here": listed, "entries": listed}
    fields |= {"directory_bytes": len(directory), "offset": len(body), "comment_bytes": 0, **end}
    return bytes(body) + directory + END.pack(*(fields[key] for key in _END_FIELDS)) + behind


# The judge.


def judged(path: Path, check: Check = "quick", *, max_bytes: int | None = None) -> Report:
    """By the functions that the command is made of."""
    with open_archive(str(path), max_bytes=max_bytes) as opened:
        contents = read_contents(opened, max_bytes=max_bytes)
        return verify(opened, contents, check=check, make_place=Scratch())


def refused(data: bytes, folder: Path, *, max_bytes: int | None = None) -> tuple[str, str]:
    """Why these bytes are no whole archive: the error's code and message; ``damaged`` for what is inside."""
    path = folder / "refused.zip"
    path.write_bytes(data)
    try:
        report = judged(path, max_bytes=max_bytes)
    except ArchiveError as error:
        return error.code, error.message
    assert report.damaged, f"accepted: {report}"
    return "damaged", "; ".join(finding.problem for finding in report.damaged)


def command(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`mothership-backup …` to its end, with these bytes in a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "mothership_backup", *map(str, arguments)],
        env=environment({}),
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


def invoked(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """`mothership-backup …` to its end in this process: the same code, without half a second for its imports."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    words = ["mothership-backup", *map(str, arguments)]
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    argv, sys.argv = sys.argv, words
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(code, int)
    out.flush()
    err.flush()
    return subprocess.CompletedProcess(words, code, out.buffer.getvalue(), err.buffer.getvalue())
