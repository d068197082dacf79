from __future__ import annotations

import pytest

from wsss.tracking.redact import REDACTED, is_secret_name, redact_text, redact_value


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "store.secret_access_key",
        "awsSecretAccessKey",
        "api_key",
        "tracking.apiKey",
        "auth-token",
        "session.token_credentials",
        "AWS_SESSION_TOKEN",
        "Authorization",
    ],
)
def test_secret_keys_are_refused(key: str) -> None:
    assert redact_value(key, "hunter2") == REDACTED


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.class_token", "learned"),
        ("num_tokens", 196),
        ("affinity.key_dim", 64),
        ("stage_key", "0f3a" * 16),
        ("cam.keys", "aeroplane"),
        ("max_token", 12),
        ("secret_sauce", True),
    ],
)
def test_ordinary_recipe_keys_are_kept(key: str, value: object) -> None:
    assert redact_value(key, value) == str(value)


def test_a_long_opaque_token_is_a_secret() -> None:
    assert is_secret_name("hub.token", "q" * 32)
    assert not is_secret_name("hub.token", "a sentence about the class token")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:pa%40ss@host:5000/x", f"http://{REDACTED}@host:5000/x"),
        ("see postgresql+psycopg://u:p@db/mlflow now", f"see postgresql+psycopg://{REDACTED}@db/mlflow now"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("https://h/x?X-Amz-Signature=abc&part=1", f"https://h/x?X-Amz-Signature={REDACTED}&part=1"),
        ("id AKIAABCDEFGHIJKLMNOP end", f"id {REDACTED} end"),
        ("nothing here: a@b.org", "nothing here: a@b.org"),
    ],
)
def test_credentials_inside_texts_are_removed(text: str, expected: str) -> None:
    assert redact_text(text) == expected
