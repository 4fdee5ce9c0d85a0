"""The plugin that teaches AdaSeek LangChain. It imports LangChain only inside its functions."""

from __future__ import annotations
