"""What holds for any tree, any configuration, any cut (issue 3, item 4). Frames: tests/test_frames.py.

Seen on a copy without the protection: with names passed through as they are, the first one that is no UTF-8 was a
UnicodeEncodeError in mid-stream.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clients import EXTRACTORS, files_below
from harness import MakeDatabase, run, toml, tool
from mothership_backup.config import SECTIONS, Settings, load
from mothership_backup.errors import ConfigError
from support import archive_of, codes
from test_names import components

EXAMPLES = int(os.environ.get("TORTURE_EXAMPLES", "12"))
few = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
OWN = {"VERSION", "MANIFEST.json", "SHA256SUMS"}

# Any tree of names and kinds.

KINDS = ("wal", "delete", "text", "empty", "zeros", "folder", "fifo", "link")
named = st.tuples(components.map(lambda name: name[:80]), st.sampled_from(KINDS), st.booleans())
Tree = list[tuple[str, str, bool]]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("seeds")
    return {
        journal: make_database(folder / f"{journal}.db", journal=journal, rows=20)
        for journal in ("wal", "delete")
    }


@contextmanager
def planted(tree: Tree, seeds: Mapping[str, Path]) -> Iterator[tuple[Path, list[Path]]]:
    """The tree below a data directory, as databases or in `floor_plan/`; and which regular files it holds."""
    with tempfile.TemporaryDirectory(prefix="any-tree-") as name:
        data = Path(name) / "data"
        (data / "floor_plan").mkdir(parents=True)
        made: list[Path] = []
        for component, kind, is_plan in tree:
            path = data / "floor_plan" / component if is_plan else data / (component + ".db")
            with suppress(FileExistsError, OSError):  # taken by another, or too long with its ending
                if plant(path, kind, seeds):
                    made.append(path)
        yield data, made


def plant(path: Path, kind: str, seeds: Mapping[str, Path]) -> bool:
    """True for a regular file that must be in the archive."""
    match kind:
        case "wal" | "delete":
            with path.open("xb") as file:
                file.write(seeds[kind].read_bytes())
        case "text" | "empty" | "zeros":
            content = {"text": b"line\n" * 30, "empty": b"", "zeros": bytes(70_000)}[kind]
            with path.open("xb") as file:
                file.write(content)
        case "folder":
            path.mkdir()
            (path / "inside").write_bytes(b"inside")
            return False
        case "fifo":
            os.mkfifo(path)
            return False
        case "link":
            path.symlink_to("/etc/hostname")
            return False
    return True


@pytest.mark.long
@pytest.mark.live_engine  # compares with the files byte for byte, which a copy by the backup API is not
@few
@given(tree=st.lists(named, max_size=8), compression=st.sampled_from(["deflate", "stored"]))
@example(tree=[("a\n", "wal", False), ("a%0A", "wal", False), ("-rf", "text", True)], compression="stored")
@example(
    tree=[("\udcff", "delete", False), ("é", "text", True), ("e\u0301", "text", True)], compression="deflate"
)
@example(
    tree=[("..\\..\\evil", "text", True), ("c:", "text", True), ("nul", "wal", False)], compression="deflate"
)
def test_any_tree_is_opened_by_four_tools_inside_its_target(
    tree: Tree, compression: str, seeds: dict[str, Path], tmp_path: Path
) -> None:
    """Each regular file is there once, byte for byte, below the target and nowhere else."""
    with planted(tree, seeds) as (data, made):
        archive = archive_of(data, compression=compression, check="none")
        sidecars = {
            path for path in made if any(str(path) == f"{o}{s}" for o in made for s in ("-wal", "-shm"))
        }
        expected = sorted(path.read_bytes() for path in made if path not in sidecars)

    taken = [name for name in archive.names if name not in OWN and not name.endswith("/inside")]
    assert sorted(archive.read(name) for name in taken) == expected, (made, codes(archive))
    path = archive.save(tmp_path / "any.zip")
    for extract in EXTRACTORS:
        box = Path(tempfile.mkdtemp(dir=tmp_path))
        (box / "in").mkdir()
        extract(path, box / "in" / "target")
        found = files_below(box / "in" / "target")
        assert len(files_below(box)) == len(found) == len(archive.names), extract
        assert sorted(file.read_bytes() for file in found.values()) == sorted(
            map(archive.read, archive.names)
        )
        shutil.rmtree(box)


# A configuration round-trips.

CHARACTERS = st.characters(codec="utf-8")


def value_of(annotation: Any, default: Any) -> st.SearchStrategy[Any]:
    """Anything that a key of this kind may be given, good or bad."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(-1, 2**40)
    if isinstance(default, float):
        return st.integers(0, 10**6) | st.floats(0, 10**6, allow_nan=False)
    if isinstance(default, tuple):
        return st.lists(st.text(CHARACTERS, max_size=12), max_size=3)
    words = ("deflate", "stored", "none", "quick", "full", "auto", "live", "staged", "info", "json", "text")
    return st.sampled_from(words) | st.text(CHARACTERS, max_size=12)


keys = {
    (section, key): value_of(field.annotation, field.default)
    for section, model in SECTIONS.items()
    for key, field in model.model_fields.items()
    if (section, key) != ("data", "dir")
}
configurations = st.lists(
    st.sampled_from(sorted(keys)).flatmap(lambda key: st.tuples(st.just(key), keys[key])), max_size=6
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(configurations)
def test_a_configuration_round_trips(chosen: list[tuple[tuple[str, str], Any]]) -> None:
    """What a file is taken for, written down again as a file and as variables, is the same; else a ConfigError."""
    config: dict[str, dict[str, object]] = {}
    for (section, key), value in chosen:
        config.setdefault(section, {})[key] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(toml(config))
        try:
            once = load(path, {})
        except ConfigError:
            return
        again = once.model_dump(mode="json")
        path.write_text(toml(again))
        assert tomllib.loads(path.read_text()) == again
        assert load(path, {}) == once
        variables = {
            f"MOTHERSHIP_BACKUP__{section}__{key}".upper(): value
            if isinstance(value, str)
            else json.dumps(value)
            for section, keys in again.items()
            for key, value in keys.items()
        }
        with suppress(ConfigError):  # a variable may be less than a file: `[` begins a list there
            assert load(None, variables) == once
        assert Settings.model_validate(once.model_dump()) == once


# An archive that was cut.


@pytest.fixture(scope="module", params=[pytest.param("deflate", marks=pytest.mark.long), "stored"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    data = tmp_path_factory.mktemp("cut") / "data"
    (data / "floor_plan").mkdir(parents=True)
    (data / "floor_plan" / "a.svg").write_text("<svg/>")
    (data / "a.db").write_bytes(b"")
    (data / "b.db").write_bytes(b'{"id":1}\n' * 20)
    return archive_of(data, compression=request.param).data


def is_accepted(path: Path) -> bool:
    return run(tool("unzip"), "-tqq", path).returncode == 0


def test_unzip_never_takes_a_cut_archive(small: bytes, tmp_path: Path) -> None:
    """Every offset of the last 200 bytes, where the end stands, and some of the rest; a splice neither."""
    path = tmp_path / "cut.zip"
    path.write_bytes(small)
    assert is_accepted(path)

    offsets = {*range(len(small) - 200, len(small)), *range(0, len(small), max(1, len(small) // 60))}
    for offset in sorted(offsets, reverse=True):
        path.write_bytes(small[:offset])
        assert not is_accepted(path), offset
        if offset < len(small) - 22:  # Python looks for the end's mark only
            with pytest.raises(zipfile.BadZipFile):
                zipfile.ZipFile(path).close()


@pytest.mark.long
def test_unzip_never_takes_an_archive_cut_at_any_byte(small: bytes, tmp_path: Path) -> None:
    """All of them."""
    path = tmp_path / "cut.zip"
    path.write_bytes(small)
    for offset in reversed(range(len(small))):
        os.truncate(path, offset)
        assert not is_accepted(path), offset
