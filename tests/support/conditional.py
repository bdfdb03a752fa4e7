"""A model that answers well under one condition only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from peft.tuners.lora.layer import LoraLayer

from harness_ext.engine.answer_hook import GenerationRecord, RequestKey
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.protocol.lm_eval_api import Instance, register_model

CONDITIONAL = "conditional"


@register_model(CONDITIONAL)
class ConditionalLM(TreeLM):
    """Knows the reference answers as far as a condition on its prompt and its adapter's scale is met.

    A generation is what `answer` makes of the document if the condition is met fully, else what `otherwise` makes of
    it; it stops at the stop strings and at the token limit. A reference answer's log-probability grows with the
    condition.
    """

    condition: ClassVar[Callable[[str, float], float]]  # (prompt, scale of the adapter) -> 0 to 1
    answer: ClassVar[Callable[[Mapping[str, Any]], str]]  # document -> what is generated if it is met
    otherwise: ClassVar[Callable[[Mapping[str, Any]], str]]  # and if it is not

    def _scale(self) -> float:
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        return next(iter(layers[0].scaling.values())) if layers else 0.0

    def _met(self, ids: list[int]) -> float:
        """As the condition says; the base without its adapter knows nothing."""
        if self._scale() == 0 and any(isinstance(module, LoraLayer) for module in self.model.modules()):
            return 0.0
        return type(self).condition(self.tokenizer.decode(ids), self._scale())

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        return [(-20.0 * (1 - self._met(context)) - 1.0, False) for _, context, _ in requests]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in requests:
            settings = dict(request.args[1])
            (ids,) = self._prompt_ids([request.args[0]], settings["max_gen_toks"])
            answer = type(self).answer if self._met(ids) == 1 else type(self).otherwise
            whole = answer(request.doc)
            tokens = self.tok_encode(whole, add_special_tokens=False)
            text = self.tok_decode(tokens[: settings["max_gen_toks"]])
            for stop in settings["until"]:
                text = text.split(stop, maxsplit=1)[0]
            reason = "length" if len(tokens) > settings["max_gen_toks"] and whole.startswith(text) else "stop"
            key = RequestKey(str(request.task_name), int(request.doc_id or 0), request.idx)
            self.generation_records[key] = [GenerationRecord(reason, len(ids), len(tokens))]  # type: ignore[arg-type]
            answers.append(text)
        return answers
