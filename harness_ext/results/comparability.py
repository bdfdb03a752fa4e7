"""Whether two results of a task may be compared: the settings that a score depends on, and which of them differ."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harness_ext.errors import ComparisonError, suggest
from harness_ext.protocol.token_settings import ADAPTERS_OWN, DEFAULT, TOKEN_SETTINGS, is_token_setting
from harness_ext.results.run import Run, TaskResult

DOCUMENTS, PROMPTS = "documents", "prompts"  # differences that only the samples show, see `pairing`
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in functions whose source lm-eval could not print
_LONGEST = 40  # longer values are not quoted
_CONFIG_FIELDS = (  # of a task's config: compared where a fingerprint is missing
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
_CHAT_ARGUMENTS = {"chat_template_args", "enable_thinking"}  # token settings that change the text of the prompt
_SAME_PROMPT = {  # fields that can differ without changing the prompt
    "dtype", "version", "generation_kwargs", "process_results", "filters", "filter_list", DOCUMENTS,
    "dataset", "epochs", "scorers", "metric_list", "aggregation",  # of Inspect and EvalScope
}  # fmt: skip
ALLOWABLE = ("version", "num_fewshot", "fingerprint", *_SETTINGS, *TOKEN_SETTINGS, *_CONFIG_FIELDS, DOCUMENTS, PROMPTS)


def check_protocol(baseline: Run, run: Run, task: str, allow: Collection[str] = ()) -> tuple[str, ...]:
    """Refuse two results of a task that were not evaluated under the same protocol.

    If both runs have a fingerprint, the fingerprints are compared; otherwise the task configs that lm-eval logged.

    Args:
        baseline: the baseline.
        run: the run to compare with it.
        task: a task that both have.
        allow: fields that may differ.

    Returns:
        The fields that differ and are allowed to.

    Raises:
        ComparisonError: other fields differ; the message names the task and every one of them.
    """
    differing = differences(baseline.tasks[task], run.tasks[task])
    if refused := [field for field in differing if field not in allow]:
        fields = ", ".join(field + _values(*differing[field]) for field in refused)
        flags = " ".join(f"--allow {field}" for field in refused)
        raise ComparisonError(
            f"{task}: {baseline.name} and {run.name} differ in {fields}; evaluate both with the same task file and "
            f"flags, or accept the difference with {flags}"
        )
    return tuple(differing)


def check_allowed(allow: Sequence[str], runs: Sequence[Run]) -> None:
    """Refuse names that are not a field of the protocol.

    Raises:
        ComparisonError: a name is unknown; the message suggests the closest field.
    """
    results = [result for run in runs for result in run.tasks.values()]
    fields = {field for result in results for field in (*result.fingerprint_fields, *(result.token_settings or {}))}
    known = sorted({*ALLOWABLE, *fields})
    for field in allow:
        if field not in known:
            raise ComparisonError(
                f"--allow {field!r} is not a field{suggest(field, known)}; choose from {', '.join(known)}"
            )


def differences(first: TaskResult, second: TaskResult) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two results, by name, in a fixed order."""
    differing: dict[str, tuple[Any, Any]] = {}
    for name, a, b in (("version", first.version, second.version), ("num_fewshot", first.n_shot, second.n_shot)):
        if a != b:
            differing[name] = a, b
    for name in _SETTINGS:
        if name in first.settings and name in second.settings and first.settings[name] != second.settings[name]:
            differing[name] = first.settings[name], second.settings[name]
    differing |= _token_differences(first, second)
    for name, values in _protocol(first, second).items():
        if not (name == "fewshot" and "num_fewshot" in differing):
            differing.setdefault(name, values)
    return differing


def keeps_prompts(allowed: Collection[str]) -> bool:
    """Whether prompts must still be equal when these fields differ."""
    return all(is_token_setting(field) and field not in _CHAT_ARGUMENTS for field in set(allowed) - _SAME_PROMPT)


def _token_differences(first: TaskResult, second: TaskResult) -> dict[str, tuple[Any, Any]]:
    """Token settings that differ: as used, if both runs logged that; otherwise as given in their model arguments."""
    a, b = first.resolved_token_settings, second.resolved_token_settings
    if a is None or b is None:
        a, b = first.token_settings, second.token_settings
    if a is None or b is None:  # a model passed as a Python object: nothing is known about it
        return {}
    fields = sorted(filter(is_token_setting, {*a, *b}))
    values = {field: (a.get(field, DEFAULT), b.get(field, DEFAULT)) for field in fields}
    return {field: pair for field, pair in values.items() if pair[0] != pair[1] and ADAPTERS_OWN not in pair}


def tokenizer_note(run: Run) -> str | None:
    """A note on a run whose adapter was evaluated with the tokenizer in its own folder; None for other runs.

    Such a tokenizer only adds tokens or a chat template, so the run is not refused. If a chat template was applied that
    differs from the baseline's, the run is still refused for `chat_template`.
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
    """Both values in brackets if they are short: ` (float32, bfloat16)`."""
    texts = [value if isinstance(value, str) else json.dumps(value, default=str) for value in (a, b)]
    return f" ({', '.join(texts)})" if max(map(len, texts)) <= _LONGEST else ""
