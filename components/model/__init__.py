"""A model folder as all processes read it: the demo model, the tokenizer, the chat template. No engine."""
