"""Planted defects of training examples and adapters, each with its finding; and no error in sound ones."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness_ext import cli
from harness_ext.doctor.diagnosis import Examination
from harness_ext.doctor.preflight import examples as building
from harness_ext.doctor.preflight.adapter import examine_adapter
from harness_ext.doctor.preflight.memorise import kept_random_state
from harness_ext.doctor.preflight.run import examine_task, examine_training
from harness_ext.errors import HarnessExtError
from harness_ext.findings import Finding
from harness_ext.models.base_proof import checksums
from harness_ext.protocol.render import PromptSettings
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.selection.train import train_adapter
from harness_ext.training.recipe import Recipe
from harness_ext.training.trainer import start_training
from harness_ext.trees.packs import TokenPair

SST2_GENERATE = tasks_path() / "sst2" / "sst2_generate.yaml"
SST2_CHOICE = tasks_path() / "sst2" / "sst2_choice.yaml"


def ids(examination: Examination) -> list[str]:
    return [finding.id for finding in examination.findings]


def errors(examination: Examination) -> list[str]:
    return [finding.id for finding in examination.errors]


def only(examination: Examination, id: str) -> Finding:
    (finding,) = [finding for finding in examination.findings if finding.id == id]
    return finding


@pytest.fixture(scope="module")
def model_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of width 128 with large weights, whose hidden states differ enough to learn answers by heart."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.AutoConfig.from_pretrained(tiny_model_folder)
    config.update({"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "tie_word_embeddings": False})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(folder)
    return folder


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., str]:
    """Write a task that is a bundled one with some settings changed."""

    def make(include: Path, **settings: Any) -> str:
        file = tmp_path / "planted.yaml"
        file.write_text(yaml.safe_dump({"include": str(include), "task": "planted", **settings}))
        return str(file)

    return make


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[TokenPair], TokenPair]], None]:
    """Let the builder of training examples make each of them otherwise."""

    def change_all(change: Callable[[TokenPair], TokenPair]) -> None:
        build = building.build_examples

        def changed(*args: Any, **options: Any) -> Any:
            built = build(*args, **options)
            return replace(built, training=[change(pair) for pair in built.training])

        monkeypatch.setattr(building, "build_examples", changed)

    return change_all


# -- training: sound tasks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sst2_choice", "sst2_generate", "squad_v2_generate", "sst2_choice_5shot"])
def test_sound_tasks(task: str, model_folder: Path) -> None:
    examination = examine_task(task, str(model_folder))
    assert not errors(examination), examination.findings
    assert "learned by heart" in examination.facts["trial"]
    assert "by the evaluator" in examination.facts["trial"]
    assert not examination.notes
    for example in examination.examples:
        assert example.supervised.endswith("</s>")
        assert "</s>" not in example.context


@pytest.mark.parametrize("settings", [PromptSettings(apply_chat_template=True), PromptSettings(num_fewshot=2)])
def test_sound_settings(settings: PromptSettings, model_folder: Path) -> None:
    examination = examine_task("sst2_generate", str(model_folder), settings=settings)
    assert not errors(examination), examination.findings


def test_model_and_random_state_are_left_alone(model_folder: Path) -> None:
    start = start_training(Recipe(task="sst2_choice", model=str(model_folder), output="unused", dtype="float32"))
    weights = checksums(start.lm.model)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), float(torch.rand(1))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    examine_training(start)
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected
    assert checksums(start.lm.model) == weights
    assert not any("forward" in vars(module) for module in start.lm.model.modules())


def test_random_state_is_kept_when_the_block_fails() -> None:
    torch.manual_seed(1)
    expected = float(torch.rand(1))
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="no"), kept_random_state(7):
        raise ValueError(f"no {torch.rand(3)}")
    assert float(torch.rand(1)) == expected


def test_training_is_bit_identical_with_and_without(model_folder: Path, tmp_path: Path) -> None:
    made: list[dict[str, Tensor]] = []
    inspected: list[Examination] = []
    for name, inspect in (("without", None), ("with", lambda start: inspected.append(examine_training(start)))):
        recipe = Recipe(
            task="sst2_choice", model=str(model_folder), output=str(tmp_path / name), limit=32, validation_size=4,
            batch_size=8, lora_dropout=0.1, dtype="float32",
        )  # fmt: skip
        train_adapter(recipe, inspect=inspect)
        made.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    assert inspected
    without, with_ = made
    assert without.keys() == with_.keys()
    assert all(torch.equal(without[name], with_[name]) for name in without)


# -- training: planted defects ---------------------------------------------------------------------------------------


def test_no_supervised_end_token(model_folder: Path, plant: Any) -> None:
    plant(lambda pair: TokenPair(pair.context, pair.continuation[:-1]))
    finding = only(examine_task("squad_v2_generate", str(model_folder)), "D7")
    assert finding.level == "error"
    assert finding.numbers["without"] == finding.numbers["n"] == 64
    assert only(examine_task("sst2_choice", str(model_folder)), "D7").level == "warning"  # nothing is generated


def test_loss_on_prompt_tokens(model_folder: Path, plant: Any) -> None:
    plant(lambda pair: TokenPair(pair.context[:1], [*pair.context[1:], *pair.continuation]))
    examination = examine_task("sst2_generate", str(model_folder))
    assert "D9" in errors(examination)
    assert only(examination, "D9").numbers["ratio"] > 5


def test_truncated_answers(model_folder: Path, plant: Any) -> None:
    plant(lambda pair: TokenPair(pair.context, [*pair.continuation[: len(pair.continuation) // 2], 1]))
    examination = examine_task("sst2_generate", str(model_folder))
    assert errors(examination)[:1] == ["D10"]
    assert only(examination, "D10").numbers["share"] == 1.0
    finding = only(examination, "D29")  # half a label is learned, and does not parse
    assert finding.numbers["failing"] == finding.numbers["n"] == 8
    assert "'</s>', generated ' " in finding.text


def test_doubled_begin_token(model_folder: Path, plant: Any) -> None:
    plant(lambda pair: TokenPair([pair.context[0], *pair.context], pair.continuation))
    examination = examine_task("sst2_choice", str(model_folder))
    finding = only(examination, "D16")
    assert (finding.level, finding.numbers["training"], finding.numbers["evaluation"]) == ("error", 2, 1)
    assert "D15" not in errors(examination)  # the prompts differ by nothing else


def test_another_prompt_in_training(model_folder: Path, plant: Any) -> None:
    plant(lambda pair: TokenPair([*pair.context[:-1], 77], pair.continuation))
    finding = only(examine_task("sst2_generate", str(model_folder)), "D15")
    assert finding.level == "error"
    assert finding.numbers["differing"] == 64


def test_another_answer_in_training(model_folder: Path, plant: Any) -> None:
    plant(lambda pair: TokenPair(pair.context, [77, *pair.continuation[1:]]))
    examination = examine_task("sst2_choice", str(model_folder))
    assert "none of the continuations" in only(examination, "D15").text


def test_labels_that_share_their_first_token(model_folder: Path, make_task: Any) -> None:
    choices = ["very bad", "very good"]
    task = make_task(SST2_CHOICE, dataset_kwargs={"dataset": "sst2", "choices": choices})
    examination = examine_task(task, str(model_folder))
    (finding, *_) = [finding for finding in examination.findings if finding.id == "D18"]
    assert finding.level == "warning"
    assert not errors(examination)


def test_a_prompt_that_ends_inside_a_token(model_folder: Path, make_task: Any) -> None:
    task = make_task(SST2_GENERATE, doc_to_text="Review: {{sentence}}\nSentiment: ", target_delimiter="")
    finding = only(examine_task(task, str(model_folder)), "D15")
    assert finding.level == "warning"
    assert "split inside a token" in finding.text


def test_answers_that_the_task_itself_cuts(model_folder: Path, make_task: Any) -> None:
    """Nothing is wrong with the examples; only the evaluator shows that no model can be right."""
    task = make_task(SST2_GENERATE, generation_kwargs={"until": ["i"], "max_gen_toks": 8, "do_sample": False})
    examination = examine_task(task, str(model_folder))
    assert errors(examination) == ["D29"]
    finding = only(examination, "D29")
    assert "'</s>', generated" in finding.text
    assert finding.numbers["examples"][0]["trained_ids"][-1] == 1
    assert finding.numbers["failing"] == 8


def test_scoring_that_expects_another_word(model_folder: Path, make_task: Any) -> None:
    task = make_task(SST2_GENERATE, doc_to_target="{{ 'ABSTAIN' if label else 'negative' }}")
    finding = only(examine_task(task, str(model_folder)), "D29")
    assert 0 < finding.numbers["failing"] < 8
    assert "ABSTAIN" in finding.numbers["examples"][0]["output"]


def test_evaluated_documents_in_the_training_split(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"sentence": f"a film with the number {n} in it", "label": n % 2} for n in range(40)]
    for split, part in (("train", rows), ("validation", rows[30:])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    task = tmp_path / "planted.yaml"
    task.write_text(
        yaml.safe_dump(
            {
                "task": "planted",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": files},
                "training_split": "train",
                "validation_split": "validation",
                "output_type": "multiple_choice",
                "doc_to_text": "sentence",
                "doc_to_choice": ["bad", "good"],
                "doc_to_target": "label",
            }
        )
    )
    examination = examine_task(str(task), str(model_folder))
    assert only(examination, "D22").numbers["documents"] == 10
    assert not errors(examination)


# -- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_EXT_DATA", "sample")
        recipe = Recipe(
            task="sst2_choice", model=str(model_folder), output=str(tmp_path_factory.mktemp("made") / "mine"), limit=16,
            batch_size=4, validation_size=0, dtype="float32",
        )  # fmt: skip
        return train_adapter(recipe).folder


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "mine"))


def change_weights(adapter: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_sound_adapter(adapter: Path, model_folder: Path) -> None:
    examination = examine_adapter(adapter, base=str(model_folder))
    assert not examination.findings
    assert not examination.notes
    assert examination.facts["scale"] == "2 (alpha / r)"
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    saved = load_file(adapter / "adapter_model.safetensors")
    for update in examination.details["updates"]:  # oracle: the product itself
        a, b = (saved[f"base_model.model.{update['layer']}.lora_{side}.weight"] for side in "AB")
        norm = float(torch.linalg.matrix_norm(2 * b @ a).detach())
        assert update["norm"] == pytest.approx(norm, rel=1e-4)
        weight = model.get_parameter(f"{update['layer']}.weight").detach()
        assert update["relative"] == pytest.approx(norm / float(torch.linalg.matrix_norm(weight)), rel=1e-4)


@pytest.mark.parametrize(
    "settings", [{"use_rslora": True}, {"use_dora": True}, {"lora_rank": 2}, {"init_lora_weights": "pissa"}]
)
def test_sound_kinds(settings: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        task="sst2_choice", model=str(model_folder), output=str(tmp_path / "kind"), limit=16, batch_size=4,
        validation_size=0, dtype="float32", **settings,
    )  # fmt: skip
    examination = examine_adapter(train_adapter(recipe).folder, base=str(model_folder))
    assert not examination.findings
    assert "update of q_proj" in examination.facts


def test_an_adapter_that_does_nothing(adapter: Path, model_folder: Path) -> None:
    change_weights(adapter, lambda old: {name: old[name] * ("lora_B" not in name) for name in old})
    finding = only(examine_adapter(adapter, base=str(model_folder)), "D20")
    assert finding.level == "error"
    assert finding.numbers["layers"] == len(finding.numbers["zero"]) == 14


def test_some_layers_that_do_nothing(adapter: Path) -> None:
    change_weights(adapter, lambda old: {name: old[name] * ("q_proj.lora_A" not in name) for name in old})
    finding = only(examine_adapter(adapter), "D20")
    assert (finding.level, len(finding.numbers["zero"])) == ("warning", 2)


def test_missing_weights(adapter: Path, model_folder: Path) -> None:
    change_weights(adapter, lambda old: {name: old[name] for name in old if "layers.1.self_attn.q_proj" not in name})
    assert not examine_adapter(adapter).findings  # unknown without the base
    finding = only(examine_adapter(adapter, base=str(model_folder)), "D20")
    assert finding.level == "error"
    assert "missing" in finding.text
    change_weights(adapter, lambda old: {name: old[name] for name in old if "layers.0.mlp.up_proj.lora_B" not in name})
    assert only(examine_adapter(adapter), "D20").numbers["layers"] == ["model.layers.0.mlp.up_proj"]


def test_weights_that_are_not_finite(adapter: Path) -> None:
    change_weights(adapter, lambda old: {name: old[name] / (0 if "v_proj" in name else 1) for name in old})
    assert "not finite" in only(examine_adapter(adapter), "D20").text


def test_another_base(adapter: Path, model_folder: Path) -> None:
    change_json(adapter / "card.json", base_sha256="0" * 64)
    finding = only(examine_adapter(adapter, base=str(model_folder)), "D34")
    assert finding.level == "error"
    assert finding.numbers["trained"] == "0" * 64


@pytest.mark.parametrize("settings", [{"lora_alpha": 64}, {"use_rslora": True}])
def test_another_scale(adapter: Path, settings: dict[str, Any]) -> None:
    change_json(adapter / "adapter_config.json", **settings)
    finding = only(examine_adapter(adapter), "D25")
    assert finding.level == "error"
    assert finding.numbers["trained"] == 2.0


def test_updates_larger_than_the_weights(adapter: Path, model_folder: Path) -> None:
    change_weights(adapter, lambda old: {name: old[name] * 100 for name in old})
    finding = only(examine_adapter(adapter, base=str(model_folder)), "D25")
    assert (finding.level, finding.numbers["relative"] > 1) == ("warning", True)


def test_without_the_base(adapter: Path) -> None:
    change_json(adapter / "card.json", base="./nowhere")
    examination = examine_adapter(adapter)
    (note,) = examination.notes
    assert "--model" in note
    assert "update of q_proj" in examination.facts


# -- commands --------------------------------------------------------------------------------------------------------


def test_doctor_examines_adapters_and_tasks(
    adapter: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--adapter", str(adapter), "--model", str(model_folder)]) == 0
    assert "update of q_proj" in capsys.readouterr().out
    assert cli.main(["doctor", "--task", "sst2_choice", "--model", str(model_folder)]) == 0
    text = capsys.readouterr().out
    assert "[[' ne" in text
    assert "learned by heart" in text
    change_weights(adapter, lambda old: {name: old[name] * 0 for name in old})
    assert cli.main(["doctor", "--adapter", str(adapter), "--format", "json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert [finding["id"] for finding in report["findings"]] == ["D20"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "sst2_choice"], "--model"),
        (["--adapter", "nowhere/at/all"], "no adapter folder"),
        (["--task", "sst2_choice", "--model", "./nowhere"], "no model folder"),
        ([], "--adapter"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", *arguments]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


def test_train_stops_before_the_first_step(
    model_folder: Path, make_task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make_task(SST2_GENERATE, generation_kwargs={"until": ["i"], "max_gen_toks": 8, "do_sample": False})
    output = tmp_path / "adapters" / "mine"
    command = [
        "train", task, "--model", str(model_folder), "--output", str(output), "--limit", "16", "--batch-size", "8",
        "--dtype", "float32", "--validation-size", "0",
    ]  # fmt: skip
    assert cli.main(command) == 2
    assert "harness-ext: D29 planted: 8 of 8" in capsys.readouterr().err
    assert not list(tmp_path.glob("adapters/*"))
    assert cli.main([*command, "--force"]) == 0
    assert "preflight: error D29" in capsys.readouterr().out
    assert cli.main([*command, "--no-preflight", "--overwrite"]) == 0
    assert "preflight" not in capsys.readouterr().out
    assert output.is_dir()


def test_a_preflight_that_cannot_run_does_not_stop_training(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("harness_ext.doctor.preflight.overfit.memorise", out_of_memory)
    examination = examine_task("sst2_choice", str(model_folder))
    assert not errors(examination)
    assert "no room" in examination.notes[0]


def test_a_task_that_cannot_be_trained(model_folder: Path, make_task: Any) -> None:
    with pytest.raises(HarnessExtError, match="training split"):
        examine_task(make_task(SST2_CHOICE, training_split=None), str(model_folder))
