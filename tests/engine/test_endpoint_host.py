"""A served base with adapters under names: the scores are those of `hf`, and what a server cannot do is said first."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer

from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.session import VariantResults
from harness_ext.errors import HarnessExtError
from harness_ext.results.load import load_runs


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> dict[str, Path]:
    return {"first": make_adapter("first"), "second": make_adapter("second", seed=2)}


def served(base: Path, adapters: dict[str, Path], **faults: Any) -> OpenAIServer:
    return OpenAIServer(base, adapters, **faults)


def ask(
    server: OpenAIServer, adapters: list[str], output: Path | None = None, task: str = "sst2_choice", **settings: Any
) -> list[VariantResults]:
    arguments = {
        "model": "base", "base_url": server.url, "tokenizer_backend": "huggingface", "tokenizer": str(server.base),
        "max_retries": 1, **settings.pop("model_args", {}),
    }  # fmt: skip
    return evaluate(
        tasks=[task], model="local-completions", model_args=arguments, adapters=adapters, limit=6,
        output_path=None if output is None else str(output), log_samples=output is not None, **settings,
    )  # fmt: skip


def test_each_variant_is_asked_by_its_name(tiny_model_folder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    """Log-probabilities are those of hf; results name each variant, and carry the adapter's hashes."""
    with served(tiny_model_folder, adapters).running() as server:
        names = ["first=" + str(adapters["first"]), str(adapters["second"])]
        done = ask(server, names, tmp_path / "served", apply_chat_template=False)
    own = evaluate(
        str(tiny_model_folder), model="hf", tasks=["sst2_choice"], adapters=[*adapters.values()], limit=6,
        output_path=str(tmp_path / "hf"), log_samples=True, store=False, batch_size=1,
    )  # fmt: skip
    assert [each.variant.name for each in done] == ["base", "first", "second"]
    for there, here in zip(done, own, strict=True):
        for one, other in zip(*(each.results["samples"]["sst2_choice"] for each in (there, here)), strict=True):
            for a, b in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
                assert math.isclose(a[0], b[0], abs_tol=1e-3)
    runs = {run.name: run for run in load_runs(str(tmp_path / "served"))}
    assert set(runs) == {"base", "first", "second"}
    assert done[1].results["harness_ext"]["adapter_sha256"] == own[1].results["harness_ext"]["adapter_sha256"]


def test_texts(tiny_model_folder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    with served(tiny_model_folder, adapters, without_echo=True).running() as server:
        done = ask(server, ["first"], tmp_path, task="sst2_generate")
    assert {asked["model"] for asked in server.requests} == {"base", "first"}
    assert not done[1].failures


@pytest.mark.parametrize("task", ["sst2_choice", "sst2_generate"])
def test_an_adapter_that_the_server_does_not_apply(
    task: str, tiny_model_folder: Path, adapters: dict[str, Path]
) -> None:
    with (
        served(tiny_model_folder, adapters, ignores_adapters=True).running() as server,
        pytest.raises(HarnessExtError, match="does not apply the adapter"),
    ):
        ask(server, ["first"], task=task)


@pytest.mark.parametrize(
    ("faults", "adapters_asked", "message"),
    [
        ({"without_echo": True}, ["first"], r"no log-probabilities of prompts .* sst2_choice needs"),
        ({}, ["frist"], r"serves no model 'frist'.*first"),
        ({}, ["first", "first"], "given twice"),
        ({}, ["mine=/nowhere"], "holds no adapter"),
    ],
)
def test_what_is_refused_before_anything_is_asked(
    faults: dict[str, bool], adapters_asked: list[str], message: str, tiny_model_folder: Path,
    adapters: dict[str, Path],
) -> None:  # fmt: skip
    with served(tiny_model_folder, adapters, **faults).running() as server:
        with pytest.raises(HarnessExtError, match=message):
            ask(server, adapters_asked)
        assert len(server.requests) <= 1  # the one that finds out


def test_a_server_that_is_down(tiny_model_folder: Path, adapters: dict[str, Path]) -> None:
    with served(tiny_model_folder, adapters).running() as server:
        pass
    with pytest.raises(HarnessExtError, match=r"cannot be reached .*; start the server"):
        ask(server, ["first"])


def test_a_missing_answer_is_not_a_wrong_one(
    tiny_model_folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    with (
        served(tiny_model_folder, adapters, leaves_out=True).running() as server,
        pytest.raises(HarnessExtError, match="left an answer out"),
    ):
        ask(server, ["first"], tmp_path, task="sst2_generate")


def test_chat_endpoints(tiny_model_folder: Path, adapters: dict[str, Path]) -> None:
    with (
        served(tiny_model_folder, adapters).running() as server,
        pytest.raises(HarnessExtError, match="compares log-probabilities, and a chat endpoint gives none"),
    ):
        evaluate(
            tasks=["sst2_choice"], model="local-chat-completions", adapters=["first"], apply_chat_template=True,
            model_args={"model": "base", "base_url": server.url.replace("/completions", "/chat/completions")},
        )  # fmt: skip


@pytest.mark.parametrize("faults", [{}, {"without_logprobs": True}, {"refuses_logprobs": True}])
def test_equal_short_answers_are_no_proof(
    faults: dict[str, bool], tiny_model_folder: Path, adapters: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Base and adapter may both answer by one number: their log-probabilities differ, or nothing can be said."""
    with served(tiny_model_folder, adapters, says="7", **faults).running() as server:
        done = ask(server, ["first"], task="sst2_generate")
    assert done[1].error is None
    assert ("too short to tell" in caplog.text) == bool(faults)


@pytest.mark.parametrize("faults", [{"says": "7"}, {"without_logprobs": True}, {"refuses_logprobs": True}])
def test_an_adapter_that_is_not_applied_to_texts(
    faults: dict[str, Any], tiny_model_folder: Path, adapters: dict[str, Path]
) -> None:
    with (
        served(tiny_model_folder, adapters, ignores_adapters=True, **faults).running() as server,
        pytest.raises(HarnessExtError, match="does not apply the adapter"),
    ):
        ask(server, ["first"], task="sst2_generate")


PROBES = 4  # the base is asked twice for two documents


@pytest.mark.parametrize(
    ("fault", "task", "settings", "message"),
    [
        ("limits", "sst2_choice", {}, r"limits the rate of requests \(429\); lower num_concurrent"),
        ("limits", "sst2_generate", {"num_concurrent": 2}, r"limits the rate of requests \(429\)"),
        ("slow", "sst2_choice", {"timeout": 1}, "does not answer within 1 s; raise timeout="),
        ("slow", "sst2_generate", {"timeout": 1, "num_concurrent": 2}, "does not answer within 1 s"),
        ("nonsense", "sst2_choice", {}, "which is no completion"),
        ("nonsense", "sst2_generate", {"num_concurrent": 2}, "does not answer"),
        ("short", "sst2_choice", {"batch_size": 2}, "gives 1 answers to 2 prompts"),
        ("short", "sst2_generate", {"batch_size": 2}, "gives 1 answers to 2 prompts"),
        ("short", "sst2_generate", {"batch_size": 2, "num_concurrent": 2}, "gives 1 answers to 2 prompts"),
        ("cut", "sst2_choice", {}, r"gives \d+ log-probabilities for \d+ tokens and a new one"),
    ],
)
def test_a_server_that_stops_answering_well(
    fault: str, task: str, settings: dict[str, Any], message: str, tiny_model_folder: Path,
    adapters: dict[str, Path], tmp_path: Path,
) -> None:  # fmt: skip
    """One line says why; what it has answered is kept, and the rest is asked later."""
    first = PROBES + (task == "sst2_choice")  # whether it scores at all
    arguments = {name: value for name, value in settings.items() if name != "batch_size"}
    options = {"model_args": arguments, "store": str(tmp_path / "store"), "batch_size": settings.get("batch_size", 1)}
    with served(tiny_model_folder, adapters, answers=first + 2, fault=fault).running() as server:
        with pytest.raises(HarnessExtError, match=message):
            ask(server, ["first"], tmp_path / "results", task, **options)
        server.answers = 10**9
        done = ask(server, ["first"], tmp_path / "results", task, **options)
    again = [each.results["harness_ext"]["answers_from_store"] for each in done]
    assert again[0] >= 1
    assert again[1] == 0
