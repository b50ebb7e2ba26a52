"""The parts of the cases assert as loudly as the cases do, and those that take seconds each are `long`."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("torture.harness")

# In their short forms: `make test` is quick, `make test-all` runs them.
SLOW = {
    "test_case_01_wal_bank",
    "test_case_02_rollback_bank",
    "test_case_05_resets",
    "test_case_06_07_slow",
    "test_case_08_reader_fails",
    "test_case_12_shutdown",
    "test_case_13_14_killed",
    "test_case_21_changes",
    "test_case_23_24_crowds",
    "test_fault_io",
    "test_fault_survives_kill",
    "test_prober",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.long)
