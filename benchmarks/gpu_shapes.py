"""Models with random weights in the shapes of real ones, and requests in the shapes of three tasks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from harness_ext.protocol.lm_eval_api import Instance

LLAMA_1B: dict[str, Any] = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
QWEN_7B: dict[str, Any] = {
    "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
TINY: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
POSITIONS = 4096
SPECIAL = ("<unknown>", "<end>", "<padding>")  # the first token ids; no prompt has them


@dataclass(frozen=True)
class Shape:
    """A model without its weights."""

    name: str
    configuration: Callable[..., Any]
    sizes: dict[str, Any]

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The model with random weights."""
        torch.manual_seed(0)
        config = self.configuration(max_position_embeddings=POSITIONS, bos_token_id=1, eos_token_id=1, **self.sizes)
        with device:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        return model.eval()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A word for each token id, so that texts have exactly the tokens that they are made of."""
        words = [*SPECIAL, *(f"t{number}" for number in range(len(SPECIAL), self.sizes["vocab_size"]))]
        unknown, end, padding = SPECIAL
        vocabulary = {word: number for number, word in enumerate(words)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token=unknown, eos_token=end, pad_token=padding, padding_side="left"
        )


SHAPES = [Shape("Llama-3.2-1B", LlamaConfig, LLAMA_1B), Shape("Qwen2.5-7B", Qwen2Config, QWEN_7B)]
TINY_SHAPES = [Shape("tiny Llama", LlamaConfig, TINY), Shape("tiny Qwen2", Qwen2Config, TINY)]


@dataclass(frozen=True)
class Workload:
    """Requests like those of a task, in tokens: instruction, then passage, then question, then the choices."""

    name: str
    like: str
    instruction: int
    passages: int
    passage: int
    questions: int  # about each passage
    question: int
    choices: int  # 0: the answer is generated
    answer: int  # tokens of a choice, or that are generated

    @property
    def generates(self) -> bool:
        """Whether answers are generated."""
        return self.choices == 0

    def requests(self, vocabulary: int, *, passages: int | None = None) -> list[Instance]:
        """The requests, of all passages or the first ones."""
        draw = random.Random(0)

        def text(tokens: int) -> str:
            return " ".join(f"t{draw.randrange(len(SPECIAL), vocabulary)}" for _ in range(tokens))

        instruction, made, document = text(self.instruction), [], 0
        choices = [f" {text(self.answer)}" for _ in range(self.choices)]
        settings = {"until": [], "max_gen_toks": self.answer, "do_sample": False}
        for _ in range(self.passages if passages is None else passages):
            passage = text(self.passage)
            for _ in range(self.questions):
                prompt = " ".join(part for part in (instruction, passage, text(self.question)) if part)
                kind = "generate_until" if self.generates else "loglikelihood"
                asked: list[Any] = [settings] if self.generates else choices
                for number, arguments in enumerate((prompt, each) for each in asked):
                    made.append(Instance(kind, {}, arguments, number, metadata=(self.name, document, 1)))
                document += 1
        return made


WORKLOADS = [
    Workload("label", "sst2_choice", 16, 872, 0, 1, 26, 2, 1),
    Workload("choice", "a multiple-choice task with 5 examples", 420, 400, 0, 1, 60, 4, 6),
    Workload("generation", "squad_v2_generate", 24, 80, 170, 5, 16, 0, 16),
]
TINY_WORKLOADS = [
    Workload("label", "sst2_choice", 6, 8, 0, 1, 8, 2, 1),
    Workload("choice", "a multiple-choice task with 5 examples", 30, 4, 0, 1, 8, 4, 3),
    Workload("generation", "squad_v2_generate", 4, 3, 20, 3, 5, 0, 4),
]


def token_ids(request: Instance) -> tuple[list[int], list[int]]:
    """Context and continuation of a request; the continuation is empty where the answer is generated."""
    context, answer = request.args
    ids = [[int(word[1:]) for word in part.split()] for part in (context, answer if isinstance(answer, str) else "")]
    return ids[0], ids[1]


def tokens_of(workload: Workload, requests: list[Instance], *, tree: bool) -> int:
    """Tokens that pass through the model.

    Args:
        workload: of the requests.
        requests: all of them.
        tree: count each shared prefix once, as the packs of a tree do; otherwise once for each document.
    """
    sequences = [[*context, *answer[:-1]] for context, answer in map(token_ids, requests)]  # nothing follows the last
    new = workload.answer * len(requests) if workload.generates else 0
    if not tree:
        contexts = {tuple(context): len(context) for context, _ in map(token_ids, requests)}
        one_token = not workload.generates and workload.answer == 1  # `hf` asks for such choices in one pass
        return new + (sum(contexts.values()) if one_token else sum(map(len, sequences)))
    ordered = sorted(sequences)
    shared = sum(_shared(one, other) for one, other in pairwise(ordered))
    return new + sum(map(len, ordered)) - shared


def _shared(one: list[int], other: list[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def write_adapter(model: Any, folder: Path, *, seed: int) -> Path:
    """A LoRA of rank 8 on all linear layers, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            for part, size in (("A", (8, module.in_features)), ("B", (module.out_features, 8))):
                weights[f"base_model.model.{name}.lora_{part}.weight"] = 0.02 * torch.randn(size, generator=generator)
    folder.mkdir(parents=True)
    LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
