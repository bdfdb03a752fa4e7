"""Task classes that make more requests per document than lm-eval's output types do; they work in stock lm-eval.

A YAML names one of these classes next to its other keys, and the settings of the class under `metadata`:

```yaml
class: !function harness_ext.hooks.CalibratedChoice
metadata:
  content_free: {column: sentence, texts: ["N/A", "", "[MASK]"]}
```

Each class adds requests after lm-eval's own; `process_results` gets the results in that order. An added prompt is the
document's prompt with another question in its last turn, so description, few-shot examples and chat template stay the
same. Requests that are the same for all documents cost one forward pass, since `hf` and `hf-tree` compute equal
contexts only once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness_ext.errors import TaskError
from harness_ext.protocol.lm_eval_api import (
    ConfigurableTask,
    GenerateTask,
    Instance,
    MultipleChoiceTask,
    apply_template,
)

Doc = Mapping[str, Any]


class ComposedTask(ConfigurableTask):
    """Base of the task classes that a YAML names with `class:`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def _setting(self, name: str) -> Any:
        try:
            return self.config.metadata[name]
        except (KeyError, TypeError):
            raise TaskError(
                f"task {self.task_name!r} ({type(self).__name__}) needs {name!r}; add it under metadata: in its YAML"
            ) from None

    def _ask_instead(self, doc: Doc, context: str, question: str) -> str:
        """The document's prompt with another question instead of its own."""
        own = self.doc_to_text(doc)
        if not own:
            raise TaskError(f"task {self.task_name!r} has a document without a question; doc_to_text must not be empty")
        before, match, after = context.rpartition(own)
        if not match:
            raise TaskError(
                f"task {self.task_name!r}: the chat template changes the question {own!r:.60}; evaluate without it"
            )
        return f"{before}{question}{after}"


class CalibratedChoice(ComposedTask, MultipleChoiceTask):
    """A forced choice, and the same choice after inputs without content: what the model prefers unasked.

    metadata.content_free: `column`, which holds a document's input, and `texts` to put there instead.
    """

    def construct_requests(self, doc: Doc, ctx: str, **options: Any) -> list[Instance]:
        """The document's choices, then the choices after each content-free input."""
        ask = super().construct_requests
        free = self._setting("content_free")
        questions = [self.doc_to_text({**doc, free["column"]: text}) for text in free["texts"]]
        contexts = [ctx, *(self._ask_instead(doc, ctx, question) for question in questions)]
        return _numbered([ask(doc, context, **options) for context in contexts])


class PromptSpread(ComposedTask, MultipleChoiceTask):
    """A forced choice under several prompts at once.

    metadata.prompts: for each prompt its `text`, a template, and where they differ from the document's its `choices`.
    The first one is `doc_to_text`. Few-shot examples would be worded as the first, so `num_fewshot` has to be 0.
    """

    def construct_requests(self, doc: Doc, ctx: str, **options: Any) -> list[Instance]:
        """The choices under the first prompt, under the second, ..."""
        if self.config.num_fewshot:
            raise TaskError(f"task {self.task_name!r} compares prompts without examples; leave --num_fewshot out")
        asked = []
        for prompt in self._setting("prompts"):
            context = self._ask_instead(doc, ctx, apply_template(prompt["text"], doc))
            worded = {**doc, "choices": prompt.get("choices", doc["choices"])}
            asked.append(super().construct_requests(worded, context, **options))
        return _numbered(asked)


class AbstainByProbability(ComposedTask, GenerateTask):
    """An answer generated, and the abstention word scored after the same prompt.

    metadata.abstain_word, and metadata.abstain_threshold: the hook gets it as `threshold` and abstains for the model
    where the word's log-probability is above. `--metadata '{"abstain_threshold": -3.2}'` sets another one.
    """

    def construct_requests(self, doc: Doc, ctx: str, **options: Any) -> list[Instance]:
        """The generation, then the score of the abstention word."""
        asked = super().construct_requests(doc, ctx, **options)
        generation = asked[0] if isinstance(asked, list) else asked  # a list since lm-eval 0.5
        delimiter = "" if options.get("apply_chat_template") else self.config.target_delimiter
        arguments = (ctx, f"{delimiter}{self._setting('abstain_word')}")
        word = replace(
            generation, request_type="loglikelihood", arguments=arguments, idx=1, resps=[], filtered_resps={}
        )
        return [generation, word]

    def process_results(self, doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
        """The hook's scores under the threshold."""
        return dict(self.config.process_results(doc, results, threshold=float(self._setting("abstain_threshold"))))


def _numbered(requests: Sequence[Sequence[Instance]]) -> list[Instance]:
    """All requests of a document, numbered in order; lm-eval sorts the results by this number."""
    flat = [request for group in requests for request in group]
    for number, request in enumerate(flat):
        request.idx = number
    return flat
