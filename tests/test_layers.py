"""The law of the layers: a module imports only from smaller numbers, and each library has one owner."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

import mothership_backup

PACKAGE: Final = "mothership_backup"
ROOT: Final = Path(mothership_backup.__file__).parent

LAYERS: Final = {
    "errors": 0,
    "frames": 0,
    "stream": 0,
    "deflate": 0,
    "names": 0,
    "place": 0,
    "credentials": 0,
    "config": 1,
    "decoder": 1,
    "manifest": 1,
    "reader": 2,
    "archive": 3,
    "child": 3,
    "backup": 4,
    "verify": 4,
    "history": 4,
    "restore": 5,
    "fetch": 5,
    "web": 5,
    "demo": 6,
    "cli": 7,  # starts the demo
    "__main__": 8,
}

# A library and the modules that may import it; the rest of the package talks to those.
OWNERS: Final = {
    "aiohttp": {"web", "cli", "demo", "fetch"},
    "aiosqlite": {"history", "demo"},
    "isal": {"deflate"},
    "prometheus_client": {"web"},
    "pydantic": {"config", "demo"},
    "pydantic_core": {"config"},
    "rich": {"cli"},
    "sqlean": {"reader"},
    "sqlite3": {"reader", "verify", "restore"},  # the service process opens no database
    "tomllib": {"config"},
    "typer": {"cli"},
    "zipstream": {"archive"},
}

MODULES: Final = sorted(set(ROOT.rglob("*.py")) - {ROOT / "__init__.py"})  # that one has a test of its own


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to: its folder at the top, or its own name."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, inside functions too."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            # `from mothership_backup import frames` names a module by its alias.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a file imports from."""
    inside = {name.split(".")[1] for name in imports(path) if name.startswith(f"{PACKAGE}.")}
    return {name for name in inside if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_smaller_layers(path: Path) -> None:
    """Or from its own folder."""
    part = part_of(path)
    assert part in LAYERS, f"{part} has no layer: say in the design where it belongs"

    upwards = {name for name in imported_parts(path) - {part} if LAYERS[name] >= LAYERS[part]}

    assert not upwards


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_a_library_has_its_owners(library: str) -> None:
    """Nobody else imports it."""
    users = {part_of(path) for path in MODULES if library in {name.split(".")[0] for name in imports(path)}}

    assert users <= OWNERS[library]


def test_the_package_imports_nothing_by_itself() -> None:
    """The reader imports it, and must start in 30 ms."""
    statements = ast.parse((ROOT / "__init__.py").read_bytes()).body
    at_once = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]

    assert [ast.unparse(node) for node in at_once] in ([], ["from __future__ import annotations"])


def test_the_reader_needs_nothing_but_the_standard_library_and_the_extra() -> None:
    """Its process sees no site-packages, only the folders of sqlean and isal."""
    allowed = {"errors", "frames", "deflate", "names", "reader", "manifest"}
    readers = [path for path in MODULES if part_of(path) == "reader"]

    used = set().union(*(imported_parts(path) for path in readers)) if readers else set()

    assert used <= allowed
    for name in used - {"reader"}:
        foreign = {module.split(".")[0] for module in imports(ROOT / f"{name}.py")}
        assert not foreign & {"aiohttp", "pydantic", "typer", "rich", "zipstream"}
