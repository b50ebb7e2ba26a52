"""`token new` prints a token and what is stored of it."""

from __future__ import annotations

import sys

import pytest

from harness import Done, run
from mothership_backup.cli.token import Action
from mothership_backup.cli.token import token as make_token
from mothership_backup.config import Auth
from mothership_backup.credentials import TOKEN, digest_of, parse
from mothership_backup.errors import ConfigError


def token(*arguments: str) -> Done:
    return run(sys.executable, "-m", "mothership_backup", "token", *arguments)


def test_a_token_and_its_stored_form() -> None:
    """On two lines of stdout: the one for the client, the other for the service."""
    done = token(
        "new", "cron", "--scope", "status", "--expires", "2999-12-31", "--from", "10.0.0.0/8,fd00::/8"
    )

    secret, stored = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert TOKEN.fullmatch(secret)
    assert stored.endswith(":scope=status:expires=2999-12-31:from=10.0.0.0/8,fd00::/8")
    assert parse(stored).digest == digest_of(secret.encode())
    assert parse(stored).name == "cron"
    assert Auth(tokens=(stored,)).tokens == (stored,)


def test_each_is_a_new_one() -> None:
    """And allows everything until it is withdrawn, if nothing else is said."""
    first, second = (token("new", "cron").stdout.splitlines() for _ in range(2))

    assert first[0] != second[0]
    assert first[1] == f"cron:sha256:{digest_of(first[0].encode()).hex()}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "two words"}, "NAME: 'two words': its name"),
        ({"scope": "all"}, "--scope: 'all': its scope"),
        ({"expires": "tomorrow"}, "--expires: 'tomorrow': its last day"),
        ({"expires": "2020-01-01"}, "--expires: 2020-01-01 is over"),
        ({"networks": "10.0.0.1/8"}, "--from: '10.0.0.1/8': its networks"),
    ],
)
def test_misuse(options: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The option by name, and no token."""
    with pytest.raises(ConfigError) as caught:
        make_token(Action.NEW, **({"name": "cron"} | options))

    assert caught.value.message.startswith(message)
    assert capsys.readouterr().out == ""


def test_without_a_name() -> None:
    """Exit code 2, and no token."""
    done = token("new")

    assert (done.returncode, done.stdout) == (2, "")
    assert "NAME" in done.stderr
