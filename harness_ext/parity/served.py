"""What is served: merged weights, a quantised base, a server, or another engine, all behind lm-eval's model interface.

```
merged │ 4bit │ FOLDER ──> `hf` in this process
vllm │ FILE.gguf │ URL ──> the hosts of `harness_ext.engine.engines`
```
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from harness_ext.engine.endpoint_host import CHAT, EndpointHost
from harness_ext.engine.engines import host_for
from harness_ext.engine.hosts import SCORED_KINDS, Host
from harness_ext.errors import ModelError, first_line, suggest
from harness_ext.models.adapters import is_adapter
from harness_ext.models.devices import choose_device, choose_dtype
from harness_ext.models.sources import resolve_model
from harness_ext.parity.reference import Reference, load_plain, merged
from harness_ext.protocol.lm_eval_api import HFLM, LM, ConfigurableTask, EvaluatorConfig, get_model

logger = logging.getLogger(__name__)

Kind = Literal["merged", "4bit", "folder", "vllm", "gguf", "endpoint"]
ENGINES = ("merged", "4bit", "vllm")
LLAMA_CPP = "llama-cpp"
USUAL = torch.bfloat16  # precision of engines that do not say theirs


@dataclass(frozen=True)
class Target:
    """What `--against` names.

    Args:
        kind: how it is served.
        place: a folder, file or URL; the kind itself for what is made here.
        dtype: in which it is served; None: what the engine chooses.
        name: of the model on a server; None: that of the adapter's folder.
        arguments: further model arguments of its engine.
    """

    kind: Kind
    place: str
    dtype: str | None = None
    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, against: str, **options: Any) -> Target:
        """Tell what is meant.

        Raises:
            ModelError: nothing of this name can be served.
        """
        path = Path(against).expanduser()
        if against in ENGINES:
            kind: Kind = against  # type: ignore[assignment]
        elif against.startswith(("http://", "https://")):
            kind = "endpoint"
        elif against.endswith(".gguf"):
            kind = "gguf"
            if not path.is_file():
                raise ModelError(f"there is no file {against}; check --against")
        elif path.is_dir():
            kind = "folder"
            if is_adapter(path):
                raise ModelError(
                    f"{against} holds an adapter; --against takes a folder of merged weights, or `merged` to merge here"
                )
        elif against == "gguf":
            raise ModelError("--against gguf needs the file: --against FILE.gguf")
        else:
            raise ModelError(
                f"--against {against!r} is no engine, folder or URL{suggest(against, ENGINES)}; use merged, 4bit, "
                "vllm, a folder of merged weights, FILE.gguf or http://HOST:PORT/v1/completions"
            )
        return cls(kind, against, **options)

    @property
    def engine(self) -> str:
        """lm-eval's model class for a server."""
        return CHAT if self.place.rstrip("/").endswith("/chat/completions") else "local-completions"


@dataclass(frozen=True)
class Served:
    """A model that answers as it is served."""

    lm: LM
    gives_scores: bool  # log-probabilities of prompts
    dtype: torch.dtype
    description: str
    local: HFLM | None = None  # the same, where its weights and tokenizer are in this process
    is_chat: bool = False  # it puts prompts into a chat template of its own


@contextmanager
def served(target: Target, reference: Reference, tasks: Sequence[ConfigurableTask]) -> Iterator[Served]:
    """Load or reach what is served; it answers within the block.

    Raises:
        NotAppliedError: its engine answers as the base.
        HarnessExtError: it is missing, cannot be loaded or reached, or its engine is not installed.
    """
    if target.kind in ("merged", "4bit", "folder"):
        yield _in_process(target, reference)
        return
    host, adapter = _host(target, reference)
    gives_scores = _load(host, tasks)
    variant = host.variants[-1] if adapter else host.variants[0]
    with host.active(variant):
        dtype = USUAL if target.dtype is None else choose_dtype(target.dtype, torch.device("cpu"))
        is_chat = target.kind == "endpoint" and target.engine == CHAT
        yield Served(host.lm, gives_scores, dtype, _description(target, dtype), is_chat=is_chat)


def _in_process(target: Target, reference: Reference) -> Served:
    device = choose_device(reference.device)
    dtype = choose_dtype(target.dtype, device) if target.dtype else reference.dtype
    if target.kind == "folder":
        folder = resolve_model(target.place)
        lm = load_plain(folder, dtype, reference.device, **target.arguments)
    elif target.kind == "merged":
        lm = reference.plain(dtype, **target.arguments)
        merged(lm, reference.folder)
    else:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError(
                "--against 4bit needs bitsandbytes, which is not installed; run `pip install bitsandbytes`"
            )
        how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": str(dtype).split(".")[-1]}
        lm = reference.plain(dtype, **how, **target.arguments)
    return Served(lm, True, dtype, _description(target, dtype), lm)


def _host(target: Target, reference: Reference) -> tuple[Host, bool]:
    """The engine's host, and whether it puts the adapter on by itself."""
    dtype = {"dtype": target.dtype} if target.dtype else {}
    if target.kind == "vllm":
        arguments = {"pretrained": reference.base, **dtype, **target.arguments}
        return host_for(EvaluatorConfig(model="vllm", model_args=arguments), [str(reference.folder)]), True
    if target.kind == "gguf":
        try:
            get_model(LLAMA_CPP)
        except ValueError as error:
            raise ModelError(
                f"--against FILE.gguf needs the engine {LLAMA_CPP}, which this version does not have; serve the file "
                "with llama-server, and name its URL"
            ) from error
        # a file of an adapter comes with that of its base among the arguments
        adapters = [target.place] if "pretrained" in target.arguments else []
        arguments = {"pretrained": target.place, **target.arguments}
        return host_for(EvaluatorConfig(model=LLAMA_CPP, model_args=arguments), adapters), bool(adapters)
    arguments = {
        "model": target.name or reference.folder.resolve().name,
        "base_url": target.place,
        **({} if target.engine == CHAT else {"tokenizer_backend": "huggingface", "tokenizer": reference.base}),
        **target.arguments,
    }
    # the adapter alone is asked, under its name: a server of merged weights knows no base
    return EndpointHost(EvaluatorConfig(model=target.engine, model_args=arguments), ()), False


def _load(host: Host, tasks: Sequence[ConfigurableTask]) -> bool:
    """Load an engine; returns whether it is known to give log-probabilities of prompts, which not every one does."""
    scores = any(task.OUTPUT_TYPE in SCORED_KINDS for task in tasks)
    try:
        host.load(list(tasks))
    except ModelError as error:
        if not scores:
            raise
        host.load([])  # raises again what is no matter of log-probabilities
        logger.warning("texts are compared instead of log-probabilities: %s", first_line(error))
        return False
    return scores


def _description(target: Target, dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    known = f" in {name}" if target.dtype or target.kind in ("merged", "4bit", "folder") else ""
    return f"{target.place}{known}"
