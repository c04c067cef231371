"""Paths as clients send them -> paths as the route table has them, and model ids inside paths.

Floor 5; pure functions. Source: spec/API.md section 2. A model id may contain `/`, `:`, `@` or be a URL, so it runs to the
end of the path. Everything here is percent-decoded already, once, by the HTTP server: it must never be decoded again.
"""

from __future__ import annotations

import re

from hostler.library.names import ACTION_SEGMENTS, repair_url

#: Everything before a model id; doubled slashes may stand in it. The id begins at the first character that is no slash.
_BEFORE_MODEL_ID = re.compile(r"/+(?:v1/+)?(?:models/+(?:(?:download|status)/+)?|download/+getDownloadProgress/+)(?=[^/])")
_SLASHES = re.compile(r"/{2,}")


def normalised_path(path: str) -> str:
    """Collapse doubled slashes, drop trailing ones, and repair the URL that a model id may be.

    A base URL that ends in `/` makes `/v1//models`; some proxies make `https:/host` of `https://host`. Slashes inside a
    model id are the id's own.
    """
    match = _BEFORE_MODEL_ID.match(path)
    if match is None:
        return _SLASHES.sub("/", path).rstrip("/") or "/"
    head, model_id = path[: match.end()], path[match.end() :]
    return _SLASHES.sub("/", head) + repair_url(model_id.rstrip("/"))


def split_action(rest: str) -> tuple[str, str]:
    """What follows `/models/` -> model id and action; the action is empty or one of ACTION_SEGMENTS, which win over ids."""
    model_id, slash, last = rest.rpartition("/")
    if slash and last in ACTION_SEGMENTS:
        return model_id.rstrip("/"), last
    return rest, ""
