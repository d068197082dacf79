"""YAML that people write: no key twice, no bombs, no numbers that are others than they look."""

import time
from itertools import pairwise
from pathlib import Path

import pytest

from wsss.yaml_text import YamlProblem, parse_yaml, read_yaml


def growing(item: str) -> str:
    """Nine anchors, each of nine times the one before: 9**9 values when written out."""
    names = "abcdefghi"
    lines = [f"a: &a {item.format('1, 1') if '[' in item else '{x: 1}'}"]
    lines += [f"{n}: &{n} {item.format(', '.join([f'*{b}'] * 9))}" for b, n in pairwise(names)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "key 'a' stands in line 1 and again in line 3"),
        ("s:\n  a: 1\n  'a': 2", "key 'a' stands in line 2 and again in line 3"),
        ("{a: 1, a: 2}", "key 'a' stands twice in line 1"),
        ("1: a\n0x1: b", "key '1' stands in line 1 and again in line 2"),
        ("a: &x [*x]", r"\*x stands inside of what it names"),
        ("a: &x {b: *x}", r"\*x stands inside of what it names"),
        ("[" * 3000, "more than 40 levels"),
        ("{a: " * 3000, "more than 40 levels"),
        ("- " * 3000, "more than 40 levels"),
        (growing("[{}]"), "more than 5000 values"),
        (growing("{{<<: [{}]}}"), "more than 5000 values"),
        ("a: " + "9" * 5000, "a number of 5000 characters"),
        ("a: 010", "010 could be another number"),
        ("a: 1:30", "1:30 could be another number"),
        ("a: 2024-13-45", "'2024-13-45' is no timestamp"),
        ("a: !!int x", "'x' is no int"),
        ("a: !!python/object:os.system x", "constructor"),
        ("a: \0", "character #x0000 in line 1"),
        ("a: [1", r"\(line 1, column 6\)"),
        ("? [a]\n: b", "unhashable"),
        ("--- a\n--- b", "another document"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    begun = time.process_time()
    with pytest.raises(YamlProblem, match=message) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert time.process_time() - begun < 20


def test_what_is_legitimate_stays() -> None:
    text = "base: &base {x: 1, y: [1, 2]}\nother: {<<: *base, x: 2}\nn: [0, -0.5, 1e-4, 1.0e-4, 0x1F]\nempty:\n"
    assert parse_yaml(text) == {
        "base": {"x": 1, "y": [1, 2]},
        "other": {"x": 2, "y": [1, 2]},
        "n": [0, -0.5, "1e-4", 1e-4, 31],
        "empty": None,
    }
    assert parse_yaml("") is None


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1", encoding="utf-16")
    assert read_yaml(path) == {"a": 1}
    path.write_bytes("a: ü".encode("latin-1"))
    with pytest.raises(YamlProblem, match="save it as UTF-8"):
        read_yaml(path)
    path.write_text("a: " + "x" * 400_000)
    with pytest.raises(YamlProblem, match="400003 bytes"):
        read_yaml(path)
