"""A browser takes a backup: Chromium without a window, told what to do by its DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse

from clients import SLOW, assert_looks_failed
from harness import Archive, Config, Service, run, serving, tool
from mothership_backup.credentials import Credential, digest_of, new_token
from processes import wait_until

TOKEN = new_token()
AUTH: Config = {"auth": {"tokens": [Credential("right", digest_of(TOKEN.encode())).stored()]}}
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's is small
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)
SECONDS = 90  # for what takes two on a quiet machine

pytestmark = pytest.mark.long

Message = dict[str, Any]  # JSON of https://chromedevtools.github.io/devtools-protocol/


@dataclass
class Download:
    """What the browser says of one."""

    prompts: int = 0
    name: str = ""
    state: str = ""
    received_bytes: int = 0


@dataclass
class Browser:
    """Who speaks with one that runs."""

    socket: ClientWebSocketResponse
    downloads: Path
    _sent: int = field(default=0, init=False)

    async def download(self, url: str, password: str, strike: Callable[[], None] | None = None) -> Download:
        """To its end, whatever that is; `strike` happens in mid-stream. The password is for who is asked for one."""
        where: Message = {"downloadPath": str(self.downloads), "eventsEnabled": True}
        await self._call("Browser.setDownloadBehavior", behavior="allow", **where)
        target = await self._call("Target.createTarget", url="about:blank")
        page = (await self._call("Target.attachToTarget", flatten=True, **target))["sessionId"]
        await self._call("Fetch.enable", page, handleAuthRequests=True)
        await self._send("Page.navigate", page, url=url)

        download = Download()
        while download.state not in ("completed", "canceled"):
            message = await self._receive()
            said = message.get("params", {})
            match message.get("method"):
                case "Fetch.requestPaused":
                    await self._send("Fetch.continueRequest", page, requestId=said["requestId"])
                case "Fetch.authRequired":
                    download.prompts += 1
                    given = {"response": "ProvideCredentials", "username": "me", "password": password}
                    answer = {"requestId": said["requestId"], "authChallengeResponse": given}
                    await self._send("Fetch.continueWithAuth", page, **answer)
                case "Browser.downloadWillBegin":
                    download.name = said["suggestedFilename"]
                case "Browser.downloadProgress":
                    download.state, download.received_bytes = said["state"], int(said["receivedBytes"])
            if strike and download.state == "inProgress" and download.received_bytes > 300_000:
                strike()
                strike = None
        assert strike is None, f"it ended before anything happened to it: {download}"
        return download

    async def _call(self, method: str, session: str = "", **parameters: object) -> Message:
        """Its result; events before that are of no interest."""
        number = await self._send(method, session, **parameters)
        while (answer := await self._receive()).get("id") != number:
            pass
        assert "error" not in answer, answer
        result: Message = answer["result"]
        return result

    async def _send(self, method: str, session: str = "", **parameters: object) -> int:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        await self.socket.send_json(message | ({"sessionId": session} if session else {}))
        return self._sent

    async def _receive(self) -> Message:
        message: Message = await self.socket.receive_json()
        return message


def is_written(port_file: Path) -> bool:
    """Both of its lines; the last one has no end."""
    return port_file.exists() and port_file.read_text().count("\n") == 1


@contextlib.asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Browser]:
    """A browser with a profile of its own; the whole of its process group ends with the block."""
    downloads, profile = folder / "downloads", folder / "profile"
    for made in (downloads, profile):
        made.mkdir()
    port_file, log_file = profile / "DevToolsActivePort", folder / "chromium.log"
    command = [tool("chromium"), *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | {"HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until("its port", lambda: process.poll() is not None or is_written(port_file), SECONDS)
        assert process.poll() is None, log_file.read_text(errors="replace")
        port, path = port_file.read_text().split()
        async with (
            asyncio.timeout(SECONDS),
            ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            yield Browser(socket, downloads)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, big_dir: Path) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), big_dir, {**SLOW, **AUTH}) as running:
        yield running


@pytest.mark.parametrize("compression", ["deflate", "stored"])
@pytest.mark.parametrize("asked", [True, False], ids=["at the prompt", "in the address"])
async def test_a_whole_backup(asked: bool, compression: str, service: Service, tmp_path: Path) -> None:
    """Under the name that the service gives it, with the token as a password at the prompt or in the address."""
    url = f"{service.backup_url}?strict=true&compression={compression}"
    async with browsing(tmp_path) as browser:
        if asked:
            download = await browser.download(url, TOKEN)
        else:
            download = await browser.download(url.replace("://", f"://me:{TOKEN}@"), "wrong")

    assert (download.state, download.prompts) == ("completed", asked)
    (file,) = browser.downloads.iterdir()
    assert file.name == download.name
    assert re.fullmatch(r"spaxel-backup-\d{4}-\d\d-\d\d\.zip", file.name)
    assert file.stat().st_size == download.received_bytes
    archive = Archive(file.read_bytes())
    assert archive.manifest["complete"] is True
    assert run(tool("unzip"), "-tqq", file).returncode == 0


@pytest.mark.parametrize("compression", ["deflate", "stored"])
async def test_a_cut_backup(compression: str, service: Service, tmp_path: Path) -> None:
    """It has failed for the browser, too, and no file has its name."""
    async with browsing(tmp_path) as browser:
        download = await browser.download(
            f"{service.backup_url}?compression={compression}",
            TOKEN,
            lambda: os.kill(service.reader(), signal.SIGKILL),
        )

    assert download.state == "canceled"
    assert not (browser.downloads / download.name).exists()
    for part in browser.downloads.iterdir():
        assert_looks_failed(part.read_bytes(), part)
