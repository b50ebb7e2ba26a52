"""The manifest says what became of each source, and a stored archive's is never longer than was promised."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mothership_backup.manifest import Manifest, Plan
from support import INSTANT, PAGES, described, manifest_of, planned

NASTY = [
    '"\\\n\x00\x1f',
    "\u2028é日\U0001f4be" * 30,
    os.fsdecode(b"\xff\xfe") * 40,
    '"' * 500,
    "\x01" * 500,
    "",
]

texts = st.text(st.characters(codec="utf-8"), max_size=300) | st.sampled_from(NASTY)
paths = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=80).filter(
    lambda path: path not in (".", "..")
) | st.binary(min_size=1, max_size=80).map(
    lambda raw: os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_"))
)


def failed(path: str, message: str, code: str = "not_readable") -> dict[str, Any]:
    document = {"path": path, "kind": "link", "status": "failed", "size_bytes": 1, "mtime_ns": 1, "mode": 511}
    return document | {"is_named": True, "error": {"code": code, "message": message}}


def take_all(manifest: Manifest, plan: Plan, verdict: str, text: str) -> None:
    """Every source is taken as planned, and each database's check says this."""
    for index, source in enumerate(plan.sources):
        if source.status == "ok":
            document = {"size_bytes": source.size_bytes, "sha256": "f" * 64, "engine": source.engine}
            manifest.take(index, document | dict(source.pages or {}))
            if source.kind == "database":
                manifest.add_verdict(index, verdict, text)
    manifest.set_instants([INSTANT])


@settings(deadline=None, max_examples=300)
@given(
    names=st.lists(paths, max_size=5, unique=True),
    kind=st.sampled_from(["database", "file"]),
    engine=st.sampled_from(["live", "staged", "copied", "immutable", "plain"]),
    message=texts,
    check=st.sampled_from(["none", "quick", "full"]),
    verdict=st.sampled_from(["ok", "damaged", "unable", "unfinished"]),
    text=texts,
    app_version=texts,
)
@example(["a", "\x01" * 80], "database", "immutable", NASTY[2], "quick", "damaged", NASTY[1], NASTY[4])
@example(["a"], "database", "live", NASTY[0], "full", "unfinished", NASTY[3], NASTY[0])
def test_what_is_promised_is_never_too_little(
    names: list[str],
    kind: str,
    engine: str,
    message: str,
    check: str,
    verdict: str,
    text: str,
    app_version: str,
) -> None:
    """A stored archive's length stands in its headers before a single check was run."""
    documents = [described(name, kind=kind, engine=engine) for name in names]
    plan = planned([*documents, failed("link.db", message)])
    manifest = manifest_of(plan, check, app_version)
    promised = manifest.bound_bytes()

    take_all(manifest, plan, verdict, text)
    encoded = manifest.encode()

    assert len(encoded) <= promised
    document = json.loads(encoded)
    assert document["app_version"] == app_version
    assert len(document["sources"]) == len(names) + 1


def test_the_promise_is_not_extravagant() -> None:
    """It is sent: 200 bytes a database are for its verdict, and little else is spare."""
    plan = planned([described(f"sensor-{number}.db") for number in range(100)])
    manifest = manifest_of(plan)
    promised = manifest.bound_bytes()

    take_all(manifest, plan, "ok", "")

    assert promised - len(manifest.encode()) < 250 * 100


def test_it_says_of_a_database_what_a_restore_needs_to_know() -> None:
    """All of DESIGN 4's members, and nothing of ours."""
    plan = planned([described("spaxel.db")])
    manifest = manifest_of(plan)
    take_all(manifest, plan, "ok", "")

    document = json.loads(manifest.encode())

    assert document["sources"] == [
        {
            "name": "spaxel.db",
            "kind": "database",
            "status": "ok",
            "size_bytes": 1_001_504_768,
            "sha256": "f" * 64,
        }
        | {"engine": "live", "check": {"kind": "quick", "verdict": "ok"}}
        | PAGES
    ]
    assert document["complete"] is True
    assert document["instant"] == INSTANT
    assert document["format"] == 1
    assert document["generator"] == {"name": "mothership-backup", "version": "0.1.0", "sqlite": "3.50.4"}


@pytest.mark.parametrize(
    ("verdict", "is_complete"), [("ok", True), ("unable", True), ("unfinished", True), ("damaged", False)]
)
def test_only_damage_makes_a_backup_incomplete(verdict: str, is_complete: bool) -> None:
    """A check that could not be run proves nothing; a good database may need its application's own functions."""
    plan = planned([described("a.db"), described("b.db")])
    manifest = manifest_of(plan)
    take_all(manifest, plan, "ok", "")
    manifest.add_verdict(1, verdict, "a text")

    (good, judged) = json.loads(manifest.encode())["sources"]

    assert manifest.is_complete is is_complete
    assert json.loads(manifest.encode())["complete"] is is_complete
    assert good["status"] == "ok"
    assert judged["status"] == ("ok" if is_complete else "failed")
    assert judged["check"]["verdict"] == verdict
    assert judged["sha256"] == "f" * 64, "damaged bytes are there: they may be the only ones"
    assert set(manifest.failures) == (set() if is_complete else {"b.db"})


def test_what_was_left_out_is_told_and_has_no_sum() -> None:
    """It failed before its first byte, after the plan."""
    plan = planned([described("a.db"), described("b.db")])
    manifest = manifest_of(plan)
    manifest.take(0, {"size_bytes": 1, "sha256": "f" * 64, "engine": "live", **PAGES})
    manifest.leave_out(1, "no_room", "there is none")

    (_, left_out) = json.loads(manifest.encode())["sources"]

    assert left_out == {
        "name": "b.db",
        "kind": "database",
        "status": "failed",
        "error": {"code": "no_room", "message": "there is none"},
    }
    assert list(manifest.sums()) == [("f" * 64, "a.db")]
    assert manifest.failures == {"b.db": "there is none"}
    assert not manifest.is_complete


def test_a_source_under_another_name_says_its_own() -> None:
    """So that a restore can put it back."""
    plan = planned([described(os.fsdecode(b"\xff.db")), failed(os.fsdecode(b"\xfe.db"), "a link")])
    manifest = manifest_of(plan)
    take_all(manifest, plan, "ok", "")

    sources = json.loads(manifest.encode())["sources"]

    assert [(source["name"], source["path"]) for source in sources] == [
        ("%FF.db", "%FF.db"),
        ("%FE.db", "%FE.db"),
    ]


def test_several_waves_are_not_one_instant() -> None:
    """The manifest says so, and how many there were."""
    manifest = manifest_of(planned([]))
    later = {
        "exact": True,
        "first_pinned_at": "2026-11-23T02:01:00.000Z",
        "last_pinned_at": "2026-11-23T02:01:00.009Z",
    }

    manifest.set_instants([INSTANT, later])

    assert json.loads(manifest.encode())["instant"] == {
        "exact": False,
        "first_pinned_at": INSTANT["first_pinned_at"],
        "last_pinned_at": later["last_pinned_at"],
        "waves": 2,
    }


def test_names_in_the_archive_come_before_names_outside_it() -> None:
    """What is taken has its own name, also when a link beside it would be called the same."""
    plan = planned([described("a%0A.db"), failed("a\n.db", "a link")])

    assert [source.name for source in plan.sources] == ["a%0A.db", "a%0A.db"]
    assert [source.path for source in plan.sources] == ["a%0A.db", "a\n.db"]


def test_totals_of_a_plan_count_what_is_known() -> None:
    """Sizes of later waves are not; what failed and what is skipped is no database of the archive."""
    skipped = described("skipped.db", status="skipped", error={"code": "excluded", "message": ""})
    plan = planned(
        [described("a.db"), described("b.db", wave=2), described("f", kind="file"), failed("l", ""), skipped]
    )

    assert plan.databases == 2
    assert plan.failed == 1
    assert plan.total_bytes == 2 * 1_001_504_768
