"""A logged run restored: its model with its adapter, and the settings under which its tasks were asked."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness_ext.engine.hosts import PeftHost
from harness_ext.engine.variants import Variant
from harness_ext.errors import InputError, ModelError
from harness_ext.models.devices import choose_device
from harness_ext.protocol.fewshot import DEFAULT_SEED
from harness_ext.protocol.lm_eval_api import HFLM, EvaluatorConfig, Task, get_model
from harness_ext.protocol.render import PromptSettings
from harness_ext.reading.files import read_text
from harness_ext.reading.json_input import parse_json
from harness_ext.results.file import date_of, read_payload
from harness_ext.results.load import SPEED_ARGUMENTS
from harness_ext.results.run import Run, TaskResult

ENGINE = "hf-tree"
NOT_ARGUMENTS = (*SPEED_ARGUMENTS, "device", "batch_size", "max_batch_size")
KEPT_ARGUMENTS = (  # of engines whose other arguments are their own
    "dtype", "revision", "tokenizer", "trust_remote_code", "add_bos_token", "max_length", "enable_thinking",
    "chat_template_args",
)  # fmt: skip
ROOM = 1.5  # memory that a model needs, times its weights


@dataclass(frozen=True)
class LoggedSettings:
    """How a task of a run was asked."""

    prompts: PromptSettings
    generation: Mapping[str, Any]  # generation_kwargs
    gen_kwargs: Mapping[str, Any]  # those of the command line


def logged_settings(result: TaskResult) -> LoggedSettings:
    """Read the settings of a task from the results file beside its samples."""
    payload = _payload(result)
    config = payload.get("config") or {}
    template = payload.get("chat_template") or config.get("apply_chat_template")
    seed = config.get("fewshot_seed")
    generation = result.config.get("generation_kwargs")
    prompts = PromptSettings(
        num_fewshot=result.n_shot,
        apply_chat_template=bool(template),
        fewshot_as_multiturn=bool(payload.get("fewshot_as_multiturn")) if template else None,
        system_instruction=payload.get("system_instruction") or None,
        fewshot_seed=seed if isinstance(seed, int) else DEFAULT_SEED,
    )
    gen_kwargs = config.get("gen_kwargs")
    return LoggedSettings(
        prompts,
        dict(generation) if isinstance(generation, Mapping) else {},
        dict(gen_kwargs) if isinstance(gen_kwargs, Mapping) else {},
    )


def _payload(result: TaskResult) -> Mapping[str, Any]:
    """The results file that was written with the samples; empty if it was renamed."""
    if result.samples_path is None:
        return {}
    date = date_of(result.samples_path)
    file = result.samples_path.with_name(f"results_{date}.json" if date else "results.json")
    return read_payload(file) if file.is_file() else {}


def model_arguments(run: Run) -> dict[str, Any]:
    """The model arguments with which this package's engine loads the model of a run.

    Raises:
        ModelError: the run names no model.
    """
    if run.base is None and run.adapter is None:
        raise ModelError(f"the results of {run.name} name no model")
    logged = dict(run.model_args)
    is_hf = _is_hf(str(run.config.get("model", "hf")))
    names = [name for name in logged if name not in NOT_ARGUMENTS] if is_hf else KEPT_ARGUMENTS
    arguments = {name: _value(logged[name]) for name in names if logged.get(name) not in (None, "")}
    named = {"pretrained": run.base, "peft": run.adapter}  # an adapter alone names its base
    return {**arguments, **{name: value for name, value in named.items() if value}}


def _value(logged: Any) -> Any:
    """A value of the logged text, as lm-eval reads it from the command line: a number, true or false, or a text."""
    if not isinstance(logged, str):
        return logged
    with contextlib.suppress(InputError):
        return parse_json(logged.lower() if logged.lower() in ("true", "false") else logged, place="model_args")
    return logged


def _is_hf(model: str) -> bool:
    try:
        return issubclass(get_model(model), HFLM)
    except Exception:  # of a registry that does not know the engine, or cannot import it
        return False


@dataclass
class Restored:
    """The model of a run, loaded and answering as the run's variant."""

    lm: HFLM
    variant: Variant
    base: str
    arguments: Mapping[str, Any]


@contextmanager
def restored(
    run: Run, tasks: Sequence[Task], *, chat: bool = False, changed: Mapping[str, Any] | None = None
) -> Iterator[Restored]:
    """Load the model of a run and let it answer as the run's variant.

    Args:
        run: as logged.
        tasks: give prompts on which base and adapter are told apart.
        chat: the run used a chat template.
        changed: model arguments other than those of the run.

    Raises:
        HarnessExtError: a model or adapter that is missing here, damaged, too large for this machine's memory, or that
            runs code of its own, which results from elsewhere could name.
    """
    arguments = {**model_arguments(run), **(changed or {})}
    if arguments.get("trust_remote_code"):
        raise ModelError(f"{run.base} needs trust_remote_code, and a replay runs no code that results name")
    logged = str(run.config.get("model", ENGINE))
    config = EvaluatorConfig(
        model=logged if _is_hf(logged) and logged not in ("hf", "huggingface", "hf-auto") else ENGINE,
        model_args=dict(arguments),
        tasks=[task.task_name for task in tasks],
        apply_chat_template=chat,
    )
    host = PeftHost(config)
    _check_memory(host.base, str(arguments.get("dtype", "auto")))
    host.load(list(tasks))
    assert host.hf is not None
    variant = host.variants[-1]
    with host.active(variant):
        yield Restored(host.hf, variant, host.base, arguments)


def _check_memory(base: str, dtype: str) -> None:
    """Raise ModelError when a model's weights do not fit into the memory that is free."""
    files = [file for pattern in ("*.safetensors", "*.bin") for file in Path(base).glob(pattern)]
    free = _free_memory()
    stored = sum(file.stat().st_size for file in files)
    needed = ROOM * stored * (2 if dtype.endswith("float32") and _is_stored_in_half(base) else 1)
    if free is not None and needed > free:
        raise ModelError(
            f"{base} needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free: it cannot be "
            "asked again on this machine"
        )


def _is_stored_in_half(base: str) -> bool:
    config = Path(base) / "config.json"
    text = read_text(config) if config.is_file() else ""
    return re.search(r'"(?:torch_)?dtype":\s*"(?:b?float16)"', text) is not None


def _free_memory() -> int | None:
    """Bytes that are free on the device; None if that cannot be told."""
    if choose_device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    if sys.platform != "linux":
        return None
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
