"""SQuAD exact match, token F1 and abstention, per document, on a scale of 0 to 1 (hooks multiply by 100).

Source: the official scripts `evaluate-v1.1.py` and `evaluate-v2.0.py` (https://rajpurkar.github.io/SQuAD-explorer/).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from harness_ext.errors import MetricError

DEFAULT_ABSTENTIONS = ("unanswerable", "no answer", "")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SquadV2Score(NamedTuple):
    """Scores of one SQuAD v2 document, and how its output was interpreted."""

    exact: float  # 0.0 or 1.0
    f1: float  # 0..1
    has_answer: bool  # some reference does not normalise to ""
    abstained: bool  # the scored prediction normalises to ""
    empty: bool  # the raw output is blank
    mapped: bool  # the raw output is an abstention in words, which is scored as ""


def normalize_answer(text: str) -> str:
    """Lower-case, delete ASCII punctuation, replace articles by a space and collapse white space, in this order.

    Dashes, curly quotes and accents are kept, as in the official scripts.

    >>> normalize_answer(" The  U.S. -- an “Idea” ")
    'us “idea”'
    """
    text = text.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """SQuAD v2 exact match: 1.0 if any reference equals the prediction after normalising, else 0.0.

    References that normalise to "" are dropped; if none is left, the gold answer is "".

    Raises:
        MetricError: `references` is one string instead of a list.

    >>> exact_match("The cat.", ["a dog", "cat"]), exact_match("", [])
    (1.0, 1.0)
    """
    return float(normalize_answer(prediction) in _v2_golds(references))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """SQuAD v2 token F1, 0..1: maximum over references of 2·overlap / (prediction tokens + reference tokens).

    The overlap counts repeated tokens (multisets). References are dropped as in `exact_match`. If prediction or
    reference is empty, F1 is 1 if both are, else 0.

    Raises:
        MetricError: `references` is one string instead of a list.

    >>> token_f1("one two two", ["two three four"]), token_f1("", []), token_f1("", ["a cat"])
    (0.3333333333333333, 1.0, 0.0)
    """
    predicted = normalize_answer(prediction)
    return max(1.0 if predicted == gold == "" else _overlap_f1(predicted, gold) for gold in _v2_golds(references))


def squad_v1_exact_match(prediction: str, references: Sequence[str], *, doc_id: str | None = None) -> float:
    """SQuAD v1 exact match: 1.0 if any reference equals the prediction after normalising, else 0.0.

    Raises:
        MetricError: `references` is empty, or one string instead of a list; the message names `doc_id`.

    >>> squad_v1_exact_match("the", ["an"])
    1.0
    """
    return float(normalize_answer(prediction) in _v1_golds(references, doc_id))


def squad_v1_f1(prediction: str, references: Sequence[str], *, doc_id: str | None = None) -> float:
    """SQuAD v1 token F1, 0..1: as `token_f1`, but no reference is dropped, and two empty texts score 0.

    Raises:
        MetricError: `references` is empty, or one string instead of a list; the message names `doc_id`.

    >>> squad_v1_f1("the", ["an"]), squad_v1_f1("black cat", ["the cat"])
    (0.0, 0.6666666666666666)
    """
    predicted = normalize_answer(prediction)
    return max(_overlap_f1(predicted, gold) for gold in _v1_golds(references, doc_id))


def is_abstention(text: str, abstentions: Sequence[str] = DEFAULT_ABSTENTIONS) -> bool:
    """Whether the text is one of the abstentions, after strip, casefold and removal of ASCII punctuation.

    Inner white space is collapsed. The whole text must be the abstention; a sentence that contains one is an answer.

    >>> is_abstention(" **Unanswerable.** "), is_abstention("..."), is_abstention("no answer is given")
    (True, True, False)
    """
    return _bare(text) in {_bare(abstention) for abstention in abstentions}


def score_squad_v2(
    prediction: str, references: Sequence[str], *, abstentions: Sequence[str] = DEFAULT_ABSTENTIONS
) -> SquadV2Score:
    """Score one SQuAD v2 document; an abstention in words is scored as "".

    So an abstention on a document with an answer scores 0, even if it shares words with a reference. On a document
    without an answer, `exact`, `f1` and `abstained` agree. `has_answer` depends on the references that do not normalise
    to "", so `[]` and `[""]` both mean unanswerable.

    Raises:
        MetricError: `references` is one string instead of a list.

    >>> score_squad_v2("Unanswerable.", [])
    SquadV2Score(exact=1.0, f1=1.0, has_answer=False, abstained=True, empty=False, mapped=True)
    >>> score_squad_v2("", ["a cat"])
    SquadV2Score(exact=0.0, f1=0.0, has_answer=True, abstained=True, empty=True, mapped=False)
    """
    empty = not prediction.strip()
    mapped = not empty and is_abstention(prediction, abstentions)
    scored = "" if mapped else prediction
    return SquadV2Score(
        exact=exact_match(scored, references),
        f1=token_f1(scored, references),
        has_answer=_v2_golds(references) != [""],
        abstained=not normalize_answer(scored),
        empty=empty,
        mapped=mapped,
    )


def _v1_golds(references: Sequence[str], doc_id: str | None) -> list[str]:
    """Normalised references; v1 needs at least one."""
    _refuse_bare_string(references, doc_id)
    if len(references) == 0:
        raise MetricError(
            f"{_name(doc_id)} has no reference answer; drop it, or score unanswerable documents with score_squad_v2"
        )
    return [normalize_answer(reference) for reference in references]


def _v2_golds(references: Sequence[str]) -> list[str]:
    """Normalised references that are not "", or `[""]`."""
    _refuse_bare_string(references)
    return [gold for reference in references if (gold := normalize_answer(reference))] or [""]


def _refuse_bare_string(references: Sequence[str], doc_id: str | None = None) -> None:
    # A string is a sequence of strings, so its letters would silently be scored as references.
    if isinstance(references, str):
        raise MetricError(f"{_name(doc_id)}: references is the string {references!r}; pass a list of strings")


def _name(doc_id: str | None) -> str:
    return "a document" if doc_id is None else f"document {doc_id!r}"


def _overlap_f1(prediction: str, reference: str) -> float:
    """Multiset F1 of two normalised texts; 0 without overlap, hence also when both are empty."""
    predicted, gold = prediction.split(), reference.split()
    overlap = (Counter(predicted) & Counter(gold)).total()
    return 2 * overlap / (len(predicted) + len(gold)) if overlap else 0.0


def _bare(text: str) -> str:
    return " ".join(text.casefold().translate(_DELETE_PUNCTUATION).split())
