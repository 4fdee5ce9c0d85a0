"""The only place that names vLLM's internals. Supports vLLM 0.32."""
