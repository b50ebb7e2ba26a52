from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

import mothership_backup
from mothership_backup.config import Auth, Data, Server, Settings
from mothership_backup.web.anonymous import is_loopback

REFUSED = 403
ANSWERED = 200


async def status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: str) -> int:
    writer.write(request.encode() + b"\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1])


async def ask(port: int, *headers: str, host: str = "localhost", target: str = "/api/backup") -> int:
    """The status of a HEAD on a connection of its own, with exactly these headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"HEAD {target} HTTP/1.1", f"Host: {host}", *headers]
    return await status(reader, writer, "\r\n".join(lines))


@contextlib.asynccontextmanager
async def hosted(settings: Settings, address: str = "127.0.0.1") -> AsyncIterator[web.AppRunner]:
    app = web.Application()
    mothership_backup.setup(app, settings)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        if address.startswith("/"):
            await web.UnixSite(runner, address).start()
        else:
            await web.TCPSite(runner, address, 0).start()
        yield runner
    finally:
        await runner.cleanup()


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """A mounted backup over an empty directory that nobody has opened to anybody."""
    settings = Settings(data=Data(dir=tmp_path), server=Server(allowed_hosts=("Backup.Lan", "nas.lan:8080")))
    async with hosted(settings) as runner:
        yield runner.addresses[0][1]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8080",
        "127.0.0.1",
        "127.0.0.1:80",
        "[::1]",
        "[::1]:8080",
        "backup.lan",
        "BACKUP.lan:1234",
        "nas.lan:8080",
    ],
)
async def test_local_hosts(port: int, host: str) -> None:
    """Names of this machine itself, and those that the configuration allows, are answered."""
    assert await ask(port, host=host) == ANSWERED


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:localhost",
        "localhost:80:80",
        "0.0.0.0",
        "192.168.1.2",
        "[::1",
        "::1",
        "nas.lan",
        "nas.lan:81",
    ],
)
async def test_foreign_hosts(port: int, host: str) -> None:
    """A name that somebody else's DNS may have pointed here is refused."""
    assert await ask(port, host=host) == REFUSED


async def test_no_host(port: int) -> None:
    """An HTTP/1.0 client that names no host is refused: every common one does (for HTTP/1.1 aiohttp insists)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    assert await status(reader, writer, "HEAD /api/backup HTTP/1.0") == REFUSED


async def test_two_hosts(port: int) -> None:
    """Two Host headers are refused by aiohttp or by us, whichever comes first."""
    assert await ask(port, "Host: evil.example") in (400, REFUSED)


async def test_whole_url_as_target(port: int) -> None:
    """A request line with a whole URL counts with the name that stands in it."""
    assert await ask(port, target="http://evil.example/api/backup") == REFUSED
    assert await ask(port, target="http://localhost/api/backup") == ANSWERED


@pytest.mark.parametrize(
    "header",
    [
        "Forwarded: for=10.0.0.1",
        "X-Forwarded-For: 10.0.0.1",
        "x-forwarded-proto: https",
        "X-FORWARDED-HOST: localhost",
        "X-Real-IP: 127.0.0.1",
        "Via: 1.1 proxy",
        "X-Ingress-Path: /api/hassio",
        "X-Forwarded-For:",
    ],
)
async def test_forwarded(port: int, header: str) -> None:
    """What a proxy adds shows that somebody else asks."""
    assert await ask(port, header) == REFUSED


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["Sec-Fetch-Site: none"], ANSWERED),
        (["Sec-Fetch-Site: same-origin"], ANSWERED),
        (["Sec-Fetch-Site: same-site"], REFUSED),
        (["Sec-Fetch-Site: cross-site"], REFUSED),
        (["Sec-Fetch-Site: "], REFUSED),
        (["Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"], REFUSED),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], ANSWERED),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"], REFUSED),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: document"], REFUSED),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"], REFUSED),
    ],
)
async def test_pages_of_other_sites(port: int, headers: list[str], expected: int) -> None:
    """A page of another site may not fetch; a link that a person follows may."""
    assert await ask(port, *headers) == expected


async def test_answer_names_the_remedy(port: int) -> None:
    """Who is refused learns why and what to do; that holds for every method."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /api/backup/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()

    assert head.split()[1] == b"403"
    problem = json.loads(body)
    assert problem["code"] == "anonymous_refused"
    assert "evil.example" in problem["error"]
    assert "auth.allow_anonymous" in problem["error"]


async def test_allow_anonymous(tmp_path: Path) -> None:
    """`allow_anonymous` lets everybody in, however they look."""
    settings = Settings(data=Data(dir=tmp_path), auth=Auth(allow_anonymous=True))
    async with hosted(settings) as runner:
        port = runner.addresses[0][1]

        assert await ask(port, "X-Forwarded-For: 10.0.0.1", host="evil.example") == ANSWERED


async def test_host_on_every_address(tmp_path: Path) -> None:
    """Mounted in a host on 0.0.0.0: over loopback it is answered, over this machine's outer address not."""
    async with hosted(Settings(data=Data(dir=tmp_path)), "0.0.0.0") as runner:
        port = runner.addresses[0][1]
        reader, writer = await asyncio.open_connection(outer_address(), port)

        assert await status(reader, writer, "HEAD /api/backup HTTP/1.1\r\nHost: localhost") == REFUSED
        assert await ask(port) == ANSWERED


async def test_unix_socket(tmp_path: Path) -> None:
    """A Unix socket is of this machine by nature; the rest of the rule holds there too."""
    path = str(tmp_path / "socket")
    async with hosted(Settings(data=Data(dir=tmp_path)), path):
        answers = [
            await status(
                *await asyncio.open_unix_connection(path), f"HEAD /api/backup HTTP/1.1\r\nHost: {host}"
            )
            for host in ("localhost", "evil.example")
        ]

    assert answers == [ANSWERED, REFUSED]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "::1%lo"])
def test_loopback(address: str) -> None:
    """Loopback in all its spellings."""
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "localhost", "", "127.1"]
)
def test_not_loopback(address: str) -> None:
    """Addresses that others can reach, and what is no address."""
    assert not is_loopback(address)


def outer_address() -> str:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as udp:
        try:
            udp.connect(("198.51.100.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(udp.getsockname()[0])
