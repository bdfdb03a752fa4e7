"""Leave one comment on a pull request, or update the one that an earlier run left. Needs Python's library only.

Environment: GITHUB_TOKEN, GITHUB_REPOSITORY, GITHUB_API_URL, PULL_REQUEST (its number), TITLE, BODY_FILE.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST = 65_000  # characters; GitHub refuses more than 65,536
PAGE = 100
SECONDS = 30.0


def main() -> int:
    """Comment; a token that may not is no failure of the job."""
    title = os.environ.get("TITLE") or "harness-ext"
    number = os.environ.get("PULL_REQUEST", "")
    if not number.isdigit():
        print("no pull request, no comment")
        return 0
    place = f"/repos/{os.environ['GITHUB_REPOSITORY']}/issues"
    text = comment(title, Path(os.environ["BODY_FILE"]).read_text(encoding="utf-8"))
    try:
        earlier = next((each["id"] for each in comments(f"{place}/{number}/comments") if is_ours(each, title)), None)
        if earlier is None:
            request("POST", f"{place}/{number}/comments", {"body": text})
        else:
            request("PATCH", f"{place}/comments/{earlier}", {"body": text})
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403, 404):
            raise
        print(f"::warning::the token may not comment ({error.code}); give the job `pull-requests: write`")
    return 0


def marker(title: str) -> str:
    """The comment in HTML by which the comment of a title is found again."""
    return f"<!-- harness-ext:comment {json.dumps(title).replace('--', '- -')} -->"


def comment(title: str, body: str) -> str:
    """The comment's text, cut to what GitHub accepts."""
    text = f"{marker(title)}\n## {title}\n\n{body}"
    cut = "\n\n(cut here; the whole comparison is in the summary of the job)"
    return text if len(text) <= LONGEST else text[: LONGEST - len(cut)] + cut


def is_ours(found: dict[str, Any], title: str) -> bool:
    """Whether a comment was left by an earlier run with the same title."""
    return str(found.get("body") or "").startswith(marker(title))


def comments(path: str) -> Iterator[dict[str, Any]]:
    """All comments of a pull request."""
    page = 1
    while True:
        found = request("GET", f"{path}?per_page={PAGE}&page={page}")
        yield from found
        if len(found) < PAGE:
            return
        page += 1


def request(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask GitHub's API."""
    url = os.environ.get("GITHUB_API_URL", "https://api.github.com") + path
    asked = urllib.request.Request(
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}",
            "Accept": "application/vnd.github+json",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
        return json.loads(answer.read() or b"null")


if __name__ == "__main__":
    sys.exit(main())
