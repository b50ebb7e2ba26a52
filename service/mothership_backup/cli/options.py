"""Options that several commands share, and the settings that come of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mothership_backup.config import Option, Settings, load

# readable=False: what cannot be read is told in our words, not in typer's.
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file (TOML).", readable=False),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Directory to back up.", readable=False)
]


def load_settings(config: Path | None, data_dir: Path | None, *others: Option) -> Settings:
    """The configuration of the file, the environment and the options, the later the stronger."""
    return load(config, os.environ, [Option("--data-dir", "data", "dir", data_dir), *others])
