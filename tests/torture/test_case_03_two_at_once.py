"""Case 3: two backups of one database at once; the process that serves them opens nothing of the application's."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import Answer, Config, MakeDatabase, hosting
from processes import Samples, open_paths
from test_locks import another_process_can_write, opened_below
from torture.harness import load, locks_below, prove, under_fire
from writers import check_bank, create_bank

LOOKS = 10


@pytest.mark.long
@pytest.mark.parametrize("at_once", [2, 1], ids=["both-good", "the-second-503"])
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_two_backups_of_one_database_at_once(
    journal: str, at_once: int, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """The host holds a write transaction in its own process all the while; another process writes a bank beside it."""
    data = tmp_path / "data"
    own = make_database(data / "own.db", journal=journal, rows=6000, random_bytes=900)
    bank = make_database(data / "bank.db", journal=journal, rows=1000, random_bytes=900)
    create_bank(bank, journal)
    config: Config = {"limits": {"read_bytes_per_second": 4_000_000, "concurrent_backups": at_once}}
    with hosting(tmp_path / "host", "mothership.py", data, config, "--own", str(own)) as host:
        for step in (
            "/hold",
            "/release",
        ):  # a connection to a WAL database keeps a lock from its first use on
            assert host.request(step, "POST").status == 200
        with under_fire(host, data, endpoint="/opened"), load("bank", bank, rate=100, least=50) as writer:
            assert host.request("/hold", "POST").status == 200
            held = locks_below(data, [host.pid])
            assert held, "the host holds no lock: the sampler is blind"
            mine = [path for path in open_paths(host.pid) if str(data) in path]

            def sample() -> list[str]:
                more = [path for path in open_paths(host.pid) if str(data) in path]
                # The kernel gives /proc/locks in pieces: while others lock and unlock, one look may miss a line.
                keeps = any(set(locks_below(data, [host.pid])) >= set(held) for _ in range(LOOKS))
                lost = [] if keeps else ["the host lost its lock"]
                taken = ["somebody else got the write lock"] if another_process_can_write(own) else []
                return [path for path in more if path not in mine] + lost + taken

            def ask(delay: float) -> Answer:
                time.sleep(delay)
                return host.request("/api/backup?strict=true")

            with Samples(sample) as samples, ThreadPoolExecutor(2) as pool:
                answers = list(pool.map(ask, (0, 0.3)))

            assert host.request("/release", "POST").status == 200

        assert not samples.seen
        assert samples.rounds > 50
        assert opened_below(data, host) == []
        assert writer.tally.busy == 0
        assert [answer.status for answer in answers] == [200, 200 if at_once == 2 else 503]
    for number, answer in enumerate(answers):
        if answer.status == 200:
            path = answer.archive().save(tmp_path / f"{number}.zip")
            prove(path, tmp_path / f"out-{number}", {"bank.db": check_bank})
