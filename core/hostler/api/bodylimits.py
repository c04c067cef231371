"""How large a request's body may be: a form with a file up to `max_file_bytes`, everything else up to `max_body_bytes`.

Floor 5; pure. Asked twice: by the parser, which stops reading a body over its limit, and by whoever reads the body.
"""

from __future__ import annotations

from typing import NamedTuple

from hostler.api.paths import normalised_path
from hostler.config import Settings
from hostler.errors import RequestTooLarge

UPLOADS = "/v1/files"
FORM_BYTES = 64 * 1024
"""What a form may have around its file: boundaries, headers, other fields."""


class BodyLimit(NamedTuple):
    """The limit of one route."""

    n_bytes: int
    """Of the whole body."""
    setting: str
    """What the user would change."""

    def check(self, n_bytes: int) -> None:
        """Refuse a body that announces more.

        Raises:
            RequestTooLarge: It does.
        """
        if n_bytes > self.n_bytes:
            raise RequestTooLarge(f"The request body has {n_bytes} bytes; {self.setting} allows {self.n_bytes}")

    @property
    def refusal(self) -> RequestTooLarge:
        """For a body that was not read to its end."""
        return RequestTooLarge(f"The request body is over {self.n_bytes} bytes; the server's {self.setting} allows no more")


class BodyLimits:
    """The limits of all routes, made from the settings once."""

    def __init__(self, settings: Settings) -> None:
        self.json = BodyLimit(settings.max_body_bytes, "max_body_bytes")
        self.upload = BodyLimit(settings.max_file_bytes + FORM_BYTES, "max_file_bytes")

    def of(self, method: str, path: str) -> BodyLimit:
        """The limit of a request; `path` is decoded."""
        return self.upload if method == "POST" and normalised_path(path) == UPLOADS else self.json
