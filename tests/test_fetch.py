"""What stands in FILE at the end is a whole archive, or exactly what stood there before."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import ssl
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from bad_servers import (
    ZIP,
    Answer,
    BadServer,
    cut_by_fin,
    cut_by_reset,
    cut_in_silence,
    cut_without_length,
    damaged,
    held,
    problem,
    stalled,
    status,
    too_little,
    too_much,
    until_left,
    whole,
)
from harness import Archive, MakeDatabase, Service, run, serving, tool
from mothership_backup.cli import exit_code
from mothership_backup.cli.app import build
from mothership_backup.cli.progress import byte_progress
from mothership_backup.errors import ArchiveError, BackupError, ConfigError, FetchError, OutputError
from mothership_backup.fetch.fetch import Fetched, Job, fetch
from mothership_backup.fetch.keep import Keep
from mothership_backup.fetch.names import parse
from mothership_backup.fetch.part import Part
from mothership_backup.fetch.retry import retry_after_seconds
from mothership_backup.fetch.target import Target, host_of, read_token, tls_context
from mothership_backup.verify.verdict import Check
from processes import wait_until
from support import archive_of
from test_check import flip_a_page
from test_cli import COMMAND, command, environment, only_line

NOW: Final = datetime(2026, 11, 24, 2, 0, 0, tzinfo=UTC)
Halfway = contextlib.AbstractContextManager[subprocess.Popen[bytes]]
OLD: Final = b"yesterday's"
TLS: Final = tls_context(None)  # it takes 30 ms to make


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> bytes:
    """An archive of a MB or so, which does not compress."""
    folder = tmp_path_factory.mktemp("first")
    make_database(folder / "a.db", random_bytes=1000)
    return archive_of(folder).data


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> bytes:
    """What the same service sends a moment later."""
    folder = tmp_path_factory.mktemp("second")
    make_database(folder / "a.db", random_bytes=1000)
    return archive_of(folder).data


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> bytes:
    """One of its sources failed."""
    folder = tmp_path_factory.mktemp("incomplete")
    make_database(folder / "a.db", rows=10)
    (folder / "link.db").symlink_to("a.db")
    return archive_of(folder).data


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> bytes:
    """Whole and complete, but SQLite will find the database damaged: nobody has looked yet."""
    folder = tmp_path_factory.mktemp("sick")
    flip_a_page(make_database(folder / "a.db", journal="delete"))
    return archive_of(folder, check="none").data


@dataclass
class Place:
    """FILE alone in its folder, with what an earlier run left there; a run is a call in this process."""

    file: Path
    told: list[str] = field(default_factory=list)

    def fetch(
        self,
        url: str,
        *,
        name: str = "",
        tries: int = 2,
        check: Check = "quick",
        timeout_seconds: float = 20,
        token: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> Fetched:
        file = f"{self.file.parent}/{name or self.file.name}"
        target = Target(url, token, tls or TLS, timeout_seconds)
        job = Job(target, parse(file, host=host_of(url), now=NOW), check, tries, Keep(), NOW)
        return fetch(job, progress=byte_progress, tell=self.told.append, first_wait_seconds=0.001)

    def fails(self, server: BadServer, *, tries: int = 2, timeout_seconds: float = 20) -> BackupError:
        """The error of a run that must leave everything as it was."""
        with pytest.raises(BackupError) as caught:
            self.fetch(server.url, tries=tries, timeout_seconds=timeout_seconds)
        self.assert_untouched()
        return caught.value

    def assert_untouched(self) -> None:
        assert self.listing() == [self.file.name]
        assert self.file.read_bytes() == OLD

    def listing(self) -> list[str]:
        return sorted(os.listdir(self.file.parent))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = tmp_path / "backups"
    folder.mkdir()
    file = folder / "home.zip"
    file.write_bytes(OLD)
    return Place(file)


def cron(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line as cron runs it: sh, next to no environment, no terminal; a script of somebody careful around it."""
    words = [
        *("env", "-i", f"PATH={Path(sys.executable).parent}:/usr/bin:/bin", "HOME=/"),
        *(f"{name}={value}" for name, value in variables.items()),
    ]
    return run(*words, "sh", "-e", "-c", f"set -e\n{line}\necho done", seconds=60)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, big_dir: Path) -> Iterator[Service]:
    """The service, with one backup at a time."""
    config = {"limits": {"concurrent_backups": 1}}
    with serving(tmp_path_factory.mktemp("service"), big_dir, config) as one:
        yield one


class TestService:
    """The real one."""

    def test_as_a_line_of_a_crontab(self, running: Service, tmp_path: Path) -> None:
        """One line for the mail, exit code 0, nothing on stdout; nobody else may read the file."""
        folder = tmp_path / "backups"
        folder.mkdir()

        result = cron(
            f"mothership-backup fetch '{running.backup_url}?strict=true' {folder}/{{prefix}}-{{date}}.zip"
        )

        (file,) = folder.iterdir()
        assert (result.returncode, result.stdout) == (0, "done\n")
        assert re.fullmatch(r"spaxel-20\d\d-\d\d-\d\d\.zip", file.name)
        assert re.fullmatch(
            rf"mothership-backup: {file}: [\d.]+ MiB, \d+\.\d s, 1 database, complete\n", result.stderr
        )
        assert Archive(file.read_bytes()).manifest["complete"] is True
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_a_length_that_is_known(self, running: Service, place: Place) -> None:
        """The stored archive replaces the old file."""
        fetched = place.fetch(running.backup_url + "?compression=stored&check=none", check="none")

        assert fetched.report.word == "whole"
        assert fetched.size_bytes == place.file.stat().st_size
        assert place.listing() == ["home.zip"]

    def test_its_own_words_are_shown(self, running: Service, place: Place) -> None:
        """What it says of a request that it refuses, at once."""
        with pytest.raises(FetchError, match=r"/api/backup answers 404 Not Found: .*nothing\.db"):
            place.fetch(running.backup_url + "?database=nothing.db")

        place.assert_untouched()
        assert place.told == []

    def test_busy_is_tried_again(self, running: Service, place: Place) -> None:
        """Until the other backup has come to its end."""
        with (
            running.stream(),
            pytest.raises(FetchError, match=r"answers 503 Service Unavailable: .*backup"),
        ):
            place.fetch(running.backup_url, tries=1)
        wait_until("the slot is free", lambda: "client_left" in running.log())

        assert place.fetch(running.backup_url, tries=2, check="none").report.word == "whole"


CUTS: Final[dict[str, Callable[[bytes], Answer]]] = {
    "fin": cut_by_fin,
    "reset": cut_by_reset,
    "last chunk after a cut": cut_in_silence,
    "no length": cut_without_length,
    "too little": too_little,
    "too much": too_much,
    "damaged": damaged,
    "stalled": stalled,
    "silent": lambda data: until_left,
    "closed at once": lambda data: lambda peer: None,
    "no HTTP": lambda data: lambda peer: peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
class TestCut:
    """However a transfer ends too early, or with other bytes."""

    def test_the_next_try_is_a_whole_new_one(
        self, cut: Callable[[bytes], Answer], place: Place, first: bytes, second: bytes
    ) -> None:
        """The data has changed meanwhile: exactly the second archive, nothing of the first."""
        with BadServer(cut(first), whole(second)) as server:
            place.fetch(server.url, timeout_seconds=0.2)

        assert place.file.read_bytes() == second
        assert place.listing() == ["home.zip"]
        assert not any("range" in request.lower() for request in server.requests)

    def test_the_old_file_stays(self, cut: Callable[[bytes], Answer], place: Place, first: bytes) -> None:
        """And nothing beside it, when each try ends so."""
        with BadServer(cut(first)) as server:
            error = place.fails(server, timeout_seconds=0.2)

        assert exit_code(error) == (4 if isinstance(error, ArchiveError) else 1)
        assert error.message.endswith(" (the last of 2 tries)")
        assert len(place.told) == 1


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (status(302, "", {"Location": "http://elsewhere/"}), FetchError, "a redirect to http://elsewhere/"),
        (
            problem(307, "x", {"Location": "/other"}),
            FetchError,
            "307 Temporary Redirect, a redirect to /other",
        ),
        (
            problem(400, "compression: 'zip' is no word"),
            FetchError,
            "400 Bad Request: compression: 'zip' is no",
        ),
        (problem(401, "give a token"), FetchError, "401 Unauthorized: give a token"),
        (problem(403, "not you"), FetchError, "403 Forbidden: not you"),
        (problem(404, "no match"), FetchError, "404 Not Found: no match"),
        (problem(412, "whole ones only"), FetchError, "412 Precondition Failed: whole ones only"),
        (status(404, "<html>"), FetchError, "answers 404 Not Found"),
        (status(403, "[" * 100_000), FetchError, "answers 403 Forbidden"),
        (status(204), FetchError, "answers 204 No Content"),
        (status(799), FetchError, "answers 799"),
        (
            status(200, "<html>", {"Content-Type": "text/html"}),
            FetchError,
            "answers with text/html, not with an",
        ),
        (status(200, "x", {**ZIP, "Content-Encoding": "gzip"}), FetchError, "Content-Encoding gzip"),
    ],
)
def test_what_no_other_try_would_change_ends_at_once(
    answer: Answer, error: type[BackupError], message: str, place: Place
) -> None:
    """After one request, with the service's own reason."""
    with BadServer(answer) as server:
        tries = 1 if message == "answers 799" else 5  # like any 5xx, it may pass

        failure = place.fails(server, tries=tries)

    assert type(failure) is error
    assert message in failure.message
    assert len(server.requests) == 1


@pytest.mark.parametrize("number", [408, 429, 500, 502, 503, 599])
def test_what_may_pass_is_tried_again(number: int, place: Place, second: bytes) -> None:
    """And told, with the reason."""
    with BadServer(problem(number, "later"), whole(second)) as server:
        place.fetch(server.url)

    assert place.file.read_bytes() == second
    assert re.search(rf"answers {number}.*: later; try 2 of 2 follows in 0\.0 s$", place.told[0])


def test_retry_after_is_honoured(place: Place, second: bytes) -> None:
    """It is waited for longer than the backoff would."""
    began = time.monotonic()
    with BadServer(problem(503, "busy", {"Retry-After": "1"}), whole(second)) as server:
        place.fetch(server.url)

    assert time.monotonic() - began >= 1
    assert place.file.read_bytes() == second


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0),
        ("86400", 300),
        ("9" * 5000, 300),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300),
        ("", 0),
        ("soon", 0),
        ("-1", 0),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(header: str, seconds: float) -> None:
    """At most five minutes; what is neither does not count."""
    assert retry_after_seconds(header, NOW) == seconds


def test_nobody_listens(place: Place) -> None:
    """Tried again: a service that restarts comes back."""
    with BadServer() as server:
        pass

    assert "cannot connect: Connect" in place.fails(server).message
    assert len(place.told) == 1


def test_a_name_that_nobody_knows(place: Place) -> None:
    """Told as such."""
    with pytest.raises(FetchError, match=r"cannot connect: .*[Nn]ame"):
        place.fetch("http://nowhere.invalid/api/backup", tries=1)


class TestNotGoodEnough:
    """Whole, and yet not what may replace a good one."""

    def test_an_incomplete_archive(self, place: Place, incomplete: bytes) -> None:
        """Kept beside, exit code 3, the source by name."""
        with BadServer(whole(incomplete)) as server:
            result = command("fetch", server.url, place.file)

        assert result.returncode == 3
        assert place.file.read_bytes() == OLD
        assert place.listing() == ["home.zip", "home.zip.incomplete"]
        assert place.file.with_name("home.zip.incomplete").read_bytes() == incomplete
        assert b"link.db: failed when it was backed up: a symbolic link" in result.stderr
        assert result.stderr.endswith(b", 1 database, incomplete, so it replaces nothing\n")

    def test_a_damaged_database(self, place: Place, sick: bytes) -> None:
        """Kept beside too: its bytes may be the only ones; exit code 4."""
        with BadServer(whole(sick)) as server:
            result = command("fetch", server.url, place.file)

        assert result.returncode == 4
        assert len(server.requests) == 1
        assert place.file.read_bytes() == OLD
        assert place.file.with_name("home.zip.incomplete").read_bytes() == sick
        assert b"a.db: SQLite finds it damaged: " in result.stderr

    def test_a_damaged_database_unchecked(self, place: Place, sick: bytes) -> None:
        """Who asks for no check gets none; the bytes are what was sent."""
        with BadServer(whole(sick)) as server:
            assert place.fetch(server.url, check="none").report.word == "whole"

        assert place.file.read_bytes() == sick

    def test_an_archive_without_a_manifest(self, place: Place) -> None:
        """Nothing proves that it is whole, and no other try would change that: exit code 4."""
        plain = io.BytesIO()
        with zipfile.ZipFile(plain, "w") as archive:
            archive.writestr("a.db", b"")

        with BadServer(whole(plain.getvalue())) as server:
            error = place.fails(server)

        assert "it has no manifest" in error.message
        assert exit_code(error) == 4
        assert len(server.requests) == 1


@contextlib.contextmanager
def halfway(
    answer: Answer, place: Place, data: bytes, *options: str, **environ: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has got half of the archive, by an answer that stops there."""
    with BadServer(answer) as server:
        process = subprocess.Popen(
            [*COMMAND, "fetch", server.url, place.file, "--tries", "1", *options],
            env=environment(environ),
            stderr=subprocess.PIPE,
        )
        try:
            part = place.file.with_name("home.zip.part")
            wait_until("half of it to come", lambda: part.exists() and part.stat().st_size >= len(data) // 2)
            yield process
        finally:
            process.kill()
            process.communicate()


def stalling(place: Place, data: bytes, *options: str, **environ: str) -> Halfway:
    """It waits for the rest."""
    return halfway(stalled(data), place, data, *options, **environ)


class TestOneAtATime:
    def test_the_second_run_ends_and_the_first_goes_on(
        self, place: Place, first: bytes, second: bytes
    ) -> None:
        """The second with exit code 1, before it asks for anything; the first comes to a good end."""
        go_on = threading.Event()
        with (
            halfway(held(first, go_on), place, first) as process,
            BadServer(whole(second)) as server,
        ):
            result = command("fetch", server.url, place.file)
            go_on.set()
            process.communicate(timeout=20)

        assert result.returncode == 1
        assert only_line(result) == f"another run writes {place.file}.part now"
        assert server.requests == []
        assert process.returncode == 0
        assert place.file.read_bytes() == first
        assert place.listing() == ["home.zip"]

    def test_a_killed_run_holds_nobody_up(self, place: Place, first: bytes, second: bytes) -> None:
        """What it left is nobody's."""
        with stalling(place, first) as process:
            process.kill()
            process.wait()
            assert place.listing() == ["home.zip", "home.zip.part"]

        with BadServer(whole(second)) as server:
            place.fetch(server.url)

        assert place.file.read_bytes() == second
        assert place.listing() == ["home.zip"]

    def test_a_stopped_run_tidies_up(self, place: Place, first: bytes) -> None:
        """Exit code 1, one line, and the monitor hears of it."""
        with (
            BadServer(status(200)) as monitor,
            stalling(place, first, "--ping", monitor.url) as process,
        ):
            process.terminate()
            _, said = process.communicate(timeout=20)

            assert (process.returncode, said) == (1, b"mothership-backup: interrupted\n")
        place.assert_untouched()
        assert monitor.requests[-1].startswith("POST /api/backup/fail ")
        assert monitor.requests[-1].endswith("\r\n\r\ninterrupted")

    def test_a_part_is_private_from_its_first_byte(self, place: Place) -> None:
        """Whatever lay there before, and whatever the umask."""
        path = place.file.with_name("home.zip.part")
        path.write_bytes(b"somebody else's")
        path.chmod(0o666)
        before = os.umask(0)
        try:
            with path.open("rb") as theirs, Part(parse(str(place.file), host="h", now=NOW)) as part:
                part.begin("")
                part.write(b"ours")

                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert theirs.read() == b"somebody else's"
        finally:
            os.umask(before)

    @pytest.mark.parametrize("make", [lambda part: part.symlink_to("/etc/passwd"), os.mkfifo, os.mkdir])
    def test_what_is_in_the_way_is_refused(self, make: Callable[[Path], None], place: Place) -> None:
        """A link is not followed, a FIFO blocks nobody."""
        make(place.file.with_name("home.zip.part"))

        with BadServer() as server, pytest.raises(OutputError, match=r"home\.zip\.part"):
            place.fetch(server.url)

        assert place.file.read_bytes() == OLD
        assert server.requests == []

    def test_runs_that_race_for_the_name(self, place: Place) -> None:
        """Each ends well or is told of another one; FILE is always one run's own, none is taken away from another."""
        template = parse(str(place.file), host="h", now=NOW)
        contents: list[bytes] = []

        def compete(letter: bytes) -> None:
            good = 0
            while good < 50:
                with contextlib.suppress(FetchError), Part(template) as part:
                    part.begin("")
                    part.write(letter * 1000)
                    part.keep(complete=True)
                    contents.append(place.file.read_bytes())
                    good += 1

        letters = [b"a", b"b", b"c", b"d"]
        with ThreadPoolExecutor(len(letters)) as threads:
            list(threads.map(compete, letters))

        assert set(contents) <= {letter * 1000 for letter in letters}
        assert place.listing() == ["home.zip"]


class TestDisk:
    def test_a_full_disk(self, place: Place, first: bytes) -> None:
        """Exit code 1 after one try, the old file as it was: a limit on files stands for it."""
        with BadServer(whole(first)) as server:
            result = command("fetch", server.url, place.file, before=("prlimit", "--fsize=65536"))

        assert result.returncode == 1
        assert only_line(result) == f"cannot write {place.file}.part: File too large"
        assert len(server.requests) == 1
        place.assert_untouched()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
    def test_a_disk_that_is_really_full(self, place: Place, first: bytes, tmp_path: Path) -> None:
        """The same with the kernel's own word."""
        small = tmp_path / "small"
        small.mkdir()
        file = small / "home.zip"
        mount = run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small)
        if mount.returncode:
            pytest.skip(f"no right to mount: {mount.stderr}")
        try:
            file.write_bytes(OLD)
            with (
                BadServer(whole(first)) as server,
                pytest.raises(OutputError, match="No space left on device"),
            ):
                Place(file).fetch(server.url)

            Place(file).assert_untouched()
        finally:
            run("umount", small)

    @pytest.mark.parametrize("name", ["nowhere/home.zip", "nowhere/{prefix}.zip"])
    def test_a_folder_that_is_not_there(self, name: str, place: Place) -> None:
        """Found before anything is asked."""
        with BadServer() as server, pytest.raises(OutputError, match=r"nowhere.*: No such file or directory"):
            place.fetch(server.url, name=name)

        assert server.requests == []

    def test_a_link_stays_a_link(self, place: Place, second: bytes, tmp_path: Path) -> None:
        """As with a plain write: its target is replaced, where it lies."""
        link = tmp_path / "latest.zip"
        link.symlink_to(place.file)

        with BadServer(whole(second)) as server:
            assert Place(link).fetch(server.url).place == link

        assert link.is_symlink()
        assert place.file.read_bytes() == second
        assert place.listing() == ["home.zip"]

    def test_a_folder_in_place_of_a_file(self, place: Place) -> None:
        """Refused by name, before anything is asked."""
        (place.file.parent / "folder").mkdir()

        with BadServer() as server, pytest.raises(OutputError, match="folder is not a regular file"):
            place.fetch(server.url, name="folder")

        assert server.requests == []

    def test_a_prefix_that_changes_between_tries(self, place: Place, first: bytes, second: bytes) -> None:
        """The half of the first name does not stay."""
        other = {**ZIP, "Content-Disposition": 'attachment; filename="barn-backup-1.zip"'}

        with BadServer(cut_by_fin(first), whole(second, other)) as server:
            place.fetch(server.url, name="{prefix}.zip")

        assert place.listing() == ["barn.zip", "home.zip"]

    def test_a_prefix_that_is_not_there(self, place: Place, first: bytes) -> None:
        """Said at once."""
        nameless = {"Content-Type": "application/zip"}

        with (
            BadServer(whole(first, nameless)) as server,
            pytest.raises(FetchError, match=r"leave \{prefix\} out"),
        ):
            place.fetch(server.url, name="{prefix}.zip")

        place.assert_untouched()
        assert len(server.requests) == 1


class TestToken:
    TOKEN = "s3cret-0123456789"

    def test_it_is_nowhere_to_be_seen(self, place: Place, first: bytes) -> None:
        """Neither in the process table nor on stderr; in the request alone."""
        with stalling(place, first, MOTHERSHIP_BACKUP_TOKEN=self.TOKEN) as process:
            shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            process.terminate()
            _, said = process.communicate(timeout=20)

        assert b"fetch" in shown
        assert self.TOKEN.encode() not in shown + said

    def test_from_the_environment_as_cron_sets_it(self, place: Place, second: bytes) -> None:
        """A variable that no other command takes for a misspelt key."""
        with BadServer(whole(second)) as server:
            result = cron(
                f"mothership-backup check-config --data-dir {place.file.parent} >/dev/null\n"
                f"mothership-backup fetch {server.url} {shlex.quote(str(place.file))}",
                MOTHERSHIP_BACKUP_TOKEN=self.TOKEN,
            )

        assert result.stdout == "done\n", result.stderr
        assert f"\r\nAuthorization: Bearer {self.TOKEN}\r\n" in server.requests[0]
        assert self.TOKEN not in result.stderr

    def test_a_redirect_does_not_take_it_along(self, place: Place) -> None:
        """Nobody there is asked."""
        with (
            BadServer() as elsewhere,
            BadServer(status(302, "", {"Location": elsewhere.url})) as server,
            pytest.raises(FetchError, match="is not followed"),
        ):
            place.fetch(server.url, token=self.TOKEN)

        assert elsewhere.requests == []

    def test_the_first_line_of_a_file(self, tmp_path: Path) -> None:
        """It comes before the variable."""
        (tmp_path / "token").write_text(f"{self.TOKEN}\r\nsecond line\n")

        assert read_token(tmp_path / "token", {"MOTHERSHIP_BACKUP_TOKEN": "other"}) == self.TOKEN
        assert read_token(None, {}) == ""

    @pytest.mark.parametrize("text", ["", "\n", " \nsecond", "two words", "caf\u00e9", "a\x00b"])
    def test_what_is_no_token(self, text: str, tmp_path: Path) -> None:
        """Told without showing it."""
        (tmp_path / "token").write_text(text)

        for file, environ in ((tmp_path / "token", {}), (None, {"MOTHERSHIP_BACKUP_TOKEN": text})):
            if file is None and "second" in text:
                continue
            with pytest.raises(ConfigError) as caught:
                read_token(file, environ)
            assert re.search("it is empty|and this is none", caught.value.message)
            assert not text.strip() or text not in caught.value.message

    def test_it_is_in_no_representation(self) -> None:
        """Of what a traceback might show."""
        target = Target("http://h/?a=b", self.TOKEN, ssl.create_default_context(), 1)

        assert repr(target) == "Target(http://h/)"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of an authority that only this test knows, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, file = folder / "key.pem", folder / "ca.pem"
    made = run(
        *(tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", key, "-out", file),
    )
    assert made.returncode == 0, made.stderr
    return file, key


class TestTls:
    def serve(self, certificate: tuple[Path, Path], answer: Answer) -> BadServer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server = BadServer(answer, tls=context)
        server.url = server.url.replace("http:", "https:")
        return server

    def test_an_authority_of_ones_own(
        self, certificate: tuple[Path, Path], place: Place, second: bytes
    ) -> None:
        """As on most local networks."""
        with self.serve(certificate, whole(second)) as server:
            place.fetch(server.url, tls=tls_context(certificate[0]))

        assert place.file.read_bytes() == second

    def test_an_authority_that_is_not_known(self, certificate: tuple[Path, Path], place: Place) -> None:
        """Refused at once, with the remedy."""
        with self.serve(certificate, status(200)) as server:
            error = place.fails(server)

        assert "its certificate is not trusted: self-signed certificate; --ca-file" in error.message
        assert place.told == []

    @pytest.mark.parametrize(
        ("name", "reason"), [("nowhere", "No such file or directory"), ("home.zip", "no certificates in PEM")]
    )
    def test_a_file_without_certificates(self, name: str, reason: str, place: Place) -> None:
        """Named."""
        with pytest.raises(ConfigError, match=f"--ca-file: .*{name}: {reason}"):
            tls_context(place.file.with_name(name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("http://user:s3cret@127.0.0.1/", "f"), "use --token-file or $MOTHERSHIP_BACKUP_TOKEN"),
        (("ftp://127.0.0.1/", "f"), "URL: no URL such as http://"),
        (("127.0.0.1:8080/api/backup", "f"), "URL: no URL such as http://"),
        (("http:///api/backup", "f"), "URL: no URL such as http://"),
        (("http://127.0.0.1:99999/", "f"), "URL: Port out of range"),
        (("http://[::1/", "f"), "URL: Invalid IPv6 URL"),
        (("http://h/\n", "f"), "URL: no URL such as http://"),
        (("http://h/", "{day}.zip"), "{day}.zip: {day} is unknown"),
        (("http://h/", "f", "--check", "some"), "--check: 'some' is not none, quick or full"),
        (("http://h/", "f", "--ping", "hc-ping.com/x"), "--ping: no URL such as"),
        (("http://h/", "f", "--token-file", "/nowhere"), "--token-file: /nowhere: No such file or directory"),
    ],
)
def test_misuse(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exit code 2, in one line, before anything is asked or written; no credentials in it."""
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(build([]), ["fetch", *arguments])

    assert isinstance(result.exception, ConfigError)
    assert message in result.exception.message
    assert "s3cret" not in result.exception.message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "option", ["--tries=0", "--timeout=0", "--keep=0", "--keep-days=0", "--token=s3cret"]
)
def test_options_that_make_no_sense(option: str) -> None:
    """Exit code 2; there is no option for the token itself."""
    assert CliRunner().invoke(build([]), ["fetch", "http://h/", "f", option]).exit_code == 2


def test_progress_on_a_terminal(place: Place, second: bytes) -> None:
    """A bar while it runs, and one line at the end."""
    ours, theirs = os.openpty()
    try:
        with BadServer(whole(second, {**ZIP, "X-Backup-Size": "1048576"})) as server:
            process = subprocess.Popen(
                [*COMMAND, "fetch", server.url, place.file],
                env=environment({"TERM": "xterm"}),
                stdout=subprocess.PIPE,
                stderr=theirs,
            )
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # what a terminal says when nobody is there any more
                while piece := os.read(ours, 65536):
                    shown += piece
            out, _ = process.communicate(timeout=20)
    finally:
        os.close(ours)

    assert (process.returncode, out) == (0, b"")
    assert b"fetch (1.0 MiB unpacked)" in shown
    assert shown.endswith(b", complete\r\n")
