"""Keeps secrets out of what is written down: credentials in addresses, values under secret-looking names.

Everything passes here before it reaches the disk, so neither the event file nor MLflow ever holds a secret.
"""

from __future__ import annotations

import re

REDACTED = "[redacted]"

# Of the words of a name, in lower case. Some mean a secret only together: "access key" is one, "class key" is not.
_SECRET_NAME = re.compile(
    r"\b(?:password|passwd|passphrase|secrets?|credentials?|authorization|cookie"
    r"|(?:api|access|private|account|ssh) key|(?:access|auth|bearer|session|refresh|api) token"
    r"|apikey|accesskey|privatekey|authtoken|accesstoken)\b"
)
# A bare "token" is a word of transformers too (class_token): it is a secret only over a long opaque string.
_OPAQUE_TOKEN_CHARACTERS = 16

_SECRET_VALUE = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}\b"
    r"|\bgithub_pat_[A-Za-z0-9_]{30,}\b"
    r"|\bhf_[A-Za-z0-9]{30,}\b"
    r"|\bsk-[A-Za-z0-9_-]{32,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_URL_CREDENTIALS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.\-]*://)[^/?#\s]*@")
_URL_SECRET_ARGUMENT = re.compile(
    r"(?P<name>[?&](?:x-amz-(?:signature|credential|security-token)|signature|sig|token|access_token|api_?key"
    r"|password|secret)=)[^&#\s]+",
    re.IGNORECASE,
)


def redact_text(text: str) -> str:
    """`text` without credentials: `scheme://user:password@host` keeps the host, signed URL arguments keep the name."""
    text = _URL_CREDENTIALS.sub(rf"\g<scheme>{REDACTED}@", text)
    text = _URL_SECRET_ARGUMENT.sub(rf"\g<name>{REDACTED}", text)
    return _SECRET_VALUE.sub(REDACTED, text)


def redact_value(key: str, value: object) -> str:
    """The text to write for a parameter or tag: `[redacted]` under a secret-looking key, else without credentials."""
    return REDACTED if is_secret_name(key, value) else redact_text(str(value))


def is_secret_name(key: str, value: object = "") -> bool:
    """Whether a value under this key must not be written down.

    `value` only matters for keys that end in "token"; numbers, booleans and None are never secret there.
    """
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", key).lower())
    name = " ".join(filter(None, words))
    if _SECRET_NAME.search(name):
        return not isinstance(value, bool | None)
    opaque = isinstance(value, str) and len(value) >= _OPAQUE_TOKEN_CHARACTERS and not re.search(r"\s", value)
    return opaque and name.split(" ")[-1] == "token"
