"""The files of deploy/nginx, caddy and haproxy before the real service: only ports, paths and upstream are replaced."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from certificates import NEW_KEY, openssl
from clients import SLOW, fetch_and
from deployed import DEPLOY
from harness import Archive, Config, MakeDatabase, Service, run, serving, tool
from mothership_backup.credentials import Credential, digest_of, new_token
from processes import forget_peak_memory, peak_memory_bytes, wait_until
from torture.proxies import free_port, is_old_caddy, listening, nginx

NAME = "backup.example.org"
UPSTREAM = "127.0.0.1:8080"
BELOW = "/rover"
CLIENT = "127.0.0.5"  # the proxies ask from 127.0.0.1
LIE = "203.0.113.9"
TOKENS = {name: new_token() for name in ("right", "here", "away")}
AUTH = {
    "tokens": [
        Credential(name, digest_of(TOKENS[name].encode()), networks=networks).stored()
        for name, networks in {
            "right": (),
            "here": (ip_network(CLIENT),),
            "away": (ip_network("203.0.113.0/24"),),
        }.items()
    ]
}
FAST: Config = {"auth": AUTH, "server": {"trusted_proxies": ["127.0.0.1"]}}
TRUSTING: Config = {**SLOW, **FAST}
UNTRUSTING: Config = {"auth": AUTH}
MIB = 1024**2
GB = 10**9
CUT = {"nginx": {18}, "haproxy": {18}, "caddy": {18, 92}}  # Caddy speaks HTTP/2, and 92 is a reset stream


@dataclass(frozen=True)
class Certificate:
    """Self-signed, for NAME."""

    cert: Path
    key: Path

    @property
    def both(self) -> Path:
        return self.cert.with_suffix(".both")


@dataclass(frozen=True)
class Front:
    """A listening proxy, and how curl reaches it."""

    url: str
    options: tuple[str, ...]

    def curl(self, path: str, target: Path, *options: str, token: str = "right") -> list[str]:
        """As CLIENT; without a token if it is empty."""
        credential = ("-H", f"Authorization: Bearer {TOKENS[token]}") if token else ()
        common = ("-q", "-sS", "-N", "--noproxy", "*", "--interface", CLIENT, *self.options, *credential)
        return [tool("curl"), *common, *options, "-o", str(target), self.url + path]

    def status(self, path: str, *options: str, token: str = "right") -> int:
        words = self.curl(path, Path(os.devnull), "-w", "%{http_code}", *options, token=token)
        return int(run(*words).stdout)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("tls")
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    names = ("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}")
    openssl("req", "-x509", *NEW_KEY, *names, "-keyout", made.key, "-out", made.cert)
    made.both.write_text(made.cert.read_text() + made.key.read_text())
    return made


def written(folder: Path, file: str, replaced: dict[str, str]) -> Path:
    """A file of deploy/ in this folder. What is replaced stands in it once, besides its comments."""
    text = (DEPLOY / file).read_text("utf-8")
    for old, new in replaced.items():
        (line,) = [line for line in text.splitlines() if old in line and not line.lstrip().startswith("#")]
        text = text.replace(line, line.replace(old, new))
    path = folder / Path(file).name
    path.write_text(text)
    return path


Make = Callable[[Path, int, int, Certificate], list[str]]


def by_nginx(folder: Path, port: int, upstream: int, certificate: Certificate) -> list[str]:
    replaced = {
        "listen 443": f"listen 127.0.0.1:{port}",
        f"/etc/ssl/{NAME}.pem": str(certificate.cert),
        f"/etc/ssl/{NAME}.key": str(certificate.key),
        UPSTREAM: f"127.0.0.1:{upstream}",
    }
    return nginx(folder, f"include {written(folder, 'nginx/mothership-backup.conf', replaced)};")


def by_nginx_below(folder: Path, port: int, upstream: int, _: Certificate) -> list[str]:
    file = written(folder, "nginx/sub-path.conf", {UPSTREAM: f"127.0.0.1:{upstream}"})
    return nginx(folder, f"server {{ listen 127.0.0.1:{port}; include {file}; }}")


def by_caddy(folder: Path, port: int, upstream: int, certificate: Certificate) -> list[str]:
    files = {
        f"/etc/ssl/{NAME}.pem": str(certificate.cert),
        f"/etc/ssl/{NAME}.key": str(certificate.key),
    }
    replaced = {f"{NAME}:443": f"{NAME}:{port}", **files, UPSTREAM: f"127.0.0.1:{upstream}"}
    return caddy(folder, f"import {written(folder, 'caddy/mothership-backup.caddyfile', replaced)}")


def by_caddy_below(folder: Path, port: int, upstream: int, _: Certificate) -> list[str]:
    file = written(folder, "caddy/sub-path.caddyfile", {UPSTREAM: f"127.0.0.1:{upstream}"})
    return caddy(folder, f"http://127.0.0.1:{port} {{\n\timport {file}\n}}")


def caddy(folder: Path, sites: str) -> list[str]:
    """Its command for these sites; nothing on port 80."""
    file = folder / "Caddyfile"
    file.write_text(f"{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{sites}\n")
    return [tool("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]


def by_haproxy(folder: Path, port: int, upstream: int, certificate: Certificate) -> list[str]:
    replaced = {
        "bind :443": f"bind 127.0.0.1:{port}",
        f"/etc/haproxy/certs/{NAME}.pem": str(certificate.both),
        UPSTREAM: f"127.0.0.1:{upstream}",
    }
    return [tool("haproxy"), "-db", "-f", str(written(folder, "haproxy/mothership-backup.cfg", replaced))]


def by_haproxy_below(folder: Path, port: int, upstream: int, _: Certificate) -> list[str]:
    """The site's frontend has the line that the file's comment gives."""
    file = written(folder, "haproxy/sub-path.cfg", {UPSTREAM: f"127.0.0.1:{upstream}"})
    found = re.search(r"^# +(use_backend .*)$", file.read_text(), re.MULTILINE)
    assert found
    site = folder / "haproxy.cfg"
    site.write_text(
        f"frontend site\n    mode http\n    timeout client 60s\n    bind 127.0.0.1:{port}\n    {found[1]}\n"
    )
    return [tool("haproxy"), "-db", "-f", str(site), "-f", str(file)]


PROXIES: dict[str, Make] = {"nginx": by_nginx, "caddy": by_caddy, "haproxy": by_haproxy}
PROXIES_BELOW: dict[str, Make] = {
    "nginx": by_nginx_below,
    "caddy": by_caddy_below,
    "haproxy": by_haproxy_below,
}


@contextlib.contextmanager
def fronting(make: Make, folder: Path, service: Service, certificate: Certificate) -> Iterator[Front]:
    folder.mkdir()
    port = free_port()
    with listening(make(folder, port, service.port, certificate), folder, port):
        options = ("--cacert", str(certificate.cert), "--resolve", f"{NAME}:{port}:127.0.0.1")
        yield Front(f"https://{NAME}:{port}", options)


def assert_whole_in_both_compressions(front: Front, folder: Path, path: str = "/api/backup") -> None:
    for compression in ("deflate", "stored"):
        target = folder / f"{compression}.zip"
        head = folder / f"{compression}.head"
        words = front.curl(f"{path}?strict=true&compression={compression}", target, "-f", "-D", str(head))

        assert run(*words).returncode == 0
        assert Archive(target.read_bytes()).manifest["complete"] is True
        has_length = "content-length:" in head.read_text().lower()
        assert has_length == (compression == "stored"), "the proxy has asked with HTTP/1.0, or held it back"


def clients_of(service: Service) -> list[Any]:
    """Whom the history names, newest first."""
    answer = service.request("/api/backups", headers={"X-API-Key": TOKENS["right"]})
    return [backup["client"] for backup in answer.json()["backups"]]


def sent_now(service: Service) -> int:
    """How much of the one backup that runs has left the service."""
    (backup,) = service.request("/api/backups", headers={"X-API-Key": TOKENS["right"]}).json()["running"]
    return int(backup["sent_bytes"])


def peak_of(service: Service, words: list[str]) -> int:
    """The most memory that the service took, while curl fetched this."""
    forget_peak_memory(service.pid)
    assert run(*words).returncode == 0
    return peak_memory_bytes(service.pid)


@pytest.fixture(params=PROXIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_nginx_in_short(data_dir: Path, tmp_path: Path, certificate: Certificate) -> None:
    """Behind TLS: whole backups with the token, 401 without, and the history names the client."""
    with (
        serving(tmp_path / "service", data_dir, TRUSTING) as service,
        fronting(by_nginx, tmp_path / "nginx", service, certificate) as front,
    ):
        assert_whole_in_both_compressions(front, tmp_path)
        assert front.status("/api/backup", token="") == 401
        wait_until("the history", lambda: clients_of(service) == [CLIENT] * 2, 5)


@pytest.mark.long
class TestThroughEach:
    @pytest.fixture
    def service(self, big_dir: Path, tmp_path: Path) -> Iterator[Service]:
        with serving(tmp_path / "service", big_dir, TRUSTING) as service:
            yield service

    @pytest.fixture
    def front(self, name: str, service: Service, tmp_path: Path, certificate: Certificate) -> Iterator[Front]:
        with fronting(PROXIES[name], tmp_path / "proxy", service, certificate) as front:
            yield front

    def test_whole(self, front: Front, tmp_path: Path) -> None:
        """Behind TLS, in both compressions; without a token it is 401, with a wrong one too."""
        assert_whole_in_both_compressions(front, tmp_path)
        assert front.status("/api/backup", token="") == 401
        assert front.status("/api/backup", "-H", "X-API-Key: mb_wrong", token="") == 401

    @pytest.mark.parametrize("compression", ["deflate", "stored"])
    def test_a_cut_is_seen(
        self, name: str, compression: str, front: Front, service: Service, tmp_path: Path
    ) -> None:
        """By curl's exit status; through Caddy before 2.8 without a length by `unzip -t` only, as its file says."""
        target = tmp_path / "x.zip"
        words = front.curl(f"/api/backup?compression={compression}", target, "-f")

        status = fetch_and(lambda: os.kill(service.reader(), signal.SIGKILL), words, target)

        is_silent = name == "caddy" and compression == "deflate" and is_old_caddy()
        assert status in ({0} if is_silent else CUT[name])
        assert run(tool("unzip"), "-tqq", target).returncode != 0

    def test_a_client_that_leaves(self, front: Front, service: Service, tmp_path: Path) -> None:
        """The proxy tells: the reader is gone soon, in both compressions."""
        for compression in ("deflate", "stored"):
            target = tmp_path / f"{compression}.zip"
            client = subprocess.Popen(front.curl(f"/api/backup?compression={compression}", target))
            wait_until("the first bytes", lambda: target.exists() and target.stat().st_size > 300_000)  # noqa: B023
            assert service.readers()
            client.kill()
            client.wait()

            wait_until("the reader to be gone", lambda: not service.readers(), 2)

    def test_a_client_that_lies(self, front: Front, service: Service) -> None:
        """The history, and `from=`, go by the address that the proxy saw, whatever the client forwards."""
        lies = ("-H", f"X-Forwarded-For: {LIE}", "-H", "X-Forwarded-Proto: http")

        assert front.status("/api/backup?files=false", *lies) == 200
        assert front.status("/api/status", *lies, token="here") == 200
        assert front.status("/api/status", *lies, token="away") == 403
        assert front.status("/api/status", "-H", "X-Forwarded-For: nonsense", token="here") == 200
        wait_until("the history", lambda: clients_of(service) == [CLIENT], 5)


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory: pytest.TempPathFactory, make_database: MakeDatabase) -> Iterator[Service]:
    """Over a gigabyte that does not compress, in four databases."""
    folder = tmp_path_factory.mktemp("gigabyte")
    for number in range(4):
        make_database(folder / "data" / f"{number}.db", rows=4_200, page_size=65536, random_bytes=64_000)
    with serving(folder, folder / "data", FAST) as service:
        yield service
    shutil.rmtree(folder / "data")


@pytest.mark.long
@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_a_gigabyte(compression: str, gigabyte: Service, tmp_path: Path, certificate: Certificate) -> None:
    """Whole through each, in no more of the service's memory than without any of them."""
    path = f"/api/backup?check=none&compression={compression}"
    target = tmp_path / "x.zip"
    direct = peak_of(gigabyte, Front(gigabyte.url, ()).curl(path, target, "-f"))

    for name, make in PROXIES.items():
        with fronting(make, tmp_path / name, gigabyte, certificate) as front:
            peak = peak_of(gigabyte, front.curl(path, target, "-f"))
        proof = run(sys.executable, "-m", "mothership_backup", "verify", "--check", "none", target)

        assert proof.returncode == 0, proof.stderr
        assert target.stat().st_size > GB
        assert peak < direct + 16 * MIB
    target.unlink()


@pytest.mark.long
@pytest.mark.parametrize("compression", ["deflate", "stored"])
def test_a_slow_client(
    compression: str, name: str, gigabyte: Service, tmp_path: Path, certificate: Certificate
) -> None:
    """Nobody holds the rest for it, in memory or in files: what the service has sent has almost come."""
    target = tmp_path / "x.zip"
    with fronting(PROXIES[name], tmp_path / "proxy", gigabyte, certificate) as front:
        words = front.curl(f"/api/backup?check=none&compression={compression}", target, "--limit-rate", "8M")
        forget_peak_memory(gigabyte.pid)
        before = peak_memory_bytes(gigabyte.pid)
        client = subprocess.Popen(words)
        try:
            wait_until("20 MiB", lambda: target.exists() and target.stat().st_size > 20 * MIB, 30)
            sent_bytes = sent_now(gigabyte)
            come_bytes = target.stat().st_size
        finally:
            client.kill()
            client.wait()

    assert sent_bytes - come_bytes < 32 * MIB
    assert peak_memory_bytes(gigabyte.pid) < before + 16 * MIB
    wait_until("the reader to be gone", lambda: not gigabyte.readers(), 5)


@pytest.mark.long
def test_untrusted(name: str, data_dir: Path, tmp_path: Path, certificate: Certificate) -> None:
    """Without `trusted_proxies` every client is taken for the proxy, and nobody for whom it says."""
    with (
        serving(tmp_path / "service", data_dir, UNTRUSTING) as service,
        fronting(PROXIES[name], tmp_path / "proxy", service, certificate) as front,
    ):
        assert front.status("/api/backup", "-H", f"X-Forwarded-For: {LIE}") == 200
        assert front.status("/api/status", token="here") == 403
        wait_until("the history", lambda: clients_of(service) == ["127.0.0.1"], 5)


@pytest.mark.long
def test_without_any_credential(name: str, data_dir: Path, tmp_path: Path, certificate: Certificate) -> None:
    """The service answers local clients then, and who comes through one of these is none."""
    with (
        serving(tmp_path / "service", data_dir) as service,
        fronting(PROXIES[name], tmp_path / "proxy", service, certificate) as front,
    ):
        assert service.request().status == 200
        assert front.status("/api/backup", token="") == 403
        target = tmp_path / "x"
        done = run(*front.curl("/api/backup", target, "-H", f"Host: localhost:{service.port}", token=""))
        assert done.returncode == 0, done.stderr
        assert not target.read_bytes().startswith(b"PK"), "Caddy has no such site, the others pass it on"


@pytest.mark.long
def test_below_a_path(name: str, data_dir: Path, tmp_path: Path, certificate: Certificate) -> None:
    """With `base_path`, of a site that the proxy serves already."""
    config: Config = {**TRUSTING, "server": {"base_path": BELOW, "trusted_proxies": ["127.0.0.1"]}}
    with serving(tmp_path / "service", data_dir, config) as service:
        folder = tmp_path / "proxy"
        folder.mkdir()
        port = free_port()
        command = PROXIES_BELOW[name](folder, port, service.port, certificate)
        with listening(command, folder, port):
            front = Front(f"http://127.0.0.1:{port}", ())

            assert_whole_in_both_compressions(front, tmp_path, f"{BELOW}/api/backup")
            assert front.status(f"{BELOW}/api/status", token="") == 401
            assert front.status(f"{BELOW}/api/status", token="here") == 200
            assert front.status("/api/status") != 401, "that path is the site's own"
