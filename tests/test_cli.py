"""The commands as a person or a script meets them: exit codes, one line for an error, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from harness import Archive, MakeDatabase, toml
from mothership_backup import __version__, errors
from mothership_backup.cli import exit_code, main
from mothership_backup.cli.terminal import human_bytes, printable
from processes import marked, wait_until

COMMAND: Final = (sys.executable, "-m", "mothership_backup")
# Root may read and write everything: a test of permissions takes that from it.
WITHOUT_PRIVILEGES: Final = (
    ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
)


def environment(extra: dict[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MOTHERSHIP_BACKUP")}
    return own | {"LC_ALL": "C.UTF-8", "COLUMNS": "200"} | extra


def command(
    *arguments: str | Path, before: Sequence[str] = (), environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """A command to its end; ``before`` is what starts it."""
    return subprocess.run(
        [*before, *COMMAND, *map(str, arguments)],
        env=environment(environ or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def only_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on stderr of a command that says nothing else."""
    assert result.stdout == b""
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mothership-backup: ")
    return lines[0].removeprefix("mothership-backup: ")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a backup goes: the only thing in its folder."""
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder / "home.zip"


@pytest.fixture
def broken(data_dir: Path) -> Path:
    """A data directory of which one source fails: a link may hide a live database."""
    (data_dir / "link.db").symlink_to("events.db")
    return data_dir


@pytest.fixture
def slow(tmp_path: Path, data_dir: Path, make_database: MakeDatabase) -> tuple[str, Path, str, Path]:
    """Arguments that make a backup take minutes: it reads 64 KiB a second, of 4 MB and more."""
    make_database(data_dir / "large.db", random_bytes=4000)
    config = tmp_path / "slow.toml"
    config.write_text(toml({"limits": {"read_bytes_per_second": 65536}}))
    return "--config", config, "--data-dir", data_dir


class TestBackup:
    def test_to_a_file(self, data_dir: Path, target: Path) -> None:
        """A whole archive, for its owner's eyes, and nothing beside it."""
        result = command("backup", target, "--data-dir", data_dir)

        assert result.returncode == 0
        assert {"events.db", "nodes.db", "VERSION"} <= set(Archive(target.read_bytes()).names)
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert list(target.parent.iterdir()) == [target]
        assert only_line(result).startswith(f"{target}: 2 databases, 2 files, ")
        assert only_line(result).endswith(", complete")

    def test_to_a_pipe(self, data_dir: Path) -> None:
        """The archive on stdout, what there is to say on stderr."""
        result = command("backup", "-", "--data-dir", data_dir)

        assert result.returncode == 0
        assert Archive(result.stdout).manifest["complete"] is True
        assert result.stderr.startswith(b"mothership-backup: standard output: 2 databases")

    def test_options_are_those_of_the_request(self, data_dir: Path) -> None:
        """compression, check, database and files, as in the query of GET /api/backup."""
        result = command(
            *("backup", "-", "--data-dir", data_dir, "--compression", "stored", "--check", "none"),
            *("--database", "ev*", "--database", "nothing*", "--no-files"),
        )

        archive = Archive(result.stdout)
        assert archive.names == ["events.db", "VERSION", "MANIFEST.json", "SHA256SUMS"]
        assert all(entry.compress_type == 0 for entry in archive.zip.infolist())
        assert archive.source("events.db")["check"]["kind"] == "none"

    def test_a_newer_backup_replaces_an_older(self, data_dir: Path, target: Path) -> None:
        """As a script that runs each night expects."""
        target.write_text("yesterday's")

        assert command("backup", target, "--data-dir", data_dir).returncode == 0
        assert Archive(target.read_bytes()).manifest["complete"] is True

    def test_a_linked_file_is_replaced_where_it_lies(
        self, data_dir: Path, target: Path, tmp_path: Path
    ) -> None:
        """The link stays a link."""
        link = tmp_path / "latest.zip"
        link.symlink_to(target)

        assert command("backup", link, "--data-dir", data_dir).returncode == 0
        assert link.is_symlink()
        assert Archive(target.read_bytes()).manifest["complete"] is True

    def test_an_incomplete_backup_is_told(self, broken: Path, target: Path) -> None:
        """Exit code 3, the source by name, and the archive with what there is."""
        result = command("backup", target, "--data-dir", broken)

        assert result.returncode == 3
        assert Archive(target.read_bytes()).statuses()["link.db"] == "failed"
        assert b"link.db: a symbolic link" in result.stderr
        assert result.stderr.endswith(b", incomplete, 1 source failed\n")

    def test_an_incomplete_backup_does_not_replace_an_older_one(self, broken: Path, target: Path) -> None:
        """The older may be whole: the new one is kept beside it."""
        target.write_text("yesterday's")

        result = command("backup", target, "--data-dir", broken)

        assert result.returncode == 3
        assert target.read_text() == "yesterday's"
        assert Archive(Path(f"{target}.incomplete").read_bytes()).manifest["complete"] is False
        assert f"{target} is as it was".encode() in result.stderr

    def test_a_strict_backup_is_complete_or_not_there(self, broken: Path, target: Path) -> None:
        """Exit code 3 and nothing written."""
        result = command("backup", target, "--data-dir", broken, "--strict")

        assert result.returncode == 3
        assert "link.db" in only_line(result)
        assert list(target.parent.iterdir()) == []

    def test_strict_can_be_taken_back(self, broken: Path, target: Path) -> None:
        """What the configuration says is a default."""
        environ = {"MOTHERSHIP_BACKUP__ARCHIVE__STRICT": "true"}

        result = command("backup", target, "--data-dir", broken, "--no-strict", environ=environ)

        assert result.returncode == 3
        assert target.exists()

    def test_a_terminal_gets_no_archive(self, data_dir: Path) -> None:
        """Bytes of a ZIP would be orders to it."""
        ours, theirs = os.openpty()
        try:
            result = subprocess.run(
                [*COMMAND, "backup", "-", "--data-dir", data_dir],
                env=environment({}),
                stdout=theirs,
                stderr=subprocess.PIPE,
                timeout=60,
                check=False,
            )
        finally:
            os.close(theirs)
            os.close(ours)

        assert result.returncode == 2
        assert result.stderr == (
            b"mothership-backup: an archive is no text for a terminal: name a FILE, or send - into a pipe\n"
        )

    @pytest.mark.parametrize("name", ["home.zip", "events.db", "floor_plan/home.zip"])
    def test_a_file_inside_the_data_directory_is_refused(self, data_dir: Path, name: str) -> None:
        """It would be part of the next backup, or take the place of a live database."""
        before = sorted(data_dir.rglob("*")), (data_dir / "events.db").read_bytes()

        result = command("backup", data_dir / name, "--data-dir", data_dir)

        assert result.returncode == 2
        assert "is inside the data directory" in only_line(result)
        assert (sorted(data_dir.rglob("*")), (data_dir / "events.db").read_bytes()) == before

    def test_a_link_into_the_data_directory_is_no_way_round(self, data_dir: Path, tmp_path: Path) -> None:
        """Neither to the file nor to the folder."""
        (tmp_path / "file").symlink_to(data_dir / "events.db")
        (tmp_path / "folder").symlink_to(data_dir)

        for path in (tmp_path / "file", tmp_path / "folder" / "home.zip"):
            assert command("backup", path, "--data-dir", data_dir).returncode == 2

    def test_a_device_is_not_replaced_by_a_file(self, data_dir: Path, target: Path) -> None:
        """Root could do that to /dev/null."""
        os.mkfifo(target)

        result = command("backup", target, "--data-dir", data_dir)

        assert result.returncode == 1
        assert "is not a regular file" in only_line(result)
        assert stat.S_ISFIFO(target.stat().st_mode)

    def test_a_name_as_long_as_names_may_be(self, data_dir: Path, target: Path) -> None:
        """The hidden name is no longer than its own."""
        long = target.with_name("n" * 251 + ".zip")

        assert command("backup", long, "--data-dir", data_dir).returncode == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_stopped_backup_leaves_nothing(
        self, slow: tuple[str | Path, ...], target: Path, number: signal.Signals
    ) -> None:
        """No file, no half of one, no reader, one line."""
        target.write_text("yesterday's")
        mark = f"backup-{os.getpid()}-{number}"
        process = subprocess.Popen(
            [*COMMAND, "backup", target, *slow],
            env=environment({"LANG": mark}),  # what the reader's environment keeps
            stderr=subprocess.PIPE,
        )
        wait_until(
            "a first byte is written", lambda: any(p.stat().st_size for p in target.parent.glob(".*.part"))
        )

        process.send_signal(number)
        _, said = process.communicate(timeout=20)

        assert (process.returncode, said) == (1, b"mothership-backup: interrupted\n")
        assert list(target.parent.iterdir()) == [target]
        assert target.read_text() == "yesterday's"
        wait_until("no process is left", lambda: not marked(mark), seconds=2)

    def test_a_pipe_that_nobody_reads(self, slow: tuple[str | Path, ...]) -> None:
        """As in `backup - | head -c 1`: an error, not a traceback."""
        process = subprocess.Popen(
            [*COMMAND, "backup", "-", *slow],
            env=environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()

        assert process.wait(timeout=20) == 1
        assert process.stderr.read() == b"mothership-backup: cannot write standard output: Broken pipe\n"
        process.stderr.close()


class TestBadInput:
    """One clear line that names the thing, the documented exit code, nothing half-written."""

    @pytest.mark.parametrize("name", ["backup", "databases", "check-config"])
    def test_a_missing_data_directory(self, tmp_path: Path, target: Path, name: str) -> None:
        """Exit code 1, for each command that looks."""
        files = (target,) if name == "backup" else ()

        result = command(name, *files, "--data-dir", tmp_path / "nowhere")

        assert result.returncode == 1
        assert f"the data directory {tmp_path / 'nowhere'} does not exist" in result.stderr.decode()
        assert len(result.stderr.splitlines()) == 1
        assert list(target.parent.iterdir()) == []

    def test_a_plain_file_as_data_directory(self, tmp_path: Path, target: Path) -> None:
        """Exit code 1."""
        (tmp_path / "file").touch()

        result = command("backup", target, "--data-dir", tmp_path / "file")

        assert result.returncode == 1
        assert "is not a directory" in only_line(result)
        assert list(target.parent.iterdir()) == []

    def test_an_unreadable_data_directory(self, data_dir: Path, target: Path) -> None:
        """Exit code 1."""
        data_dir.chmod(0)
        try:
            result = command("backup", target, "--data-dir", data_dir, before=WITHOUT_PRIVILEGES)
        finally:
            data_dir.chmod(0o700)

        assert result.returncode == 1
        assert f"the data directory {data_dir} cannot be read" in only_line(result)
        assert list(target.parent.iterdir()) == []

    @pytest.mark.parametrize("name", ["serve", "backup", "databases", "check-config"])
    def test_a_configuration_file_that_is_not_there(self, target: Path, name: str) -> None:
        """Exit code 2, for each command that takes one."""
        files = (target,) if name == "backup" else ()

        result = command(name, *files, "--config", "/nowhere/config.toml")

        assert result.returncode == 2
        assert only_line(result) == "/nowhere/config.toml: No such file or directory"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("server.prot = 1", "server.prot: unknown key (did you mean port?)"),
            ("server.port = 'eighty'", "server.port: 'eighty' is not a whole number"),
            ('"a\\u001b[2J\\nb" = 1', "a\\x1b[2J\\nb: unknown section"),
        ],
    )
    def test_an_unknown_key_and_a_bad_value(
        self, tmp_path: Path, target: Path, text: str, message: str
    ) -> None:
        """Exit code 2; what the file holds is no order to the terminal."""
        config = tmp_path / "config.toml"
        config.write_text(text)

        result = command("backup", target, "--config", config)

        assert result.returncode == 2
        assert only_line(result) == f"{config}: {message}"

    def test_a_misspelt_section_in_a_variable(self) -> None:
        """Exit code 2."""
        result = command("check-config", environ={"MOTHERSHIP_BACKUP__SEVER__PORT": "1"})

        assert result.returncode == 2
        assert only_line(result) == (
            "$MOTHERSHIP_BACKUP__SEVER__PORT: names no key (did you mean MOTHERSHIP_BACKUP__SERVER__PORT?)"
        )

    def test_a_bad_option(self, data_dir: Path, target: Path) -> None:
        """Exit code 2, named as it was written."""
        result = command("backup", target, "--data-dir", data_dir, "--compression", "zip")

        assert result.returncode == 2
        assert only_line(result) == "--compression: 'zip' is not 'deflate' or 'stored'"

    def test_databases_that_are_not_there(self, data_dir: Path, target: Path) -> None:
        """Exit code 1: not an archive without them."""
        result = command("backup", target, "--data-dir", data_dir, "--database", "nothing*")

        assert result.returncode == 1
        assert "nothing*" in only_line(result)
        assert list(target.parent.iterdir()) == []

    def test_a_folder_that_is_not_there(self, data_dir: Path, tmp_path: Path) -> None:
        """Exit code 1."""
        file = tmp_path / "nowhere" / "home.zip"

        result = command("backup", file, "--data-dir", data_dir)

        assert result.returncode == 1
        assert only_line(result) == f"cannot write {file}: No such file or directory"

    def test_a_folder_in_place_of_a_file(self, data_dir: Path, tmp_path: Path) -> None:
        """Exit code 1."""
        (tmp_path / "folder").mkdir()

        result = command("backup", tmp_path / "folder", "--data-dir", data_dir)

        assert result.returncode == 1
        assert "folder is not a regular file" in only_line(result)

    def test_an_unwritable_folder(self, data_dir: Path, target: Path) -> None:
        """Exit code 1."""
        target.parent.chmod(0o500)
        try:
            result = command("backup", target, "--data-dir", data_dir, before=WITHOUT_PRIVILEGES)
        finally:
            target.parent.chmod(0o700)

        assert result.returncode == 1
        assert only_line(result) == f"cannot write {target}: Permission denied"

    def test_a_file_that_may_grow_no_more(self, data_dir: Path, target: Path) -> None:
        """Exit code 1, the older file as it was, no half one: as on a full disk, which a limit stands for."""
        target.write_text("yesterday's")
        (data_dir / "floor_plan" / "photo").write_bytes(os.urandom(500_000))

        # What is staged, and SQLite's -shm of 32 KiB, still fit.
        result = command("backup", target, "--data-dir", data_dir, before=("prlimit", "--fsize=65536"))

        assert result.returncode == 1
        assert only_line(result) == f"cannot write {target}: File too large"
        assert list(target.parent.iterdir()) == [target]
        assert target.read_text() == "yesterday's"

    @pytest.mark.parametrize("arguments", [("backup", "-"), ("databases",), ("check-config", "--example")])
    def test_a_full_disk_behind_stdout(self, data_dir: Path, arguments: tuple[str, ...]) -> None:
        """Exit code 1, and no traceback at the interpreter's end."""
        options = () if "--example" in arguments else ("--data-dir", data_dir)
        with Path("/dev/full").open("wb") as full:
            result = subprocess.run(
                [*COMMAND, *arguments, *options],
                env=environment({}),
                stdout=full,
                stderr=subprocess.PIPE,
                timeout=60,
                check=False,
            )

        assert result.returncode == 1
        assert result.stderr.endswith(b"standard output: No space left on device\n")
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        "arguments", [("bakcup",), ("backup",), ("backup", "a", "b"), ("serve", "--prot", "1")]
    )
    def test_misuse(self, arguments: tuple[str, ...]) -> None:
        """Exit code 2, how it is used, no traceback."""
        result = command(*arguments)

        assert result.returncode == 2
        assert b"Usage: mothership-backup" in result.stderr
        assert b"Traceback" not in result.stderr


class TestDatabases:
    def test_a_table_for_people(self, data_dir: Path) -> None:
        """Each source with its size, and the sum."""
        result = command("databases", "--data-dir", data_dir)

        assert result.returncode == 0
        assert b"events.db" in result.stdout
        assert b"floor_plan/attic/beams.json" in result.stdout
        assert b"2 databases, " in result.stdout
        assert result.stderr == b""

    def test_json_for_machines(self, data_dir: Path) -> None:
        """The manifest's words."""
        result = command("databases", "--data-dir", data_dir, "--json")

        document = json.loads(result.stdout)
        assert document["complete"] is True
        assert document["databases"] == 2
        names = {source["name"]: source for source in document["sources"]}
        assert names["events.db"]["size_bytes"] == (data_dir / "events.db").stat().st_size
        assert names["events.db"]["status"] == "ok"

    def test_what_would_be_missing_is_told(self, broken: Path) -> None:
        """Exit code 3, with the reason."""
        result = command("databases", "--data-dir", broken, "--json")

        link = next(source for source in json.loads(result.stdout)["sources"] if source["name"] == "link.db")
        assert result.returncode == 3
        assert link["status"] == "failed"
        assert link["error"]["code"] == "symlink"

    def test_strict_shows_the_same(self, broken: Path) -> None:
        """To see what failed is what it is for."""
        environ = {"MOTHERSHIP_BACKUP__ARCHIVE__STRICT": "true"}

        result = command("databases", "--data-dir", broken, environ=environ)

        assert result.returncode == 3
        assert b"link.db" in result.stdout

    def test_a_name_is_no_markup(self, data_dir: Path) -> None:
        """It stands in the table as it is."""
        (data_dir / "events.db").rename(data_dir / "[red]events.db")

        assert b"[red]events.db" in command("databases", "--data-dir", data_dir).stdout


class TestCheckConfig:
    def test_it_shows_what_it_found(self, data_dir: Path) -> None:
        """Configuration, engine, data directory."""
        environ = {"MOTHERSHIP_BACKUP__DATA__DIR": str(data_dir)}

        result = command("check-config", environ=environ)

        lines = result.stdout.decode().splitlines()
        assert result.returncode == 0
        assert lines[0] == "configuration: no file, 1 variable: good"
        assert lines[-1].startswith(f"data directory {data_dir}: 2 databases, 2 files, ")
        assert result.stderr == b""

    def test_the_example_is_a_configuration(self) -> None:
        """`check-config --example > config.toml` is a start."""
        result = command("check-config", "--example")

        assert tomllib.loads(result.stdout.decode())["server"]["port"] == 8080

    def test_a_rate_that_cannot_do_is_a_warning(self, data_dir: Path, tmp_path: Path) -> None:
        """With the rate that could."""
        config = tmp_path / "config.toml"
        config.write_text(toml({"limits": {"read_bytes_per_second": 1000, "max_hold_seconds": 10}}))

        result = command("check-config", "--config", config, "--data-dir", data_dir)

        assert result.returncode == 0
        assert b"warning: at limits.read_bytes_per_second = 1000 a backup takes " in result.stderr
        assert b"limits.max_hold_seconds = 10: " in result.stderr

    def test_a_rate_that_can_do_is_none(self, data_dir: Path, tmp_path: Path) -> None:
        """Nobody is warned for nothing."""
        config = tmp_path / "config.toml"
        config.write_text(toml({"limits": {"read_bytes_per_second": 10_000_000}}))

        assert command("check-config", "--config", config, "--data-dir", data_dir).stderr == b""


def test_the_version_is_told() -> None:
    """As every command does."""
    assert command("--version").stdout == f"mothership-backup {__version__}\n".encode()


def test_help_names_every_command() -> None:
    """On stdout, with exit code 0."""
    result = command("--help")

    assert result.returncode == 0
    for name in ("serve", "backup", "databases", "check-config", "demo"):
        assert f"\n  {name} ".encode() in result.stdout


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, before anything is imported that is not there."""
    monkeypatch.setattr(sys, "platform", "win32")

    with pytest.raises(SystemExit) as leaving:
        main()

    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("mothership-backup: Windows is not supported")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.SetupError("x"), 2),
        (errors.DataDirError("x"), 1),
        (errors.NoMatchError("x"), 1),
        (errors.NoneReadableError("x"), 1),
        (errors.IncompleteError("x"), 3),
        (errors.OutputError("x"), 1),
        (errors.ReaderError("x"), 1),
        (errors.CutError("x", code="hold"), 1),
        (errors.CutError("x", code="check"), 3),
    ],
)
def test_each_error_has_its_exit_code(error: errors.BackupError, code: int) -> None:
    """As the README documents them."""
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**42, "4.0 TiB")],
)
def test_sizes_are_readable(size_bytes: int, text: str) -> None:
    """In the unit that fits."""
    assert human_bytes(size_bytes) == text


def test_a_line_is_one_line_of_harmless_characters() -> None:
    """A source's name is input: line breaks, escapes, and bytes that are no text."""
    assert printable("a\nb\x1b[31m\udcff\u202eé") == "a\\nb\\x1b[31m\\udcff\\u202eé"
