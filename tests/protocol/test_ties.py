"""Ties between logged choices, for all forms of requests of lm-eval's tasks and ours."""

from __future__ import annotations

from typing import Any

import pytest

from harness_ext.protocol.ties import has_tie, tied_choices

Row = tuple[Any, Any, Any]


def in_memory(*requests: Row) -> dict[str, Any]:
    """As `simple_evaluate` returns it: context, continuation and log-probability of each request."""
    return {
        "arguments": [(context, continuation) for context, continuation, _ in requests],
        "resps": [[response if isinstance(response, str) else (response, False)] for _, _, response in requests],
    }


def in_file(*requests: Row) -> dict[str, Any]:
    """As in `samples_TASK_DATE.jsonl`, with numbers as text."""
    return {
        "arguments": {f"gen_args_{n}": {"arg_0": c, "arg_1": a} for n, (c, a, _) in enumerate(requests)},
        "resps": [[r if isinstance(r, str) else [str(r), "False"]] for _, _, r in requests],
    }


@pytest.mark.parametrize("logged", [in_memory, in_file])
@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([("Q", " yes", -1.0), ("Q", " no", -1.0)], True),
        ([("Q", " yes", -1.0), ("Q", " no", -1.2)], False),
        ([("Q", " a", -1.0), ("Q", " b", -1.0), ("Q", " c", -2.0)], True),
        ([("Q", " a", -2.0), ("Q", " b", -2.0), ("Q", " c", -1.0)], False),  # a single best choice
        ([("Q", " a", float("-inf")), ("Q", " b", float("-inf"))], True),
        ([("Q", " a", float("nan")), ("Q", " b", float("nan"))], None),
        ([("Q", " a", -1.0)], None),  # loglikelihood: nothing to choose from
        ([], None),
        # acc_mutual_info and calibration add other contexts, whose scores are not choices
        ([("Q", " a", -1.0), ("Q", " b", -2.0), ("", " a", -1.0), ("", " b", -1.0)], False),
        ([("Q", " a", -1.0), ("Q", " b", -1.0), ("N/A", " a", -1.0), ("N/A", " b", -3.0)], True),
        # one continuation of several contexts, as in WinoGrande
        ([("Ann", " won", -1.0), ("Bob", " won", -1.0)], True),
        ([("Ann", " won", -1.0), ("Bob", " won", -1.5)], False),
        # generated text, text that looks like a pair of numbers, and a word that is scored after generation
        ([("Q", {"until": ["\n"]}, "12")], None),
        ([("Q", {"until": ["\n"]}, "12"), ("Q", " unanswerable", -1.0)], None),
    ],
)
def test_ties(logged: Any, requests: list[Row], expected: bool | None) -> None:
    assert has_tie(logged(*requests)) is expected


def test_the_share_is_of_documents_that_choose() -> None:
    tie = in_file(("Q", " a", -1.0), ("Q", " b", -1.0))
    clear = in_file(("Q", " a", -1.0), ("Q", " b", -2.0))
    answer = in_file(("Q", {"until": []}, "yes"))
    assert tied_choices([tie, clear, tie, answer, tie]) == 0.75
    assert tied_choices([answer]) is None
    assert tied_choices([]) is None
    assert tied_choices([{"doc": {}}]) is None
