"""A local Hugging Face Hub: the part of its HTTP API that `huggingface_hub` uses to publish and to download."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import huggingface_hub
import pytest
import yaml

TOKEN = "hf_right"
USER = "me"


@dataclass
class FakeHub:
    """Repositories by name, as `models/USER/NAME`; each maps paths to bytes."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    pull_requests: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)  # method and path, in order

    def files(self, repository: str) -> dict[str, bytes]:
        return self.repositories[f"models/{repository}"]

    def sha(self, repository: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[repository].items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {parts.path}")
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {parts.path}"):
                method(self, body, parse_qs(parts.query), **match.groupdict())
                return
        self._error(404, "Sorry, we can't find the page you are looking for.")

    def _send(self, value: Any, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
        self._send({"error": message}, status, **headers)

    def _may_write(self, namespace: str) -> bool:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401, "Invalid username or password.")
            return False
        if namespace != USER:
            self._error(403, f"You don't have the rights to create a model under the namespace {namespace!r}")
            return False
        return True

    def _found(self, repository: str) -> dict[str, bytes] | None:
        if repository not in self.hub.repositories:
            self._error(
                401 if self.headers.get("Authorization") is None else 404, "Repository not found", "RepoNotFound"
            )
            return None
        return self.hub.repositories[repository]

    # -- routes

    def whoami(self, *_: Any) -> None:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            self._send({"name": USER, "type": "user", "orgs": []})
        else:
            self._error(401, "Invalid user token.")

    def create(self, body: bytes, _: Any) -> None:
        wanted = json.loads(body)
        namespace = wanted.get("organization") or USER
        if not self._may_write(namespace):
            return
        name = f"models/{namespace}/{wanted['name']}"
        if name in self.hub.repositories:
            self._error(409, "You already created this model repo")
            return
        self.hub.repositories[name] = {".gitattributes": b""}
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(name)
        self._send({"url": f"{self.hub.url}/{namespace}/{wanted['name']}"})

    def validate(self, body: bytes, _: Any) -> None:
        """The Hub's own check of a card's metadata: a mapping, with a model-index of its form."""
        content = json.loads(body)["content"]
        match = re.match(r"\A---\n(.*?)\n---\n", content, re.DOTALL)
        values = yaml.safe_load(match[1]) if match else {}
        errors = []
        for entry in values.get("model-index") or []:
            for result in entry["results"]:
                missing = [key for key in ("task", "dataset", "metrics") if key not in result]
                missing += [key for key in ("type", "name") if key not in result["dataset"]]
                errors += [{"message": f'"model-index" lacks {key}'} for key in missing]
        if any(" " in language for language in values.get("language", [])):
            errors.append({"message": '"language" must only contain lowercase characters'})
        self._send({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, _: Any, repository: str) -> None:
        files = json.loads(body)["files"]
        self._send(
            {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        )

    def commit(self, body: bytes, query: dict[str, list[str]], repository: str) -> None:
        is_pull_request = "create_pr" in query
        stored = self._found(f"models/{repository}")
        if stored is None or not (is_pull_request or self._may_write(repository.split("/")[0])):
            return
        lines = [json.loads(line) for line in body.splitlines()]
        sent = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        if is_pull_request:
            self.hub.pull_requests.append((repository, sent))
        else:
            stored.update(sent)
        self._send({
            "commitUrl": f"{self.hub.url}/{repository}/commit/{'a' * 40}", "commitOid": "a" * 40,
            "pullRequestUrl": f"{self.hub.url}/{repository}/discussions/1" if is_pull_request else None,
        })  # fmt: skip

    def info(self, _: bytes, __: Any, repository: str) -> None:
        files = self._found(repository)
        if files is not None:
            name = repository.partition("/")[2]
            self._send({
                "_id": "1", "id": name, "modelId": name, "sha": self.hub.sha(repository), "private": False, "tags": [],
                "downloads": 0, "likes": 0, "siblings": [{"rfilename": path} for path in files],
            })  # fmt: skip

    def tree(self, _: bytes, __: Any, repository: str) -> None:
        files = self._found(repository)
        if files is not None:
            self._send([
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ])  # fmt: skip

    def resolve(self, _: bytes, __: Any, repository: str, path: str) -> None:
        repository = repository if repository.startswith("datasets/") else f"models/{repository}"
        files = self._found(repository)
        if files is None:
            return
        if path not in files:
            self._error(404, "Entry not found", "EntryNotFound")
            return
        self._send(files[path], ETag=f'"{hashlib.sha1(files[path]).hexdigest()}"',
                   X_Repo_Commit=self.hub.sha(repository))  # fmt: skip


ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (r"POST /api/models/(?P<repository>[^/]+/[^/]+)/preupload/.*", Handler.preupload),
    (r"POST /api/models/(?P<repository>[^/]+/[^/]+)/commit/.*", Handler.commit),
    (r"GET /api/(?P<repository>(models|datasets)/[^/]+/[^/]+)(/revision/.*)?", Handler.info),
    (r"GET /api/(?P<repository>(models|datasets)/[^/]+/[^/]+)/tree/.*", Handler.tree),
    (r"(GET|HEAD) /(?P<repository>(datasets/)?[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)", Handler.resolve),
]


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that `huggingface_hub` asks instead of the real one, with a token that may write as `me`."""
    with running_hub() as hub:
        cache = tmp_path_factory.mktemp("hub-cache")
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
