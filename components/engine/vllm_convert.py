"""Between penstock's messages and vLLM's objects, field by field. Pure; knows nothing of processes or streams."""

from collections.abc import Iterable, Mapping
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from components.engine.protocol import EngineOutput
from components.wire.errors import WorkerLostError
from components.wire.messages import FinishReason, PositionLogprobs, Sampling, StructuredOutputs, TokenLogprob

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "repetition": FinishReason.STOP,
}


def to_sampling_params(sampling: Sampling) -> SamplingParams:
    """Return `sampling` as vLLM wants it: text and tokens come in deltas.

    Raises:
        ValueError: vLLM refuses a value.
    """
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        include_stop_str_in_output=sampling.include_stop_str_in_output,
        ignore_eos=sampling.ignore_eos,
        min_tokens=sampling.min_tokens,
        logprobs=sampling.logprobs,
        logit_bias=dict(sampling.logit_bias) or None,
        allowed_token_ids=list(sampling.allowed_token_ids) or None,
        bad_words=list(sampling.bad_words) or None,
        skip_special_tokens=sampling.skip_special_tokens,
        spaces_between_special_tokens=sampling.spaces_between_special_tokens,
        structured_outputs=_structured(sampling.structured_outputs),
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,  # these parameters are made for one request
    )


def to_engine_output(output: Any, logprobs: int | None, *, first: bool) -> EngineOutput:
    """Return vLLM's ``RequestOutput`` of one sequence as ours.

    Args:
        output: new tokens and text since the last one.
        logprobs: how many alternatives were asked for.
        first: whether it is the first of its request.

    Raises:
        WorkerLostError: vLLM gave the request up.
    """
    (completion,) = output.outputs
    reason = completion.finish_reason
    if reason is not None and reason not in _FINISH_REASONS:
        raise WorkerLostError("the engine gave the request up")
    return EngineOutput(
        token_ids=list(completion.token_ids),
        text=completion.text,
        logprobs=[_position(position, logprobs) for position in completion.logprobs] if completion.logprobs else None,
        finish_reason=_FINISH_REASONS[reason] if reason is not None else None,
        stop_reason=completion.stop_reason,
        cached_tokens=(output.num_cached_tokens or 0) if first else None,
    )


def _structured(structured: StructuredOutputs | None) -> StructuredOutputsParams | None:
    if structured is None:
        return None
    return StructuredOutputsParams(
        json=structured.json_schema,
        regex=structured.regex,
        choice=list(structured.choice) or None,
        grammar=structured.grammar,
        json_object=structured.json_object or None,
        structural_tag=structured.structural_tag,
    )


def _position(candidates: Mapping[int, Any], wanted: int | None) -> PositionLogprobs:
    """Return one position's log probabilities; vLLM lists the chosen token first, then the best ones."""
    tokens = [
        TokenLogprob(token_id, candidate.decoded_token or "", candidate.logprob, candidate.rank)
        for token_id, candidate in candidates.items()
    ]
    return PositionLogprobs(chosen=tokens[0], top=_best(tokens, wanted or 0))


def _best(tokens: Iterable[TokenLogprob], wanted: int) -> tuple[TokenLogprob, ...]:
    return tuple(sorted(tokens, key=lambda token: -token.logprob)[:wanted])
