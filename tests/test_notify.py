"""The service manager is told over its socket when the service is ready, and when it stops."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from harness import serving
from mothership_backup.cli.notify import READY, notify
from mothership_backup.errors import ConfigError


def manager(address: str) -> socket.socket:
    """A service manager's end, as far as it listens."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.settimeout(10)
    listening.bind(address)
    return listening


def test_serve_says_ready_and_stopping(data_dir: Path, tmp_path: Path) -> None:
    """Ready when it listens, stopping before its last backups have ended; nothing else."""
    address = str(tmp_path / "notify")
    with manager(address) as listening:
        with serving(tmp_path / "service", data_dir, environ={"NOTIFY_SOCKET": address}) as running:
            ready = listening.recv(100)
            status = running.request("/livez").status
        stopping = listening.recv(100)
        listening.setblocking(False)

        assert (ready, status, stopping) == (b"READY=1", 200, b"STOPPING=1")
        with pytest.raises(BlockingIOError):
            listening.recv(100)


def test_an_abstract_socket(tmp_path: Path) -> None:
    """Its name begins with an at sign in the variable and with a zero byte in the kernel."""
    name = f"mothership-backup{tmp_path}"
    with manager("\0" + name) as listening:
        notify(READY, {"NOTIFY_SOCKET": "@" + name})

        assert listening.recv(100) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_nobody_asked(environ: dict[str, str]) -> None:
    """As in a terminal: nothing is said, and nothing fails."""
    notify(READY, environ)


def test_a_manager_that_is_not_there(tmp_path: Path) -> None:
    """Told by name, instead of a unit that waits for its time limit."""
    address = str(tmp_path / "nobody")

    with pytest.raises(ConfigError) as caught:
        notify(READY, {"NOTIFY_SOCKET": address})

    assert caught.value.message == (
        f"$NOTIFY_SOCKET: {address}: the service manager cannot be told: No such file or directory"
    )
