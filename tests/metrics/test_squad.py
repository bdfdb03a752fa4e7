"""SQuAD metrics against a second implementation of the official rules, hand-worked tables and the real data."""

from __future__ import annotations

import os
import string
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness_ext.errors import MetricError
from harness_ext.metrics.known import ABSTAIN_PRECISION
from harness_ext.metrics.squad import (
    exact_match,
    is_abstention,
    normalize_answer,
    score_squad_v2,
    squad_v1_exact_match,
    squad_v1_f1,
    token_f1,
)

# --- oracle: the rules of evaluate-v2.0.py and evaluate-v1.1.py, written again without regex and without Counter ---


def oracle_tokens(text: str) -> list[str]:
    kept = [character for character in text.lower() if character not in string.punctuation]
    runs = ["".join(run) for _, run in groupby(kept, key=str.isalnum)]
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def oracle_pair(prediction: str, gold: str, *, both_empty: float) -> tuple[float, float]:
    """EM and F1 of one pair, F1 from precision and recall."""
    predicted, left = oracle_tokens(prediction), oracle_tokens(gold)
    exact, gold_size, shared = float(predicted == left), len(left), 0
    for token in predicted:
        if token in left:
            left.remove(token)
            shared += 1
    if not predicted or not gold_size:
        return exact, both_empty * exact
    precision, recall = shared / len(predicted), shared / gold_size
    return exact, 2 * precision * recall / (precision + recall) if shared else 0.0


def oracle_v1(prediction: str, references: list[str]) -> tuple[float, float]:
    pairs = [oracle_pair(prediction, gold, both_empty=0.0) for gold in references]
    return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)


def oracle_v2(prediction: str, references: list[str]) -> tuple[float, float]:
    golds = [gold for gold in references if oracle_tokens(gold)] or [""]
    pairs = [oracle_pair(prediction, gold, both_empty=1.0) for gold in golds]
    return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)


# Few words, so that overlaps, repeats, articles alone, Unicode punctuation and emptiness are all common.
PIECES = ["a", "An", "the", "cat", "Cat", "sat", "U.S.", "é", "É", "–", "“", ".", "_", "-", " ", "\n", "\u00a0", "İ"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=12)
reproducibly = settings(derandomize=True, database=None, deadline=None, max_examples=300)


@reproducibly
@given(prediction=TEXTS, references=st.lists(TEXTS, max_size=4))
@example(prediction="the", references=["an"])
@example(prediction="", references=["."])
def test_both_versions_agree_with_the_official_rules(prediction: str, references: list[str]) -> None:
    assert normalize_answer(prediction) == " ".join(oracle_tokens(prediction))
    ours = exact_match(prediction, references), token_f1(prediction, references)
    assert ours == pytest.approx(oracle_v2(prediction, references))
    if references:
        ours = squad_v1_exact_match(prediction, references), squad_v1_f1(prediction, references)
        assert ours == pytest.approx(oracle_v1(prediction, references))


# Oracle: worked out by hand.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The   Cat, an owl & a dog!\n", "cat owl dog"),
        ("theatre another", "theatre another"),  # articles inside words stay
        ("1990–1995", "1990–1995"),  # an en dash is not ASCII punctuation
        ("“the” café", "“ ” café"),  # nor are curly quotes and accents
        ("a-b", "ab"),  # punctuation goes before articles
        ("the a an", ""),
    ],
)
def test_normalize_answer(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


# Oracle: worked out by hand; the first three rows are the project's specification.
@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("the cat cat sat", ["cat sat down"], 0.0, 2 / 3),
        ("", [], 1.0, 1.0),
        ("", ["a cat"], 0.0, 0.0),
        ("cat cat", ["cat cat cat"], 0.0, 4 / 5),  # over sets this would be 1
        ("a cat", [], 0.0, 0.0),
        ("the", [], 1.0, 1.0),
        ("cat", ["", "the", "cat"], 1.0, 1.0),
        ("", ["", "cat"], 0.0, 0.0),  # an empty reference next to a real one is dropped
        ("red fox", ["red", "quick red fox"], 0.0, 4 / 5),  # the best reference counts
    ],
)
def test_v2_scores(prediction: str, references: list[str], exact: float, f1: float) -> None:
    assert (exact_match(prediction, references), token_f1(prediction, references)) == pytest.approx((exact, f1))


# Oracle: evaluate-v1.1.py, by hand: two empty texts have no overlap.
def test_v1_two_empty_texts_match_without_f1() -> None:
    assert (squad_v1_exact_match("the", [""]), squad_v1_f1("the", [""])) == (1.0, 0.0)


@pytest.mark.parametrize("metric", [squad_v1_exact_match, squad_v1_f1])
def test_v1_without_references_names_the_document(metric: object) -> None:
    with pytest.raises(MetricError, match="document '56be' has no reference answer"):
        metric("cat", [], doc_id="56be")  # type: ignore[operator]


@pytest.mark.parametrize("metric", [exact_match, token_f1, score_squad_v2, squad_v1_exact_match, squad_v1_f1])
def test_one_string_is_no_list_of_references(metric: object) -> None:
    with pytest.raises(MetricError, match="is the string 'cat'; pass a list"):
        metric("c", "cat")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unanswerable", True),
        (" **UNANSWERABLE.**\n", True),
        ("No  answer!", True),
        ("", True),
        (" ... ", True),
        ("the", False),  # scored as "", but not an abstention in words
        ("no answer is given", False),
        ("unanswerable question", False),
    ],
)
def test_is_abstention(text: str, expected: bool) -> None:
    assert is_abstention(text) is expected


# Oracle: worked out by hand. Columns: exact, f1, has_answer, abstained, empty, mapped.
@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("Unanswerable.", [], (1.0, 1.0, False, True, False, True)),
        ("Unanswerable.", ["the cat"], (0.0, 0.0, True, True, False, True)),
        ("no answer", ["no answer"], (0.0, 0.0, True, True, False, True)),  # mapped even if a reference says so
        (" \n", [], (1.0, 1.0, False, True, True, False)),
        ("...", [], (1.0, 1.0, False, True, False, True)),
        ("The", [], (1.0, 1.0, False, True, False, False)),
        ("the cat", ["cat"], (1.0, 1.0, True, False, False, False)),
        ("the cat", ["", "."], (0.0, 0.0, False, False, False, False)),
    ],
)
def test_score_squad_v2(prediction: str, references: list[str], expected: tuple[float | bool, ...]) -> None:
    assert tuple(score_squad_v2(prediction, references)) == expected


def test_abstentions_are_declared() -> None:
    assert score_squad_v2("Keine Antwort", [], abstentions=["keine antwort"]).mapped
    assert score_squad_v2("unanswerable", [], abstentions=["keine antwort"]).exact == 0.0


@reproducibly
@given(prediction=TEXTS | st.just("No answer."), references=st.lists(TEXTS, max_size=2))
def test_abstaining_is_right_exactly_where_there_is_no_answer(prediction: str, references: list[str]) -> None:
    score = score_squad_v2(prediction, references)
    if score.has_answer:
        assert not (score.abstained and score.f1)
    else:
        assert score.exact == score.f1 == score.abstained
    assert not (score.empty and score.mapped)


# Oracle: counts of the data itself (775 of 1,563 unanswerable). One annotator's answer is ".": it must be dropped.
# read at import: tests see the bundled sample in this variable
REAL_PART = Path(os.environ.get("HARNESS_EXT_DATA", "")) / "squad_v2" / "validation.parquet"


@pytest.mark.skipif(not REAL_PART.is_file(), reason="HARNESS_EXT_DATA names no folder of real data")
def test_gold_answers_of_the_real_part_score_one() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(REAL_PART)
    documents = [list(answers["text"]) for answers in frame["answers"]]

    rows, dropped = [], []
    for references in documents:
        for gold in references or [""]:
            score = score_squad_v2(gold, references)
            if score.has_answer and score.abstained:
                dropped.append(gold)
            else:
                assert score.exact == score.f1 == 1.0
        rows.append((True, score.has_answer))

    assert dropped == ["."]
    assert len(rows) == 1563
    share = 775 / 1563
    assert ABSTAIN_PRECISION(rows) == pytest.approx(100 * share) == pytest.approx(49.58, abs=5e-3)
    always = [score_squad_v2("unanswerable", references).exact for references in documents]
    assert sum(always) / len(always) == share
