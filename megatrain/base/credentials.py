"""Passwords and tokens: recognised where they must not stand, since configurations, logs and command lines are read by
others.
"""

import re

_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
# scheme://user:password@host, also where the password holds a slash; not a port with an @ later in the path.
_PASSWORD = re.compile(r"(://[^\s/?#@:]*:(?![0-9]+(?:[/?#]|$)))[^\s@]*(?=@)")
_USER = re.compile(r"(https?://|ftps?://)[^\s/?#@:]+(?=@)", re.IGNORECASE)  # a token alone, as git hosts take it
_QUERY = re.compile(
    r"([?&;](?:[a-z0-9_.-]*(?:token|signature|secret|passw(?:or)?d|credential|accesskeyid|api[_-]?key|auth)|sig|key)=)"
    r"[^&;#\s]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"((?:authorization|x-api-key|x-auth-token)\s*:\s*)[^'\"]+|(\bbearer\s+)[^\s'\"]+", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds something secret, as far as names tell."""
    return _SECRET_NAME.search(name) is not None


def credentials_in(text: str) -> str | None:
    """What an address or command holds that must stay secret, in words without it; None where it holds nothing."""
    if _PASSWORD.search(text) or _USER.search(text):
        return "a user name or password (user:password@host)"
    if match := _QUERY.search(text):
        return f"a signature or token ({match[1].strip('?&;=')}=…)"
    return "a header with credentials" if _HEADER.search(text) else None


def without_credentials(text: str) -> str:
    """The text with … for what `credentials_in` finds, for messages."""
    text = _PASSWORD.sub(r"\1…", _USER.sub(r"\1…", text))
    return _HEADER.sub(lambda match: f"{match[1] or match[2]}…", _QUERY.sub(r"\1…", text))
