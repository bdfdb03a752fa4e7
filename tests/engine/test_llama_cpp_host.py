"""GGUF models with LoRA adapters. Without llama-cpp-python a tiny model of transformers computes in its place."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import write_base, write_lora
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from versions import request

from harness_ext.engine import llama_cpp_lm
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.llama_cpp_lm import LlamaCppLM
from harness_ext.engine.session import VariantResults
from harness_ext.errors import HarnessExtError, ModelError
from harness_ext.models.gguf_file import read_gguf

FOLDERS: dict[Path, Path] = {}  # of transformers or peft, by the GGUF file that was made of it
IN_FULL = {"type_k": 0, "type_v": 0}  # a cache in float32, to compare with hf


class TransformersEngine:
    """What `LlamaEngine` is to `LlamaCppLM`, computed by transformers and peft."""

    def __init__(self, path: Path, *, n_ctx: int, **options: Any) -> None:
        self._folder = FOLDERS[path]
        self._model: Any = AutoModelForCausalLM.from_pretrained(self._folder).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        self._active = self._model
        self.vocabulary = len(self._tokenizer)
        self.end_ids = frozenset({self._tokenizer.eos_token_id})

    def use(self, lora: str | None) -> None:
        self._active = self._model
        if lora is not None:
            base = AutoModelForCausalLM.from_pretrained(self._folder)
            self._active = PeftModel.from_pretrained(base, FOLDERS[Path(lora)]).eval()

    @torch.no_grad()
    def logits(self, ids: Sequence[int], count: int) -> Iterator[np.ndarray]:
        yield from self._active(torch.tensor([list(ids)])).logits[0, len(ids) - count :].float().numpy()

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special))

    def detokenize(self, ids: Sequence[int], *, special: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special))

    def token_id(self, name: str) -> int | None:
        return getattr(self._tokenizer, f"{name}_token_id")


@pytest.fixture(
    autouse=True, params=["transformers", pytest.param("llama.cpp", marks=pytest.mark.llama)], scope="module"
)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "llama.cpp":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; run `make llama-test`")
        yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp_lm, "LlamaEngine", TransformersEngine)
        yield request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path, folder: Path) -> Path:
    path = write_base(tiny_model_folder, folder / "tiny.gguf")
    FOLDERS[path] = tiny_model_folder
    return path


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> list[Path]:
    return [make_adapter("first", r=4), make_adapter("second", seed=2, r=12)]


@pytest.fixture(scope="module")
def loras(adapters: list[Path], tiny_model_folder: Path, folder: Path) -> list[Path]:
    return [converted(adapter, tiny_model_folder, folder / f"{adapter.name}.gguf") for adapter in adapters]


def converted(adapter: Path, base: Path, path: Path, **options: Any) -> Path:
    FOLDERS[write_lora(adapter, base, path, **options)] = adapter
    return path


def ask(
    base: Path, tasks: Sequence[str], adapters: Sequence[str | Path] = (), limit: int = 5, **settings: Any
) -> list[VariantResults]:
    arguments = {**IN_FULL, **settings.pop("model_args", {})}
    return evaluate(
        str(base), model="llama-cpp", tasks=tasks, adapters=adapters, limit=limit, model_args=arguments, **settings
    )


def test_each_variant_answers_as_hf(
    base: Path, loras: list[Path], adapters: list[Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Log-probabilities and texts, with names, hashes, finish reasons and token counts."""
    tasks = ["sst2_choice", "sst2_generate"]
    done = ask(
        base, tasks, loras, limit=3, log_samples=True, output_path=str(tmp_path / "gguf"),
        model_args={"tokenizer": str(tiny_model_folder)},
    )  # fmt: skip
    own = evaluate(
        str(tiny_model_folder), model="hf-tree", tasks=tasks, adapters=adapters, limit=3, log_samples=True, store=False,
        output_path=str(tmp_path / "hf"),
    )  # fmt: skip
    assert [each.variant.name for each in done] == ["base", "first", "second"]
    for there, here in zip(done, own, strict=True):
        for one, other in zip(*(each.results["samples"]["sst2_choice"] for each in (there, here)), strict=True):
            for a, b in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
                assert math.isclose(a[0], b[0], abs_tol=2e-3)
        for one, other in zip(*(each.results["samples"]["sst2_generate"] for each in (there, here)), strict=True):
            for key in ("resps", "finish_reason", "input_tokens", "output_tokens"):
                assert one[key] == other[key]
    ours = [each.results["harness_ext"] for each in done]
    assert ours[0]["engine"]["quantisation"] == "f32"
    assert ours[0]["engine"]["sha256"] == read_gguf(base).sha256()
    assert ours[1]["adapter_sha256"] == {"first.gguf": read_gguf(loras[0]).sha256()}
    assert done[1].results["config"]["model_dtype"] == "f32"


def test_the_gguf_files_own_tokenizer(base: Path, tiny_model_folder: Path) -> None:
    lm = LlamaCppLM(str(base), **IN_FULL)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    text = "The film is good,  and 12 others say so.\n"
    assert lm.tok_encode(text) == tokenizer.encode(text)
    assert lm.tok_encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)
    assert lm.tok_encode(f"<s>{text}") == tokenizer.encode(text)
    assert lm.tokenizer.decode(lm.tok_encode(text), skip_special_tokens=True) == text
    chat = [{"role": "user", "content": "Is it?"}]
    assert lm.apply_chat_template(chat) == tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


def test_whole_texts(base: Path, tiny_model_folder: Path) -> None:
    """In the windows of hf."""
    asked = [request("loglikelihood_rolling", ("a film that is longer than sixteen tokens, and by far, I would say",))]
    ours = LlamaCppLM(str(base), max_length=16, **IN_FULL).loglikelihood_rolling(asked, disable_tqdm=True)
    theirs = HFLM(pretrained=str(tiny_model_folder), max_length=16, batch_size=1, device="cpu").loglikelihood_rolling(
        asked
    )
    assert math.isclose(ours[0], theirs[0], abs_tol=2e-3)


def test_a_merged_model_alone(
    base: Path, adapters: list[Path], loras: list[Path], tiny_model_folder: Path, folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), adapters[0])
    target = folder / "merged"
    merged.merge_and_unload().save_pretrained(target)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(target)
    path = write_base(target, folder / "sst2-merged.gguf")
    FOLDERS[path] = target
    (alone,) = ask(path, ["sst2_choice"], log_samples=True, output_path=str(tmp_path), store=False)
    on_base = ask(base, ["sst2_choice"], loras[:1], log_samples=True, output_path=str(tmp_path), store=False)[1]
    assert alone.variant.name == "sst2-merged"
    for one, other in zip(*(each.results["samples"]["sst2_choice"] for each in (alone, on_base)), strict=True):
        for a, b in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
            assert math.isclose(a[0], b[0], abs_tol=2e-3)


def test_names(base: Path, loras: list[Path], adapters: list[Path], tiny_model_folder: Path) -> None:
    """NAME=FILE names a variant; a folder with one GGUF file has its name, and its card."""
    converted(adapters[1], tiny_model_folder, adapters[1] / "lora-f32.gguf")
    done = ask(base, ["sst2_choice"], [f"mine={loras[0]}", adapters[1]], limit=2)
    assert [each.variant.name for each in done] == ["base", "mine", "second"]
    (adapters[1] / "lora-f32.gguf").unlink()


def test_an_adapter_that_changes_nothing(
    base: Path, make_adapter: Callable[..., Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    zero = converted(make_adapter("zero", zero=True), tiny_model_folder, tmp_path / "zero.gguf")
    with pytest.raises(HarnessExtError, match="it does not apply the adapter"):
        ask(base, ["sst2_choice"], [zero], limit=2)


def test_an_adapter_of_another_base_does_not_stop_the_others(
    base: Path, loras: list[Path], adapters: list[Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    other = converted(adapters[0], tiny_model_folder, tmp_path / "other.gguf", of="Tiny 1M")
    done = ask(base, ["sst2_choice"], [other, loras[1]], limit=2)
    assert "belongs to another base" in str(done[1].error)
    assert done[2].error is None
    assert done[2].results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, r"the base has no blk\.2\.\S+ \(it has 2 layers\)"),
        ({"intermediate_size": 96}, r"blk\.\d\.ffn_\w+\.weight is .*96"),
        ({"architecture": "qwen2"}, "its architecture is qwen2, not llama"),
        ({"of": "Tiny 1M"}, "it was made for 'Tiny 1M', and the base calls itself 'Tiny 1M Instruct'"),
        ({"of": "Tiny 1.5 1M Instruct"}, "it was made for"),
    ],
)
def test_an_adapter_of_another_base(
    changes: dict[str, Any], message: str, base: Path, tiny_model_folder: Path, adapters: list[Path], tmp_path: Path
) -> None:
    named = {key: changes[key] for key in changes.keys() & {"architecture", "of"}}
    shape = {key: changes[key] for key in changes.keys() - named.keys()}
    adapter, owner = adapters[0], tiny_model_folder
    if shape:
        config = LlamaConfig.from_pretrained(tiny_model_folder)
        for key, value in shape.items():
            setattr(config, key, value)
        owner = tmp_path / "owner"
        LlamaForCausalLM(config).save_pretrained(owner)
        adapter = adapter_of(owner, tmp_path / "adapter")
    path = converted(adapter, owner, tmp_path / "other.gguf", **named)
    with pytest.raises(HarnessExtError, match=f"belongs to another base than .*: {message}"):
        ask(base, ["sst2_choice"], [path], limit=2)


def adapter_of(base: Path, folder: Path) -> Path:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("of", ["tiny-1m-instruct", "Tiny_1M_Instruct-Q4_K_M GGUF", "Other Name"])
def test_names_of_the_same_base(
    of: str, base: Path, adapters: list[Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """How a base was packed is no other base; a name that has no word of the base's says nothing."""
    path = converted(adapters[0], tiny_model_folder, tmp_path / "first.gguf", of=of)
    assert ask(base, ["sst2_choice"], [path], limit=2)[1].error is None


def test_files_that_are_something_else(
    base: Path, loras: list[Path], adapters: list[Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(base.read_bytes()[: base.stat().st_size // 2])
    text = tmp_path / "text.gguf"
    text.write_text("no GGUF at all")
    for pretrained, given, message in (
        (loras[0], [], "is a LoRA adapter; name its base"),
        (base, [base], "is a whole model; name it as pretrained="),
        (base, [adapters[0]], "holds a PEFT adapter and no GGUF file; convert it with .*convert_lora_to_gguf.py"),
        (base, [loras[0], loras[0]], "named twice"),
        (base, [tmp_path / "nowhere.gguf"], "there is no"),
        (base, [text], "cannot be read as GGUF"),
        (damaged, [], "cannot be read as GGUF"),
        (text, [], "cannot be read as GGUF"),
        (tmp_path, [], "holds 2 GGUF files"),
        (tiny_model_folder, [], "holds no GGUF file"),
    ):
        with pytest.raises(HarnessExtError, match=message):
            ask(pretrained, ["sst2_choice"], given, limit=2)


def test_a_tokenizer_of_another_model(base: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = saved["model"]["vocab"]
    saved["model"]["vocab"] = {token: (i + 7) % len(vocabulary) if i > 2 else i for token, i in vocabulary.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(ModelError, match="is not that of"):
        LlamaCppLM(str(base), tokenizer=str(tmp_path))
    config = json.loads((tiny_model_folder / "config.json").read_text())
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(ModelError, match=r"num_hidden_layers is 2, and 5 in its config.json"):
        LlamaCppLM(str(base), tokenizer=str(tmp_path))


@pytest.mark.parametrize(
    ("gen_kwargs", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "sst2_generate: .* does not honour do_sample"),
        ({"num_beams": 4}, "does not honour num_beams"),
        ({"repetition_penalty": 1.3}, "does not honour repetition_penalty"),
    ],
)
def test_what_is_refused_before_anything_is_asked(
    gen_kwargs: dict[str, Any], message: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp_lm, "LlamaEngine", None)
    with pytest.raises(ModelError, match=message):
        ask(base, ["sst2_generate"], gen_kwargs=gen_kwargs)


def test_answers_are_kept_by_content(
    base: Path, loras: list[Path], adapters: list[Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Those of the same files are not computed again; another adapter of the same name is."""
    path = tmp_path / "mine.gguf"

    def stored() -> list[int]:
        done = ask(base, ["sst2_choice"], [path], output_path=str(tmp_path / "results"))
        return [each.results["harness_ext"]["answers_from_store"] for each in done]

    converted(adapters[0], tiny_model_folder, path)
    assert stored() == [0, 0]
    assert stored() == [10, 10]
    converted(adapters[1], tiny_model_folder, path)
    assert stored() == [10, 0]


def test_llama_cpp_python_that_is_not_installed(base: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    if importlib.util.find_spec("llama_cpp"):
        pytest.skip("llama-cpp-python is installed")
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"needs llama-cpp-python.*pip install 'harness-ext\[llama-cpp\]'"):
        llama_cpp_lm._llama_cpp()
