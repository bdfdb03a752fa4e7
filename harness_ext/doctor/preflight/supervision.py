"""D7, D9, D10: which tokens the loss is computed on."""

from __future__ import annotations

from harness_ext.doctor.preflight.examples import Example, TrainingCase
from harness_ext.findings import Finding

MOST_SUPERVISED = 1.05  # supervised tokens to one token of an answer with its end token
MOST_TRUNCATED = 0.01  # share of the answers


def find_supervision(case: TrainingCase) -> list[Finding]:
    """End tokens that are not trained, prompts that are, and answers that were cut."""
    return [*_truncated(case), *_no_end_token(case), *_prompt_tokens(case)]


def end_tokens(case: TrainingCase) -> set[int]:
    """Tokens at which generation ends."""
    generation = getattr(case.lm.model, "generation_config", None)
    listed = getattr(generation, "eos_token_id", None)
    ids = {case.lm.tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    return {token for token in ids if token is not None}


def supervised_per_completion(case: TrainingCase) -> float:
    """Supervised tokens to one token of the reference answers with one end token each.

    What follows an answer, such as the end of a chat turn, is no part of a prompt and does not count.
    """
    wanted = sum(len(example.answer_ids) + 1 for example in case.examples)
    return sum(_up_to_answer(case, example) for example in case.examples) / wanted


def _up_to_answer(case: TrainingCase, example: Example) -> int:
    """Supervised tokens up to the end token of the answer; all of them where the answer is not among them."""
    count = len(example.supervised)
    if count <= len(example.answer_ids) + 1 or (end := _end_of_answer(case, example)) is None:
        return count
    return min(end + 1, count)


def _end_of_answer(case: TrainingCase, example: Example) -> int | None:
    """How many supervised tokens there are up to the end of the answer; None where it is not among them."""
    text, answer = case.decode(example.supervised), case.decode(example.answer_ids).strip()
    place = text.rfind(answer)
    if place < 0:
        return None
    lengths = (len(case.decode(example.supervised[:count])) for count in range(1, len(example.supervised) + 1))
    return 1 + next(n for n, length in enumerate(lengths) if length >= place + len(answer))


def stops(case: TrainingCase, example: Example) -> bool:
    """Whether an end is learned behind the answer: an end token, or a stop string of the task."""
    if end_tokens(case).intersection(example.supervised):
        return True
    until = (case.task.config.generation_kwargs or {}).get("until") if case.is_generated else None
    end = _end_of_answer(case, example)
    behind = "" if end is None else case.decode(example.supervised[end:])
    return any(stop in behind for stop in ([until] if isinstance(until, str) else until or []))


def end_tokens_per_example(case: TrainingCase) -> float:
    """Supervised end tokens of an example, on average."""
    ends = end_tokens(case)
    return sum(token in ends for example in case.examples for token in example.supervised) / len(case.examples)


def _no_end_token(case: TrainingCase) -> list[Finding]:
    without = [each for each in case.examples if not stops(case, each) and not missing_characters(case, each)]
    if not without:
        return []
    text = (
        f"{case.where}: {len(without)} of {len(case.examples)} training examples have no supervised end token, so the "
        "model does not learn to stop"
    )
    numbers = {"without": len(without), "n": len(case.examples), "examples": case.examples_of(without)}
    remedy = "end each answer with the tokenizer's eos_token, and compute the loss on it"
    return [Finding("D7", "error" if case.is_generated else "warning", case.where, text, numbers, remedy)]


def _prompt_tokens(case: TrainingCase) -> list[Finding]:
    ratio = supervised_per_completion(case)
    if ratio <= MOST_SUPERVISED:
        return []
    longer = [example for example in case.examples if _up_to_answer(case, example) > len(example.answer_ids) + 1]
    text = (
        f"{case.where}: the loss is computed on {ratio:.1f} times as many tokens as the answers have, so also on the "
        "prompt"
    )
    numbers = {"ratio": ratio, "examples": case.examples_of(longer)}
    remedy = "mask the prompt's labels with -100 (in TRL: completion_only_loss=True)"
    return [Finding("D9", "error", case.where, text, numbers, remedy)]


def _truncated(case: TrainingCase) -> list[Finding]:
    cut = [example for example in case.examples if missing_characters(case, example)]
    if not cut:
        return []
    share = len(cut) / len(case.examples)
    characters = sum(missing_characters(case, example) for example in cut)
    text = (
        f"{case.where}: {len(cut)} of {len(case.examples)} training examples lack a part of their answer, "
        f"{characters:,} characters in all"
    )
    numbers = {"share": share, "characters": characters, "examples": case.examples_of(cut)}
    remedy = "raise --max-length, and cut prompts on the left instead of answers on the right"
    return [Finding("D10", "error" if share > MOST_TRUNCATED else "warning", case.where, text, numbers, remedy)]


def missing_characters(case: TrainingCase, example: Example) -> int:
    """Characters at the end of the answer that are not among the supervised text; 0 for another answer.

    The answer is what the tokenizer gives back of it: some change case or white space.
    """
    answer = case.decode(example.answer_ids).strip()
    if answer in case.decode(example.supervised):
        return 0
    special = {*case.lm.tokenizer.all_special_ids, *end_tokens(case)}
    learned = case.decode([token for token in example.supervised if token not in special]).strip()
    kept = next((n for n in range(len(answer) - 1, 0, -1) if learned.endswith(answer[:n])), 0)
    return len(answer) - kept if kept or not learned or _ends_early(example) else 0


def _ends_early(example: Example) -> bool:
    """Whether an example ends within the prompt that is asked."""
    return example.whole == example.asked[: len(example.whole)]
