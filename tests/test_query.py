from __future__ import annotations

from dataclasses import replace

import pytest
from yarl import URL

from mothership_backup.backup import Options
from mothership_backup.config import Settings
from mothership_backup.web.problems import RequestError
from mothership_backup.web.query import parse

DEFAULTS = Options.of(Settings())


def parsed(query: str) -> Options:
    return parse(URL(f"/api/backup?{query}").query, DEFAULTS)


def test_no_query() -> None:
    """Without a query a backup is what the configuration says."""
    assert parsed("") == DEFAULTS


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("compression=stored", replace(DEFAULTS, compression="stored")),
        ("compression=deflate&check=full", replace(DEFAULTS, compression="deflate", check="full")),
        ("check=none", replace(DEFAULTS, check="none")),
        ("strict=true&files=false", replace(DEFAULTS, strict=True, files=False)),
        ("strict=false&files=true", replace(DEFAULTS, strict=False, files=True)),
        ("database=a.db", replace(DEFAULTS, databases=("a.db",))),
        ("database=a*.db&database=%C3%BC%20%5B1%5D.db", replace(DEFAULTS, databases=("a*.db", "ü [1].db"))),
    ],
)
def test_parameters(query: str, expected: Options) -> None:
    """Each parameter changes its own option and nothing else."""
    assert parsed(query) == expected


def test_query_over_configuration() -> None:
    """A query can also take back what the configuration asks for."""
    strict = replace(DEFAULTS, strict=True, compression="stored")

    assert parse(URL("/?strict=false&compression=deflate").query, strict) == DEFAULTS


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("compresion=stored", "'compresion'"),
        ("Strict=true", "'Strict'"),
        ("=true", "''"),
        ("compression=gzip", "compression: 'gzip'"),
        ("compression=STORED", "compression: 'STORED'"),
        ("check=", "check: ''"),
        ("check=quick%0A", "check: 'quick\\n'"),
        ("strict", "strict: ''"),
        ("strict=1", "strict: '1'"),
        ("files=yes", "files: 'yes'"),
        ("strict=true&strict=true", "strict: given 2 times"),
        ("compression=deflate&compression=stored", "compression: given 2 times"),
        ("database=", "database: empty"),
        ("database=a.db&database=", "database: empty"),
    ],
)
def test_bad_parameters(query: str, told: str) -> None:
    """What is unknown, malformed or given twice is refused by name."""
    with pytest.raises(RequestError) as raised:
        parsed(query)

    assert raised.value.code == "bad_parameter"
    assert raised.value.message.startswith(told)
