"""AdaSeek for DSPy."""
