"""`demo`: a small application with the backup mounted, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mothership_backup.demo import main as run


def demo(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")] = 8080,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where its databases live.  [default: a temporary folder]", readable=False
        ),
    ] = None,
) -> None:
    """Run a small application with the backup mounted."""
    raise typer.Exit(run(port=port, data_dir=data_dir))
