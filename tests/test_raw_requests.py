"""Bytes that are no request, or hardly one: the service answers or closes, and goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Iterator, Sequence
from typing import Final

import pytest

from harness import MakeDatabase, Service, drain, serving
from processes import wait_until

HOST: Final = b"Host: localhost\r\n"
CLOSE: Final = b"Connection: close\r\n"
END: Final = b"\r\n"
CHUNKED: Final = b"POST /api/status HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
STATUS: Final = b"GET /api/status HTTP/1.1\r\n" + HOST + END


def get(path: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return method + b" " + path + b" " + version + b"\r\n" + HOST + lines + END


ODD: Final[Sequence[bytes]] = (
    # paths
    *(
        get(path)
        for path in (
            *(
                b"",
                b"*",
                b"/",
                b"//",
                b"api/status",
                b"/api//status",
                b"/api/./status",
                b"/api/../api/status",
            ),
            *(b"/%00", b"/api/backup%00", b"/api/backups/%00", b"/api/backups/%ff%fe", b"/api/status\x00"),
            *(
                b"/api/%73tatus",
                b"/api/backup?database=%00",
                b"/api/backup?database=%ff",
                b"/api/backup?%00=%00",
            ),
            *(
                b"/api/backup?database=[",
                b"/api/backup?database=" + b"*" * 4000,
                b"/api/backups?limit=%F0%9F",
            ),
            *(b"/api/backup?" + b"&" * 5000, b"/api/backups?cursor=" + b"9" * 5000, b"/api/status?a=b#c"),
            *(
                b"/api/backup;a=b",
                b"/api/%2e%2e/status",
                b"/api/status%",
                b"/api/status%zz",
                b"\\api\\status",
            ),
            *(b"http://localhost/api/status", b"http://[/api/status", b"http://localhost:99999/api/status"),
            *(
                b"http://a@b:c/api/status",
                b"http://\xc9/",
                b"/" + b"a" * 8100,
                b"/" + b"a" * 100_000,
                "/api/é".encode(),
            ),
        )
    ),
    # methods and versions
    *(
        get(b"/api/status", method=method)
        for method in (
            b"",
            b"get",
            b"G\x00T",
            b"PRI",
            b"CONNECT",
            b"TRACE",
            b"OPTIONS",
            b"X" * 10_000,
            b"G@T",
        )
    ),
    get(b"localhost:80", method=b"CONNECT"),
    get(b"*", method=b"OPTIONS"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    *(
        get(b"/api/status", version=version)
        for version in (
            b"",
            b"HTTP/0.9",
            b"HTTP/1.0",
            b"HTTP/1.2",
            b"HTTP/2",
            b"HTTP/9.9",
            b"HTTP/1.",
            b"HTTQ/1.1",
        )
    ),
    b"GET /api/status\r\n\r\n",
    b"GET\r\n\r\n",
    b"\r\n\r\n\r\n" + STATUS,
    b"\n\n" + STATUS.replace(b"\r\n", b"\n"),
    # headers
    *(
        get(b"/api/backup", header)
        for header in (
            *(
                b"Host: other",
                b"Host:",
                b": empty",
                b"No-Colon",
                b"Space : x",
                b" folded: x",
                b"X: \x00",
                b"X: \xff\xfe",
            ),
            *(
                b"X\xc3\xa9: x",
                b"X-Long: " + b"a" * 9000,
                b"X-Huge: " + b"a" * 200_000,
                b"A: b\r\n c: d",
                b"A: b\rC: d",
            ),
            *(
                b"Range: bytes=" + b"0-," * 2000,
                b"Range: \xff",
                b"If-Range: \xff",
                b"Accept: \xff;q=\xff",
                b"Accept: ;;,,",
            ),
            *(
                b"Authorization: Basic \xff",
                b"Authorization: Basic ====",
                b"Authorization: Bearer",
                b"Authorization: ,,,",
            ),
            *(
                b"X-API-Key: \xff",
                b"X-Request-Id: \xff",
                b"X-Request-Id: a b",
                b"Cookie: \xff=\xff;;;=",
                b"Cookie: a=\x01",
            ),
            *(
                b"Content-Length: -1",
                b"Content-Length: x",
                b"Content-Length: 99999999999999999999999",
                b"Content-Length:",
            ),
            *(b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
            *(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, chunked", b"Content-Encoding: gzip"),
            *(
                b"Expect: 100-continue",
                b"Expect: the unexpected",
                b"Expect: \xff",
                b"Upgrade: h2c\r\nConnection: Upgrade",
                b"Connection: \xff",
            ),
            *(b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x", b"X-Forwarded-For: \xff"),
            *(
                b"Content-Type: multipart/form-data; boundary=",
                b"Content-Type: \xff",
                b"Sec-Fetch-Site: \xff",
            ),
        )
    ),
    get(b"/api/status", *(b"X-%d: y" % number for number in range(20_000))),
    get(b"/metrics", b"Accept: \xff"),
    get(b"/api/openapi.json", b"Expect: 100-continue", b"Content-Length: 10"),
    b"GET /api/status HTTP/1.1\r\n\r\n",
    b"GET /api/backup HTTP/1.0\r\n\r\n",
    # bodies
    *(
        CHUNKED + body
        for body in (
            *(
                b"0\r\n\r\n",
                b"-1\r\n",
                b"zz\r\nabc\r\n",
                b"5\r\nabc",
                b"3\r\nabcdef\r\n0\r\n\r\n",
                b"ffffffffffffffffff\r\n",
            ),
            *(
                b"3;" + b"e" * 20_000 + b"\r\nabc\r\n0\r\n\r\n",
                b"0\r\nTrailer: x\r\n\r\n",
                b"0\r\nbad trailer\r\n\r\n",
                b"\r\n",
            ),
            *(
                b"3\nabc\n0\n\n",
                b"+3\r\nabc\r\n0\r\n\r\n",
                b"0x3\r\nabc\r\n0\r\n\r\n",
                b"3\r\nabc\r\n0\r\n\r\n" + STATUS,
            ),
        )
    ),
    get(b"/api/backup", b"Content-Encoding: gzip", b"Content-Length: 3", method=b"POST") + b"abc",
    get(b"/api/status", b"Content-Length: 3000000", method=b"PUT") + b"a" * 3_000_000,
    # pipelines
    STATUS * 200,
    STATUS + b"\x00\x01\x02" + STATUS,
    STATUS + b"G",
    get(b"/api/backup?check=none") * 3,
    get(b"/api/backup?check=none") + b"\xff\xff\xff\xff\r\n\r\n",
    get(b"/api/backup?check=none", CLOSE.strip()) + STATUS,
    get(b"/api/backup", method=b"HEAD") * 20 + STATUS,
    # no HTTP
    b"",
    b"\x00",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"\xff" * 70_000,
    b"A" * 1_000_000,
    b"SSH-2.0-OpenSSH_9.7\r\n",
    b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + STATUS,
    *(STATUS[:length] for length in range(1, len(STATUS), 4)),
)

SEEDS: Final = tuple(request for request in ODD if 0 < len(request) < 3000)
SPLINTERS: Final[Sequence[bytes]] = (
    *(
        b"\x00",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"%",
        b"%00",
        b"%ff",
        b"\xff",
        b"?",
        b"&",
    ),
    *(
        b"#",
        b"/",
        b"//",
        b"\\",
        b"{id}",
        b"HTTP/1.1",
        b"GET ",
        b"DELETE ",
        b"HEAD ",
        b"0\r\n\r\n",
        b"a" * 9000,
        b"9" * 30,
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 7\r\n",
        b"Expect: 100-continue\r\n",
        b"/api/backup ",
        CLOSE,
    ),
)


@pytest.fixture(scope="module", params=["fast parser", "plain parser"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase
) -> Iterator[Service]:
    """With each of aiohttp's two parsers of HTTP: the one in C is not on every platform."""
    folder = tmp_path_factory.mktemp("raw")
    make_database(folder / "data" / "events.db", rows=50)
    environ = {"AIOHTTP_NO_EXTENSIONS": "1"} if request.param == "plain parser" else {}
    with serving(folder, folder / "data", environ=environ) as running:
        yield running


def send(service: Service, request: bytes) -> socket.socket:
    """As much as is taken of it."""
    peer = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    with contextlib.suppress(ConnectionError):
        peer.sendall(request)
    return peer


def answers(service: Service, requests: Sequence[bytes]) -> list[bytes]:
    """What came back for each, all of them open at once; each connection has to end."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(send(service, request)) for request in requests]
        assert service.request("/api/status", seconds=10).status == 200  # while they wait
        for peer in peers:
            with contextlib.suppress(OSError):  # it has been closed over there
                peer.shutdown(socket.SHUT_WR)
        return [drain(peer)[0] for peer in peers]


def mutated(chance: random.Random) -> bytes:
    """One of the odd ones, or two of them in a row, with some bytes changed."""
    data = bytearray(b"".join(chance.choices(SEEDS, k=chance.choice((1, 1, 2)))))
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[place:place] = chance.choice(SPLINTERS)
            case 1:
                data[place : place + chance.randint(1, 20)] = b""
            case 2:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case _:
                data[place:place] = data[place : place + chance.randint(1, 60)]
    return bytes(data[: chance.randrange(len(data) + 1)] if chance.random() < 0.2 else data)


def assert_unharmed(service: Service) -> None:
    """Alive, quiet, nothing left running, and the next backup is whole."""
    assert service.process.poll() is None
    wait_until("all backups to end", lambda: not service.readers())
    wait_until("all slots to be free", lambda: service.request("/api/status").json()["running"] == 0)
    archive = service.archive("check=full")
    assert archive.zip.testzip() is None
    assert archive.manifest["complete"] is True
    log = service.log()
    for word in ("Traceback", "a defect", "Z error ", "never retrieved"):
        assert word not in log, log[max(log.index(word) - 2000, 0) :][:4000]


def statuses(received: bytes) -> set[int]:
    """Of what begins like an answer."""
    return {int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) [A-Z]", received)}


def assert_no_defect(requests: Sequence[bytes], received: Sequence[bytes]) -> None:
    """500 is none where aiohttp's plain parser has it, which cannot answer what is no UTF-8; the log says what was."""
    for request, answer in zip(requests, received, strict=True):
        wrong = {status for status in statuses(answer) if status >= 500 and status != 503}
        assert not wrong or b"X-Request-Id" not in answer, (request, answer[:400])


def test_odd_requests(service: Service) -> None:
    """Each is answered as HTTP has it, or its connection ends; none is a 5xx but 503."""
    received = answers(service, ODD)

    assert_no_defect(ODD, received)
    assert {200, 400, 404, 405} <= set().union(*map(statuses, received))
    assert_unharmed(service)


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 100), marks=pytest.mark.long)])
def test_mutated_requests(service: Service, seeds: range) -> None:
    """The same, with bytes changed, moved, left out, put in."""
    for seed in seeds:
        chance = random.Random(seed)
        requests = [mutated(chance) for _ in range(200)]

        assert_no_defect(requests, answers(service, requests))
    assert_unharmed(service)


def test_the_log_repeats_nothing_that_is_not_understood(service: Service) -> None:
    """It may be a credential, at the wrong place; each parser has words of its own."""
    secret = "aHVudGVyOm1iX3NlY3JldA"
    requests = [
        f"{line}\r\nHost: localhost\r\n\r\n".encode()
        for line in (
            f"Authorization Basic {secret}",
            f"GET / HTTP/1.1\r\nAuthorization Basic {secret}",
            f"GET / HTTP/1.1\r\nA: b\r\n{secret} : c",
            f"GET / HTTP/1.1\r\nContent-Length: {secret}",
            f"GET / {secret}",
            f"{secret}:/ / HTTP/1.1",
            f"GET http://[{secret} HTTP/1.1",
            f"GET /a\r{secret} HTTP/1.1",
        )
    ] + [CHUNKED + secret.encode() + b"\r\n", CHUNKED + b"3\r\nabc" + secret.encode() + b"\r\n"]

    answers(service, requests)

    assert service.log().count("not understood") >= len(requests) - 2
    assert secret not in service.log()
