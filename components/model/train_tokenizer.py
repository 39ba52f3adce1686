"""Made `demo_files/tokenizer.json` from `demo_files/corpus.txt`: ``python -m components.model.train_tokenizer``.

The result is committed, because a later version of the tokenizers library may train otherwise, and the demo model is
the same everywhere.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 896
SPECIAL_TOKENS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]

_FILES = Path(__file__).parent / "demo_files"


def train(text: str) -> Tokenizer:
    """Return a byte-level BPE tokenizer of `VOCAB_SIZE` tokens, which puts ``<s>`` in front of what it encodes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(text.splitlines(keepends=True), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[(SPECIAL_TOKENS[0], 0)]
    )
    return bpe


if __name__ == "__main__":
    train((_FILES / "corpus.txt").read_text()).save(str(_FILES / "tokenizer.json"))
