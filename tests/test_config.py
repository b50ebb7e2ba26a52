"""Settings come from the defaults, a file, the environment and options, or an error names what is wrong."""

from __future__ import annotations

import contextlib
import itertools
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mothership_backup.config import SECTIONS, Auth, Data, Option, Server, Settings, example, load
from mothership_backup.errors import ConfigError

P = "MOTHERSHIP_BACKUP__"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("config.toml")


def refusal(
    path: Path | None = None, environ: dict[str, str] | None = None, options: tuple[Option, ...] = ()
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {}, options)
    return caught.value.message


class TestSettings:
    def test_the_defaults_are_good_settings(self) -> None:
        """A host application that sets nothing gets something that works."""
        assert load(None, {}) == Settings()

    def test_settings_are_frozen(self) -> None:
        """Nobody changes them under a running service."""
        with pytest.raises(ValidationError):
            Settings().server.port = 1  # type: ignore[misc]

    def test_what_pydantic_says_to_a_host_has_no_credential(self) -> None:
        """Somebody may have put the token there by mistake."""
        for call in (Auth.model_validate, lambda auth: Settings.model_validate({"auth": auth})):
            with pytest.raises(ValidationError) as caught:
                call({"tokens": ["s3cret"]})
            assert "s3cret" not in str(caught.value)
        assert "00000000" not in repr(Settings(auth=Auth(tokens=(f"x:sha256:{'0' * 64}",))))

    def test_a_host_application_reads_no_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Settings() is what its arguments say, whatever the process was started with."""
        monkeypatch.setenv(f"{P}SERVER__PORT", "9")

        assert Settings().server.port == 8080

    def test_strict_types(self) -> None:
        """A number in quotes is a mistake, not a number."""
        with pytest.raises(ValidationError):
            Server.model_validate({"port": "8080"})

    def test_an_explicit_level_is_known_as_such(self, file: Path) -> None:
        """The reader stores large databases only if nobody asked for a level."""
        file.write_text("[archive]\nlevel = 1\n")

        assert "level" in load(file, {}).archive.model_fields_set
        assert "level" not in load(None, {}).archive.model_fields_set

    def test_a_relative_directory_is_made_absolute(self, file: Path) -> None:
        """Nobody depends on the working directory later."""
        file.write_text('data.dir = "here"')

        assert load(file, {}).data.dir == Path.cwd() / "here"

    @pytest.mark.parametrize("pattern", ["floor_plan/", "./floor_plan", "floor_plan"])
    def test_patterns_are_normalised(self, pattern: str) -> None:
        """As a shell completes them."""
        assert Data(include=(pattern,)).include == ("floor_plan",)


class TestFile:
    def test_the_example_is_every_default(self, file: Path) -> None:
        """It is valid as it is, and shows what would be without it."""
        file.write_text(example())

        assert load(file, {}) == Settings()

    def test_the_example_names_every_key(self) -> None:
        """And no other."""
        document = tomllib.loads(example())

        assert {name: set(table) for name, table in document.items()} == {
            name: set(model.model_fields) for name, model in SECTIONS.items()
        }

    def test_each_key_of_the_example_has_its_reason(self) -> None:
        """One line at least, above it; `port` and its `host` share theirs."""
        lines = example().splitlines()
        bare = [
            line
            for above, line in itertools.pairwise(lines)
            if " = " in line and not line.startswith("#") and not above.startswith("#")
        ]

        assert bare == ["port = 8080"]

    def test_a_byte_order_mark_is_no_mistake(self, file: Path) -> None:
        """Some editors write one."""
        file.write_bytes(b"\xef\xbb\xbfserver.port = 1")

        assert load(file, {}).server.port == 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("server.prot = 1", "server.prot: unknown key (did you mean port?)"),
            ("sever.port = 1", "sever: unknown section (did you mean server?)"),
            ("server.nice = 1", "server.nice: unknown key (did you mean limits.nice?)"),
            ("server.xyzzy = 1", "server.xyzzy: unknown key"),
            ("server = 1", "server: must be a table, [server]"),
            ('server.port = "eighty"', "server.port: 'eighty' is not a whole number"),
            ("server.port = 80.5", "server.port: 80.5 is not a whole number"),
            ("server.port = true", "server.port: True is not a whole number"),
            ("server.port = 65536", "server.port: must be at most 65535 (got 65536)"),
            ('server.host = "a b"', "server.host: 'a b' is not a host name or an address"),
            ("data.dir = 3", "data.dir: 3 is not a text"),
            ('data.dir = ""', "data.dir: must not be empty"),
            ('data.databases = "*.db"', "data.databases: '*.db' is not a list"),
            (
                'data.databases = ["a", "/b"]',
                "data.databases[1]: '/b' must be relative to the data directory",
            ),
            ('data.include = ["../x"]', "data.include[0]: '../x' must not leave the data directory"),
            (
                'data.include = ["a/../../x"]',
                "data.include[0]: 'a/../../x' must not leave the data directory",
            ),
            ('data.version = "1\\n2"', "data.version: '1\\n2' has control characters"),
            ('archive.compression = "zip"', "archive.compression: 'zip' is not 'deflate' or 'stored'"),
            ("archive.strict = 1", "archive.strict: 1 is not true or false"),
            ("limits.buffer_bytes = 1", "limits.buffer_bytes: must be at least 262144 (got 1)"),
            ("limits.max_hold_seconds = inf", "limits.max_hold_seconds: inf is not a number"),
            ("limits.max_hold_seconds = 0", "limits.max_hold_seconds: must be more than 0 (got 0)"),
            ("limits.nice = 20\nserver.port = -1", "server.port: must be at least 0 (got -1) (and 1 more)"),
            ('auth.allow_anonymous = "s3cret"', "auth.allow_anonymous: the value is not true or false"),
            ('auth.tokens = "s3cret"', "auth.tokens: the value is not a list"),
            ("auth.tokens = [3]", "auth.tokens[0]: the value is not a text"),
            (
                'auth.tokens = ["s3cret"]',
                "auth.tokens[0]: is not NAME:sha256:HEX[:key=value…], as `mothership-backup token new NAME` prints it",
            ),
            (
                'server.trusted_proxies = ["10.0.0.1/8"]',
                "server.trusted_proxies[0]: '10.0.0.1/8' is not a network such as 10.0.0.0/8 (without host bits)",
            ),
            (
                'server.trusted_proxies = ["::/0"]',
                "server.trusted_proxies[0]: '::/0' is everybody: name the proxies' own addresses",
            ),
            (
                'server.base_path = "rover"',
                "server.base_path: 'rover' must be empty or a plain path such as /backup",
            ),
            ('server.base_path = "/a/.."', "server.base_path: '/a/..' must not hold . or .."),
        ],
    )
    def test_a_mistake_is_named(self, file: Path, text: str, message: str) -> None:
        """File, key, value, and what would be right."""
        file.write_text(text)

        assert refusal(file) == f"config.toml: {message}"

    def test_a_credential_that_nobody_needs_is_refused(self, file: Path) -> None:
        """Whoever adds one means that it is asked for."""
        file.write_text(f'auth.allow_anonymous = true\nauth.tokens = ["x:sha256:{"0" * 64}"]')

        assert refusal(file).startswith("auth.allow_anonymous: true makes every credential needless")

    def test_a_tokens_file_inside_the_data_directory_is_refused(self, file: Path) -> None:
        """This process opens nothing there."""
        file.write_text('data.dir = "/srv"\nauth.tokens_file = "/srv/tokens"')

        assert refusal(file) == "auth.tokens_file: it is inside data.dir (/srv): keep it elsewhere"

    def test_a_syntax_error_has_its_line(self, file: Path) -> None:
        """As an editor counts."""
        file.write_text("[server]\nport = \n")

        assert refusal(file) == "config.toml: Invalid value (at line 2, column 8)"

    @pytest.mark.parametrize("data", [b"\xff", b"x = " + b"[" * 5000, b"x = " + b"9" * 5000, b"\x00"])
    def test_nonsense_is_an_error_like_any_other(self, file: Path, data: bytes) -> None:
        """Whatever the file holds, it is a ConfigError that names it."""
        file.write_bytes(data)

        assert refusal(file).startswith("config.toml: ")

    def test_a_missing_file_is_named(self, file: Path) -> None:
        """A path that was given must exist."""
        assert refusal(file) == "config.toml: No such file or directory"

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        """The same for what cannot be read."""
        assert refusal(tmp_path) == f"{tmp_path}: Is a directory"

    @pytest.mark.parametrize("staging", ["/data", "/data/tmp", "/data/../data/tmp"])
    def test_staging_inside_the_data_directory_is_refused(self, file: Path, staging: str) -> None:
        """Nothing is ever written there."""
        file.write_text(f'snapshot.staging_dir = "{staging}"')

        assert "is inside data.dir (/data): choose a folder outside" in refusal(file)

    def test_staging_beside_the_data_directory_is_good(self, file: Path) -> None:
        """Only whole names count."""
        file.write_text('snapshot.staging_dir = "/data-staging"')

        assert load(file, {}).snapshot.staging_dir == "/data-staging"


class TestEnvironment:
    def test_each_key_has_its_variable(self) -> None:
        """The default, written as text, is the default."""
        environ = {
            f"{P}{section}__{key}".upper(): (
                ",".join(value) if isinstance(value, tuple) else str(value).lower()
            )
            for section, model in SECTIONS.items()
            for key, value in model()
        }

        assert load(None, environ) == Settings()

    def test_a_variable_comes_before_the_file_and_an_option_before_both(self, file: Path) -> None:
        """What stands nearer to the start wins."""
        file.write_text("[server]\nport = 1\nhost = 'a'\n[limits]\nnice = 3")
        environ = {f"{P}SERVER__PORT": "2", f"{P}SERVER__HOST": "b"}

        settings = load(
            file, environ, [Option("--port", "server", "port", 3), Option("--host", "server", "host", None)]
        )

        assert (settings.server.port, settings.server.host, settings.limits.nice) == (3, "b", 3)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", ()),
            ("a.db", ("a.db",)),
            ("a.db, b.db", ("a.db", "b.db")),
            ('["a,b.db"]', ("a,b.db",)),
            ("[]", ()),
        ],
    )
    def test_lists_are_separated_by_commas_or_json(self, text: str, expected: tuple[str, ...]) -> None:
        """JSON, if it begins with a bracket."""
        assert load(None, {f"{P}DATA__EXCLUDE": text}).data.exclude == expected

    @pytest.mark.parametrize(
        ("text", "expected"), [("TRUE", True), ("1", True), ("off", False), ("no", False)]
    )
    def test_truth_is_written_in_many_ways(self, text: str, expected: bool) -> None:
        """As people write it in a unit or a compose file."""
        assert load(None, {f"{P}ARCHIVE__STRICT": text}).archive.strict is expected

    def test_a_text_can_come_from_a_file(self, tmp_path: Path) -> None:
        """As secrets and config maps are mounted; the last line break is the file's."""
        (tmp_path / "prefix").write_text("home\n")

        settings = load(None, {f"{P}ARCHIVE__NAME_PREFIX_FILE": str(tmp_path / "prefix")})

        assert settings.archive.name_prefix == "home"

    def test_a_key_that_ends_in_file_is_itself(self) -> None:
        """data.version_file is a key, not data.version from a file."""
        assert load(None, {f"{P}DATA__VERSION_FILE": "v"}).data.version_file == "v"

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            (f"{P}SERVER__PORT", "eighty", "'eighty' is not a whole number"),
            (f"{P}SERVER__PORT", "", "'' is not a whole number"),
            (f"{P}SERVER__PORT", "8_0", "'8_0' is not a whole number"),
            (f"{P}SERVER__PORT", "99999", "must be at most 65535 (got 99999)"),
            (f"{P}LIMITS__MAX_HOLD_SECONDS", "nan", "'nan' is not a number"),
            (f"{P}ARCHIVE__STRICT", "maybe", "'maybe' is not true or false"),
            (f"{P}AUTH__ALLOW_ANONYMOUS", "s3cret", "the value is not true or false"),
            (f"{P}DATA__EXCLUDE", "[1", "'[1' begins like JSON and is none"),
            (f"{P}DATA__EXCLUDE", "[1]", "[0]: 1 is not a text"),
            (f"{P}DATA__EXCLUDE", "a,,b", "[1]: '' is not a pattern"),
            (f"{P}SERVER__PROT", "1", f"names no key (did you mean {P}SERVER__PORT?)"),
            (f"{P}SEVER__PORT", "1", f"names no key (did you mean {P}SERVER__PORT?)"),
            ("MOTHERSHIP_BACKUP_SERVER_PORT", "1", f"names no key (did you mean {P}SERVER__PORT?)"),
            (f"{P}SERVER__PORT__X", "1", "names no key"),
            ("MOTHERSHIP_BACKUP", "1", "names no key"),
            ("MOTHERSHIP_BACKUP_PORT", "8080", "names no key"),
            (
                "MOTHERSHIP_BACKUP_CONFIG",
                "x",
                "unknown variable (the configuration file is named by --config)",
            ),
            (f"{P}SERVER__HOST_FILE", "/nowhere", "/nowhere: No such file or directory"),
            (f"{P}SERVER__PORT_FILE", "/etc/hostname", "only a text can come from a file"),
        ],
    )
    def test_a_mistake_is_named(self, name: str, text: str, message: str) -> None:
        """The variable, its value, and what would be right."""
        shown = refusal(environ={name: text})

        assert shown.startswith(f"${name}")
        assert message in shown

    def test_a_value_and_a_file_for_it_is_one_too_many(self, tmp_path: Path) -> None:
        """Which of them would count?"""
        (tmp_path / "host").write_text("a")
        environ = {f"{P}SERVER__HOST": "b", f"{P}SERVER__HOST_FILE": str(tmp_path / "host")}

        assert (
            refusal(environ=environ)
            == f"${P}SERVER__HOST_FILE: ${P}SERVER__HOST is set too: unset one of them"
        )

    def test_what_kubernetes_sets_for_a_service_of_our_name_is_not_ours(self) -> None:
        """Else the second pod beside a Service named mothership-backup would not start."""
        environ = {
            "MOTHERSHIP_BACKUP_SERVICE_HOST": "10.0.0.7",
            "MOTHERSHIP_BACKUP_SERVICE_PORT": "8080",
            "MOTHERSHIP_BACKUP_SERVICE_PORT_HTTP": "8080",
            "MOTHERSHIP_BACKUP_PORT": "tcp://10.0.0.7:8080",
            "MOTHERSHIP_BACKUP_PORT_8080_TCP": "tcp://10.0.0.7:8080",
            "MOTHERSHIP_BACKUP_PORT_8080_TCP_PROTO": "tcp",
            "MOTHERSHIP_BACKUP_PORT_8080_TCP_PORT": "8080",
            "MOTHERSHIP_BACKUP_PORT_8080_TCP_ADDR": "10.0.0.7",
            "MOTHERSHIP_BACKUP_METRICS_SERVICE_HOST": "10.0.0.8",
        }

        assert load(None, environ) == Settings()

    def test_the_token_of_fetch_is_no_misspelt_key(self) -> None:
        """The service and its client may share an environment; only this name is let through."""
        assert load(None, {"MOTHERSHIP_BACKUP_TOKEN": "s3cret"}) == Settings()
        assert (
            refusal(environ={"MOTHERSHIP_BACKUP_TOKENS": "s3cret"})
            == "$MOTHERSHIP_BACKUP_TOKENS: names no key"
        )

    def test_an_option_is_named_by_its_own_name(self) -> None:
        """As the person wrote it."""
        assert refusal(options=(Option("--port", "server", "port", 99999),)).startswith(
            "--port: must be at most"
        )


@given(st.sampled_from([f"{s}__{k}".upper() for s, m in SECTIONS.items() for k in m.model_fields]), st.text())
def test_no_text_of_a_variable_is_anything_but_settings_or_a_configuration_error(key: str, text: str) -> None:
    """Whatever somebody writes there."""
    with contextlib.suppress(ConfigError):
        settings = load(None, {P + key: text})

        assert Settings.model_validate(settings.model_dump()) == settings


def test_settings_can_be_read_from_json() -> None:
    """A host application may keep them in its own JSON."""
    settings = Settings(data=Data(dir=Path("/srv/spaxel")))

    assert Settings.model_validate_json(settings.model_dump_json()) == settings
