"""msgspec's complaints as ``path: what is wrong``, with the choices there are, or a guess for a misspelt key. Pure."""

import difflib
import re
import types
import typing
from collections.abc import Iterator

import msgspec

from components.graph.schema import Graph, Settings

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`(?: - at `\$?\.?(?P<path>[^`]*)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`(?: - at `\$?\.?(?P<path>[^`]*)`)?")
_AT = re.compile(r"^(?P<what>.*) - at `\$?\.?(?P<path>[^`]*)`$")


def explain(error: msgspec.ValidationError) -> str:
    """Return msgspec's complaint about a graph in one line, the path first."""
    text = str(error)
    if unknown := _UNKNOWN.match(text):
        path = _below(unknown["path"], unknown["field"])
        guess = _guess(unknown["path"] or "", unknown["field"])
        return f"{path}: unknown setting{guess and f'; did you mean `{guess}`?'}"
    if missing := _MISSING.match(text):
        return f"{_below(missing['path'], missing['field'])}: is missing"
    if at := _AT.match(text):
        choices = ", ".join(_choices(at["path"])) if at["what"].startswith("Invalid") else ""
        return f"{at['path']}: {at['what'][0].lower()}{at['what'][1:]}{choices and f'; there are: {choices}'}"
    return text[0].lower() + text[1:]


def _below(path: str | None, field: str) -> str:
    return f"{path}.{field}" if path else field


def _guess(path: str, field: str) -> str:
    """Return the setting that was meant: a like one of the same map, else the path of a like one elsewhere."""
    siblings = [name for struct in _structs_at(path) for name in struct.__struct_fields__]
    if near := difflib.get_close_matches(field, siblings, n=1):
        return near[0]
    paths: dict[str, str] = {}
    for known in _paths(Graph):
        paths.setdefault(known.rpartition(".")[2], known)
    elsewhere = difflib.get_close_matches(field, paths, n=1)
    return paths[elsewhere[0]] if elsewhere else ""


def _paths(struct: type[Settings], above: str = "") -> Iterator[str]:
    """Yield the path of every setting in `struct`, those of a map's own settings after it."""
    for name, hint in typing.get_type_hints(struct).items():
        path = _below(above, name)
        yield path
        for inner in _structs_in(hint):
            yield from _paths(inner, path)


def _choices(path: str) -> list[str]:
    """Return the values that the setting `path` may have; none when there are too many to list."""
    above, _, name = path.rpartition(".")
    structs = _structs_at(above)
    tags = [str(config.tag) for s in structs if (config := s.__struct_config__).tag_field == name]
    hints = [typing.get_type_hints(s).get(name) for s in structs]
    return tags or [
        str(value) for hint in hints if typing.get_origin(hint) is typing.Literal for value in typing.get_args(hint)
    ]


def _structs_at(path: str) -> list[type[Settings]]:
    """Return what the map at `path` can be."""
    structs: list[type[Settings]] = [Graph]
    for key in filter(None, path.split(".")):
        structs = [inner for s in structs for inner in _structs_in(typing.get_type_hints(s).get(key))]
    return structs


def _structs_in(hint: object) -> list[type[Settings]]:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [member for member in members if isinstance(member, type) and issubclass(member, Settings)]
