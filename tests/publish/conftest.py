"""A tiny adapter, its results, and a Hub to publish it on."""

from __future__ import annotations

from fake_hub import hub  # noqa: F401  fixture
from published import adapter, write_adapter, write_results  # noqa: F401  fixtures
