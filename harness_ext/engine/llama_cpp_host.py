"""llama.cpp with adapters: a base in one GGUF file, each LoRA adapter in another; or a merged model in one file.

```
pretrained=base.gguf ──> base
--adapters sst2.gguf ──> put on the loaded base, and proved to change its answers
```
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from harness_ext.engine.content import package_versions
from harness_ext.engine.generation_records import add_generation_records
from harness_ext.engine.hosts import Selected, probe_prompts, prompt_settings
from harness_ext.engine.llama_cpp_lm import unsupported_message, unsupported_setting
from harness_ext.engine.proof import PROBED_TOKENS, Answer, Proof
from harness_ext.engine.variants import Variant, named_variants
from harness_ext.errors import AdapterError, HarnessExtError, ModelError, first_line
from harness_ext.models.adapters import is_adapter
from harness_ext.models.gguf_file import SUFFIX, GgufFile, check_fits, read_gguf
from harness_ext.models.snapshot import AdapterSnapshot, snapshot
from harness_ext.protocol.lm_eval_api import HFLM, EvaluatorConfig, Task, get_model, normalize_gen_kwargs
from harness_ext.protocol.render import check_chat_template


class LlamaCppHost:
    """A GGUF model in this process, on which llama.cpp puts LoRA adapters.

    Args:
        config: of `--model llama-cpp`.
        adapters: GGUF files, patterns of them, or folders with one; NAME=FILE gives a name.

    Raises:
        ModelError: the arguments name no GGUF model.
        AdapterError: an adapter is no GGUF file, or the only one belongs to another base.
    """

    hf: HFLM | None = None
    takes_shards = False
    is_intact = True  # an adapter is added to what a layer computes; weights of the base are never changed

    def __init__(self, config: EvaluatorConfig, adapters: Sequence[str | Path] = ()) -> None:
        self._config = config
        named = str(config.model_args.get("pretrained") or "")
        if not named:
            raise ModelError("--model llama-cpp needs a GGUF file; add --model_args pretrained=BASE.gguf")
        self._file = read_gguf(_gguf_in(Path(named).expanduser()))
        self.base = str(self._file.path)
        self.weights: str | None = self.base
        config.model_args["pretrained"] = self.base
        self.variants: Sequence[Variant] = _variants(adapters, self._file)
        self.snapshot: AdapterSnapshot | None = None

    def load(self, tasks: Sequence[Task]) -> None:
        """Load the base, and keep what it answers to some prompts of the tasks.

        Raises:
            ModelError: it cannot be loaded, or llama.cpp cannot do what a task asks.
        """
        config = self._config
        self._check_tasks(tasks)
        try:
            self.lm: Any = get_model(config.model)(**config.model_args, device=config.device)
        except TypeError as error:
            raise ModelError(f"--model llama-cpp: {first_line(error):.200}; check --model_args") from error
        if any(variant.adapter for variant in self.variants):
            prompts = [self.lm.tok_encode(text) for text in probe_prompts(tasks, prompt_settings(config), self.lm)]
            self._proof = Proof("llama.cpp", lambda: [self._answer(prompt) for prompt in prompts])

    def _check_tasks(self, tasks: Sequence[Task]) -> None:
        """Refuse by name what greedy decoding cannot honour."""
        given = self._config.gen_kwargs if isinstance(self._config.gen_kwargs, Mapping) else {}
        for task in tasks:
            if task.OUTPUT_TYPE != "generate_until":
                continue
            settings = normalize_gen_kwargs({**(task.config.generation_kwargs or {}), **given}, PROBED_TOKENS)
            if (setting := unsupported_setting(settings)) is not None:
                raise ModelError(f"{task.task_name}: {unsupported_message(setting)}")

    def _answer(self, prompt: Sequence[int]) -> Answer:
        longest = self.lm.max_length - PROBED_TOKENS
        tokens = self.lm.generate(prompt[-longest:], [], PROBED_TOKENS).tokens
        return Answer(tuple(tokens), self.lm.score(prompt[-longest:], tokens).logprob)

    def model_args(self, variant: Variant) -> dict[str, Any]:
        """With the adapter's file."""
        return {**self._config.model_args, **({} if variant.adapter is None else {"lora": str(variant.folder)})}

    def why_not(self, _variant: Variant) -> str | None:
        """Nothing is known beforehand."""
        return None

    @contextmanager
    def active(self, variant: Variant) -> Iterator[Mapping[str, str]]:
        """Put the adapter on the base.

        Raises:
            AdapterError: it belongs to another base, or llama.cpp does not load or apply it.
            ModelError: the base no longer answers as it did before.
        """
        lm = self.lm
        lm.generation_records.clear()
        if variant.folder is None:
            yield {}
            return
        check_fits(read_gguf(variant.folder), self._file)
        try:
            with snapshot(variant.folder) as self.snapshot:
                lm.engine.use(str(variant.folder))
                self._proof.check_applied(str(variant.adapter), "convert it again, and look at its alpha and scale")
            yield {}
        finally:
            self.snapshot = None
            lm.engine.use(None)
        self._proof.check_base(variant.name)

    def about(self) -> Mapping[str, Any]:
        """The version of llama-cpp-python, and the base's file."""
        file = self._file
        described = {"file": file.path.name, "sha256": file.sha256(), "quantisation": file.quantisation}
        return {**package_versions(["llama-cpp"]), **described}

    def check(self) -> None:
        """Raise for a chat template that the tokenizer does not have."""
        check_chat_template(self.lm, self._config.apply_chat_template)

    def add_records(self, samples: Mapping[str, list[dict[str, Any]]], selected: Selected) -> None:
        """Finish reason and token counts; see `generation_records`."""
        add_generation_records(samples, cast(HFLM, self.lm), selected)


def _variants(adapters: Sequence[str | Path], base: GgufFile) -> list[Variant]:
    """The base and its adapters; or a model alone, under the name of its file."""
    if not adapters:
        return [Variant(base.path.stem)]
    named, files, labels = [], [], []
    for given in _expanded(adapters):
        name, equals, place = given.rpartition("=")
        file = _adapter_in(Path(place).expanduser())
        named.append(place)
        files.append(file)
        labels.append(name if equals else Path(place).resolve().name.removesuffix(SUFFIX))
    variants = named_variants(named, files, labels)
    for variant in variants:
        try:
            check_fits(read_gguf(cast(Path, variant.folder)), base)
        except HarnessExtError:
            if len(variants) == 1:  # among several, it fails in its turn
                raise
    return [Variant("base"), *variants]


def _expanded(adapters: Sequence[str | Path]) -> Iterator[str]:
    for given in map(str, adapters):
        matches = sorted(glob.glob(given)) if glob.has_magic(given) else []  # noqa: PTH207
        yield from matches or [given]


def _adapter_in(place: Path) -> Path:
    """The GGUF file that is named, or that lies in a named folder.

    Raises:
        AdapterError: there is none, or there are several.
    """
    try:
        return _gguf_in(place)
    except ModelError as error:
        if is_adapter(place):
            raise AdapterError(
                f"{place} holds a PEFT adapter and no GGUF file; convert it with llama.cpp's "
                f"`convert_lora_to_gguf.py --base BASE {place}`"
            ) from error
        raise AdapterError(str(error)) from error


def _gguf_in(place: Path) -> Path:
    if not place.is_dir():
        if not place.exists():
            raise ModelError(f"there is no {place}; name a GGUF file")
        return place
    files = sorted(place.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        held = f"{len(files)} GGUF files ({', '.join(file.name for file in files[:3])})" if files else "no GGUF file"
        raise ModelError(f"{place} holds {held}; name one")
    return files[0]
