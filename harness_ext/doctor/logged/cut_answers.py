"""D10: outputs that end in the middle of the reference answer, as a model writes that was trained on cut answers."""

from __future__ import annotations

from harness_ext.doctor.case import Case
from harness_ext.findings import Finding
from harness_ext.results.outputs import Output

LEAST_CUT = 5  # outputs
UNANSWERABLE = "unanswerable"  # what is trained for an empty list of answers
SOME_CUT, MANY_CUT = 0.05, 0.2  # share of the outputs: a warning, an error


def find_cut_answers(case: Case) -> list[Finding]:
    """Outputs that stop by themselves within a word of the reference answer."""
    if not case.is_generated:
        return []
    cut = [index for index, output in enumerate(case.outputs) if _cut_reference(output) is not None]
    share = len(cut) / len(case.outputs)
    if len(cut) < LEAST_CUT or share < SOME_CUT:
        return []
    first = case.outputs[cut[0]]
    text = (
        f"{case.where}: {len(cut):,} of {len(case.outputs):,} outputs stop within a word of the reference answer, as "
        f"{(first.text or '').strip()!r} for {_cut_reference(first)!r}: the answers were probably cut in training"
    )
    numbers = {"cut": len(cut), "share": share, "examples": case.examples(cut)}
    remedy = "train on whole answers: raise the limit on their length, or cut prompts on the left instead"
    return [Finding("D10", "error" if share >= MANY_CUT else "warning", case.where, text, numbers, remedy)]


def _cut_reference(output: Output) -> str | None:
    """The reference answer that a text begins and leaves within a word; None if it does not, or hit the token limit."""
    text = (output.text or "").strip()
    if not text or output.logged.get("finish_reason") == "length":
        return None
    references = output.references or (UNANSWERABLE,)
    if any(text.casefold() == reference.strip().casefold() for reference in references):
        return None
    return next((answer for answer in references if _leaves_word(text, answer.strip())), None)


def _leaves_word(text: str, answer: str) -> bool:
    begins = len(text) < len(answer) and answer.casefold().startswith(text.casefold())
    return begins and text[-1].isalnum() and answer[len(text)].isalnum()
