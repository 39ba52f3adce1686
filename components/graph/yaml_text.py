"""YAML as graphs use it: safe, and no key twice in one map. Knows no settings."""

from typing import Any

import yaml


class YamlTextError(Exception):
    """The text cannot be read; this text goes on after its name in one line: ``is not YAML: …``."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice; YAML itself takes the last one without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise YamlTextError(f"gives `{key.value}` twice, the second time in line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
        return node


def read_yaml(text: str) -> Any:
    """Return the data in `text`.

    Raises:
        YamlTextError: it is no YAML, has a key twice, or is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 a SafeLoader
    except RecursionError as error:
        raise YamlTextError("is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, a number of 5000 digits
        raise YamlTextError(f"is not YAML: {' '.join(str(error).split())}") from error
