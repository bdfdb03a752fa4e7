"""Generation settings, whoever sets them: `hf-tree` answers, stops and refuses as `hf` does.

Oracle: lm-eval's HFLM on the same folder, one prompt at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tokenizers
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from versions import LM_EVAL_05, request

from harness_ext.engine.adapter_switch import AdapterSwitch
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.variants import Variant
from harness_ext.errors import HarnessExtError, ModelError

WORDS = ["The", "river", "runs", "past", "an", "old", "mill", ".", "Who", "built", "the", "bridge", "?"]
WORDS += ["Question", "Answer", ":", "Paris", "Berlin", "one", "two", "three", "red"]
PROMPTS = [f"Question : Who built the {word} bridge ? Answer :" for word in ("old", "red", "river", "mill", "one")]
SIZE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_end|>", "</think>"]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Words and bytes, a begin token before every text, and special tokens besides the end token."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens=SPECIAL[3:]
    )


def save_model(
    folder: Path,
    kind: str = "llama",
    *,
    text: str | None = None,
    generation_config: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A random model; with `text` it is trained to go on with it after a prompt."""
    tokens = tokenizer()
    names = {"llama": "Llama", "mistral": "Mistral", "gemma3": "Gemma3"}
    config_name = "Gemma3TextConfig" if kind == "gemma3" else f"{names[kind]}Config"
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": len(tokens)}
    torch.manual_seed(3)
    config = getattr(transformers, config_name)(**{**SIZE, **ids, **more})
    model = getattr(transformers, f"{names[kind]}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    if text is not None:
        rows = torch.tensor([tokens(prompt + text)["input_ids"][:30] for prompt in PROMPTS[:1]])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(80):
            model(rows, labels=rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokens.save_pretrained(folder)
    if generation_config:
        path = folder / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **generation_config}))
    return folder


def both(folder: Path, **more: Any) -> tuple[HFLM, TreeLM]:
    arguments: dict[str, Any] = {"device": "cpu", "dtype": "float32", "batch_size": 1, **more}
    return HFLM(str(folder), **arguments), TreeLM(str(folder), **arguments, pack_tokens=64)


def ask(lm: HFLM, settings: dict[str, Any], prompts: list[str] = PROMPTS) -> list[str]:
    requests = [request("generate_until", (prompt, dict(settings)), number) for number, prompt in enumerate(prompts)]
    answers: list[str] = lm.generate_until(requests, disable_tqdm=True)
    return answers


def in_trees(lm: TreeLM) -> bool:
    return bool(lm.generation_records) and not lm._warnings


GREEDY = {"until": ["</s>"], "max_gen_toks": 14, "do_sample": False}


@pytest.mark.parametrize(
    "until", [["Question:", "</s>", "<|im_end|>"], ["<|im_end|>"], ["Berlin"], ["Ber", "\n"], [""]]
)
def test_stop_strings_of_special_tokens(tmp_path: Path, until: list[str]) -> None:
    """gsm8k and others stop at `<|im_end|>`, which is not this tokenizer's end token."""
    folder = save_model(tmp_path, text=" Paris<|im_end|> Berlin one two")
    hf, tree = both(folder)
    settings = {**GREEDY, "until": until}
    answers = ask(tree, settings, PROMPTS[:1])
    assert answers == ask(hf, settings, PROMPTS[:1])
    assert in_trees(tree)
    if until[-1] == "<|im_end|>":
        assert answers == [" Paris"]


FROM_FILE: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing": ({}, True),
    "repetition": ({"repetition_penalty": 1.3}, True),
    "n-grams": ({"no_repeat_ngram_size": 2}, True),
    "suppressed": ({"suppress_tokens": list(range(100, 300))}, True),
    "suppressed at the start": ({"begin_suppress_tokens": list(range(5, 200))}, True),
    "at least five": ({"min_new_tokens": 5, "eos_token_id": [1, *range(50, 300)]}, True),
    "a least length": ({"min_length": 30, "eos_token_id": [1, *range(50, 300)]}, True),
    "bad words": ({"bad_words_ids": [[number] for number in range(60, 260)]}, True),
    "no token twice": ({"no_repeat_ngram_size": 1}, True),
    "bad words and biases": ({"bad_words_ids": [[n] for n in range(60, 160)], "sequence_bias": [[[5, 6], 4.0]]}, True),
    "decaying": ({"exponential_decay_length_penalty": [2, 1.3]}, True),
    "sampling from one, with a penalty": ({"repetition_penalty": 1.3, "top_k": 1}, True),
    "several end tokens": ({"eos_token_id": [1, *range(50, 100)]}, True),
    "at most three": ({"max_new_tokens": 3}, True),
    "forced end": ({"forced_eos_token_id": 7}, True),
    "sampling, which the task overrules": ({"do_sample": True, "temperature": 0.7, "top_k": 5}, True),
    "beams": ({"num_beams": 2}, False),
    "a processor of two passes": ({"guidance_scale": 1.5}, False),
}


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["five", "one"])
@pytest.mark.parametrize("name", FROM_FILE)
def test_the_generation_config_of_the_model_counts(tmp_path: Path, name: str, prompts: list[str]) -> None:
    values, takes_trees = FROM_FILE[name]
    sampled = {"do_sample": True, "temperature": 1.0} if values.get("top_k") == 1 else {}
    settings = {**GREEDY, **sampled, "max_gen_toks": 40}
    hf, tree = both(save_model(tmp_path, generation_config=values))
    assert ask(tree, settings, prompts) == ask(hf, settings, prompts)
    assert in_trees(tree) is takes_trees


def test_a_generate_of_the_models_own_is_called(tmp_path: Path) -> None:
    hf, tree = both(save_model(tmp_path))
    for lm in (hf, tree):
        lm.model.generate = lambda input_ids, **_: input_ids.repeat(1, 2)
    assert ask(tree, GREEDY) == ask(hf, GREEDY) != [""] * len(PROMPTS)
    assert any("`generate` of its own" in warning for warning in tree._warnings)


def test_a_mix_up_of_rows_is_found_at_run_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay does not share the code that chose the tokens."""
    hf, tree = both(save_model(tmp_path, generation_config={"repetition_penalty": 1.5}))
    expected = ask(hf, GREEDY)
    monkeypatch.setattr("harness_ext.engine.decoding.look_at_rows", lambda _: False)
    monkeypatch.setattr(transformers.LogitsProcessorList, "__call__", _without_ids(transformers.LogitsProcessorList))
    assert ask(tree, GREEDY) == expected
    assert any("a plain pass answers differently" in warning for warning in tree._warnings)


def _without_ids(kind: Any) -> Any:
    """Processors that are given no token ids see an empty prompt."""
    original = kind.__call__

    def call(self: Any, ids: Any, scores: torch.Tensor) -> torch.Tensor:
        ids = torch.zeros(len(scores), 0, dtype=torch.long) if ids is None else ids
        return original(self, ids, scores)  # type: ignore[no-any-return]

    return call


def test_these_settings_matter(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    plain = ask(both(save_model(tmp_path / "plain"))[0], GREEDY)
    for name in ("repetition", "n-grams", "suppressed", "suppressed at the start", "bad words", "at most three"):
        changed = save_model(tmp_path / name, generation_config=FROM_FILE[name][0])
        assert ask(both(changed)[0], GREEDY) != plain, name


def test_what_transformers_refuses_is_one_line(tmp_path: Path) -> None:
    hf, tree = both(save_model(tmp_path, generation_config={"stop_strings": "a"}))
    with pytest.raises(ValueError, match=r"\w"):
        ask(hf, GREEDY)
    with pytest.raises(ModelError, match=r"generation_config\.json") as caught:
        ask(tree, GREEDY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperatur": 1.0}, {"do_sample": True, "top_p": 7.0}])
def test_settings_that_hf_refuses_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    hf, tree = both(save_model(tmp_path))
    with pytest.raises((ValueError, TypeError)):
        ask(hf, {"until": [], "max_gen_toks": 3, **settings})
    with pytest.raises(ModelError, match="gen_kwargs"):
        ask(tree, {"until": [], "max_gen_toks": 3, **settings})


@pytest.mark.parametrize(
    ("from_file", "settings"),
    [
        ({}, {"temperature": 100.0}),
        ({"top_k": 7}, {"temperature": 100.0}),
        ({"top_k": 0, "top_p": 0.2}, {"temperature": 50.0}),
        ({}, {"temperature": 100.0, "min_p": 0.95}),
    ],
)
def test_sampling_draws_from_the_same_tokens(
    tmp_path: Path, from_file: dict[str, Any], settings: dict[str, Any]
) -> None:
    hf, tree = both(save_model(tmp_path, generation_config=from_file), batch_size=300)
    drawn = []
    for lm in (hf, tree):
        torch.manual_seed(0)
        drawn.append(set(ask(lm, {"until": [], "max_gen_toks": 1, "do_sample": True, **settings}, PROMPTS[:1] * 600)))
    assert in_trees(tree)
    union, common = drawn[0] | drawn[1], drawn[0] & drawn[1]
    assert len(common) >= 0.9 * len(union), (len(common), len(union))


@pytest.mark.parametrize(
    ("kind", "window"), [("mistral", {"sliding_window": 32}), ("gemma3", {"sliding_window": 32, "head_dim": 8})]
)
def test_a_window_that_prompt_and_answer_exceed_together(tmp_path: Path, kind: str, window: dict[str, Any]) -> None:
    hf, tree = both(save_model(tmp_path, kind, **window))
    long = {**GREEDY, "max_gen_toks": 40}
    assert ask(tree, long) == ask(hf, long)
    assert not in_trees(tree)
    assert any("shorter than a sequence" in warning for warning in tree._warnings)
    fitting = TreeLM(str(tmp_path), device="cpu", dtype="float32")
    short = {**GREEDY, "max_gen_toks": 8}
    assert ask(fitting, short) == ask(hf, short)
    assert in_trees(fitting)


def test_a_window_is_measured_for_each_adapter(tmp_path: Path) -> None:
    """Short requests come first; the base's longer ones must not count as checked for the adapter."""
    folder = save_model(tmp_path / "model", "mistral", sliding_window=32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), config)
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    hf, tree = both(folder)
    alone = HFLM(str(folder), peft=str(tmp_path / "adapter"), device="cpu", dtype="float32", batch_size=1)
    switch = AdapterSwitch(tree, str(folder))
    short, long = {**GREEDY, "max_gen_toks": 4}, {**GREEDY, "max_gen_toks": 40}
    for variant, reference in ((Variant("base"), hf), (Variant("adapter", "adapter", tmp_path / "adapter"), alone)):
        with switch.active(variant):
            for settings in (short, long):
                assert ask(tree, settings) == ask(reference, settings), variant


@pytest.mark.parametrize("by_id", [False, True])
def test_reasoning_is_cut_off(tmp_path: Path, by_id: bool) -> None:
    folder = save_model(tmp_path, text=" one two</think> Paris</s>")
    hf, tree = both(folder, think_end_token=4 if by_id else "</think>")
    assert ask(tree, GREEDY, PROMPTS[:1]) == ask(hf, GREEDY, PROMPTS[:1])
    if by_id:
        assert ask(tree, GREEDY, PROMPTS[:1]) == ["Paris"]


@pytest.mark.parametrize("more", [{"mixed_precision_dtype": "bfloat16"}, {"softmax_dtype": "float64"}])
def test_other_precisions_are_applied(tmp_path: Path, more: dict[str, Any]) -> None:
    hf, tree = both(save_model(tmp_path), **more)
    requests = [
        request("loglikelihood", (prompt, f" {word}"), number)
        for number, (prompt, word) in enumerate(zip(PROMPTS, WORDS, strict=False))
    ]
    assert tree.loglikelihood(requests, disable_tqdm=True) == hf.loglikelihood(requests, disable_tqdm=True)
    assert ask(tree, GREEDY) == ask(hf, GREEDY)
    assert len([warning for warning in tree._warnings if next(iter(more)) in warning]) == 1


@pytest.mark.parametrize("max_gen_toks", [5, 64, 80])
def test_an_encoder_decoder_answers_whatever_the_limit(tmp_path: Path, max_gen_toks: int) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer()), d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, n_positions=64,
        decoder_start_token_id=2, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).eval().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    hf, tree = both(tmp_path, backend="seq2seq")
    settings = {"until": ["</s>"], "max_gen_toks": max_gen_toks, "do_sample": False}
    assert ask(tree, settings, PROMPTS[:1]) == ask(hf, settings, PROMPTS[:1])


def test_prompts_cut_on_either_side(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    long = [" ".join([prompt] * 4) for prompt in PROMPTS]
    for more in ({"max_length": 40}, {"truncation": True}, {"add_bos_token": False}):
        hf, tree = both(folder, **more)
        tree.tokenizer.model_max_length = hf.tokenizer.model_max_length = 30
        assert ask(tree, GREEDY, long) == ask(hf, GREEDY, long), more
        assert in_trees(tree)


# -- the check at run time -------------------------------------------------------------------------------------------


def test_a_fault_in_the_longest_answer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most rows are right; those that run on are not, and only a replay of the longest answer shows it."""
    hf, tree = both(save_model(tmp_path))
    from harness_ext.engine.generation import TreeDecoder

    step = TreeDecoder._step
    wrong = []

    def broken(self: TreeDecoder) -> torch.Tensor:
        logits = step(self)
        for number, row in enumerate(self._rows):
            if len(row.tokens) > 9:
                wrong.append(row.prompt)
                logits[number] = logits[number].roll(1)
        return logits

    monkeypatch.setattr(TreeDecoder, "_step", broken)
    assert ask(tree, GREEDY) == ask(hf, GREEDY)
    assert wrong
    assert any("a plain pass answers differently" in warning for warning in tree._warnings)


def test_passes_that_a_model_refuses_are_left_to_hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf, tree = both(save_model(tmp_path))

    def refuse(self: Any) -> torch.Tensor:
        raise RuntimeError("the sizes of tensors must match\nmore on this")

    monkeypatch.setattr("harness_ext.engine.generation.TreeDecoder._step", refuse)
    assert ask(tree, GREEDY) == ask(hf, GREEDY)
    (warning,) = tree._warnings
    assert "the sizes of tensors must match" in warning
    assert "\n" not in warning
    assert ask(tree, GREEDY) == ask(hf, GREEDY)


@pytest.mark.skipif(not hasattr(peft, "ShadowConfig"), reason="this release of peft has no shadow networks")
def test_an_adapter_with_a_cache_of_its_own_generates_as_with_hf(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    torch.manual_seed(2)
    config = peft.ShadowConfig(task_type="CAUSAL_LM", r=4, shadow_num_hidden_layers=1, shadow_alpha=1.0)
    wrapped = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    wrapped.save_pretrained(str(tmp_path / "shadow"))
    hf, tree = both(folder, peft=str(tmp_path / "shadow"))
    assert ask(tree, GREEDY) == ask(hf, GREEDY) != ask(both(folder)[0], GREEDY)


# -- records ---------------------------------------------------------------------------------------------------------


def write_task(folder: Path, **more: Any) -> str:
    documents = [{"q": f"Who built the {word} bridge ?", "a": "Paris"} for word in ("old", "red", "river", "old")]
    folder.mkdir()
    (folder / "docs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    task = {
        "task": "bridges",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Question : {{q}} Answer :",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["e", "t"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **more,
    }
    path = folder / "bridges.yaml"
    path.write_text(json.dumps(task))
    return str(path)


@pytest.mark.skipif(LM_EVAL_05, reason="lm-eval 0.5.0.dev1 misnumbers samples that --samples chooses")
def test_records_are_of_the_response_that_was_scored(
    tmp_path: Path, make_prompt_tuning: Callable[[Path], Path]
) -> None:
    """An adapter outside trees must not inherit the base's records; each repeat has its own."""
    folder = save_model(tmp_path / "model")
    task = write_task(tmp_path / "greedy")
    base, learned = evaluate(
        str(folder), tasks=[task], adapters=[make_prompt_tuning(folder)], log_samples=True, output_path=str(tmp_path)
    )
    tokens = tokenizer()
    for sample in base.results["samples"]["bridges"]:
        prompt = sample["arguments"][0][0]
        assert sample["input_tokens"] == len(tokens(prompt)["input_ids"])
        assert sample["finish_reason"] in ("stop", "length")
    for sample in learned.results["samples"]["bridges"]:  # counted from the answer
        assert "input_tokens" not in sample
        assert sample["finish_reason"] in ("stop", "length")

    settings = {"until": ["e", "t"], "max_gen_toks": 12, "do_sample": True, "temperature": 3.0}
    repeated = write_task(tmp_path / "repeated", repeats=4, generation_kwargs=settings)
    (done,) = evaluate(
        str(folder), tasks=[repeated], log_samples=True, output_path=str(tmp_path), samples={"bridges": [3, 1]}
    )
    for sample in done.results["samples"]["bridges"]:
        assert len(sample["generations"]) == len(sample["resps"][0]) == 4
        assert sample["finish_reason"] == sample["generations"][0]["finish_reason"]
        assert sample["output_tokens"] == sample["generations"][0]["output_tokens"]


@pytest.fixture
def make_prompt_tuning(tmp_path: Path) -> Callable[[Path], Path]:
    def make(model: Path) -> Path:
        torch.manual_seed(0)
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        wrapped = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(model), config)
        wrapped.save_pretrained(str(tmp_path / "prompt"))
        return tmp_path / "prompt"

    return make


def test_an_activated_lora_works(tmp_path: Path) -> None:
    """aLoRA begins at its invocation tokens; peft has to see whole rows to find them."""
    folder = save_model(tmp_path / "model")
    invocation = tokenizer().encode(" Answer :", add_special_tokens=False)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=invocation
    )
    wrapped = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    wrapped.save_pretrained(str(tmp_path / "alora"))
    hf = HFLM(str(folder), peft=str(tmp_path / "alora"), device="cpu", dtype="float32", batch_size=1)
    tree = TreeLM(str(folder), peft=str(tmp_path / "alora"), device="cpu", dtype="float32", batch_size=1)
    assert ask(tree, GREEDY) == ask(hf, GREEDY) != ask(both(folder)[0], GREEDY)


def test_a_context_without_tokens_is_named(tmp_path: Path) -> None:
    _, tree = both(save_model(tmp_path))
    with pytest.raises(HarnessExtError, match="has no tokens"):
        tree._loglikelihood_tokens([(("", " yes"), [], [5])], disable_tqdm=True)


def test_a_token_beyond_the_embedding_is_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    grown = tokenizer()
    grown.add_special_tokens({"extra_special_tokens": ["<|user|>"]})
    for model in ("hf", "hf-tree"):
        task = write_task(tmp_path / f"task-{model}", doc_to_text="<|user|>{{q}}")
        grown.save_pretrained(tmp_path / "tokenizer")
        with pytest.raises(ModelError, match="leave out tokenizer="):
            evaluate(str(folder), tasks=[task], model=model, model_args={"tokenizer": str(tmp_path / "tokenizer")})
