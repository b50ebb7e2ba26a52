"""Query parameters -> the options of one backup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, TypeVar

from multidict import MultiMapping

from mothership_backup.backup import Options
from mothership_backup.web.problems import RequestError

Value = TypeVar("Value")

COMPRESSIONS: Final[Mapping[str, Literal["deflate", "stored"]]] = {"deflate": "deflate", "stored": "stored"}
CHECKS: Final[Mapping[str, Literal["none", "quick", "full"]]] = {
    "none": "none",
    "quick": "quick",
    "full": "full",
}
BOOLEANS: Final[Mapping[str, bool]] = {"true": True, "false": False}
PARAMETERS: Final = ("compression", "check", "strict", "database", "files")


def parse(query: MultiMapping[str], defaults: Options) -> Options:
    """What was asked for, over the defaults. Raises RequestError (``bad_parameter``), which names the parameter."""
    for name in query:
        if name not in PARAMETERS:
            raise RequestError(f"{name!r}: unknown parameter; there are {', '.join(PARAMETERS)}")
    databases = tuple(query.getall("database", ()))
    if not all(databases):
        raise RequestError("database: empty; name a database, or a pattern such as *.db")
    return replace(
        defaults,
        compression=_one_of(query, "compression", COMPRESSIONS, defaults.compression),
        check=_one_of(query, "check", CHECKS, defaults.check),
        strict=_one_of(query, "strict", BOOLEANS, defaults.strict),
        files=_one_of(query, "files", BOOLEANS, defaults.files),
        databases=databases or defaults.databases,
    )


def _one_of(query: MultiMapping[str], name: str, words: Mapping[str, Value], default: Value) -> Value:
    values = query.getall(name, ())
    if not values:
        return default
    if len(values) > 1:
        raise RequestError(f"{name}: given {len(values)} times")
    if values[0] not in words:
        raise RequestError(f"{name}: {values[0]!r} is not one of {', '.join(words)}")
    return words[values[0]]
