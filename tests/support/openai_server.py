"""A small OpenAI-compatible server over a tiny model and its adapters, with the faults that real ones have."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PATHS = ("completions", "chat/completions")


@dataclass
class OpenAIServer:
    """What is served, and how it fails."""

    base: Path
    adapters: Mapping[str, Path]
    without_echo: bool = False  # no log-probabilities of prompts, as llama-server
    ignores_adapters: bool = False  # takes their names and answers as the base
    leaves_out: bool = False  # every second text
    goes_on: bool = False  # behind the end of each text
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(self.base)
        self._models = {"base": AutoModelForCausalLM.from_pretrained(self.base).eval()}
        for name, folder in self.adapters.items():
            model = AutoModelForCausalLM.from_pretrained(self.base)
            self._models[name] = PeftModel.from_pretrained(model, str(folder)).eval()
        self._lock = threading.Lock()

    @torch.no_grad()
    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The reply of /v1/completions."""
        self.requests.append(asked)
        model = self._models["base" if self.ignores_adapters else asked["model"]]
        if "messages" in asked:
            return {"choices": [{"index": 0, "message": {"content": self._chat(model, asked)}}]}
        prompts = asked["prompt"]
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        choices = []
        for index, prompt in enumerate(prompts):
            ids = self._tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            choice: dict[str, Any] = {"index": index, "finish_reason": "stop"}
            if asked.get("echo") and not self.without_echo:
                choice |= {"text": "", "logprobs": self._scores(model, ids)}
            else:
                choice["text"] = self._text(model, ids, asked)
                if self.leaves_out and len(self.requests) % 2:
                    choice["text"] = None
            choices.append(choice)
        return {"choices": choices}

    def _scores(self, model: Any, ids: list[int]) -> dict[str, Any]:
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        best = logits.max(-1).values.tolist()
        scores = [None, *(float(logits[place, token]) for place, token in enumerate(ids[1:])), best[-1]]
        tops = [None, *({"top": best[place], "own": scores[place + 1]} for place in range(len(ids)))]
        return {"token_logprobs": scores, "top_logprobs": tops}

    def _chat(self, model: Any, asked: dict[str, Any]) -> str:
        """The reply to messages, in the tokenizer's own template."""
        text = self._tokenizer.apply_chat_template(asked["messages"], tokenize=False, add_generation_prompt=True)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._text(model, ids, {"max_tokens": 16, **asked})

    def _text(self, model: Any, ids: list[int], asked: dict[str, Any]) -> str:
        made = model.generate(torch.tensor([ids]), max_new_tokens=asked["max_tokens"], do_sample=False, pad_token_id=2)[
            0, len(ids) :
        ]
        text = self._tokenizer.decode(made, skip_special_tokens=True)
        for stop in asked.get("stop") or []:
            text = text.split(stop)[0]
        return f"{text} and more" if self.goes_on else str(text)

    @contextmanager
    def running(self) -> Iterator[OpenAIServer]:
        """Serve in a thread, at `url`."""
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                names = ["base", *served.adapters]
                self._reply({"data": [{"id": name} for name in names]} if self.path == "/v1/models" else None)

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with served._lock:
                    self._reply(served.complete(asked) if self.path.removeprefix("/v1/") in PATHS else None)

            def _reply(self, body: Any) -> None:
                content = json.dumps(body).encode()
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}/v1/completions"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
