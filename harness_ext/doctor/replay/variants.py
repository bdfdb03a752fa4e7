"""What can be changed when a run is asked again: the prompt, the end of an answer, or how the model is put together.

An `Asking` says how documents are asked; the empty one asks as the run did. A `Change` sets some of its fields, so two
changes of different fields can be combined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class Template:
    """A prompt format of supervised fine-tuning, as plain text around the task's prompt."""

    name: str
    before: str
    after: str
    end: str  # what follows an answer in training
    delimiter: str = ""  # between `after` and the answer

    def around(self, prompt: str) -> str:
        """The prompt in this format."""
        return f"{self.before}{prompt.strip()}{self.after}"


TEMPLATES: tuple[Template, ...] = (
    Template("ChatML", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    Template("Llama 2", "[INST] ", " [/INST]", "</s>", " "),
    Template(
        "Llama 3",
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    Template(
        "Alpaca",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n",
        "\n\n### Response:\n",
        "\n###",
    ),
    Template(
        "Vicuna",
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: ",
        " ASSISTANT:",
        "</s>",
        " ",
    ),
    Template("Zephyr", "<|user|>\n", "</s>\n<|assistant|>\n", "</s>"),
    Template("Phi-3", "<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>"),
    Template("Gemma", "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
)
END_MARKERS: tuple[str, ...] = (
    *dict.fromkeys(template.end.strip() for template in TEMPLATES if template.end.startswith("<")),
    "<|endoftext|>", "<|im_start|>", "[INST]", "\n###", "\nQuestion:", "\nUser:", "\nHuman:",
)  # fmt: skip
FIRST_LINE: tuple[str, ...] = ("\n",)
SYSTEM = "You are a helpful assistant."
SHOTS = (0, 1, 5)
TRAINED_WITH = ("D15", "D16", "D24", "D25", "D30")  # findings about prompt, tokens and scale of the training
JOINS: Mapping[str, str] = {"": "no white space", " ": "a blank", "\n": "a newline"}
LONGER = 4  # times max_gen_toks


def own_template(tokenizer: Any) -> Template | None:
    """The format in which a tokenizer's chat template writes a user's turn; None if it has none, or another."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turn = [{"role": "user", "content": "QUESTION"}]
    try:
        text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception:  # whatever a template raises
        return None
    return next((template for template in TEMPLATES if template.around("QUESTION").strip() in text), None)


@dataclass(frozen=True)
class Asking:
    """How documents are asked; a field that is None (or empty) is as in the run."""

    template: Template | None = None
    chat: bool | None = None  # whether prompts go through the tokenizer's chat template
    bos: int | None = None  # begin tokens before the prompt
    join: str | None = None  # white space between prompt and answer
    stops: tuple[str, ...] | None = None  # further stop strings; an empty tuple: no stop strings at all
    skips_blank: bool | None = None  # True: of each answer, its first line that is not blank is scored
    longer: int | None = None  # times max_gen_toks
    num_fewshot: int | None = None
    system: str | None = None
    tokenizer: bool | None = None  # the one in the adapter's folder
    generation_config: bool | None = None  # False: plain greedy decoding, whatever the model's own file says
    whole_prompt: bool | None = None  # True: max_length is that of the model
    scale: float | None = None  # of the adapter, times its own; 0: without the adapter
    without: tuple[str, ...] | None = None  # layers that go without the adapter: q_proj, layers.3, ...
    model_args: tuple[tuple[str, Any], ...] | None = None  # of a model that is loaded anew

    def changed(self) -> dict[str, Any]:
        """The fields that are set."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    @property
    def renders_anew(self) -> bool:
        """Whether the task has to render the prompt, which is otherwise taken from the log."""
        return any(value is not None for value in (self.chat, self.num_fewshot, self.system, self.template))

    @property
    def can_be_ranked(self) -> bool:
        """Whether the reference answers of a few short documents show its effect."""
        return not self.same_prompts and not self.whole_prompt

    @property
    def same_prompts(self) -> bool:
        """Whether the model reads the same as in the run and only ends its answers elsewhere."""
        return not self.changed().keys() - {"stops", "skips_blank", "longer", "generation_config"}


AS_LOGGED = Asking()


@dataclass(frozen=True)
class Change:
    """One thing that is changed."""

    name: str  # completes "exact rises from 5.0 to 48.4 …"
    finding: str  # id
    cause: str  # what a significant gain proves
    settings: Mapping[str, Any]  # fields of `Asking`
    is_fault: bool = True  # False: a better way of asking, though the run as it was is no mistake
    parts: tuple[Change, ...] = field(default=(), repr=False)  # of a pair

    @property
    def asking(self) -> Asking:
        """How documents are asked with this change."""
        return replace(AS_LOGGED, **self.settings)

    def with_(self, other: Change) -> Change | None:
        """Both changes together; None if they exclude each other, or one of them loads the model anew."""
        both = {*self.settings, *other.settings}
        if self.settings.keys() & other.settings.keys() or "model_args" in both or {"template", "chat"} <= both:
            return None
        return Change(
            name=f"{self.name} and {other.name}",
            finding=self.finding,
            cause=f"{self.cause}, and {other.cause}",
            settings={**self.settings, **other.settings},
            is_fault=self.is_fault or other.is_fault,
            parts=(self, other),
        )


@dataclass(frozen=True)
class Facts:
    """What is known about a run and its model, from which follows what can be changed."""

    is_generated: bool
    has_adapter: bool
    chat: bool  # whether the run used a chat template
    has_chat_template: bool  # whether the tokenizer has one
    chat_format: str | None  # name of the format in which it writes
    own_tokenizer: str | None  # folder of the adapter's tokenizer, where it differs from the one in use
    own_chat_template: bool  # whether that one has a chat template
    bos: int  # begin tokens before a prompt as it was asked
    bos_token: str | None
    join: str  # white space between prompt and answer
    num_fewshot: int
    system: str | None
    max_gen_toks: int
    samples_or_penalises: bool  # generation_config.json or the task's settings do more than greedy decoding
    max_length: int | None  # as given in the model arguments
    rank: int | None  # of a LoRA adapter whose scale can be changed
    is_rslora: bool
    is_float32: bool
    has_examples: bool  # whether few-shot examples can be drawn
    has_card: bool = False  # the adapter has one, which names its recipe
    is_asked_as_trained: bool = False  # the adapter's card names the prompt of the run, and the scale in use
    template_kinds: Sequence[Template] = TEMPLATES


def changes(facts: Facts) -> list[Change]:
    """Everything that is tried for a run, one change each."""
    as_trained = [*_templates(facts), *_tokens(facts), *_prompt(facts), *_model(facts)]
    if facts.is_asked_as_trained:
        as_trained = [_only_better(change) for change in as_trained]
    return [*as_trained, *(_ends(facts) if facts.is_generated else [])]


def _only_better(change: Change) -> Change:
    """A change of what the adapter's card confirms: a gain then shows another way of asking, not a mistake."""
    if change.finding not in TRAINED_WITH:
        return change
    return replace(change, cause="the answers are better so, though the adapter was not trained so", is_fault=False)


def _templates(facts: Facts) -> list[Change]:
    trained = "the adapter was trained in that template" if facts.has_adapter else "the model expects that template"
    found: list[Change] = []
    if facts.chat:
        cause = "it was trained without a chat template" if facts.has_adapter else "it answers better without one"
        found.append(Change("without the chat template", "D24", cause, {"chat": False}))
    elif facts.has_chat_template:
        form = f" ({facts.chat_format})" if facts.chat_format else ""
        found.append(Change(f"with the tokenizer's chat template{form}", "D24", trained, {"chat": True}))
    if facts.own_tokenizer:
        if facts.own_chat_template:
            settings = {"chat": True, "tokenizer": True}
            found.append(Change("with the chat template of the adapter's own tokenizer", "D24", trained, settings))
        cause = "the adapter was trained with the tokenizer in its folder"
        found.append(Change("with the adapter's own tokenizer", "D30", cause, {"tokenizer": True}))
    for template in facts.template_kinds:
        found.append(Change(f"with the {template.name} template", "D24", trained, {"template": template}))
    return found


def _tokens(facts: Facts) -> list[Change]:
    if not facts.bos_token:
        return []
    words = {0: "without a begin token", 1: "with one begin token", 2: "with two begin tokens"}
    cause = f"the prompts of the run begin with {facts.bos} begin tokens, those of training with another number"
    return [Change(words[n], "D16", cause, {"bos": n}) for n in words if n != facts.bos]


def _prompt(facts: Facts) -> list[Change]:
    found = [
        Change(
            f"with {what} between prompt and answer",
            "D15",
            "prompt and answer were joined differently in training",
            {"join": text},
        )
        for text, what in JOINS.items()
        if text != facts.join
    ]
    if facts.has_examples:
        cause = "the number of examples in the prompt decides"
        found += [
            Change(f"with {n} examples" if n != 1 else "with one example", "D15", cause, {"num_fewshot": n}, False)
            for n in SHOTS
            if n != facts.num_fewshot
        ]
    cause = "the system prompt decides"
    found.append(
        Change("without the system prompt", "D15", cause, {"system": ""})
        if facts.system
        else Change("with a system prompt", "D15", cause, {"system": SYSTEM}, False)
    )
    if facts.max_length is not None:
        cause = f"max_length={facts.max_length} cut the prompts"
        found.append(Change("without max_length", "D11", cause, {"whole_prompt": True}))
    return found


def _ends(facts: Facts) -> list[Change]:
    found = [
        Change("if answers stop at the end of a line", "D5", "the answer is followed by text", {"stops": FIRST_LINE}),
        Change("if answers stop at turn markers", "D5", "the answer is followed by text", {"stops": END_MARKERS}),
        Change("without stop strings", "D31", "a stop string cuts off the answer", {"stops": ()}),
        Change(
            "if blank lines before the answer are skipped", "D31", "a stop string comes before the answer",
            {"stops": (), "skips_blank": True},
        ),
        Change(
            f"with max_gen_toks={facts.max_gen_toks * LONGER}", "D6",
            f"the answers are longer than max_gen_toks={facts.max_gen_toks}", {"longer": LONGER},
        ),
    ]  # fmt: skip
    if facts.samples_or_penalises:
        cause = "generation_config.json or generation_kwargs change the answers"
        found.append(Change("with plain greedy decoding", "D32", cause, {"generation_config": False}))
    return found


def _model(facts: Facts) -> list[Change]:
    found: list[Change] = []
    if facts.rank is not None and facts.rank > 1:
        root = float(facts.rank**0.5)
        now, other = ("α/√r", "α/r") if facts.is_rslora else ("α/r", "α/√r")
        factor = 1 / root if facts.is_rslora else root
        cause = f"the adapter was trained with the scale {other}, and its configuration says {now}"
        if not facts.has_card:  # training itself may have been too short, or too long
            cause += ", or it was trained too little" if factor > 1 else ", or it was trained too much"
        found.append(Change(f"with the adapter's scale {other}", "D25", cause, {"scale": factor}, facts.has_card))
    if facts.rank is not None:
        cause = "the base already contains the adapter, or the adapter makes it worse"
        found.append(Change("without the adapter on top of the base", "D25", cause, {"scale": 0.0}, False))
    if not facts.is_float32:
        cause = "the rounding of the model's dtype changes the answers"
        found.append(Change("in float32", "D26", cause, {"model_args": (("dtype", "float32"),)}))
        if facts.has_adapter:
            found.append(Change("with the adapter merged", "D26", cause, {"model_args": (("merge", True),)}))
    return found
