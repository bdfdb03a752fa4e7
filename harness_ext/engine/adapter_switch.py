"""One loaded base that becomes the base with each adapter in turn, by PEFT, inside this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.variants import Variant
from harness_ext.errors import AdapterError, HarnessExtError, ModelError, first_line
from harness_ext.models.attach import attach, works_on_some_tokens_only
from harness_ext.models.base_proof import BaseProof, settle
from harness_ext.models.snapshot import AdapterSnapshot, snapshot
from harness_ext.protocol.lm_eval_api import HFLM, LM, configure_pad_token, max_positions

logger = logging.getLogger(__name__)

PROBE_TOKENS = 64  # the last ones of a prompt
TOKENIZER_SETTINGS = ("trust_remote_code", "use_fast_tokenizer")


class TokenizerSwitch:
    """A base's tokenizer that becomes each variant's in turn; answers have to come from somewhere else.

    Args:
        lm: lm-eval's model with the base's tokenizer.
        base: name of the base, for messages.
        model_args: what the base was loaded with.
        uses_chat_template: prompts go through the tokenizer's chat template.
    """

    def __init__(
        self,
        lm: HFLM,
        base: str,
        *,
        model_args: Mapping[str, Any] | None = None,
        uses_chat_template: bool = False,
    ) -> None:
        self._lm = lm
        self._base = base
        self._model = lm.model
        self._model_args = model_args or {}
        self._uses_chat_template = uses_chat_template
        self.snapshot: AdapterSnapshot | None = None  # of the active adapter
        self.is_intact = True  # the base is what it was

    @contextmanager
    def active(self, variant: Variant) -> Iterator[Mapping[str, str]]:
        """Let the model be this variant.

        Yields:
            What a reader of the results should know of the tokenizer: empty when it is the base's.

        Raises:
            AdapterError: the adapter or its tokenizer cannot be used.
        """
        lm, tokenizer = self._lm, self._lm.tokenizer
        if hasattr(lm, "generation_records"):
            lm.generation_records.clear()
        if variant.folder is None:
            self._settle()
            yield {}
            return
        try:
            with snapshot(variant.folder) as self.snapshot:
                notes = self._choose_tokenizer(variant)
                self._put_on(variant, comparable=not notes)
            self._check(variant)
            yield notes
        finally:
            self.snapshot = None
            lm._model, lm.peft, lm.tokenizer = self._model, None, tokenizer
            lm.vocab_size = tokenizer.vocab_size
            self._check(variant)

    def _settle(self) -> None:
        """Let the base forget what it was asked before."""

    def _put_on(self, variant: Variant, *, comparable: bool) -> None:  # noqa: ARG002
        """Let the base become a variant; comparable: its prompts are encoded as the base's."""
        self._lm.peft = variant.adapter

    def _check(self, variant: Variant) -> None:
        """Make sure that the base is what it was."""

    def lacks_chat_template(self, variant: Variant) -> bool:
        """Whether prompts go through a chat template, and this variant has none."""
        if not self._uses_chat_template or self._lm.tokenizer.chat_template:
            return False
        own = self._own_tokenizer(variant)
        return own is None or not own.chat_template

    def _choose_tokenizer(self, variant: Variant) -> dict[str, str]:
        """Use the adapter's own tokenizer when the prompts need it; says why."""
        lm = self._lm
        if (own := self._own_tokenizer(variant)) is None:
            return {}
        added = sorted(own.get_vocab().keys() - lm.tokenizer.get_vocab().keys())
        reasons = [f"added tokens {', '.join(added[:5])}"] if added else []
        if not own.chat_template:
            own.chat_template = lm.tokenizer.chat_template
        if self._uses_chat_template and own.chat_template != lm.tokenizer.chat_template:
            reasons.append("another chat template")
        if not reasons:
            return {}
        lm.tokenizer = configure_pad_token(own, model_config=lm.config)
        lm.vocab_size = lm.tokenizer.vocab_size
        reason = " and ".join(reasons)
        logger.warning("%s is evaluated with the tokenizer in its own folder: %s", variant.name, reason)
        return {"tokenizer": "adapter", "reason": reason}

    def _own_tokenizer(self, variant: Variant) -> Any:
        """The tokenizer in an adapter's folder, loaded as lm-eval loads the base's.

        Returns:
            None where there is none, or where the user named a tokenizer for all.
        """
        lm, folder = self._lm, variant.folder
        if folder is None or not (folder / "tokenizer_config.json").is_file() or self._model_args.get("tokenizer"):
            return None
        how = {name: self._model_args[name] for name in TOKENIZER_SETTINGS if name in self._model_args}
        base_tokenizer = lm.tokenizer
        try:
            lm._create_tokenizer(self._base, str(folder), add_bos_token=lm.add_bos_token, **how)
            return lm.tokenizer
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise AdapterError(
                f"the tokenizer in {folder} cannot be read ({first_line(error):.160}); copy it again, delete it, or "
                "name one with --model_args tokenizer=TOKENIZER"
            ) from error
        finally:
            lm.tokenizer = base_tokenizer


class AdapterSwitch(TokenizerSwitch):
    """A loaded base that becomes each variant in turn, inside this process; afterwards it is proved to be what it was.

    Args:
        lm: lm-eval's model with the base in it.
        base: name of the base, for messages.
        prompts: a few prompts of the tasks: base and adapters are compared on them.
        options: those of `TokenizerSwitch`.

    Raises, besides `TokenizerSwitch.active`:
        AdapterError: an adapter does not fit, changes nothing, or left something behind in the base.
    """

    def __init__(self, lm: HFLM, base: str, *, prompts: Sequence[str] = (), **options: Any) -> None:
        super().__init__(lm, base, **options)
        with _answering(ModelError, base), within_tables(lm):
            self._proof = BaseProof.of(lm.model, _encoded(lm, prompts))
        self._differing: set[str] = set()  # files of adapters that are known to answer differently from the base

    def _settle(self) -> None:
        settle(self._model)

    def _check(self, variant: Variant) -> None:
        """Make sure that the base is what it was; if it is not, nothing can be evaluated any more."""
        self.is_intact = False
        self._proof.check(variant.name)
        self.is_intact = True

    def _put_on(self, variant: Variant, *, comparable: bool) -> None:
        lm = self._lm
        assert variant.folder is not None
        with _answering(AdapterError, str(variant.adapter)):
            attached = attach(
                self._model,
                variant.folder,
                base=self._base,
                revision=self._model_args.get("revision"),
                tokenizer=lm.tokenizer,
                merge=isinstance(lm, TreeLM) and lm.merge,
                probes=self._proof.probes,
            )
            files = json.dumps(self.snapshot.sha256, sort_keys=True) if self.snapshot is not None else ""
            is_known = files in self._differing
            is_alike = comparable and not is_known and self._proof.is_answered_alike(attached.model)
            if comparable and not is_alike and files:
                self._differing.add(files)
            settle(attached.model)
        if attached.untrained_tokens:
            listed = ", ".join(map(repr, attached.untrained_tokens[:5]))
            logger.warning("%s has no trained embedding for %s of its tokenizer", variant.name, listed)
        if is_alike:
            if not works_on_some_tokens_only(attached.config):
                raise AdapterError(
                    f"{variant.adapter} changes nothing: to {len(self._proof.probes)} prompts of the tasks the model "
                    "answers exactly as its base; was it saved untrained, or on layers whose weights this model "
                    "uses without calling them (as mamba does with dt_proj)?"
                )
            logger.warning(
                "%s answers %d prompts of the tasks exactly as its base: the tokens it works on do not occur in them",
                variant.name,
                len(self._proof.probes),
            )
        lm._model, lm.peft = attached.model, variant.adapter


@contextmanager
def _answering(error_class: type[HarnessExtError], name: str) -> Iterator[None]:
    """Say in one line that a model or adapter cannot answer at all; what is raised inside comes from its own code."""
    try:
        yield
    except HarnessExtError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = first_line(error)
        raise error_class(
            f"{name} cannot answer a prompt of the tasks ({type(error).__name__}: {reason:.200}); check that this "
            "architecture and adapter work together in transformers and peft"
        ) from error


@contextmanager
def within_tables(lm: LM) -> Iterator[None]:
    """PyTorch's error for an index beyond a table of embeddings becomes one that says what to do."""
    try:
        yield
    except IndexError as error:
        if "index out of range in self" not in str(error) or not isinstance(lm, HFLM):
            raise
        rows, ids = lm.model.get_input_embeddings().weight.shape[0], max(lm.tokenizer.get_vocab().values()) + 1
        positions = max_positions(lm)
        if ids <= rows and lm.max_length > positions:
            raise ModelError(
                f"max_length={lm.max_length} is more than the model's {positions} positions; leave it out or lower it"
            ) from error
        raise ModelError(
            f"the tokenizer ({ids} tokens) gives ids that the model ({rows} embeddings) does not have; "
            "leave out tokenizer=, an adapter that brings tokens brings its tokenizer, too"
        ) from error


def _encoded(lm: HFLM, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of the ends of prompts, those without tokens left out.

    A single token stands behind the prefix token, as `hf` asks it: alone, queries and keys make no difference.
    """
    rows, limit = lm.model.get_input_embeddings().weight.shape[0], min(PROBE_TOKENS, lm.max_length)
    encoded = [lm.tok_encode(prompt)[-limit:] for prompt in prompts if prompt]
    known = [ids for ids in encoded if ids and max(ids) < rows]
    return [ids if len(ids) > 1 else [lm.prefix_token_id, *ids] for ids in known]
