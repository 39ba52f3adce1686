"""A sequence goes on at another worker as if nothing had happened: a model that says the same again proves it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.model.tokenizer import Tokenizer
from components.processor.render import Prompt
from components.processor.resume import Joint, exact, join, joint
from components.processor.sequence import Sequence
from components.wire.errors import WorkerLostError
from components.wire.messages import FinishReason, Sampling, StructuredOutputs, TokenDelta

WORDS = ["a", "bc", "\ufffd", "d\n", "\n", "ef"]


def decode(tokens: list[int]) -> str:
    """Return the text of tokens that number `WORDS`."""
    return "".join(WORDS[token] for token in tokens)


@pytest.mark.parametrize(
    ("tokens", "shown", "stops", "expected"),
    [
        ([], "", (), Joint(0)),
        ([0, 1], "abc", (), Joint(2)),
        ([0, 1], "a", (), Joint(2, held="bc")),
        ([0, 1], "ab", (), Joint(2, held="c")),
        ([0, 2], "a", (), Joint(1, seen_tokens=(2,))),
        ([0, 2, 2], "a", (), Joint(1, seen_tokens=(2, 2))),
        ([0, 3], "a", ("\n\n",), Joint(1, seen_tokens=(3,))),
        ([0, 3], "ad", ("\n\n",), Joint(1, seen_text="d", seen_tokens=(3,))),
        ([0, 3], "ad", ("xyz",), Joint(2, held="\n")),
        ([0, 1], "ab", ("bcd",), Joint(2, held="c")),
        ([0, 1], "a", ("bcd",), Joint(1, seen_tokens=(1,))),
    ],
)
def test_as_much_as_can_be_is_kept(tokens: list[int], shown: str, stops: tuple[str, ...], expected: Joint) -> None:
    """Held-back text is shown by us, unless a character is incomplete or a stop string may have begun in it."""
    assert joint(tokens, shown, stops, decode) == expected


def test_text_that_is_not_of_these_tokens_cannot_be_continued() -> None:
    """Better an error than a wrong answer."""
    with pytest.raises(WorkerLostError):
        joint([0, 1] * 50, "zzz", (), decode)


def test_a_second_worker_must_say_what_was_shown() -> None:
    """Text always, tokens when the client looks at them."""
    point = Joint(1, seen_text="d", seen_tokens=(3,))
    assert join(point, TokenDelta("r", 1, [3, 5], "d\nef"), strict_tokens=True) == ("\nef", 1)
    with pytest.raises(WorkerLostError):
        join(Joint(1, seen_text="d"), TokenDelta("r", 1, [0], "a"), strict_tokens=False)
    with pytest.raises(WorkerLostError):
        join(Joint(1, seen_tokens=(3,)), TokenDelta("r", 1, [0], ""), strict_tokens=True)


def test_what_depends_on_output_as_output_is_not_exact() -> None:
    """Grammars and output penalties; the repetition penalty counts the prompt too."""
    assert exact(Sampling(5, repetition_penalty=1.5, stop=("a",), logit_bias={1: 2.0}))
    assert not exact(Sampling(5, presence_penalty=0.1))
    assert not exact(Sampling(5, frequency_penalty=0.1))
    assert not exact(Sampling(5, structured_outputs=StructuredOutputs(json_object=True)))


def answer(tokenizer: Tokenizer, tokens: list[int], stop: str | None, start: int) -> list[TokenDelta]:
    """Return what a worker says that reads `tokens[:start]` as prompt: text held back as vLLM does."""
    deltas, shown, text = [], 0, ""
    base = tokenizer.decode(tokens[:start])
    for number in range(start, len(tokens)):
        whole = tokenizer.decode(tokens[: number + 1])
        last = number == len(tokens) - 1
        if last or not whole.endswith("\ufffd"):
            text = whole[len(base) :]
        end = len(text) if last else max(shown, len(text) - (len(stop) - 1 if stop else 0))
        reason = FinishReason.LENGTH if last else None
        deltas.append(TokenDelta("r", number - start, [tokens[number]], text[shown:end], finish_reason=reason))
        shown = end
    return deltas


@given(
    st.text(alphabet="ab \n√ü日本🙂", min_size=1, max_size=30),
    st.lists(st.integers(0, 40), max_size=4),
    st.sampled_from([None, "zz", "\n\nend", "🙂🙂x"]),
    st.booleans(),
)
def test_the_client_sees_one_unbroken_text(
    tokenizer: Tokenizer, text: str, deaths: list[int], stop: str | None, stream: bool
) -> None:
    """However often and wherever the workers die: the same text, and each token once."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    sequence = Sequence(0, Prompt([1]), Sampling(len(tokens), stop=(stop,) if stop else ()))
    seen_text, seen_tokens = "", []
    for death in [*deaths, None]:
        for delta in answer(tokenizer, tokens, stop, len(sequence.token_ids))[:death]:
            new = sequence.take(delta, tokens_seen=stream)
            seen_text += new.text
            seen_tokens += new.token_ids
        if sequence.finish_reason is not None:
            break
        if sequence.token_ids:
            sequence.rejoin(tokenizer.decode, seen=stream)
    assert sequence.token_ids == tokens
    assert "".join(sequence.texts) == text
    if stream:
        assert (seen_text, seen_tokens) == (text, tokens)
