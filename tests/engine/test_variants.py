"""Which variants are evaluated, with which tokenizer, and what one of them or one task costs the others: nothing.

Oracle of the numbers: stock `lm_eval.simple_evaluate`, one variant at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import peft
import pytest
import torch
import transformers
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness_ext.engine.adapter_switch import _encoded
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.variants import base_and_adapters
from harness_ext.errors import AdapterError, HarnessExtError, ModelError

MakeAdapter = Callable[..., Path]
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}<answer>"
ROWS = [
    {"text": f"the {word} movie", "label": number % 2} for number, word in enumerate(("good", "bad", "long", "old"))
]


HOOKS = """
def fails(doc):
    if "bad" in doc["text"]:  # not the first one, with which lm-eval tries the template
        raise RuntimeError("no such column")
    return doc["text"]
"""


def _yaml(config: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in config.items() if value is not None})
    for word, function in (("FAILS", "hooks.fails"), ("LOAD", "harness_ext.hooks.load_documents")):
        text = text.replace(f'"{word}"', f"!function {function}")
    return text


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., str]:
    """Write a choice task over a few rows, with some keys changed; returns the path of its YAML."""

    def write(name: str = "movies", **changes: Any) -> str:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        (folder / "hooks.py").write_text(HOOKS)
        config = {
            "task": name, "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
            "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}},
            "doc_to_text": "Review: {{text}} Label:",
            "doc_to_choice": ["no", "yes"], "doc_to_target": "label", **changes,
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(_yaml(config))
        return str(folder / f"{name}.yaml")

    return write


def save_tokenizer(source: Path, folder: Path, *, template: str | None, added: str | None = None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = template
    if added:
        tokenizer.add_special_tokens({"extra_special_tokens": [added]})
    tokenizer.save_pretrained(folder)
    if template is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)


@pytest.fixture
def base_without_template(tiny_model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(tiny_model_folder, folder)
    save_tokenizer(tiny_model_folder, folder, template=None)
    return folder


def scores(results: Any) -> list[float]:
    (samples,) = results["samples"].values()
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return [float(response[0][0]) for sample in ordered for response in sample["resps"]]


def stock(task: str, base: Path, *, chat: bool = True, **model_args: Any) -> list[float]:
    arguments = {
        "pretrained": str(base),
        "dtype": "float32",
        **{name: str(value) for name, value in model_args.items()},
    }
    results = lm_eval.simple_evaluate(
        "hf", model_args=arguments, tasks=[task], task_manager=TaskManager(include_defaults=False), device="cpu",
        apply_chat_template=chat, log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    return scores(results)


def ours(task: str, base: Path, **settings: Any) -> list[Any]:
    output = Path(task).parent.parent / "results"
    return evaluate(str(base), tasks=[task], log_samples=True, output_path=str(output), **settings)


# -- chat templates of adapters ----------------------------------------------------------------------------------------


def test_an_adapters_tokenizer_without_template_leaves_the_bases(
    tiny_model_folder: Path, make_adapter: MakeAdapter, write_task: Callable[..., str]
) -> None:
    adapter = make_adapter("trained")
    save_tokenizer(tiny_model_folder, adapter, template=None)
    (_, done) = ours(write_task(), tiny_model_folder, adapters=[adapter], apply_chat_template=True)
    assert scores(done.results) == pytest.approx(stock(write_task(), tiny_model_folder, peft=adapter), abs=1e-4)
    assert "tokenizer" not in done.results["harness_ext"]["token_settings"]


def test_an_adapter_with_added_tokens_only_keeps_the_bases_template(
    tiny_model_folder: Path, write_task: Callable[..., str], tmp_path: Path
) -> None:
    adapter, task = tmp_path / "added", write_task(doc_to_text="<|user|>{{text}} Label:")
    save_tokenizer(tiny_model_folder, adapter, template=None, added="<|user|>")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(adapter)))
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(str(adapter), save_embedding_layers=True)
    complete = tmp_path / "complete"  # what stock needs: the template beside the added tokens
    base_template = AutoTokenizer.from_pretrained(tiny_model_folder).chat_template
    save_tokenizer(tiny_model_folder, complete, template=base_template, added="<|user|>")

    (_, done) = ours(task, tiny_model_folder, adapters=[adapter], apply_chat_template=True)

    expected = stock(task, tiny_model_folder, peft=adapter, tokenizer=complete)
    assert scores(done.results) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_brings_the_template_that_its_base_lacks(
    base_without_template: Path, make_adapter: MakeAdapter, write_task: Callable[..., str], alone: bool
) -> None:
    adapter, task = make_adapter("chat"), write_task()
    save_tokenizer(base_without_template, adapter, template=TEMPLATE)
    given = {"model_args": {"peft": str(adapter)}} if alone else {"adapters": [adapter]}

    (*others, done) = ours(task, base_without_template, apply_chat_template=True, **given)

    expected = stock(task, base_without_template, peft=adapter, tokenizer=adapter)
    assert scores(done.results) == pytest.approx(expected, abs=1e-4)
    assert done.results["harness_ext"]["token_settings"]["tokenizer"] == "adapter"
    for base in others:
        assert base.variant.name == "base"
        assert not base.results
        assert "no chat template" in next(iter(base.failures.values()))


def test_no_template_anywhere_is_refused(
    base_without_template: Path, make_adapter: MakeAdapter, write_task: Callable[..., str]
) -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        ours(write_task(), base_without_template, adapters=[make_adapter("plain")], apply_chat_template=True)


def test_an_adapters_tokenizer_is_loaded_as_the_bases(
    tiny_model_folder: Path, make_adapter: MakeAdapter, write_task: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter("own")
    save_tokenizer(tiny_model_folder, adapter, template=TEMPLATE)
    asked: list[dict[str, Any]] = []
    load = AutoTokenizer.from_pretrained

    def noted(name: str, *args: Any, **options: Any) -> Any:
        if str(name) == str(adapter):
            asked.append(options)
        return load(name, *args, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", noted)
    ours(
        write_task(), tiny_model_folder, adapters=[adapter], apply_chat_template=True,
        model_args={"trust_remote_code": True, "use_fast_tokenizer": False, "add_bos_token": True},
    )  # fmt: skip
    assert asked
    for options in asked:
        assert (options["trust_remote_code"], options["use_fast"], options["add_bos_token"]) == (True, False, True)


# -- tasks that fail while the variants are prepared -------------------------------------------------------------------

BROKEN: dict[str, dict[str, Any]] = {
    "the evaluation split is missing": {
        "dataset_path": None, "custom_dataset": "LOAD",
        "dataset_kwargs": {"dataset": "movies", "data_files": {"train": "docs.jsonl"}},
    },
    "doc_to_text raises": {"doc_to_text": "FAILS"},
}  # fmt: skip


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", BROKEN)
def test_a_task_that_cannot_be_asked_costs_the_others_nothing(
    tiny_model_folder: Path, make_adapter: MakeAdapter, write_task: Callable[..., str], name: str, last: bool
) -> None:
    tasks = [write_task(), write_task("broken", **BROKEN[name])]
    done = evaluate(str(tiny_model_folder), tasks=tasks if last else tasks[::-1], adapters=[make_adapter("a")])
    assert [each.variant.name for each in done] == ["base", "a"]
    for each in done:
        assert each.results["results"].keys() == {"movies"}
        assert each.failures.keys() == {"broken"}


@pytest.mark.parametrize("name", BROKEN)
def test_a_task_that_cannot_be_asked_is_one_line(
    tiny_model_folder: Path, write_task: Callable[..., str], name: str
) -> None:
    with pytest.raises(HarnessExtError) as caught:
        evaluate(str(tiny_model_folder), tasks=[write_task("broken", **BROKEN[name])])
    assert "\n" not in str(caught.value)


def test_adapters_are_compared_on_the_tasks_that_can_be_asked(
    tiny_model_folder: Path, make_adapter: MakeAdapter, write_task: Callable[..., str]
) -> None:
    """An adapter that changes nothing is found out by the third task's prompts when the first two are broken."""
    unchanged = make_adapter("unchanged")
    weights = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_folder),
        peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
    )
    weights.save_pretrained(str(unchanged))
    tasks = [write_task(f"broken{number}", **BROKEN["the evaluation split is missing"]) for number in range(2)]
    with pytest.raises(AdapterError, match="changes nothing"):
        evaluate(str(tiny_model_folder), tasks=[*tasks, write_task()], adapters=[unchanged])


def test_an_adapter_is_not_judged_on_single_tokens() -> None:
    """On a token alone, queries and keys make no difference; `hf` asks it behind the prefix token."""
    lm: Any = SimpleNamespace(
        model=SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(10, 2)),
        tok_encode=lambda text: [int(each) for each in text.split()],
        max_length=64,
        prefix_token_id=1,
    )
    assert _encoded(lm, ["5", "2 3", "", "99"]) == [[1, 5], [2, 3]]


# -- names and settings ------------------------------------------------------------------------------------------------


def test_an_adapter_named_twice_is_refused(make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter("twice")
    monkeypatch.chdir(adapter.parent)
    for other in ("./twice", str(adapter), f"{adapter}/"):
        with pytest.raises(AdapterError, match="twice"):
            base_and_adapters(["twice", other])


@pytest.mark.parametrize("given", [{"adapters": True}, {}])
def test_peft_and_delta_together_are_refused(
    tiny_model_folder: Path, make_adapter: MakeAdapter, write_task: Callable[..., str], given: dict[str, Any]
) -> None:
    adapter = str(make_adapter("a"))
    named = {"adapters": [adapter], "model_args": {}} if given else {"model_args": {"peft": adapter}}
    named["model_args"]["delta"] = str(tiny_model_folder)
    with pytest.raises(ModelError, match="delta"):
        ours(write_task(), tiny_model_folder, **named)
    with pytest.raises(ModelError, match="delta"):
        TreeLM(str(tiny_model_folder), device="cpu", peft=adapter, delta=str(tiny_model_folder))


def test_the_revision_of_the_base_is_that_of_a_hub_adapter(
    make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in lm-eval, which passes revision= on to peft; `@revision` comes first."""
    adapter = make_adapter("hub")
    asked: list[str | None] = []

    def download(repo: str, *, revision: str | None, **_: Any) -> str:
        asked.append(revision)
        return str(adapter if repo == "me/one" else shutil.copytree(adapter, adapter.parent / "other"))

    monkeypatch.setattr("harness_ext.models.adapters.snapshot_download", download)
    base_and_adapters(["me/one", "me/two@v2"], revision="v1")
    assert asked == ["v1", "v2"]


def test_a_position_beyond_the_models_is_named(
    tiny_model_folder: Path, write_task: Callable[..., str], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=1
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    task = write_task(doc_to_text="Review: {{text}} " + "and on " * 30 + "Label:")
    for model in ("hf", "hf-tree"):
        with pytest.raises(ModelError, match=r"max_length=400 .* 24 positions"):
            evaluate(str(tmp_path / "gpt2"), tasks=[task], model=model, model_args={"max_length": 400})
