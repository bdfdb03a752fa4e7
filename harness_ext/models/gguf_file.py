"""What a GGUF file says of itself: a model or a LoRA adapter, of which architecture, shape, vocabulary and base."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from harness_ext.errors import AdapterError, ModelError, first_line
from harness_ext.models.sources import files_sha256
from harness_ext.reading.files import is_regular

SUFFIX = ".gguf"
MOST_OTHER_TOKENS = 0.01  # converters rewrite a few special tokens
_SCALARS_AND_TEXTS = 1  # parts of a field's value; more in an array
_PACKING = re.compile(  # how a model was packed, which no name of a base depends on
    r"(?<![a-z0-9])(gguf|hf|unsloth|[bf]p?(16|32)|i?q\d+(_[a-z0-9]+)*|\d+-?bit|bnb|awq|gptq)(?![a-z0-9])"
)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's metadata and the shapes of its tensors; weights are not read."""

    path: Path
    metadata: Mapping[str, Any]  # numbers and texts, by key
    tokens: tuple[str, ...] = field(repr=False)  # the vocabulary, in the order of the ids
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)  # by tensor; GGUF's order, a matrix is (inputs, outputs)
    quantisation: str  # f16, q4_k_m, ...

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA adapter; else it is a model."""
        return self.metadata.get("general.type") == "adapter"

    @property
    def architecture(self) -> str:
        """As llama.cpp names it: llama, qwen2, ..."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def layers(self) -> int | None:
        """How many blocks a model has, without those that only draft tokens."""
        blocks = self.metadata.get(f"{self.architecture}.block_count")
        drafting = self.metadata.get(f"{self.architecture}.nextn_predict_layers", 0)
        return None if blocks is None else int(blocks) - int(drafting)

    def sha256(self) -> str:
        """Of the file's bytes."""
        return str(files_sha256(self.path))


def read_gguf(path: Path) -> GgufFile:
    """Read what a GGUF file says of itself.

    Raises:
        ModelError: it is missing, no GGUF file, cut short, or one of several parts.
    """
    if not path.is_file() or not is_regular(path):
        raise ModelError(f"{path} is no file; name a GGUF file")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: _value(each) for name, each in reader.fields.items() if len(each.data) == _SCALARS_AND_TEXTS}
        listed = reader.fields.get("tokenizer.ggml.tokens")
        tokens = () if listed is None else tuple(_text(listed.parts[place]) for place in listed.data)
        shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    except Exception as error:  # whatever the reader raises of a damaged file
        raise ModelError(
            f"{path} cannot be read as GGUF ({type(error).__name__}: {first_line(error):.120}); convert it again"
        ) from error
    if int(metadata.get("split.count", 1)) > 1:
        raise ModelError(f"{path} is one of several parts; join them with `llama-gguf-split --merge`")
    return GgufFile(path, metadata, tokens, shapes, _quantisation(metadata.get("general.file_type"), types))


def _value(of: Any) -> Any:
    part = of.parts[of.data[0]]
    return _text(part) if of.types[-1] == gguf.GGUFValueType.STRING else part[0].item()


def _text(part: Any) -> str:
    return bytes(part).decode("utf-8", "replace")


def _quantisation(file_type: Any, types: Counter[str]) -> str:
    """The name of a file type; where it is not known, that of most matrices."""
    try:
        name = gguf.LlamaFileType(int(file_type)).name
    except (TypeError, ValueError):
        name = types.most_common(1)[0][0] if types else "unknown"
    return name.lower().removeprefix("mostly_").removeprefix("all_")


def check_fits(adapter: GgufFile, base: GgufFile) -> None:
    """Make sure that a LoRA adapter belongs to a base: architecture, layers, shapes, and the base that it names.

    Raises:
        AdapterError: it is no adapter, or one of another base.
    """
    if not adapter.is_adapter:
        raise AdapterError(f"{adapter.path} is a whole model; name it as pretrained={adapter.path}, without --adapters")
    why = next(_misfits(adapter, base), None)
    if why is not None:
        raise AdapterError(f"{adapter.path} belongs to another base than {base.path}: {why}; convert the right adapter")


def _misfits(adapter: GgufFile, base: GgufFile) -> Iterator[str]:
    if adapter.architecture != base.architecture:
        yield f"its architecture is {adapter.architecture}, not {base.architecture}"
    for name, (inputs, outputs) in _lora_shapes(adapter).items():
        if name not in base.shapes:
            yield f"the base has no {name} (it has {base.layers} layers)"
        elif base.shapes[name] != (inputs, outputs):
            yield f"{name} is {inputs} x {outputs}, and {' x '.join(map(str, base.shapes[name]))} in the base"
    of, given = (_words(adapter, "general.base_model.0."), _words(base, "general."))
    if of & given and of != given:
        yield (
            f"it was made for {adapter.metadata['general.base_model.0.name']!r}, and the base calls itself "
            f"{base.metadata['general.name']!r}"
        )


def _lora_shapes(adapter: GgufFile) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each adapted matrix; llama.cpp stores the A of an embedding transposed."""
    shapes = {}
    for name, (outer, *_) in adapter.shapes.items():
        matrix, _, side = name.rpartition(".")
        other = adapter.shapes.get(f"{matrix}.lora_b")
        if side == "lora_a" and other is not None:
            embedding = matrix.startswith("token_embd")
            shapes[matrix] = (other[1], adapter.shapes[name][1]) if embedding else (outer, other[1])
    return shapes


def _words(file: GgufFile, prefix: str) -> set[str]:
    """The words of a model's name, without those of its organization and of how it was packed."""
    name, organization = (str(file.metadata.get(f"{prefix}{key}", "")).lower() for key in ("name", "organization"))
    words = re.findall(r"[a-z0-9.]+", _PACKING.sub(" ", name))
    return {*words} - {*re.findall(r"[a-z0-9.]+", organization)}


def check_tokenizer(file: GgufFile, tokenizer: Any, name: str) -> None:
    """Make sure that a tokenizer's ids are those of a GGUF model.

    Args:
        file: a model.
        tokenizer: of transformers.
        name: of the tokenizer, for the message.

    Raises:
        ModelError: its vocabulary is another one.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    others = [t for t, i in vocabulary.items() if i >= len(file.tokens) or file.tokens[i] != t]
    if len(others) > MOST_OTHER_TOKENS * len(vocabulary):
        raise ModelError(
            f"the tokenizer of {name} is not that of {file.path}: {len(others)} of its {len(vocabulary)} tokens are "
            f"others there ({len(file.tokens)} tokens); name the folder that the GGUF file was converted from"
        )


def check_config(file: GgufFile, config: Mapping[str, Any], name: str) -> None:
    """Make sure that a GGUF model has the layers and the width of the model whose tokenizer is used.

    Raises:
        ModelError: it is another model.
    """
    width = file.metadata.get(f"{file.architecture}.embedding_length")
    for setting, here in (("num_hidden_layers", file.layers), ("hidden_size", width)):
        there = config.get(setting)
        if here is not None and isinstance(there, int) and there != here:
            raise ModelError(
                f"{file.path} is not the model in {name}: {setting} is {here}, and {there} in its config.json; name "
                "the folder that the GGUF file was converted from"
            )
