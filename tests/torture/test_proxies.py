"""A cut backup behind real proxies: what curl and wget report, where the README promises that a cut shows.

Seen with a service that does not reset: deflate is 0, 0 through HAProxy and nginx with our settings, too. With one that
cuts by a FIN and gives HTTP/1.0 no length: 0, 0 through nginx with its defaults.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import SLOW, fetch_and
from harness import Config, Service, run, serving, tool
from processes import wait_until
from torture.proxies import PROXIES, Proxy, is_old_caddy, proxying

pytestmark = pytest.mark.long

# HAProxy and Caddy say that they forward, so nobody is local behind them.
CONFIG: Config = {**SLOW, "auth": {"allow_anonymous": True}}
# (curl, wget); nginx's defaults ask with HTTP/1.0 and get a length, whatever the client asked for.
CUT = {
    ("nginx", "deflate"): (18, 4),
    ("nginx", "stored"): (18, 4),
    ("nginx-ours", "deflate"): (18, 4),
    ("nginx-ours", "stored"): (18, 4),
    ("haproxy", "deflate"): (18, 4),
    ("haproxy", "stored"): (18, 4),
    ("caddy", "deflate"): (18, 4),  # since 2.8
    ("caddy", "stored"): (18, 4),
}
SILENT = (0, 0)  # Caddy before 2.8, and nobody else


@pytest.fixture(params=PROXIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def upstream(big_dir: Path, tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path / "service", big_dir, CONFIG) as service:
        yield service


@pytest.fixture
def proxy(name: str, upstream: Service, tmp_path: Path) -> Iterator[Proxy]:
    with proxying(name, tmp_path / name, upstream.port) as proxy:
        yield proxy


def command_of(client: str, url: str, target: Path) -> list[str]:
    if client == "curl":
        return [tool("curl"), "-q", "-sSfN", "--noproxy", "*", "-o", str(target), url]
    return [tool("wget"), "--no-config", "--no-proxy", "-q", "--tries=1", "-O", str(target), url]


def expected(name: str, compression: str) -> tuple[int, int]:
    if (name, compression) == ("caddy", "deflate") and is_old_caddy():
        return SILENT
    return CUT[name, compression]


@pytest.mark.parametrize("compression", ["deflate", "stored"])
@pytest.mark.parametrize("struck", ["reader", "service"])
def test_what_clients_report_of_a_cut(
    struck: str, compression: str, name: str, proxy: Proxy, upstream: Service, tmp_path: Path
) -> None:
    """The reader, or the service itself, is killed in mid-stream; nothing is appended and `unzip -t` refuses it."""
    url = f"{proxy.backup_url}?compression={compression}"
    statuses = []
    for client in ("curl", "wget"):
        if struck == "service" and client == "wget":
            break
        target = tmp_path / f"{client}.zip"

        def strike() -> None:
            os.kill(upstream.reader() if struck == "reader" else upstream.pid, signal.SIGKILL)

        statuses.append(fetch_and(strike, command_of(client, url, target), target))
        wait_until("the reader to be gone", lambda: not upstream.readers(), 2)
        assert b"PK\x05\x06" not in target.read_bytes()[-65536:]
        assert run(tool("unzip"), "-tqq", target).returncode != 0

    assert tuple(statuses) == expected(name, compression)[: len(statuses)]


@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_a_whole_backup_comes_through(compression: str, name: str, proxy: Proxy, tmp_path: Path) -> None:
    """Both clients end with 0, and the archive is whole: the failures above are the cut's, not the proxy's."""
    for client in ("curl", "wget"):
        target = tmp_path / f"{client}.zip"
        url = f"{proxy.backup_url}?strict=true&compression={compression}"

        assert run(*command_of(client, url, target)).returncode == 0
        assert run(tool("unzip"), "-tqq", target).returncode == 0


def test_a_client_that_leaves_takes_its_backup_along(
    name: str, proxy: Proxy, upstream: Service, tmp_path: Path
) -> None:
    """The proxy closes its own connection, so that reader and slot are free soon."""
    target = tmp_path / "b.zip"
    client = subprocess.Popen(command_of("curl", proxy.backup_url, target))
    wait_until("the stream's first bytes", lambda: target.exists() and target.stat().st_size > 300_000)
    assert upstream.readers()
    client.kill()
    client.wait()

    wait_until("the reader to be gone", lambda: not upstream.readers(), 1.5)
    wait_until("the outcome", lambda: "client_left" in upstream.log(), 2)
