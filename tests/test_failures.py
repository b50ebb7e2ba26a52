"""Failures are counted by network, within bounds of time and memory."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

from mothership_backup.web.failures import TABLE_SIZE, Failures


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_more_than_twenty_a_minute() -> None:
    """Twenty are free, the next has to wait until the minute is over; then it begins anew."""
    clock = Clock()
    failures = Failures(clock)
    address = ip_address("192.0.2.1")

    assert [failures.add(address) for _ in range(20)] == [0.0] * 20
    clock.now += 15
    assert failures.add(address) == 45.0
    clock.now += 45
    assert failures.add(address) == 0.0


def test_neighbours_count_together() -> None:
    """A /24 is one, a /64 is one, another one is another."""
    failures = Failures(Clock())
    for number in range(20):
        failures.add(ip_address(f"192.0.2.{number}"))
        failures.add(ip_address(f"2001:db8::{number}"))

    assert failures.add(ip_address("192.0.2.200")) > 0
    assert failures.add(ip_address("2001:db8::ffff:1")) > 0
    assert failures.add(ip_address("192.0.3.1")) == 0
    assert failures.add(ip_address("2001:db8:0:1::1")) == 0
    assert failures.add(None) == 0


def test_the_table_does_not_grow() -> None:
    """Who fails from everywhere drives out those who failed longest ago, never the newest."""
    failures = Failures(Clock())
    stubborn = ip_address("192.0.2.1")
    for number in range(3 * TABLE_SIZE):
        waits = failures.add(stubborn) > 0
        failures.add(IPv4Address(0x0A000000 + 256 * number))

    assert waits
    assert len(failures._windows) == TABLE_SIZE
