"""docs/quickstart.ipynb holds the cells of docs/notebook.py, was run, and runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = DOCS / "quickstart.ipynb"


def outputs(notebook: Any) -> list[list[str]]:
    """The kinds of output of each code cell; a saved file holds those of one output in alphabetical order."""
    return [
        [kind for output in cell["outputs"] for kind in sorted(output.get("data", {output.get("name", ""): ""}))]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def test_the_notebook_was_run() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
    shown = outputs(notebook)
    assert "text/html" in shown[1]
    assert all("image/png" in kinds for kinds in shown[2:4])
    (html,) = [text for out in code[1]["outputs"] if (text := "".join(out["data"].get("text/html", "")))]
    assert html.startswith("<svg")
    assert "<table>" in html
    assert str(Path.home()) not in NOTEBOOK.read_text(encoding="utf-8")
    assert NOTEBOOK.stat().st_size < 500_000


def generator() -> ModuleType:
    pytest.importorskip("nbclient", reason="nbclient is not installed (the extra `pages`)")
    spec = importlib.util.spec_from_file_location("notebook_of_docs", DOCS / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_holds_its_cells() -> None:
    written = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert ["".join(cell["source"]) for cell in written["cells"]] == [
        cell.source for cell in generator().notebook().cells
    ]


@pytest.mark.slow
@pytest.mark.real
def test_the_notebook_runs() -> None:
    """Executed as a stranger would; it evaluates the fetched model on the bundled sample."""
    module = generator()
    notebook = module.executed(module.notebook(), DOCS)
    assert outputs(notebook) == outputs(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
