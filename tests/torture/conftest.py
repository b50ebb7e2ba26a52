"""Nothing but that the parts of the cases assert as loudly as the cases do."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("torture.harness")
