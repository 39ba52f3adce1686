"""One chat completion out of the chunks of its stream, so that progress can be told while it is made. Pure."""

from typing import Any


class Assembly:
    """The completion so far.

    Attributes:
        tokens: chunks that brought output; a token each, unless the engine put several into one.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._id = ""
        self._model = ""
        self._usage: dict[str, int] | None = None
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        """Take in the next chunk, as OpenAI describes it; unknown keys are left out."""
        self._id = chunk.get("id") or self._id
        self._model = chunk.get("model") or self._model
        if isinstance(usage := chunk.get("usage"), dict):
            names = ("prompt_tokens", "completion_tokens", "total_tokens")
            self._usage = {name: int(usage.get(name) or 0) for name in names}
        for part in chunk.get("choices") or ():
            self._add_choice(part)

    @property
    def complete(self) -> bool:
        """Whether every choice has come to its end."""
        return bool(self._choices) and all(choice["finish_reason"] is not None for choice in self._choices.values())

    def completion(self) -> dict[str, Any]:
        """Return what came, in the document's shape."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        usage = self._usage or {"prompt_tokens": 0, "completion_tokens": self.tokens, "total_tokens": self.tokens}
        return {"id": self._id, "model": self._model, "choices": choices, "usage": usage}

    def _add_choice(self, part: dict[str, Any]) -> None:
        index = int(part.get("index") or 0)
        if (choice := self._choices.get(index)) is None:
            message: dict[str, Any] = {"role": "assistant", "content": ""}
            choice = self._choices[index] = {"index": index, "message": message, "finish_reason": None}
        message, delta = choice["message"], part.get("delta") or {}
        if text := delta.get("content"):
            self.tokens += 1
            message["content"] += text
        for key in ("reasoning", "reasoning_content", "refusal"):
            if text := delta.get(key):
                message[key] = message.get(key, "") + text
        for call in delta.get("tool_calls") or ():
            self.tokens += 1
            _add_call(message.setdefault("tool_calls", []), call)
        if isinstance(logprobs := part.get("logprobs"), dict):
            choice.setdefault("logprobs", {"content": []})["content"].extend(logprobs.get("content") or ())
        choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]


def _add_call(calls: list[dict[str, Any]], delta: dict[str, Any]) -> None:
    index = int(delta.get("index") or 0)
    while len(calls) <= index:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], delta.get("function") or {}
    call["id"] = delta.get("id") or call["id"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""
