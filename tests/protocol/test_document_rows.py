"""Rows that are read in batches are those of datasets."""

from __future__ import annotations

import datasets
import pytest

from harness_ext.protocol import document_rows
from harness_ext.protocol.document_rows import DocumentRows
from harness_ext.protocol.documents import load_documents

ROWS = datasets.Dataset.from_dict(
    {
        "text": [f"Text {n}" for n in range(7)],
        "label": [n % 2 for n in range(7)],
        "none": [None, 1.5] * 3 + [None],
        "choices": [["no", "yes"]] * 7,
        "answers": [{"text": [f"a{n}"] * (n % 3), "answer_start": [n] * (n % 3)} for n in range(7)],
    },
    features=datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "none": datasets.Value("float64"),
            "choices": datasets.Sequence(datasets.Value("string")),
            "answers": datasets.Sequence({"text": datasets.Value("string"), "answer_start": datasets.Value("int32")}),
        }
    ),
)


@pytest.mark.parametrize("at_once", [1, 3, 1000])
@pytest.mark.parametrize(
    "rows",
    [ROWS, ROWS.select([5, 0, 2]), ROWS.shuffle(seed=1), ROWS.filter(lambda row: row["label"]), ROWS.select([])],
    ids=["all", "some", "shuffled", "filtered", "none"],
)
def test_equal_rows(rows: datasets.Dataset, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_rows, "AT_ONCE", at_once)
    ours = DocumentRows.of(rows)
    assert list(ours) == list(rows)
    assert [list(row) for row in ours] == [list(row) for row in rows]
    assert [ours[n] for n in range(len(ours))] == list(rows)
    assert list(ours.map(lambda row: {"text": row["text"] + "!"})) == list(
        rows.map(lambda row: {"text": row["text"] + "!"})
    )


def test_another_format() -> None:
    rows = ROWS.select_columns(["label"]).with_format("numpy")
    assert [row["label"].dtype.kind for row in DocumentRows.of(rows).with_format("numpy")] == ["i"] * 7


def test_rows_do_not_share_lists() -> None:
    first, second = list(DocumentRows.of(ROWS))[:2]
    first["choices"].append("maybe")
    assert second["choices"] == ["no", "yes"]


def test_tasks_read_them() -> None:
    for name, choices in (("sst2", ["negative", "positive"]), ("squad_v2", None)):
        documents = load_documents(dataset=name, choices=choices)
        assert {type(rows) for rows in documents.values()} == {DocumentRows}
