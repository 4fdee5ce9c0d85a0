"""A program of one step on a loopback server, a recipe for it, and what the server was sent."""

from __future__ import annotations

from typing import Any

from adaseek.recipe import Recipe, Setting
from adaseek.testing.loopback import LoopbackServer
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

__all__ = ["chain", "chat", "messages", "prompt", "recipe"]


def chat(server: LoopbackServer, name: str = "m", **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=server.url, api_key="secret-key", **settings)


def prompt(system: str = "Answer briefly.") -> ChatPromptTemplate:
    return ChatPromptTemplate.from_messages([("system", system), ("human", "{q}")])


def chain(server: LoopbackServer, **settings: Any) -> Any:
    """Returns a program that takes `q`; its step is `2.lm`."""
    return prompt() | chat(server, **settings) | StrOutputParser()


def recipe(step: str = "2.lm", **settings: Any) -> Recipe:
    """Returns a recipe for one step: to `Sing.`, unless `settings` say otherwise."""
    return Recipe({step: Setting(**(settings or {"instructions": "Sing."}))})


def messages(body: dict[str, Any]) -> list[str]:
    """Returns the texts of a request."""
    return [message["content"] for message in body["messages"]]
