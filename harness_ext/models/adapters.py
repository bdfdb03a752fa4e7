"""LoRA adapters on disk and on a model: the card, what fits what, attaching and switching.

```
adapters/sst2/
├── adapter_model.safetensors   what peft saves
├── adapter_config.json
├── card.json                   base, weights, task, protocol, recipe, data: what `AdapterCard` holds
└── README.md                   model card that the Hub renders
```
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness_ext.errors import AdapterError
from harness_ext.models.lora_product import fuse_lora
from harness_ext.models.merging import MergedAdapter
from harness_ext.models.sources import DEFAULT_OUTPUT, FETCHABLE, weights_sha256

logger = logging.getLogger(__name__)

CARD_FILE = "card.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True)
class AdapterCard:
    """Where an adapter comes from. No field names a place on the machine it was trained on."""

    base: str  # Hub id, name of a packaged model, or the folder name of a local one
    base_revision: str | None
    base_sha256: str | None  # over the base's safetensors files
    task: str
    fingerprint: str  # of the protocol it was trained under
    fingerprint_fields: Mapping[str, str]
    recipe: Mapping[str, Any]
    data_sha256: str  # over the token ids of the training examples
    sample_data: bool  # trained on the bundled sample
    examples: int
    tokens: int  # label tokens seen in training, repeated epochs counted
    trainable_parameters: int
    seed: int
    seconds: float
    train_loss: float
    validation_loss: float | None
    versions: Mapping[str, str]


def read_card(adapter: str | Path) -> AdapterCard | None:
    """The card of an adapter folder; None for an adapter that another tool made."""
    path = Path(adapter).expanduser() / CARD_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return AdapterCard(**{field.name: values[field.name] for field in fields(AdapterCard)})
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{path} is damaged ({_reason(error)}); train the adapter again or delete the card"
        ) from error


def check_adapter(adapter: str | Path) -> PeftConfig:
    """Read an adapter's configuration and make sure its weights are there and whole.

    Raises:
        AdapterError: no such folder, no adapter in it, or a truncated weights file.
    """
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        raise AdapterError(f"no adapter folder {folder}; train one with `harness-ext train TASK --output {folder}`")
    if not (folder / CONFIG_FILE).is_file():
        raise AdapterError(f"{folder} holds no {CONFIG_FILE}; name the folder that `harness-ext train` or peft wrote")
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
            if not weights.keys():
                raise AdapterError(f"{folder / WEIGHTS_FILE} is empty; train the adapter again")
        return PeftConfig.from_pretrained(str(folder))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(f"{folder} is damaged ({_reason(error)}); copy it again or train it again") from error


def find_base(adapter: str | Path) -> str:
    """The base model an adapter belongs to, as something that can be loaded here.

    Raises:
        AdapterError: it was trained on a local folder that is not at hand.
    """
    config = check_adapter(adapter)
    card = read_card(adapter)
    base = card.base if card else config.base_model_name_or_path
    if not base:
        raise AdapterError(f"{adapter} does not say which base it belongs to; give it as --model_args pretrained=BASE")
    fetched = Path(DEFAULT_OUTPUT) / base
    if base in FETCHABLE or fetched.is_dir():
        return str(fetched) if fetched.is_dir() else base
    if "/" in base or Path(base).is_dir():
        return str(base)
    raise AdapterError(f"{adapter} was trained on the local folder {base!r}; give it as --model_args pretrained=FOLDER")


def check_base_weights(adapter: str | Path, base: str) -> None:
    """Warn when a base's weights are not the ones the adapter was trained on."""
    card = read_card(adapter)
    if card is None or card.base_sha256 is None:
        return
    found = weights_sha256(base)
    if found is not None and found != card.base_sha256:
        logger.warning(
            "%s was trained on other weights of %s (sha256 %s…, here %s…): its scores will differ from its card's",
            adapter, card.base, card.base_sha256[:12], found[:12],
        )  # fmt: skip


class AdapterSwitch:
    """One base model with any number of adapters, exactly one or none of them active.

    Switching goes by `set_adapter` and the adapters' own enable flag, both bit-exact: the base's weights stay as they
    are. Each switch is checked on a probe: the base must answer as before, an adapter otherwise than the base.

    Args:
        model: the base, on its device.
        merge: add the active adapter into the base's weights, which are copied back at the next switch.
    """

    def __init__(self, model: Any, *, merge: bool = False) -> None:
        self._base = model
        self._merge = merge
        self._merged: MergedAdapter | None = None
        self._peft: PeftModel | None = None
        self._names: dict[str, str] = {}
        self._active: str | None = None
        self._base_answer = self._probe()

    @property
    def model(self) -> Any:
        """The model to run: the bare base until an adapter is attached, then its PEFT wrapper."""
        if self._peft is None or (self._active is None and self._puts_tokens_first):
            return self._base
        return self._peft

    @property
    def _puts_tokens_first(self) -> bool:
        """Whether the adapters are learned prompts, which leave the base's layers alone."""
        return self._peft is not None and bool(self._peft.active_peft_config.is_prompt_learning)

    def attach(self, adapter: str | Path, *, base: str) -> None:
        """Load an adapter beside those already there, not active yet; one that fails leaves nothing behind.

        Args:
            adapter: its folder.
            base: name of the base, for messages and to check its weights.

        Raises:
            AdapterError: it does not fit the base.
        """
        folder = str(Path(adapter).expanduser())
        config = check_adapter(folder)
        check_base_weights(folder, base)
        config.inference_mode = True
        name = f"adapter{len(self._names)}"
        before = self._peft
        self._unmerge()  # an adapter may take its start from the base's weights
        try:
            if self._peft is None:
                wrapper = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
                self._peft = wrapper(self._base, config, adapter_name=name)
            loaded = self._peft.load_adapter(folder, adapter_name=name)
            # peft puts learned prompts in place by itself and then finds them unexpected
            if not config.is_prompt_learning and (loaded.missing_keys or loaded.unexpected_keys):
                raise ValueError(_difference(loaded.missing_keys, loaded.unexpected_keys))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._detach(name, before)
            raise AdapterError(_misfit(folder, base, _reason(error))) from error
        self._peft.eval()
        fuse_lora(self._peft)
        self._names[str(adapter)] = name

    def _detach(self, name: str, before: PeftModel | None) -> None:
        """Undo a failed `attach`."""
        if before is not None:
            with contextlib.suppress(ValueError):  # it did not come as far as being added
                before.delete_adapter(name)
        elif self._peft is not None and not self._puts_tokens_first:
            self._peft.unload()
        self._peft = before

    def activate(self, adapter: str | Path | None) -> None:
        """Make one attached adapter active, or none of them for the plain base.

        Raises:
            AdapterError: the adapter answers exactly as the base does, or the base no longer answers as before.
        """
        if adapter is not None and str(adapter) not in self._names:
            raise AdapterError(f"{adapter} is not attached; attach it before activating it")
        if self._peft is None:
            return
        self._unmerge()
        self._active = None if adapter is None else self._names[str(adapter)]
        if self._active is None and not self._puts_tokens_first:
            self._peft.base_model.disable_adapter_layers()
        elif self._active is not None:
            if not self._puts_tokens_first:
                self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(self._active, inference_mode=True)
            self._merge_active(self._peft)
        unchanged = torch.equal(self._probe(), self._base_answer)
        if adapter is not None and unchanged:
            raise AdapterError(
                f"{adapter} changes nothing: the model answers exactly as its base; was it saved untrained?"
            )
        if adapter is None and not unchanged:
            raise AdapterError(
                "the base answers otherwise than before its adapters were loaded; evaluate it on its own"
            )

    def _unmerge(self) -> None:
        if self._merged is not None:
            self._merged.undo()
            self._merged = None

    def _merge_active(self, model: PeftModel) -> None:
        if not self._merge or self._puts_tokens_first:
            return
        try:
            self._merged = MergedAdapter.of(model)
        except (ValueError, NotImplementedError, AttributeError) as error:
            raise AdapterError(f"the adapter cannot be merged ({_reason(error)}); leave out merge=true") from error

    @torch.no_grad()
    def _probe(self) -> Tensor:
        """Logits (V,) after a few arbitrary tokens."""
        vocabulary = self._base.get_input_embeddings().weight.shape[0]
        tokens = torch.arange(1, 9, device=self._base.device)[None] * 37 % vocabulary
        decoder = {"decoder_input_ids": tokens} if self._base.config.is_encoder_decoder else {}
        logits: Tensor = self.model(input_ids=tokens, **decoder).logits[0, -1]
        return logits.nan_to_num()  # NaN equals nothing, not even itself


def _misfit(folder: str, base: str, reason: str) -> str:
    card = read_card(folder)
    trained = f"it was trained on {card.base}" if card else "it belongs to another base"
    return f"{folder} does not fit {base}: {trained} ({reason:.160}); name its own base"


def _reason(error: Exception) -> str:
    """The telling line of an error; torch lists the weights that do not fit below a headline."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]


def _difference(missing: list[str], unexpected: list[str]) -> str:
    """Say which weights an adapter lacks for a base, and which it has too many."""
    parts = [
        f"{len(keys)} weights {what}, {keys[0].removeprefix('base_model.model.')} first"
        for what, keys in (("are missing", missing), ("have no layer in the base", unexpected))
        if keys
    ]
    return " and ".join(parts)


def save_adapter(
    model: PeftModel,
    folder: Path,
    *,
    card: AdapterCard,
    readme: str,
    dtype: torch.dtype | None,
    initial: Path | None = None,
) -> None:
    """Write an adapter, its card and its model card into an existing folder.

    Args:
        model: holds one trained adapter.
        folder: where to write.
        card: where it comes from.
        readme: the model card in Markdown.
        dtype: of the saved weights; None keeps that of training.
        initial: the adapter as training began, for one whose start changed the base (PiSSA, OLoRA): it is saved as the
            difference, an ordinary LoRA of twice the rank for the unchanged base.
    """
    conversion = {} if initial is None else {"path_initial_model_for_weight_conversion": str(initial)}
    model.save_pretrained(str(folder), save_embedding_layers=False, **conversion)
    if dtype is not None:
        weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = hub_name(card.base)
    if isinstance(config.get("target_modules"), list):  # peft keeps it as a set, in an order of the process's own
        config["target_modules"].sort()
    _write_json(folder / CONFIG_FILE, dict(sorted(config.items())))
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)  # safetensors lets only the owner read
    _write_json(folder / CARD_FILE, asdict(card))
    (folder / "README.md").write_text(readme, encoding="utf-8")


def hub_name(base: str) -> str:
    """The Hub id of a base: that of the upstream model for a packaged one."""
    return FETCHABLE[base].upstream_id if base in FETCHABLE else base


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
