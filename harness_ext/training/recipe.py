"""A training recipe: one frozen dataclass, read from YAML, overridden by flags, checked before anything is loaded."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from harness_ext.errors import RecipeError, first_line, suggest
from harness_ext.protocol.render import PromptSettings

SMALL_MODEL, LARGE_MODEL = 135e6, 1e9  # parameters
SMALL_MODEL_RATE, LARGE_MODEL_RATE = 1e-3, 2e-4
STARTS = re.compile(r"default|gaussian|orthogonal|olora|pissa(_niter_\d+)?")  # of the update matrices
PLACES = ("model", "output", "report_to")  # fields that say where, not what


def _about(text: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run makes. Every field is a key of the YAML and a flag of `train`."""

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
    use_dora: bool = _about("train magnitude and direction apart (DoRA)", False)
    init_lora_weights: str = _about(
        "start of the update matrices: default, gaussian, orthogonal, olora, pissa, pissa_niter_16", "default"
    )
    quantization: Literal["none", "nf4"] = _about("base in 4 bits (QLoRA; needs bitsandbytes and a GPU)", "none")
    # optimisation
    epochs: float = _about("passes over the training examples", 1.0)
    max_steps: int = _about("stop after so many optimiser steps; 0: no limit", 0)
    batch_size: int = _about("examples of one optimiser step on one device", 32)
    gradient_accumulation_steps: int = _about("batches of one optimiser step", 1)
    learning_rate: float | None = _about("peak rate; unset: 1e-3 up to 135M parameters, 2e-4 from 1B up", None)
    lr_scheduler: str = _about("schedule, by its transformers name", "cosine")
    warmup_ratio: float = _about("share of the steps in which the rate rises", 0.05)
    weight_decay: float = _about("AdamW's weight decay", 0.0)
    max_grad_norm: float = _about("gradients are clipped to this norm; 0: not", 1.0)
    seed: int = _about("seeds initialisation, order of examples, dropout and few-shot examples", 0)
    # examples
    limit: int | None = _about("train on so many documents, drawn by seed", None)
    validation_size: int = _about("documents of the training split held out to watch the loss, drawn by seed", 200)
    max_length: int | None = _about(
        "longest example in tokens; longer contexts lose their beginning; unset: the model's", None
    )
    group_by_prefix: bool = _about("examples that share a passage come in the same batch", True)
    num_fewshot: int | None = _about("examples in the prompt; unset: the task's", None)
    apply_chat_template: bool = _about("render prompts through the chat template", False)
    fewshot_as_multiturn: bool | None = _about(
        "few-shot examples as turns of a chat; unset: with a chat template", None
    )
    system_instruction: str | None = _about("system instruction before the prompt", None)
    # the machine
    prefix_trees: bool = _about("compute shared prefixes once; off: plain padded batches", True)
    max_tokens: int = _about("tokens of one forward and backward pass", 1024)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _about(
        "of the base; auto: bfloat16 where there are units for it", "auto"
    )
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = _about(
        "of the saved adapter; auto: as trained", "auto"
    )
    gradient_checkpointing: bool = _about("recompute activations instead of keeping them", False)
    save_steps: int = _about("steps between two checkpoints, for --resume", 50)
    logging_steps: int = _about("steps between two reports of the loss", 10)
    report_to: str = _about("none, tensorboard, wandb, trackio, ...", "none")

    def __post_init__(self) -> None:
        """Refuse wrong types and impossible values, naming the flag."""
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), hint, "recipe"))
        for name in ("task", "model", "output"):
            self._require(name, bool(getattr(self, name).strip()), "must not be empty")
        for name in (
            "lora_rank", "lora_alpha", "epochs", "batch_size", "gradient_accumulation_steps", "max_tokens",
            "save_steps", "logging_steps",
        ):  # fmt: skip
            self._require(name, getattr(self, name) > 0, "must be positive")
        for name in ("max_steps", "weight_decay", "max_grad_norm", "validation_size", "seed"):
            self._require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("lora_dropout", "warmup_ratio"):
            self._require(name, 0 <= getattr(self, name) < 1, "must be at least 0 and less than 1")
        for name in ("limit", "max_length", "learning_rate"):
            self._require(name, getattr(self, name) is None or getattr(self, name) > 0, "must be positive")
        self._require("num_fewshot", self.num_fewshot is None or self.num_fewshot >= 0, "must not be negative")
        self._require("seed", self.seed < 2**32, "must be below 2**32")
        start = self.init_lora_weights
        known = "must be default, gaussian, orthogonal, olora, pissa or pissa_niter_N"
        self._require("init_lora_weights", STARTS.fullmatch(start) is not None, known)
        if self.changes_base:
            self._require("use_dora", not self.use_dora, f"does not go with {start}")
            self._require("modules_to_save", self.modules_to_save is None, f"does not go with {start}")
            self._require("quantization", self.quantization == "none", f"does not go with {start}")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise RecipeError(f"{flag(name)} {rule}, got {getattr(self, name)!r}; change the recipe or the flag")

    @property
    def changes_base(self) -> bool:
        """Whether the start of the update matrices takes a part out of the base's weights."""
        return self.init_lora_weights.startswith(("pissa", "olora"))

    @property
    def prompt(self) -> PromptSettings:
        """The part that the protocol fingerprint covers."""
        return PromptSettings(
            num_fewshot=self.num_fewshot,
            apply_chat_template=self.apply_chat_template,
            fewshot_as_multiturn=self.fewshot_as_multiturn,
            system_instruction=self.system_instruction,
        )

    def learning_rate_for(self, parameters: int) -> float:
        """The peak rate: as set, else by model size, geometric between 135M and 1B parameters."""
        if self.learning_rate is not None:
            return self.learning_rate
        share = (math.log(parameters) - math.log(SMALL_MODEL)) / (math.log(LARGE_MODEL) - math.log(SMALL_MODEL))
        share = min(max(share, 0.0), 1.0)
        return float(SMALL_MODEL_RATE * (LARGE_MODEL_RATE / SMALL_MODEL_RATE) ** share)

    @property
    def task_name(self) -> str:
        """The task's name, also when it is given as the path of its YAML file."""
        return Path(self.task).stem if self.task.endswith((".yaml", ".yml")) else self.task

    @property
    def include_paths(self) -> tuple[str, ...]:
        """The folders with more tasks."""
        return (self.include_path,) if isinstance(self.include_path, str) else tuple(self.include_path or ())

    def for_card(self) -> dict[str, Any]:
        """The recipe without the places of this machine; of folders with more tasks, their names are kept."""
        values = {name: value for name, value in asdict(self).items() if name not in PLACES}
        folders = [Path(folder).expanduser().resolve().name for folder in self.include_paths]
        return {**values, "task": self.task_name, "include_path": folders or None}


def flag(name: str) -> str:
    """Flag of a recipe field.

    >>> flag("lora_rank")
    '--lora-rank'
    """
    return "--" + name.replace("_", "-")


def recipe_from(values: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """Make a recipe of plain values, as they come from YAML.

    Args:
        values: field name to value.
        source: where they come from, for messages.

    Raises:
        RecipeError: an unknown field (with the closest known one), a missing one, or a value of the wrong type.
    """
    known = {f.name: f for f in fields(Recipe)}
    if unknown := [name for name in values if name not in known]:
        raise RecipeError(
            f"{source}: unknown {unknown[0]!r}{suggest(unknown[0], known)}; `harness-ext train --help` lists all"
        )
    required = [name for name, f in known.items() if f.default is MISSING]
    if missing := [name for name in required if values.get(name) is None]:
        raise RecipeError(f"{source}: {missing[0]!r} is missing; set it there or as {flag(missing[0])}")
    hints = get_type_hints(Recipe)
    return Recipe(**{name: _checked(name, value, hints[name], source) for name, value in values.items()})


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Values of a recipe file, not checked yet, so that flags can complete them.

    Raises:
        RecipeError: no such file, no YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read ({error.strerror}); check the path") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path} is no YAML: {first_line(error)}; correct that line") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path} must be a mapping of fields to values; see adapters/sst2.yaml")
    return values


def from_text(name: str, text: str) -> Any:
    """Value of a recipe field given as text, as on the command line; its type is checked by `recipe_from`.

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
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _options(hint: Any) -> tuple[Any, ...]:
    """The types a field may have."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _checked(name: str, value: Any, hint: Any, source: str) -> Any:
    """Bring a value to its field's type, or say what is wrong with it."""
    options = _options(hint)
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option):
                return value
        elif get_origin(option) is list:
            if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
                return value
        elif option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):  # YAML reads 1e-3 as text
                if math.isfinite(float(value)):
                    return float(value)
        elif type(value) is option:
            return value
    allowed = " or ".join(_name(option) for option in options)
    raise RecipeError(f"{source}: {name} must be {allowed}, got {value!r}; correct it")


def _name(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(repr(value) for value in get_args(option))
    if get_origin(option) is list:
        return "a list of names"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "unset"}[option]


def with_values(recipe: Recipe, **changes: Any) -> Recipe:
    """A copy with some fields changed, checked again."""
    return replace(recipe, **changes)
