"""Real reverse proxies before the service: each a foreground child on loopback with its own files, ended by id."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import run, tool
from processes import wait_until

NGINX = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {servers}
}}
"""
SERVER = """
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://127.0.0.1:{upstream};
        {settings}
    }}
}}
"""
OUR_NGINX_SETTINGS = "proxy_http_version 1.1; proxy_max_temp_file_size 0; proxy_read_timeout 60s;"

CADDY = """
{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
    reverse_proxy 127.0.0.1:{upstream}
}}
"""

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend clients
    bind 127.0.0.1:{port}
    default_backend service
backend service
    server one 127.0.0.1:{upstream}
"""


@dataclass(frozen=True)
class Proxy:
    """A listening proxy: where its clients ask."""

    backup_url: str


def _nginx(settings: str) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, port: int, upstream: int) -> list[str]:
        return nginx(folder, SERVER.format(port=port, upstream=upstream, settings=settings))

    return command


def nginx(folder: Path, servers: str) -> list[str]:
    """Its command for these `server` blocks."""
    user = "user root;" if os.geteuid() == 0 else ""  # its usual one may not enter the test's folder
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, user=user, servers=servers))
    return [tool("nginx"), "-p", str(folder), "-e", str(folder / "nginx.log"), "-c", str(file)]


def _caddy(folder: Path, port: int, upstream: int) -> list[str]:
    file = folder / "Caddyfile"
    file.write_text(CADDY.format(port=port, upstream=upstream))
    return [tool("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]


def _haproxy(folder: Path, port: int, upstream: int) -> list[str]:
    file = folder / "haproxy.cfg"
    file.write_text(HAPROXY.format(port=port, upstream=upstream))
    return [tool("haproxy"), "-db", "-f", str(file)]


PROXIES: dict[str, Callable[[Path, int, int], list[str]]] = {
    "nginx": _nginx(""),
    "nginx-ours": _nginx(OUR_NGINX_SETTINGS),
    "caddy": _caddy,
    "haproxy": _haproxy,
}


@contextlib.contextmanager
def proxying(name: str, folder: Path, upstream: int) -> Iterator[Proxy]:
    """The proxy, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with listening(PROXIES[name](folder, port, upstream), folder, port):
        yield Proxy(f"http://127.0.0.1:{port}/api/backup")


def free_port() -> int:
    """For who cannot be given 0. None that the kernel gives away by itself (ip(7), `ip_local_port_range`, from 32768):
    between this look and its use, any connection of another test could get that.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def listening(command: list[str], folder: Path, port: int) -> Iterator[None]:
    """A proxy that has this folder to itself, until the block ends."""
    log = folder / "output.log"
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | home, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder
        )
    try:
        wait_until(f"{command[0]} to listen", lambda: process.poll() is not None or _listens(port), 20)
        assert process.poll() is None, log.read_text(errors="replace")
        yield
    finally:
        process.terminate()  # nginx ends its workers, too, which it would not when killed
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def is_old_caddy() -> bool:
    """Before 2.8, which ends a chunked answer in order when its upstream was cut."""
    found = re.search(r"(\d+)\.(\d+)", run(tool("caddy"), "version").stdout)
    assert found, "caddy does not tell its version"
    return (int(found[1]), int(found[2])) < (2, 8)
