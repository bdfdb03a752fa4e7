"""Tokenizers trained on the spot: byte-level BPE with and without a begin token, and two with metaspace."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from differential.cases import APPENDS_EOS, SPECIAL

_TEXT = (
    "The river runs past an old mill . Who built the bridge ? Question Answer Passage Review positive negative "
    "Paris Berlin London one two three four five six seven eight nine ten red green blue"
)
WORDS = tuple(_TEXT.split())
BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
VOCABULARY = 400
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN_TEMPLATE
)
TEMPLATES = {"none": None, "plain": PLAIN_TEMPLATE, "strict": STRICT_TEMPLATE}


def make_tokenizer(kind: str, chat_template: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of a kind named in `cases.TOKENIZERS`, with one of `TEMPLATES`."""
    bos = None if kind == "bpe" else BOS
    tokenizer = tokenizers.Tokenizer.from_str(_trained(kind))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=None if kind.startswith("bpe") or kind == APPENDS_EOS else UNKNOWN,
        extra_special_tokens=list(SPECIAL),
        chat_template=TEMPLATES[chat_template],
        model_max_length=100,  # for `truncation`
    )


@lru_cache(maxsize=16)
def _trained(kind: str) -> str:
    makers = {"unigram": _unigram, "metaspace-bpe": _metaspace_bpe}
    tokenizer = makers.get(kind, _byte_level)()
    templates = {
        "bpe-adds-bos": f"{BOS} $A", "unigram": f"{BOS} $A", "metaspace-bpe": f"{BOS} $A",
        APPENDS_EOS: f"{BOS} $A {EOS}",
    }  # fmt: skip
    if single := templates.get(kind):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=f"{single} $B",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)],
        )
    return tokenizer.to_str()


def _special(*more: str) -> list[str]:
    return [BOS, EOS, PAD, *more, *SPECIAL]


def _byte_level() -> Any:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_special(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return tokenizer


def _metaspace(tokenizer: Any) -> None:
    """As Llama 2 has it: a space in front, spaces as ▁, unknown characters as bytes."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def _pieces() -> list[str]:
    """Words, their beginnings and single characters."""
    beginnings = {f"▁{word[:length]}" for word in WORDS for length in (1, 2, 3, len(word))}
    return sorted(beginnings | {character for word in WORDS for character in word} | {"▁", "\n", ":", "er", "ed", "th"})


def _bytes() -> list[str]:
    return [f"<0x{value:02X}>" for value in range(256)]


def _unigram() -> Any:
    scores = [(token, 0.0) for token in (*_special(UNKNOWN), *_bytes())]
    scores += [(piece, -1.0 / len(piece) - 3.0) for piece in _pieces()]
    tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=True))
    _metaspace(tokenizer)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.normalizer = None
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    tokenizer.add_special_tokens(_special(UNKNOWN))
    return tokenizer


def _metaspace_bpe() -> Any:
    trained = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    _metaspace(trained)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*_special(UNKNOWN), *_bytes()], show_progress=False
    )
    trained.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    # Bytes are ordinary tokens of the vocabulary, not special ones.
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(state))
