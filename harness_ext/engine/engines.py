"""Which engine answers for which `--model`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness_ext.engine.endpoint_host import EndpointHost
from harness_ext.engine.hosts import ArgumentsHost, Host, PeftHost
from harness_ext.engine.llama_cpp_host import LlamaCppHost
from harness_ext.engine.vllm_host import VllmHost
from harness_ext.errors import ModelError
from harness_ext.protocol.lm_eval_api import HFLM, EvaluatorConfig, RemoteLM, get_model


def host_for(config: EvaluatorConfig, adapters: Sequence[str | Path] = ()) -> Host:
    """The host of a config's model class; nothing is loaded yet.

    Raises:
        HarnessExtError: an adapter that is missing or damaged, no base, or an engine that cannot switch adapters.
    """
    kind = get_model(config.model)
    if issubclass(kind, HFLM):
        return PeftHost(config, adapters)
    if config.model == "llama-cpp":
        return LlamaCppHost(config, adapters)
    if not adapters:
        return ArgumentsHost(config)
    if config.model == "vllm":
        return VllmHost(config, adapters)
    if issubclass(kind, RemoteLM):
        return EndpointHost(config, adapters)
    raise ModelError(
        f"{config.model} cannot switch adapters; use hf-tree, hf, vllm, llama-cpp or an endpoint, or give it one "
        "adapter in --model_args"
    )
