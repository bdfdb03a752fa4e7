"""A fixed slice of the differential test, and proof that it reports what is planted."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft.tuners.lora import LoraLayer

from differential import cases, run
from differential.cases import AdapterCase, Case, TaskCase, random_case
from differential.compare import compare_task
from differential.judge import run_case
from differential.stock import Generation, StockRun
from harness_ext.engine.hf_tree import TreeLM

PROMPT = "Passage : {{passage}} Question : {{question}} Answer :"
CHOICE = TaskCase("multiple_choice", seed=1, documents=4, doc_to_text=PROMPT, choices="nested")
WORDS = dataclasses.replace(CHOICE, seed=2, choices="own", delimiter="\n")
LIKELIHOOD = TaskCase("loglikelihood", seed=3, documents=3, doc_to_text="Review : {{passage}}\nAnswer :")
ROLLING = TaskCase("loglikelihood_rolling", seed=4, documents=3, doc_to_text="")


def generates(*until: str, tokens: int = 13, seed: int = 5, text: str = PROMPT, **settings: Any) -> TaskCase:
    settings = {"max_gen_toks": tokens, "do_sample": False, **settings}
    return TaskCase("generate_until", seed, documents=4, doc_to_text=text, until=list(until), generation=settings)


def case(*adapters: str, tasks: tuple[TaskCase, ...] = (CHOICE, generates("\n", "e ")), **changes: Any) -> Case:
    plain = Case(
        seed=1, architecture="llama", tied=False, padding_rows=0, tokenizer="bpe-adds-bos", chat_template="plain",
        generation_config={}, tasks=tasks, dtype="float32", shared_args={}, batch_size=1, num_fewshot=None,
        own_args={"pack_tokens": 128, "cache_tokens": 200}, apply_chat_template=False, system_instruction=None,
        adapters=tuple(AdapterCase(kind, seed) for seed, kind in enumerate(adapters, start=1)),
        fewshot_as_multiturn=False, gen_kwargs={}, adapter_as_argument=False,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


SPECIAL_STOP = generates("Question:", "</s>", "<|im_end|>", tokens=24)
AGREED = {
    "base, every kind of task": case(tasks=(CHOICE, WORDS, LIKELIHOOD, ROLLING, generates("ed", tokens=24))),
    "adapters that change the base": case("pissa", "olora", "bias-all", "lora", "pissa", architecture="qwen2"),
    "several kinds of adapters": case("ia3", "loha", "vera", "vera", "ln-tuning", "dora", tasks=(CHOICE,)),
    "learned prompts": case("prefix-tuning", "lora", "prompt-tuning", tasks=(LIKELIHOOD, generates(" the"))),
    "active on some tokens": case("alora", "trainable-tokens", "lora", "embedding-lora"),
    "merged": case("lora", "dora", "olora", "lokr", own_args={"merge": True}),
    "added tokens": case(
        "added-tokens", "lora", "added-tokens-modules", padding_rows=5,
        tasks=(dataclasses.replace(CHOICE, doc_to_text="<|user|> {{question}}<|bot|> Answer :"), generates()),
    ),
    "padded, tied embeddings": case("lora", "save-embedding", tied=True, padding_rows=29),
    "own chat template": case("own-template", "lora", apply_chat_template=True, num_fewshot=1),
    "adapters without a chat template": case(
        "no-template", "added-tokens-no-template", "lora", apply_chat_template=True
    ),
    "adapters with caches of their own": case("shadow", "lora"),
    "chat, shots as turns": case(
        "lora", apply_chat_template=True, chat_template="strict", num_fewshot=2, fewshot_as_multiturn=True,
        system_instruction="The old mill .", tokenizer="bpe",
    ),
    "stop string that is a special token": case(
        "lora", tasks=(SPECIAL_STOP,), generation_config={"sequence_bias": [[[4], 3.0]]}
    ),
    "generation_config.json": case(
        "lora", tasks=(generates("o t", tokens=40), CHOICE),
        generation_config={"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "suppress_tokens": [270, 280, 290],
                           "min_new_tokens": 3, "eos_token_id": [1, 265, 301], "do_sample": True, "top_k": 20},
    ),
    "one document": case(
        "lora", tasks=tuple(dataclasses.replace(task, documents=1) for task in (generates("\n", tokens=40), CHOICE)),
        generation_config={"repetition_penalty": 1.3, "bad_words_ids": [[270]], "sequence_bias": [[[300, 301], -2.0]]},
    ),
    "sampling": case(tasks=(
        generates("\n", do_sample=True, temperature=1.5, top_k=1),
        generates("\n", do_sample=True, temperature=0.7, top_k=3, seed=6),
        dataclasses.replace(generates(" ", do_sample=True, temperature=1.0), repeats=2),
    )),
    "reasoning cut off": case("lora", tasks=(generates("\n", tokens=40),), shared_args={"think_end_token": 270}),
    "prompts cut on the left": case("lora", tasks=(CHOICE, generates(), ROLLING), architecture="gpt2",
                                    shared_args={"max_length": 24}),
    "window that prompt and answer exceed": case("lora", architecture="mistral-window", num_fewshot=0, tasks=(
        generates("\n", tokens=40, text="{{question}}"), dataclasses.replace(LIKELIHOOD, doc_to_text="{{question}}"))),
    "dynamic rope": case("lora", "lora", rope="dynamic", shared_args={"max_length": 200}, num_fewshot=1),
    "long rope": case("lora", "dora", rope="longrope", architecture="phi3", num_fewshot=1),
    "stretched rope": case("lora", rope="yarn", architecture="qwen2", num_fewshot=1),
    "sliding and full layers": case("lora", architecture="gemma3"),
    "mixture of experts": case("expert-lora", "lora", architecture="mixtral", tasks=(CHOICE,)),
    "ALiBi": case("lora", architecture="bloom"),
    "recurrent": case("lora", architecture="mamba", tokenizer="unigram"),
    "encoder and decoder": case("lora", architecture="t5", tasks=(LIKELIHOOD, generates("e")),
                                shared_args={"max_length": 13}),
    "bfloat16": case("lora", dtype="bfloat16", tokenizer="metaspace-bpe"),
    "low precision": case("lora", shared_args={"mixed_precision_dtype": "bfloat16"}),
}  # fmt: skip
REFUSED = {
    "stop strings in generation_config.json": case(tasks=(generates(),), generation_config={"stop_strings": ["e"]}),
    "no room for a prompt": case(tasks=(generates(tokens=40),), shared_args={"max_length": 24}),
    "no chat template": case(chat_template="none", apply_chat_template=True),
    "no chat template but an adapter's": case("lora", "own-template", chat_template="none", apply_chat_template=True),
    "a hook that raises beside a good task": case(
        "lora", tasks=(dataclasses.replace(CHOICE, fails="hook"), generates())
    ),
    "a missing split beside a good task": case("lora", tasks=(generates(), dataclasses.replace(CHOICE, fails="split"))),
    "more shots than documents": case(num_fewshot=40),
    "tokenizer appends an end token": case(tokenizer=cases.APPENDS_EOS),
    "weights in adapter_model.bin": case("lora", "torch-file"),
    "adapter changes nothing": case("zero", "lora"),
}


@pytest.mark.parametrize("name", AGREED)
def test_agrees_with_hf(name: str) -> None:
    outcome = run_case(AGREED[name])

    assert outcome.verdict == "agreed", outcome.text


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_line(name: str) -> None:
    outcome = run_case(REFUSED[name])

    assert outcome.verdict == "refused", outcome.text


def test_merging_a_tied_head_is_refused_or_exact() -> None:
    outcome = run_case(case("head-lora", "lora", tied=True, own_args={"merge": True}))

    assert outcome.verdict != "difference", outcome.text


# -- what is planted is reported ---------------------------------------------------------------------------------------


def _scores_off(self: TreeLM, results: list[Any]) -> list[Any]:
    return [(score + 0.01, greedy) for score, greedy in results]


def _greedy_off(self: TreeLM, results: list[Any]) -> list[Any]:
    return [(score, not greedy) for score, greedy in results]


def _last_text_off(self: TreeLM, results: list[Any]) -> list[Any]:
    return [*results[:-1], results[-1][1:]]


def _raises(self: TreeLM, results: list[Any]) -> list[Any]:
    raise RuntimeError("planted")


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("_loglikelihood_tokens", _scores_off),
        ("_loglikelihood_tokens", _greedy_off),
        ("generate_until", _last_text_off),
        ("generate_until", _raises),
    ],
)
def test_planted_fault_is_a_difference(
    monkeypatch: pytest.MonkeyPatch, method: str, fault: Callable[..., list[Any]]
) -> None:
    original = getattr(TreeLM, method)
    monkeypatch.setattr(TreeLM, method, lambda self, *args, **kwargs: fault(self, original(self, *args, **kwargs)))

    assert run_case(case()).verdict == "difference"


def test_wrong_scale_of_the_second_adapter_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TreeLM.loglikelihood

    def scaled(self: TreeLM, *args: Any, **kwargs: Any) -> Any:
        if str(self.peft).endswith("1-lora"):
            for layer in self.model.modules():
                if isinstance(layer, LoraLayer):
                    layer.scaling = {name: 1.05 * scale for name, scale in layer.scaling.items()}
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TreeLM, "loglikelihood", scaled)
    outcome = run_case(case("lora", "lora", tasks=(CHOICE,)))

    assert outcome.verdict == "difference"
    assert all(line.startswith("1-lora") for line in outcome.text.splitlines())


def test_answer_where_hf_raises_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TreeLM, "generate_until", lambda self, requests, **_: [""] * len(requests))
    outcome = run_case(REFUSED["stop strings in generation_config.json"])

    assert outcome.verdict == "difference"


# -- near ties ---------------------------------------------------------------------------------------------------------


def _texts_compared(gaps: list[float]) -> list[str]:
    """`hf` answers "abc", we "abd"; tokens are characters."""
    generations = defaultdict(list, {"q": [Generation(1, [97, 98, 99], gaps, frozenset({97}))]})
    lm: Any = SimpleNamespace(
        generations=generations,
        backend="causal",
        think_end_token=None,
        tok_decode=lambda tokens: "".join(map(chr, tokens)),
    )

    def samples(text: str) -> dict[str, Any]:
        sample = {"doc_id": 0, "filter": "none", "arguments": [("q", {})], "resps": [[text]], "metrics": []}
        return {"samples": {"task_0": [sample]}, "results": {"task_0": {}}}

    stock = StockRun(**samples("abc"), lm=lm)
    return compare_task(case(tasks=(generates(),)), 0, stock, samples("abd"))


def test_text_that_differs_at_a_near_tie_is_excused() -> None:
    assert _texts_compared([2.0, 3.0, 1e-5]) == []


@pytest.mark.parametrize("gaps", [[2.0, 3.0, 0.5], [2.0, 3.0, 0.5, 1e-5]])
def test_text_that_differs_elsewhere_is_not(gaps: list[float]) -> None:
    assert len(_texts_compared(gaps)) == 1


# -- the generator and the loop ----------------------------------------------------------------------------------------


def test_a_seed_always_draws_the_same_case() -> None:
    assert random_case(17) == random_case(17)
    assert random_case(17) != random_case(18)


def test_every_kind_is_drawn() -> None:
    drawn = [random_case(seed) for seed in range(4000)]

    assert {each.architecture for each in drawn} == set(cases.ARCHITECTURES)
    assert {each.tokenizer for each in drawn} == set(cases.TOKENIZERS)
    assert {adapter.kind for each in drawn for adapter in each.adapters} == set(cases.ADAPTERS)
    assert {task.kind for each in drawn for task in each.tasks} == set(cases.TASK_KINDS)
    assert {each.rope for each in drawn} == set(cases.ROPES)
    assert {task.fails for each in drawn for task in each.tasks} == {"", "hook", "split"}
    assert 1 in {task.documents for each in drawn for task in each.tasks}


@pytest.mark.parametrize(
    ("first", "count", "done", "expected"),
    [
        (0, 120, set(), [range(50), range(50, 100), range(100, 120)]),
        (0, 10, {0, 1, 5}, [range(2, 5), range(6, 10)]),
        (5, 2, {5, 6}, []),
    ],
)
def test_seeds_with_a_result_are_not_run_again(first: int, count: int, done: set[int], expected: list[range]) -> None:
    assert list(run._batches(first, count, done=done)) == expected


def test_a_case_that_ends_its_process_is_a_difference_and_the_rest_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "fuzz.jsonl"
    output.write_text('{"seed": 3, "verdict": "agreed", "kinds": {}, "plain": [], "text": ""}\n{"seed": 4, "verd')
    process: Any = SimpleNamespace(returncode=-9)

    rest = run._after_a_crash(run._Child(range(3, 8), process), output)
    differences = [result["seed"] for result in run.read_results(output) if result["verdict"] == "difference"]

    assert rest == range(5, 8)
    assert differences == [4]
