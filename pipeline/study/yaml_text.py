"""A YAML file edited as text: what is not edited keeps every byte, comments and layout included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml


class YamlText:
    r"""The text of one YAML file whose root is a mapping.

    Attributes
    ----------
    text
        What stands in it now.

    Examples
    --------
    >>> params = YamlText("seed: 0  # of folds\nreport: {cases: 3}\n")
    >>> params.add(("report", "hide_ids"), "false")
    >>> print(params.text, end="")
    seed: 0  # of folds
    report: {cases: 3, hide_ids: false}
    """

    def __init__(self, text: str) -> None:
        self.text = text if not text or text.endswith("\n") else f"{text}\n"

    def value(self, path: Sequence[str]) -> Any:
        """Return the value at a path of keys; raises KeyError where there is none."""
        found = yaml.safe_load(self.text) or {}
        for key in path:
            if not isinstance(found, dict) or key not in found:
                raise KeyError(".".join(path))
            found = found[key]
        return found

    def has(self, path: Sequence[str]) -> bool:
        """Return whether a path of keys leads somewhere."""
        try:
            self.value(path)
        except KeyError:
            return False
        return True

    def add(self, path: Sequence[str], value: str, comment: str = "") -> None:
        """Add a key that is not there, behind the others of its section; missing sections come with it.

        Parameters
        ----------
        value
            As YAML in one line.
        comment
            What stands behind it, from `#` on; left out inside braces.
        """
        section, rest = self._deepest(path)
        for key in reversed(rest[1:]):
            value = f"{{{key}: {value}}}"
        entry = f"{rest[0]}: {value}"
        if len(rest) == len(path) > 1:  # a section that is not there
            self.append(f"{entry}\n")
        elif not isinstance(section, yaml.MappingNode):  # a key without a value, or an empty file
            at = section.end_mark.index if section is not None else 0
            self._put(at, f" {{{entry}}}" if section is not None else f"{entry}\n")
        elif section.flow_style:
            self._put(section.end_mark.index - 1, f", {entry}" if section.value else entry)
        else:
            indent = " " * section.value[0][0].start_mark.column
            self._put(self._line_end(_last(section)), f"{indent}{entry}{f'  {comment}' if comment else ''}\n")

    def remove(self, path: Sequence[str]) -> None:
        """Remove a key with its value; the line of a block, the entry between braces."""
        section, _ = self._deepest(path[:-1])
        assert isinstance(section, yaml.MappingNode)
        at = [key.value for key, _ in section.value].index(path[-1])
        key, value = section.value[at]
        if not section.flow_style:
            start = self.text.rfind("\n", 0, key.start_mark.index) + 1
            self.text = self.text[:start] + self.text[self._line_end(_last(value)) :]
            if len(section.value) == 1:  # a section without a key is null otherwise
                self._put(self._key(path[:-1]).end_mark.index + 1, " {}")
            return
        after = section.value[at + 1][0].start_mark.index if at + 1 < len(section.value) else None
        before = section.value[at - 1][1].end_mark.index if at else section.start_mark.index + 1
        start, end = (key.start_mark.index, after) if after else (before, section.end_mark.index - 1)
        self.text = self.text[:start] + self.text[end:]

    def block(self, path: Sequence[str]) -> str:
        """Return the lines of a key of a block, comments right above it included."""
        key = self._key(path)
        value, _ = self._deepest(path)
        assert value is not None
        start = self.text.rfind("\n", 0, key.start_mark.index) + 1
        while start and self.text[self._before(start) : start].lstrip().startswith("#"):
            start = self._before(start)
        return self.text[start : self._line_end(_last(value))]

    def append(self, block: str) -> None:
        """Put lines at the end, behind an empty one."""
        self.text += f"\n{block}" if self.text else block

    def _deepest(self, path: Sequence[str]) -> tuple[yaml.Node | None, list[str]]:
        """Return the node that a path leads to as far as it goes, and the keys that are left."""
        node, rest = yaml.compose(self.text, Loader=yaml.SafeLoader), list(path)
        while rest and isinstance(node, yaml.MappingNode):
            inner = next((value for key, value in node.value if key.value == rest[0]), None)
            if inner is None:
                break
            node = inner
            rest.pop(0)
        return node, rest

    def _key(self, path: Sequence[str]) -> yaml.Node:
        """Return the node of a path's last key."""
        section, _ = self._deepest(path[:-1])
        assert isinstance(section, yaml.MappingNode)
        return next(key for key, _ in section.value if key.value == path[-1])

    def _before(self, line_start: int) -> int:
        return self.text.rfind("\n", 0, line_start - 1) + 1

    def _line_end(self, node: yaml.Node) -> int:
        """Return where the line after a node's last one begins."""
        return self.text.index("\n", node.end_mark.index) + 1

    def _put(self, at: int, text: str) -> None:
        self.text = self.text[:at] + text + self.text[at:]


def _last(node: yaml.Node) -> yaml.Node:
    """Return the last node inside a block, or the node itself; a block's mark is beyond the comments behind it."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return node
