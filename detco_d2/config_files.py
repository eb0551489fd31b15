"""Merge config files and KEY VALUE pairs without running anything that is in them.

Every mistake becomes one error that names the file or the pair, what was seen and what there is.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import yaml
from detectron2.config import CfgNode


def merge_file(cfg: CfgNode, file: str) -> None:
    """Merge a YAML file, and the files of its `_BASE_`, into a config.

    Raises:
        FileNotFoundError: no such file, or no such `_BASE_`.
        ValueError: broken YAML, YAML that would make Python objects, a misspelt key, a value of
            another type.
    """
    _check_files(file, [], [])
    try:
        cfg.merge_from_file(file, allow_unsafe=False)
    except Exception as error:  # yacs, fvcore and Detectron2 raise many types for a wrong file
        raise _explain(error, cfg, f"Config file {file!r} (or its _BASE_)") from error


def merge_pairs(cfg: CfgNode, words: Sequence[Any]) -> None:
    """Merge KEY VALUE pairs, as a command line has them, into a config.

    Raises:
        ValueError: a key without a value, a misspelt key, a value of another type.
    """
    if len(words) % 2:
        raise ValueError(
            f"Expected pairs KEY VALUE, with a blank between, but the last of {len(words)} words, "
            f"{words[-1]!r}, has no value."
        )
    for key, value in zip(words[::2], words[1::2]):
        source = f"Setting {key} {value!r:.200}"
        if cfg.key_is_deprecated(key):
            cfg.merge_from_list([key, value])  # says that it is ignored
            continue
        if key not in _keys(cfg):
            raise _unknown(str(key), cfg, source)
        if isinstance(lookup(cfg, key), CfgNode):
            raise ValueError(f"{source}: {key} is a section; set its keys one by one.")
        try:
            cfg.merge_from_list([key, value])
        except Exception as error:  # as above
            raise _explain(error, cfg, source) from error


def with_pairs(cfg: CfgNode, pairs: Sequence[Any]) -> CfgNode:
    """A frozen copy of a config with KEY VALUE pairs that are known to fit."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(pairs))
    cfg.freeze()
    return cfg


def lookup(cfg: CfgNode, key: str) -> Any:
    """The value of a key with dots."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value


def flatten(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a nested mapping, with dots, and its value; tuples as YAML's lists."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


_MAX_FILES = 50  # of a chain of _BASE_ files, which can be made to branch for ever


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML whose aliases, as a dump has them, stand for few values.

    A few lines of aliases of aliases can stand for any amount of memory.
    """

    _left = 1000

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            self._left = self._left - _size(node) if node.end_mark else -1  # none: it is within
            if self._left < 0:
                problem = f"*{event.anchor} is an alias of too much; write the value out instead"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return node


def _size(node: yaml.Node) -> int:
    """How many values a node of YAML stands for, with those of its aliases."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    pairs = isinstance(node, yaml.MappingNode)
    inside = [each for item in node.value for each in (item if pairs else [item])]
    return 1 + sum(map(_size, inside))


def _check_files(file: str, above: list[str], seen: list[str]) -> None:
    """Refuse a config file that Detectron2 would fail on, wait on, or run.

    Args:
        above: the files whose `_BASE_` led to this one.
        seen: all files so far; appended to.
    """
    source = f"Config file {file!r}" + (f", the _BASE_ of {above[-1]!r}," if above else "")
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{source} is no local file.")
    if os.path.realpath(file) in map(os.path.realpath, above):
        raise ValueError(f"{source} is its own _BASE_: {' -> '.join([*above, file])}.")
    if len(seen) == _MAX_FILES:
        raise ValueError(f"Config file {seen[0]!r} has more than {_MAX_FILES} _BASE_ files.")
    seen.append(file)
    try:
        with open(file, encoding="utf-8") as stream:
            data = yaml.load(stream, _PlainLoader)
    except Exception as error:  # its scalars raise whatever Python's constructors do
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{source} is no plain YAML{where}: {problem}.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{source} holds a {type(data).__name__}; it must hold KEY: VALUE lines.")
    bases = data.get("_BASE_", [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ValueError(f"_BASE_ of {file!r} is {bases!r}; it must be a path, or a list of them.")
    for base in bases:
        base = os.path.join(os.path.dirname(file), os.path.expanduser(base))
        _check_files(base, [*above, file], seen)


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


def _unknown(key: str, cfg: CfgNode, source: str) -> ValueError:
    def similarity(name: str) -> float:  # of the whole and of the last word, at most 2
        pairs = (key.upper(), name), (key.upper().rpartition(".")[2], name.rpartition(".")[2])
        return sum(SequenceMatcher(None, *pair).ratio() for pair in pairs)

    nearest = max(_keys(cfg), key=similarity)
    hint = f" Did you mean {nearest}?" if similarity(nearest) > 1 else ""
    return ValueError(f"{source}: there is no key {key}.{hint}")


def _explain(error: Exception, cfg: CfgNode, source: str) -> ValueError:
    """Say what a failed merge means, in the terms of the one who wrote the config."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if found := re.search(r"Non-existent (?:config )?key: (.*)", text):
        return _unknown(found[1], cfg, source)
    if found := re.search(r"(?s)^Type mismatch .* vs\. (.*)\) for config key: (.*)", text):
        seen, key = found[1][:200], found[2]
        now = lookup(cfg, key)
        if isinstance(now, CfgNode):
            return ValueError(f"{source}: {key} is {seen}; it must be a section of keys.")
        return ValueError(
            f"{source}: {key} is {seen}; it must be of type {type(now).__name__}, such as {now!r}."
        )
    return ValueError(f"{source}: {text}")
