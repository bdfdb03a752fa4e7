"""May two results of a task be compared? Every setting that a score depends on, and what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harness_ext.errors import ComparisonError, suggest
from harness_ext.protocol.token_settings import ADAPTERS_OWN, DEFAULT, TOKEN_SETTINGS, is_token_setting
from harness_ext.results.run import Run, TaskResult

DOCUMENTS, PROMPTS = "documents", "prompts"  # told by the samples, see `pairing`
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of functions that lm-eval could not print the source of
_LONGEST = 40  # characters of a value worth quoting
_CONFIG_FIELDS = (  # of a task's config: what a fingerprint covers, where one is missing
    "output_type",
    "description",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "process_docs",
    "process_results",
    "target_delimiter",
    "fewshot_delimiter",
    "generation_kwargs",
    "filter_list",
    "repeats",
)
_SETTINGS = ("dtype", "chat_template", "system_instruction", "fewshot_as_multiturn")
_CHAT_ARGUMENTS = {"chat_template_args", "enable_thinking"}  # the token settings that shape the prompt's text
_SAME_PROMPT = {
    "dtype", "version", "generation_kwargs", "process_results", "filters", "filter_list", DOCUMENTS,
    "dataset", "epochs", "scorers", "metric_list", "aggregation",  # of Inspect and EvalScope
}  # fmt: skip
ALLOWABLE = ("version", "num_fewshot", "fingerprint", *_SETTINGS, *TOKEN_SETTINGS, *_CONFIG_FIELDS, DOCUMENTS, PROMPTS)


def check_protocol(baseline: Run, run: Run, task: str, allow: Collection[str] = ()) -> tuple[str, ...]:
    """Refuse two results of a task that were not made under the same protocol.

    Fingerprints decide where both runs carry one; without, the task configs that lm-eval logged.

    Args:
        baseline: one run.
        run: the other.
        task: that both have.
        allow: fields that may differ.

    Returns:
        The fields that differ and are allowed to.

    Raises:
        ComparisonError: naming the task and every field that differs.
    """
    found = differences(baseline.tasks[task], run.tasks[task])
    if refused := [field for field in found if field not in allow]:
        shown = ", ".join(field + _values(*found[field]) for field in refused)
        flags = " ".join(f"--allow {field}" for field in refused)
        raise ComparisonError(
            f"{task}: {baseline.name} and {run.name} differ in {shown}; evaluate both with the same task file and "
            f"flags, or accept it with {flags}"
        )
    return tuple(found)


def check_allowed(allow: Sequence[str], runs: Sequence[Run]) -> None:
    """Refuse names that are no field of any protocol here.

    Raises:
        ComparisonError: naming the closest field.
    """
    results = [result for run in runs for result in run.tasks.values()]
    fields = {field for result in results for field in (*result.fingerprint_fields, *(result.token_settings or {}))}
    known = sorted({*ALLOWABLE, *fields})
    for field in allow:
        if field not in known:
            raise ComparisonError(
                f"--allow {field!r} is no field{suggest(field, known)}; choose from {', '.join(known)}"
            )


def differences(first: TaskResult, second: TaskResult) -> dict[str, tuple[Any, Any]]:
    """What differs between the settings of two results, by name, in a fixed order."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, a, b in (("version", first.version, second.version), ("num_fewshot", first.n_shot, second.n_shot)):
        if a != b:
            found[name] = a, b
    for name in _SETTINGS:
        if name in first.settings and name in second.settings and first.settings[name] != second.settings[name]:
            found[name] = first.settings[name], second.settings[name]
    found |= _token_differences(first, second)
    for name, values in _protocol(first, second).items():
        if not (name == "fewshot" and "num_fewshot" in found):
            found.setdefault(name, values)
    return found


def keeps_prompts(allowed: Collection[str]) -> bool:
    """Whether prompts must still agree when these fields differ."""
    others = set(allowed) - _SAME_PROMPT
    return all(is_token_setting(field) and field not in _CHAT_ARGUMENTS for field in others)


def _token_differences(first: TaskResult, second: TaskResult) -> dict[str, tuple[Any, Any]]:
    """Token settings that differ: as both runs resolved them, else as their model arguments say."""
    a, b = first.resolved_token_settings, second.resolved_token_settings
    if a is None or b is None:
        a, b = first.token_settings, second.token_settings
    if a is None or b is None:  # one was evaluated as an object in Python: nothing is known
        return {}
    fields = sorted(filter(is_token_setting, {*a, *b}))
    values = {field: (a.get(field, DEFAULT), b.get(field, DEFAULT)) for field in fields}
    return {field: pair for field, pair in values.items() if pair[0] != pair[1] and ADAPTERS_OWN not in pair}


def tokenizer_note(run: Run) -> str | None:
    """What to say beside a run whose adapter was evaluated with the tokenizer in its own folder; None for others.

    Such a tokenizer only adds tokens or a chat template, so it is not refused. A chat template that was applied and
    differs from the baseline's is still refused, as `chat_template`.
    """
    for result in run.tasks.values():
        settings = result.resolved_token_settings or {}
        if settings.get("tokenizer") == ADAPTERS_OWN:
            reason = f" ({settings['reason']})" if settings.get("reason") else ""
            return f"{run.name}: evaluated with the tokenizer in the adapter's own folder{reason}."
    return None


def _protocol(first: TaskResult, second: TaskResult) -> dict[str, tuple[Any, Any]]:
    if not (first.fingerprint and second.fingerprint):
        return _differing(first.config, second.config, _CONFIG_FIELDS)
    if first.fingerprint == second.fingerprint:
        return {}
    a, b = first.fingerprint_fields, second.fingerprint_fields
    return _differing(a, b, sorted({*a, *b})) or {"fingerprint": (first.fingerprint[:12], second.fingerprint[:12])}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], fields: Collection[str]) -> dict[str, tuple[Any, Any]]:
    return {field: (a.get(field), b.get(field)) for field in fields if _text(a.get(field)) != _text(b.get(field))}


def _text(value: Any) -> str:
    return _ADDRESS.sub("", json.dumps(value, sort_keys=True, default=str))


def _values(a: Any, b: Any) -> str:
    """Both values in brackets where they are short: ` (float32, bfloat16)`."""
    texts = [value if isinstance(value, str) else json.dumps(value, default=str) for value in (a, b)]
    return f" ({', '.join(texts)})" if max(map(len, texts)) <= _LONGEST else ""
