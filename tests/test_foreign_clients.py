"""Each kind of client that we can name fetches a whole backup with credentials, in the way that is its own."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from clients import curl, wget
from harness import Archive, Service, run, serving, tool
from mothership_backup.credentials import Credential, digest_of, new_token

TOKEN = new_token()
BEARER = {"Authorization": f"Bearer {TOKEN}"}
NODE = """
const {url, target, headers} = JSON.parse(require("fs").readFileSync(0));
const {Readable} = require("stream");
const {pipeline} = require("stream/promises");
fetch(url, {headers}).then(async response => {
    if (!response.ok) throw new Error(response.status);
    await pipeline(Readable.fromWeb(response.body), require("fs").createWriteStream(target));
});
"""

pytestmark = pytest.mark.long

Client = Callable[[Service, Path, str], Coroutine[None, None, None] | None]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, big_dir: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    line = Credential("right", digest_of(TOKEN.encode())).stored()
    with serving(folder, big_dir, {"auth": {"tokens": [line]}}) as running:
        yield running


def by_curl(service: Service, target: Path, query: str) -> None:
    """With a bearer token in a header."""
    assert run(*curl(service, target, query, "-H", f"Authorization: Bearer {TOKEN}")).returncode == 0


def by_curl_netrc(service: Service, target: Path, query: str) -> None:
    """With Basic from a file, so that the token is in no process list."""
    netrc = target.with_suffix(".netrc")
    netrc.write_text(f"machine 127.0.0.1 login me password {TOKEN}\n")
    assert run(*curl(service, target, query, "--netrc-file", str(netrc))).returncode == 0


def by_wget(service: Service, target: Path, query: str) -> None:
    """With Basic, which it gives once it was challenged."""
    assert run(*wget(service, target, query, "--tries=1", "--user=me", f"--password={TOKEN}")).returncode == 0


def by_urllib(service: Service, target: Path, query: str) -> None:
    """With Basic, once challenged; it looks for that among both challenges."""
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, service.url, "me", TOKEN)
    handlers = (urllib.request.HTTPBasicAuthHandler(passwords), urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    with opener.open(service.backup_url + query, timeout=60) as response:
        target.write_bytes(response.read())


def by_urllib_header(service: Service, target: Path, query: str) -> None:
    """With a key in a header."""
    request = urllib.request.Request(service.backup_url + query, headers={"X-API-Key": TOKEN})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as response:
        target.write_bytes(response.read())


async def by_aiohttp(service: Service, target: Path, query: str) -> None:
    """With a bearer token."""
    async with ClientSession(headers=BEARER) as session, session.get(service.backup_url + query) as response:
        assert response.status == 200
        target.write_bytes(await response.read())


def by_node(service: Service, target: Path, query: str) -> None:
    """With a bearer token, by Node's own fetch, streamed into a file."""
    words = {"url": service.backup_url + query, "target": str(target), "headers": BEARER}
    done = subprocess.run(
        [tool("node"), "-e", NODE], input=json.dumps(words), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


CLIENTS: tuple[Client, ...] = (
    by_curl,
    by_curl_netrc,
    by_wget,
    by_urllib,
    by_urllib_header,
    by_aiohttp,
    by_node,
)


@pytest.mark.parametrize("compression", ["deflate", "stored"])
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
async def test_a_whole_backup(client: Client, compression: str, service: Service, tmp_path: Path) -> None:
    """It is complete, and a foreign tool finds nothing wrong with it."""
    target = tmp_path / "x.zip"

    running = client(service, target, f"?strict=true&compression={compression}")
    if running is not None:
        await running

    assert Archive(target.read_bytes()).manifest["complete"] is True
    assert run(tool("unzip"), "-tqq", target).returncode == 0
