"""The Hugging Face Hub: names of repositories, and its errors in one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # of its HTTP library

from harness_ext.errors import HubError, first_line

PREFIX = "hub:"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", re.ASCII)
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def hub_id(name: str, *, with_revision: bool = False) -> str:
    """The repository in `hub:USER/NAME`; the prefix may be left out.

    Raises:
        HubError: it is no name of a repository.

    >>> hub_id("hub:me/sst2"), hub_id("me/sst2")
    ('me/sst2', 'me/sst2')
    """
    found = name.removeprefix(PREFIX)
    match = _REPOSITORY.fullmatch(found)
    if match is None or len(found) > 200 or (match[1] and not with_revision):
        raise HubError(f"{name!r:.100} is no name on the Hub; write it as hub:USER/NAME")
    return found


@contextlib.contextmanager
def explained(repository: str) -> Iterator[None]:
    """Errors of the Hub about a repository become a `HubError`, in one line."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise HubError(f"there is no token for the Hub; {_LOG_IN}") from error
    except OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set, so that the Hub is not asked; unset it") from error
    except HfHubHTTPError as error:
        raise HubError(_refusal(error, repository)) from error
    except (HFValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise HubError(f"{repository}: the Hub refuses the card ({reason}); correct it") from error
    except (TransportError, OSError) as error:
        raise HubError(
            f"the Hub at {constants.ENDPOINT} cannot be reached ({first_line(error):.120}); check the network and "
            "HF_ENDPOINT, then try again"
        ) from error


def _refusal(error: HfHubHTTPError, repository: str) -> str:
    """Why the Hub does not do what it was asked for, and what to do."""
    status = getattr(error.response, "status_code", None)
    reason = first_line(ValueError(error.server_message or str(error)))[:200]
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return f"the Hub does not accept the token ({reason}); {_LOG_IN}"
    if status == 403:
        return f"the token may not write to {repository} ({reason}); use one that may, or another name"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"the Hub has no {repository} that this token may see; check the name and the token"
    if status == 409:
        return f"{repository} is taken, or was changed by somebody else at the same time; choose another name"
    if isinstance(error, BadRequestError) or status == 400:
        return f"{repository}: the Hub refuses it ({reason}); correct the card"
    return f"{repository}: the Hub answers with an error ({status}: {reason}); try again later"
