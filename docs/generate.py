"""Writes docs/protocol.md and docs/settings.md from the code; `--check` only says whether they are up to date.

Run as `make docs`. The test `tests/unit/test_docs.py` fails when either is stale.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec

from components.graph.schema import CacheController, ControllerSettings, Graph, Settings
from components.wire import errors, jobs, kv, messages, prefill, process, queueing, routing, subjects

HERE = Path(__file__).parent
_HEAD = "<!-- Written by docs/generate.py from the code (`make docs`); do not edit. -->\n\n"


def protocol() -> str:
    """Return docs/protocol.md."""
    return _HEAD + "\n\n".join([*_protocol_intro(), *_subject_table(), *_message_sections(), *_error_table()]) + "\n"


def settings() -> str:
    """Return docs/settings.md."""
    return _HEAD + "\n\n".join(_settings_sections()) + "\n"


def _protocol_intro() -> Iterator[str]:
    yield "# The protocol"
    yield (
        "Processes of a graph speak over NATS. A message is a MessagePack map with the keys below; a key that holds its "
        "default is left out, and a receiver ignores keys it does not know. An answer that is an `ErrorReply` carries the "
        "NATS header `Penstock-Error` with its code. `tests/unit/wire/golden/` holds the bytes of one example each."
    )


def _subject_table() -> Iterator[str]:
    yield "## Subjects"
    yield "`G` is the graph's name as one token: letters, digits, `_` and `-` stay, every other byte becomes `=XX`."
    rows = ["| subject | carries |", "|---|---|"]
    names = subjects.Subjects("G")
    for name, method in inspect.getmembers(subjects.Subjects, inspect.isfunction):
        if name.startswith("_"):
            continue
        arguments = [f"<{parameter}>" for parameter in list(inspect.signature(method).parameters)[1:]]
        example = method(names, *["X" for _ in arguments])
        for argument in arguments:
            example = example.replace(".X", f".{argument}", 1)
        rows.append(f"| `{example}` | {_one_line(method.__doc__)} |")
    yield "\n".join(rows)


def _message_sections() -> Iterator[str]:
    for title, module in (
        ("Requests", messages),
        ("Processes", process),
        ("KV blocks", kv),
        ("Routing", routing),
        ("Prefill", prefill),
        ("Work queues", queueing),
        ("Chat jobs", jobs),
    ):
        yield f"## {title}"
        yield from _messages_of(module)


def _messages_of(module: ModuleType) -> Iterator[str]:
    for kind in _in_source_order(module):
        text, attributes = _split(kind.__doc__ or "")
        yield f"### {kind.__name__}\n\n{text}"
        if kind.__struct_fields__:
            rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
            rows.extend(
                f"| `{field.name}` | {_type(kind, field.name)} | {_default(field)} | {attributes.get(field.name, '')} |"
                for field in msgspec.structs.fields(kind)
            )
            yield "\n".join(rows)


def _error_table() -> Iterator[str]:
    yield "## Errors"
    text, attributes = _split(errors.ErrorReply.__doc__ or "")
    yield text
    yield "\n".join(f"- `{name}`: {meaning}" for name, meaning in attributes.items())
    rows = ["| code | HTTP status | meaning |", "|---|---|---|"]
    by_code = {kind.code: kind for kind in _all_errors(errors.PenstockError)}
    for code in errors.ErrorCode:
        meaning = "Something failed that should not." if code is errors.ErrorCode.INTERNAL else by_code[code].__doc__
        rows.append(f"| `{code}` | {errors.HTTP_STATUS[code]} | {_one_line(meaning)} |")
    yield "\n".join(rows)


def _settings_sections() -> Iterator[str]:
    yield "# Settings"
    yield (
        "A graph is one YAML file; `--set path=value` overrides any of these (`--set decode.replicas=4`). Unknown keys are "
        "refused. Secrets never stand in the file: `PENSTOCK_API_KEY` (keys clients must present, separated by commas), "
        "`PENSTOCK_WORKER_KEY` (what job workers present), "
        "`PENSTOCK_NATS_TOKEN`, `PENSTOCK_NATS_USER` and `PENSTOCK_NATS_PASSWORD` come from the environment."
    )
    done: set[type] = set()
    todo: list[tuple[str, type[Settings]]] = [("", Graph)]
    roots: list[tuple[str, type[Settings]]] = [
        ("penstock controller", ControllerSettings),
        ("penstock cache-controller", CacheController),
    ]
    while todo or roots:
        path, kind = todo.pop(0) if todo else roots.pop(0)
        if kind in done:
            continue
        done.add(kind)
        tag = kind.__struct_config__.tag
        title = f"`{path}`" + (f" with `kind: {tag}`" if tag else "") if path else "The graph"
        yield f"## {title}\n\n{_split(kind.__doc__ or '')[0]}"
        comments = _comments(kind)
        rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for field in msgspec.structs.fields(kind):
            rows.append(f"| `{field.name}` | {_type(kind, field.name)} | {_default(field)} | {comments[field.name]} |")
            todo.extend((f"{path}.{field.name}".lstrip("."), inner) for inner in _inner(field.type))
        yield "\n".join(rows)


def _inner(annotation: object) -> Iterator[type[Settings]]:
    """Return the settings classes an annotation is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _inner(argument)


def _in_source_order(module: ModuleType) -> list[type[messages.Message]]:
    named = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    kinds = [kind for kind in named if issubclass(kind, messages.Message) and kind is not messages.Message]
    return sorted(kinds, key=lambda kind: inspect.getsourcelines(kind)[1])


def _all_errors(root: type[errors.PenstockError]) -> Iterator[type[errors.PenstockError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from _all_errors(kind)


def _comments(kind: type) -> dict[str, str]:
    """Return field name → the comment behind it in the source."""
    found = re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(kind), re.MULTILINE)
    return {name: comment.replace("|", "\\|") for name, comment in found}


def _type(kind: type, name: str) -> str:
    """Return a field's type as written in the source."""
    text = str(inspect.get_annotations(kind).get(name, ""))
    found = re.search(rf"^    {name}: (.*?)(?: = .*?)?(?:  # .*)?$", inspect.getsource(kind), re.MULTILINE)
    return f"`{(found[1] if found else text).replace('|', chr(92) + '|')}`"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return "its defaults" if isinstance(value, msgspec.Struct) else f"`{value!r}`".replace("|", "\\|")


def _split(doc: str) -> tuple[str, dict[str, str]]:
    """Return a docstring's text and its ``Attributes``."""
    text, _, rest = inspect.cleandoc(doc).partition("\nAttributes:\n")
    joined = re.sub(r"\n {5,}", " ", rest)
    attributes = dict(re.findall(r"^ {4}(\w+): (.*)$", joined, re.MULTILINE))
    return text.strip(), {name: meaning.replace("|", "\\|") for name, meaning in attributes.items()}


def _one_line(doc: str | None) -> str:
    return " ".join((doc or "").split()).replace("|", "\\|")


def main() -> int:
    """Write both files, or with `--check` compare them; returns the exit code."""
    stale = []
    for name, text in (("protocol.md", protocol()), ("settings.md", settings())):
        file = HERE / name
        if not file.exists() or file.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                file.write_text(text)
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"stale: {', '.join(stale)}; run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
