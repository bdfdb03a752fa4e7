"""D15, D16: what is read in training against what is read in evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from harness_ext.doctor.preflight.examples import Example, TrainingCase
from harness_ext.doctor.preflight.supervision import missing_characters
from harness_ext.findings import Finding

BESIDE = 4  # tokens shown on each side of a difference


def find_prompts(case: TrainingCase) -> list[Finding]:
    """Prompts that differ, answers that the evaluator does not ask, joins that differ, and begin tokens."""
    return [*_begin_tokens(case), *_other_prompts(case), *_other_answers(case), *_merged_joins(case)]


def join_of(case: TrainingCase, example: Example) -> str:
    """The tokens at the join of prompt and answer: `'Sent' 'iment' ':' | ' positive' '</s>'`."""
    before, after = example.context[-BESIDE:], example.supervised[:BESIDE]
    return f"{_quoted(case, before)} | {_quoted(case, after)}"


def is_cut(case: TrainingCase, example: Example) -> bool:
    """Whether the prompt may have lost its beginning, in training or in evaluation."""
    longest = max(len(example.context), len(example.asked)) + len(example.supervised)
    return longest + (int(case.lm.max_gen_toks) if case.is_generated else 1) >= case.max_length


def first_difference(case: TrainingCase, trained: Sequence[int], asked: Sequence[int]) -> str:
    """The tokens around the first difference of two lists."""
    place = next(
        (n for n, (one, other) in enumerate(zip(trained, asked, strict=False)) if one != other),
        min(len(trained), len(asked)),
    )
    shown = slice(max(0, place - 1), place + BESIDE)
    return (
        f"from token {place}, {_quoted(case, trained[shown])} in training and "
        f"{_quoted(case, asked[shown])} in evaluation"
    )


def _quoted(case: TrainingCase, ids: Sequence[int]) -> str:
    return " ".join(map(repr, case.pieces(ids))) or "nothing"


def _same_prompt(case: TrainingCase, example: Example, asked: Sequence[int]) -> bool:
    """Whether an example begins with what the evaluator asks, apart from begin tokens.

    Tokens of the prompt may be learned, too (D9). Where a prompt lost its beginning, the rest has to agree.
    """
    whole, prompt = _without_begin(case, example.whole), _without_begin(case, asked)
    if whole == prompt[: len(whole)]:  # the answer is cut (D10), with the end of the prompt
        return True
    if whole[: len(prompt)] == prompt and len(example.context) <= len(asked) + _begins(case, example, asked):
        return True
    common = min(len(example.context), len(asked))
    return is_cut(case, example) and common > 0 and example.context[-common:] == list(asked[-common:])


def _without_begin(case: TrainingCase, ids: Sequence[int]) -> list[int]:
    return list(ids[begin_tokens(case, ids) :])


def _begins(case: TrainingCase, example: Example, asked: Sequence[int]) -> int:
    """How many more begin tokens an example has than what is asked."""
    return begin_tokens(case, example.whole) - begin_tokens(case, asked)


def _other_prompts(case: TrainingCase) -> list[Finding]:
    differing = [
        example
        for example in case.examples
        if not any(_same_prompt(case, example, request.context) for request in example.requests)
    ]
    if not differing:
        return []
    text = (
        f"{case.where}: {len(differing)} of {len(case.examples)} prompts differ between training and evaluation: "
        f"{first_difference(case, differing[0].whole, differing[0].asked)}"
    )
    numbers = {"differing": len(differing), "examples": case.examples_of(differing)}
    remedy = "use the same chat template, few-shot examples and system instruction in both"
    return [Finding("D15", "error", case.where, text, numbers, remedy)]


def _other_answers(case: TrainingCase) -> list[Finding]:
    """Forced choices whose trained answer is none of the continuations that are scored."""
    if case.is_generated:
        return []
    cut = {example.document for example in case.examples if missing_characters(case, example)}  # D10
    differing = [each for each in case.examples if each.document not in cut and not _is_scored(case, each)]
    if not differing:
        return []
    first = differing[0]
    scored = ", ".join(_quoted(case, request.continuation) for request in first.requests[:BESIDE])
    text = (
        f"{case.where}: {len(differing)} of {len(case.examples)} trained answers are none of the continuations that "
        f"the evaluator scores: {_quoted(case, first.supervised[-BESIDE:])} is trained, {scored} are scored"
    )
    numbers = {"differing": len(differing), "examples": case.examples_of(differing)}
    remedy = "let doc_to_choice, doc_to_target and target_delimiter give the same text in both"
    return [Finding("D15", "error", case.where, text, numbers, remedy)]


def _is_scored(case: TrainingCase, example: Example) -> bool:
    whole = _without_begin(case, example.whole)
    for request in example.requests:
        asked = [*_without_begin(case, request.context), *request.continuation]
        if whole[: len(asked)] == asked and not _words(case, whole[len(asked) :]):
            return True
        if is_cut(case, example) and whole[-len(request.continuation) - 1 : -1] == request.continuation:
            return True
    return False


def _words(case: TrainingCase, ids: Sequence[int]) -> str:
    """Text without special tokens and white space around it."""
    return str(case.lm.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def _merged_joins(case: TrainingCase) -> list[Finding]:
    """Generated answers whose first token would merge with the prompt if both were written as one text."""
    if not case.is_generated:
        return []
    merged = []
    for example in case.examples:
        alone = case.lm.tok_encode(example.prompt)
        if case.lm.tok_encode(example.prompt + example.answer)[: len(alone)] != alone:
            merged.append(example)
    if len(merged) < len(case.examples):  # a few are chance: a word that ends a prompt and begins an answer
        return []
    text = (
        f"{case.where}: prompt and answer are split inside a token: {join_of(case, merged[0])}, where the tokenizer "
        "has other tokens for the same text"
    )
    numbers = {"merged": len(merged), "examples": case.examples_of(merged)}
    remedy = "end doc_to_text with its last word, and let target_delimiter be a space"
    return [Finding("D15", "warning", case.where, text, numbers, remedy)]


# -- begin tokens --------------------------------------------------------------------------------------------------


def begin_tokens(case: TrainingCase, ids: Sequence[int]) -> int:
    """Begin tokens at the very beginning."""
    begin = case.lm.tokenizer.bos_token_id
    return next((n for n, token in enumerate(ids) if token != begin), len(ids)) if begin is not None else 0


def _begin_tokens(case: TrainingCase) -> list[Finding]:
    begin = case.lm.tokenizer.bos_token_id
    whole = [example for example in case.examples if not is_cut(case, example)]
    if begin is None or not whole:
        return []
    adds = case.lm.add_bos_token is not False and case.lm.tok_encode("a")[:1] == [begin]
    counts = [(begin_tokens(case, example.whole), begin_tokens(case, example.asked)) for example in whole]
    differing = [n for n, (trained, asked) in enumerate(counts) if trained != asked]
    wrong = [n for n, pair in enumerate(counts) if max(pair) > 1 or (adds and min(pair) == 0)]
    if not differing and not wrong:
        return []
    first = (differing or wrong)[0]
    trained, asked = counts[first]
    text = (
        f"{case.where}: prompts begin with {trained} begin token{'' if trained == 1 else 's'} "
        f"({case.decode([begin])!r}) in training and {asked} in evaluation"
    )
    numbers = {"training": trained, "evaluation": asked, "examples": case.examples_of([whole[first]])}
    remedy = "let only the tokenizer or only the chat template add the begin token"
    return [Finding("D16", "error" if differing else "warning", case.where, text, numbers, remedy)]
