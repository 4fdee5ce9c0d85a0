"""Runs one tiny random model in vLLM, without and with trees, and prints what differs as JSON.

A program of its own, because an engine in its process leaves much behind. Its drafts hide the
model's real continuation in side branches among wrong guesses, so all that trees can do is done.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

os.environ |= {
    # Two spinning threads for matrices this small lose to one on a busy machine.
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}

import numpy as np
import torch
import transformers
import vllm
from adaseek_vllm.flags import with_features
from scripted_drafts import VOCABULARY, Oracle, Tenants, Texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams


def save_model(directory: Path) -> None:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)


def save_tokenizer(directory: Path) -> None:
    """Writes a tokenizer whose tokens are bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {
        letter: 3 + index for index, letter in enumerate(letters)
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)


class Engine:
    """One engine in this process."""

    def __init__(self, model: str, **arguments: Any) -> None:
        defaults = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            "max_num_seqs": 4,
            "block_size": 32,
            "num_gpu_blocks_override": 64,
            "skip_tokenizer_init": True,
        }
        self.llm = vllm.LLM(**with_features(model=model, **(defaults | arguments)))
        core: Any = self.llm.llm_engine.engine_core
        self.scheduler = core.engine_core.scheduler
        self.runner = core.engine_core.model_executor.driver_worker.worker.model_runner
        self.num_steps = 0
        execute = self.runner.execute_model

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.num_steps += 1
            return execute(*args, **kwargs)

        self.runner.execute_model = counted

    def use(self, texts: Texts, **arguments: Any) -> None:
        """Drafts from known texts from now on."""
        self.runner.drafter.sources = [Oracle(texts, **arguments)]

    def generate(self, prompts: Texts, params: Any) -> list[Any]:
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        return self.llm.generate(inputs, params, use_tqdm=False)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm, self.runner, self.scheduler
        gc.collect()


def prompts(num: int, length: int, seed: int = 0) -> Texts:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, length).tolist() for _ in range(num)]


def texts_of(outputs: list[Any]) -> Texts:
    return [
        [*output.prompt_token_ids, *completion.token_ids]
        for output in outputs
        for completion in output.outputs
    ]


def compared(stock: list[Any], trees: list[Any]) -> dict[str, Any]:
    """How many completions differ, and by how much their log probabilities do."""
    worst, different = 0.0, 0
    pairs = [
        pair
        for one, other in zip(stock, trees, strict=True)
        for pair in zip(one.outputs, other.outputs, strict=True)
    ]
    for one, other in pairs:
        same = list(one.token_ids) == list(other.token_ids)
        same &= one.finish_reason == other.finish_reason
        different += not same
        if same and one.logprobs is not None:
            for a, b in zip(one.logprobs, other.logprobs, strict=True):
                if a.keys() != b.keys():
                    different += 1
                    break
                worst = max(worst, *(abs(a[t].logprob - b[t].logprob) for t in a))
    num_tokens = sum(len(other.token_ids) for _, other in pairs)
    return {
        "completions": len(pairs),
        "different": different,
        "tokens": num_tokens,
        "logprob_error": worst,
    }


GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, detokenize=False)


def seeded(index: int) -> SamplingParams:
    """Every sampling feature that vLLM allows beside drafts, in turns."""
    features: list[dict[str, Any]] = [
        {},
        {"top_p": 0.8},
        {"top_k": 7, "logprobs": 2},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
        {"presence_penalty": 0.7, "min_tokens": 20, "stop_token_ids": list(range(3, 60))},
        {"allowed_token_ids": list(range(3, 40)), "logprobs": 0},
        {"temperature": 0.0, "logprobs": 3},
    ]
    defaults = {"temperature": 0.9, "max_tokens": 40, "ignore_eos": True, "detokenize": False}
    return SamplingParams(**(defaults | {"seed": 100 + index} | features[index % len(features)]))


GREEDY_FEATURES: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"min_tokens": 20, "stop_token_ids": list(range(3, 60))},
    {"allowed_token_ids": list(range(3, 40))},
    {"logprobs": 2},
)
"""What keeps greedy decoding from being the likeliest token of each row."""


def greedy_with_features(engine: Engine) -> list[Any]:
    """Batches that are all greedy and have one feature each."""
    common: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "detokenize": False}
    settings = [SamplingParams(**common, **feature) for feature in GREEDY_FEATURES]
    without_words = SamplingParams(**common)
    # What vLLM makes of `bad_words` with a tokenizer, which these engines do not have.
    without_words._bad_words_token_ids = [[token] for token in range(3, 40)]
    return [
        output
        for number, params in enumerate([*settings, without_words])
        for output in engine.generate(prompts(3, 8, seed=10 + number), params)
    ]


def scenarios(model: str) -> dict[str, Any]:
    """Runs everything; returns scenario -> result."""
    greedy_prompts, long_prompts = prompts(12, 9), prompts(6, 150, seed=1)
    seeds = [seeded(index) for index in range(21)]
    stopping = SamplingParams(
        temperature=0, max_tokens=40, stop_token_ids=list(range(3, 30)), detokenize=False
    )
    to_the_end = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, detokenize=False)
    several = SamplingParams(temperature=0.8, n=3, seed=5, max_tokens=24, detokenize=False)
    runs: dict[str, Callable[[Engine], list[Any]]] = {
        "greedy": lambda engine: engine.generate(greedy_prompts, GREEDY),
        "greedy one by one": lambda engine: [
            output for prompt in greedy_prompts for output in engine.generate([prompt], GREEDY)
        ],
        "greedy with features": greedy_with_features,
        "seeded": lambda engine: engine.generate(prompts(21, 7, seed=2), seeds),
        "stop tokens": lambda engine: engine.generate(greedy_prompts, stopping),
        "longest sequence": lambda engine: engine.generate(prompts(3, 240, seed=4), to_the_end),
        "several completions": lambda engine: engine.generate(greedy_prompts[:3], several),
        "long prompts": lambda engine: engine.generate(long_prompts, GREEDY),
    }
    stock = Engine(model)
    expected = {name: run(stock) for name, run in runs.items()}
    stock.close()
    texts = [text for outputs in expected.values() for text in texts_of(outputs)]
    results = with_trees(model, runs, expected, texts)
    results |= small_engine(model, long_prompts, expected["long prompts"], texts)
    results |= structured(model)
    again = Engine(model)
    results["stock afterwards"] = compared(expected["greedy"], runs["greedy"](again))
    results["stock afterwards"]["layer"] = type(layer_of(again).impl).__name__
    again.close()
    return results


def layer_of(engine: Engine) -> Any:
    return next(iter(engine.runner.compilation_config.static_forward_context.values()))


def with_trees(
    model: str, runs: dict[str, Any], expected: dict[str, list[Any]], texts: Texts
) -> dict[str, Any]:
    engine = Engine(model, token_tree={"num_nodes": 14, "budget": "full"})
    engine.use(texts)
    results = {}
    for name, run in runs.items():
        engine.llm.reset_prefix_cache()
        before = engine.num_steps
        results[name] = compared(expected[name], run(engine))
        results[name]["steps"] = engine.num_steps - before
    # The cache must hold what plain decoding would have left there.
    continued = [[*text[:180], 7] for text in texts_of(expected["long prompts"])]
    cached = engine.generate(continued, GREEDY)
    engine.llm.reset_prefix_cache()
    engine.runner.drafter.sources = [Oracle([])]
    fresh = [output for text in continued for output in engine.generate([text], GREEDY)]
    results["prefix cache"] = compared(fresh, cached) | {
        "cached": [output.num_cached_tokens for output in cached]
    }
    results["prefix cache"]["learned"] = engine.runner.drafter.sources[0].num_learned
    for shape in ("wide", "deep"):
        engine.llm.reset_prefix_cache()
        engine.use(texts, shape=shape)
        results[f"{shape} trees"] = compared(expected["greedy"], runs["greedy"](engine))
    results["aborts"] = aborts(engine, texts, expected["greedy"])
    results["tenants"] = tenants(engine, texts, expected["greedy"])
    results["controls"] = controls(engine, runs["greedy"], expected["greedy"], texts)
    engine.close()
    return results


def aborts(engine: Engine, texts: Texts, expected: list[Any]) -> dict[str, Any]:
    """Every second request is taken away on its way; the others must not notice."""
    engine.llm.reset_prefix_cache()
    engine.use(texts)
    core = engine.llm.llm_engine
    for index, output in enumerate(expected):
        core.add_request(str(index), {"prompt_token_ids": output.prompt_token_ids}, GREEDY)
    finished: dict[int, Any] = {}
    for step in range(10_000):
        if not core.has_unfinished_requests():
            break
        if step == 3:
            core.abort_request([str(index) for index in range(0, len(expected), 2)])
        finished |= {int(one.request_id): one for one in core.step() if one.finished}
    kept = range(1, len(expected), 2)
    return compared([expected[index] for index in kept], [finished[index] for index in kept])


def tenants(engine: Engine, texts: Texts, expected: list[Any]) -> dict[str, Any]:
    """Two tenants and requests without a salt, in the same steps."""
    engine.llm.reset_prefix_cache()
    engine.runner.drafter.sources = [source := Tenants(texts)]
    inputs = [
        {"prompt_token_ids": output.prompt_token_ids} | ({"cache_salt": salt} if salt else {})
        for output, salt in zip(expected, ["a", "b", ""] * len(expected), strict=False)
    ]
    outputs = engine.llm.generate(inputs, GREEDY, use_tqdm=False)
    asked = [(*one["prompt_token_ids"], one.get("cache_salt", "")) for one in inputs]
    return compared(expected, outputs) | {
        "drafted": source.drafted == set(asked),
        "learned": dict(source.learned),
        "left": len(engine.runner._tenants),
    }


SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["left", "lift", "right"]},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 4},
    },
    "required": ["kind", "sizes"],
}


def structured(model: str) -> dict[str, Any]:
    """JSON by a schema, greedy and seeded, with trees whose wrong branches are often allowed."""
    constrained = StructuredOutputsParams(json=SCHEMA)
    sampling = [
        SamplingParams(max_tokens=48, structured_outputs=constrained, **given)
        for given in ({"temperature": 0}, {"temperature": 0.9, "seed": 7, "logprobs": 2})
    ]
    params = [sampling[index % 2] for index in range(8)]
    asked = prompts(8, 9, seed=6)
    stock = Engine(model, skip_tokenizer_init=False)
    letters = stock.llm.get_tokenizer()
    # Half are white space, which the grammar allows between all parts and this model likes.
    guesses = [*'0123456789,]}lr"eif', *"\u0109\u010a\u010d\u0120" * 5]
    wrong = letters.convert_tokens_to_ids(guesses)
    expected = stock.generate(asked, params)
    stock.close()
    engine = Engine(
        model, skip_tokenizer_init=False, token_tree={"num_nodes": 14, "budget": "full"}
    )
    engine.use(texts_of(expected), wrong=wrong)
    # No report takes away on the way what was counted.
    engine.runner._stats.since_s = math.inf
    result = compared(expected, engine.generate(asked, params))
    stats = engine.runner._stats
    result |= {"branching": stats.num_branching, "verified": stats.num_requests}
    engine.close()
    return {"json schema": result}


def controls(engine: Engine, run: Any, expected: list[Any], texts: Texts) -> dict[str, int]:
    """Completions that differ if one part of the machinery is taken out."""
    engine.use(texts)
    runner = engine.runner
    build = runner._build_attention_metadata

    def without_trees(self: Any, *args: Any, **kwargs: Any) -> Any:
        forward, self._forward = self._forward, None
        metadata = build(*args, **kwargs)
        self._forward = forward
        return metadata

    different = {}
    for name, part in (
        ("causal mask", {"_build_attention_metadata": without_trees}),
        ("no moves", {"_move_accepted": lambda _self, _verified: None}),
    ):
        engine.llm.reset_prefix_cache()
        for attribute, function in part.items():
            setattr(runner, attribute, MethodType(function, runner))
        different[name] = compared(expected, run(engine))["different"]
        for attribute in part:
            delattr(runner, attribute)
    return different


def small_engine(
    model: str, long_prompts: Texts, expected: list[Any], texts: Texts
) -> dict[str, Any]:
    """Few blocks and few tokens a step: preemptions, chunked prefills, trees cut short."""
    engine = Engine(
        model,
        token_tree={"num_nodes": 14, "budget": "full"},
        num_gpu_blocks_override=17,
        max_num_batched_tokens=40,
        enable_chunked_prefill=True,
    )
    engine.use(texts)
    preempted, preempt = [0], engine.scheduler._preempt_request

    def counted(*args: Any, **kwargs: Any) -> Any:
        preempted[0] += 1
        return preempt(*args, **kwargs)

    engine.scheduler._preempt_request = counted
    result = compared(expected, engine.generate(long_prompts, GREEDY))
    engine.close()
    return {"small engine": result | {"preempted": preempted[0]}}


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    save_model(directory)
    save_tokenizer(directory)
    print("RESULTS " + json.dumps(scenarios(str(directory))))
