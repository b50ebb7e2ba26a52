"""The commands by name; what is slow to import is imported by the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mothership_backup import __version__
from mothership_backup.cli.backup import backup
from mothership_backup.cli.check_config import check_config
from mothership_backup.cli.databases import databases
from mothership_backup.cli.fetch import fetch
from mothership_backup.cli.inspect_archive import inspect
from mothership_backup.cli.options import ConfigFile, DataDir
from mothership_backup.cli.restore import restore
from mothership_backup.cli.terminal import show
from mothership_backup.cli.verify import verify

app = typer.Typer(
    help="Back up every SQLite database of a directory, consistent while others write.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        show(f"mothership-backup {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Answer GET /api/backup over HTTP."""
    from mothership_backup.cli.serve import serve as run

    raise typer.Exit(run(config=config, data_dir=data_dir, host=host, port=port))


app.command()(backup)
app.command()(databases)
app.command()(fetch)
app.command()(verify)
app.command()(inspect)
app.command()(restore)
app.command("check-config")(check_config)


@app.command()
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
    from mothership_backup.demo import main as run

    raise typer.Exit(run(port=port, data_dir=data_dir))
