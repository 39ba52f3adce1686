"""penstock: serve large language models as a graph of small processes."""

__version__ = "0.1.0"
