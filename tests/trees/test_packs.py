"""A pass over a packed tree against one plain pass for each sequence: the same numbers, or a reason not to try."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from accelerate.utils import send_to_device
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor

from harness_ext.cpu.block_attention import use_blocks
from harness_ext.trees.packs import PaddedPack, TokenPair, TreePack, carried_logits, padded_packs, tree_packs
from harness_ext.trees.support import why_no_trees

VOCABULARY = 97
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512}
MODEL_NAMES = {"T5": "T5ForConditionalGeneration", "GPT2": "GPT2LMHeadModel"}
NEOX = {**SMALL, "intermediate_size": 64, "max_position_embeddings": 512}
ROPE = {"rope_theta": 1e4, "factor": 2.0}
LONGROPE = {**ROPE, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
DYNAMIC = {**ROPE, "rope_type": "dynamic"}


def with_rope(rope: dict[str, Any], *, original: int, **more: Any) -> dict[str, Any]:
    """A Llama that was trained on `original` positions."""
    stretched = {} if rope is DYNAMIC else {"original_max_position_embeddings": original}
    positions = original if rope is DYNAMIC else 512
    return {**LLAMA, **more, "max_position_embeddings": positions, "rope_parameters": {**rope, **stretched}}


def build(architecture: str, **config: Any) -> Any:
    """A random model whose weights are large enough for a wrong position or mask to show."""
    torch.manual_seed(0)
    made = getattr(transformers, f"{architecture}Config")(**config)
    name = MODEL_NAMES.get(architecture, f"{architecture.removesuffix('Text')}ForCausalLM")
    model = getattr(transformers, name)(made).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    use_blocks(model)
    return model


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut attention into blocks at this size, too; `llama eager` stays dense."""
    monkeypatch.setattr("harness_ext.cpu.block_attention.BLOCK_COST", 64)


def tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(3, VOCABULARY) for _ in range(count)]


def sst2_like() -> list[TokenPair]:
    """One instruction, short reviews of different lengths, two one-token labels for each and a longer choice."""
    draw = random.Random(1)
    instruction = tokens(draw, 12)
    pairs = []
    for length in (3, 9, 5):
        context = [*instruction, *tokens(draw, length), 7]
        pairs += [TokenPair(context, [20]), TokenPair(context, [21]), TokenPair(context, [20, 22, 23])]
    return pairs


def squad_like() -> list[TokenPair]:
    """Two passages, several questions on each, answers of several tokens with an end token."""
    draw = random.Random(2)
    instruction = tokens(draw, 6)
    pairs = []
    for _ in range(2):
        passage = tokens(draw, 40)
        for question, answer in ((4, 3), (9, 1), (6, 5)):
            pairs.append(
                TokenPair([*instruction, *passage, *tokens(draw, question), 7], [*tokens(draw, answer), 2]),
            )
    return pairs


def one_by_one(model: Any, pairs: list[TokenPair]) -> list[Tensor]:
    """Log-probabilities of each continuation by the plainest code there is: no padding, no packs."""
    answers = []
    for context, continuation in pairs:
        ids = torch.tensor([[*context, *continuation]])
        logits = model(input_ids=ids).logits[0, len(context) - 1 : -1]
        every = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
        answers.append(every.gather(1, torch.tensor(continuation)[:, None])[:, 0])
    return answers


def by_packs(model: Any, packs: list[Any]) -> dict[int, Tensor]:
    found = {}
    for pack in packs:
        found.update(zip(pack.sequences, pack.target_logprobs(model).split(pack.counts), strict=True))
    return found


def assert_same(model: Any, packs: list[Any], pairs: list[TokenPair]) -> None:
    with torch.no_grad():
        expected, found = one_by_one(model, pairs), by_packs(model, packs)
    assert sorted(found) == list(range(len(pairs)))
    for number, logprobs in enumerate(expected):
        torch.testing.assert_close(found[number], logprobs, atol=1e-4, rtol=0)


# Every architecture of the issue, and some with a known trap. The word is part of the reason why it takes no trees;
# None means that it has to take them. Longest sequence of the batches: 62 tokens.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "llama": ("Llama", LLAMA, None),
    "llama eager": ("Llama", {**LLAMA, "attn_implementation": "eager"}, None),
    "dynamic rope": ("Llama", with_rope(DYNAMIC, original=512), None),
    "dynamic rope, beyond": ("Llama", with_rope(DYNAMIC, original=40), "rotary frequencies (40 tokens)"),
    "dynamic rope in some layers, beyond": (
        "Gemma3Text",
        {
            **LLAMA, "head_dim": 8, "max_position_embeddings": 40, "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": DYNAMIC,
            },
        },
        "rotary frequencies (40 tokens)",
    ),
    "longrope": ("Llama", with_rope(LONGROPE, original=80), None),
    "longrope, beyond": ("Llama", with_rope(LONGROPE, original=40), "rotary frequencies (40 tokens)"),
    "llama3 rope": (
        "Llama",
        with_rope({**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}, original=16),
        None,
    ),
    "yarn rope": ("Llama", with_rope({**ROPE, "rope_type": "yarn"}, original=16), None),
    "qwen2": ("Qwen2", LLAMA, None),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 8}, None),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 512}, None),
    "mistral short window": ("Mistral", {**LLAMA, "sliding_window": 32}, "sliding window (32 tokens)"),
    "mistral no window": ("Mistral", {**LLAMA, "sliding_window": None}, None),
    "gemma3": ("Gemma3Text", {**LLAMA, "head_dim": 8, "sliding_window": 512}, None),
    "gemma3 short window": ("Gemma3Text", {**LLAMA, "head_dim": 8, "sliding_window": 32}, "sliding window"),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80}, None),
    "gpt neo": (
        "GPTNeo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            "max_position_embeddings": 512,
        },
        "local attention",
    ),
    "gpt neox": ("GPTNeoX", NEOX, None),
    "opt": (
        "OPT",
        {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 80},
        None,
    ),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "ALiBi"),
    "falcon rotary": ("Falcon", {**SMALL, "alibi": False, "max_position_embeddings": 512}, None),
    "falcon alibi": ("Falcon", {**SMALL, "alibi": True, "new_decoder_architecture": False}, "ALiBi"),
    "phi": ("Phi", {**NEOX, "partial_rotary_factor": 0.5}, None),
    "mamba": (
        "Mamba",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "recurrent",
    ),
    "recurrent layers by their list": (
        "Lfm2",
        {**LLAMA, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        "recurrent",
    ),
    "sparse attention": (
        "DeepseekV32",
        {
            **LLAMA, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
            "moe_intermediate_size": 32, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4, "v_head_dim": 8, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 8,
            "topk_group": 1,
        },
        "indexed_attention layers",
    ),
    "t5": (
        "T5",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4},
        "encoder-decoder",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> tuple[Any, str | None]:
    name, config, reason = ARCHITECTURES[request.param]
    return build(name, **config), reason


def test_trees_are_exact_or_refused(architecture: tuple[Any, str | None]) -> None:
    model, expected_reason = architecture
    for pairs in (sst2_like(), squad_like()):
        reason = why_no_trees(model, [*pairs, *squad_like()])
        if expected_reason is not None:
            assert reason is not None
            assert expected_reason in reason
            continue
        assert reason is None
        assert_same(model, list(tree_packs(pairs, max_tokens=10_000)), pairs)  # one pack, longer than some models
        assert_same(model, list(tree_packs(pairs, max_tokens=70)), pairs)  # several packs


@pytest.mark.parametrize("max_tokens", [20, 40, 70])
def test_packs_that_carry_on_are_exact(architecture: tuple[Any, str | None], max_tokens: int) -> None:
    model, reason = architecture
    if reason is not None:
        pytest.skip("takes no trees")
    pairs = [*sst2_like(), *squad_like()]
    packs = list(tree_packs(pairs, max_tokens=max_tokens, carry=True))
    assert sum(pack.carried > 0 for pack in packs) >= 2
    found: dict[int, Tensor] = {}
    for pack, logits in carried_logits(model, packs):
        found |= zip(pack.sequences, pack.chosen(logits).split(pack.counts), strict=True)
    with torch.no_grad():
        expected = one_by_one(model, pairs)
    assert sorted(found) == list(range(len(pairs)))
    for number, logprobs in enumerate(expected):
        torch.testing.assert_close(found[number], logprobs, atol=1e-4, rtol=0)


def test_padded_packs_are_exact_everywhere(architecture: tuple[Any, str | None]) -> None:
    model, reason = architecture
    if model.config.is_encoder_decoder:
        pytest.skip("no causal model")
    if "rotary" in str(reason):
        pytest.skip("the longest sequence of a batch chooses the frequencies for all")
    for pairs in (sst2_like(), squad_like()):
        packs = list(padded_packs(pairs, max_tokens=150, pad_token_id=0))
        assert len(packs) > 1
        assert all(pack.input_ids.numel() <= 150 for pack in packs)
        assert_same(model, packs, pairs)


def ignore(model: Any, name: str, value: Callable[[Any], Any]) -> None:
    """Make a model see something else than what it is given under one name."""
    forward = model.forward

    def deaf(**given: Any) -> Any:
        return forward(**{**given, name: value(given.get(name))})

    model.forward = deaf


def blind_to_the_first_token(mask: Tensor | None) -> Tensor | None:
    if mask is None or mask.dim() < 4:
        return mask
    mask = mask.clone()
    mask[..., 1:, 0] = torch.finfo(mask.dtype).min
    return mask


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("position_ids", lambda _: None, "ignores position ids"),
        ("attention_mask", lambda _: None, "ignores an attention mask"),
        # looked at, and yet wrong: noticed only by comparing
        ("attention_mask", lambda mask: blind_to_the_first_token(mask), "other log-probabilities"),
        ("position_ids", lambda ids: None if ids is None else ids // 2, "other log-probabilities"),
    ],
)
@pytest.mark.parametrize("alike", [True, False])
def test_a_model_that_does_not_obey_is_found_out(
    name: str, value: Callable[[Any], Any], reason: str, alike: bool
) -> None:
    model = build("Llama", **LLAMA)
    ignore(model, name, value)
    # also where the sequences at hand neither branch nor differ in length
    pairs = [TokenPair([5, 6, 7], [8])] * 2 if alike else squad_like()
    found = why_no_trees(model, pairs)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize("name", ["position_ids", "attention_mask"])
def test_a_proven_model_is_still_held_to_the_sequences_at_hand(name: str) -> None:
    model = build("Llama", **LLAMA)
    assert why_no_trees(model, squad_like(), proven=True) is None
    ignore(model, name, lambda _: None)
    assert "other log-probabilities" in str(why_no_trees(model, squad_like(), proven=True))


@pytest.mark.parametrize("length", [10, 16, 30, None])
def test_a_model_whose_cache_is_wrong_is_found_out(length: int | None) -> None:
    model = build("Llama", **LLAMA)
    draw = random.Random(4)
    pairs = squad_like() if length is None else [TokenPair(tokens(draw, length - 1), [8]) for _ in range(9)]
    assert why_no_trees(model, pairs) is None
    forward = model.forward

    def forgetful(**given: Any) -> Any:
        for layer in getattr(given.get("past_key_values"), "layers", ()):
            layer.keys.copy_(layer.keys.roll(1, dims=2))  # in place: the layer's keys are part of a larger tensor
        return forward(**given)

    model.forward = forgetful
    assert "other log-probabilities" in str(why_no_trees(model, pairs))


def test_a_model_without_logits_to_keep() -> None:
    model = build("Llama", **LLAMA)
    ignore(model, "logits_to_keep", lambda _: 0)
    assert why_no_trees(model, squad_like()) is None
    assert_same(model, list(tree_packs(squad_like(), max_tokens=200)), squad_like())


def test_long_sequences_decide_about_the_window_wherever_they_stand() -> None:
    model = build("Mistral", **{**LLAMA, "sliding_window": 32})
    short = [TokenPair([5, 6, 7], [8]), TokenPair([5, 6, 9, 10], [8])]
    assert why_no_trees(model, short) is None
    assert "sliding window" in str(why_no_trees(model, [*short, TokenPair(list(range(40)), [8])]))


def test_low_precision_is_judged_by_the_average() -> None:
    model = build("Llama", **LLAMA).to(torch.bfloat16)
    assert why_no_trees(model, squad_like()) is None
    ignore(model, "position_ids", lambda ids: None if ids is None else ids // 2)
    assert "other log-probabilities" in str(why_no_trees(model, squad_like()))


def test_learned_prompts_take_no_trees() -> None:
    model = build("Llama", **LLAMA)
    prompted = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert "before the prompt" in str(why_no_trees(prompted, squad_like()))


def test_the_check_leaves_the_mode_of_the_model_alone() -> None:
    model = build("Llama", **LLAMA).train()
    assert why_no_trees(model, squad_like()) is None
    assert model.training


def test_packs_move_with_accelerate() -> None:
    """What brings batches to the device in training."""
    trees = tuple(tree_packs(squad_like(), max_tokens=100))
    padded = tuple(padded_packs(squad_like(), max_tokens=100, pad_token_id=0))
    moved = send_to_device({"packs": [*trees, *padded]}, "meta", non_blocking=True)
    for pack in moved["packs"]:
        assert {value.device.type for value in vars(pack).values() if isinstance(value, Tensor)} == {"meta"}
        assert isinstance(pack.sequences, tuple)


# -- training: loss and gradients ------------------------------------------------------------------------------------


CHECKPOINTING = next(  # renamed in transformers 5.2x
    name
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    if hasattr(transformers.PreTrainedModel, name)
)


def with_lora(checkpointing: bool = False) -> Any:
    model = build("Llama", **LLAMA).double()
    if checkpointing:
        getattr(model, CHECKPOINTING)()
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    torch.manual_seed(3)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:  # zero at the start of training: no gradient would reach lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    return peft_model.train()


def gradients(model: Any, packs: list[Any]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    labels = sum(len(pack.targets) for pack in packs)
    total = 0.0
    for pack in packs:
        loss = -pack.target_logprobs(model).sum() / labels
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("max_tokens", [10_000, 70])
@pytest.mark.parametrize("batch", [sst2_like, squad_like])
def test_loss_and_gradients_are_those_of_padded_examples(
    batch: Callable[[], list[TokenPair]], max_tokens: int, checkpointing: bool
) -> None:
    pairs, model = batch(), with_lora(checkpointing)
    separate = [PaddedPack.of([number], pairs, pad_token_id=0) for number in range(len(pairs))]
    expected_loss, expected = gradients(model, separate)
    packs = list(tree_packs(pairs, max_tokens=max_tokens))
    assert (len(packs) > 1) == (max_tokens == 70 and batch is squad_like)
    for laid_out in (packs, list(padded_packs(pairs, max_tokens=200, pad_token_id=0))):
        loss, found = gradients(model, laid_out)
        assert loss == pytest.approx(expected_loss, rel=1e-9)
        assert found.keys() == expected.keys()
        assert len(found) == 2 * 2 * 7  # A and B of seven layers in both blocks
        for name, gradient in expected.items():
            assert gradient.norm() > 0
            assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def test_the_loss_is_that_of_transformers() -> None:
    """Oracle: labels of -100 on the context, in the model's own loss."""
    pairs, model = squad_like(), with_lora()
    labels = sum(len(continuation) for _, continuation in pairs)
    expected = 0.0
    for context, continuation in pairs:
        ids = torch.tensor([[*context, *continuation]])
        targets = torch.tensor([[-100] * len(context) + continuation])
        expected += model(input_ids=ids, labels=targets).loss.item() * len(continuation) / labels
    loss, _ = gradients(model, list(tree_packs(pairs, max_tokens=10_000)))
    assert loss == pytest.approx(expected, rel=1e-6)


def test_a_pack_holds_each_shared_token_once() -> None:
    pairs = squad_like()
    (pack,) = tree_packs(pairs, max_tokens=10_000)
    assert isinstance(pack, TreePack)
    inputs = [[*context, *continuation[:-1]] for context, continuation in pairs]
    distinct = {tuple(ids[: end + 1]) for ids in inputs for end in range(len(ids))}
    assert pack.input_ids.shape[1] == len(distinct)
    assert len(pack.targets) == sum(len(continuation) for _, continuation in pairs)
