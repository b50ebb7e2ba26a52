"""`token`: make a credential."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, TypeVar

import typer

from mothership_backup.cli.terminal import show
from mothership_backup.credentials import (
    SCOPES,
    Credential,
    digest_of,
    new_token,
    parse_day,
    parse_name,
    parse_networks,
    parse_scope,
)
from mothership_backup.errors import ConfigError

Value = TypeVar("Value")


class Action(StrEnum):
    """What to do with a token. To withdraw one, delete its line."""

    NEW = "new"


def token(
    action: Annotated[Action, typer.Argument(help="Make a new one.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will show it, for the log.")],
    scope: Annotated[str, typer.Option(help=f"What it may ask for: {' or '.join(SCOPES)}.")] = "backup",
    expires: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="Its last day, in UTC; else it has none.")
    ] = None,
    networks: Annotated[
        str | None, typer.Option("--from", metavar="NET[,NET]", help="Where it is good; else everywhere.")
    ] = None,
) -> None:
    """Make a token for NAME: print it, and on the next line its stored form for auth.tokens or auth.tokens_file."""
    secret = new_token()
    credential = Credential(
        name=_parse("NAME", parse_name, name),
        digest=digest_of(secret.encode()),
        scope=_parse("--scope", parse_scope, scope),
        expires=None if expires is None else _parse("--expires", parse_day, expires),
        networks=() if networks is None else _parse("--from", parse_networks, networks),
    )
    if credential.is_expired(datetime.now(UTC).date()):
        raise ConfigError(f"--expires: {credential.expires} is over")
    show(f"{secret}\n{credential.stored()}")


def _parse(option: str, parse: Callable[[str], Value], text: str) -> Value:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r}: {error}") from None
