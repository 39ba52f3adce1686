"""How much a prefill worker takes on at a time: jobs until their prompts reach a number of tokens. Pure."""


class Budget:
    """Tokens of the prompts under way.

    Attributes:
        tokens: now.
    """

    def __init__(self, max_tokens: int) -> None:
        """Begin with none; with `max_tokens` or more under way, no job is taken."""
        self.tokens = 0
        self._max_tokens = max_tokens

    @property
    def open(self) -> bool:
        """Whether another job is taken, however long its prompt."""
        return self.tokens < self._max_tokens

    def began(self, tokens: int) -> None:
        """Count a job's prompt."""
        self.tokens += tokens

    def ended(self, tokens: int) -> None:
        """Count it no more."""
        self.tokens -= tokens
