"""A LangChain chain that answers questions about Python from its own language reference.

A model rewrites the question as a query, BM25 finds paragraphs of the reference that ships with
Python (`pydoc_data.topics`, PSF licence), and a model answers from them in a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any  # Any: chains are LangChain's

import bm25s
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

__all__ = [
    "ReferenceRetriever",
    "build",
    "chat_model",
    "load_examples",
    "metric",
    "paragraphs_of",
    "program",
]

_DATA = Path(__file__).with_name("data")
_NUM_PARAGRAPHS = 3
_MAX_WORDS = 100
_WORD = re.compile(r"\w+")
_OWNER = re.compile(r"^(?:[a-z_]\w*\.)+")

_REWRITE = ChatPromptTemplate.from_messages(
    [
        ("system", "Write a short search query for Python's language reference."),
        ("human", "{question}"),
    ]
)
_ANSWER = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question from the text, in one word or as short as possible."),
        ("human", "Text:\n{context}\n\nQuestion: {question}"),
    ]
)


class ReferenceRetriever(BaseRetriever):
    """Finds paragraphs of Python's language reference by BM25."""

    k: int = _NUM_PARAGRAPHS

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        index, paragraphs = _index()
        found, _ = index.retrieve([_words(query)], k=self.k, show_progress=False)
        return [paragraphs[number] for number in found[0]]


def build(model: BaseChatModel) -> Runnable[Any, str]:
    """Returns the chain from `{"question": ...}` to an answer."""
    rewrite = (_REWRITE | model | StrOutputParser()).with_config(run_name="rewrite")
    answer = (_ANSWER | model | StrOutputParser()).with_config(run_name="answer")
    context = rewrite | ReferenceRetriever() | RunnableLambda(_join)
    return RunnablePassthrough.assign(context=context) | answer


def chat_model(name: str, base_url: str) -> ChatOpenAI:
    """Returns a chat model of a local server."""
    return ChatOpenAI(
        model=name,
        base_url=base_url,
        api_key=SecretStr("none"),
        temperature=0.0,
        max_completion_tokens=32,
        max_retries=1,
    )


def metric(example: Mapping[str, Any], output: str) -> bool:
    """Returns whether the output is the answer, with at most three words beside it.

    A method may be named with its class: `str.zfill` is as good as `zfill`.
    """
    answer, given = _normal(example["outputs"]["answer"]), _normal(output)
    bare = [_OWNER.sub("", word) for word in given]
    named = any(f" {' '.join(answer)} " in f" {' '.join(words)} " for words in (given, bare))
    return named and len(given) <= len(answer) + 3


def load_examples(split: str) -> list[dict[str, Any]]:
    """Returns the questions of `split`: "train", "val" or "test"."""
    lines = (_DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        {"inputs": {"question": row["question"]}, "outputs": {"answer": row["answer"]}}
        for row in rows
    ]


def paragraphs_of(text: str) -> list[str]:
    """Returns the paragraphs of a topic, without headings and cut to a bounded length."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    cut = (" ".join(part.split(" ")[:_MAX_WORDS]) for part in parts)
    return [part for part in cut if len(part.split()) > 4]


@cache
def _index() -> tuple[bm25s.BM25, Sequence[Document]]:
    """Returns the index of all distinct paragraphs; made once, in about a second."""
    texts = {part: name for name, text in topics.items() for part in paragraphs_of(text)}
    documents = [Document(part, metadata={"topic": name}) for part, name in texts.items()]
    index = bm25s.BM25()
    index.index([_words(document.page_content) for document in documents], show_progress=False)
    return index, documents


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _join(documents: Sequence[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def _normal(text: str) -> list[str]:
    """Returns the words of an answer; signs count, since some answers begin with one."""
    return re.findall(r"[-!:]?[\w.@]*\w|:=", text.casefold())


def program() -> Runnable[Any, str]:
    """Returns the chain on a local server; for `adaseek inspect rag.py:program`."""
    return build(chat_model("Qwen2.5-Coder-0.5B-Instruct", "http://127.0.0.1:8421/v1"))
