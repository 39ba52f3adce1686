"""How processes tell what they do: logs and metrics. Never holds prompts or generated text."""
