"""Write what comes from the code: `python docs/generate.py` after a change of a flag, a check, a warning or a key.

The pages of the documentation, and the JSON schema of task YAMLs.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from harness_ext import cli
from harness_ext.catalogue import CATALOGUE
from harness_ext.check import task_schema

DOCS = Path(__file__).parent
SCHEMA = Path(task_schema.__file__).with_name(task_schema.FILE)

CHECKS = """\
# Checks

`harness-ext check` looks for these mistakes in a task before any model is loaded. `harness-ext check --explain C20`
prints an entry. An id keeps its meaning from release to release.
"""

FINDINGS = """\
# Findings

`harness-ext compare` prints these warnings below its table. `harness-ext compare --explain R07` prints an entry. An id
keeps its meaning from release to release.
"""

DOCTOR = """\
# Doctor: why a score is what it is

Three commands, by what is at hand:

```
harness-ext doctor results/sst2                                       # logged outputs
harness-ext doctor --adapter adapters/sst2                            # an adapter's weights
harness-ext doctor --task sst2_choice --model smollm2-135m-instruct   # training examples, before training
```

`harness-ext doctor RESULTS` examines logged outputs, from any lm-eval results with `--log_samples`; no model is
loaded. It takes each score apart first (how many outputs parsed, how good those were, how many ended at the token
limit), then looks for the causes below. Where the task is installed, it scores the same outputs again in other
readings: only the first line, without markup, the last label in the text, and others. A significant gain, corrected
for the number of readings, is a **proof**: the answer was there. Other findings are suspicions with their numbers and
examples; `--format json` has the examples in full.

`harness-ext doctor --adapter DIR` reports the norm of each layer's update, in percent of the weight where the base is
at hand, and the scale. It finds updates that are zero, weights that are missing or unexpected, another scale than in
training, and another base.

`harness-ext doctor --task TASK --model MODEL` reads training examples back from collated batches and holds them against
what the evaluator asks about the same documents, token by token. Then a copy of the model learns 8 examples by heart,
in seconds, and the evaluator scores it on these documents: anything below full marks is an error (D29), since training
and evaluation then do not speak of the same thing. `harness-ext train` does the same before its first step.

For another trainer, hand its batches to `examine_batches`; it finds each row's document in the training split:

```python
import harness_ext

batches = trainer.get_train_dataloader()  # of TRL's SFTTrainer or transformers' Trainer; or batches of your own loop
examination = harness_ext.examine_batches(batches, "sst2_choice", "smollm2-135m-instruct")
print(*examination.findings, sep="\\n")
```

How often the doctor names the right cause, and how often it blames what is sound, is [measured](doctor_proof.md).

## Proof by asking again

`harness-ext doctor RESULTS --replay` loads the model of a run and asks 64 to 200 of its documents again with one thing
changed. It works for adapters made by any trainer. First the same documents are asked with nothing changed: if that
does not give the logged score, the model here is not the one that was evaluated, and the replay stops (D33).

1. **Ranking.** Each change is scored by how well the model then knows the reference answers (bits per byte), on a few
   documents: with and without the chat template; the templates ChatML, Llama 2, Llama 3, Alpaca, Vicuna, Zephyr, Phi-3
   and Gemma; the adapter's own tokenizer; 0, 1 or 2 begin tokens; a blank, a newline or nothing before the answer; 0, 1
   or 5 examples; a system prompt; the adapter's scale α/r or α/√r, or no adapter; float32 and merging, unless the run
   was in float32.
2. **Asking.** The best four are asked and scored with the task's own filters and metric. So are changes that show only
   in whole answers: other stop strings, blank lines skipped, four times `max_gen_toks`, plain greedy decoding, no
   `max_length`.
3. **Pairs.** The best four are combined in pairs, and every answer is also cut at further stop strings. A pair counts
   only if it is significantly better than each of its parts.
4. **Stopping.** The documents are looked at after 64, 128 and 200. The p-value of a gain is corrected by Holm over all
   changes, those that were only ranked included, times the number of looks. The interval is the paired 95 % interval.

A gain must also exceed the *noise floor*: how much the score changes when the same documents are asked in another order
and in other packs. Where several changes restore the score equally well, the smallest is named first: one that leaves
the prompt as it is, then the prompt in which the reference answers are likeliest. If an adapter's card says that it was
trained as it was asked, a better prompt or scale is a warning, not a mistake. If nothing helps, the notes list what was
ruled out, and gains that more documents may prove (`--documents 500`).

The exit code is 1 if a finding is an error. `harness-ext doctor --explain D5` prints an entry.
"""

PARITY = """\
# Parity: is what is served what was evaluated?

An adapter is evaluated with peft, then merged, quantised, converted or loaded into a server. `harness-ext parity`
asks both the same documents:

```
harness-ext parity adapters/sst2 --against merged --dtype bfloat16
harness-ext parity adapters/sst2 --against exports/sst2-merged
harness-ext parity adapters/sst2 --against http://localhost:8000/v1/completions --served-name sst2
```

| `--against` | what is asked | log-probabilities |
|---|---|---|
| `merged` | peft's `merge_and_unload`, made here, in `--dtype` | yes |
| `4bit` | the adapter on its base in NF4; needs bitsandbytes | yes |
| a folder | merged weights, with their own tokenizer and template | yes |
| `vllm` | vLLM with the adapter by request | with a GPU |
| `FILE.gguf` | a merged model in llama.cpp | yes |
| a URL | a model of an OpenAI-compatible server, chat endpoints included | if the server gives them |

A GGUF file with an adapter alone needs `--model_args pretrained=BASE.gguf`. `--served-name` is the model's name on a
server. Merging, folders, GGUF files and a small server that the tests start were run here; `4bit` and `vllm` were not.

Documents and prompts are those of the evaluation: the task, the number of examples, the chat template and the system
instruction come from the adapter's card. `--task`, `--num_fewshot`, `--apply_chat_template` and
`--system_instruction` say otherwise.

## What it asks, in which order

1. **Does it answer as the base?** Then the adapter is not applied (P01).
2. **Does it answer as the adapter?** peft is asked twice: once as evaluated, once in another order and in other
   batches. One of the two is in float32, the other in the precision of what is served. Their difference is the noise
   floor. A document differs if what is served is more than four times the noise floor away from peft, and more than
   0.001 nats. So rounding an export to bfloat16 is no difference.
3. **If neither: why?** peft is asked with one thing changed until it answers as what is served does: 0, 1 or 2 begin
   tokens, the chat template, the tokenizer beside the served weights, eight common templates, a system instruction,
   white space before the answer; then the scale; then some kinds of layers, or the first or last blocks, without the
   adapter. A change that explains at least 85 % of the distance, or two thirds where documents then no longer differ,
   is a **proof**. Texts that begin alike and end elsewhere are P08. Weights in this process are compared with those
   of the base. What is left is damage, as large as rounding the base to 4 bits makes it (P07), or other weights
   (P06).

A task that compares choices is judged by the log-probabilities of its choices. A task that generates is judged by its
texts, and by the log-probabilities of the adapter's own texts. Where an engine gives no log-probabilities, greedy
texts are compared, which shows less: 4-bit weights often give the same short texts.

It asks ten documents at a time, and stops when it is sure: Wald's sequential test between 5 % and 40 % of documents
that differ, with an error of 1 %. Ten documents are enough if none of them differs, or if at least four do. At most
50 are asked (`--documents`).

## Example

SmolLM2-135M-Instruct with `adapters/sst2`, on one CPU core. Merged in bfloat16 (10 documents, 20 s of CPU time):

```text
merged in bfloat16 beside adapters/sst2 by peft
 ─────────────────────────────────────────────────────────────
 task          to adapter   to base    rounding  it answers
 ─────────────────────────────────────────────────────────────
 sst2_choice   0.085 nats  2.4 nats  0.042 nats  as evaluated
 10 documents
 ─────────────────────────────────────────────────────────────
nats: median difference of a document's log-probabilities; rounding: two askings of peft, in other
batches and in float32 and the precision of what is served.
```

An export whose `lora_alpha` was doubled (10 documents, 34 s of CPU time):

```text
exports/sst2-merged in bfloat16 beside adapters/sst2 by peft
 ───────────────────────────────────────────────────────────
 task          to adapter   to base    rounding  it answers
 ───────────────────────────────────────────────────────────
 sst2_choice     1.1 nats  2.9 nats  0.042 nats  otherwise
 10 documents
 ───────────────────────────────────────────────────────────
nats: median difference of a document's log-probabilities; rounding: two askings of peft, in other
batches and in float32 and the precision of what is served.
error P02 proved its updates are scaled by 4 instead of 2: perhaps it is put on a base that it is
merged into already: on 10 documents it answers as the adapter does at 2 times its scale (93 % of
the difference is explained)
  next: Set `lora_alpha`, `r` and `use_rslora` as in `adapter_config.json`, and serve the base
without the adapter in it.
  document 414, 1.3 nats apart (limit 0.61): adapter [-4.88, -0.01], served [-6.75, 0.00]
  document 523, 1.1 nats apart (limit 0.17): adapter [-7.00, -0.00], served [-8.62, 0.00]
  document 430, 1.1 nats apart (limit 0.19): adapter [-6.63, -0.00], served [-8.25, 0.00]
```

An export on a base that was rounded to 4 bits is found with 10 documents, too (P07, 74 s of CPU time). On 50
documents, one differs in the sound bfloat16 export.

In llama.cpp, the adapter as a LoRA GGUF on an f16 GGUF of the base answers as evaluated: 0.042 nats from the adapter,
which is the rounding, and 2.4 from the base. The base's GGUF alone is P01: 0.028 nats from the base, and 2.4 from the
adapter. Both take 10 documents.

## Exit codes and the card

| exit code | meaning |
|---|---|
| 0 | it answers as the adapter, or nothing is shown (P09, P10 are warnings) |
| 1 | it does not |
| 2 | error of use, or something is missing; one line says what |

`--write-card` keeps the result in the adapter's `card.json` under `parity`, by how it is served; a later result for
the same kind of serving takes its place. `--format json` has the answers to the documents that differ most.
`harness-ext parity --explain P02` prints an entry of the list below.
"""

COMMAND_LINE = """\
# Command line

`harness-ext COMMAND --help` shows the same text. Flags that take a value are written `--flag VALUE` or `--flag=VALUE`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | it worked, but something did not pass: `check`, `parity`, `compare --fail-on`, or one of the adapters of `eval` |
| 2 | error of use, or the command could not finish; one line on standard error says what is wrong and what to do |
| 130 | stopped by Ctrl-C |
| 143 | stopped by SIGTERM, as Slurm and spot instances send it |
"""


def pages() -> dict[str, str]:
    """File name in docs/ -> content."""
    return {
        "checks.md": catalogue_page(CHECKS, "C"),
        "findings.md": catalogue_page(FINDINGS, "R"),
        "doctor.md": catalogue_page(DOCTOR, "D"),
        "parity.md": catalogue_page(PARITY, "P"),
        "cli.md": command_line_page(),
    }


def schema() -> str:
    """The JSON schema of task YAMLs."""
    return json.dumps(task_schema.task_schema(), indent=2, ensure_ascii=False) + "\n"


def catalogue_page(introduction: str, letter: str) -> str:
    """All entries of the catalogue whose ids begin with a letter."""
    blocks = [introduction.strip()]
    for id, rule in CATALOGUE.items():
        if id.startswith(letter):
            blocks += [
                f"## {id}: {rule.what}",
                rule.why,
                f"```text\n{rule.example}\n```",
                f"**What to do:** {rule.remedy}",
            ]
    return "\n\n".join(blocks) + "\n"


def command_line_page() -> str:
    """Every command with its description, examples, arguments and flags."""
    return "\n\n".join([COMMAND_LINE.strip(), *(block for name in cli.COMMANDS for block in command(name))]) + "\n"


def command(name: str) -> Iterator[str]:
    """The blocks of one command."""
    parser = cli.parser_of(name)
    yield f"## harness-ext {name}"
    yield str(parser.description)
    _, _, examples = str(parser.epilog).partition("\n")
    yield f"```\n{textwrap.dedent(examples).strip()}\n```"
    # the first two groups are argparse's own; `eval` inherits the others, which depend on the version of lm-eval
    rows = [row for group in parser._action_groups[:2] for action in group._group_actions if (row := option(action))]
    if rows:
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows])
    if name == "eval":
        yield (
            "and every flag of `lm_eval run`, which `harness-ext eval --help` lists: `--tasks`, `--model_args`, "
            "`--limit`, `--num_fewshot`, `--batch_size`, `--device`, `--output_path`, `--log_samples`, ... "
            "[Evaluating](evaluating.md) explains those that matter most."
        )


def option(action: argparse.Action) -> str | None:
    """A row of the table of options; none for `--help`."""
    if isinstance(action, argparse._HelpAction):
        return None
    value = action.metavar or (None if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}")
    takes_value = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
    names = [name for name in action.option_strings if not name.startswith("--no-")] or [str(value)]
    if action.option_strings and takes_value:
        names[-1] += f" {value or action.dest.upper()}"
    if isinstance(action, argparse.BooleanOptionalAction):
        names.append(names[0].replace("--", "--no-", 1))
    shown = ", ".join(f"`{name}`" for name in names).replace("|", r"\|")
    text = re.sub(r"([\[\]|*<])", r"\\\1", str(action.help or "").replace("%%", "%"))  # as text, not as Markdown
    return f"| {shown} | {text} |"


if __name__ == "__main__":
    for file, text in pages().items():
        (DOCS / file).write_text(text, encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
