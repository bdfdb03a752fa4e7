"""Ask a model the documents of a run again, as they were asked or with something changed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from harness_ext.doctor.case import Case
from harness_ext.doctor.replay.questions import (
    DECODING,
    DEFAULT_LIMIT,
    GENERATION,
    SCORE,
    Questions,
    Request,
    first_line,
)
from harness_ext.doctor.replay.restore import LoggedSettings
from harness_ext.doctor.replay.variants import Asking
from harness_ext.engine.answer_hook import RequestKey
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.errors import TaskError
from harness_ext.protocol.lm_eval_api import HFLM, ConfigurableTask, Instance, document_scores
from harness_ext.protocol.render import PromptSettings, render
from harness_ext.results.outputs import Output

Scores = NDArray[np.float64]
MODEL_SIDE = ("scale", "without", "generation_config", "whole_prompt", "skips_blank")  # not shown by token ids


class Gold(NamedTuple):
    """The reference answer of a document."""

    answer: str  # without what joins it to the prompt
    request: int | None  # among the document's requests; None where it is generated


@dataclass(frozen=True)
class Answers:
    """What a model answered to n documents."""

    scores: Scores  # (n,) the primary metric as a share; NaN where a document has none
    texts: tuple[str | None, ...]  # generated; None for choices
    prompts: tuple[str, ...]
    at_limit: NDArray[np.bool_]  # (n,) whether generation ended at the token limit

    def and_(self, further: Answers) -> Answers:
        """These answers and those to further documents."""
        return Answers(
            np.concatenate([self.scores, further.scores]),
            self.texts + further.texts,
            self.prompts + further.prompts,
            np.concatenate([self.at_limit, further.at_limit]),
        )


class Asker(Questions):
    """Asks the documents of one task of one run.

    Args:
        lm: the run's model, answering as the run's variant.
        case: the task and run.
        task: the task, installed here.
        settings: how the run asked.
        own_tokenizer: the one in the adapter's folder, if it has one.
    """

    def __init__(
        self, lm: HFLM, case: Case, task: ConfigurableTask, settings: LoggedSettings, own_tokenizer: Any = None
    ) -> None:
        super().__init__(lm, task, settings, own_tokenizer)
        self.case = case
        self._golds: dict[int, Gold] = {}

    def gold(self, output: Output) -> Gold:
        """The reference answer of a document."""
        if output.doc_id not in self._golds:
            plain = PromptSettings(num_fewshot=0)
            (rendered,) = render(self.task, [output.doc], plain, self.lm)
            asked = self.logged(output)
            answer = rendered.continuation.strip()
            scored = [n for n, request in enumerate(asked) if request.kind == SCORE and request.context]
            if asked[0].kind == GENERATION:
                index = None
            else:
                matches = [n for n in scored if asked[n].continuation.strip() == answer]
                if len(matches) > 1:  # choices that stand in the prompt
                    matches = [n for n in matches if asked[n].context.endswith(rendered.context)]
                if not matches:
                    raise TaskError(f"the reference answer {answer!r:.40} is not among the logged requests")
                index = matches[0]
            self._golds[output.doc_id] = Gold(answer, index)
        return self._golds[output.doc_id]

    # -- asking --------------------------------------------------------------------------------------------------

    def token_ids(self, asking: Asking, output: Output) -> str:
        """What the model reads and how its answers end, as text: two askings that agree in it are the same."""
        with self.changed_model(asking):
            asked = self.requests(asking, output)
            ids = [[self.lm.tok_encode(request.context), request.continuation, request.generation] for request in asked]
            gold = self._gold_ids(asking, output)
        model = {name: asking.changed().get(name) for name in MODEL_SIDE}
        return json.dumps([ids, gold, model, asking.model_args], default=str)

    def signal(self, asking: Asking, outputs: Sequence[Output]) -> Scores:
        """How well the model knows the reference answers, (n,): bits per byte, negative, so that more is better.

        Of choices it is the logarithm of the right one's share of the probability.
        """
        with self.changed_model(asking):
            if self.gold(outputs[0]).request is None:
                return self._generated_signal(asking, outputs)
            rows = self._scored([self.requests(asking, output) for output in outputs], outputs)
        signals = []
        for output, row in zip(outputs, rows, strict=True):
            choices = [score for score, request in row if request.kind == SCORE and request.context]
            gold = row[cast("int", self.gold(output).request)][0]
            share = np.logaddexp.reduce(choices) if len(choices) > 1 else 0.0
            signals.append(float(gold - share) / math.log(2))
        return np.array(signals)

    def _generated_signal(self, asking: Asking, outputs: Sequence[Output]) -> Scores:
        """Bits per byte of reference answers that are generated, with and without a blank before them: both count."""
        pairs = [self._gold_ids(asking, output, delimiter) for delimiter in (None, " ", "") for output in outputs]
        asked = {str(pair): pair for pair in pairs}
        scores = self.lm._loglikelihood_tokens([*asked.values()], disable_tqdm=True)
        known = dict(zip(asked, (score for score, _ in scores), strict=True))
        ways = [{str(pair) for pair in pairs[number :: len(outputs)]} for number in range(len(outputs))]
        sums = [float(np.logaddexp.reduce([known[way] for way in each])) for each in ways]
        lengths = [max(1, len(self.gold(output).answer.encode())) for output in outputs]
        return np.array(sums) / lengths / math.log(2)

    def _gold_ids(self, asking: Asking, output: Output, delimiter: str | None = None) -> Any:
        """(None, context ids, ids of the reference answer), split where generation splits them.

        Args:
            asking: what is changed.
            output: of the document.
            delimiter: between prompt and answer; None: as the task or the template has it.
        """
        gold, lm = self.gold(output), self.lm
        request = self.requests(asking, output)[gold.request or 0]
        if gold.request is not None:
            return None, *lm._encode_pair(request.context, request.continuation)
        if delimiter is None:
            delimiter = self._delimiter(asking)
        if request.context[-1:].isspace():
            delimiter = ""
        context = lm.tok_encode(request.context)
        whole = lm.tok_encode(request.context + delimiter + gold.answer)
        if whole[: len(context)] == context and len(whole) > len(context):
            return None, context, whole[len(context) :]
        return None, context, lm.tok_encode(delimiter + gold.answer, add_special_tokens=False)

    def _delimiter(self, asking: Asking) -> str:
        """What the task or the template puts between prompt and answer."""
        chat = bool(self.settings.prompts.apply_chat_template) if asking.chat is None else asking.chat
        delimiter = "" if chat else str(self.task.config.target_delimiter)
        return delimiter if asking.template is None else asking.template.delimiter

    def _scored(
        self, asked: Sequence[Sequence[Request]], outputs: Sequence[Output]
    ) -> list[list[tuple[float, Request]]]:
        """Log-probabilities of the requests that ask for one; NaN for the others."""
        instances = [
            [self.instance(request, output, idx) for idx, request in enumerate(requests)]
            for requests, output in zip(asked, outputs, strict=True)
        ]
        flat = [each for row in instances for each in row if each.request_type == SCORE]
        answers = iter(self.lm.loglikelihood(flat, disable_tqdm=True))
        return [
            [(next(answers)[0] if request.kind == SCORE else math.nan, request) for request in row] for row in asked
        ]

    def answers(self, asking: Asking, outputs: Sequence[Output]) -> Answers:
        """Ask documents and score what comes back with the task's own filters and metric."""
        with self.changed_model(asking):
            asked = [
                [self.instance(request, output, idx) for idx, request in enumerate(self.requests(asking, output))]
                for output in outputs
            ]
            flat = [instance for row in asked for instance in row]
            if isinstance(self.lm, TreeLM):
                self.lm.generation_records.clear()
            for kind, ask in ((SCORE, self.lm.loglikelihood), (GENERATION, self.lm.generate_until)):
                if wanted := [instance for instance in flat if instance.request_type == kind]:
                    for instance, answer in zip(wanted, ask(wanted, disable_tqdm=True), strict=True):
                        skips = asking.skips_blank and kind == GENERATION
                        instance.resps.append(first_line(str(answer)) if skips else answer)
            at_limit = np.array([any(self._is_at_limit(instance) for instance in row) for row in asked])
        texts = tuple(next((each.resps[0] for each in row if each.request_type == GENERATION), None) for row in asked)
        prompts = tuple(row[0].args[0] for row in asked)
        return Answers(self._score(asked), texts, prompts, at_limit)

    def cut(self, answers: Answers, stops: Sequence[str], outputs: Sequence[Output]) -> Answers:
        """What further stop strings make of greedy answers: each is cut at the first of them."""
        texts = [_cut(text or "", stops) for text in answers.texts]
        if texts == [text or "" for text in answers.texts]:
            return answers
        asked = []
        for output, text in zip(outputs, texts, strict=True):
            instance = self.instance(self.logged(output)[0], output, 0)
            instance.resps.append(text)
            asked.append([instance])
        at_limit = answers.at_limit & np.array([a == b for a, b in zip(texts, answers.texts, strict=True)])
        return Answers(self._score(asked), tuple(texts), answers.prompts, at_limit)

    def _is_at_limit(self, instance: Instance) -> bool:
        if instance.request_type != GENERATION:
            return False
        if isinstance(self.lm, TreeLM):
            key = RequestKey(str(instance.task_name), int(instance.doc_id or 0), instance.idx)
            if records := self.lm.generation_records.get(key):
                return records[0].finish_reason == "length"
        limit = int(instance.args[1].get("max_gen_toks", DEFAULT_LIMIT))
        return len(self.lm.tok_encode(instance.resps[0], add_special_tokens=False)) >= limit

    def _score(self, asked: Sequence[Sequence[Instance]]) -> Scores:
        """The primary metric of each document as a share, (n,)."""
        task, metric = self.task, self.case.metric
        kept = getattr(task, "_instances", None)
        task._instances = [instance for row in asked for instance in row]
        try:
            task.apply_filters()
            scores = [document_scores(task, row[0].doc, row, metric.filter) for row in asked]
        finally:
            task._instances = kept
        values = [_number(score.get(metric.metric)) for score in scores]
        return np.array(values, dtype=float) * self.case.factor


def decodes_otherwise(model: Any, generation: Mapping[str, Any]) -> bool:
    """Whether a model's generation_config.json or a task's settings do more than greedy decoding."""
    config = getattr(model, "generation_config", None)
    own = config.to_diff_dict() if config is not None else {}
    neutral = {"_from_model_config", "transformers_version", "use_cache", "max_length", "max_new_tokens"}
    own = {name: value for name, value in own.items() if name not in neutral and not name.endswith("token_id")}
    return bool({name for name, value in own.items() if value not in (None, False)} | (generation.keys() - {*DECODING}))


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop, maxsplit=1)[0]
    return text


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (bool, int, float)) else math.nan
