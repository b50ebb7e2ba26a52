"""`fetch URL FILE`: the client for cron and CronJobs."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from mothership_backup.cli import INCOMPLETE, NOT_WHOLE
from mothership_backup.cli.progress import byte_progress
from mothership_backup.cli.stopping import stoppable
from mothership_backup.cli.terminal import complain, count, human_bytes
from mothership_backup.cli.verify import CheckOption, check_kind, why_damaged
from mothership_backup.fetch.fetch import Fetched, Job
from mothership_backup.fetch.fetch import fetch as run
from mothership_backup.fetch.keep import Keep
from mothership_backup.fetch.names import parse
from mothership_backup.fetch.ping import Ping, watched
from mothership_backup.fetch.target import Target, host_of, read_token, split_url, tls_context

# readable=False: what cannot be read is told in our words, not in typer's.
TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the bearer token in its first line.", readable=False),
]
CaFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Certificate authorities (PEM) besides the system's.", readable=False),
]


def fetch(
    url: Annotated[str, typer.Argument(metavar="URL", help="http://host:port/api/backup, with any query.")],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Its name may have {prefix}, {date}, {time} (UTC) and {host} in it."
        ),
    ],
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    check: CheckOption = "quick",
    tries: Annotated[int, typer.Option(min=1, help="How often to try at most.")] = 5,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="For the connection, and each silence.")
    ] = 60,
    keep: Annotated[int | None, typer.Option(min=1, help="Keep so many files of this pattern.")] = None,
    keep_days: Annotated[
        int | None, typer.Option(min=1, max=36500, help="Keep files of this pattern for so many days.")
    ] = None,
    ping: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Tell a monitor: healthchecks.io's way, or Uptime Kuma's."),
    ] = None,
) -> None:
    """Fetch a backup, prove that it is whole, and only then let it take FILE's place."""
    now = datetime.now(UTC)
    template = parse(file, host=host_of(url), now=now)
    tls = tls_context(ca_file)
    target = Target(url, read_token(token_file, os.environ), tls, timeout)
    job = Job(target, template, check_kind(check), tries, Keep(keep, keep_days), now)
    if ping is not None:
        split_url(ping, "--ping")
    with stoppable(), watched(Ping(ping, tls) if ping is not None else None, complain) as ended:
        fetched = run(job, progress=byte_progress, tell=complain)
        _tell(fetched)
        line = f"{fetched.place}: {_summary(fetched)}"
        complain(line)
        ended(fetched.report.word == "whole", line)
    if fetched.report.word != "whole":
        raise typer.Exit(NOT_WHOLE if fetched.report.damaged else INCOMPLETE)


def _tell(fetched: Fetched) -> None:
    contents, report = fetched.contents, fetched.report
    for finding in report.damaged:
        complain(f"{finding.name}: {why_damaged(finding, contents)}")
    for finding in report.findings:
        if finding.check is not None and finding.check.word in ("unable", "unfinished"):
            complain(f"{finding.name}: could not be checked: {finding.check.text}")
    damaged = {finding.name for finding in report.damaged}
    for source in contents.claims.missing if contents.claims is not None else ():
        if source.name not in damaged:
            complain(f"{source.name}: failed when it was backed up: {source.error_message}")


def _summary(fetched: Fetched) -> str:
    report = fetched.report
    parts = [
        human_bytes(fetched.size_bytes),
        f"{fetched.duration_seconds:.1f} s",
        count(sum(finding.is_database for finding in report.findings), "database"),
        "complete" if report.word == "whole" else f"{report.word}, so it replaces nothing",
    ]
    if fetched.removed:
        parts.append(f"{count(len(fetched.removed), 'older file')} removed")
    return ", ".join(parts)
