"""What a test needs from AdaSeek: small models, a real local engine and pytest fixtures.

Experimental. Nothing is imported here, so that a test pays only for what it uses:
`adaseek.testing.models`, `adaseek.testing.local_engine`, `adaseek.testing.fixtures`.
"""
