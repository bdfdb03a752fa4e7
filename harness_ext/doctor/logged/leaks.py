"""D21, D22: a question in its own prompt, and evaluation documents in the training split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness_ext.doctor.case import Case
from harness_ext.findings import Finding

NGRAM = 13  # words, as in GPT-3's contamination analysis (Brown et al. 2020, arXiv:2005.14165)
QUESTIONS = ("question", "sentence", "query", "premise")  # columns that say what a document asks
LEAST_CHARACTERS = 20  # of a text that identifies a document


def find_leaks(case: Case, training_documents: Iterable[Mapping[str, object]] | None = None) -> list[Finding]:
    """Documents that stand among their own few-shot examples, or in the training split.

    Args:
        case: what was evaluated.
        training_documents: of the task's training split; None if they cannot be had here.
    """
    return [*_own_example(case), *_overlap(case, training_documents)]


def _own_example(case: Case) -> list[Finding]:
    if not case.result.n_shot:
        return []
    leaking = [
        index
        for index, output in enumerate(case.outputs)
        if (question := identifying_text(output.doc)) and output.prompt.count(question) > 1
    ]
    if not leaking:
        return []
    text = f"{case.where}: {len(leaking):,} of {len(case.outputs):,} prompts show their own question among the examples"
    numbers = {"prompts": len(leaking), "examples": case.examples(leaking)}
    remedy = "draw the examples from another split: `fewshot_split: train`"
    return [Finding("D21", "error", case.where, text, numbers, remedy)]


def _overlap(case: Case, training_documents: Iterable[Mapping[str, object]] | None) -> list[Finding]:
    if training_documents is None:
        return []
    seen = overlapping([output.doc for output in case.outputs], training_documents)
    if not seen:
        return []
    text = f"{case.where}: {len(seen):,} of {len(case.outputs):,} evaluated questions stand in the training split"
    numbers = {"documents": len(seen), "examples": case.examples(seen)}
    remedy = "remove them from the training split and train again, or evaluate on other documents"
    return [Finding("D22", "warning", case.where, text, numbers, remedy)]


def overlapping(
    evaluated: Sequence[Mapping[str, object]], training_documents: Iterable[Mapping[str, object]]
) -> list[int]:
    """Numbers of the evaluated documents that stand in a training split: by their whole question, or by a 13-gram.

    The evaluated documents are held in memory; the training split is read once.
    """
    places: dict[str | tuple[str, ...], list[int]] = {}
    for number, doc in enumerate(evaluated):
        if words := _words(identifying_text(doc)):
            for key in _keys(words):
                places.setdefault(key, []).append(number)
    seen: set[int] = set()
    for doc in training_documents:
        words = _words(identifying_text(doc))
        for key in _keys(words):
            seen.update(places.get(key, ()))
    return sorted(seen)


def identifying_text(doc: Mapping[str, object]) -> str:
    """The text that identifies a document: its question, else its longest text."""
    for name in QUESTIONS:
        if isinstance(value := doc.get(name), str) and len(value) >= LEAST_CHARACTERS:
            return value.strip()
    texts = [value for value in doc.values() if isinstance(value, str) and len(value) >= LEAST_CHARACTERS]
    return max(texts, key=len, default="").strip()


def _words(text: str) -> list[str]:
    return text.casefold().split() if len(text) >= LEAST_CHARACTERS else []


def _keys(words: list[str]) -> list[str | tuple[str, ...]]:
    """The whole text, and its 13-grams."""
    return [" ".join(words), *_grams(words)]


def _grams(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
