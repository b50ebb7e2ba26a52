"""What a Prometheus server sees. The only owner of prometheus-client.

Each application has a registry of its own, which a host adds to its own metrics or serves by itself; the mounts of
one application share it. No label holds a path: sources are named as in the archive.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mothership_backup import __version__
from mothership_backup.backup import Backup, Outcome
from mothership_backup.errors import BackupError, BusyError, ClosingError
from mothership_backup.history import History
from mothership_backup.web.auth import Auth
from mothership_backup.web.refusing import refuse
from mothership_backup.web.running import Running

PREFIX: Final = "mothership_backup_"
OUTCOMES: Final = ("complete", "incomplete", "client_left", "cut", "cancelled", "failed", "refused")
MAX_SOURCES: Final = 100
LAG_SECONDS: Final = 0.5  # between two looks at the loop

BACKUP_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
START_BUCKETS: Final = (0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
GROWTH_BUCKETS: Final = (0, *(4**power * 1024 for power in range(1, 11)))  # 4 KiB to 1 GiB


class Metrics:
    """The numbers of one application, all its mounts together. ``registry`` is for the host."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._now = _Now()
        self._backups = Counter(
            PREFIX + "backups", "Backups by how they ended", ["outcome"], registry=self.registry
        )
        for outcome in OUTCOMES:
            self._backups.labels(outcome)  # at 0: increase() sees the first one too
        self._sent = Counter(
            PREFIX + "sent_bytes", "Bytes of archives, of those that were cut too", registry=self.registry
        )
        self._size = Gauge(
            PREFIX + "last_size_bytes", "Size of the last complete archive", registry=self.registry
        )
        self._duration = self._histogram(
            "backup_duration_seconds", "From a backup's request to its last byte", BACKUP_BUCKETS
        )
        self._start = self._histogram(
            "reader_start_seconds", "From a reader's start to its first sign", START_BUCKETS
        )
        self._pin = self._histogram("pin_seconds", "The longest pin of a whole backup", BACKUP_BUCKETS)
        self._growth = self._histogram(
            "wal_growth_bytes", "The most that a WAL grew under a pin of a whole backup", GROWTH_BUCKETS
        )
        self._lag = self._histogram("loop_lag_seconds", "How late the event loop wakes", LAG_BUCKETS)
        self.registry.register(self._now)

    def add_mount(self, running: Running, history: History, auth: Auth) -> None:
        self._now.mounts[running] = history
        self._now.auths.append(auth)

    def note_end(self, running: Running, backup: Backup, outcome: Outcome) -> None:
        """A backup has ended, one way or another."""
        self._backups.labels(outcome.word).inc()
        self._sent.inc(outcome.sent_bytes)
        self._duration.observe(outcome.duration_seconds)
        if outcome.word == "complete":
            self._size.set(outcome.sent_bytes)
        if backup.reader_start_seconds is not None:
            self._start.observe(backup.reader_start_seconds)
        if backup.pin_cost is not None:
            self._pin.observe(backup.pin_cost.pin_seconds)
            self._growth.observe(backup.pin_cost.wal_growth_bytes)
        self.note_plan(running, backup)

    def note_refusal(self, error: BackupError) -> None:
        """A backup that was asked for by somebody who may, and has not begun."""
        if isinstance(error, BusyError | ClosingError):
            self._backups.labels("refused").inc()

    def note_plan(self, running: Running, backup: Backup) -> None:
        """The sources of a plan of everything."""
        if backup.plan is None or backup.options.databases:
            return
        databases = (
            source for source in backup.plan.sources if source.kind == "database" and source.status == "ok"
        )
        self._now.sizes[running] = {
            source.name: source.size_bytes for source in islice(databases, MAX_SOURCES)
        }

    @asynccontextmanager
    async def watching_the_loop(self) -> AsyncIterator[None]:
        """Measures how late the loop is for a call that is due, twice a second."""
        loop = asyncio.get_running_loop()

        handle: asyncio.TimerHandle

        def look_later() -> None:
            nonlocal handle
            due = loop.time() + LAG_SECONDS
            handle = loop.call_at(due, look, due)

        def look(due: float) -> None:
            self._lag.observe(max(loop.time() - due, 0))
            look_later()

        look_later()
        try:
            yield
        finally:
            handle.cancel()

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(PREFIX + name, text, registry=self.registry, buckets=tuple(buckets))


METRICS: Final = web.AppKey("METRICS", CollectorRegistry)
"""Where an application with the backup mounted has the registry of its metrics."""
_OWN: Final = web.AppKey("mothership_backup.metrics", Metrics)


def metrics_of(app: web.Application) -> Metrics:
    """Those of the application, made for its first mount."""
    if _OWN in app:
        return app[_OWN]
    metrics = app[_OWN] = Metrics()
    app[METRICS] = metrics.registry

    async def lifetime(_: web.Application) -> AsyncIterator[None]:
        async with metrics.watching_the_loop():
            yield

    app.cleanup_ctx.append(lifetime)
    return metrics


class _Now(Collector):
    """What is asked for when somebody looks."""

    def __init__(self) -> None:
        self.mounts: dict[Running, History] = {}
        self.auths: list[Auth] = []
        self.sizes: dict[Running, dict[str, int]] = {}

    def collect(self) -> Iterator[Metric]:
        running = sum(mount.count for mount in self.mounts)
        yield GaugeMetricFamily(PREFIX + "running", "Backups that run now", running)
        last = max((history.last_success_at or 0 for history in self.mounts.values()), default=0)
        yield GaugeMetricFamily(
            PREFIX + "last_success_timestamp_seconds",
            "End of the last complete backup, in seconds since 1970; 0 before the first that is remembered",
            last,
        )
        yield from self._tokens_files()
        yield self._build_info()
        yield self._source_sizes()

    def _tokens_files(self) -> Iterator[Metric]:
        looks = [auth.is_tokens_file_good() for auth in self.auths]
        if any(look is not None for look in looks):
            yield GaugeMetricFamily(
                PREFIX + "tokens_file_good",
                "1: auth.tokens_file is in force as it is; 0: it cannot be used, and the last good list stays",
                float(False not in looks),
            )

    def _build_info(self) -> Metric:
        family = GaugeMetricFamily(
            PREFIX + "build_info", "This program's version", labels=["version", "python_version"]
        )
        family.add_metric([__version__, platform.python_version()], 1)
        return family

    def _source_sizes(self) -> Metric:
        family = GaugeMetricFamily(
            PREFIX + "source_size_bytes",
            "Size of each database in the last plan, the first 100 by name",
            labels=["source"],
        )
        known = {name: size for sizes in list(self.sizes.values()) for name, size in sizes.items()}
        for name in sorted(known)[:MAX_SOURCES]:
            family.add_metric([name], known[name])
        return family


class MetricsPage:
    """The handler of ``/metrics``."""

    def __init__(self, metrics: Metrics, auth: Auth) -> None:
        self._metrics = metrics
        self._auth = auth

    async def get_metrics(self, request: web.Request) -> web.StreamResponse:
        try:
            self._auth.admit(request, "status")
        except BackupError as error:
            return refuse(request, error)
        headers = {
            hdrs.CONTENT_TYPE: CONTENT_TYPE_PLAIN_0_0_4,
            hdrs.CACHE_CONTROL: "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        return web.Response(body=generate_latest(self._metrics.registry), headers=headers)
