"""A restore that is killed: never a mixture without its journal, never a loss, never a missing name.

Seen before it held, on copies: files renamed one by one without a journal: a mixture that looks whole; the old file
moved away before the new one takes its name: a missing name; the old file not linked first: a loss.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import MakeDatabase, run, tool
from mothership_backup.names import RESTORE_JOURNAL
from restoring import COMMAND, before, contents, has_journal, is_ours, live, restore
from support import archive_of, names_of
from torture.forker import Forker

SOURCE = Path(__file__).with_name("kill_at.c")
Files = dict[str, bytes]


class Ground:
    """An archive, and directories that hold an older state of what it has."""

    def __init__(self, folder: Path, make_database: MakeDatabase, keeper: bool) -> None:
        self._folder = folder
        self._count = 0
        source = folder / "source"
        for name in ("events.db", "nodes.db"):
            make_database(source / name, rows=300)
        (source / "floor_plan" / "attic").mkdir(parents=True)
        (source / "floor_plan" / "attic" / "beams.json").write_text("{}\n")
        (source / "floor_plan" / "ground.svg").write_text("<svg>new</svg>\n")
        made = archive_of(source)
        self.archive = made.save(folder / "a.zip")
        self.new: Files = {name: made.read(name) for name in names_of(made)}
        self.old: Files = {
            "events.db": b"the old events",
            "events.db-wal": b"the WAL of the old events",
            "floor_plan/ground.svg": b"<svg>old</svg>\n",
        }
        self.kept: Files = {"settings.json": b"{}"} if keeper else {}
        self.stale = {"events.db-wal"}

    def make(self) -> Path:
        """A new directory of the older state, alone in its parent."""
        self._count += 1
        target = self._folder / f"ground-{self._count}" / "data"
        for name, data in (self.old | self.kept).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)
        return target

    @property
    def before(self) -> Files:
        return self.old | self.kept

    @property
    def after(self) -> Files:
        return self.new | self.kept

    def is_sound(self, target: Path) -> bool:
        """What a kill has left is one of what it may leave; whether there is a journal."""
        now = {name: data for name, data in live(target).items() if not name.startswith(RESTORE_JOURNAL)}
        for name in self.before:
            assert name in now or name in self.stale, f"{name} is missing"
        for name, data in now.items():
            assert data in (self.before.get(name), self.after.get(name)), f"{name} is neither old nor new"
        everywhere = set(contents(target.parent).values())
        assert set(self.before.values()) <= everywhere, "something old is lost"
        if has_journal(target):
            return True
        assert now in (self.before, self.after), "a mixture without a journal"
        return False

    def assert_done(self, target: Path) -> None:
        assert live(target) == self.after
        assert before(target) == {name: data for name, data in self.old.items() if self.new.get(name) != data}
        self.assert_nothing_left(target)

    def assert_undone(self, target: Path) -> None:
        assert contents(target) == self.before
        self.assert_nothing_left(target)

    def assert_nothing_left(self, target: Path) -> None:
        """No journal, no work folder, in it or beside it."""
        assert not list(target.parent.rglob(".restore-*"))
        assert not list(target.parent.glob(f".{target.name}.restore-*"))


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    made = tmp_path_factory.mktemp("kill") / "kill_at.so"
    built = run(tool("gcc"), "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl")
    assert built.returncode == 0, built.stderr
    with Forker(made) as running:
        yield running


@pytest.fixture(params=["folder", pytest.param("names", marks=pytest.mark.long)])
def ground(request: pytest.FixtureRequest, tmp_path: Path, make_database: MakeDatabase) -> Ground:
    """By both ways: what is not in the archive keeps a directory from being exchanged as a whole."""
    return Ground(tmp_path, make_database, keeper=request.param == "names")


def killed_at(forker: Forker, target: Path, number: int, *words: str | Path) -> bool:
    """Whether the command was killed at its ``number``-th step; else it came to its end."""
    status, told = forker.run(*words, environ={"KILL_PATH": str(target.parent), "KILL_AT": str(number)})
    assert status in (0, -signal.SIGKILL), told
    return status != 0


def restore_words(ground: Ground, target: Path) -> tuple[str | Path, ...]:
    return "restore", ground.archive, target, "--into-existing", "--application-is-stopped"


def end(ground: Ground, forker: Forker, target: Path, *, backwards: bool) -> None:
    """Whatever the kill has left is ended well: by the journal, or by one more restore."""
    if ground.is_sound(target):
        status, told = forker.run("backup", "-", "--data-dir", target)
        assert status == 1
        assert RESTORE_JOURNAL in told
        status, told = forker.run("restore", "--undo" if backwards else "--continue", target)
        if "taken back already" in told:
            backwards = True
            status, told = forker.run("restore", "--undo", target)
        assert status == 0, told
        ground.assert_undone(target) if backwards else ground.assert_done(target)
    elif live(target) == ground.before:
        status, told = forker.run(*restore_words(ground, target))
        assert status == 0, told
        assert live(target) == ground.after
    else:
        ground.assert_done(target)


@pytest.mark.parametrize("backwards", [False, True], ids=["continue", "undo"])
@pytest.mark.long
def test_killed_at_each_step(ground: Ground, forker: Forker, backwards: bool) -> None:
    """Before every call that changes a name, from the first to the last."""
    journals = 0
    for number in range(1, 200):
        target = ground.make()
        if not killed_at(forker, target, number, *restore_words(ground, target)):
            break
        journals += has_journal(target)
        end(ground, forker, target, backwards=backwards)

    assert number > 15
    assert journals > 3
    ground.assert_done(target)


def is_half_way(ground: Ground, forker: Forker, number: int) -> bool:
    """Whether a kill at this step leaves a journal, and new files in their places."""
    target = ground.make()
    was_killed = killed_at(forker, target, number, *restore_words(ground, target))
    arrived = set(live(target).items()) & set(ground.new.items())
    return was_killed and has_journal(target) and len(arrived) >= 2


@pytest.mark.parametrize("word", ["--continue", "--undo"])
@pytest.mark.long
def test_the_end_itself_is_killed_at_each_step(ground: Ground, forker: Forker, word: str) -> None:
    """Both ways out may be repeated, and one may be taken after the other was begun."""
    half_way = next(number for number in range(8, 100) if is_half_way(ground, forker, number))
    for number in range(1, 100):
        target = ground.make()
        assert killed_at(forker, target, half_way, *restore_words(ground, target))
        if not killed_at(forker, target, number, "restore", word, target):
            break
        end(ground, forker, target, backwards=number % 2 == 0)

    assert number > 3
    ground.assert_undone(target) if word == "--undo" else ground.assert_done(target)


def test_killed_in_the_middle_of_its_swaps(ground: Ground, forker: Forker) -> None:
    """The quick form of the above: three steps around the middle of what was done under the journal."""
    first = next(number for number in range(8, 100, 2) if is_half_way(ground, forker, number))

    for number in (first, first + 1, first + 2):
        target = ground.make()
        killed_at(forker, target, number, *restore_words(ground, target))
        end(ground, forker, target, backwards=number % 2 == 1)


@pytest.mark.long
def test_killed_at_random(tmp_path: Path, make_database: MakeDatabase, forker: Forker) -> None:
    """A hundred times, at any moment of a restore, by a signal from outside."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    grounds = [
        Ground(tmp_path / "a", make_database, keeper=True),
        Ground(tmp_path / "b", make_database, keeper=False),
    ]
    killed = 0
    for number in range(100):
        ground = grounds[number % 2]
        target = ground.make()
        running = subprocess.Popen(
            [*COMMAND, *map(str, restore_words(ground, target))], stderr=subprocess.DEVNULL
        )
        try:
            running.wait(dice.uniform(0.2, 0.7))
        except subprocess.TimeoutExpired:
            os.kill(running.pid, signal.SIGKILL)
            killed += 1
        running.wait()
        end(ground, forker, target, backwards=dice.random() < 0.5)

    assert killed > 10


def test_a_restore_that_was_killed_while_unpacking_leaves_nothing_for_long(
    ground: Ground, forker: Forker
) -> None:
    """Its work folder goes with the next restore."""
    target = ground.make()
    assert killed_at(forker, target, 6, *restore_words(ground, target))
    assert any(is_ours(name) or "restore" in name for name in contents(target.parent))

    assert restore(ground.archive, target, "--into-existing", "--application-is-stopped").returncode == 0

    ground.assert_done(target)
