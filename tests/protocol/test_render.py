"""Training uses the prompts of evaluation, plus the answer and one end token.

Oracle: the requests of lm-eval's own `task.build_all_requests` and the token ids its model class makes of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from versions import LM_EVAL_05

from harness_ext.errors import ModelError, TaskError
from harness_ext.protocol.documents import DATA_VARIABLE, SAMPLE_FOLDER
from harness_ext.protocol.lm_eval_api import build_task
from harness_ext.protocol.render import (
    PromptSettings,
    Rendered,
    check_chat_template,
    encode,
    prompts,
    render,
    training_docs,
)
from harness_ext.protocol.tasks import load_task, load_tasks
from harness_ext.training.batches import build_examples

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
TASKS = ("sst2_choice", "sst2_generate", "squad_v2_generate")
DOCUMENTS, FEWER_DOCUMENTS = 200, 30
SETTINGS = {
    "plain": PromptSettings(),
    "few-shot": PromptSettings(num_fewshot=2),
    "chat": PromptSettings(apply_chat_template=True),
}
MORE_SETTINGS = {
    "chat few-shot": PromptSettings(apply_chat_template=True, num_fewshot=2),
    "chat few-shot, one turn": PromptSettings(apply_chat_template=True, num_fewshot=2, fewshot_as_multiturn=False),
    "system": PromptSettings(system_instruction="Be brief."),
    "chat system": PromptSettings(apply_chat_template=True, system_instruction="Be brief."),
    "few-shot, other seed": PromptSettings(num_fewshot=2, fewshot_seed=7),
}
ANSWERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "sst2_choice": lambda doc: ("negative", "positive")[doc["label"]],
    "sst2_generate": lambda doc: ("negative", "positive")[doc["label"]],
    "squad_v2_generate": lambda doc: (doc["answers"]["text"] or ["unanswerable"])[0],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the real splits if available, so that a task loads quickly; else the sample."""
    if not SHARED_DATA.is_dir():
        return SAMPLE_FOLDER
    root = tmp_path_factory.mktemp("data")
    for file in SHARED_DATA.glob("*/*.parquet"):
        (root / file.parent.name).mkdir(exist_ok=True)
        rows = pyarrow.parquet.read_table(file).slice(0, 2 * DOCUMENTS)
        pyarrow.parquet.write_table(rows, root / file.parent.name / file.name)
    return root


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest, data: Path) -> Iterator[ConfigurableTask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_VARIABLE, str(data))
        yield load_task(request.param)


def evaluation_requests(
    task: ConfigurableTask, settings: PromptSettings, lm: HFLM, *, limit: int = DOCUMENTS
) -> list[list[Instance]]:
    """Requests of each evaluated document, built by lm-eval as in `simple_evaluate`."""
    before = task.get_config("num_fewshot")
    task.set_config("num_fewshot", settings.num_fewshot or before or 0)
    task.set_fewshot_seed(seed=settings.fewshot_seed)
    task.build_all_requests(
        limit=limit,
        system_instruction=settings.system_instruction,
        apply_chat_template=bool(settings.apply_chat_template),
        fewshot_as_multiturn=settings.multiturn,
        chat_template=lm.apply_chat_template if settings.apply_chat_template else None,
        tokenizer_name="",
    )
    task.set_config("num_fewshot", before)
    by_document: dict[int, list[Instance]] = {}
    for instance in task.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    return list(by_document.values())


def evaluated_ids(requests: list[Instance], gold: int, lm: HFLM) -> tuple[list[int], list[int] | None]:
    """The ids the model sees for a document: those of the context, and of the gold continuation when it is scored."""
    if requests[0].request_type == "generate_until":
        ids, _ = lm.tok_batch_encode([requests[0].args[0]])
        return ids[0].tolist(), None
    context, continuation = lm._encode_pair(*requests[gold].args)
    return context, continuation


@pytest.mark.parametrize(
    ("settings", "documents"),
    [(settings, DOCUMENTS) for settings in SETTINGS.values()]
    + [(settings, FEWER_DOCUMENTS) for settings in MORE_SETTINGS.values()],
    ids=[*SETTINGS, *MORE_SETTINGS],
)
def test_training_ids_are_evaluation_ids(
    task: ConfigurableTask, settings: PromptSettings, documents: int, tiny_lm: HFLM
) -> None:
    docs = task.validation_docs().select(range(min(documents, len(task.validation_docs()))))
    evaluation = evaluation_requests(task, settings, tiny_lm, limit=documents)
    rendered = list(render(task, docs, settings, tiny_lm))
    assert len(rendered) == len(evaluation) == len(docs)
    delimiter = "" if settings.apply_chat_template else " "
    for doc, requests, each in zip(docs, evaluation, rendered, strict=True):
        gold = doc["label"] if task.OUTPUT_TYPE == "multiple_choice" else 0
        assert each.context == requests[gold].args[0]
        assert each.continuation == delimiter + ANSWERS[task.task_name](doc)
        encoded = encode(task, each, tiny_lm)
        context, continuation = evaluated_ids(requests, gold, tiny_lm)
        assert encoded.context == context
        assert continuation is None or encoded.continuation == continuation
        # White space at the end of a scored context moves into the continuation: `_encode_pair`.
        moved = each.context[len(each.context.rstrip()) :] if continuation is not None else ""
        assert tiny_lm.tokenizer.decode(encoded.continuation) == moved + each.continuation
        # One BOS token, whether the tokenizer or the chat template adds it.
        assert (context.index(tiny_lm.prefix_token_id), context.count(tiny_lm.prefix_token_id)) == (0, 1)


@pytest.mark.parametrize("settings", [SETTINGS["plain"], MORE_SETTINGS["chat system"]], ids=["plain", "chat system"])
def test_examples_end_in_one_end_token(task: ConfigurableTask, settings: PromptSettings, tiny_lm: HFLM) -> None:
    docs = task.validation_docs().select(range(60))
    examples = build_examples(task, docs, settings, tiny_lm, limit=None, validation_size=20, max_length=10_000, seed=3)
    made = sorted((pair.context, pair.continuation) for pair in (*examples.training, *examples.validation))
    end = tiny_lm.tokenizer.eos_token_id
    encodings = [encode(task, each, tiny_lm) for each in render(task, docs, settings, tiny_lm)]
    assert made == sorted((each.context, [*each.continuation, end]) for each in encodings)
    assert all([*context, *continuation].count(end) == 1 for context, continuation in made)


def test_fewshot_seed_decides_the_examples(task: ConfigurableTask, tiny_lm: HFLM) -> None:
    docs = task.validation_docs().select(range(20))

    def contexts(seed: int) -> list[str]:
        settings = PromptSettings(num_fewshot=3, fewshot_seed=seed)
        return [each.context for each in render(task, docs, settings, tiny_lm)]

    assert contexts(1) == contexts(1)
    assert contexts(1) != contexts(2)


def test_settings_of_one_rendering_do_not_reach_the_next(task: ConfigurableTask, tiny_lm: HFLM) -> None:
    docs = task.validation_docs().select(range(5))
    before = list(render(task, docs, PromptSettings(), tiny_lm))
    list(render(task, docs, PromptSettings(num_fewshot=2, apply_chat_template=True), tiny_lm))
    assert list(render(task, docs, PromptSettings(), tiny_lm)) == before


# -- other shapes of task ----------------------------------------------------------------------------------------

ROWS = [
    {"question": "Is ice cold?", "answer": "yes indeed", "label": 1},
    {"question": "Is fire wet?", "answer": "no", "label": 0},
    {"question": "Do birds sing?", "answer": "often", "label": 1},
    {"question": "Do stones sing?", "answer": "never", "label": 0},
]


def make_task(folder: Path, **config: Any) -> ConfigurableTask:
    """A task over four documents, the same in both splits."""
    files = {}
    for split in ("train", "validation"):
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        files[split] = str(file)
    return build_task(
        {
            "task": "made",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "training_split": "train",
            "validation_split": "validation",
            "fewshot_split": "train",
            "doc_to_text": "Q: {{question}}\nA:",
            "doc_to_target": "{{answer}}",
            "output_type": "generate_until",
            "metadata": {"version": 1},
            **config,
        }
    )


CHOICE = {"output_type": "multiple_choice", "doc_to_choice": ["no", "yes"], "doc_to_target": "label"}
SEVERAL = {"multiple_targets": True} if LM_EVAL_05 else {}
SHAPES: dict[str, tuple[dict[str, Any], str]] = {  # and the gold continuation of the first document, plain
    "space at the end of the context": (
        {**CHOICE, "doc_to_text": "Q: {{question}}\nA: ", "target_delimiter": ""},
        "yes",
    ),
    "label as a word": ({**CHOICE, "doc_to_target": "{{['no', 'yes'][label]}}"}, " yes"),
    "several golds": ({**CHOICE, **SEVERAL, "doc_to_target": "{{[['no', 'yes'][label], 'no']}}"}, " yes"),
    "no context": ({**CHOICE, "doc_to_text": ""}, "yes" if LM_EVAL_05 else " yes"),
    "mutual information": ({**CHOICE, "metric_list": [{"metric": "acc_mutual_info"}]}, " yes"),
    "choices in the context": (
        {**CHOICE, "multiple_inputs": True, "doc_to_text": "{{['No', 'Yes']}}", "doc_to_choice": "{{[answer]}}"}
        if LM_EVAL_05
        else {**CHOICE, "doc_to_text": "label", "doc_to_choice": "{{['No', 'Yes']}}", "doc_to_target": "{{answer}}"},
        " yes indeed",
    ),
    "scored choice with a prefix": ({**CHOICE, "gen_prefix": "Answer:"}, " yes"),
    "one continuation": ({"output_type": "loglikelihood", "doc_to_target": " {{answer}}"}, " yes indeed"),
    "generated": ({}, " yes indeed"),
    "generated, delimiter of two lines": ({"target_delimiter": "\n\n"}, "\n\nyes indeed"),
    "generated, several references": ({**SEVERAL, "doc_to_target": "{{[answer, 'x']}}"}, " yes indeed"),
    "generated after a prefix": ({"gen_prefix": "Answer:"}, " yes indeed"),
    "generated after a prefix with a space": ({"gen_prefix": "Answer: "}, "yes indeed"),
    "generated after a prefix, answer with a space": (
        {"gen_prefix": "Answer:", "doc_to_target": " {{answer}}"},
        " yes indeed",
    ),
    "generated label": ({"doc_to_choice": ["no", "yes"], "doc_to_target": "label"}, " yes"),
}


@pytest.mark.parametrize(
    "settings", [SETTINGS["plain"], SETTINGS["few-shot"], SETTINGS["chat"]], ids=["plain", "few-shot", "chat"]
)
@pytest.mark.parametrize(("config", "continuation"), SHAPES.values(), ids=SHAPES)
def test_every_shape_of_task(
    config: dict[str, Any], continuation: str, settings: PromptSettings, tmp_path: Path, tiny_lm: HFLM
) -> None:
    task = make_task(tmp_path, **config)
    evaluation = evaluation_requests(task, settings, tiny_lm)
    rendered = list(render(task, task.validation_docs(), settings, tiny_lm))
    if settings == SETTINGS["plain"]:
        assert rendered[0].continuation == continuation
    for row, requests, each in zip(ROWS, evaluation, rendered, strict=True):
        gold = row["label"] if task.OUTPUT_TYPE == "multiple_choice" else 0
        if not settings.num_fewshot:  # here lm-eval may show a document its own answer; render never does
            assert each.context == requests[gold].args[0]
            if requests[gold].request_type == "loglikelihood":
                assert each.continuation == requests[gold].args[1]
        encoded = encode(task, each, tiny_lm)
        if requests[gold].request_type == "generate_until":
            assert encoded.context == tiny_lm.tok_encode(each.context)
        elif each.context:
            assert encoded == tiny_lm._encode_pair(*each)
        whole = tiny_lm.tokenizer.decode([*encoded.context, *encoded.continuation])
        assert whole == "<s>" + (each.context + each.continuation).removeprefix("<s>")
        assert encoded.continuation


def test_a_document_is_not_its_own_example(tmp_path: Path, tiny_lm: HFLM) -> None:
    task = make_task(tmp_path)
    for _ in range(2):
        contexts = [each.context for each in render(task, training_docs(task), PromptSettings(num_fewshot=3), tiny_lm)]
        for row, context in zip(ROWS, contexts, strict=True):
            assert context.count(str(row["question"])) == 1
            assert all(str(other["question"]) in context for other in ROWS)
    assert "sample" not in vars(task.sampler)


def test_a_task_with_zero_shots_keeps_them(tmp_path: Path, tiny_lm: HFLM) -> None:
    task = make_task(tmp_path, num_fewshot=0)
    (first, *_) = render(task, ROWS, PromptSettings(num_fewshot=3), tiny_lm)
    assert first == Rendered("Q: Is ice cold?\nA:", " yes indeed")


UNSURE = {**CHOICE, "doc_to_target": "{{label}}{{'!' if label > 1}}"}  # an index, or a word that is not a choice
UNRENDERABLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "field missing": ({}, {"answer": "x"}, "'question' is undefined"),
    "label missing": ({**CHOICE, "doc_to_target": "{{label}}"}, {"question": "?"}, "'label' is undefined"),
    "label too high": (CHOICE, {"question": "?", "label": 2}, "label 2 is outside its 2 choices"),
    "label below zero": (CHOICE, {"question": "?", "label": -1}, "label -1 is outside its 2 choices"),
    "label too high, mutual information": (
        {**CHOICE, "metric_list": [{"metric": "acc_mutual_info"}]},
        {"question": "?", "label": 2},
        "outside its 2 choices",
    ),
    "word that is no choice": (UNSURE, {"question": "?", "label": 2}, "'2!' is not in list"),
    "no reference": (
        {"doc_to_target": "{{[answer] if answer else []}}"},
        {"question": "?", "answer": ""},
        "out of range",
    ),
}


@pytest.mark.parametrize(("config", "row", "expected_part"), UNRENDERABLE.values(), ids=UNRENDERABLE)
def test_documents_that_cannot_be_rendered(
    config: dict[str, Any], row: dict[str, Any], expected_part: str, tmp_path: Path, tiny_lm: HFLM
) -> None:
    task = make_task(tmp_path, **config)
    with pytest.raises(TaskError) as caught:
        list(render(task, [ROWS[0], row], PromptSettings(), tiny_lm))
    assert expected_part in str(caught.value)
    assert "'made' cannot render document 1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_has_no_answer_cannot_be_trained_on(tmp_path: Path, tiny_lm: HFLM) -> None:
    task = make_task(tmp_path, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}")
    with pytest.raises(TaskError, match="has no answer to train on"):
        list(render(task, ROWS, PromptSettings(), tiny_lm))


def test_prompts_of_any_task(tmp_path: Path, tiny_lm: HFLM) -> None:
    """Also for a task without a gold answer. Oracle: lm-eval's own requests."""
    rolling = make_task(tmp_path, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}")
    for task in (rolling, make_task(tmp_path), make_task(tmp_path, **CHOICE)):
        evaluation = evaluation_requests(task, PromptSettings(), tiny_lm)
        rendered = list(prompts(task, task.validation_docs(), PromptSettings(), tiny_lm))
        part = -1 if task is rolling else 0  # lm-eval 0.5 puts an empty context before a text
        assert rendered == [requests[0].args[part] for requests in evaluation]


@pytest.mark.parametrize(
    ("own", "asked", "expected_part"),
    [
        (None, True, "has no chat template; omit apply_chat_template"),
        ("", True, "has no chat template"),
        (None, "default", "has no chat template"),
        ({"tool": "x", "rag": "y"}, True, "no chat template 'default'; set apply_chat_template to one of rag, tool"),
        ({"default": "x"}, "rag", "no chat template 'rag'; set apply_chat_template to one of default"),
        ("x", True, None),
        ("x", "named", None),  # lm-eval uses the only template
        ({"default": "x", "rag": "y"}, "rag", None),
        ({"default": "x"}, True, None),
        (None, False, None),
    ],
)
def test_a_chat_template_that_is_not_there(own: Any, asked: bool | str, expected_part: str | None) -> None:
    lm: Any = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=own, name_or_path="org/base"))
    with pytest.raises(ModelError) if expected_part else contextlib.nullcontext() as caught:
        check_chat_template(lm, asked)
    if expected_part:
        assert expected_part in str(caught.value)
        assert "org/base" in str(caught.value)


@pytest.mark.parametrize("sampler", ["default", "first_n"])
@pytest.mark.parametrize(("shots", "available"), [(len(ROWS), len(ROWS) - 1), (9, len(ROWS) - 1)])
def test_more_shots_than_other_documents(
    shots: int, available: int, sampler: str, tmp_path: Path, tiny_lm: HFLM
) -> None:
    task = make_task(tmp_path, fewshot_config={"sampler": sampler})
    with pytest.raises(TaskError) as caught:
        list(render(task, training_docs(task), PromptSettings(num_fewshot=shots), tiny_lm))
    assert str(caught.value) == (
        f"task 'made' has {available} few-shot examples for a document, but num_fewshot is {shots}; lower num_fewshot"
    )


@pytest.mark.parametrize(
    ("config", "context", "expected_part"),
    [
        (CHOICE, " ", "its text is ' '"),
        ({}, "", "its text is ''"),
        (CHOICE, "", None),  # lm-eval replaces an empty context by a token of its own
        (CHOICE, "Q", None),
        ({}, " ", None),
    ],
)
def test_a_context_without_tokens(
    config: dict[str, Any], context: str, expected_part: str | None, tmp_path: Path, tiny_lm: HFLM,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    task = make_task(tmp_path, **config)
    monkeypatch.setattr(tiny_lm, "add_bos_token", False)
    with pytest.raises(TaskError) if expected_part else contextlib.nullcontext() as caught:
        encoded = encode(task, Rendered(context, " yes"), tiny_lm)
        assert encoded.context
    if expected_part:
        assert expected_part in str(caught.value)
        assert "'made' has a prompt without tokens" in str(caught.value)


def test_a_composed_task_without_a_question(tmp_path: Path) -> None:
    task = load_task("sst2_choice_calibrated")
    monkey: Any = task
    monkey.doc_to_text = lambda doc: ""
    with pytest.raises(TaskError, match="'sst2_choice_calibrated' has a document without a question"):
        task.construct_requests(doc=task.eval_docs[0], ctx="", metadata=("t", 0, 1))


def test_tags_groups_and_patterns_load_all_their_tasks(tmp_path: Path) -> None:
    base = Path(__file__).parents[2] / "tasks" / "sst2" / "_sst2.yaml"
    common = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\n"
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"include: {base}\ntask: {name}\ntag: pair_tag\n{common}")
    (tmp_path / "group.yaml").write_text("group: pair\ntask: [one, two]\n")

    def names(*asked: str) -> list[str]:
        _, loaded = load_tasks(asked, include_path=[tmp_path])
        return [getattr(each, "task_name", None) or each.name for each in loaded]

    assert names("pair_tag") == ["one", "two"]
    assert names("pair") == ["pair"]
    assert names(str(tmp_path / "two.yaml")) == ["two"]
    assert names("two", "sst2_choice*") == ["two", "sst2_choice", "sst2_choice_5shot", "sst2_choice_calibrated"]
    with pytest.raises(TaskError, match="more than one task"):
        load_task("pair_tag", include_path=[tmp_path])


class TestNamedTwice:
    """A task runs once, even if several names, patterns, paths, tags or groups contain it."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        base = Path(__file__).parents[2] / "tasks" / "sst2" / "_sst2.yaml"
        common = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\n"
        for name in ("one", "two", "three"):
            tags = "tag: [odd, all]\n" if name != "two" else "tag: all\n"
            (tmp_path / f"{name}.yaml").write_text(f"include: {base}\ntask: {name}\n{tags}{common}")
        mean = "aggregate_metric_list: [{metric: acc}]\n"
        (tmp_path / "early.yaml").write_text(f"group: early\ntask: [one, two]\n{mean}")
        (tmp_path / "late.yaml").write_text(f"group: late\ntask: [two, three]\n{mean}")
        (tmp_path / "outer.yaml").write_text("group: outer\ntask: [early, three]\n")
        (tmp_path / "other.yaml").write_text("group: other\ntask: [{task: one, description: Think.}]\n")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            (["one", "one"], ["one"]),
            (["one", "o*e"], ["one"]),
            (["one.yaml", "one"], ["one"]),
            (["one", "./one.yaml", "FOLDER/one.yaml"], ["one"]),
            (["odd", "all"], ["one", "three", "two"]),
            (["odd", "one"], ["one", "three"]),
            (["early", "one"], ["early"]),
            (["one", "early"], ["early"]),
            (["early", "two.yaml", "three"], ["early", "three"]),
            (["early", "late"], ["early", "late"]),
            (["early", "early"], ["early"]),
            (["early", "outer", "one"], ["outer"]),
            (["late", "outer"], ["late", "outer"]),
        ],
    )
    def test_it_runs_once(self, asked: list[str], expected: list[str], folder: Path) -> None:
        names = [name.replace("FOLDER", str(folder)) for name in asked]
        manager, loaded = load_tasks(names, include_path=[folder])
        assert [getattr(each, "task_name", None) or each.name for each in loaded] == expected
        tasks = manager.load(loaded)["tasks"]  # lm-eval's own result; it refuses duplicate tasks
        leaves = [each.get_all_tasks() if isinstance(each, Group) else [each] for each in loaded]
        assert {id(leaf) for some in leaves for leaf in some} == {id(task) for task in tasks.values()}

    def test_its_documents_are_read_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        built = []
        original = ConfigurableTask.download
        monkeypatch.setattr(
            ConfigurableTask, "download", lambda task, *a, **k: built.append(task.task_name) or original(task, *a, **k)
        )
        load_tasks(["early", "late", "one", "two.yaml", "odd", "outer"], include_path=[folder])
        assert sorted(built) == ["one", "three", "two"]

    @pytest.mark.parametrize("asked", [["other", "one"], ["one", "other"], ["early", "other"]])
    def test_a_group_that_changes_a_task_is_not_that_task(self, asked: list[str], folder: Path) -> None:
        with pytest.raises(TaskError, match=r"two different tasks.* 'one' \(a group"):
            load_tasks(asked, include_path=[folder])

    def test_two_files_of_one_name(self, folder: Path) -> None:
        text = (folder / "one.yaml").read_text()
        for name, more in (("alike", ""), ("changed", "description: Think.\n")):
            (folder / name).mkdir()
            (folder / name / "one.yaml").write_text(text + more)
        _, loaded = load_tasks(["one", "alike/one.yaml"], include_path=[folder])
        assert len(loaded) == 1
        with pytest.raises(TaskError, match=r"two different tasks.* 'one' \(.*one.yaml and .*one.yaml differ\)"):
            load_tasks(["one", "changed/one.yaml"], include_path=[folder])


def test_settings_are_facts() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PromptSettings().num_fewshot = 1  # type: ignore[misc]
