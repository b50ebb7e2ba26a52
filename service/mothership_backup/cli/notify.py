"""What `serve` tells the service manager that started it, by systemd's protocol (sd_notify(3))."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

from mothership_backup.errors import ConfigError

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"


def notify(state: str, environ: Mapping[str, str]) -> None:
    """Nothing, if the manager did not ask for it by $NOTIFY_SOCKET.

    Raises ConfigError: a unit of Type=notify would wait for what never comes.
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # "@" stands for the zero byte before the name of an abstract socket.
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(1)
            manager.connect(name)
            manager.send(state.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"$NOTIFY_SOCKET: {address}: the service manager cannot be told: {reason}"
        ) from error
