"""Settings that change token ids, read from model arguments; and tokenizers that append a token to every text."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from lm_eval.models.huggingface import HFLM

from harness_ext.check.tokens import encoder
from harness_ext.errors import ModelError
from harness_ext.protocol.token_settings import (
    TOKEN_SETTINGS,
    appended_tokens,
    check_appends_nothing,
    is_token_setting,
    token_settings,
)

# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_args", "expected"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        ("pretrained=org/m,dtype=float32,trust_remote_code=True,parallelize=True,peft=a", {}),
        ("pretrained=org/m,add_bos_token=True", {"add_bos_token": "True"}),
        ({"pretrained": "org/m", "add_bos_token": True}, {"add_bos_token": "True"}),
        ({"add_bos_token": "true"}, {"add_bos_token": "True"}),
        ({"add_bos_token": False}, {"add_bos_token": "False"}),  # not the same as leaving it to the tokenizer
        ({"add_bos_token": None}, {}),
        ({"add_bos_token": "None"}, {}),
        ({"max_length": 512}, {"max_length": "512"}),
        ("max_length=512", {"max_length": "512"}),
        ({"max_model_len": 512}, {"max_length": "512"}),
        ({"revision": "main"}, {}),
        ({"revision": "abc"}, {"revision": "abc"}),
        ({"subfolder": ""}, {}),
        ({"truncation": False}, {}),
        ({"truncation": "True"}, {"truncation": "True"}),
        ({"prefix_token_id": 0}, {"prefix_token_id": "0"}),
        ({"think_end_token": 7}, {"think_end_token": "7"}),
        ("think_end_token=</think>", {"think_end_token": "</think>"}),
        ({"enable_thinking": False}, {"enable_thinking": "False"}),
        ({"chat_template_args": {}}, {}),
        ({"chat_template_args": {"b": 1, "a": 2}}, {"chat_template_args": '{"a": 2, "b": 1}'}),
        ({"chat_template_args": '{"b": 1, "a": 2}'}, {"chat_template_args": '{"a": 2, "b": 1}'}),
        ({"chat_template_args": {"enable_thinking": True}}, {"enable_thinking": "True"}),
        (
            {"chat_template_args": {"enable_thinking": True, "a": 2}, "enable_thinking": "False"},
            {
                "chat_template_args": '{"a": 2}',
                "enable_thinking": "False",
            },  # as in lm-eval, the separate argument takes precedence
        ),
        ({"load_in_4bit": True, "load_in_8bit": "False"}, {"load_in_4bit": "True"}),
        ({"bnb_4bit_quant_type": "nf4"}, {"bnb_4bit_quant_type": "nf4"}),
        ({"bnb_4bit_compute_dtype": "torch.bfloat16"}, {"bnb_4bit_compute_dtype": "bfloat16"}),
        ({"bnb_4bit_use_double_quant": False}, {}),
        ({"gptqmodel": False, "autogptq": True}, {"autogptq": "True"}),
        ({"gguf_file": "m-Q4.gguf"}, {"gguf_file": "m-Q4.gguf"}),
        ({"softmax_dtype": "float32"}, {"softmax_dtype": "float32"}),
        ({"mixed_precision_dtype": "bfloat16"}, {"mixed_precision_dtype": "bfloat16"}),
        ({"use_fast_tokenizer": True}, {}),
        ({"use_fast_tokenizer": False}, {"use_fast_tokenizer": "False"}),
        ("pretrained=org/m,tokenizer=org/m", {}),
        ("pretrained=models/m,tokenizer=./models/m/", {}),
        ("model=org/m,tokenizer=org/m", {}),
        ("pretrained=org/m,tokenizer=org/t", {"tokenizer": "org/t"}),
        ({"tokenizer": None}, {}),
    ],
)
def test_what_counts_and_what_is_the_same(model_args: Any, expected: dict[str, str]) -> None:
    assert token_settings(model_args) == expected


def test_every_setting_is_an_argument_of_hf_or_of_a_quantiser() -> None:
    """Fails if lm-eval drops or renames an argument."""
    known = set(inspect.signature(HFLM.__init__).parameters)
    elsewhere = {"load_in_4bit", "load_in_8bit", "quantization", "quantization_config", "tokenizer_revision"}
    assert set(TOKEN_SETTINGS) - elsewhere <= known
    assert all(map(is_token_setting, (*TOKEN_SETTINGS, "bnb_4bit_quant_type", "llm_int8_threshold")))
    assert not any(map(is_token_setting, ("reason", "dtype", "pretrained", "batch_size")))


# -- tokenizers --------------------------------------------------------------------------------------------------------


def byte_level(template: str | None, *, extra: tuple[str, ...] = ()) -> transformers.PreTrainedTokenizerFast:
    special = ["<s>", "</s>", "<pad>", *extra]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(bpe, template, special, tokenizers.pre_tokenizers.ByteLevel.alphabet())


def sentencepiece_like(template: str | None) -> transformers.PreTrainedTokenizerFast:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    return _trained(bpe, template, ["<unk>", "<s>", "</s>", "<pad>"], [])


def words(template: str | None) -> transformers.PreTrainedTokenizerFast:
    """A tiny vocabulary: every text becomes unknown tokens."""
    level = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    level.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return _wrapped(level, template)


def _trained(
    bpe: tokenizers.Tokenizer, template: str | None, special: list[str], alphabet: list[str]
) -> transformers.PreTrainedTokenizerFast:
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["The sky is blue and the sea is deep"] * 4, trainer)
    return _wrapped(bpe, template)


def _wrapped(raw: tokenizers.Tokenizer, template: str | None) -> transformers.PreTrainedTokenizerFast:
    if template:
        ids = [(token, raw.token_to_id(token)) for token in template.split() if raw.token_to_id(token) is not None]
        raw.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=ids)
    unknown = {"unk_token": "<unk>"} if raw.token_to_id("<unk>") is not None else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", **unknown)


KINDS = {"byte level": byte_level, "sentencepiece": sentencepiece_like, "words": words}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, []),
        ("<s> $A", []),
        ("$A </s>", ["</s>"]),
        ("<s> $A </s>", ["</s>"]),
        ("</s> $A", []),  # OPT begins texts with its end token
        ("</s> $A </s>", ["</s>"]),
        ("$A <s> </s>", ["<s>", "</s>"]),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_post_processor_appends(kind: str, template: str | None, expected: list[str]) -> None:
    tokenizer = KINDS[kind](template)
    assert appended_tokens(tokenizer) == expected
    assert appended_tokens(tokenizer, add_bos_token=True) == expected
    assert appended_tokens(tokenizer, add_bos_token=False) == []  # lm-eval then adds no special tokens


def test_a_separator_that_is_no_special_token_of_the_tokenizer() -> None:
    tokenizer = byte_level("$A <sep>", extra=("<sep>",))
    assert "<sep>" not in tokenizer.all_special_tokens
    assert appended_tokens(tokenizer) == ["<sep>"]


def test_llama_tokenizers_say_it_in_their_settings() -> None:
    vocabulary = {token: number for number, token in enumerate(("<unk>", "<s>", "</s>", "▁", "T", "h", "e", "s", "k"))}
    make: Callable[..., Any] = transformers.LlamaTokenizer
    assert appended_tokens(make(vocab=vocabulary, merges=[], add_bos_token=True, add_eos_token=True)) == ["</s>"]
    assert appended_tokens(make(vocab=vocabulary, merges=[], add_bos_token=True, add_eos_token=False)) == []


def test_a_tokenizer_that_appends_whatever_it_is_asked() -> None:
    class Stubborn:
        all_special_ids, unk_token_id = [0, 1], None

        def encode(self, text: str, **_: Any) -> list[int]:
            return [0, *(ord(letter) for letter in text), 1]

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [{1: "</s>"}[number] for number in ids]

    assert appended_tokens(Stubborn()) == ["</s>"]
    assert appended_tokens(Stubborn(), add_bos_token=False) == ["</s>"]


def test_it_is_refused_by_name_with_what_to_change() -> None:
    check_appends_nothing(byte_level("<s> $A"), "org/sound")
    with pytest.raises(ModelError) as caught:
        check_appends_nothing(byte_level("<s> $A </s>"), "org/model")
    for part in ("org/model", "</s>", "add_eos_token", "tokenizer_config.json", "post_processor"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_remedy_that_is_named_works(tmp_path: Path) -> None:
    byte_level("<s> $A </s>").save_pretrained(tmp_path)
    assert appended_tokens(transformers.AutoTokenizer.from_pretrained(tmp_path)) == ["</s>"]
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text())
    values["post_processor"]["single"].pop()
    file.write_text(json.dumps(values))
    assert appended_tokens(transformers.AutoTokenizer.from_pretrained(tmp_path)) == []


def test_the_remedy_without_tokenizer_json_works(tmp_path: Path) -> None:
    byte_level(None).save_pretrained(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])))
    for adds in (True, False):
        values = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_eos_token": adds}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert appended_tokens(tokenizer) == (["</s>"] if adds else [])


# -- check --model -----------------------------------------------------------------------------------------------------


def test_check_refuses_such_a_tokenizer(tmp_path: Path) -> None:
    byte_level("<s> $A </s>").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"appends </s> to every text"):
        encoder(str(tmp_path))


def test_an_encoder_decoder_ends_its_input_rightly(tmp_path: Path) -> None:
    byte_level("$A </s>").save_pretrained(tmp_path)
    transformers.T5Config(vocab_size=400, d_model=8, num_layers=1, num_heads=1).save_pretrained(tmp_path)
    assert list(encoder(str(tmp_path))("sky"))
