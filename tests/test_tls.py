"""TLS of `serve`: a backup and a cut are what they are without it, and certificates change while it runs."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from certificates import Authority, openssl
from clients import assert_looks_failed, curl, fetch_and, wget
from harness import Archive, Config, MakeDatabase, Service, run, serving, tool
from mothership_backup.cli import healthcheck
from mothership_backup.cli.tls import server_context
from mothership_backup.config import Data, Server, Settings
from mothership_backup.errors import ConfigError
from processes import wait_until
from support import each_look_is_due


class Issued(NamedTuple):
    folder: Path
    ours: Authority
    first: Path
    second: Path
    others: Authority
    foreign: Path


class Running(NamedTuple):
    service: Service
    certificate: Path


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    folder = tmp_path_factory.mktemp("tls")
    ours, others = Authority(folder), Authority(folder, "others")
    return Issued(folder, ours, ours.issue("first"), ours.issue("second"), others, others.issue("foreign"))


@pytest.fixture(scope="module")
def running(
    issued: Issued, tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase
) -> Iterator[Running]:
    """A service whose backups take half a second, with its certificate in one file."""
    folder = tmp_path_factory.mktemp("running")
    make_database(folder / "data" / "events.db", rows=4000, random_bytes=900)
    certificate = Path(shutil.copy(issued.first, folder / "served.pem"))
    config: Config = {
        "server": {"tls_cert": str(certificate)},
        "limits": {"read_bytes_per_second": 8_000_000, "concurrent_backups": 4},
    }
    with serving(folder, folder / "data", config) as service:
        assert service.url.startswith("https://")
        yield Running(service, certificate)


@pytest.fixture
def served(issued: Issued, tmp_path: Path) -> Path:
    """A file with a copy of the first certificate and key."""
    return Path(shutil.copy(issued.first, tmp_path / "served.pem"))


def replace(path: Path, new: Path) -> None:
    """As whoever renews does it."""
    shutil.copy(new, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def meet(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLObject:
    """A whole handshake in memory, and a few bytes; the client's end. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1", session=session)
    answers = server.wrap_bio(to_server, to_client, server_side=True)
    steps: list[Callable[[], object]] = [
        asks.do_handshake,
        answers.do_handshake,
        lambda: answers.write(b"x"),
        lambda: asks.read(1),
    ]
    while steps:
        for step in list(steps):
            try:
                step()
            except ssl.SSLWantReadError:
                break
            steps.remove(step)
        with contextlib.suppress(ssl.SSLWantReadError):
            answers.do_handshake()
            steps = [step for step in steps if step != answers.do_handshake]
    return asks


def name_of(end: ssl.SSLObject | ssl.SSLSocket) -> str:
    certificate = end.getpeercert()
    assert certificate is not None
    subject = certificate["subject"]
    assert isinstance(subject, tuple)
    return str(dict(part[0] for part in subject)["commonName"])  # type: ignore[misc]  # typeshed's nested tuples


def connect(service: Service, client: ssl.SSLContext) -> ssl.SSLSocket:
    peer = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    return client.wrap_socket(peer, server_hostname="127.0.0.1")


def test_a_whole_backup(running: Running, issued: Issued, tmp_path: Path) -> None:
    """By curl and by our own client, who trust one authority."""
    service, target, fetched = running.service, tmp_path / "curl.zip", tmp_path / "fetch.zip"

    done = run(*curl(service, target, "?strict=true", "--cacert", str(issued.ours.file)))
    assert done.returncode == 0, done.stderr
    fetch = [sys.executable, "-m", "mothership_backup", "fetch", service.backup_url, str(fetched)]
    done = run(*fetch, "--ca-file", issued.ours.file)
    assert done.returncode == 0, done.stderr

    wait_until("both records", lambda: service.log().count(" complete") == 2, 3)
    for path in (target, fetched):
        assert run(tool("unzip"), "-tqq", path).returncode == 0
        assert Archive(path.read_bytes()).manifest["complete"] is True


def test_the_start_lines_say_https(running: Running) -> None:
    """Also the one to copy."""
    assert f"curl -fOJ '{running.service.url}/api/backup" in running.service.log()
    assert "http://" not in running.service.log()


@pytest.mark.parametrize("query", ["", "?compression=stored"], ids=["deflate", "stored"])
def test_a_cut_backup_looks_cut(running: Running, issued: Issued, query: str, tmp_path: Path) -> None:
    """For curl and wget: no orderly end of TLS either."""
    service, ca = running.service, str(issued.ours.file)

    def strike() -> None:
        os.kill(service.reader(), signal.SIGKILL)

    for command, codes in (
        (curl(service, tmp_path / "curl.zip", query, "--cacert", ca), {18, 56}),
        (wget(service, tmp_path / "wget.zip", query, "--tries=1", f"--ca-certificate={ca}"), {4}),
    ):
        target = tmp_path / f"{Path(command[0]).name}.zip"
        assert fetch_and(strike, command, target) in codes
        assert_looks_failed(target.read_bytes(), target)
        wait_until("the reader's end", lambda: not service.readers())


def test_a_renewed_certificate(running: Running, issued: Issued) -> None:
    """New connections see it within a second; one that runs goes on to its end."""
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1")) as connection:
        connection.sock = connect(running.service, issued.ours.client())
        assert name_of(connection.sock) == "first"
        connection.request("GET", "/api/backup")
        response = connection.getresponse()
        begun = response.read(65536)
        replace(running.certificate, issued.second)

        def is_renewed() -> bool:
            with connect(running.service, issued.ours.client()) as peer:
                return name_of(peer) == "second"

        wait_until("the new certificate", is_renewed, 5)
        try:
            rest = response.read()
        except http.client.IncompleteRead as error:
            raise AssertionError(running.service.log()) from error

    assert Archive(begun + rest).manifest["complete"] is True
    assert "read again" in running.service.log()


def test_healthcheck(running: Running) -> None:
    """On this machine any certificate will do; under another name it must be trusted."""
    port = running.service.port

    assert healthcheck.main([f"https://127.0.0.1:{port}/readyz"]) == 0
    assert healthcheck.main([f"https://localhost:{port}/readyz"]) == 0
    assert healthcheck.main([f"https://127.1:{port}/readyz"]) == 1  # an address only for the resolver


@pytest.mark.long
def test_client_certificates(issued: Issued, tmp_path: Path, make_database: MakeDatabase) -> None:
    """Without one nothing is answered, with one everything; the end of a service with an open connection is prompt."""
    make_database(tmp_path / "data" / "events.db", rows=10)
    config = {"server": {"tls_cert": str(issued.first), "tls_client_ca": str(issued.others.file)}}
    target, ca = tmp_path / "target.zip", ("--cacert", str(issued.ours.file))

    with serving(tmp_path, tmp_path / "data", config) as service:
        refused = run(*curl(service, target, "", *ca))
        assert refused.returncode != 0
        assert not target.exists()
        done = run(*curl(service, target, "", *ca, "--cert", str(issued.foreign)))
        assert done.returncode == 0, done.stderr
        assert healthcheck.main([f"{service.url}/readyz"]) == 1
        client = issued.ours.client(issued.foreign)
        with connect(service, client) as idle:
            idle.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(12) == b"HTTP/1.1 200"
            assert service.stop(5) == 0

    assert Archive(target.read_bytes()).manifest["complete"] is True
    assert "Traceback" not in service.log()


def test_a_look_is_due_once_a_second(issued: Issued, served: Path) -> None:
    """Not at each handshake."""
    now = 0.0
    context = server_context(Server(tls_cert=str(served)), lambda: now)
    assert context is not None
    replace(served, issued.second)

    assert name_of(meet(context, issued.ours.client())) == "first"
    now = 1.0
    assert name_of(meet(context, issued.ours.client())) == "second"


def test_a_broken_pair_keeps_the_old_one(
    issued: Issued, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once; the next good one counts."""
    cert, key = (Path(shutil.copy(issued.first, tmp_path / name)) for name in ("cert.pem", "key.pem"))
    context = server_context(Server(tls_cert=str(cert), tls_key=str(key)), each_look_is_due())
    assert context is not None
    client = issued.ours.client()

    with caplog.at_level(logging.INFO):
        replace(cert, issued.second)
        assert [name_of(meet(context, client)) for _ in range(3)] == ["first"] * 3
        cert.unlink()
        assert [name_of(meet(context, client)) for _ in range(2)] == ["first"] * 2
        replace(cert, issued.second)
        replace(key, issued.second)
        assert name_of(meet(context, client)) == "second"

    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [
        f"server.tls_key: {key}: is not the key of {cert}; the certificates that were read last stay",
        f"server.tls_cert: {cert}: No such file or directory; the certificates that were read last stay",
    ]


def test_an_authority_that_was_removed(issued: Issued, tmp_path: Path) -> None:
    """Its certificates open nothing any more, in a session of before neither."""
    authorities = Path(shutil.copy(issued.others.file, tmp_path / "authorities.pem"))
    server = Server(tls_cert=str(issued.first), tls_client_ca=str(authorities))
    context = server_context(server, each_look_is_due())
    assert context is not None
    theirs, ours = issued.ours.client(issued.foreign), issued.ours.client(issued.second)

    session = meet(context, theirs).session
    with pytest.raises(ssl.SSLError):
        meet(context, ours)
    replace(authorities, issued.ours.file)
    meet(context, ours)
    for before in (None, session):
        with pytest.raises(ssl.SSLError):
            meet(context, theirs, before)


def test_client_certificates_need_tls_1_3(issued: Issued) -> None:
    """Before it a session could be resumed without a look at the certificate."""
    context = server_context(Server(tls_cert=str(issued.first), tls_client_ca=str(issued.others.file)))
    assert context is not None
    client = issued.ours.client(issued.foreign)
    client.maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises(ssl.SSLError):
        meet(context, client)


def test_files_that_are_no_good(issued: Issued, tmp_path: Path) -> None:
    """The start is refused, and says which key and which file."""
    first, text, locked = str(issued.first), tmp_path / "text", tmp_path / "locked.pem"
    text.write_text("no certificate\n")
    openssl("ec", "-aes256", "-passout", "pass:x", "-in", issued.first, "-out", locked)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    for files, message in (
        (
            {"tls_cert": str(tmp_path / "none")},
            f"server.tls_cert: {tmp_path}/none: No such file or directory",
        ),
        ({"tls_cert": str(text)}, f"server.tls_cert: {text}: has no certificate in PEM"),
        ({"tls_cert": str(pipe)}, f"server.tls_cert: {pipe}: is no regular file"),
        (
            {"tls_cert": str(issued.ours.file)},
            f"server.tls_cert: {issued.ours.file}: has no private key in PEM",
        ),
        ({"tls_cert": first, "tls_key": str(text)}, f"server.tls_key: {text}: has no private key in PEM"),
        (
            {"tls_cert": first, "tls_key": str(issued.second)},
            f"server.tls_key: {issued.second}: is not the key of {first}",
        ),
        (
            {"tls_cert": first, "tls_key": str(locked)},
            f"server.tls_key: {locked}: its private key has a passphrase, which nobody could type",
        ),
        (
            {"tls_cert": first, "tls_client_ca": str(text)},
            f"server.tls_client_ca: {text}: has no certificate in PEM",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            server_context(Server.model_validate(files))
        assert caught.value.message == message


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (Server(tls_key="/etc/key.pem"), "server.tls_key: needs server.tls_cert"),
        (Server(tls_client_ca="/etc/ca.pem"), "server.tls_client_ca: needs server.tls_cert"),
        (Server(tls_cert="/data/cert.pem"), "server.tls_cert: /data/cert.pem is inside data.dir"),
    ],
)
def test_keys_that_do_not_go_together(server: Server, message: str) -> None:
    """Nor is a file in the data directory opened by this process."""
    with pytest.raises(ValueError, match=message):
        Settings(server=server, data=Data(dir=Path("/data")))


def test_without_a_certificate_there_is_no_tls() -> None:
    """The default."""
    assert server_context(Server()) is None
