"""Settings of a model that change its token ids or its arithmetic, and tokenizers that end every text.

Pure, and quick to import: `compare` reads these settings from results files without loading any model.
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Mapping
from typing import Any

from harness_ext.errors import ModelError

ADAPTERS_OWN = "adapter"  # `tokenizer` of results whose adapter brought a tokenizer with more tokens or a chat template
DEFAULT = "default"  # what a setting that is not given is called in messages

# Name -> value that means the same as leaving it out, as `_text` writes it.
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
    """Settings that change token ids or arithmetic, those that differ from lm-eval's defaults, sorted by name.

    A setting that is left out equals its default, text equals the value it stands for, and a tokenizer that is the
    model's own equals none.

    Args:
        model_args: as lm-eval logs them in `config.model_args`: a dict, or `key=value,key=value`.

    >>> token_settings("pretrained=org/model,add_bos_token=true,revision=main,max_length=512")
    {'add_bos_token': 'True', 'max_length': '512'}
    >>> token_settings({"pretrained": "org/model", "tokenizer": "org/model", "load_in_4bit": False})
    {}
    """
    arguments = parse_model_args(model_args)
    models = [_place(arguments[key]) for key in _MODEL_KEYS if arguments.get(key)]
    found: dict[str, str] = {}
    for key, value in _thinking_apart(arguments).items():
        name = _ALIASES.get(key, key)
        text = _place(value) if name == "tokenizer" else _text(value)
        is_model = name == "tokenizer" and text in models
        if is_token_setting(name) and text and text != _DEFAULTS.get(name, "False") and not is_model:
            found[name] = text
    return dict(sorted(found.items()))


def is_token_setting(name: str) -> bool:
    """Whether a model argument changes token ids or arithmetic."""
    return name in _DEFAULTS or name.startswith(_QUANTISATION_PREFIXES)


def _thinking_apart(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`enable_thinking` on its own, also where it is given inside `chat_template_args`; as in lm-eval it wins there."""
    template = _mapping(arguments.get("chat_template_args"))
    if template is None:
        return dict(arguments)
    inside = template.pop("enable_thinking", None)
    apart = {**arguments, "chat_template_args": template}
    return apart if _text(apart.get("enable_thinking")) else {**apart, "enable_thinking": inside}


def _mapping(value: Any) -> dict[str, Any] | None:
    """A copy of a mapping, or of the JSON object that a text holds."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return dict(value) if isinstance(value, Mapping) else None


def _text(value: Any) -> str:
    """One text for each value, whether it was logged as JSON or as text; empty for a value that is not set.

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


# -- tokenizers that end every text --------------------------------------------------------------------------------


def appended_tokens(tokenizer: Any, *, add_bos_token: bool | None = None) -> list[str]:
    """Tokens that a tokenizer puts behind every text, as the post-processor `<s> $A </s>` does.

    Args:
        tokenizer: of transformers.
        add_bos_token: as lm-eval's `hf` has it: it encodes without special tokens when this is False.
    """
    plain = tokenizer.encode(_PROBE, add_special_tokens=False)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    while plain and plain[-1] in special:  # some append theirs whatever they are asked
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

    The prompt would end before its answer, and one-token choices would all be scored by the appended token. An
    encoder–decoder reads a finished input: do not ask this of one.

    Args:
        tokenizer: of transformers.
        name: of the model, for the message.
        add_bos_token: as lm-eval's `hf` has it.

    Raises:
        ModelError: naming the tokens and the settings that add them.
    """
    if tokens := appended_tokens(tokenizer, add_bos_token=add_bos_token):
        raise ModelError(
            f"the tokenizer of {name} appends {' '.join(tokens)} to every text, so prompts end before their answers "
            f'and choices cannot be scored; remove {tokens[-1]} from "post_processor" in its tokenizer.json (if it has '
            'no such file, set "add_eos_token": false in its tokenizer_config.json)'
        )
