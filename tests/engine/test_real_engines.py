"""vLLM in this process, and servers of vLLM and llama.cpp that the tests start: `make vllm-test`, `make llama-test`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import requests
from gguf_files import write_base, write_lora

from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.session import VariantResults
from harness_ext.models.fetch import fetch_model

PROJECT = Path(__file__).resolve().parents[2]
SHIPPED = [PROJECT / "adapters" / name for name in ("sst2", "squad_v2")]
ON_A_CPU = {"max_model_len": 1024, "enforce_eager": True, "dtype": "bfloat16"}
STARTED = 600  # seconds that a server may take to load


@pytest.fixture(scope="module")
def model() -> str:
    return str(fetch_model("smollm2-135m-instruct", PROJECT / "models"))


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """Start a server, and wait until it says what it serves."""
    with log.open("w") as messages, subprocess.Popen(command, stdout=messages, stderr=messages) as process:
        try:
            for _ in range(STARTED):
                with contextlib.suppress(requests.RequestException):
                    if requests.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).ok:
                        break
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1/completions"
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def asked(url: str, tokenizer: str, adapters: Sequence[str], output: Path, **arguments: object) -> list[VariantResults]:
    """Base and adapters, by the names under which a server has them."""
    return evaluate(
        tasks=["sst2_generate"], model="local-completions", adapters=adapters, limit=3, log_samples=True,
        output_path=str(output),
        model_args={
            "model": "base", "base_url": url, "tokenizer_backend": "huggingface", "tokenizer": tokenizer, **arguments,
        },
    )  # fmt: skip


def texts(done: Sequence[VariantResults]) -> list[list[str]]:
    return [[sample["resps"][0][0] for sample in each.results["samples"]["sst2_generate"]] for each in done]


def differing(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> int:
    return sum(
        a.strip() != b.strip()
        for these, those in zip(one, other, strict=True)
        for a, b in zip(these, those, strict=True)
    )


@pytest.mark.llama
def test_the_server_of_llama_cpp(tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    """One GGUF base under its name, and with a LoRA adapter under the adapter's."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; run `make llama-test`")
    pytest.importorskip("starlette_context", reason="llama-cpp-python[server] is not installed; run `make llama-test`")
    adapter = make_adapter("first", lora_alpha=1)  # near the base, which writes whole characters
    base = write_base(tiny_model_folder, tmp_path / "base.gguf")
    lora = write_lora(adapter, tiny_model_folder, tmp_path / "first.gguf")
    common = {"model": str(base), "n_ctx": 2048, "logits_all": True}
    port = free_port()
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "models": [{**common, "model_alias": "base"}, {**common, "model_alias": "first", "lora_path": str(lora)}],
    }
    (tmp_path / "server.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "llama_cpp.server", "--config_file", str(tmp_path / "server.json")]
    with running(command, port, tmp_path / "server.log") as url:
        done = asked(url, str(tiny_model_folder), [f"first={adapter}"], tmp_path / "served", tokenized_requests=False)
    own = evaluate(
        str(tiny_model_folder), tasks=["sst2_generate"], adapters=[adapter], limit=3, log_samples=True,
        output_path=str(tmp_path / "hf"),
    )  # fmt: skip
    assert [each.variant.name for each in done] == ["base", "first"]
    assert differing(texts(done), texts(own)) <= 1  # the server's cache is in float16
    assert done[1].results["harness_ext"]["adapter_sha256"]


@pytest.mark.vllm
def test_vllm_in_process(model: str, tmp_path: Path) -> None:
    """One engine for the base and both shipped adapters, each with its records; texts as those of hf-tree."""
    _needs_vllm()
    arguments = {"tasks": ["sst2_generate"], "adapters": SHIPPED, "limit": 3, "log_samples": True, "store": False}
    served = evaluate(model, model="vllm", model_args=dict(ON_A_CPU), output_path=str(tmp_path / "vllm"), **arguments)
    own = evaluate(model, model_args={"dtype": "bfloat16"}, output_path=str(tmp_path / "hf-tree"), **arguments)
    assert [each.variant.name for each in served] == ["base", "sst2", "squad_v2"]
    assert differing(texts(served), texts(own)) <= 2  # of 9; two tokens may be nearly as probable
    for sample in served[1].results["samples"]["sst2_generate"]:
        assert sample["finish_reason"] in ("stop", "length")
        assert sample["output_tokens"] > 0


@pytest.mark.vllm
def test_the_server_of_vllm(model: str, tmp_path: Path) -> None:
    """`vllm serve` with a LoRA module: base and adapter by their names."""
    _needs_vllm()
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "vllm"), "serve", model, "--served-model-name", "base", "--enable-lora",
        "--max-lora-rank", "16", "--lora-modules", f"sst2={SHIPPED[0]}", "--enforce-eager", "--max-model-len", "1024",
        "--dtype", "bfloat16", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with running(command, port, tmp_path / "server.log") as url:
        done = asked(url, model, [f"sst2={SHIPPED[0]}"], tmp_path / "served", max_length=1024)
    own = evaluate(
        model, tasks=["sst2_generate"], adapters=SHIPPED[:1], limit=3, log_samples=True, store=False,
        model_args={"dtype": "bfloat16"}, output_path=str(tmp_path / "hf-tree"),
    )  # fmt: skip
    assert [each.variant.name for each in done] == ["base", "sst2"]
    assert differing(texts(done), texts(own)) <= 2


def _needs_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed; run `make vllm-test`")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
