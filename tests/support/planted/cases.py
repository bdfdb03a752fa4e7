"""The planted defects, one row each; a defect of training once for each trainer that can make the mistake."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planted import world
from planted.runner import (
    Case,
    Plant,
    Report,
    World,
    by_replay,
    change_json,
    change_weights,
    from_log,
    logged,
    of_adapter,
    of_batches,
    of_task,
    task,
)  # fmt: skip
from planted.spoken import Script
from planted.trainers import LOOP, OURS, TRAINERS, TRL, Training

Doc = Mapping[str, Any]
GENERATE, CHOICE, SQUAD = "sst2_generate", "sst2_choice", "squad_v2_generate"
SOUND = Training()
FOREVER = {"until": ["@@"], "max_gen_toks": 24}  # no stop string that ends an answer


# -- what scripted models say -----------------------------------------------------------------------------------------


def label(doc: Doc, every: int = 6) -> str:
    """The right label, except for one document of `every`."""
    return str(doc["choices"][doc["label"] ^ (_number(doc) % every == 0)])


def swapped(doc: Doc) -> str:
    """The wrong label, mostly."""
    return str(doc["choices"][1 - doc["choices"].index(label(doc))])


def span(doc: Doc) -> str:
    """The reference answer, for four questions of five."""
    return "something else" if _number(doc) % 5 == 0 else str((doc["answers"]["text"] or ["unanswerable"])[0])


def followed_by(answer: Callable[[Doc], str], text: str) -> Callable[[Doc], str]:
    """An answer with text behind it."""
    return lambda doc: answer(doc) + text


def _number(doc: Doc) -> int:
    return sum(map(ord, str(doc.get("question") or doc["sentence"])))


def rarely(answer: Callable[[Doc], str], otherwise: str) -> Callable[[Doc], str]:
    """An answer to every fifth document only."""
    return lambda doc: answer(doc) if _number(doc) % 5 == 1 else otherwise


# -- ways of planting -------------------------------------------------------------------------------------------------


def says(name: str, script: Script, *, base: Script | None = None, replays: bool = False, **settings: Any) -> Plant:
    """An adapter that answers by a script, beside a base that may, too."""
    changes = settings.pop("changes", None)
    base_settings = settings.pop("base_settings", settings)

    def plant(place: World, folder: Path) -> Iterator[Report]:
        asked = task(folder, name, **changes(folder) if callable(changes) else changes) if changes else name
        adapter = place.adapter(LOOP, SOUND)
        if base is not None:
            logged(place, folder, asked, run="base", script=base, **base_settings)
        results = logged(place, folder, asked, adapter=adapter, script=script, **settings)
        yield from_log(results, folder)
        if replays:
            yield by_replay(results, folder, script)

    return plant


def trained(trainer: str, training: Training, *, changes: dict[str, Any] | None = None, **settings: Any) -> Plant:
    """An adapter trained in one way and evaluated in another."""

    def plant(place: World, folder: Path) -> Iterator[Report]:
        asked = task(folder, GENERATE, **changes) if changes else GENERATE
        results = logged(place, folder, asked, adapter=place.adapter(trainer, training), **settings)
        yield from_log(results, folder)
        yield by_replay(results, folder)

    return plant


def spoiled(trainer: str, spoil: Callable[[Path], None], training: Training = SOUND, *, replays: bool = False) -> Plant:
    """A sound adapter whose files are changed."""

    def plant(place: World, folder: Path) -> Iterator[Report]:
        adapter = place.copy(trainer, training, folder)
        spoil(adapter)
        yield of_adapter(place, adapter)
        if replays:
            results = logged(place, folder, GENERATE, adapter=adapter)
            yield from_log(results, folder)
            yield by_replay(results, folder)

    return plant


def read(trainer: str, training: Training, *, changes: dict[str, Any] | None = None, **settings: Any) -> Plant:
    """Training examples that are wrong."""

    def plant(place: World, folder: Path) -> Iterator[Report]:
        asked = replace(training, task=task(folder, training.task, **changes)) if changes else training
        yield of_batches(place, trainer, asked, folder, **settings)

    return plant


def set_up(name: str, **changes: Any) -> Plant:
    """A task that is wrong, before anything is trained on it."""

    def plant(place: World, folder: Path) -> Iterator[Report]:
        yield of_task(place, task(folder, name, **changes))

    return plant


# -- longer plants ----------------------------------------------------------------------------------------------------


def not_applied(trainer: str, *, with_base: bool) -> Plant:
    """An engine that was given the adapter and answered as the base."""

    def plant(place: World, folder: Path) -> Iterator[Report]:
        adapter = place.adapter(trainer, SOUND)
        if with_base:
            logged(place, folder, GENERATE, run="base")
        results = logged(place, folder, GENERATE)
        (file,) = (results / "mine").rglob("results_*.json")
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
        change_json(file, config={**config, "model_args": {"pretrained": str(place.base), "peft": str(adapter)}})
        yield from_log(results, folder)
        yield by_replay(results, folder)

    return plant


def not_reproduced(place: World, folder: Path) -> Iterator[Report]:
    """Another adapter lies in the folder than the one that was evaluated."""
    adapter = place.copy(LOOP, SOUND, folder)
    results = logged(place, folder, GENERATE, adapter=adapter)
    change_weights(adapter, lambda name, tensor: -tensor if "lora_B" in name else tensor)
    yield from_log(results, folder)
    yield by_replay(results, folder)


def unstable(place: World, folder: Path) -> Iterator[Report]:
    """Answers that change from one time to the next, by more than the adapter gains."""
    nearly = Script(lambda doc: swapped(doc) if _number(doc) % 40 == 0 else label(doc))
    logged(place, folder, GENERATE, run="base", script=nearly)
    results = logged(place, folder, GENERATE, adapter=place.adapter(LOOP, SOUND), script=Script(label))
    yield from_log(results, folder)
    yield by_replay(results, folder, Script(label, is_unstable=True))


def other_tokenizer(trainer: str) -> Plant:
    """An adapter trained with its own tokenizer, evaluated with the base's."""

    def plant(place: World, folder: Path) -> Iterator[Report]:
        own = folder / "tokenizer"
        world.make_tokenizer(is_other=True).save_pretrained(own)
        adapter = place.adapter(trainer, Training(tokenizer=str(own), epochs=10))
        results = logged(place, folder, GENERATE, adapter=adapter)
        yield from_log(results, folder)
        yield by_replay(results, folder)

    return plant


def trained_on_evaluated(trainer: str) -> Plant:
    """The evaluated reviews are among those that are trained on."""

    def plant(place: World, folder: Path) -> Iterator[Report]:
        rows = (*world.documents("train")[:200], *world.documents("validation")[:60])
        files = world.save_documents(folder / "mixed", train=rows)
        changes = {
            "dataset_kwargs": {"dataset": "sst2", "choices": list(world.LABELS), "data_dir": str(files / "sst2")}
        }
        asked = task(folder, GENERATE, **changes)
        results = logged(place, folder, asked, adapter=place.adapter(trainer, Training(rows=_hashable(rows))))
        yield from_log(results, folder)

    return plant


def _hashable(rows: Any) -> Any:
    return tuple(world.Review(row["sentence"], row["label"]) for row in rows)


def raw_scoring(folder: Path) -> dict[str, Any]:
    """SQuAD v2 scored without reading abstention words, with a BLEU on another scale."""
    code = (
        "from harness_ext.hooks import score_squad_v2\n\n\ndef score(doc, results):\n"
        "    scores = {k: v for k, v in score_squad_v2(doc, results).items() if 'bleu' not in k}\n"
        "    if 'NoAns_exact' in scores:\n"
        "        right = 100.0 * (not results[0].strip())\n"
        "        scores |= {'exact': right, 'f1': right, 'NoAns_exact': right, 'NoAns_f1': right}\n"
        "    return {**{k: v for k, v in scores.items() if not isinstance(v, tuple)}, 'bleu': 0.4}\n"
    )
    (folder / "raw_scoring.py").write_text(code, encoding="utf-8")
    (folder / "planted_scoring.yaml").write_text("process_results: !function raw_scoring.score\n", encoding="utf-8")
    metrics = ("exact", "f1", "HasAns_exact", "NoAns_exact", "abstain_baseline", "bleu")
    return {
        "include": ["squad_v2_generate.yaml", "planted_scoring.yaml"],
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
    }


# -- the table --------------------------------------------------------------------------------------------------------


def _logged_cases() -> Iterator[Case]:
    """What a log shows; nothing is trained."""
    behind = "\nQuestion: What else is there to know?\nAnswer: nothing"
    right = Script(label)
    leaking = {"fewshot_split": "validation", "fewshot_config": {"sampler": "default"}}
    rows = [
        ("outputs that do not parse", "D1", says(GENERATE, Script(rarely(label, "I cannot say.")))),
        ("the label at the end of a sentence", "D1", says(
            GENERATE, Script(lambda doc: f"is it positive or negative? {label(doc)}"),
            gen_kwargs={"max_gen_toks": 24})),
        ("a number instead of the label", "D1", says(GENERATE, Script(lambda doc: str(doc["label"])))),
        ("swapped labels, generated", "D2", says(GENERATE, Script(swapped))),
        ("swapped labels, chosen", "D2", says(CHOICE, Script(swapped))),
        ("one label, generated", "D3", says(GENERATE, Script(lambda doc: "positive"))),
        ("one label, chosen, but the scores tell", "D3", says(CHOICE, Script(label, leaning=3.0))),
        ("text behind the answer: another question", "D5", says(
            SQUAD, Script(followed_by(span, behind)), gen_kwargs={"until": ["@@"], "max_gen_toks": 200})),
        ("text behind the answer: another sentence", "D5", says(
            SQUAD, Script(followed_by(span, ". The passage says so in its first line."))
            , gen_kwargs={"max_gen_toks": 200})),
        ("text behind the answer: another turn", "D5", says(
            SQUAD, Script(followed_by(span, " [INST] And what of the others? [/INST] Nothing."))
            , gen_kwargs={"max_gen_toks": 200})),
        ("outputs that run to the limit", "D6", says(
            SQUAD, Script(lambda doc: "and so it goes on " * 60), gen_kwargs={"max_gen_toks": 32})),
        ("prompts that are cut", "D11", says(SQUAD, Script(span), model_args={"max_length": 96})),
        ("abstentions scored as wrong", "D12", says(SQUAD, Script(span), changes=raw_scoring)),
        ("only abstentions", "D13", says(SQUAD, Script(lambda doc: "unanswerable"))),
        ("empty outputs", "D13", says(GENERATE, Script(rarely(label, "")))),
        ("metrics on two scales", "D14", says(
            SQUAD, Script(lambda doc: span(doc) if doc["answers"]["text"] else ""), changes=raw_scoring)),
        ("another number of examples than the base", "D19", says(
            GENERATE, right, base=Script(lambda doc: label(doc, 4)), base_settings={"num_fewshot": 2})),
        ("evaluated documents among the examples", "D21", says(GENERATE, right, changes=leaking, num_fewshot=24)),
        ("a gain in form only", "D27", says(
            GENERATE, right, base=Script(lambda doc: label(doc) if _number(doc) % 3 else "no idea"))),
    ]  # fmt: skip
    yield from (Case(name, (id,), plant) for name, id, plant in rows)


def _replayed_cases() -> Iterator[Case]:
    """What only asking again shows; the model follows a script."""
    twice = {"description": "<s><s>Decide whether the review is negative or positive.\n\n"}
    rows = [
        ("a stop string before the answer", "D31", says(
            SQUAD, Script(followed_by(lambda doc: "\n\n" + span(doc), "\nQuestion: What else?")), replays=True,
            gen_kwargs={"max_gen_toks": 200})),
        ("a token limit that is too small", "D6", says(
            GENERATE, Script(lambda doc: "in my opinion it is " + label(doc)), replays=True,
            gen_kwargs={"max_gen_toks": 4})),
        ("two begin tokens, scripted", "D16", says(
            GENERATE, Script(label, lambda prompt, _: float(prompt.count("<s>") == 1)), changes=twice, replays=True)),
        ("the Alpaca template, scripted", "D24", says(
            GENERATE, Script(label, lambda prompt, _: float("### Response:" in prompt)), replays=True)),
        ("a prompt that was cut, scripted", "D11", says(
            SQUAD, Script(span, lambda prompt, _: float("Answer the question" in prompt)), replays=True,
            model_args={"max_length": 400})),
    ]  # fmt: skip
    yield from (Case(name, (id,), plant) for name, id, plant in rows)
    for trainer in TRAINERS:
        yield Case(f"not applied, {trainer}", ("D23",), not_applied(trainer, with_base=False), trainer)
        yield Case(f"not applied, beside the base, {trainer}", ("D23",), not_applied(trainer, with_base=True), trainer)
    yield Case("another adapter in the folder", ("D33",), not_reproduced)
    yield Case("a gain below the noise", ("D26",), unstable)


def _endless(trainer: str) -> tuple[Training, dict[str, Any]]:
    """Training without an end token, and its evaluation: with TRL in chat, where turns have an end of their own."""
    changes = {"generation_kwargs": {**FOREVER, "do_sample": False}}
    if trainer == TRL:
        return Training(ends=False, form=world.chatml), {"changes": changes, "apply_chat_template": True}
    return Training(ends=False), {"changes": changes}


def _example_cases() -> Iterator[Case]:
    """Mistakes in training examples, by each trainer."""
    verdict = ("negative on the whole", "positive on the whole")
    whole = {"doc_to_target": "{{choices[label]}} on the whole"}
    for trainer in TRAINERS:
        rows = [
            ("no supervised end token", ("D7",), *_endless(trainer)),
            ("loss on the prompt", ("D9",), Training(learns_prompts=True), {}),
            ("truncated answers", ("D10",), Training(words=verdict, max_length=27), {"changes": whole}),
            ("another template", ("D15",), Training(form=world.llama2), {}),
            ("examples in plain text, asked in chat", ("D15",), Training(), {"apply_chat_template": True}),
            ("two begin tokens", ("D16",), Training(begin_tokens=2), {}),
            ("no blank before a choice", ("D15",), Training(join="", task=CHOICE), {}),
            ("numbers instead of label words", ("D29",), Training(words=("0", "1")), {}),
            ("swapped labels", ("D29",), Training(is_swapped=True), {}),
        ]  # fmt: skip
        for name, expected, training, settings in rows:
            if trainer == OURS and "chat" in name:
                continue  # our examination uses the same settings for both
            yield Case(f"{name}, {trainer}", expected, read(trainer, training, **settings), trainer)


def _task_cases() -> Iterator[Case]:
    """Mistakes in a task."""
    choices = {"dataset": "sst2", "choices": ["very bad", "very good"]}
    mixed = "evaluated documents in the training split"
    rows = [
        ("labels that begin alike", "D18", set_up(CHOICE, dataset_kwargs=choices)),
        ("a stop string within the answer", "D29", set_up(
            GENERATE, generation_kwargs={"until": ["i"], "max_gen_toks": 8, "do_sample": False})),
        ("a prompt that ends inside a token", "D15", set_up(
            GENERATE, doc_to_text="Review: {{sentence}}\nSentiment: ", target_delimiter="")),
        ("max_gen_toks shorter than the answer", "D29", set_up(
            GENERATE, generation_kwargs={"until": ["\n"], "max_gen_toks": 1, "do_sample": False},
            dataset_kwargs={"dataset": "sst2", "choices": ["a bad one", "a good one"]})),
    ]  # fmt: skip
    yield from (Case(name, (id,), plant) for name, id, plant in rows)
    yield from (Case(f"{mixed}, {trainer}", ("D22",), trained_on_evaluated(trainer), trainer) for trainer in TRAINERS)


def _adapter_cases() -> Iterator[Case]:
    """Adapters whose files are damaged or do not fit."""

    def zero(adapter: Path) -> None:
        change_weights(adapter, lambda name, tensor: tensor * ("lora_B" not in name))

    def missing(adapter: Path) -> None:
        change_weights(adapter, lambda name, tensor: None if "layers.1.self_attn.q_proj" in name else tensor)

    def half(adapter: Path) -> None:
        change_weights(adapter, lambda name, tensor: None if "layers.0.mlp.up_proj.lora_B" in name else tensor)

    def broken(adapter: Path) -> None:
        change_weights(adapter, lambda name, tensor: tensor / (0 if "v_proj" in name else 1))

    def deeper(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        extra = {name.replace("layers.1", "layers.2"): t.clone() for name, t in tensors.items() if "layers.1" in name}
        save_file({**tensors, **extra}, file, metadata={"format": "pt"})

    for trainer in TRAINERS:
        rows = [("B·A is zero", zero), ("weights are missing", missing), ("a matrix is missing", half),
                ("weights are not finite", broken), ("weights of a deeper model", deeper)]  # fmt: skip
        for name, spoil in rows:
            yield Case(f"{name}, {trainer}", ("D20",), spoiled(trainer, spoil), trainer)

    def other_base(adapter: Path) -> None:
        change_json(adapter / "card.json", base_sha256="0" * 64)

    yield Case("trained on another base, ours", ("D34",), spoiled(OURS, other_base), OURS)


def _trained_cases() -> Iterator[Case]:
    """Adapters that are trained in one way and evaluated in another."""

    def scaled(**values: Any) -> Callable[[Path], None]:
        return lambda adapter: change_json(adapter / "adapter_config.json", **values)

    strong = Training(rank=16, alpha=32)
    weak = Training(rank=64, alpha=8, use_rslora=True, learning_rate=2e-3)
    for trainer in TRAINERS:
        chat, bare = Training(form=world.chatml), Training(form=world.bare_chatml)
        blank = {"doc_to_text": "Review: {{sentence.strip()}}\nSentiment: ", "target_delimiter": ""}
        endless, evaluated = _endless(trainer)
        again = {"repetition_penalty": 5.0, "max_gen_toks": 8}
        rows = [
            ("trained in chat, asked in plain text", ("D24",), trained(trainer, chat)),
            ("trained in plain text, asked in chat", ("D24",), trained(trainer, SOUND, apply_chat_template=True)),
            ("trained in ChatML without a system message", ("D24",), trained(trainer, bare)),
            ("loaded as rsLoRA", ("D25",), spoiled(trainer, scaled(use_rslora=True), strong, replays=True)),
            ("rsLoRA loaded as LoRA", ("D25",), spoiled(trainer, scaled(use_rslora=False), weak, replays=True)),
            ("a tokenizer of its own", ("D30",), other_tokenizer(trainer)),
            ("a blank at the end of the prompt", ("D15",), trained(trainer, SOUND, changes=blank)),
            ("a penalty on repetition", ("D32",), trained(trainer, SOUND, gen_kwargs=again)),
            ("no end token was trained", ("D5", "D6"), trained(trainer, endless, **evaluated)),
            ("trained on swapped labels", ("D2",), trained(trainer, Training(is_swapped=True))),
            ("trained on numbers", ("D1",), trained(trainer, Training(words=("0", "1")))),
            ("trained on one label only", ("D3",), trained(trainer, Training(labels=(1,), learning_rate=4e-3))),
        ]  # fmt: skip
        impossible = ("a tokenizer of its own", "trained in ChatML without a system message") if trainer == OURS else ()
        yield from (
            Case(f"{name}, {trainer}", expected, plant, trainer)
            for name, expected, plant in rows
            if name not in impossible
        )


CASES: tuple[Case, ...] = tuple(
    itertools.chain(
        _logged_cases(), _replayed_cases(), _example_cases(), _task_cases(), _adapter_cases(), _trained_cases()
    )
)
