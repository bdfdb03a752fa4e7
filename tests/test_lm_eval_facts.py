"""Facts of lm-eval that our code relies on: when an upgrade changes one, the test that fails says what to look at."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, stderr_for_metric
from lm_eval.api.model import CachingLM, hash_args
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import create_iterator
from versions import LM_EVAL_05, request

from harness_ext import hooks
from harness_ext.protocol.fewshot import DEFAULT_SEED
from harness_ext.protocol.lm_eval_api import build_task
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.protocol.tasks import load_task

ONLY_04 = pytest.mark.skipif(LM_EVAL_05, reason="lm-eval 0.5 does this in another way, see protocol/lm_eval_api")


class Echo(lm_eval.api.model.LM):
    """Prefers the first choice; generates the document's sentence."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(-float(request.idx), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [f" {request.doc['sentence']}" for request in requests]


ROWS = [{"sentence": word, "label": number % 2} for number, word in enumerate(("one", "two", "three", "four"))]


def made(**config: Any) -> ConfigurableTask:
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    return build_task(
        {
            "task": "made",
            "custom_dataset": lambda **_: datasets.DatasetDict(train=rows, validation=rows, test=rows),
            "validation_split": "validation",
            "doc_to_text": "{{sentence}}",
            "doc_to_target": "{{label}}",
            "metadata": {"version": 1},
            **config,
        }
    )


def evaluated(task: ConfigurableTask, **settings: Any) -> dict[str, Any]:
    done = lm_eval.simple_evaluate(Echo(), tasks=[task], task_manager=_no_tasks(), bootstrap_iters=10, **settings)
    return dict(done)


def _no_tasks() -> TaskManager:
    return TaskManager(include_path=str(tasks_path()), include_defaults=False)


# -- models and tokens -------------------------------------------------------------------------------------------


def test_hflm_requires_pretrained() -> None:
    with pytest.raises(TypeError, match="pretrained"):
        HFLM(peft="adapters/x")


@pytest.mark.parametrize("space", [" ", "\n", " \n "])
def test_encode_pair_moves_white_space_into_the_continuation(space: str, tiny_lm: HFLM) -> None:
    context, continuation = tiny_lm._encode_pair(f"Answer:{space}", "yes")
    assert context == tiny_lm.tok_encode("Answer:")
    assert tiny_lm.tokenizer.decode(continuation) == f"{space}yes"


def test_begin_token_is_not_doubled(tiny_lm: HFLM) -> None:
    for text in ("Answer:", "<s>Answer:"):
        assert tiny_lm.tok_encode(text).count(tiny_lm.prefix_token_id) == 1
        assert tiny_lm.tok_batch_encode([text])[0][0].tolist() == tiny_lm.tok_encode(text)


def test_an_empty_context_becomes_the_prefix_token(tiny_lm: HFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def tokens(requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        asked.extend(requests)
        return [(0.0, True)] * len(requests)

    monkeypatch.setattr(tiny_lm, "_loglikelihood_tokens", tokens)
    tiny_lm.loglikelihood([request("loglikelihood", ("", " yes"))])
    ((_, context, continuation),) = asked
    assert context == [tiny_lm.prefix_token_id]
    assert continuation == tiny_lm.tok_encode(" yes", add_special_tokens=False)


def test_a_cached_response_is_keyed_by_the_request_alone(tmp_path: Path) -> None:
    asked = request("generate_until", ("prompt", {}), doc=ROWS[0])
    for name in ("base", "adapter"):
        assert hash_args("generate_until", asked.args) == hash_args("generate_until", ("prompt", {})), name
    assert "model" not in inspect.signature(hash_args).parameters
    assert list(inspect.signature(CachingLM.__init__).parameters) == ["self", "lm", "cache_db"]


# -- tasks -------------------------------------------------------------------------------------------------------


@ONLY_04
def test_custom_dataset_gets_metadata_and_dataset_kwargs() -> None:
    import datasets

    seen = {}

    def load(**kwargs: Any) -> datasets.DatasetDict:
        seen.update(kwargs)
        return datasets.DatasetDict(validation=datasets.Dataset.from_list(ROWS))

    made(custom_dataset=load, dataset_kwargs={"dataset": "mine"}, metadata={"version": 1, "pretrained": "gpt2"})
    assert seen == {"dataset": "mine", "version": 1, "pretrained": "gpt2"}


def test_functions_are_looked_up_beside_the_yaml_under_their_path(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("def text(doc):\n    return doc['sentence']\n")
    common = (
        "custom_dataset: !function harness_ext.hooks.load_documents\ndataset_kwargs: {dataset: sst2}\n"
        "validation_split: validation\ndoc_to_target: x\n"
    )
    (tmp_path / "mine.yaml").write_text(f"task: mine\n{common}doc_to_text: !function words.text\n")
    task = load_task(str(tmp_path / "mine.yaml"))
    assert task.config.doc_to_text.__module__ == str(tmp_path / "words")  # why a fingerprint drops the folder
    assert task.config.custom_dataset is hooks.load_documents  # an importable module, the very function


def test_an_unknown_key_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="doc_to_txt"):
        made(doc_to_txt="x")


@ONLY_04
@pytest.mark.parametrize(("chat", "delimiter"), [(False, "->"), (True, "")])
def test_a_choice_has_a_request_each_and_no_delimiter_after_a_chat_template(chat: bool, delimiter: str) -> None:
    task = made(
        output_type="multiple_choice", doc_to_choice=["no", "yes"], doc_to_target="label", target_delimiter="->"
    )
    requests = task.construct_requests(ROWS[0], "context", apply_chat_template=chat, metadata=("made", 0, 1))
    assert [request.args for request in requests] == [("context", f"{delimiter}no"), ("context", f"{delimiter}yes")]
    assert [request.idx for request in requests] == [0, 1]


@ONLY_04
def test_zero_shots_of_a_task_are_not_overridden() -> None:
    task = made(num_fewshot=0)
    evaluated(task, num_fewshot=2, limit=1)
    assert task.config.num_fewshot == 0
    task = made()
    evaluated(task, num_fewshot=2, limit=1)
    assert task.config.num_fewshot == 2  # the setting stays in the task: a fingerprint must allow for it


@ONLY_04
def test_a_document_may_be_its_own_example_unless_the_examples_are_the_test_split() -> None:
    def leaks(**splits: str) -> int:
        task = made(**splits)
        task.set_fewshot_seed(seed=0)
        return sum(task.fewshot_context(doc, 3).count(doc["sentence"]) > 1 for doc in ROWS for _ in range(5))

    assert leaks(fewshot_split="validation") > 0
    assert leaks(fewshot_split="test", test_split="test") == 0


def test_fewshot_sampler() -> None:
    assert list(inspect.signature(ContextSampler.sample).parameters)[:3] == ["self", "n", "eval_doc"]
    default = inspect.signature(lm_eval.simple_evaluate).parameters["fewshot_random_seed"].default
    assert default == DEFAULT_SEED


def test_data_parallel_ranks_take_turns() -> None:
    assert list(create_iterator(iter(range(7)), rank=1, world_size=3)) == [1, 4]


# -- scores ------------------------------------------------------------------------------------------------------


@ONLY_04
def test_a_hook_replaces_the_scoring_of_lists() -> None:
    metrics = [{"metric": "share", "aggregation": "mean", "higher_is_better": True}]
    task = made(
        doc_to_target="{{[sentence, 'x']}}", process_results=lambda doc, results: {"share": 0.25}, metric_list=metrics
    )
    assert evaluated(task, limit=2)["results"]["made"]["share,none"] == 0.25


@ONLY_04
def test_a_metric_is_aggregated_over_the_documents_that_have_it() -> None:
    def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        return {"all": 1.0, **({"odd": 3.0} if doc["label"] else {})}

    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("all", "odd")]
    results = evaluated(made(process_results=score, metric_list=metrics))["results"]["made"]
    assert (results["all,none"], results["odd,none"]) == (1.0, 3.0)


@ONLY_04
def test_standard_errors_are_of_means_only() -> None:
    assert stderr_for_metric(mean, 10) is not None
    assert stderr_for_metric(hooks.macro_f1, 10) is None


@ONLY_04
def test_what_a_logged_sample_carries() -> None:
    task = made(output_type="multiple_choice", doc_to_choice=["no", "yes"], doc_to_target="label")
    sample = evaluated(task, limit=1, log_samples=True)["samples"]["made"][0]
    assert {
        "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
        "prompt_hash", "target_hash", "acc",
    } <= set(sample)  # fmt: skip
    assert sample["doc"] == ROWS[0]
    assert sample["metrics"] == ["acc", "acc_norm"]
