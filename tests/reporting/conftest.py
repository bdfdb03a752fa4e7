"""Fixtures for reports: no task is looked for among the thousands of lm-eval, which takes seconds."""

from __future__ import annotations

import pytest

from harness_ext.errors import TaskError


@pytest.fixture(autouse=True)
def _task_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **_: object) -> None:
        raise TaskError(f"no task is named {name!r}; pass its folder with --include_path")

    monkeypatch.setattr("harness_ext.doctor.diagnose.load_task", load)
