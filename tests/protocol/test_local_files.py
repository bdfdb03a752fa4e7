"""Real-world files: byte order marks, other delimiters, quotes, damage; and reading in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from harness_ext.errors import DatasetError
from harness_ext.protocol.local_files import load_files, open_rows

ROWS = [{"text": "a, b; c", "label": "x"}, {"text": "für\n„dich“", "label": "y"}, {"text": 'say "no"', "label": "x"}]


def read(file: Path) -> list[dict[str, object]]:
    return [row for batch in open_rows(file).batches() for row in batch.to_pylist()]


def quoted(delimiter: str, *, bom: bytes = b"", end: str = "\n") -> bytes:
    lines = [delimiter.join(("text", "label"))]
    lines += [delimiter.join(f'"{str(value).replace(chr(34), chr(34) * 2)}"' for value in row.values()) for row in ROWS]
    return bom + end.join([*lines, ""]).encode()


FILES = {
    "comma": ("a.csv", quoted(",")),
    "semicolon": ("a.csv", quoted(";")),
    "tab": ("a.tsv", quoted("\t")),
    "pipe": ("a.txt", quoted("|")),
    "byte order mark": ("a.csv", quoted(",", bom=b"\xef\xbb\xbf")),
    "JSON lines": ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode()),
    "JSON lines named json": ("a.json", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()),
    "JSON list": ("a.json", json.dumps(ROWS, indent=1).encode()),
    "capitals": ("A.CSV", quoted(",")),
}


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES)
def test_the_same_rows(name: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert read(file) == ROWS
    assert open_rows(file).columns == ["text", "label"]
    assert list(load_files({"test": file})["test"]) == ROWS


def test_windows_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"text;label\r\nfine;x\r\ndull;y\r\n")
    assert read(file) == [{"text": "fine", "label": "x"}, {"text": "dull", "label": "y"}]


def test_parquet_and_selected_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    assert read(file) == ROWS
    (batch,) = open_rows(file).batches(["label"])
    assert batch.schema.names == ["label"]


def test_a_delimiter_inside_unquoted_texts(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text;label\nOne, two, three;x\nFour;y\n")
    assert read(file)[0] == {"text": "One, two, three", "label": "x"}


def test_a_quoted_text_longer_than_what_is_sniffed(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    text = "a line; with marks\n" * 20_000
    file.write_text(f'text,label\n"{text}",x\n')
    assert read(file) == [{"text": text, "label": "x"}]


def test_blank_lines_and_empty_cells(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('\ntext,label\n\nfine,\n\n"",x\n\n')
    assert read(file) == [{"text": "fine", "label": ""}, {"text": "", "label": "x"}]


BAD = {
    "missing": ("no.csv", None, "does not exist"),
    "empty": ("a.csv", b"", "is empty"),
    "header only": ("a.csv", b"text,label\n", "no rows"),
    "blank lines only": ("a.csv", b"\n\n", "no documents"),
    "column twice": ("a.csv", b"text,text\nfine,x\n", "twice"),
    "ragged": ("a.csv", b"text,label\nfine,x\ndull,y,z\n", "row 2 (line 3) has 3 cells"),
    "ragged after a text of two lines": ("a.csv", b'text,label\n"fine\nday",x\ndull\n', "row 2 (line 4) has 1 cell,"),
    "a quote that stays open": ("a.csv", b'text,label\nfine,x\n"dull,y\n', "row 2 (line 3): a quote is opened"),
    "a quote that closes early": ("a.csv", b'text,label\n"say "no"",x\n', "row 1 (line 2)"),
    "latin-1": ("a.csv", "text,label\nf\u00fcr,x\n".encode("latin-1"), "UTF-8"),
    "UTF-16": ("a.csv", "text,label\nfine,x\n".encode("utf-16"), "UTF-8"),
    "broken JSON": ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "row 2 (line 3)"),
    "broken JSON list": ("a.json", b'[{"text": "x"},\n{"text": ]', "line 2"),
    "JSON of one value": ("a.jsonl", b'{"text": "x"}\n["x"]\n', "row 2 (line 2)"),
    "JSON list of texts": ("a.json", b'[{"text": "x"}, "y"]', "row 2"),
    "JSON of two types": ("a.jsonl", b'{"n": 1}\n{"n": "x"}\n', "column 'n', rows 1 to 2"),
    "JSON of another type later": ("a.jsonl", b'{"n": 1}\n' * 3000 + b'{"n": "x"}\n', "column 'n', rows 2049 to 3001"),
    "JSON number too large": ("a.jsonl", b'{"n": 99999999999999999999}\n', "row 1 (line 1)"),
    "half a character": ("a.jsonl", b'{"n": "\\ud800"}\n', "row 1 (line 1)"),
    "JSON nested without end": ("a.jsonl", b'{"n": ' + b"[" * 100_000 + b"\n", "nested too deeply"),
    "JSON nested deeply": ("a.jsonl", b'{"n": ' + b"[" * 500 + b"]" * 500 + b"}\n", "100 levels"),
    "JSON of a key twice": ("a.jsonl", b'{"n": 1, "n": 2}\n', "'n' twice"),
    "CSV of many columns": ("a.csv", b",".join(b"c%d" % n for n in range(100_000)) + b"\n", "100,000 columns"),
    "JSON of many columns": (
        "a.jsonl",
        b"{" + b", ".join(b'"c%d": 1' % n for n in range(100_000)) + b"}\n",
        "100,000 columns",
    ),
    "JSON of many columns in all": (
        "a.jsonl",
        b"".join(b'{"c%d": 1}\n' % n for n in range(5_000)),
        "columns",
    ),
    "corrupt parquet": ("a.parquet", b"PAR1 no more", "cannot be read"),
    "spreadsheet": ("a.xlsx", b"PK", "'.xlsx'"),
}


@pytest.mark.parametrize(("name", "content", "expected_part"), BAD.values(), ids=BAD)
def test_bad_files(name: str, content: bytes | None, expected_part: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read(file)
    assert expected_part in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


MEASURE = """
import resource, sys
from harness_ext.new_task.make import new_task
small, large = sys.argv[1:3]
new_task("small", "choice", small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = new_task("large", "choice", large)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, sum(made.counts.values()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_large_file_streams(ending: str, tmp_path: Path) -> None:
    """Reading a 96 MB file takes the memory of a few blocks, independent of its size."""

    def write(file: Path, rows: int) -> Path:
        filler = " lorem ipsum dolor sit amet" * 35
        with file.open("w") as stream:
            if ending == "csv":
                stream.write("text,label\n")
            for number in range(rows):
                text, label = f"document {number}{filler}", ("good", "bad")[number % 2]
                stream.write(
                    f"{text},{label}\n" if ending == "csv" else json.dumps({"text": text, "label": label}) + "\n"
                )
        return file

    small, large = write(tmp_path / f"small.{ending}", 2_000), write(tmp_path / f"large.{ending}", 100_000)
    assert large.stat().st_size > 90e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large)],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown, rows = map(int, done.stdout.split())
    assert rows == 100_000
    assert grown < large.stat().st_size, f"{grown / 1e6:.0f} MB"
