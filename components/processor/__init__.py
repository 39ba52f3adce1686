"""The HTTP edge: an OpenAI-compatible endpoint that conducts each request from start to finish."""
