"""Evaluate from a response store alone: tokenizers and digests are read, weights are not loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from harness_ext.engine.adapter_switch import TokenizerSwitch
from harness_ext.engine.answer_hook import GenerationRecord, RequestKey
from harness_ext.engine.content import ModelContent
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.hosts import PeftHost, load_base
from harness_ext.engine.store import ResponseStore, StoredModel
from harness_ext.engine.variants import Variant
from harness_ext.errors import ModelError, StoreError
from harness_ext.protocol.lm_eval_api import HFLM, EvaluatorConfig, Task, get_model


class TokenizerLM(HFLM):
    """lm-eval's `hf` with a tokenizer and no weights: it encodes, and a response store answers for it.

    Args:
        arguments: of `hf`; those of `hf-tree` that are about computing are accepted.
    """

    def __init__(
        self, *args: Any, pack_tokens: Any = None, cache_tokens: Any = None, merge: Any = None, **kwargs: Any
    ) -> None:
        del pack_tokens, cache_tokens, merge
        super().__init__(*args, **kwargs)
        self.generation_records: dict[RequestKey, list[GenerationRecord]] = {}
        self.model_info: dict[str, Any] = {}  # of the model that gave the answers

    def _create_model(self, *_: Any, trust_remote_code: bool | None = False, **__: Any) -> None:
        with torch.device("meta"):  # shapes, and no memory for them
            self._model = self.AUTO_MODEL_CLASS.from_config(self.config, trust_remote_code=bool(trust_remote_code))

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval noted of the model when it answered."""
        return dict(self.model_info)


class StoreHost(PeftHost):
    """The variants of a `PeftHost`, whose answers all come from a store."""

    def __init__(self, config: EvaluatorConfig, adapters: Sequence[str | Path] = ()) -> None:
        if get_model(config.model) not in (HFLM, TreeLM):
            raise ModelError(f"--from-store reads answers of --model hf and hf-tree, not of {config.model}")
        super().__init__(config, adapters)

    def load(self, _tasks: Sequence[Task]) -> None:
        """Load the base's tokenizer and configuration."""
        config = self._config
        self.hf = self.lm = load_base(TokenizerLM, config, self.base)
        self._use_switch(
            TokenizerSwitch(
                self.lm,
                self.base,
                model_args=config.model_args,
                uses_chat_template=bool(config.apply_chat_template),
            )
        )

    def active(self, variant: Variant) -> AbstractContextManager[Mapping[str, str]]:
        """See `TokenizerSwitch.active`."""
        return self._switch.active(variant)


def stored_as(store: ResponseStore, content: ModelContent, name: str, *, remedy: str) -> tuple[bytes, StoredModel]:
    """The model of a store that a variant is: digest, and what is known of it.

    Its answers may have been computed on another device than this machine has, if on one only.

    Args:
        store: the store.
        content: of the variant.
        name: of the variant.
        remedy: what to do where it has none.

    Raises:
        StoreError: it has none; the message names what differs in the model that is most like it.
    """
    models = store.models()
    if content.digest in models:
        return content.digest, models[content.digest]
    elsewhere = [digest for digest, model in models.items() if content.differences(model.parts) == ["device"]]
    if len(elsewhere) == 1:
        return elsewhere[0], models[elsewhere[0]]
    if not models:
        raise StoreError(f"{store.path} has no answers at all; {remedy}")
    differences = min((content.differences(model.parts) for model in models.values()), key=len)
    raise StoreError(
        f"{store.path} has no answers of {name}: those that come closest differ in {', '.join(differences)}; {remedy}"
    )
