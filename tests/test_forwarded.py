"""Whom a request comes from, through proxies that are trusted and through others."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector, web
from aiohttp.test_utils import TestClient, TestServer

from mothership_backup.credentials import Network
from mothership_backup.web.forwarded import client_of
from mothership_backup.web.problems import RequestError

TRUSTED: tuple[Network, ...] = tuple(map(ip_network, ("127.0.0.1", "10.0.0.0/8", "fd00::/8")))
NONE: tuple[Network, ...] = (ip_network("192.0.2.0/24"),)


async def ask(headers: list[tuple[str, str]], trusted: tuple[Network, ...] = TRUSTED) -> str:
    """Address and scheme as they are found behind a real connection from 127.0.0.1."""

    async def handler(request: web.Request) -> web.Response:
        try:
            client = client_of(request, trusted)
        except RequestError as error:
            return web.Response(text=f"{error.code}: {error.message}")
        return web.Response(text=f"{client} {client.scheme}")

    app = web.Application()
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client, client.get("/", headers=headers) as response:
        return await response.text()


@pytest.mark.parametrize(
    ("forwarded_for", "address"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9, 10.0.0.1"], "203.0.113.9"),
        (["203.0.113.9", "10.0.0.1,10.0.0.2"], "203.0.113.9"),
        (["127.0.0.1, 203.0.113.9"], "203.0.113.9"),
        (["1.1.1.1, 203.0.113.9, 10.0.0.1"], "203.0.113.9"),
        (["10.0.0.3, 10.0.0.1"], "10.0.0.3"),
        (["2001:db8::1"], "2001:db8::1"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["fe80::1%eth0, fd00::1"], "fe80::1"),
        ([], "127.0.0.1"),
    ],
)
async def test_from_the_right(forwarded_for: list[str], address: str) -> None:
    """The first that is no proxy of ours; what stands left of it is what the client has sent."""
    assert await ask([("X-Forwarded-For", line) for line in forwarded_for]) == f"{address} http"


@pytest.mark.parametrize(
    ("forwarded_for", "proto", "scheme"),
    [
        ("203.0.113.9", "https", "https"),
        ("203.0.113.9, 10.0.0.1", "HTTPS", "https"),
        ("203.0.113.9, 10.0.0.1", "https, http", "https"),
        ("1.1.1.1, 203.0.113.9", "https, http", "http"),
        ("", "https", "https"),
    ],
)
async def test_scheme(forwarded_for: str, proto: str, scheme: str) -> None:
    """One for all, or the client's own in a list."""
    headers = [("X-Forwarded-For", forwarded_for)] if forwarded_for else []

    assert (await ask([*headers, ("X-Forwarded-Proto", proto)])).split()[1] == scheme


@pytest.mark.parametrize(
    "header",
    [
        ("X-Forwarded-For", "unknown"),
        ("X-Forwarded-For", ""),
        ("X-Forwarded-For", "203.0.113.9,"),
        ("X-Forwarded-For", "203.0.113.9:4711"),
        ("X-Forwarded-For", "_hidden, 203.0.113.9"),
        ("X-Forwarded-Proto", "ftp"),
        ("X-Forwarded-Proto", ""),
        ("X-Forwarded-Proto", "https, https"),
    ],
)
async def test_malformed(header: tuple[str, str]) -> None:
    """From a trusted peer it is an error; from another one nobody looks at it."""
    assert (await ask([header])).startswith(f"bad_forwarded: {header[0]} is not")
    assert await ask([header], NONE) == "127.0.0.1 http"


async def test_a_stranger_s_word_counts_nothing() -> None:
    """Whatever an untrusted peer says, it is itself."""
    headers = [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "https")]

    assert await ask(headers, NONE) == "127.0.0.1 http"
    assert await ask(headers, ()) == "127.0.0.1 http"


async def test_a_unix_socket_is_this_machine(tmp_path: Path) -> None:
    """A proxy that comes through one is trusted as 127.0.0.1 is."""
    found = []

    async def handler(request: web.Request) -> web.Response:
        found.append(client_of(request, TRUSTED).address)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(tmp_path / "socket")).start()
        async with ClientSession(connector=UnixConnector(str(tmp_path / "socket"))) as session:
            for headers in ({}, {"X-Forwarded-For": "203.0.113.9"}):
                async with session.get("http://localhost/", headers=headers):
                    pass
    finally:
        await runner.cleanup()

    assert found == [ip_address("127.0.0.1"), ip_address("203.0.113.9")]
