"""Parses YAML that people wrote: no key twice, and nothing that grows, nests or refers to itself without bound."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode
from yaml.reader import ReaderError

from wsss.text_file import UnreadableText, read_text, shortened

_LARGEST_FILE = 300_000
_MOST_VALUES = 5_000
_DEEPEST = 40
_LONGEST_NUMBER = 400
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# YAML 1.1 reads 010 as 8 and 1:30 as 90; nobody who writes a setting means that.
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


class YamlProblem(Exception):
    """The text is not what YAML allows here; the message is one line and names the line of the text."""


def read_yaml(path: Path) -> Any:
    """The value in a YAML file of at most 300 kB; None when it is empty.

    Raises:
        FileNotFoundError: there is no such file.
        YamlProblem: it cannot be read, or as `parse_yaml`.
    """
    try:
        return parse_yaml(read_text(path, _LARGEST_FILE))
    except UnreadableText as error:
        raise YamlProblem(f"the file cannot be read: {error}") from error


def parse_yaml(text: str) -> Any:
    """The plain value of a YAML text: mappings, lists, texts, numbers, booleans, dates and None.

    Raises:
        YamlProblem: no valid YAML, a key that stands twice in one mapping, a number in a notation that YAML reads
            otherwise than it looks (010, 1:30), an anchor that contains itself, more than 5,000 values (aliases
            written out), or more than 40 levels.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        said = error.problem or error.context or "it cannot be parsed"
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise YamlProblem(f"not valid YAML: {said}{place}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlProblem(f"not valid YAML: character #x{error.character:04x} in line {line}") from error
    except yaml.YAMLError as error:
        raise YamlProblem(f"not valid YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}  # of finished nodes, aliases written out

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        alias = self.peek_event() if self.check_event(AliasEvent) else None
        mark = self.peek_event().start_mark
        before, self._depth = self._values, self._depth + 1
        if self._depth > _DEEPEST:
            raise ComposerError(None, None, f"more than {_DEEPEST} levels of nesting", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias is not None and id(node) not in self._sizes:
            raise ComposerError(None, None, f"*{alias.anchor} stands inside of what it names", mark)
        self._values += 1 if alias is None else self._sizes[id(node)]
        if self._values > _MOST_VALUES:
            raise ComposerError(None, None, f"more than {_MOST_VALUES} values, aliases written out", mark)
        if alias is None:
            self._sizes[id(node)] = self._values - before
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if key in lines:
                where = (
                    f"in line {lines[key]} and again in line {line}" if line != lines[key] else f"twice in line {line}"
                )
                said = f"key {shortened(str(key))!r} stands {where}; keep one"
                raise ComposerError(None, None, said, key_node.start_mark)
            lines[key] = line
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if isinstance(node, ScalarNode) and node.tag in _NUMBERS:
            shown = shortened(node.value, 20)
            if len(node.value) > _LONGEST_NUMBER:
                raise ConstructorError(None, None, f"a number of {len(node.value)} characters", node.start_mark)
            if _AMBIGUOUS.fullmatch(node.value):
                said = f"{shown} could be another number in YAML; write it without leading zeros or colons, or quote it"
                raise ConstructorError(None, None, said, node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, TypeError, KeyError, IndexError, AttributeError) as error:
            # What PyYAML's own constructors let through: dates that do not exist, `!!int text`.
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            shown = shortened(str(node.value)) if isinstance(node, ScalarNode) else "this"
            raise ConstructorError(None, None, f"{shown!r} is no {tag}", node.start_mark) from error
