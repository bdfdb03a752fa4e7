"""Findings from what a replay proved: the cause, its gain, and the command that acts on it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness_ext.doctor.case import MAX_EXAMPLES, Case
from harness_ext.doctor.replay.questions import DEFAULT_LIMIT
from harness_ext.doctor.replay.restore import LoggedSettings, model_arguments
from harness_ext.doctor.replay.search import Outcome, Proof
from harness_ext.doctor.replay.variants import Asking, Template, own_template
from harness_ext.findings import Finding, Level
from harness_ext.protocol.lm_eval_api import ConfigurableTask

RUNS_TO = "results/replayed"  # of the command that is printed
FIRST_LINE = [{"function": "regex", "regex_pattern": r"(\S[^\n]*)"}, {"function": "take_first"}]  # steps of a filter


def proved_findings(
    case: Case, outcome: Outcome, settings: LoggedSettings, task: ConfigurableTask, tokenizer: Any
) -> list[Finding]:
    """The proved causes, the largest gain first; of changes with the same id only the best.

    Only the first is an error: what else raises the score is often another way to the same answers.
    """
    findings: list[Finding] = []
    for proof in outcome.proved:
        if proof.change.finding in {finding.id for finding in findings}:
            continue
        is_fault = proof.change.is_fault and proof.shows_training
        is_error = is_fault and case.run.adapter is not None and not findings
        findings.append(_finding(case, proof, outcome, settings, task, tokenizer, "error" if is_error else "warning"))
    return findings


def _finding(
    case: Case,
    proof: Proof,
    outcome: Outcome,
    settings: LoggedSettings,
    task: ConfigurableTask,
    tokenizer: Any,
    level: Level,
) -> Finding:
    change, gain = proof.change, proof.gain
    cause = change.cause if proof.shows_training else "the base alone is as good so, and the adapter adds nothing to it"
    text = f"{case.where}: {case.metric.metric} rises from {gain} {change.name}: {cause}"
    others = [other for other in outcome.proved if other is not proof and other.change.finding == change.finding]
    numbers: dict[str, object] = {
        "change": change.name, "before": gain.before, "after": gain.after, "low": gain.interval.low,
        "high": gain.interval.high, "p": gain.p_value, "n": gain.n, "tried": outcome.tried, "noise": outcome.noise,
        "others": {other.change.name: other.gain.difference for other in others}, "proved": True,
        "examples": _examples(case, proof),
    }  # fmt: skip
    command = next_command(case, change.asking, settings, task, tokenizer)
    return Finding(change.finding, level, case.where, text, numbers, command)


def _examples(case: Case, proof: Proof) -> list[dict[str, Any]]:
    """Documents that the change puts right, complete."""
    before, after = proof.before, proof.after
    righted = np.flatnonzero(np.nan_to_num(after.scores) > np.nan_to_num(before.scores))[:MAX_EXAMPLES]
    by_prompt = {output.prompt: output for output in case.outputs}
    examples = []
    for index in righted.tolist():
        output = by_prompt.get(before.prompts[index])
        if output is not None:
            examples.append(
                {
                    "doc_id": output.doc_id, "prompt": after.prompts[index], "output": after.texts[index],
                    "output_before": before.texts[index], "target": output.target,
                }
            )  # fmt: skip
    return examples


# -- the next command --------------------------------------------------------------------------------------------


def again(case: Case, **changed: Any) -> str:
    """The command that evaluates the task of a run once more, with other model arguments."""
    return _eval({**model_arguments(case.run), **changed}, [case.result.task])


def next_command(case: Case, asking: Asking, settings: LoggedSettings, task: ConfigurableTask, tokenizer: Any) -> str:
    """The command that evaluates the run as a change asks it."""
    before, arguments = _model(case, asking)
    chat = bool(settings.prompts.apply_chat_template) if asking.chat is None else asking.chat
    if asking.template is not None:
        chat = own_template(tokenizer) == asking.template
    changes = {} if asking.template is None or chat else _in_template(asking.template, task)
    if asking.join is not None:
        changes["target_delimiter"] = asking.join
    if asking.skips_blank:
        changes["filter_list"] = [{"name": case.metric.filter, "filter": FIRST_LINE}]
    name = case.result.task
    if changes:
        name, written = _task_with(task, changes)
        before.append(written)
    shots = settings.prompts.num_fewshot if asking.num_fewshot is None else asking.num_fewshot
    system = settings.prompts.system_instruction if asking.system is None else asking.system
    generation = _generation(asking, settings)
    flags = ["--num_fewshot", str(shots)] if shots or asking.num_fewshot is not None else []
    flags += ["--apply_chat_template"] if chat else []
    flags += ["--system_instruction", system] if system else []
    flags += ["--gen_kwargs", _gen_kwargs(generation)] if generation else []
    return " && ".join([*before, _eval(arguments, [name, *flags])])


def _eval(arguments: Mapping[str, Any], task_and_flags: Sequence[str]) -> str:
    listed = ",".join(f"{name}={value}" for name, value in arguments.items())
    words = ["harness-ext", "eval", "--model_args", listed, "--tasks", *task_and_flags]
    return shlex.join([*words, "--log_samples", "--output_path", RUNS_TO])


def _model(case: Case, asking: Asking) -> tuple[list[str], dict[str, Any]]:
    """Commands that correct the adapter, and the model arguments."""
    before: list[str] = []
    arguments = {**model_arguments(case.run), **dict(asking.model_args or ())}
    adapter = case.run.adapter
    if asking.scale == 0.0:
        arguments.pop("peft", None)
    elif asking.scale is not None and adapter:
        was, now = ("true", "false") if asking.scale < 1 else ("false", "true")
        config = shlex.quote(str(Path(adapter) / "adapter_config.json"))
        before.append(f"""sed -i 's/"use_rslora": {was}/"use_rslora": {now}/' {config}""")
    if asking.tokenizer and adapter:
        arguments["tokenizer"] = adapter
    if asking.bos is not None:
        arguments["add_bos_token"] = asking.bos > 0
    if asking.whole_prompt:
        arguments.pop("max_length", None)
    return before, arguments


def _generation(asking: Asking, settings: LoggedSettings) -> dict[str, Any]:
    """What --gen_kwargs has to say."""
    values = dict(settings.gen_kwargs)
    if asking.longer is not None:
        values["max_gen_toks"] = asking.longer * int(settings.generation.get("max_gen_toks", DEFAULT_LIMIT))
    if asking.generation_config is False:
        values["do_sample"] = False
    if asking.stops is not None:
        until = settings.generation.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        values["until"] = [*until, *asking.stops] if asking.stops else []
    return values


def _gen_kwargs(values: Mapping[str, Any]) -> str:
    """As lm-eval reads it: `a=1,b=2`, or JSON where a value is a list."""
    if any(isinstance(value, (list, dict)) for value in values.values()):
        return json.dumps(dict(values), ensure_ascii=False)
    return ",".join(f"{key}={value}" for key, value in values.items())


def _in_template(template: Template, task: ConfigurableTask) -> dict[str, Any]:
    """What a task's YAML says differently when it asks in a template."""
    config = task.config
    changes: dict[str, Any] = {"target_delimiter": template.delimiter}
    if isinstance(config.doc_to_text, str) and isinstance(config.description, str):
        changes["description"] = template.before + config.description.lstrip()
        changes["doc_to_text"] = config.doc_to_text + template.after
    if config.output_type == "generate_until":
        until = (config.generation_kwargs or {}).get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        changes["generation_kwargs"] = {**(config.generation_kwargs or {}), "until": [*stops, template.end]}
    return changes


def _task_with(task: ConfigurableTask, changes: Mapping[str, Any]) -> tuple[str, str]:
    """The YAML of a task that includes another with changes, and the command that writes it.

    It is written into the current folder; beside the other task where that names its data by relative paths.
    """
    source = Path(str((task.config.metadata or {}).get("config_source", f"{task.task_name}.yaml")))
    name = f"{task.task_name}_as_trained"
    local = {"data_files", "data_dir"} & (task.config.dataset_kwargs or {}).keys()
    file = shlex.quote(str(source.with_name(f"{name}.yaml")) if local else f"{name}.yaml")
    lines = {"include": str(source.resolve()), "task": name, **changes}
    return file, f"echo {shlex.quote(json.dumps(lines, ensure_ascii=False))} > {file}"
