"""An adapter is what peft alone makes of it, in any company, and the base stays what it was.

Oracle throughout: `PeftModel.from_pretrained` on a fresh base.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import setuptools  # noqa: F401  BOFT imports it, and fails if the standard library's distutils was imported before
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness_ext.cpu.fast_paths import use_fast_paths
from harness_ext.errors import AdapterError
from harness_ext.models.attach import attach, structural_copy, works_on_some_tokens_only
from harness_ext.models.base_proof import BaseProof, checksums, settle

IDS = (torch.arange(3, 40)[None] * 7) % 97
PROBES = [[3, 1, 4, 1, 5], [9, 2, 6]]
LORA = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"]}
T = {"task_type": "CAUSAL_LM"}


def tiny(kind: str = "llama", *, tied: bool = False, layers: int = 2, width: int = 32, vocabulary: int = 97) -> Any:
    """A random model whose answers differ between inputs."""
    torch.manual_seed(0)
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),  # has biases
    }[kind]
    config = config_class(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
            elif "bias" in name:
                parameter.normal_(0, 0.3)
    return model


def save(folder: Path, config: Any, *, model: Any = None, seed: int = 1, **how: Any) -> Path:
    """Save an adapter with all of its trainable parameters moved, as if trained."""
    wrapped = get_peft_model(model or tiny(), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    wrapped.save_pretrained(str(folder), **how)
    return folder


@torch.no_grad()
def answers(model: Any) -> Tensor:
    """Log-probabilities (T, V); learned tokens before the prompt are left out."""
    return torch.log_softmax(model(input_ids=IDS).logits[0, -IDS.shape[1] :], dim=-1)


def alone(folder: Path, model: Any = None) -> Tensor:
    """What peft alone makes of an adapter."""
    return answers(PeftModel.from_pretrained(model or tiny(), str(folder)).eval())


KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(**LORA),
    "rslora, patterns": lambda: LoraConfig(
        **LORA, use_rslora=True, rank_pattern={"q_proj": 8}, alpha_pattern={"v_proj": 32}
    ),
    "dora": lambda: LoraConfig(**LORA, use_dora=True),
    "pissa": lambda: LoraConfig(**LORA, init_lora_weights="pissa"),
    "olora": lambda: LoraConfig(**LORA, init_lora_weights="olora"),
    "one layer": lambda: LoraConfig(**LORA, layers_to_transform=[1]),
    "embedding": lambda: LoraConfig(**{**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
    "head saved": lambda: LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "embedding saved": lambda: LoraConfig(**LORA, modules_to_save=["embed_tokens"]),
    "norm saved": lambda: LoraConfig(**LORA, modules_to_save=["norm"]),
    "tokens": lambda: LoraConfig(**LORA, trainable_token_indices=[21, 28]),
    "tokens alone": lambda: peft.TrainableTokensConfig(**T, token_indices=[21, 28], target_modules=["embed_tokens"]),
    "parameters": lambda: LoraConfig(**T, r=4, target_modules=[], target_parameters=["q_proj.weight"]),
    "no task type": lambda: LoraConfig(r=4, target_modules=["k_proj"]),
    "ia3": lambda: peft.IA3Config(**T, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(**T, r=4, target_modules=["q_proj"]),
    "lokr": lambda: peft.LoKrConfig(**T, r=4, target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(**T, r=4, target_modules=["q_proj"], projection_prng_key=1),
    "vera, other key": lambda: peft.VeraConfig(**T, r=4, target_modules=["q_proj"], projection_prng_key=2),
    "oft": lambda: peft.OFTConfig(**T, oft_block_size=8, target_modules=["q_proj"]),
    "boft": lambda: peft.BOFTConfig(**T, boft_block_size=8, target_modules=["q_proj"]),
    "adalora": lambda: peft.AdaLoraConfig(**T, target_modules=["q_proj"], init_r=4, total_step=10),
    "norms": lambda: peft.LNTuningConfig(**T),
    "fourierft": lambda: peft.FourierFTConfig(**T, n_frequency=50, target_modules=["q_proj"]),
    "hra": lambda: peft.HRAConfig(**T, r=4, target_modules=["q_proj"]),
    "prefix": lambda: peft.PrefixTuningConfig(**T, num_virtual_tokens=3),
    "prompt": lambda: peft.PromptTuningConfig(**T, num_virtual_tokens=3),
    "p-tuning": lambda: peft.PromptEncoderConfig(**T, num_virtual_tokens=3),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {kind: save(root / kind.replace(" ", "-"), make()) for kind, make in KINDS.items()}


@pytest.fixture(scope="module")
def truth(folders: dict[str, Path]) -> dict[str, Tensor]:
    return {kind: alone(folder) for kind, folder in folders.items()}


def differences(
    base: Any, folders: Mapping[str, Path], truth: Mapping[str, Tensor], order: list[str]
) -> dict[str, float]:
    """How far each adapter is from peft alone, one after the other on one base, which is proved after each."""
    proof = BaseProof.of(base, PROBES)
    worst = {}
    for kind in order:
        model = attach(base, folders[kind], base="tiny").model
        worst[kind] = float((answers(model) - truth[kind]).abs().max())
        del model
        proof.check(kind)
    return worst


@pytest.mark.parametrize("seed", range(4))
def test_every_kind_in_any_order(folders: dict[str, Path], truth: dict[str, Tensor], seed: int) -> None:
    base = tiny()
    order = random.Random(seed).choices(list(KINDS), k=30) + list(KINDS)
    for kind, difference in differences(base, folders, truth, order).items():
        assert difference < 1e-4, kind
    assert torch.equal(answers(base), answers(tiny()))


def test_the_kinds_differ(truth: dict[str, Tensor]) -> None:
    for (one, a), (other, b) in itertools.combinations({**truth, "base": answers(tiny())}.items(), 2):
        assert not torch.allclose(a, b, atol=1e-3), (one, other)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "kinds",
    [("head saved", "embedding saved", "norm saved", "lora"), ("tokens", "lora"), ("embedding", "head saved")],
)
def test_tied_weights(tmp_path: Path, tied: bool, kinds: tuple[str, ...]) -> None:
    made = {kind: save(tmp_path / kind.replace(" ", "-"), KINDS[kind](), model=tiny(tied=tied)) for kind in kinds}
    truth = {kind: alone(folder, tiny(tied=tied)) for kind, folder in made.items()}
    for order in itertools.permutations(kinds):
        worst = differences(tiny(tied=tied), made, truth, list(order))
        assert max(worst.values()) < 1e-4, worst


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_stay_with_their_adapter(tmp_path: Path, bias: str) -> None:
    made = {
        "biases": save(tmp_path / "biases", LoraConfig(**LORA, bias=bias), model=tiny("qwen2")),
        "plain": save(tmp_path / "plain", LoraConfig(**LORA), model=tiny("qwen2"), seed=2),
        "more": save(tmp_path / "more", LoraConfig(**LORA, bias=bias), model=tiny("qwen2"), seed=3),
    }
    truth = {kind: alone(folder, tiny("qwen2")) for kind, folder in made.items()}
    for order in itertools.permutations(made):
        worst = differences(tiny("qwen2"), made, truth, list(order))
        assert max(worst.values()) < 1e-4, worst


def test_a_saved_embedding_stays_with_its_adapter(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    made = {
        "embedding": save(tmp_path / "embedding", LoraConfig(**LORA), model=model, save_embedding_layers=True),
        "plain": save(tmp_path / "plain", LoraConfig(**LORA), seed=2),
    }
    truth = {kind: alone(folder) for kind, folder in made.items()}
    assert max(differences(tiny(), made, truth, ["embedding", "plain", "embedding"]).values()) < 1e-4


def test_fast_kernels_give_the_same_answers(folders: dict[str, Path], truth: dict[str, Tensor]) -> None:
    base = tiny(width=64).requires_grad_(False)  # layers wide enough for oneDNN
    root = next(iter(folders.values())).parent
    made = {
        kind: save(root / f"wide-{kind}", KINDS[kind](), model=tiny(width=64)) for kind in ("lora", "olora", "dora")
    }
    truth = {kind: alone(folder, tiny(width=64)) for kind, folder in made.items()}
    use_fast_paths(base)
    plain = answers(base)
    assert max(differences(base, made, truth, ["lora", "olora", "lora", "dora"]).values()) < 1e-4
    assert torch.equal(answers(base), plain)


def test_an_adapter_with_added_tokens_brings_its_rows(tmp_path: Path) -> None:
    grown = tiny()
    grown.resize_token_embeddings(99)
    made = {
        "added": save(tmp_path / "added", LoraConfig(**LORA), model=grown, save_embedding_layers=True),
        "plain": save(tmp_path / "plain", LoraConfig(**LORA), seed=2),
    }
    resized = tiny()
    resized.resize_token_embeddings(99)
    truth = {"added": alone(made["added"], resized), "plain": alone(made["plain"])}
    base = tiny()
    assert max(differences(base, made, truth, ["plain", "added", "plain"]).values()) < 1e-4
    assert base.get_input_embeddings().weight.shape[0] == base.config.vocab_size == 97


def test_a_padded_vocabulary_is_cut_as_lm_eval_cuts_it(tmp_path: Path) -> None:
    folder = save(tmp_path / "adapter", LoraConfig(**LORA))
    tokenizer = Vocabulary(90)
    attached = attach(tiny(), folder, base="tiny", tokenizer=tokenizer)
    oracle = tiny()
    oracle.resize_token_embeddings(90)
    inputs = IDS % 90
    with torch.no_grad():
        ours = attached.model(input_ids=inputs).logits
        theirs = PeftModel.from_pretrained(oracle, str(folder)).eval()(input_ids=inputs).logits
    torch.testing.assert_close(ours, theirs)
    assert attached.untrained_tokens == ()


def test_tokens_without_a_trained_embedding_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "adapter", LoraConfig(**LORA))
    assert attach(tiny(), folder, base="tiny", tokenizer=Vocabulary(98)).untrained_tokens == ("token97",)


class Vocabulary:
    """As much of a tokenizer as resizing looks at."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def get_vocab(self) -> dict[str, int]:
        return {f"token{index}": index for index in range(self._size)}


# -- what changes nothing --------------------------------------------------------------------------------------------


def test_an_untrained_lora_is_refused(tmp_path: Path) -> None:
    for kind, more in (("plain", {}), ("dora", {"use_dora": True})):
        get_peft_model(tiny(), LoraConfig(**LORA, **more)).save_pretrained(str(tmp_path / kind))
        with pytest.raises(AdapterError, match="changes nothing"):
            attach(tiny(), tmp_path / kind, base="tiny")


def test_answers_decide_for_methods_whose_weights_do_not_tell(tmp_path: Path, folders: dict[str, Path]) -> None:
    get_peft_model(tiny(), peft.IA3Config(**T, target_modules=["k_proj"], feedforward_modules=[])).save_pretrained(
        str(tmp_path / "ia3")
    )
    base = tiny()
    proof = BaseProof.of(base, PROBES)
    assert proof.is_answered_alike(attach(base, tmp_path / "ia3", base="tiny").model)
    assert not proof.is_answered_alike(attach(base, folders["ia3"], base="tiny").model)


def test_tokens_that_do_not_occur_are_no_fault(folders: dict[str, Path]) -> None:
    base = tiny()
    proof = BaseProof.of(base, PROBES)
    attached = attach(base, folders["tokens alone"], base="tiny")  # tokens 21 and 28 are in no probe
    assert proof.is_answered_alike(attached.model)
    assert works_on_some_tokens_only(attached.config)
    assert not works_on_some_tokens_only(attach(base, folders["lora"], base="tiny").config)


# -- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora, patterns", "pissa", "olora", "head saved", "ia3", "tokens"])
def test_merged_is_equal_up_to_rounding(folders: dict[str, Path], truth: dict[str, Tensor], kind: str) -> None:
    base = tiny()
    proof = BaseProof.of(base, PROBES)
    model = attach(base, folders[kind], base="tiny", merge=True, probes=PROBES).model
    torch.testing.assert_close(answers(model), truth[kind], atol=1e-3, rtol=0)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert all(layer.merged for layer in layers)
    proof.check(kind)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_merging_into_shared_weights_is_refused(tmp_path: Path, target: str) -> None:
    config = LoraConfig(**{**LORA, "target_modules": [target]})
    folder = save(tmp_path / "adapter", config, model=tiny(tied=True))
    with pytest.raises(AdapterError, match=f"{target}, whose weight is shared with .*leave out merge=true"):
        attach(tiny(tied=True), folder, base="tiny", merge=True)
    model = attach(tiny(tied=True), folder, base="tiny").model
    torch.testing.assert_close(answers(model), alone(folder, tiny(tied=True)), atol=1e-4, rtol=0)


def test_weights_that_are_not_finite_are_not_merged(tmp_path: Path) -> None:
    folder = save(tmp_path / "adapter", LoraConfig(**LORA))
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.fill_(float("inf")) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(AdapterError, match="leave out merge=true"):
        attach(tiny(), folder, base="tiny", merge=True)


# -- what does not fit -----------------------------------------------------------------------------------------------


def rename_layers(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.7"): t for name, t in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("trained_on", "lora", "reason"),
    [
        ({"width": 64}, {}, "size mismatch"),
        ({"layers": 1}, {"target_modules": ["q_proj"]}, "weights are missing"),  # the second layer's
        ({"layers": 3}, {}, "have no layer in the base"),
        ({"layers": 3}, {"layers_to_transform": [2], "target_modules": ["q_proj"]}, "layers_to_transform"),
        ({}, {"target_modules": ["q_proj"], "renamed": True}, "have no layer in the base"),
    ],
)
def test_an_adapter_of_another_base(
    tmp_path: Path, trained_on: dict[str, int], lora: dict[str, Any], reason: str
) -> None:
    lora = {**lora}
    renamed = lora.pop("renamed", False)
    folder = save(tmp_path / "adapter", LoraConfig(**{**LORA, **lora}), model=tiny(**trained_on))
    if renamed:
        rename_layers(folder)
    fitting = save(tmp_path / "fitting", LoraConfig(**LORA), seed=5)
    base = tiny()
    proof = BaseProof.of(base, PROBES)
    with pytest.raises(AdapterError, match=r"adapter \(LORA\) does not fit tiny") as caught:
        attach(base, folder, base="tiny")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    proof.check("adapter")
    torch.testing.assert_close(answers(attach(base, fitting, base="tiny").model), alone(fitting), atol=1e-5, rtol=0)


def test_other_weights_of_the_base_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "base")
    folder = save(tmp_path / "adapter", LoraConfig(**LORA))
    texts = dict.fromkeys(("task", "fingerprint", "data_sha256"), "x")
    counts = dict.fromkeys(("examples", "tokens", "trainable_parameters", "seed", "seconds", "train_loss"), 1)
    card = {**texts, **counts, **dict.fromkeys(("base_revision", "validation_loss")), "sample_data": False}
    card |= {"base": "tiny", "base_sha256": "0" * 64, "fingerprint_fields": {}, "recipe": {}, "versions": {}}
    (folder / "card.json").write_text(json.dumps(card))
    attach(model, folder, base=str(tmp_path / "base"))
    assert "was trained on other weights of tiny" in caplog.text


# -- the proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_bit_is_noticed(dtype: torch.dtype) -> None:
    base = tiny().to(dtype)
    proof = BaseProof.of(base)
    weight = base.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.view(torch.int16)[3, 5] ^= 1
    with pytest.raises(AdapterError, match=r"adapter changed the base .*layers\.1\.mlp\.up_proj"):
        proof.check("adapter")


@pytest.mark.parametrize("shape", [(8, 4), (1500, 16), (3, 7)])
def test_swapped_rows_are_noticed(shape: tuple[int, int]) -> None:
    layer = torch.nn.Linear(shape[1], shape[0], bias=False)
    before = checksums(layer)
    with torch.no_grad():
        layer.weight[[0, 2]] = layer.weight[[2, 0]]
    assert checksums(layer) != before


def test_every_bit_is_noticed() -> None:
    buffer = torch.zeros(1100 * 4, dtype=torch.int16)
    module = torch.nn.Module()
    module.register_buffer("numbers", buffer)
    before = checksums(module)
    for place in (0, 3, 1023 * 4, 1024 * 4 + 3):
        for bit in range(16):
            buffer[place] ^= -(2**15) if bit == 15 else 2**bit
            assert checksums(module) != before, (place, bit)
            buffer[place] ^= -(2**15) if bit == 15 else 2**bit


def test_buffers_are_covered_and_order_matters_not() -> None:
    base = tiny()
    before = checksums(base)
    assert any("inv_freq" in name for name in before)
    base.model.rotary_emb.inv_freq.mul_(2)
    assert checksums(base) != before


LONG = {"factor": 2.0, "rope_theta": 1e4}
LONGROPE = {**LONG, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}


@pytest.mark.parametrize(
    "rope", [{**LONG, "rope_type": "dynamic"}, {**LONGROPE, "original_max_position_embeddings": 16}, None]
)
def test_rotary_frequencies_of_long_prompts_belong_to_a_pass(tmp_path: Path, rope: dict[str, Any] | None) -> None:
    """They are no change of the base, and none is left over for the next variant."""
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, **({"rope_parameters": rope} if rope else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).eval()
    model = structural_copy(base, own=lambda _: True)
    folder = save(tmp_path / "adapter", LoraConfig(**LORA), model=structural_copy(base, own=lambda _: True))
    between = (torch.arange(20)[None] * 7) % 97  # tokens: more than 16, fewer than IDS
    with torch.no_grad():
        fresh = model(input_ids=between).logits
        answers_alone = PeftModel.from_pretrained(model, str(folder)).eval()(input_ids=between).logits
        proof = BaseProof.of(base, [*PROBES, between[0].tolist()])
        base(input_ids=IDS)
        settle(base)
        torch.testing.assert_close(base(input_ids=between).logits, fresh)
        base(input_ids=IDS)
        attached = attach(base, folder, base="tiny").model
        assert not proof.is_answered_alike(attached)
        attached(input_ids=IDS)
        settle(attached)
        torch.testing.assert_close(attached(input_ids=between).logits, answers_alone)
    proof.check("adapter")


def test_a_structural_copy_shares_weights_and_nothing_else() -> None:
    base = tiny(tied=True)
    copied = structural_copy(base, own=lambda name: name.endswith("norm.weight"))
    for (name, one), (_, other) in zip(base.named_parameters(), copied.named_parameters(), strict=True):
        assert one is not other
        assert (one.data_ptr() == other.data_ptr()) is not name.endswith("norm.weight"), name
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    copied.resize_token_embeddings(50)
    copied.config.hidden_size = 1
    assert (base.config.vocab_size, base.config.hidden_size) == (97, 32)
    assert torch.equal(answers(base), answers(tiny(tied=True)))


def test_encoder_decoders_can_be_probed() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=61, d_model=16, d_ff=32, d_kv=4, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    BaseProof.of(transformers.T5ForConditionalGeneration(config).eval(), PROBES).check("nothing")
