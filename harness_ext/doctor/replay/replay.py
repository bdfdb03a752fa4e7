"""The doctor's third layer: ask the model of a run again, and prove by one change what its score depends on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from peft.tuners.lora.layer import LoraLayer
from transformers import AutoTokenizer

from harness_ext.comparison.units import cluster_column
from harness_ext.doctor.case import Case
from harness_ext.doctor.diagnose import Examined, examine, in_order
from harness_ext.doctor.diagnosis import Diagnosis
from harness_ext.doctor.replay.ask import Answers, Asker, decodes_otherwise
from harness_ext.doctor.replay.questions import begin_tokens, lora_layers
from harness_ext.doctor.replay.report import again, proved_findings
from harness_ext.doctor.replay.restore import LoggedSettings, Restored, logged_settings, restored
from harness_ext.doctor.replay.search import LOOKS, Outcome, Search
from harness_ext.doctor.replay.variants import AS_LOGGED, Asking, Facts, changes, own_template
from harness_ext.errors import HarnessExtError, described
from harness_ext.findings import Finding
from harness_ext.models.card import AdapterCard, read_card
from harness_ext.protocol.fingerprint import PROMPT_FIELDS, differing_fields, fingerprint
from harness_ext.protocol.lm_eval_api import ConfigurableTask
from harness_ext.results.outputs import Output
from harness_ext.results.run import Run
from harness_ext.stats.units import Clusters

logger = logging.getLogger(__name__)

DOCUMENTS = LOOKS[-1]
LEAST_DOCUMENTS = 20
REPRODUCED = 0.9  # share of the documents that score as logged
CLOSE = 0.05  # difference of the two scores that rounding on another machine may make
UNDECIDED = 3  # gains that are named though they are not significant
WITHOUT_ADAPTER = Asking(scale=0.0)


def diagnose_by_replay(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    tasks: Sequence[str] = (),
    include_path: Sequence[str | Path] = (),
    documents: int = DOCUMENTS,
    seed: int = 0,
) -> list[Diagnosis]:
    """Examine every task of every run from what was logged, then ask the models again with one thing changed.

    Runs with an adapter are asked again; without any, all runs are. What cannot be asked again is named in the notes,
    and its other findings stand.

    Args:
        runs: as returned by `load_runs`.
        baseline: name of the baseline; see `diagnose`.
        tasks: names of tasks; empty: all.
        include_path: folders of further tasks.
        documents: at most so many are asked again.
        seed: for drawing them.

    Raises:
        HarnessExtError: no such task, or no baseline can be told.
    """
    examined = examine(runs, baseline=baseline, tasks=tasks, include_path=include_path)
    has_adapters = any(run.adapter for run in runs)
    by_run: dict[str, list[int]] = {}
    for number, each in enumerate(examined):
        if each.case is not None and (each.case.run.adapter or not has_adapters):
            by_run.setdefault(each.diagnosis.run, []).append(number)
    diagnoses = [each.diagnosis for each in examined]
    for numbers in by_run.values():
        replayed = _replay_run([examined[number] for number in numbers], documents, seed)
        for number, diagnosis in zip(numbers, replayed, strict=True):
            diagnoses[number] = diagnosis
    return diagnoses


def _replay_run(examined: Sequence[Examined], documents: int, seed: int) -> list[Diagnosis]:
    """Ask the tasks of one run again; the model is loaded once for all that share a chat setting."""
    diagnoses = {}
    askable: dict[bool, list[Examined]] = {}
    for each in examined:
        if (reason := _why_not(each, documents)) is not None:
            diagnoses[each.diagnosis.task] = _noted(each.diagnosis, reason)
        else:
            assert each.case is not None
            chat = bool(logged_settings(each.case.result).prompts.apply_chat_template)
            askable.setdefault(chat, []).append(each)
    for chat, group in askable.items():
        case = group[0].case
        assert case is not None
        tasks = [each.task for each in group if each.task is not None]
        try:
            with restored(case.run, tasks, chat=chat) as model:
                for each in group:
                    diagnoses[each.diagnosis.task] = _replay(each, model, documents, seed)
        except (HarnessExtError, RuntimeError, MemoryError) as error:  # memory that is exhausted is a RuntimeError
            logger.debug("%s cannot be asked again", case.run.name, exc_info=error)
            for each in group:
                diagnoses.setdefault(each.diagnosis.task, _noted(each.diagnosis, described(error)))
    return [diagnoses[each.diagnosis.task] for each in examined]


def _why_not(each: Examined, documents: int) -> str | None:
    """Why a task cannot be asked again; None if it can."""
    case = each.case
    assert case is not None
    if each.task is None:
        return f"task {each.diagnosis.task!r} is not installed here; add its folder with --include_path"
    if np.isnan(case.values).all():
        return f"{case.metric.metric} is not a number of each document"
    if each.task.OUTPUT_TYPE == "loglikelihood_rolling" or not case.outputs[0].logged.get("arguments"):
        return "it has no prompts with reference answers"
    if min(documents, len(case.outputs)) < LEAST_DOCUMENTS:
        return f"fewer than {LEAST_DOCUMENTS} documents prove nothing"
    return None


def _noted(diagnosis: Diagnosis, reason: str) -> Diagnosis:
    return replace(diagnosis, notes=[*diagnosis.notes, f"not asked again: {reason}"])


def _replay(each: Examined, model: Restored, documents: int, seed: int) -> Diagnosis:
    """Ask one task again; what it proves joins the findings from the log."""
    case, task, diagnosis = each.case, each.task, each.diagnosis
    assert case is not None
    assert task is not None
    settings = logged_settings(case.result)
    try:
        asker = Asker(model.lm, case, task, settings, own_tokenizer(model))
        outputs = _drawn(case, documents, seed)
        looks = [n for n in LOOKS if n < len(outputs)] + [len(outputs)]
        first = outputs[: looks[0]]
        baseline = asker.answers(AS_LOGGED, first)
        if (unlike := _not_reproduced(asker, first, baseline)) is not None:
            return replace(diagnosis, findings=in_order([*diagnosis.findings, unlike]))
        search = Search(
            asker, outputs, changes(facts(asker, model, outputs[0])), _clusters(case, outputs), looks,
            _elsewhere(case, task, settings, model),
        )  # fmt: skip
        outcome = search.run(baseline)
    except HarnessExtError as error:
        return _noted(diagnosis, str(error))
    proved = proved_findings(case, outcome, settings, task, model.lm.tokenizer)
    noise = _noise_finding(case, outcome)
    findings = _together(diagnosis.findings, [*proved, *noise])
    return replace(diagnosis, findings=findings, notes=[*diagnosis.notes, *_notes(case, outcome)])


def _drawn(case: Case, documents: int, seed: int) -> list[Output]:
    """Documents with a score, in random order."""
    scored = [output for output, value in zip(case.outputs, case.values, strict=True) if not np.isnan(value)]
    Random(seed).shuffle(scored)
    return scored[:documents]


def _clusters(case: Case, outputs: Sequence[Output]) -> Clusters | None:
    column = cluster_column(case.result.task, case.result.metadata, {})
    labels = [output.doc.get(column) for output in outputs]
    return None if None in labels else Clusters([str(label) for label in labels])


# -- is it the same model? ---------------------------------------------------------------------------------------


def _not_reproduced(asker: Asker, outputs: Sequence[Output], answers: Answers) -> Finding | None:
    """A finding if the model does not score as logged on the same documents with nothing changed."""
    case = asker.case
    logged = _logged_scores(case, outputs)
    if _agree(logged, answers.scores):
        return None
    before, after = float(np.nanmean(logged)), float(np.nanmean(answers.scores))
    text = (
        f"{case.where}: {case.metric.metric} is {100 * before:.1f} in the results and {100 * after:.1f} when the same "
        f"{len(outputs)} documents are asked again with nothing changed"
    )
    numbers: dict[str, object] = {"logged": before, "replayed": after, "n": len(outputs)}
    if case.run.adapter and lora_layers(asker.lm.model):
        alone = asker.answers(WITHOUT_ADAPTER, outputs)
        if _agree(logged, alone.scores) and _same_outputs(outputs, alone) >= REPRODUCED:
            text += "; the base alone answers as logged: the adapter was not applied"
            return Finding("D23", "error", case.where, text, {**numbers, "proved": True}, again(case))
    text += (
        ": the model here is not the one that was evaluated, or its engine answers otherwise; nothing else was tried"
    )
    return Finding("D33", "warning", case.where, text, numbers, again(case))


def _logged_scores(case: Case, outputs: Sequence[Output]) -> np.ndarray:
    by_id = {output.doc_id: value for output, value in zip(case.outputs, case.values, strict=True)}
    return np.array([by_id[output.doc_id] for output in outputs])


def _agree(logged: np.ndarray, replayed: np.ndarray) -> bool:
    """Whether scores agree up to what rounding on another machine makes of them."""
    alike = np.isclose(logged, replayed, atol=1e-3) | (np.isnan(logged) & np.isnan(replayed))
    return bool(alike.mean() >= REPRODUCED and abs(np.nanmean(logged) - np.nanmean(replayed)) <= CLOSE)


def _same_outputs(outputs: Sequence[Output], answers: Answers) -> float:
    """The share of generated texts that are as logged; 1 for choices, whose scores decide."""
    pairs = [(output.text, text) for output, text in zip(outputs, answers.texts, strict=True) if text is not None]
    return sum(logged == text for logged, text in pairs) / len(pairs) if pairs else 1.0


# -- what can be changed -----------------------------------------------------------------------------------------


def own_tokenizer(model: Restored) -> Any:
    """The tokenizer in the adapter's folder; None if there is none that can be read."""
    folder = model.variant.folder
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        logger.debug("the tokenizer in %s cannot be read", folder, exc_info=error)
        return None
    if len(tokenizer) > model.lm.model.get_input_embeddings().weight.shape[0]:
        return None
    return tokenizer


def facts(asker: Asker, model: Restored, output: Output) -> Facts:
    """What is known of a run, from its log and its model."""
    lm, settings = model.lm, asker.settings
    first = asker.logged(output)[0]
    is_generated = asker.gold(output).request is None
    own = own_tokenizer(model)
    layers = lora_layers(lm.model)
    joined = first.context[len(first.context.rstrip()) :]
    if not is_generated:
        joined = first.continuation[: len(first.continuation) - len(first.continuation.lstrip())]
    ranks = {rank for layer in layers for rank in layer.r.values()}
    config = next(iter(lm.model.peft_config.values()), None) if layers else None
    card = None if model.variant.folder is None else read_card(model.variant.folder)
    return Facts(
        is_generated=is_generated,
        has_adapter=asker.case.run.adapter is not None,
        chat=bool(settings.prompts.apply_chat_template),
        has_chat_template=bool(lm.tokenizer.chat_template),
        chat_format=None if (form := own_template(lm.tokenizer)) is None else form.name,
        own_tokenizer=None if own is None else str(model.variant.folder),
        own_chat_template=own is not None and bool(own.chat_template),
        bos=begin_tokens(lm, first.context),
        bos_token=lm.tokenizer.bos_token,
        join=joined,
        num_fewshot=settings.prompts.num_fewshot or 0,
        system=settings.prompts.system_instruction,
        max_gen_toks=int(settings.generation.get("max_gen_toks", lm.max_gen_toks)),
        samples_or_penalises=decodes_otherwise(lm.model, settings.generation),
        max_length=_number(model.arguments.get("max_length")),
        rank=max(ranks) if len(ranks) == 1 else None,
        is_rslora=bool(getattr(config, "use_rslora", False)),
        is_float32=str(lm.model.dtype) == "torch.float32",
        has_card=card is not None,
        is_asked_as_trained=_is_asked_as_trained(asker, card, layers),
        has_examples=hasattr(asker.task, "sampler") and asker.task.config.fewshot_split is not None,
    )


def _is_asked_as_trained(asker: Asker, card: AdapterCard | None, layers: Sequence[LoraLayer]) -> bool:
    """Whether the adapter's card names the prompt in which it was asked, and the scale at which it is applied."""
    if card is None or card.task != asker.task.task_name or not layers:
        return False
    recipe = card.recipe
    trained = recipe["lora_alpha"] / (recipe["lora_rank"] ** (0.5 if recipe.get("use_rslora") else 1))
    applied = {scale for layer in layers for scale in layer.scaling.values()}
    asked = fingerprint(asker.task, asker.settings.prompts, asker.lm).fields
    same_scale = all(math.isclose(scale, trained, rel_tol=1e-3) for scale in applied)
    return same_scale and not differing_fields(card.fingerprint_fields, asked, PROMPT_FIELDS)


def _number(value: Any) -> int | None:
    return int(value) if value is not None else None


def _elsewhere(
    case: Case, task: ConfigurableTask, settings: LoggedSettings, model: Restored
) -> Callable[[Mapping[str, Any]], Any]:
    """Askers of the model loaded with other arguments."""

    @contextmanager
    def load(changed: Mapping[str, Any]) -> Iterator[Asker]:
        chat = bool(settings.prompts.apply_chat_template)
        with restored(case.run, [task], chat=chat, changed=changed) as other:
            yield Asker(other.lm, case, task, settings, own_tokenizer(model))

    return load


# -- what is reported --------------------------------------------------------------------------------------------


def _together(logged: Sequence[Finding], replayed: Sequence[Finding]) -> list[Finding]:
    """Findings of both layers; what a replay proves takes the place of the same suspicion."""
    proved = {finding.id for finding in replayed}
    kept = [finding for finding in logged if finding.id not in proved or finding.numbers.get("proved")]
    known = {finding.id for finding in kept}
    return in_order([*kept, *(finding for finding in replayed if finding.id not in known)])


def _noise_finding(case: Case, outcome: Outcome) -> list[Finding]:
    """The noise floor, where it is as large as the difference from the base, or as a gain that would be reported."""
    noise = outcome.noise
    if not noise:
        return []
    effect = None if case.base is None else abs(float(np.nanmean(case.values) - np.nanmean(case.base.values)))
    if effect is not None and effect > noise:
        return []
    text = (
        f"{case.where}: {case.metric.metric} differs by {100 * noise:.1f} when only the order and the packs of the "
        "documents change"
    )
    if effect is not None:
        text += f", and by {100 * effect:.1f} from the base"
    numbers = {"noise": noise, "effect": effect}
    return [Finding("D26", "warning", case.where, text, numbers, again(case, dtype="float32"))]


def _notes(case: Case, outcome: Outcome) -> list[str]:
    notes = []
    if not outcome.proved:
        notes.append(
            f"asked again: none of {outcome.tried} changes raises {case.metric.metric} significantly on {outcome.n} "
            f"documents; ruled out: {'; '.join(outcome.ruled_out)}"
        )
        notes += [
            f"undecided: {case.metric.metric} goes from {gain} {gain.change} (corrected p = {gain.p_value:.2g}); raise "
            "--documents"
            for gain in outcome.undecided[:UNDECIDED]
        ]
    else:
        notes.append(f"asked again: {outcome.tried} changes tried on {outcome.n} documents")
    notes += [f"not tried {name}: {reason}" for name, reason in outcome.failed.items()]
    return notes
