"""YAML files of the course: read strictly (duplicate keys are errors) and, for the lints, with line numbers.

PyYAML keeps the last of two equal keys without a word, so a message that was pasted twice would lose one text. Dates
stay strings, so that what a file says is what the course prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from labkit.errors import LabkitError

_Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is about ten times faster

Lines = dict[tuple, int]  # path of keys and indices -> line (1-based)


class YamlError(LabkitError, ValueError):
    """A YAML file that cannot be read. `line` is 1-based (1 where the parser gave none)."""

    def __init__(self, path: Path, line: int, reason: str):
        super().__init__(f"{path}:{line}: {reason}")
        self.path, self.line, self.reason = Path(path), line, reason


class _Loader(_Base):
    pass


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}


def load_yaml(path: Path) -> Any:
    """The content of a YAML file; an empty file gives None. Raises YamlError, also for a missing file."""
    return load_with_lines(path)[0]


def load_with_lines(path: Path) -> tuple[Any, Lines]:
    """The content of a YAML file and the line of every entry, keyed by its path: ("exercises", 0, "id") -> 12."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise YamlError(path, 1, "the file does not exist; create it") from None
    except UnicodeDecodeError as error:
        raise YamlError(path, 1, f"not UTF-8 text ({error.reason}); save it as UTF-8") from None
    lines: Lines = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return (None if node is None else _value(loader, node, (), lines, path)), lines
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "not valid YAML"
        raise YamlError(path, mark.line + 1 if mark else 1, f"{reason}; mend the YAML here") from None


def _value(loader: Any, node: yaml.Node, where: tuple, lines: Lines, path: Path) -> Any:
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in result:
                raise YamlError(path, line, f"the key {key!r} appears twice in one mapping; remove or rename one")
            lines[(*where, key)] = line
            result[key] = _value(loader, value_node, (*where, key), lines, path)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, child, (*where, index), lines, path) for index, child in enumerate(node.value)]
    return loader.construct_object(node, deep=True)
