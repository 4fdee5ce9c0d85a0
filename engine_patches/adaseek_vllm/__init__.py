"""AdaSeek's side of vLLM. Importing this package imports nothing of vLLM."""
