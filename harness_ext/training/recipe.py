"""A training recipe: a frozen dataclass, read from YAML, overridden by flags, and checked before anything is loaded."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from harness_ext.errors import InputError, RecipeError, suggest
from harness_ext.reading.yaml_input import parse_yaml, read_yaml
from harness_ext.trees.layout import PACK_TOKENS

if TYPE_CHECKING:
    from harness_ext.protocol.render import PromptSettings

SMALL_MODEL, LARGE_MODEL = 135e6, 1e9  # parameters
SMALL_MODEL_RATE, LARGE_MODEL_RATE = 1e-3, 2e-4
INITIALISATIONS = re.compile(r"default|gaussian|orthogonal|olora|pissa(_niter_\d+)?")
PLACES = ("model", "output", "report_to")  # fields that are specific to one machine, not part of the method


def _about(text: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run. Every field is a key of the YAML and a flag of `train`."""

    task: str = _about("task to train on: any lm-eval task with a training split")
    model: str = _about("base model: Hub id, local folder, or packaged model")
    output: str = _about("adapter folder to write, e.g. adapters/sst2")
    revision: str | None = _about("revision of a base from the Hub", None)
    include_path: str | list[str] | None = _about("folder, or list of folders, with more tasks", None)  # noqa: RUF009
    # LoRA
    lora_rank: int = _about("rank r of the update matrices", 8)
    lora_alpha: float = _about("updates are scaled by alpha / r", 16.0)
    lora_dropout: float = _about("dropout before the update matrices", 0.0)
    target_modules: str | list[str] = _about("layers to adapt: all-linear, a pattern, or names", "all-linear")  # noqa: RUF009
    modules_to_save: list[str] | None = _about("modules trained and saved in full", None)  # noqa: RUF009
    use_rslora: bool = _about("scale by alpha / sqrt(r) (rsLoRA)", False)
    use_dora: bool = _about("train magnitude and direction separately (DoRA)", False)
    init_lora_weights: str = _about(
        "initialisation of the update matrices: default, gaussian, orthogonal, olora, pissa, pissa_niter_16", "default"
    )
    quantization: Literal["none", "nf4"] = _about(
        "load the base in 4 bits (QLoRA; needs bitsandbytes and a GPU)", "none"
    )
    # optimisation
    epochs: float = _about("passes over the training examples", 1.0)
    max_steps: int = _about("stop after this many optimiser steps; 0: no limit", 0)
    batch_size: int = _about("examples per batch on each device", 32)
    gradient_accumulation_steps: int = _about("batches per optimiser step", 1)
    learning_rate: float | None = _about("peak learning rate; unset: 1e-3 up to 135M parameters, 2e-4 from 1B", None)
    lr_scheduler: str = _about("learning rate schedule, by its transformers name", "cosine")
    warmup_ratio: float = _about("share of steps with a rising learning rate", 0.05)
    weight_decay: float = _about("AdamW's weight decay", 0.0)
    max_grad_norm: float = _about("clip gradients to this norm; 0: no clipping", 1.0)
    seed: int = _about("seed for initialisation, order of examples, dropout and few-shot examples", 0)
    # examples
    limit: int | None = _about("train on at most this many documents, drawn by seed", None)
    validation_size: int = _about("documents of the training split held out to monitor the loss, drawn by seed", 200)
    evaluate_every: float | None = _about(
        "score the task's own metric after so many steps, or after this share of an epoch if below 1, and keep the "
        "best checkpoint beyond noise; unset: no evaluation, the last checkpoint is kept", None
    )  # fmt: skip
    evaluation_documents: int = _about(
        "documents of the training split that checkpoints are scored on; as many others are held out to score the "
        "chosen one again", 200
    )  # fmt: skip
    evaluation_cost: float = _about(
        "share of the training time that evaluations may take; they are spread out to keep to it; 0: no limit", 0.1
    )
    patience: int = _about(
        "stop after this many evaluations in a row without a checkpoint that is better beyond noise; 0: never", 0
    )
    max_length: int | None = _about(
        "maximum tokens per example; longer contexts are cut on the left; unset: the model's limit", None
    )
    group_by_prefix: bool = _about("put examples that share a passage into the same batch", True)
    num_fewshot: int | None = _about("few-shot examples per prompt; unset: as in the task", None)
    apply_chat_template: bool = _about("apply the tokenizer's chat template to prompts", False)
    fewshot_as_multiturn: bool | None = _about(
        "few-shot examples as separate chat turns; unset: if a chat template is applied", None
    )
    system_instruction: str | None = _about("system instruction before the prompt", None)
    # the machine
    prefix_trees: bool = _about("compute shared prefixes once; off: padded batches", True)
    max_tokens: int = _about("pack size: tokens per forward and backward pass", PACK_TOKENS)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _about(
        "dtype of the base; auto: bfloat16 if the hardware supports it", "auto"
    )
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = _about(
        "dtype of the saved adapter; auto: as trained", "auto"
    )
    gradient_checkpointing: bool = _about("recompute activations instead of storing them", False)
    save_steps: int = _about("steps between checkpoints, for --resume", 50)
    logging_steps: int = _about("steps between loss reports", 10)
    report_to: str = _about("where to report the loss and scores: none, tensorboard, wandb, trackio, ...", "none")

    def __post_init__(self) -> None:
        """Raise RecipeError for wrong types and impossible values; the message names the flag."""
        for name, hint in get_type_hints(type(self)).items():
            value = _checked(name, getattr(self, name), hint, "recipe")
            items = value if isinstance(value, (list, tuple)) else (value,)
            object.__setattr__(self, name, value)
            self._require(name, all("\0" not in str(item) for item in items), "must not contain a null character")
        for name in ("task", "model", "output"):
            self._require(name, bool(getattr(self, name).strip()), "must not be empty")
        for name in (
            "lora_rank", "lora_alpha", "epochs", "batch_size", "gradient_accumulation_steps", "max_tokens",
            "save_steps", "logging_steps",
        ):  # fmt: skip
            self._require(name, getattr(self, name) > 0, "must be positive")
        for name in ("max_steps", "weight_decay", "max_grad_norm", "validation_size", "patience", "seed"):
            self._require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("lora_dropout", "warmup_ratio", "evaluation_cost"):
            self._require(name, 0 <= getattr(self, name) < 1, "must be at least 0 and less than 1")
        for name in ("limit", "max_length", "learning_rate"):
            self._require(name, getattr(self, name) is None or getattr(self, name) > 0, "must be positive")
        self._require("num_fewshot", self.num_fewshot is None or self.num_fewshot >= 0, "must not be negative")
        self._require("seed", self.seed < 2**32, "must be below 2**32")
        self._check_evaluation()
        known = INITIALISATIONS.fullmatch(self.init_lora_weights) is not None
        rule = "must be default, gaussian, orthogonal, olora, pissa or pissa_niter_N"
        self._require("init_lora_weights", known, rule)
        if self.changes_base:
            rule = f"must not be combined with --init-lora-weights {self.init_lora_weights}"
            self._require("use_dora", not self.use_dora, rule)
            self._require("modules_to_save", self.modules_to_save is None, rule)
            self._require("quantization", self.quantization == "none", rule)

    def _check_evaluation(self) -> None:
        every = self.evaluate_every
        rule = "must be a whole number of steps, or a share of an epoch above 0 and below 1"
        self._require("evaluate_every", every is None or 0 < every < 1 or (every >= 1 and every.is_integer()), rule)
        self._require("evaluation_documents", self.evaluation_documents > 0, "must be positive")
        rule = "counts evaluations, so it needs --evaluate-every"
        self._require("patience", every is not None or not self.patience, rule)

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise RecipeError(f"{flag(name)} {rule}, got {getattr(self, name)!r:.80}; change the recipe or the flag")

    @property
    def changes_base(self) -> bool:
        """Whether initialising the update matrices subtracts a part from the base's weights."""
        return self.init_lora_weights.startswith(("pissa", "olora"))

    @property
    def prompt(self) -> PromptSettings:
        """The prompt settings, which the protocol fingerprint covers."""
        from harness_ext.protocol.render import PromptSettings  # takes seconds, and `train --help` needs none

        return PromptSettings(
            num_fewshot=self.num_fewshot,
            apply_chat_template=self.apply_chat_template,
            fewshot_as_multiturn=self.fewshot_as_multiturn,
            system_instruction=self.system_instruction,
        )

    def learning_rate_for(self, parameters: int) -> float:
        """The peak learning rate: as set, else by model size, geometric between 135M and 1B parameters."""
        if self.learning_rate is not None:
            return self.learning_rate
        share = (math.log(parameters) - math.log(SMALL_MODEL)) / (math.log(LARGE_MODEL) - math.log(SMALL_MODEL))
        share = min(max(share, 0.0), 1.0)
        return float(SMALL_MODEL_RATE * (LARGE_MODEL_RATE / SMALL_MODEL_RATE) ** share)

    @property
    def task_name(self) -> str:
        """The task's name, even if the task is given as the path of its YAML file."""
        return Path(self.task).stem if self.task.endswith((".yaml", ".yml")) else self.task

    @property
    def include_paths(self) -> tuple[str, ...]:
        """Folders with more tasks."""
        return (self.include_path,) if isinstance(self.include_path, str) else tuple(self.include_path or ())

    def for_card(self) -> dict[str, Any]:
        """The recipe without paths of this machine; only the names of task folders are kept."""
        values = {name: value for name, value in asdict(self).items() if name not in PLACES}
        folders = [Path(folder).expanduser().resolve().name for folder in self.include_paths]
        return {**values, "task": self.task_name, "include_path": folders or None}


def recorded(recipe: Mapping[str, Any], name: str) -> Any:
    """A field of a recipe that was written earlier; one that did not exist then had its default.

    >>> recorded({"lora_rank": 4}, "lora_rank"), recorded({"lora_rank": 4}, "patience")
    (4, 0)
    """
    default = {field.name: field.default for field in fields(Recipe)}.get(name, MISSING)
    return recipe.get(name, None if default is MISSING else default)


def flag(name: str) -> str:
    """Flag of a recipe field.

    >>> flag("lora_rank")
    '--lora-rank'
    """
    return "--" + name.replace("_", "-")


def recipe_from(values: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """Make a recipe from plain values, such as those of a YAML file.

    Args:
        values: field name -> value.
        source: where the values come from, for messages.

    Raises:
        RecipeError: a field is unknown or missing, or a value has the wrong type.
    """
    known = {f.name: f for f in fields(Recipe)}
    if unknown := [name for name in values if name not in known]:
        raise RecipeError(
            f"{source}: unknown {unknown[0]!r}{suggest(unknown[0], known)}; `harness-ext train --help` lists all fields"
        )
    required = [name for name, f in known.items() if f.default is MISSING]
    if missing := [name for name in required if values.get(name) is None]:
        raise RecipeError(f"{source}: {missing[0]!r} is missing; set it there or as {flag(missing[0])}")
    hints = get_type_hints(Recipe)
    return Recipe(**{name: _checked(name, value, hints[name], source) for name, value in values.items()})


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Values of a recipe file; they are not checked yet, since flags may add to them.

    Raises:
        RecipeError: there is no such file, or it is not a YAML mapping.
    """
    try:
        values = read_yaml(path)
    except InputError as error:
        raise RecipeError(f"recipe {error}; correct the file or its path") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise RecipeError(f"recipe {path} must be a mapping of fields to values; see adapters/sst2.yaml")
    return values


def from_text(name: str, text: str) -> Any:
    """The value of a recipe field from its text on the command line; `recipe_from` checks its type.

    >>> from_text("lora_rank", "8"), from_text("limit", "null"), from_text("target_modules", "[q_proj, v_proj]")
    (8, None, ['q_proj', 'v_proj'])
    >>> from_text("system_instruction", "Be brief: yes or no"), from_text("revision", "1234567")
    ('Be brief: yes or no', '1234567')
    """
    options = _options(get_type_hints(Recipe)[name])
    is_list = text.startswith("[") and any(get_origin(option) is list for option in options)
    if str in options and not is_list:
        return None if text in ("null", "none") and type(None) in options else text
    try:
        return parse_yaml(text, place=name)
    except InputError:
        return text


def _options(hint: Any) -> tuple[Any, ...]:
    """The types a field may have."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _checked(name: str, value: Any, hint: Any, source: str) -> Any:
    """Convert a value to its field's type, or raise RecipeError."""
    options = _options(hint)
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option):
                return value
        elif get_origin(option) is list:
            if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
                return value
        elif option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):  # YAML reads 1e-3 as text
                if math.isfinite(float(value)):
                    return float(value)
        elif type(value) is option:
            return value
    allowed = " or ".join(_name(option) for option in options)
    raise RecipeError(f"{source}: {name} must be {allowed}, got {value!r:.80}; correct it")


def _name(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(repr(value) for value in get_args(option))
    if get_origin(option) is list:
        return "a list of names"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "unset"}[option]
