"""Tiny random models, one builder for each architecture named in `cases.ARCHITECTURES`."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from differential.cases import ROPE_RANGE, Case

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
GPT_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = 20  # tokens: shorter than most prompts with their answer

# name: (configuration class, what differs from SIZES)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES),
    "qwen2": ("Qwen2", SIZES),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 8}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": None}),
    "mistral-window": ("Mistral", {**SIZES, "sliding_window": WINDOW}),
    "gemma2": ("Gemma2", {**SIZES, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3Text", {
        **SIZES, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt2": ("GPT2", GPT_SIZES),
    "gpt-neox": ("GPTNeoX", SIZES),
    "phi": ("Phi", SIZES),
    "phi3": ("Phi3", SIZES),
    "opt": ("OPT", {
        "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 512, "word_embed_proj_dim": 32}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("Falcon", {**SIZES, "alibi": False}),
    "falcon-alibi": ("Falcon", {**SIZES, "alibi": True}),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 512}),
    "mixtral": ("Mixtral", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": ("Qwen2Moe", {**SIZES, **MOE, "shared_expert_intermediate_size": 32}),
    "granite": ("Granite", SIZES),
    "olmo2": ("Olmo2", SIZES),
    "cohere": ("Cohere", {**SIZES, "logit_scale": 1.0}),
    "cohere2": ("Cohere2", {**SIZES, "head_dim": 8, "sliding_window": WINDOW, "logit_scale": 1.0}),
    "gptj": ("GPTJ", {**GPT_SIZES, "rotary_dim": 4}),
    "gpt-bigcode": ("GPTBigCode", GPT_SIZES),
    "stablelm": ("StableLm", SIZES),
    "starcoder2": ("Starcoder2", SIZES),
    "smollm3": ("SmolLM3", SIZES),
    "llama4-chunks": ("Llama4Text", {
        **SIZES, "head_dim": 8, "attention_chunk_size": WINDOW, "num_local_experts": 2, "intermediate_size_mlp": 64,
        "num_experts_per_tok": 1, "use_qk_norm": False}),
    "gpt-oss": ("GptOss", {**SIZES, "head_dim": 8, "sliding_window": WINDOW, "num_local_experts": 4,
                           "num_experts_per_tok": 2}),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "mamba2": ("Mamba2", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "num_heads": 8, "head_dim": 8,
                          "n_groups": 2, "chunk_size": 16}),
    "lfm2": ("Lfm2", {**SIZES, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "qwen3-next": ("Qwen3Next", {
        **SIZES, **MOE, "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"]}),
    "t5": ("T5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
    "bart": ("Bart", {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 512}),
}  # fmt: skip
ENCODER_DECODERS = ("t5", "bart")
BYTE_IDS = slice(5, 260)  # about: tokens of one byte come up less often than words and their beginnings
RECURRENT_SHAPES = ("A_log", "conv1d", "dt_bias", "dt_proj", ".D")


def make_model(case: Case, tokenizer: Any) -> Any:
    """A model with random weights, large enough that answers depend on the input."""
    name, sizes = CONFIGS[case.architecture]
    config = getattr(transformers, f"{name}Config")(
        **{**copy.deepcopy(sizes), **_rope(case)},
        vocab_size=len(tokenizer) + case.padding_rows,
        tie_word_embeddings=case.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({"decoder_start_token_id": tokenizer.pad_token_id} if case.architecture in ENCODER_DECODERS else {}),
    )
    torch.manual_seed(case.seed)
    model = auto_class(case.architecture).from_config(config).eval()
    _enlarge(model, scale=1.5 if case.architecture == "t5" else 8.0)
    model.get_output_embeddings().weight.data[BYTE_IDS] *= 0.4
    return model


def _rope(case: Case) -> dict[str, Any]:
    """How positions beyond ROPE_RANGE, on which the model is said to be trained, are embedded."""
    if case.rope == "default":
        return {}
    values: dict[str, Any] = {"rope_type": case.rope, "rope_theta": 1e4, "factor": 2.0}
    sizes = {"original_max_position_embeddings": ROPE_RANGE}
    if case.rope == "longrope":
        values |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    elif case.rope == "llama3":
        values |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if case.rope == "dynamic":
        sizes = {"max_position_embeddings": ROPE_RANGE}
    else:
        values |= sizes
    if case.architecture == "gemma3":
        values = {"full_attention": values, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    own = case.rope == "dynamic" or case.architecture == "phi3"  # phi3's configuration says it in a place of its own
    return {"rope_parameters": values, **(sizes if own else {})}


def auto_class(architecture: str) -> Any:
    """transformers' class for loading it."""
    encoder_decoder = architecture in ENCODER_DECODERS
    return transformers.AutoModelForSeq2SeqLM if encoder_decoder else transformers.AutoModelForCausalLM


@torch.no_grad()
def _enlarge(model: Any, *, scale: float) -> None:
    """Scale matrices and move biases and norms off their zeros and ones."""
    for name, parameter in model.named_parameters():
        if any(shape in name for shape in RECURRENT_SHAPES):
            continue
        if parameter.dim() > 1:
            parameter.mul_(scale)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)


def save_model(model: Any, tokenizer: Any, folder: Path, generation_config: Mapping[str, Any]) -> None:
    """Write a model folder, and what its author put into generation_config.json."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if generation_config:
        file = folder / "generation_config.json"
        written = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps({**written, **generation_config}), encoding="utf-8")
