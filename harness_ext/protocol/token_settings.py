"""Model settings that change token ids or arithmetic, and tokenizers that append a token to every text.

Pure and quick to import: `compare` reads these settings from results files without loading a model.
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Mapping
from typing import Any

from harness_ext.errors import InputError, ModelError
from harness_ext.reading.json_input import parse_json

ADAPTERS_OWN = "adapter"  # `tokenizer` in results of an adapter whose own tokenizer adds tokens or a chat template
DEFAULT = "default"  # how messages call the value of a setting that is not given

# Setting -> its default, as `_text` writes it.
_DEFAULTS = {
    "add_bos_token": "",
    "autogptq": "False",
    "chat_template_args": "{}",
    "enable_thinking": "",
    "gguf_file": "",
    "gptqmodel": "False",
    "load_in_4bit": "False",
    "load_in_8bit": "False",
    "max_length": "",
    "mixed_precision_dtype": "",
    "prefix_token_id": "",
    "quantization": "",  # of vLLM
    "quantization_config": "",
    "revision": "main",
    "softmax_dtype": "",
    "subfolder": "",
    "think_end_token": "",
    "tokenizer": "",
    "tokenizer_revision": "",
    "truncation": "False",
    "use_fast_tokenizer": "True",
}
TOKEN_SETTINGS = tuple(_DEFAULTS)
_QUANTISATION_PREFIXES = ("bnb_", "llm_int8_")  # bitsandbytes has many settings; all default to false or unset
_ALIASES = {"max_model_len": "max_length"}  # vLLM's name
_MODEL_KEYS = ("pretrained", "model", "path")
_PROBE = "The sky is blue"


def parse_model_args(model_args: Any) -> dict[str, Any]:
    """Model arguments as a dict, from the dict or the `key=value,key=value` string that lm-eval logs.

    >>> parse_model_args("pretrained=org/model,peft=adapters/sst2")
    {'pretrained': 'org/model', 'peft': 'adapters/sst2'}
    """
    if isinstance(model_args, Mapping):
        return dict(model_args)
    if not isinstance(model_args, str):
        return {}
    pairs = (part.partition("=") for part in model_args.split(",") if "=" in part)
    return {key.strip(): value.strip() for key, _, value in pairs}


def token_settings(model_args: Mapping[str, Any] | str | None) -> dict[str, str]:
    """Settings that change token ids or arithmetic and differ from lm-eval's defaults, sorted by name.

    An omitted setting equals its default, text equals the value it stands for, and naming the model's own tokenizer
    equals naming none.

    Args:
        model_args: as lm-eval logs them in `config.model_args`: a dict, or `key=value,key=value`.

    >>> token_settings("pretrained=org/model,add_bos_token=true,revision=main,max_length=512")
    {'add_bos_token': 'True', 'max_length': '512'}
    >>> token_settings({"pretrained": "org/model", "tokenizer": "org/model", "load_in_4bit": False})
    {}
    """
    arguments = parse_model_args(model_args)
    models = [_place(arguments[key]) for key in _MODEL_KEYS if arguments.get(key)]
    settings: dict[str, str] = {}
    for key, value in _with_separate_thinking(arguments).items():
        name = _ALIASES.get(key, key)
        text = _place(value) if name == "tokenizer" else _text(value)
        is_model = name == "tokenizer" and text in models
        if is_token_setting(name) and text and text != _DEFAULTS.get(name, "False") and not is_model:
            settings[name] = text
    return dict(sorted(settings.items()))


def is_token_setting(name: str) -> bool:
    """Whether a model argument changes token ids or arithmetic."""
    return name in _DEFAULTS or name.startswith(_QUANTISATION_PREFIXES)


def _with_separate_thinking(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Move `enable_thinking` out of `chat_template_args`; as in lm-eval, the separate argument takes precedence."""
    template = _mapping(arguments.get("chat_template_args"))
    if template is None:
        return dict(arguments)
    inside = template.pop("enable_thinking", None)
    separate = {**arguments, "chat_template_args": template}
    return separate if _text(separate.get("enable_thinking")) else {**separate, "enable_thinking": inside}


def _mapping(value: Any) -> dict[str, Any] | None:
    """A copy of a mapping, or of the JSON object in a text; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parse_json(value, place="model_args")
        except InputError:
            return None
    return dict(value) if isinstance(value, Mapping) else None


def _text(value: Any) -> str:
    """The same text for a value whether it was logged as JSON or as text; empty if it is not set.

    >>> _text(True), _text("true"), _text(None), _text("None"), _text(5), _text({"b": 1, "a": 2})
    ('True', 'True', '', '', '5', '{"a": 2, "b": 1}')
    """
    if (mapping := _mapping(value)) is not None:
        return json.dumps(mapping, sort_keys=True, default=str)
    text = str(value).strip()
    if text.lower() in ("none", "null"):
        return ""
    return text.capitalize() if text.lower() in ("true", "false") else text.removeprefix("torch.")


def _place(value: Any) -> str:
    """A folder or a Hub id; `models/x/` is `./models/x`."""
    text = _text(value)
    return os.path.normpath(text) if text else ""


# -- tokenizers that append a token to every text ------------------------------------------------------------------


def appended_tokens(tokenizer: Any, *, add_bos_token: bool | None = None) -> list[str]:
    """Tokens that a tokenizer appends to every text, as the post-processor `<s> $A </s>` does.

    Args:
        tokenizer: a tokenizer of transformers.
        add_bos_token: as in lm-eval's `hf`, which encodes without special tokens if this is False.
    """
    plain = tokenizer.encode(_PROBE, add_special_tokens=False)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    while plain and plain[-1] in special:  # some tokenizers append one even without special tokens
        plain.pop()
    if not plain:
        return []
    options = {} if add_bos_token is None else {"add_special_tokens": add_bos_token}
    whole = tokenizer.encode(_PROBE, **options)
    ends = (start + len(plain) for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    tokens: list[str] = tokenizer.convert_ids_to_tokens(whole[next(ends, len(whole)) :])
    return tokens


def check_appends_nothing(tokenizer: Any, name: str, *, add_bos_token: bool | None = None) -> None:
    """Refuse a tokenizer that appends tokens to every text, for a model that continues its prompt.

    The prompt would end before its answer, and one-token choices would all be scored by the appended token. Do not call
    this for an encoder–decoder, whose input does end there.

    Args:
        tokenizer: a tokenizer of transformers.
        name: name of the model, for the message.
        add_bos_token: as in lm-eval's `hf`.

    Raises:
        ModelError: naming the tokens and the settings that add them.
    """
    if tokens := appended_tokens(tokenizer, add_bos_token=add_bos_token):
        raise ModelError(
            f"the tokenizer of {name} appends {' '.join(tokens)} to every text, so prompts end before their answers "
            f'and choices cannot be scored; remove {tokens[-1]} from "post_processor" in its tokenizer.json (if it has '
            'no such file, set "add_eos_token": false in its tokenizer_config.json)'
        )
