"""TOML and environment -> Settings, or an error naming file or variable, key and value.

``Settings`` is plain data, and all that a host application needs: nothing is read from anywhere to make one.
``load`` makes one for the command line: the defaults, overlaid by the file, the environment and the options.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal, NamedTuple, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from mothership_backup import credentials
from mothership_backup.errors import ConfigError

PREFIX: Final = "MOTHERSHIP_BACKUP"
WEEK_SECONDS: Final = 7 * 24 * 3600

# The token of `fetch`, which asks another service: no setting of this one, but a pod or a unit that runs both has it
# in one environment, where it must not be taken for a misspelt key.
TOKEN_VARIABLE: Final = f"{PREFIX}_TOKEN"

# Kubernetes puts these into every pod beside a Service named mothership-backup; they are not meant for us.
# https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
# MOTHERSHIP_BACKUP_PORT=8080 is none of them but a person's mistake: theirs is tcp://10.0.0.7:8080.
SERVICE_LINK: Final = re.compile(
    PREFIX + r"(_[A-Z0-9]+)*_"
    r"(SERVICE_HOST=|SERVICE_PORT(_[A-Z0-9_]+)?=|PORT_[0-9]+_(TCP|UDP|SCTP)[_=]|PORT=(tcp|udp|sctp)://)"
)


def _refuse(reason: str) -> PydanticCustomError:
    return PydanticCustomError("config", "{reason}", {"reason": reason})


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise _refuse(f"{_shown(text)} has control characters")
    return text


def _host(text: str) -> str:
    if not text or "/" in text or any(character.isspace() for character in text):
        raise _refuse(f"{_shown(text)} is not a host name or an address")
    return text


def _name_prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise _refuse(f"{_shown(text)} must be 1 to 64 letters, digits, dots, underscores or hyphens")
    return text


def _pattern(text: str) -> str:
    path = PurePosixPath(text)
    if not text or path == PurePosixPath():
        raise _refuse(f"{_shown(text)} is not a pattern (* is everything directly in the data directory)")
    if path.is_absolute():
        raise _refuse(f"{_shown(text)} must be relative to the data directory")
    if ".." in path.parts:
        raise _refuse(f"{_shown(text)} must not leave the data directory")
    return str(path)  # floor_plan/ and ./floor_plan are floor_plan


def _network(text: str) -> str:
    try:
        network = ip_network(text)
    except ValueError:
        raise _refuse(f"{_shown(text)} is not a network such as 10.0.0.0/8 (without host bits)") from None
    if network.prefixlen == 0:
        raise _refuse(f"{_shown(text)} is everybody: name the proxies' own addresses")
    return str(network)


def _base_path(text: str) -> str:
    stripped = text.rstrip("/")
    if stripped and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", stripped):
        raise _refuse(f"{_shown(text)} must be empty or a plain path such as /backup")
    if {".", ".."} & set(stripped.split("/")):
        raise _refuse(f"{_shown(text)} must not hold . or ..")  # a client takes them out of its URL
    return stripped


def _credential(text: str) -> str:
    try:
        return credentials.parse(text).stored()
    except ValueError as error:
        raise _refuse(str(error)) from None


def _not_empty(value: object) -> object:
    if value == "":
        raise _refuse("must not be empty")
    return value


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Line = Annotated[str, AfterValidator(_one_line)]
Host = Annotated[Line, AfterValidator(_host)]
Hosts = Annotated[tuple[Host, ...], BeforeValidator(_as_tuple)]
Patterns = Annotated[tuple[Annotated[Line, AfterValidator(_pattern)], ...], BeforeValidator(_as_tuple)]
Networks = Annotated[tuple[Annotated[Line, AfterValidator(_network)], ...], BeforeValidator(_as_tuple)]
BasePath = Annotated[Line, AfterValidator(_base_path)]
Tokens = Annotated[tuple[Annotated[str, AfterValidator(_credential)], ...], BeforeValidator(_as_tuple)]
Seconds = Annotated[float, Field(ge=0, le=WEEK_SECONDS, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, le=WEEK_SECONDS, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]
SomeBytes = Annotated[int, Field(ge=1, lt=2**63)]


class Section(BaseModel):
    """A table of the configuration file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Server(Section):
    host: Host = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    base_path: BasePath = ""
    allowed_hosts: Hosts = ()
    trusted_proxies: Networks = ()
    shutdown_grace_seconds: Seconds = 10
    tls_cert: Line = ""
    tls_key: Line = ""
    tls_client_ca: Line = ""

    @field_validator("tls_cert", "tls_key", "tls_client_ca")
    @classmethod
    def _absolute(cls, text: str) -> str:
        return os.path.abspath(text) if text else text


class Data(Section):
    # Not strict: TOML and JSON have no paths, only text.
    dir: Annotated[Path, Field(strict=False), BeforeValidator(_not_empty)] = Path("/data")
    databases: Patterns = ("*.db",)
    include: Patterns = ("floor_plan",)
    exclude: Patterns = ()
    version: Annotated[Line, Field(max_length=256)] = ""
    version_file: Line = ""

    @field_validator("dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        _one_line(os.fsencode(path).decode("utf-8", "replace"))
        return path.absolute()


class Archive(Section):
    name_prefix: Annotated[str, AfterValidator(_name_prefix)] = "spaxel"
    compression: Literal["deflate", "stored"] = "deflate"
    level: Annotated[int, Field(ge=1, le=9)] = 1
    check: Literal["none", "quick", "full"] = "quick"
    strict: bool = False


class Snapshot(Section):
    engine: Literal["auto", "live", "staged"] = "auto"
    busy_timeout_seconds: Seconds = 1
    max_lock_seconds: SomeSeconds = 4
    check_timeout_seconds: Annotated[int, Field(ge=1, le=WEEK_SECONDS)] = 300
    staging_memory_bytes: Bytes = 16 * 1024 * 1024
    staging_dir: Line = ""

    @field_validator("staging_dir")
    @classmethod
    def _absolute(cls, text: str) -> str:
        return os.path.abspath(text) if text else text


class Limits(Section):
    concurrent_backups: Annotated[int, Field(ge=1, le=100)] = 2
    buffer_bytes: Annotated[int, Field(ge=256 * 1024, lt=2**63)] = 4 * 1024 * 1024
    stall_timeout_seconds: SomeSeconds = 30
    max_hold_seconds: SomeSeconds = 1800
    max_wal_growth_bytes: SomeBytes = 256 * 1024 * 1024
    min_free_bytes: Bytes = 256 * 1024 * 1024
    read_bytes_per_second: Bytes = 0
    nice: Annotated[int, Field(ge=0, le=19)] = 5
    threads: Annotated[int, Field(ge=0, le=64)] = 0


class Auth(Section):
    # What a host application gets as pydantic's own error is not to show them either.
    model_config = ConfigDict(hide_input_in_errors=True)

    allow_anonymous: bool = False
    tokens: Annotated[Tokens, Field(repr=False)] = ()
    tokens_file: Line = ""

    @field_validator("tokens_file")
    @classmethod
    def _absolute(cls, text: str) -> str:
        return os.path.abspath(text) if text else text

    @property
    def has_credentials(self) -> bool:
        """Whether anybody has to show one; an empty file lets nobody in."""
        return bool(self.tokens or self.tokens_file)


class History(Section):
    path: Line = ""
    keep: Annotated[int, Field(ge=1, le=1_000_000)] = 1000

    @field_validator("path")
    @classmethod
    def _absolute(cls, text: str) -> str:
        return os.path.abspath(text) if text else text


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    slow_backup_seconds: Seconds = 5


class Settings(Section):
    """Everything that can be set, checked; ``config.example.toml`` says what each key is for."""

    model_config = ConfigDict(hide_input_in_errors=True)  # those of [auth] come through here

    server: Server = Server()
    data: Data = Data()
    archive: Archive = Archive()
    snapshot: Snapshot = Snapshot()
    limits: Limits = Limits()
    auth: Auth = Auth()
    history: History = History()
    log: Log = Log()

    @model_validator(mode="after")
    def _staging_outside(self) -> Settings:
        staging_dir = self.snapshot.staging_dir
        if self._is_inside_data_dir(staging_dir):
            raise _refuse(
                f"snapshot.staging_dir: {staging_dir} is inside data.dir ({self.data.dir}): choose a folder outside"
            )
        return self

    @model_validator(mode="after")
    def _tokens_file_outside(self) -> Settings:
        # The service process opens it, and what a source pattern names it must never open.
        if self._is_inside_data_dir(self.auth.tokens_file):
            raise _refuse(f"auth.tokens_file: it is inside data.dir ({self.data.dir}): keep it elsewhere")
        return self

    @model_validator(mode="after")
    def _tls_files(self) -> Settings:
        server = self.server
        files = {key: getattr(server, key) for key in ("tls_cert", "tls_key", "tls_client_ca")}
        for key, path in files.items():
            if path and not server.tls_cert:
                raise _refuse(f"server.{key}: needs server.tls_cert, the certificate that is served")
            if self._is_inside_data_dir(path):  # as auth.tokens_file
                raise _refuse(f"server.{key}: {path} is inside data.dir ({self.data.dir}): keep it elsewhere")
        return self

    @model_validator(mode="after")
    def _one_rule(self) -> Settings:
        if self.auth.allow_anonymous and self.auth.has_credentials:
            raise _refuse(
                "auth.allow_anonymous: true makes every credential needless, and auth has some: keep one of the two"
            )
        return self

    def _is_inside_data_dir(self, path: str) -> bool:
        # By name only: nothing below the data directory is opened here, not even to look.
        data_dir = os.path.abspath(self.data.dir)
        return bool(path) and os.path.commonpath([data_dir, path]) == data_dir


SECTIONS: Final[Mapping[str, type[Section]]] = {
    "server": Server,
    "data": Data,
    "archive": Archive,
    "snapshot": Snapshot,
    "limits": Limits,
    "auth": Auth,
    "history": History,
    "log": Log,
}


# What pydantic calls an error -> our words for it. https://docs.pydantic.dev/latest/errors/validation_errors/
NOT_A: Final[Mapping[str, str]] = {
    "bool_type": "true or false",
    "finite_number": "a number",
    "float_type": "a number",
    "int_type": "a whole number",
    "path_type": "a text",
    "is_instance_of": "a text",
    "string_type": "a text",
    "tuple_type": "a list",
}
BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "string_too_long": ("no longer than", "max_length"),
}


class Option(NamedTuple):
    """An option of the command line that sets a key: ``Option("--port", "server", "port", 8080)``."""

    name: str
    section: str
    key: str
    value: object


class _Entry(NamedTuple):
    """One value and where it stands, as a message names it."""

    section: str
    key: str
    value: object
    origin: str


def load(path: Path | None, environ: Mapping[str, str], options: Sequence[Option] = ()) -> Settings:
    """The defaults, overlaid by the file at ``path``, by variables in ``environ``, by ``options``.

    Raises ConfigError. An option whose value is None was not given.
    """
    entries = [
        *(_from_file(path) if path is not None else ()),
        *_from_environment(environ),
        *(_Entry(o.section, o.key, o.value, o.name) for o in options if o.value is not None),
    ]
    document: dict[str, dict[str, object]] = {}
    origins: dict[tuple[str, str], str] = {}
    for entry in entries:
        document.setdefault(entry.section, {})[entry.key] = entry.value
        origins[entry.section, entry.key] = entry.origin
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise ConfigError(_message(error, origins)) from None  # its text would show values below [auth]


def example() -> str:
    """Every key with its default and its reason, as TOML."""
    return importlib.resources.files("mothership_backup").joinpath("config.example.toml").read_text("utf-8")


def _from_file(path: Path) -> Iterator[_Entry]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for section, table in document.items():
        if section not in SECTIONS:
            raise ConfigError(f"{path}: {section}: unknown section{_did_you_mean(section, SECTIONS)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section}: must be a table, [{section}]")
        for key, value in table.items():
            if key not in SECTIONS[section].model_fields:
                raise ConfigError(f"{path}: {section}.{key}: unknown key{_suggest_key(section, key)}")
            yield _Entry(section, key, value, f"{path}: {section}.{key}")


def _suggest_key(section: str, key: str) -> str:
    for name, model in SECTIONS.items():
        if key in model.model_fields:
            return f" (did you mean {name}.{key}?)"
    return _did_you_mean(key, SECTIONS[section].model_fields)


def _did_you_mean(word: str, words: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Entry]:
    names = {
        f"{PREFIX}__{section}__{key}".upper(): (section, key)
        for section, model in SECTIONS.items()
        for key in model.model_fields
    }
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or SERVICE_LINK.match(f"{variable}={text}"):
            continue
        if variable == TOKEN_VARIABLE:
            continue
        origin = f"${variable}"
        # A key's own name comes first: …__DATA__VERSION_FILE is data.version_file.
        if variable in names:
            section, key = names[variable]
        elif variable.removesuffix("_FILE") in names:
            section, key = names[variable.removesuffix("_FILE")]
            if not _is_text(section, key):
                raise ConfigError(f"{origin}: only a text can come from a file, and {section}.{key} is none")
            if variable.removesuffix("_FILE") in environ:
                raise ConfigError(
                    f"{origin}: ${variable.removesuffix('_FILE')} is set too: unset one of them"
                )
            text = _read_value(origin, text)
        else:
            raise ConfigError(f"{origin}: {_unknown_variable(variable, names)}")
        yield _Entry(section, key, _parse(origin, section, key, text), origin)


def _unknown_variable(variable: str, names: Mapping[str, object]) -> str:
    if variable == f"{PREFIX}_CONFIG":
        return "unknown variable (the configuration file is named by --config)"
    short = {name.removeprefix(PREFIX): name for name in names}  # else the prefix makes everything alike
    close = difflib.get_close_matches(variable.removeprefix(PREFIX), short, n=1, cutoff=0.7)
    return f"names no key (did you mean {short[close[0]]}?)" if close else "names no key"


def _read_value(origin: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{origin}: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: {path}: not UTF-8 text") from error


def _annotation(section: str, key: str) -> object:
    return SECTIONS[section].model_fields[key].annotation


def _is_text(section: str, key: str) -> bool:
    return _annotation(section, key) in (str, Path) or get_origin(_annotation(section, key)) is Literal


def _parse(origin: str, section: str, key: str, text: str) -> object:
    """The text of a variable as the type of its key."""
    annotation = _annotation(section, key)
    shown = "the value" if section == "auth" else _shown(text)
    if annotation is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ConfigError(f"{origin}: {shown} is not true or false")
        return text.lower() in ("true", "1", "yes", "on")
    if annotation is int:
        if not re.fullmatch(r"[+-]?[0-9]{1,30}", text):
            raise ConfigError(f"{origin}: {shown} is not a whole number")
        return int(text)
    if annotation is float:
        if not re.fullmatch(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?", text):
            raise ConfigError(f"{origin}: {shown} is not a number")
        return float(text)
    if get_origin(annotation) is tuple:
        return _parse_list(origin, shown, text)
    return text


def _parse_list(origin: str, shown: str, text: str) -> object:
    if not text.startswith("["):
        return tuple(item.strip() for item in text.split(",")) if text.strip() else ()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: {shown} begins like JSON and is none") from error


def _message(error: ValidationError, origins: Mapping[tuple[str, str], str]) -> str:
    first, *others = error.errors(include_url=False)
    if len(first["loc"]) < 2:  # about several keys: the reason names them
        return _reason(first, secret=False)
    section, key, *items = map(str, first["loc"])
    place = origins[section, key] + "".join(f"[{item}]" for item in items)
    more = f" (and {len(others)} more)" if others else ""
    return f"{place}: {_reason(first, secret=section == 'auth')}{more}"


def _reason(details: ErrorDetails, *, secret: bool) -> str:
    kind, context = details["type"], details.get("ctx", {})
    shown = "the value" if secret else _shown(details["input"])
    if kind in NOT_A:
        return f"{shown} is not {NOT_A[kind]}"
    if kind in BOUNDS:
        words, bound = BOUNDS[kind]
        limit = str(context[bound]).removesuffix(".0")
        return f"must be {words} {limit}" + ("" if secret else f" (got {shown})")
    if kind == "literal_error":
        return f"{shown} is not {context['expected']}"
    return details["msg"]
