"""A stored credential is read as it was meant, or refused without repeating it."""

from __future__ import annotations

import contextlib
from datetime import date
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mothership_backup.credentials import TOKEN, Credential, Scope, digest_of, new_token, parse, redact

HEX = "ab" * 32
DIGEST = bytes.fromhex(HEX)


@pytest.mark.parametrize(
    ("text", "credential"),
    [
        (f"cron:sha256:{HEX}", Credential("cron", DIGEST)),
        (f"cron:sha256:{HEX.upper()}", Credential("cron", DIGEST)),
        (f"ha:sha256:{HEX}:scope=status", Credential("ha", DIGEST, "status")),
        (
            f"a@b.c_d-1:sha256:{HEX}:expires=2026-12-31",
            Credential("a@b.c_d-1", DIGEST, expires=date(2026, 12, 31)),
        ),
        (
            f"lan:sha256:{HEX}:from=10.0.0.0/8,fd00::/8:scope=backup",
            Credential("lan", DIGEST, networks=(ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
        ),
        (f"one:sha256:{HEX}:from=::1", Credential("one", DIGEST, networks=(ip_network("::1"),))),
    ],
)
def test_stored_forms(text: str, credential: Credential) -> None:
    """Keys in any order, IPv6 with its colons; written again it reads the same."""
    assert parse(text) == credential
    assert parse(credential.stored()) == credential


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mb_" + "x" * 43,
        f"cron:{HEX}",
        f"cron:sha256:{HEX[1:]}",
        f"cron:sha256:{HEX}0",
        f"cron:md5:{HEX}",
        f":sha256:{HEX}",
        f"two words:sha256:{HEX}",
        f"mb_{'x' * 43}:sha256:{HEX}",
        f"cron:sha256:{HEX}:",
        f"cron:sha256:{HEX}:scope",
        f"cron:sha256:{HEX}:scope=",
        f"cron:sha256:{HEX}:scope=stat",
        f"cron:sha256:{HEX}:scope=status:scope=backup",
        f"cron:sha256:{HEX}:expires=2026-02-30",
        f"cron:sha256:{HEX}:expires=20261231",
        f"cron:sha256:{HEX}:from=10.0.0.1/8",
        f"cron:sha256:{HEX}:from=",
        f"cron:sha256:{HEX}:s3cret=1",
        f"cron:sha256:{HEX}\n",
    ],
)
def test_malformed(text: str) -> None:
    """The reason says what is wrong, and nothing of what was read: it may be a token by mistake."""
    with pytest.raises(ValueError, match=r"its|must|has|is not") as caught:
        parse(text)

    assert HEX[:8] not in str(caught.value)
    assert "xxx" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_credential_or_a_value_error(text: str) -> None:
    """Nothing else comes out."""
    with contextlib.suppress(ValueError):
        assert parse(f"cron:sha256:{HEX}:{text}").digest == DIGEST


def test_the_last_day_is_a_good_one() -> None:
    """`expires` is inclusive."""
    credential = Credential("cron", DIGEST, expires=date(2026, 12, 31))

    assert [credential.is_expired(date(2026, 12, 31)), credential.is_expired(date(2027, 1, 1))] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("address", "is_good"), [("10.1.2.3", True), ("11.1.2.3", False), ("::1", False), (None, False)]
)
def test_networks(address: str | None, is_good: bool) -> None:
    """Of another family, or without an address, it is nowhere."""
    credential = Credential("lan", DIGEST, networks=(ip_network("10.0.0.0/8"),))

    assert credential.is_good_from(ip_address(address) if address else None) is is_good


@pytest.mark.parametrize(
    ("owned", "asked", "allowed"),
    [
        ("backup", "backup", True),
        ("backup", "status", True),
        ("status", "status", True),
        ("status", "backup", False),
    ],
)
def test_scopes(owned: Scope, asked: Scope, allowed: bool) -> None:
    """`backup` is all that `status` is, and more."""
    assert Credential("x", DIGEST, owned).allows(asked) is allowed


def test_a_token_is_found_in_any_text() -> None:
    """What a client puts into a path or a name is not repeated."""
    token = new_token()

    assert TOKEN.fullmatch(token)
    assert redact(f"'{token}': unknown parameter") == "'mb_***': unknown parameter"
    assert len(digest_of(token.encode())) == 32
