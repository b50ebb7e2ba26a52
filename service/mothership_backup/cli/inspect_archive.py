"""`inspect ZIP|-`: what is in this archive, from when and from what?"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from mothership_backup.cli import INCOMPLETE
from mothership_backup.cli.stopping import stoppable
from mothership_backup.cli.terminal import complain, count, human_bytes, printable, show
from mothership_backup.cli.verify import ArchiveArgument, AsJson, MaxBytes, refused
from mothership_backup.errors import ArchiveError
from mothership_backup.verify.archive_file import ArchiveFile, open_archive
from mothership_backup.verify.contents import Contents, read_contents
from mothership_backup.verify.inspection import Item, Table, read_items, read_tables
from mothership_backup.verify.scratch import Scratch

Tables = Mapping[str, Sequence[Table]]
"""By their database's name; empty when nobody asked."""
WithTables = Annotated[bool, typer.Option("--tables", help="Count the rows of each database's tables, too.")]


def inspect(
    archive: ArchiveArgument,
    with_tables: WithTables = False,
    max_bytes: MaxBytes = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in an archive; `verify` proves it."""
    try:
        with stoppable(), open_archive(archive, max_bytes=max_bytes) as opened:
            contents = read_contents(opened, max_bytes=max_bytes)
            items = tuple(read_items(opened, contents))
            tables = dict(_tables(opened, items)) if with_tables else {}
    except ArchiveError as error:
        raise refused(archive, error, as_json=as_json) from error
    if as_json:
        show(json.dumps(_document(opened, contents, items, tables), indent=2))
    else:
        show("\n".join(_lines(opened, contents, items, tables)))
    complain(
        f"{opened.name}: not verified: its bytes were not proved, nor its databases checked; `verify` does that"
    )
    if contents.claims is not None and not contents.claims.complete:
        complain(
            f"{opened.name}: {count(len(contents.claims.missing), 'source')} failed when it was backed up"
        )
        raise typer.Exit(INCOMPLETE)


def _tables(opened: ArchiveFile, items: Sequence[Item]) -> Iterator[tuple[str, Sequence[Table]]]:
    scratch = Scratch()
    for item in items:
        if item.kind == "database" and item.entry is not None:
            yield item.name, read_tables(opened, item.entry, scratch)


# For people.


def _lines(opened: ArchiveFile, contents: Contents, items: Sequence[Item], tables: Tables) -> Iterator[str]:
    yield from (printable(line) for line in _head(opened, contents))
    yield _printed(
        {"name": "", "kind": "", "size": "right", "pages": "right", "schema": "right", "engine": "", "check": "",
         "status": ""},
        [(_cells(item), item.status == "failed") for item in items],
    )  # fmt: skip
    if tables:
        yield ""
        yield _printed(
            {"database": "", "table": "", "rows": "right"},
            [
                ((name, table.name, table.problem if table.rows is None else str(table.rows)), False)
                for name, found in tables.items()
                for table in found
            ],
        )
    databases = sum(item.kind == "database" and item.entry is not None for item in items)
    yield f"{count(databases, 'database')}, {human_bytes(contents.total_bytes)} in all"


def _head(opened: ArchiveFile, contents: Contents) -> Iterator[str]:
    claims = contents.claims
    if claims is None:
        yield f"{opened.name}: {human_bytes(opened.size_bytes)}, a plain ZIP: no manifest says what should be in it"
        return
    complete = "complete" if claims.complete else "incomplete"
    instant = "of one exact instant" if claims.is_one_instant else "not of one exact instant"
    yield f"{opened.name}: {human_bytes(opened.size_bytes)}, {complete}, {instant}"
    yield f"taken at {claims.created_at} as backup {claims.backup_id}"
    yield f"application version {claims.app_version}, by mothership-backup {claims.generator}"


def _cells(item: Item) -> tuple[str, ...]:
    pages = item.pages
    return (
        item.name,
        item.kind,
        "" if item.entry is None else human_bytes(item.entry.size_bytes),
        f"{pages['page_count']} x {pages['page_size']}"
        if {"page_count", "page_size"} <= pages.keys()
        else "",
        str(pages.get("user_version", "")),
        item.engine,
        item.verdict,
        f"{item.status}: {item.error_message or item.error_code}" if item.error_code else item.status,
    )


def _printed(columns: Mapping[str, str], rows: Sequence[tuple[tuple[str, ...], bool]]) -> str:
    """As a table; names of columns and their side, rows and whether they are bad."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=None, pad_edge=False)
    for name, side in columns.items():
        table.add_column(name, justify="right" if side else "left", overflow="fold")
    for cells, is_bad in rows:
        # As Text: a name is input, and no markup.
        table.add_row(*(Text(printable(cell)) for cell in cells), style="red" if is_bad else None)
    lines = io.StringIO()
    is_terminal = sys.stdout.isatty()  # in a pipe each source is one line, however long
    Console(file=lines, force_terminal=is_terminal, width=None if is_terminal else 10_000).print(table)
    return lines.getvalue().rstrip("\n")


# For machines.


def _document(
    opened: ArchiveFile, contents: Contents, items: Sequence[Item], tables: Tables
) -> dict[str, Any]:
    claims = contents.claims
    document: dict[str, Any] = {
        "archive": opened.name,
        "verified": False,
        "has_manifest": claims is not None,
        "archive_bytes": opened.size_bytes,
        "total_bytes": contents.total_bytes,
    }
    if claims is not None:
        document |= {
            "backup_id": claims.backup_id,
            "created_at": claims.created_at,
            "app_version": claims.app_version,
            "generator_version": claims.generator,
            "complete": claims.complete,
            "is_one_instant": claims.is_one_instant,
        }
    return document | {"sources": [_describe(item, tables) for item in items]}


def _describe(item: Item, tables: Tables) -> dict[str, Any]:
    document: dict[str, Any] = {"name": item.name, "kind": item.kind}
    if item.status:
        document["status"] = item.status
    if item.entry is not None:
        document |= {"size_bytes": item.entry.size_bytes, "packed_bytes": item.entry.packed_bytes}
    document |= item.pages
    if item.engine:
        document["engine"] = item.engine
    if item.verdict:
        document["check"] = {"verdict": item.verdict}
    if item.error_code:
        document["error"] = {"code": item.error_code, "message": item.error_message}
    if item.name in tables and item.entry is not None:
        document["tables"] = [
            {"name": table.name} | ({"error": table.problem} if table.rows is None else {"rows": table.rows})
            for table in tables[item.name]
        ]
    return document
