"""Adapters of every kind, made and saved by peft, with random weights that change answers."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from differential.cases import ADDED, AdapterCase
from differential.tokenizer_kinds import PLAIN_TEMPLATE

RESIZING = ("added-tokens", "added-tokens-modules", "added-tokens-no-template")
WITHOUT_TEMPLATE = ("no-template", "added-tokens-no-template")
SAVES_EMBEDDING = ("save-embedding", "modules-to-save", "embedding-lora", "head-lora")
UNFIT_FOR_MAMBA = {"out_proj", "conv1d"}  # peft refuses them
FUSED = ("gate_proj", "up_proj")
Maker = Callable[["_Around"], Any]  # what an adapter is made around -> its configuration


class _Around:
    """A base model as an adapter sees it: which of its layers can be targeted."""

    def __init__(self, model: Any, tokenizer: Any, rng: random.Random, task_type: str) -> None:
        self.model, self.tokenizer, self.rng = model, tokenizer, rng
        self.common = {"task_type": task_type}
        self.embedding = _name_of(model, model.get_input_embeddings())
        self.head = _name_of(model, model.get_output_embeddings())
        linear = {_last(name) for name, each in model.named_modules() if isinstance(each, (torch.nn.Linear, Conv1D))}
        unfit = UNFIT_FOR_MAMBA if "mamba" in model.config.model_type else set()
        self.linear = sorted(linear - {_last(self.head), "gate", "router"} - unfit)

    def targets(self, most: int = 3) -> list[str]:
        drawn = self.rng.sample(self.linear, min(len(self.linear), self.rng.randint(1, most)))
        fused = [name for name in FUSED if name in self.linear]  # in mixtures of experts, one needs the other
        return [*drawn, *(name for name in fused if name not in drawn)] if set(drawn) & set(FUSED) else drawn

    def lora(self, **options: Any) -> Any:
        rank = self.rng.choice((1, 4, 8))
        values = {"r": rank, "lora_alpha": self.rng.choice((4, 16)), "target_modules": self.targets(), **options}
        return peft.LoraConfig(**self.common, **values)

    def length(self) -> int:
        """Of a learned prompt."""
        return self.rng.randint(1, 6)

    def tokens(self, count: int) -> list[int]:
        return sorted(self.rng.sample(range(5, 370), count))


def _name_of(model: Any, module: Any) -> str:
    return next(name for name, each in model.named_modules() if each is module)


def _kind(name: str, /, **options: Any) -> Maker:
    """A tuner on some linear layers."""
    return lambda around: getattr(peft, f"{name}Config")(**around.common, target_modules=around.targets(), **options)


def _last(name: str) -> str:
    return name.split(".")[-1]


def _ia3(around: _Around) -> Any:
    targets = around.targets()
    return peft.IA3Config(**around.common, target_modules=targets, feedforward_modules=targets[:1])


MAKERS: dict[str, Maker] = {
    "lora": lambda around: around.lora(),
    "zero": lambda around: around.lora(),
    "torch-file": lambda around: around.lora(),
    "added-tokens": lambda around: around.lora(),
    "added-tokens-no-template": lambda around: around.lora(),
    "own-template": lambda around: around.lora(),
    "no-template": lambda around: around.lora(),
    "shadow": lambda around: peft.ShadowConfig(**around.common, r=4, shadow_num_hidden_layers=1, shadow_alpha=1.0),
    "save-embedding": lambda around: around.lora(),
    "rslora": lambda around: around.lora(use_rslora=True),
    "dora": lambda around: around.lora(use_dora=True),
    "bias-all": lambda around: around.lora(bias="all"),
    "bias-lora-only": lambda around: around.lora(bias="lora_only"),
    "modules-to-save": lambda around: around.lora(
        modules_to_save=[_last(around.rng.choice((around.head, around.embedding)))]
    ),
    "added-tokens-modules": lambda around: around.lora(modules_to_save=[_last(around.head), _last(around.embedding)]),
    "trainable-tokens": lambda around: around.lora(trainable_token_indices=around.tokens(6)),
    "trainable-tokens-alone": lambda around: peft.TrainableTokensConfig(
        **around.common, token_indices=around.tokens(40), target_modules=[_last(around.embedding)]
    ),
    "embedding-lora": lambda around: around.lora(target_modules=[*around.targets(), _last(around.embedding)]),
    "head-lora": lambda around: around.lora(target_modules=[*around.targets(), _last(around.head)]),
    "pissa": lambda around: around.lora(init_lora_weights="pissa"),
    "olora": lambda around: around.lora(init_lora_weights="olora"),
    "rank-pattern": lambda around: around.lora(
        rank_pattern={around.linear[0]: 3}, alpha_pattern={around.linear[0]: 32}, target_modules=around.linear
    ),
    "some-layers": lambda around: around.lora(layers_to_transform=[1]),
    "expert-lora": lambda around: around.lora(
        target_modules=around.targets(), target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    ),
    "ia3": _ia3,
    "loha": _kind("LoHa", r=4),
    "lokr": _kind("LoKr", r=4),
    "vera": lambda around: peft.VeraConfig(
        **around.common, r=4, target_modules=around.targets(1), projection_prng_key=around.rng.randrange(1000)
    ),
    "oft": _kind("OFT", oft_block_size=8),
    "boft": _kind("BOFT", boft_block_size=8),
    "adalora": _kind("AdaLora", init_r=4, target_r=2, total_step=10),
    "ln-tuning": lambda around: peft.LNTuningConfig(**around.common, target_modules=_norms(around)),
    "fourierft": _kind("FourierFT", n_frequency=50, scaling=30.0),
    "hra": _kind("HRA", r=4),
    "miss": _kind("Miss", r=4),
    "randlora": _kind("RandLora", r=4),
    "shira": _kind("Shira", r=4),
    "c3a": _kind("C3A", block_size=8),
    "road": _kind("Road", group_size=8),
    "vblora": _kind("VBLoRA", r=2, num_vectors=16, vector_length=8, topk=2),
    "prefix-tuning": lambda around: peft.PrefixTuningConfig(**around.common, num_virtual_tokens=around.length()),
    "prompt-tuning": lambda around: peft.PromptTuningConfig(**around.common, num_virtual_tokens=around.length()),
    "p-tuning": lambda around: peft.PromptEncoderConfig(**around.common, num_virtual_tokens=3, encoder_hidden_size=16),
    "alora": lambda around: around.lora(
        alora_invocation_tokens=around.tokenizer.encode(around.rng.choice((" Answer", " :")), add_special_tokens=False)
    ),
}  # fmt: skip


def _norms(around: _Around) -> list[str]:
    names = {_last(name) for name, module in around.model.named_modules() if "norm" in type(module).__name__.lower()}
    return sorted(names)


def save_adapter(case: AdapterCase, model: Any, tokenizer: Any, folder: Path, *, task_type: str) -> str:
    """Write an adapter for a model; the model stays as it is.

    Returns:
        Its kind: plain LoRA where peft cannot make the wanted one for this model.
    """
    try:
        _save(case, model, tokenizer, folder, task_type=task_type)
    except Exception:
        _save(AdapterCase("lora", case.seed), model, tokenizer, folder, task_type=task_type)
        return "lora"
    return case.kind


def _save(case: AdapterCase, model: Any, tokenizer: Any, folder: Path, *, task_type: str) -> None:
    torch.manual_seed(case.seed)
    base, own_tokenizer = copy.deepcopy(model), _own_tokenizer(case.kind, tokenizer)
    if case.kind in RESIZING:
        base.resize_token_embeddings(len(own_tokenizer), mean_resizing=False)
    elif case.kind in SAVES_EMBEDDING and case.seed % 4:  # else `hf`, which resizes a padded embedding, cannot load it
        base.resize_token_embeddings(len(tokenizer))
    around = _Around(base, own_tokenizer or tokenizer, random.Random(case.seed), task_type)
    wrapped = peft.get_peft_model(base, MAKERS[case.kind](around))
    if case.kind != "zero":
        _perturb(wrapped)
    if case.kind == "save-embedding":
        base.get_input_embeddings().weight.data.add_(torch.randn_like(base.get_input_embeddings().weight) * 0.1)
    saved = case.kind in ("added-tokens", "added-tokens-no-template", "save-embedding")
    embedding = {"save_embedding_layers": True} if saved else {}
    wrapped.save_pretrained(str(folder), **embedding)
    if own_tokenizer is not None:
        if case.kind == "added-tokens-no-template":  # `hf` needs the template beside the tokens
            own_tokenizer.save_pretrained(for_stock(folder))
        if case.kind in WITHOUT_TEMPLATE:
            own_tokenizer.chat_template = None
        own_tokenizer.save_pretrained(folder)
    if case.kind == "torch-file":
        weights = folder / "adapter_model.safetensors"
        torch.save(load_file(weights), folder / "adapter_model.bin")
        weights.unlink()


def for_stock(folder: Path) -> Path:
    """Where the tokenizer lies that `hf` is given for an adapter, if it is another than that in its folder."""
    return folder.with_name(f"{folder.name}-tokenizer")


@torch.no_grad()
def _perturb(wrapped: Any) -> None:
    for parameter in wrapped.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def _own_tokenizer(kind: str, tokenizer: Any) -> Any:
    """The tokenizer that is saved beside an adapter, where one is."""
    if kind not in (*RESIZING, "own-template", "no-template"):
        return None
    own = copy.deepcopy(tokenizer)
    if kind == "own-template":
        own.chat_template = PLAIN_TEMPLATE.replace("assistant", "model")
    elif kind in RESIZING:
        own.add_special_tokens({"additional_special_tokens": [*tokenizer.all_special_tokens[3:], *ADDED]})
    return own
