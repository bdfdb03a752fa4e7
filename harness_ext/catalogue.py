"""The catalogue of findings of `check` (C...), `compare` (R...), `doctor` (D...) and `parity` (P...).

Each has a title, reason, example and remedy. An id keeps its meaning from release to release. `docs/checks.md`,
`docs/findings.md`, `docs/doctor.md` and `docs/parity.md` are generated from this table by `docs/generate.py`;
`--explain ID` prints an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """An entry of the catalogue."""

    what: str  # title
    why: str  # why it leads to wrong numbers or to a failure
    example: str  # as the command prints it
    remedy: str


CATALOGUE: Mapping[str, Rule] = {
    # -- tasks: `harness-ext check` --
    "C01": Rule(
        "The YAML cannot be read",
        "The file is not valid YAML, or not UTF-8. lm-eval skips such a file and mentions it in its debug "
        "log only, so the task is simply unknown. Common causes are indentation with a tab, an unquoted text "
        "that contains `: `, and a quote that is never closed.",
        "news.yaml:11: error C01 has a ':' inside unquoted text; put the text in quotes",
        "Fix the line that the finding names: indent with spaces, quote texts that contain `: `, and save "
        "the file as UTF-8. The only tag that lm-eval knows is `!function`.",
    ),
    "C02": Rule(
        "The YAML is not a mapping",
        "A task is a mapping from settings to values. lm-eval silently skips a file that is empty or holds a "
        "list or a single text instead.",
        "news.yaml:1: error C02 is a list, not a mapping; write `key: value` lines",
        "Write the settings as `key: value` lines without indentation. To run several tasks under one name, "
        "write a group: `group: NAME`, and the tasks as a list under `task:`.",
    ),
    "C03": Rule(
        "Duplicate key",
        "When a key appears twice, YAML keeps the last value and gives no warning. The prompt or metric that "
        "you read near the top of the file is then not the one that is used.",
        "news.yaml:12: error C03 key 'doc_to_text' is also on line 2; YAML silently keeps only the last one: "
        "remove one",
        "Delete one of the two. The finding names both lines.",
    ),
    "C04": Rule(
        "Unknown key",
        "lm-eval cannot build a task with an unknown top-level key. In `dataset_kwargs`, `load_documents` "
        "ignores an unknown key and may load documents other than those you meant; in `generation_kwargs`, "
        "the setting you meant keeps its default.",
        "news.yaml:13: error C04 unknown key 'doc_to_taget'; did you mean 'doc_to_target'?",
        "Use the suggested key, or delete the line. Notes and settings of your own belong under `metadata:`, "
        "where any key is allowed.",
    ),
    "C05": Rule(
        "Missing or circular include",
        "lm-eval skips a file whose `include:` does not exist or leads back to the file itself, and mentions "
        "it in its debug log only. The task is then unknown.",
        "news.yaml:2: error C05 include '_base.yaml' is not a file in /home/me/tasks/news; correct the name",
        "Correct the name; it is relative to the folder of the file that includes it. To break a circle, "
        "move the shared settings into a file that includes nothing.",
    ),
    "C06": Rule(
        "Task without a name, or with a name already taken",
        "lm-eval finds tasks by name. It skips a file without `task:`, and of two files with the same name "
        "it keeps only one, so you may be evaluating the other file.",
        "news_short.yaml:1: error C06 task name 'news' is also used at news.yaml:1, and lm-eval skips one of "
        "the two; choose another name",
        "Give each task a name of its own. If a file only holds settings for others to include, begin its "
        "file name with `_`; the check then leaves it alone.",
    ),
    "C07": Rule(
        "A !function that does not import",
        "lm-eval looks for the function in a Python file beside the YAML, then in the installed modules. The "
        "task cannot be loaded when the module is missing, lacks that function, or fails while it is "
        "imported.",
        "news.yaml:14: error C07 !function scoring.score_new: module 'scoring' has no 'score_new'; did you "
        "mean 'score_news'?",
        "Write `!function FILE.NAME` for a function in `FILE.py` beside the YAML, or the full dotted path of "
        "an installed function. If the import itself fails, fix the exception that the finding quotes.",
    ),
    "C08": Rule(
        "Invalid value",
        "Some settings must be a mapping, a list or one of a few words, and some need others: "
        "`multiple_choice` needs `doc_to_choice`, and every task needs documents. lm-eval fails on such a "
        "task, often with an exception that does not name the key. `generation_kwargs` in a task that "
        "generates nothing has no effect and is only a warning.",
        "news.yaml:10: error C08 output_type 'multiple_choices' is unknown; did you mean 'multiple_choice'?",
        "Write the value in the form that the finding asks for, use the suggested word, or add the missing setting.",
    ),
    "C09": Rule(
        "Unknown metric",
        "lm-eval looks for a metric it does not know in Hugging Face Evaluate. If it is not there either, "
        "lm-eval logs an error and continues: a generation task fails after the model has answered, and a "
        "forced choice drops the metric from its results.",
        "news.yaml:16: error C09 unknown metric 'exact_mach'; did you mean 'exact_match'?",
        "Correct the name. Mark a metric of the Evaluate library with `hf_evaluate: true`; return a metric "
        "of your own from a `process_results` hook.",
    ),
    "C10": Rule(
        "Metric without aggregation or direction",
        "lm-eval knows the aggregation of its own metrics only, and fails to load a task whose metric has "
        "none. With `process_results` but no `metric_list`, it takes the mean of whatever the hook returns, "
        "which is wrong for an F1 or a correlation. Without `higher_is_better`, nothing says which direction "
        "is an improvement; that is a warning.",
        "news.yaml:17: error C10 metric 'exact' has no aggregation; add `aggregation: mean`, or a function",
        "Give each metric in `metric_list` an `aggregation:` (`mean` or a function) and `higher_is_better: "
        "true` or `false`.",
    ),
    "C11": Rule(
        "Unknown aggregation",
        "lm-eval logs a warning when it loads the task, and fails only when it aggregates: after the model "
        "has answered every document.",
        "news.yaml:18: error C11 unknown aggregation 'maen' of 'exact'; did you mean 'mean'?",
        "Use the suggested name, or a function of your own, such as `aggregation: !function scoring.weighted_f1`.",
    ),
    "C12": Rule(
        "Unknown or malformed filter",
        "Filters turn a raw output into the answer that is scored. lm-eval cannot load a task with a filter "
        "that it does not know, or with an entry that lacks a name or its list of steps.",
        "news.yaml:19: error C12 unknown filter 'take_frist'; did you mean 'take_first'?",
        "Give each entry of `filter_list` a `name:` and, under `filter:`, a list of steps that each begin "
        "with `- function:`.",
    ),
    "C13": Rule(
        "Group member that cannot be built",
        "lm-eval takes a member that it does not know for a task defined inside the group. Such a task has "
        "no documents, so the whole group fails to load, with an exception that does not name the member.",
        "topics.yaml:2: error C13 members cannot be built: task 'topics' cannot be built: TypeError: "
        "expected str, bytes or os.PathLike object, not NoneType; correct its YAML, or the columns of its "
        "data",
        "Compare the names under `task:` with those that `lm_eval ls tasks` lists, and pass the folders of "
        "the members with `--include_path`. If all names are right, check each member by itself.",
    ),
    "C14": Rule(
        "Missing data file",
        "A file or folder of documents does not exist, so the task cannot be loaded. With `load_documents`, "
        "relative paths in `data_dir` and `data_files` start from the folder of the YAML, not from the "
        "working directory.",
        "news.yaml:3: error C14 documents are missing: /home/me/tasks/news/data/t.csv does not exist; check "
        "the path under 'train'; check the path",
        "Correct the path, or put the file there.",
    ),
    "C15": Rule(
        "Documents cannot be loaded",
        "The data are there but cannot be used: an empty file or split, a damaged row, or a label outside "
        "the choices. Evaluation and training stop at the same fault.",
        "news.yaml:3: error C15 documents cannot be loaded: data/train.jsonl (train): row 2 has label 1, "
        "outside the 1 choices ['good']; correct the label or the choices; correct the data or its settings",
        "Fix the file or row that the finding names. If the data are right, correct the settings that "
        "describe them, such as `choices` or `label`.",
    ),
    "C16": Rule(
        "Missing split",
        "The data have no split of this name, or the task names no split to evaluate. Without the evaluated "
        "split the task cannot run. A missing `training_split` or `fewshot_split` is a warning, since "
        "evaluation without examples does not read it.",
        "news.yaml:8: error C16 validation_split 'valid' is not in the data, which has train, validation; "
        "did you mean 'validation'?",
        "Name one of the splits that the finding lists.",
    ),
    "C17": Rule(
        "Template names a missing column",
        "A template sees only the columns of its document. lm-eval stops at any other name. Behind "
        "`default('')` it does not even stop: the name renders to nothing, and the model is asked about a "
        "text that is not in the prompt.",
        "news.yaml:11: error C17 doc_to_text names 'txt', which is not a column; did you mean 'text'?",
        "Use one of the columns that the finding lists, or add the column in `process_docs`.",
    ),
    "C18": Rule(
        "Template does not render",
        "lm-eval renders `doc_to_text`, `doc_to_target` and `doc_to_choice` for every document, so one "
        "failure stops the whole evaluation. The cause is invalid Jinja, a template that is not set, a value "
        "of an unexpected type, or an exception in a function of the task. Few-shot prompts that cannot be "
        "built are reported here, too.",
        "news.yaml:11: error C18 doc_to_text is not a valid template (unexpected '}'); correct it",
        "Correct the template, the function, or the document whose number the finding gives. If few-shot "
        "prompts fail, lower `num_fewshot` or draw examples from a larger split.",
    ),
    "C19": Rule(
        "Template is constant or renders to nothing",
        "A text that is neither a column nor a template is the same for every document, so the model is "
        "never asked about the document. `{column}` in single braces stays in the prompt as it is written, a "
        "missing value becomes the word `None`, and an empty gold answer tests nothing.",
        "news.yaml:11: error C19 doc_to_text has {text} in single braces, which is not replaced by the column; "
        "write {{text}}",
        "Write the name of a column, or `{{column}}` in double braces. Fill empty cells, or drop their "
        "documents in `process_docs`.",
    ),
    "C20": Rule(
        "White space doubled or missing",
        "lm-eval joins description, prompt, `target_delimiter` and answer as they are. A space that is "
        "doubled or missing gives tokens that the model has rarely seen in that place; scores drop, and "
        "another choice may win.",
        "news.yaml:11: warning C20 doc_to_text ends in white space and the delimiter begins with white space, "
        "so it is doubled; end the template with its last word (20 of 20 documents)",
        "End `doc_to_text` with its last word, begin answers with their first, and let `target_delimiter` (a "
        'space by default) stand between them. End `description` with `"\\n\\n"`.',
    ),
    "C21": Rule(
        "Gold answer is not among the choices",
        "lm-eval logs a warning and counts the document as wrong, whatever the model says. Labels that count "
        "from 1 are worse: all gold answers are off by one, and only the last label is noticed.",
        "news.yaml:13: error C21 doc_to_target gives 2, outside the 2 choices (10 of 20 documents, first 1); "
        "correct the labels or the choices",
        "Let `doc_to_target` give the position of the gold answer, counted from 0, or exactly one of the "
        "texts in `doc_to_choice`.",
    ),
    "C22": Rule(
        "Invalid choices",
        "The choice with the highest log-probability wins, the first one in a tie. The second of two equal "
        "choices can therefore never win, an empty choice has nothing to score, and a single choice always "
        "wins.",
        "news.yaml:12: error C22 doc_to_choice gives 'good' twice (20 of 20 documents, first 0); correct it",
        "Let `doc_to_choice` give a list of different, non-empty texts for each document: at least two, "
        "unless a `process_results` hook scores the log-probability of a single answer.",
    ),
    "C23": Rule(
        "Stop string inside gold answers",
        "Generation ends at the first stop string in `until`. A gold answer that contains one can never be "
        "produced in full, so even a perfect model loses that document. A stop string in `target_delimiter` "
        "ends the output before the answer begins.",
        "news.yaml:13: error C23 stop string 'e' occurs in the gold answers of 14 of 20 documents (first: "
        "0) and cuts them; choose another",
        "Remove the string from `generation_kwargs: until`, or replace it by one that no answer contains. If "
        "it is in `target_delimiter`, change either of them.",
    ),
    "C24": Rule(
        "max_gen_toks is too small",
        "Generation stops after `max_gen_toks` tokens, or 256 if the task does not say. A longer gold answer "
        "is cut and cannot match. It is an error when more than 1 % of the gold answers are longer, "
        "otherwise a warning. Lengths depend on the tokenizer, so this needs `--model`.",
        "news.yaml:14: error C24 max_gen_toks 5 is too small: 20 of 20 gold answers are longer (up to 7 "
        "tokens); raise it",
        "Raise `generation_kwargs: max_gen_toks` at least to the length that the finding gives.",
    ),
    "C25": Rule(
        "Labels that share a first token or have several tokens",
        "A label's score is the sum of its tokens' log-probabilities. A first token that labels share does "
        "not help to tell them apart, and a label with more tokens tends to score lower whatever the "
        "document says. This needs `--model`.",
        "news.yaml:12: warning C25 labels 'very good', 'very bad' begin with the same token, which cannot "
        "tell them apart; choose other words",
        "Choose label words of one token each, with different first tokens. If the labels are fixed, report "
        "`acc_norm`, which divides each score by the length of its label.",
    ),
    "C26": Rule(
        "Few-shot leak",
        "lm-eval leaves the evaluated document out of its own examples only when `fewshot_split` is the test "
        "split. With any other evaluated split, some prompts contain the document together with its answer, "
        "and the score is too high. It is an error when the task sets `num_fewshot`, and a warning when "
        "`--num_fewshot` would cause it.",
        "news.yaml:9: error C26 few-shot leak: 8 of 20 documents are examples in their own prompt, since "
        "fewshot_split 'validation' contains them; use another fewshot_split (lm-eval excludes the document "
        "only if this is the test split)",
        "Draw examples from another split, usually `fewshot_split: train`.",
    ),
    "C27": Rule(
        "Evaluated documents in the training split",
        "An adapter trained on these documents has seen the answers that it is tested on, so its gain is "
        "overstated. The text columns of the prompt are compared word for word, ignoring case and white "
        "space.",
        "news.yaml:7: warning C27 20 of 872 evaluated documents (2.3%) are also in the training split, with "
        "the same text (first: 0); remove them from the training split",
        "Remove the documents from the training split. If both splits are the same one, name another; "
        "`harness-ext train` refuses such a task.",
    ),
    "C28": Rule(
        "Gold answers do not get full marks",
        "The check sends each gold answer through the task's own requests, filters and scoring. If that does "
        "not score 1 (or 100), no model can. The most common cause is the space before a generated answer, "
        "which the scoring does not strip. For a metric where lower is better, gold answers must score lower "
        "than wrong ones.",
        "news.yaml:15: error C28 gold answers score 0 exact, not 1; first failure: document 0, gold 'apple'; "
        "correct process_results",
        "Start with the document that the finding names. Strip outputs in the hook, or add a filter such as "
        "`remove_whitespace`; check `doc_to_target` and `higher_is_better`.",
    ),
    "C29": Rule(
        "A wrong answer scores",
        "The check also scores wrong answers: another choice or nonsense, which may get at most 10 % of full "
        "marks, and in generation another document's gold answer, at most 60 %. Scoring that accepts more "
        "rewards any output, and hides the difference between base and adapter.",
        "news.yaml:15: error C29 a wrong answer on every document scores 1 exact of 1; correct the scoring",
        "Compare the output with this document's own gold answer. Look for a test that an empty or short "
        "text always passes, and for a metric that lm-eval makes binary (C37).",
    ),
    "C30": Rule(
        "Abstaining does not score abstain_baseline",
        "`abstain_baseline` is the score of always abstaining, and `compare` warns about scores that do not "
        "exceed it (R02, R03). If the task's scoring gives another value for an empty answer, or for "
        "`abstain_answer`, those warnings use the wrong threshold.",
        "news.yaml:15: error C30 always answering '' scores 0 exact, but the task declares 1 "
        "(abstain_baseline); correct the abstain words",
        "Let the hook recognise an empty answer and the text in `metadata: abstain_answer` as abstaining, or "
        "correct the `abstain_baseline` that it returns.",
    ),
    "C31": Rule(
        "Scoring fails",
        "The hook, a filter or an aggregation raises an exception on a gold, a wrong or an empty answer. "
        "Real models give empty outputs too, and the evaluation would fail after the model has answered "
        "every document.",
        "news.yaml:15: error C31 process_results fails on document 0 (answer 'apple'): KeyError: 'answr'; "
        "correct the hook, the filters or the data",
        "Make the hook return a score for every answer, including an empty one. The finding names the "
        "document, the answer and the exception.",
    ),
    "C32": Rule(
        "metric_list and scoring differ",
        "lm-eval takes the mean of a metric that scoring returns but `metric_list` does not name, which is "
        "wrong for anything but an average. A metric that is listed but never returned is silently missing "
        "from the results.",
        "news.yaml:16: error C32 metric_list contains 'exact', which scoring returns for none of the checked "
        "documents; did you mean 'exakt'?",
        "Use the same names in `process_results` and `metric_list`. A metric that only some documents have "
        "is fine if they are rare; the finding is then a note.",
    ),
    "C33": Rule(
        "primary_metric is not in metric_list",
        "`metadata: primary_metric` names the metric that `compare` tests. If the task does not log it, the "
        "comparison stops with an error.",
        "news.yaml:45: error C33 primary_metric 'accc' is not in metric_list (acc, brier); did you mean 'acc'?",
        "Name a metric of `metric_list`, or add this one to the list.",
    ),
    "C34": Rule(
        "metric_scale does not fit",
        "`metadata: metric_scale` says what full marks are: 1 or 100. `compare` takes the unit, the margin "
        "and constant-answer baselines from it, so a wrong scale puts them off by a factor of 100.",
        "news.yaml:22: error C34 metric_scale is 1, but gold answers score 100 exact; set it to 100",
        "Set it to what gold answers score.",
    ),
    "C35": Rule(
        "All documents have the same gold answer",
        "A model that always gives this answer gets full marks, so the score says nothing about the task. "
        "The check looks at up to 200 documents, spread over the split.",
        "news.yaml:11: warning C35 all 9 checked documents have the gold answer 'apple', so always giving it "
        "scores full marks; evaluate documents with different answers",
        "Evaluate documents with different answers. If the data have them, check `doc_to_target` and "
        "whatever `process_docs` leaves out.",
    ),
    "C36": Rule(
        "The task cannot be trained on",
        "The task can be evaluated. `harness-ext train` needs a training split whose documents have an "
        "answer; a task that scores whole texts (`loglikelihood_rolling`) has no answers.",
        "news.yaml:1: note C36 has no training_split: it can be evaluated, but not trained on",
        "Nothing, if you only evaluate. To train, add `training_split:`.",
    ),
    "C37": Rule(
        "Several gold answers with a metric that lm-eval makes binary",
        "When `doc_to_target` gives a list, lm-eval scores 1 as soon as one answer gets more than 0. A "
        "graded metric such as chrF is then 1 for almost any output.",
        "news.yaml:15: warning C37 doc_to_target gives several answers, so lm-eval turns any chrf above 0 "
        "into 1; score with a process_results hook",
        "Score in a `process_results` hook that takes the best value over the gold answers, or use "
        "`exact_match`, which is 0 or 1 anyway.",
    ),
    "C38": Rule(
        "Documents out of reach",
        "The documents are neither in a local folder nor on a Hub that answers. Only the YAML was checked; "
        "templates, leaks and scores were not. The task itself may be fine.",
        "news.yaml:3: note C38 not verified: documents out of reach (connect to the Hub, or name local files)",
        "Connect to the Hub, or set `HARNESS_EXT_DATA` to a folder that holds the data; then check again.",
    ),
    "C39": Rule(
        "The task cannot be built",
        "The YAML passed every other check, yet lm-eval or the task's own class raises an exception when the "
        "task is built. Evaluation would fail in the same way.",
        "news.yaml:1: error C39 cannot be built: task 'news' cannot be built: ModuleNotFoundError: No module "
        "named 'nltk'; correct its YAML, or the columns of its data",
        "Fix what the exception reports; often a package has to be installed, or a column is missing.",
    ),
    "C40": Rule(
        "File that lm-eval will not find",
        "In the folders of `--include_path`, lm-eval looks for `*.yaml` only. A task in a `.yml` file is "
        "unknown by its name.",
        "news.yml:1: warning C40 lm-eval looks for *.yaml under --include_path, not *.yml; rename it",
        "Rename the file to `.yaml`.",
    ),
    "C41": Rule(
        "The task's code ends the check",
        "A hook, or a module that is imported for it, calls `sys.exit` or `os._exit`, crashes the interpreter, or does "
        "not end. Tasks are checked in a process of their own, so the other tasks are checked all the same. An "
        "evaluation would end in the same way, possibly with exit code 0.",
        "news.yaml:1: error C41 its code ended the process (exit code 0) while it was checked; remove that from its "
        "hooks",
        "Remove what ends the process from the hooks; raise an exception instead. A check may take 30 minutes a task.",
    ),
    # -- comparison: `harness-ext compare` --
    "R01": Rule(
        "Many outputs did not parse",
        "If outputs cannot be parsed, the score measures their format rather than what the model knows. This is "
        "reported when less than 95 % of the outputs parse. Base models often look useless for this reason alone.",
        "sst2_generate, base: only 83.7 % of the outputs parsed, so acc 66.6 says more about the output format than "
        "about skill (79.6 % of the parsed outputs are correct)",
        "Compare `acc_parsed` too, or use a forced-choice task (`sst2_choice`), which always parses.",
    ),
    "R02": Rule(
        "Score at or below that of a constant answer",
        "Always giving the most frequent answer, always abstaining, and guessing need no model. A score below that of "
        "such an answer has another cause than missing knowledge: wrong parsing, swapped labels, or a prompt that the "
        "model does not follow.",
        "squad_v2_generate, sst2: exact 5.0 is worse than always abstaining (50.1)",
        "Look at the logged samples, and check the task with `harness-ext check`.",
    ),
    "R03": Rule(
        "Score that is not clearly above that of a constant answer",
        "The interval of the score contains the score of a constant answer, so the model may have learned nothing.",
        "sst2_choice, base: acc 51.3 may be no better than always giving the most frequent answer (50.9): its interval "
        "starts at 47.9",
        "Evaluate more documents, or treat the score as chance.",
    ),
    "R04": Rule(
        "Adapter of another base",
        "The adapter's card names another base than the baseline, so the difference mixes that of the bases with the "
        "effect of the adapter.",
        "mine: was trained on org/a, but the baseline is org/b; the difference mixes the two",
        "Evaluate the adapter's own base, and compare with that.",
    ),
    "R05": Rule(
        "Protocols differ, accepted with --allow",
        "The difference in scores may come from the protocol instead of the adapter.",
        "sst2_choice, mine: differs from the baseline in dtype (--allow), which may explain the difference in scores",
        "Evaluate both runs under the same protocol.",
    ),
    "R06": Rule(
        "Documents that only one run has",
        "Runs are compared on the documents that both have. With different --limit values, the other documents are "
        "left out.",
        "sst2: base and mine are compared on the 400 documents that both have; 472 that only one of them has are left "
        "out",
        "Evaluate both runs with the same --limit.",
    ),
    "R07": Rule(
        "Few independent units",
        "Questions on the same passage are not independent. With fewer than 40 effective units, standard errors are "
        "unreliable; with fewer than 6, no verdict is possible, since a two-sided sign-flip test of five units cannot "
        "reach p < .05.",
        "squad: only 8.3 effective units in 12 passages; with fewer than 40, the permutation p-value is more reliable "
        "than the intervals",
        "Evaluate more passages, not more questions on the same passages.",
    ),
    "R08": Rule(
        "Repeated column that is not declared",
        "Many documents share a long text and may not be independent. If they are not, the intervals are too short.",
        "my_task: several documents share the same 'article' and may not be independent; declare it with `metadata: "
        "cluster: article` or --cluster my_task=article",
        "Declare the column: `metadata: cluster: article` in the task's YAML, or --cluster my_task=article.",
    ),
    "R09": Rule(
        "Row that is not tested",
        "Without a score for each document there is no paired test. The table shows the logged values only.",
        "wikitext, base: word_perplexity is not tested (no samples logged); evaluate again with --log_samples",
        "Evaluate with --log_samples, or compare another metric.",
    ),
    "R10": Rule(
        "Choices that tie",
        "If the best choices have the same log-probability, the first of them wins. Accuracy then counts how often the "
        "first choice happens to be right.",
        "sst2_choice, base: the best choices tie in 80 % of the documents, and the first of them wins; check the "
        "tokenizer with `harness-ext check sst2_choice --model MODEL`",
        "Check the tokenizer: `harness-ext check TASK --model MODEL`.",
    ),
    "R11": Rule(
        "Tasks that not all runs have",
        "A task can only be compared between runs that were evaluated on it. `--fail-on` fails, since nothing is known "
        "of the missing ones.",
        "mine: not evaluated on sst2_generate",
        "Evaluate all runs on the same tasks, or choose tasks and runs with --tasks and --runs.",
    ),
    "R12": Rule(
        "Metric without a unit",
        "No unit and margin are declared for the metric. A run can be better or worse, but it is unknown which "
        "differences are too small to matter, so none is equivalent.",
        "my_task: judge_score has no declared unit, so no difference can be equivalent; declare it in the task's YAML "
        "(metadata: metrics: {judge_score: {unit: ..., margin: ...}}) or with --margin judge_score=VALUE",
        "Declare it: `metadata: metrics: {judge_score: {unit: marks, range: [1, 5], margin: 0.1}}`, or --margin "
        "judge_score=0.1.",
    ),
    "R13": Rule(
        "Tasks without the metric",
        "Tasks that do not log the metric of --metric are left out.",
        "--metric f1: left out 2 tasks without this metric (sst2_choice, sst2_generate)",
        "Compare these tasks by their own metrics, without --metric.",
    ),
    "R14": Rule(
        "Rows that were filtered out",
        "Holm's correction covers the rows of this comparison. If rows are chosen after seeing the results, their "
        "p-values are too small.",
        "--tasks and --runs left out 3 rows (one on y, two on x, two on y). If they were chosen after seeing the "
        "results, the p-values are too small.",
        "Choose tasks and runs before seeing results, or report the whole comparison.",
    ),
    "R15": Rule(
        "Values outside the declared range",
        "The metric's name or the task's YAML declares a range, and some values lie outside. Most often these are "
        "percentages under the name of a share, 0 to 1, which would be shown a hundred times too large. They are "
        "compared as logged and without a unit, so no difference is equivalent.",
        "my_task: f1 has values outside its declared range, 0 to 1, so it is compared as logged and without a unit; "
        "declare it in the task's YAML (metadata: metrics: {f1: {unit: ..., range: ...}})",
        "Declare the unit in the task's YAML: `metadata: metrics: {f1: {unit: points}}`, or `metric_scale: 100`.",
    ),
    "R16": Rule(
        "Run that was cut short",
        "The results of a task name more documents than its samples file holds: the run was killed, or the disk was "
        "full. The documents that are missing are not missing at random, so nothing is tested. `--fail-on` fails.",
        "sst2_choice, mine: acc is not tested (the run was cut short: has 12 of 40 documents); evaluate again",
        "Evaluate this run again.",
    ),
    "R17": Rule(
        "Results that cannot be read",
        "A folder among the results cannot be read, or holds samples without results, as a killed run leaves them. The "
        "comparison lacks that run. `--fail-on` fails.",
        "results/mine: samples of 2025-06-01T10-00-00 without results: the run was cut short; evaluate again",
        "Evaluate this run again, or remove its folder.",
    ),
    # -- the doctor: `harness-ext doctor` --
    "D1": Rule(
        "Outputs that do not parse",
        "The score is the share of outputs that parsed times the score of those. A score below chance usually "
        "means that the metric could not read the answers, not that they were wrong. If another reading of the "
        "same outputs scores significantly more, the cause is proved.",
        "sst2_generate, base: 37.5 % of the outputs do not parse: acc 39.3 = 62.5 % parsed x 62.9 of those right",
        "Accept the form in which the model answers (a filter, or the task's `process_results`), or ask for the "
        "bare label in the prompt.",
    ),
    "D2": Rule(
        "Labels that are swapped",
        "With two labels, a score significantly below one half cannot be bad luck or lack of skill: the model "
        "tells the classes apart, but the labels are the wrong way round.",
        "sentiment, base: only 12.3 % right, significantly below guessing; with the two labels swapped it would be"
        " 87.7 %",
        "Check the order of `doc_to_choice` against the numbers in the label column.",
    ),
    "D3": Rule(
        "One label for nearly everything",
        "The score is then the share of that label in the data, whatever the model knows.",
        "sst2_choice, base: 98.2 % of the outputs are label 1, which has at most 50.9 %",
        "Look at the label words in the prompt. If the scores still tell the classes apart, calibrate the choice.",
    ),
    "D5": Rule(
        "Text after the answer",
        "The output begins with the right answer and goes on, so exact match and F1 fall although the model knows "
        "the answer. Scoring the first line, the first sentence or the first turn alone proves it.",
        "squad_v2_generate, qa: 412 outputs contain the reference answer without matching it (52 match); exact "
        "rises from 5.0 to 45.1 (+40.1 [+36.0, +44.2], n=1,563) if only the first line is scored",
        "Add the string that follows the answer to `generation_kwargs: until`, or train with an end token.",
    ),
    "D6": Rule(
        "Outputs that do not stop",
        "Outputs that end at the token limit are cut off anywhere. The usual cause is training without a "
        "supervised end token, or a missing stop string.",
        "squad_v2_generate, qa: 96.0 % of the outputs end at the token limit instead of stopping, 310 of them in "
        "repetitions",
        "Train with an end token behind each answer, add a stop string to `until`, or raise `max_gen_toks`.",
    ),
    "D7": Rule(
        "End token that is never trained",
        "A model stops writing where it has learned to put an end token. Without a supervised end token behind each "
        "answer, it goes on to the token limit, and exact match falls although the answer is right. For a forced "
        "choice nothing is generated, so it is a warning.",
        "squad_v2_generate: 64 of 64 training examples have no supervised end token, so the model does not learn to "
        "stop",
        "End each answer with the tokenizer's end token, and do not mask it in the labels. A common cause is a pad "
        "token that equals the end token: collators mask both.",
    ),
    "D9": Rule(
        "Loss on prompt tokens",
        "When the loss covers the prompt, most of the gradient goes into predicting the question. The answers, a few "
        "tokens each, are hardly learned. It is reported when there are more than 1.05 supervised tokens to one token "
        "of the answers.",
        "squad_v2_generate: the loss is computed on 41.8 times as many tokens as the answers have, so also on the "
        "prompt",
        "Set the labels of prompt tokens to -100, or in TRL use `completion_only_loss=True`.",
    ),
    "D10": Rule(
        "Answers that were cut in training",
        "Examples longer than the limit lose their end, which is the answer. The model then learns to stop early or "
        "never sees an answer. It is an error when more than 1 % of the examples are cut. In logged outputs it shows "
        "as answers that stop within a word of the reference (a warning from 5 %, an error from 20 %).",
        "squad_v2_generate: 12 of 64 training examples lack a part of their answer, 180 characters in all",
        "Raise `--max-length`, and cut prompts on the left instead of answers on the right.",
    ),
    "D11": Rule(
        "Prompts that were cut",
        "A prompt that does not fit is cut at its beginning, which holds the instruction and the first examples. It is "
        "an error when more than half of the prompts are cut.",
        "squad_v2_generate, qa: 120 prompts fill max_length=512 up to the 32 tokens of the answer",
        "Raise `max_length`, lower `max_gen_toks`, or leave out `max_length`.",
    ),
    "D12": Rule(
        "Abstentions that count as wrong",
        "The model says that a question has no answer, in words that the metric compares with the empty answer. If "
        "the same outputs score significantly more with these words mapped to the empty answer, the cause is proved.",
        "qa, base: 700 of 775 unanswerable questions are answered with an abstention such as 'unanswerable', and "
        "0 of them count as right; exact rises from 6.2 to 51.0 (+44.8 [+42.3, +47.3], n=1,563) if abstentions count "
        "as the empty answer",
        "Map abstention words to the empty answer before scoring, as `harness_ext.hooks.score_squad_v2` does.",
    ),
    "D13": Rule(
        "Credit from empty answers only",
        "On SQuAD v2, always abstaining scores the share of unanswerable questions. A score at or below it, or an "
        "F1 that equals exact match, comes from empty answers rather than from answers found in the passage.",
        "squad_v2_generate, qa: exact 5.0 is 4.6 from questions without an answer and 0.4 from questions with one",
        "Read `HasAns_exact` and `NoAns_exact` separately; train on questions with answers.",
    ),
    "D14": Rule(
        "Metrics on different scales",
        "A BLEU of .018 beside an exact match of 4.97 is on 0-1, the other on 0-100; side by side they mislead.",
        "squad_v2_generate, qa: bleu 0.018 stands beside exact 5.0: one is probably on 0-1, the other on 0-100",
        "Declare the unit of each metric in the task's YAML, or scale the metric.",
    ),
    "D15": Rule(
        "Prompts that differ between training and evaluation",
        "The adapter is trained on one prompt and asked with another: another template, other examples, another join "
        "of prompt and answer. Token ids are compared, since texts that look alike may have other tokens. A join "
        "inside a token is a warning. `--replay` changes the prompt; a significant gain proves the cause.",
        "sst2_choice: 64 of 64 prompts differ between training and evaluation: from token 0, 'Decide' ' whether' in "
        "training and '<|im_start|>' 'system' in evaluation",
        "Use the same chat template, few-shot examples and system instruction in both.",
    ),
    "D16": Rule(
        "Begin token doubled or missing",
        "If both the chat template and the tokenizer add a begin token, there are two; if neither does, there is "
        "none. Models are sensitive to it, and most of all when training and evaluation differ, which is an error.",
        "sst2_choice: prompts begin with 2 begin tokens ('<s>') in training and 1 in evaluation",
        "Let only one of the two add it: `add_special_tokens=False` for text that a chat template has rendered.",
    ),
    "D18": Rule(
        "Label words that are hard to tell apart",
        "Labels that begin with the same token are told apart by a later one, which the model sees only after it has "
        "committed to the first. Labels with more tokens tend to score lower, whatever the document says.",
        "news: labels ' very good', ' very bad' begin with the same token, ' very'",
        "Choose label words of one token each, with different first tokens.",
    ),
    "D19": Rule(
        "Runs that are not comparable",
        "Prompts, documents or settings differ, so the difference in scores may come from them.",
        "sst2_choice, mine: was not evaluated like base: num_fewshot: 0 and 5",
        "Evaluate both runs with the same settings.",
    ),
    "D20": Rule(
        "Adapter that does nothing or is incomplete",
        "An adapter whose product B·A is zero leaves the model as it is. Weights that are missing, have no layer in "
        "the base or are not finite mean that only a part of the adapter is applied. peft itself only warns of them.",
        "adapters/mine: changes nothing: B·A is zero in all 210 layers",
        "Train the adapter again; if weights do not fit, name the base it was trained on with `--model`.",
    ),
    "D21": Rule(
        "A question among its own examples",
        "The few-shot examples are drawn from the evaluated split, so some prompts show the answer to their own "
        "question.",
        "my_task, base: 153 of 300 prompts show their own question among the examples",
        "Draw the examples from another split: `fewshot_split: train`.",
    ),
    "D22": Rule(
        "Evaluated documents in the training split",
        "An adapter trained on this split has seen the answers. Documents are compared by their whole text and by "
        "13-grams.",
        "my_task, base: 40 of 300 evaluated questions stand in the training split",
        "Remove them from the training split and train again, or evaluate on other documents.",
    ),
    "D23": Rule(
        "Answers exactly as the base",
        "Every output equals the base's, so the adapter was not applied, or changes nothing.",
        "sst2_choice, mine: all 872 outputs equal those of base",
        "Check how the adapter was given to the engine, and that it was trained.",
    ),
    "D24": Rule(
        "Another template than in training",
        "An adapter that was trained in a chat template and is asked in plain text, or the other way round, has never "
        "seen such a prompt. `--replay` asks the same documents in the common templates (ChatML, Llama 2 and 3, "
        "Alpaca, Vicuna, Zephyr, Phi, Gemma) and in the tokenizers' own; the one that restores the score is the cause.",
        "squad_v2_generate, qa: exact rises from 5.0 to 48.4 (+43.4 [+35.0, +52.0], n=128) with the ChatML template: "
        "the adapter was trained in that template",
        "Evaluate in that template: `--apply_chat_template` where the tokenizer has it, else a copy of the task. The "
        "printed command does so.",
    ),
    "D25": Rule(
        "Another scale of the adapter than in training",
        "LoRA adds alpha / r · B·A to a weight, rsLoRA alpha / sqrt(r) · B·A. An adapter that is loaded with another "
        "alpha, rank or formula than it was trained with, or that is put on a base into which it is merged already, is "
        "too strong or too weak. `--replay` changes the scale; a significant gain proves the cause. Updates larger "
        "than the weights themselves are a warning.",
        "adapters/mine: updates are scaled by 5.65685, but the adapter was trained with 2 (alpha 16)",
        "Set `lora_alpha`, `r` and `use_rslora` in `adapter_config.json` as they were in training.",
    ),
    "D26": Rule(
        "Difference below the noise floor",
        "In low precision, answers can change with the order of the documents or with the other prompts of a batch. A "
        "difference that is no larger than that says nothing.",
        "sst2_generate, mine: acc differs by 1.6 when only the order and the packs of the documents change, and by 1.0 "
        "from the base",
        "Evaluate in float32, or on more documents.",
    ),
    "D27": Rule(
        "A gain in form only",
        "The adapter parses, stops or abstains more often as the metric wants it; on documents that both runs "
        "answer in the same form, it is not better.",
        "sst2_generate, mine: the gain of +27.4 is form (parsing +27.4)",
        "Compare with a base that is asked in its own form (few-shot, chat template) before calling this a skill.",
    ),
    "D28": Rule(
        "An earlier checkpoint was better",
        "The last checkpoint was kept, and an earlier one of the same training scores significantly more on the same "
        "documents, corrected for the number of checkpoints. It is found when the checkpoints are evaluated beside the "
        "adapter: `--adapters out out/checkpoint-100 out/checkpoint-200`.",
        "squad_v2_generate, out: an earlier checkpoint is better: exact rises from 41.0 to 48.2 (+7.2 [+3.1, +11.4], "
        "n=300) with checkpoint-100",
        "Keep the earlier checkpoint, or train for fewer steps. Choosing it on these documents flatters it, so report "
        "its score on others.",
    ),
    "D29": Rule(
        "Examples known by heart do not get full marks",
        "A copy of the model learns 8 training examples by heart, and the evaluator scores it on these very documents. "
        "Generated answers are also scored without a model: up to 64 trained answers, as a model that knows them would "
        "write them. Anything below full marks means that training and evaluation do not speak of the same thing: the "
        "answer that is trained is not the answer that is scored. More training cannot repair it.",
        "squad_v2_generate: 8 of 8 training examples that a model knows by heart are scored as wrong by the evaluator "
        "(exact 0 instead of 100): trained ' Par' 'is' '<|im_end|>', generated ' Par'",
        "Compare the tokens that the finding shows. Look at filters, stop strings, `max_gen_toks` and "
        "`process_results`, and at `doc_to_target` against what scoring accepts.",
    ),
    "D30": Rule(
        "Another tokenizer than in training",
        "An adapter can bring a tokenizer with other tokens, other begin tokens or another chat template. With the "
        "base's tokenizer it reads other ids than those it was trained on.",
        "sst2_generate, mine: acc rises from 50.0 to 91.0 (+41.0 [+30.0, +52.0], n=64) with the adapter's own "
        "tokenizer",
        "Name it: `--model_args pretrained=BASE,peft=ADAPTER,tokenizer=ADAPTER`.",
    ),
    "D31": Rule(
        "A stop string cuts off the answer",
        "A model that begins its answer with a newline, or writes a stop string within it, is cut off too early; often "
        "the output is then empty.",
        "squad_v2_generate, base: exact rises from 3.1 to 25.0 (+21.9 [+11.5, +32.2], n=64) without stop strings",
        "Remove the string from `generation_kwargs: until`, and cut the answer in a filter instead.",
    ),
    "D32": Rule(
        "Decoding settings that change the answers",
        "A model's `generation_config.json` may ask for sampling or penalise repetitions, and `generation_kwargs` may, "
        "too. A short answer that stands in the passage is then avoided.",
        "squad_v2_generate, qa: exact rises from 31.0 to 48.0 (+17.0 [+8.5, +25.5], n=128) with plain greedy decoding",
        "Set `do_sample=False` and neutral penalties with --gen_kwargs.",
    ),
    "D33": Rule(
        "The logged score is not reproduced",
        "Asked again with nothing changed, the model does not score as logged. It is then not the model that was "
        "evaluated (another base, another adapter, another scale), or its engine answered differently. Nothing can be "
        "proved about the logged score with it.",
        "sst2_generate, mine: acc is 51.6 in the results and 89.1 when the same 64 documents are asked again with "
        "nothing changed",
        "Check the names of base and adapter, then evaluate again with `harness-ext eval`.",
    ),
    "D34": Rule(
        "Adapter on another base than it was trained on",
        "An adapter's card has the checksum of the base it was trained on. On other weights, even of the same "
        "architecture, its updates point in directions that mean something else.",
        "adapters/mine: was trained on other weights of org/base (sha256 a672150fb4f9…) than those of models/base "
        "(09af31c2d7e4…)",
        "Use the base that the card names, at the same revision and precision.",
    ),
    # -- what is served: `harness-ext parity` --
    "P01": Rule(
        "Served without the adapter",
        "What is served answers as the base. The adapter was not given to the engine, was refused without a word, "
        "or its weights have names that the engine does not know, so it drops them all.",
        "sst2_choice: the adapter is not applied: on 10 documents it is 4.7e-05 nats from the base and 2.3 from the"
        " adapter (rounding alone: 3.9e-05)",
        "Look at the engine's messages and its LoRA settings. Compare the names of the adapter's weights with the "
        "layers that the engine knows; merged weights need none.",
    ),
    "P02": Rule(
        "Served at another scale",
        "LoRA adds alpha / r · B·A to a weight. An engine that ignores alpha, reads rsLoRA as LoRA, or adds the "
        "adapter to a base that it is merged into already, applies it too weakly or too strongly.",
        "sst2_choice: its updates are scaled by 4 instead of 2: perhaps it is put on a base that it is merged into "
        "already: on 10 documents it answers as the adapter does at 2 times its scale (100 % of the difference is "
        "explained)",
        "Set `lora_alpha`, `r` and `use_rslora` as in `adapter_config.json`, and serve the base without the adapter"
        " in it.",
    ),
    "P03": Rule(
        "Served with other prompts",
        "The prompt that reaches the served model is not the one of the evaluation: another chat template, an older"
        " copy of it, a system instruction, or other white space.",
        "sst2_choice: its chat template is another: on 10 documents it answers as the adapter does with the chat "
        "template of what is served (100 % of the difference is explained)",
        "Serve the tokenizer and chat template of the evaluation, or evaluate with those that are served.",
    ),
    "P04": Rule(
        "Served with another number of begin tokens",
        "If both the chat template and the tokenizer (or the server) add a begin token, there are two; if neither "
        "does, there is none.",
        "sst2_choice: its prompts begin with two begin tokens instead of one begin token: on 10 documents it "
        "answers as the adapter does with two begin tokens (100 % of the difference is explained)",
        "Let only one of them add it: `add_bos_token` of the tokenizer, `--no-bos` or the like of the server.",
    ),
    "P05": Rule(
        "Only some layers have the adapter",
        "An engine that names or fuses layers otherwise (`qkv_proj` for `q_proj`, `k_proj`, `v_proj`) may drop the "
        "weights that it does not find, without an error.",
        "sst2_choice: the adapter is applied to q_proj, v_proj only; its weights for gate_proj, up_proj, down_proj "
        "are dropped: on 10 documents it answers as the adapter does without its weights for gate_proj, up_proj, "
        "down_proj (100 % of the difference is explained)",
        "Convert the adapter to the engine's names, train only layers that it supports, or serve merged weights.",
    ),
    "P06": Rule(
        "Served from other weights",
        "What is served answers neither as the base nor as the adapter, and no change of prompt, scale or layers "
        "explains it. It is another base (base for instruct, another revision), another adapter, or damaged "
        "weights. Where its weights are at hand, one that the adapter leaves alone and that differs proves another "
        "base.",
        "sst2_choice: its base is another one: model.norm.weight is not that of org/base; on 10 documents it is 5.1"
        " nats from the base and 4.8 from the adapter (rounding alone: 3.9e-05)",
        "Compare the checksums of the served base with `base_sha256` in the adapter's card, and export again.",
    ),
    "P07": Rule(
        "Damage by few bits",
        "Rounding weights to few bits moves the answers further than the precision of the engine alone does. It is "
        "as large as rounding the base to 4 bits makes it here, or smaller.",
        "sst2_choice: its answers are as damaged as by rounding the base's weights to 4 bits (0.31 nats from the "
        "adapter; 4 bits make 0.29, rounding to bfloat16 makes 0.02)",
        "Evaluate what is served (`harness-ext eval` on the quantised model) and report that score; or serve in "
        "more bits, or train on the quantised base (QLoRA).",
    ),
    "P08": Rule(
        "Answers end elsewhere",
        "The answers are those of the adapter up to where one of the two stops: an end token that the engine does "
        "not know, a stop string that is not sent, or another token limit.",
        "squad_v2_generate: its answers end elsewhere: 10 of 10 texts go on behind the adapter's answer",
        "Set the end token in `generation_config.json`, and send the task's stop strings and `max_gen_toks`.",
    ),
    "P09": Rule(
        "Base and adapter answer alike",
        "What is served answers as the adapter, and as the base, too: on these documents nothing tells the two "
        "apart beyond rounding, so nothing is shown.",
        "sst2_choice: base and adapter answer these documents alike, so nothing is shown: on 50 documents it is "
        "0.0008 nats from the base and 0.0007 from the adapter (rounding alone: 0.0009)",
        "Name a task that the adapter was trained for with --task.",
    ),
    "P10": Rule(
        "Not decided",
        "Some documents differ by more than rounding explains: too many for a sound export, and too few for a fault.",
        "sst2_generate: 50 documents do not decide whether it answers as the adapter: of 50 texts 31 differ from "
        "the base's and 8 from the adapter's (1 by rounding alone)",
        "Ask more of them: --documents 200. Look at the documents that are listed.",
    ),
    "P11": Rule(
        "Answers that are not numbers",
        "Log-probabilities of what is served are NaN or infinite where those of the evaluation are numbers. Often a "
        "precision with a small range is the cause: float16 holds no number beyond 65,504.",
        "sst2_choice: 10 of 10 documents get log-probabilities that are not finite numbers; so do 10 of them by peft in"
        " float16: numbers of the model are too large for it",
        "Serve in bfloat16 or float32.",
    ),
}
