"""Tiny Llama models and LoRA adapters as GGUF files, as llama.cpp's converters write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, TokenType
from safetensors.numpy import load_file

NAMES = {  # of matrices, in a folder of transformers and in a GGUF file
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_base(folder: Path, path: Path, *, name: str = "Tiny 1M Instruct", **changes: Any) -> Path:
    """Convert a tiny Llama; changes: of its config.json, for the metadata only."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    writer = GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(0)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(10000.0)
    _add_vocabulary(writer, folder)
    tensors = load_file(folder / "model.safetensors")
    for tensor, values in tensors.items():
        writer.add_tensor(f"{_gguf_name(tensor)}.weight", _permuted(tensor, values, config).astype(np.float32))
    return _written(writer, path)


def write_lora(
    adapter: Path, base: Path, path: Path, *, architecture: str = "llama", of: str = "Tiny 1M Instruct"
) -> Path:
    """Convert an adapter of peft; base: the folder of its tiny Llama."""
    config = json.loads((base / "config.json").read_text())
    settings = json.loads((adapter / "adapter_config.json").read_text())
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(settings["lora_alpha"]))
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, of)
    for tensor, values in load_file(adapter / "adapter_model.safetensors").items():
        matrix, _, side = tensor.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        rows = _permuted(matrix, values, config) if side == "B" else values
        writer.add_tensor(f"{_gguf_name(matrix)}.weight.lora_{side.lower()}", rows.astype(np.float32))
    return _written(writer, path)


def _add_vocabulary(writer: GGUFWriter, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {each["content"] for each in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocabulary["<s>"])
    writer.add_eos_token_id(vocabulary["</s>"])
    writer.add_pad_token_id(vocabulary["<pad>"])
    writer.add_add_bos_token(True)
    template = folder / "chat_template.jinja"
    writer.add_chat_template(template.read_text())


def _gguf_name(tensor: str) -> str:
    tensor = tensor.removesuffix(".weight").removeprefix("model.")
    if not tensor.startswith("layers."):
        return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[tensor]
    _, number, name = tensor.split(".", 2)
    return f"blk.{number}.{NAMES[name]}"


def _permuted(tensor: str, values: Any, config: dict[str, Any]) -> Any:
    """Rows of queries and keys in llama.cpp's order: it turns pairs of neighbours, transformers halves."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    number = next((count for name, count in heads.items() if name in tensor), None)
    if number is None:
        return values
    return values.reshape(number, 2, len(values) // number // 2, -1).swapaxes(1, 2).reshape(values.shape)


def _written(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
