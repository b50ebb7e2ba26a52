"""How often a network has shown wrong credentials: a table that no attacker can make grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address, ip_network
from typing import Final

from mothership_backup.credentials import Address, Network

LIMIT: Final = 20
WINDOW_SECONDS: Final = 60.0
TABLE_SIZE: Final = 1024
IPV4_PREFIX: Final = 24
IPV6_PREFIX: Final = 64  # what one customer has


class Failures:
    """Failures by network, /24 and /64, each within a minute of its first one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[Network | None, tuple[float, int]] = {}  # the one that failed last stands last

    def add(self, address: Address | None) -> float:
        """One more from there; the seconds to wait, or 0 as long as there are no more than 20 a minute."""
        now = self._clock()
        network = _network(address)
        began, count = self._windows.pop(network, (now, 0))
        if now - began >= WINDOW_SECONDS:
            began, count = now, 0
        self._windows[network] = (began, count + 1)
        if len(self._windows) > TABLE_SIZE:
            del self._windows[next(iter(self._windows))]
        return began + WINDOW_SECONDS - now if count >= LIMIT else 0.0


def _network(address: Address | None) -> Network | None:
    if address is None:
        return None
    prefix = IPV4_PREFIX if isinstance(address, IPv4Address) else IPV6_PREFIX
    return ip_network((address, prefix), strict=False)
