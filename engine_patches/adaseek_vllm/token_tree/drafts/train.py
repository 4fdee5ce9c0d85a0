"""`adaseek drafts train`: from a target and prompts to a table, draft models and a report.

Stages, each of which a killed run resumes: the target answers the prompts; a table learns what
follows a few tokens; a first model learns plain text; each draft starts from it and learns what the
target said, the later ones mostly what the earlier ones miss; held-out answers tell how good all
of them are.

Source: SpecInfer (arXiv 2305.09781), section 3, boost-tuning. The paper drops whole samples that
an earlier draft reproduces; here the places that it gets right are drawn less often.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaseek_vllm.token_tree.drafts import continuations
from adaseek_vllm.token_tree.drafts.acceptance import best_ranks, ranks
from adaseek_vllm.token_tree.drafts.config import DraftConfig, DraftError, TargetFacts
from adaseek_vllm.token_tree.drafts.continuations import Job
from adaseek_vllm.token_tree.drafts.corpus import Corpus, Document, trimmed, vocabulary
from adaseek_vllm.token_tree.drafts.files import save_draft
from adaseek_vllm.token_tree.drafts.fit import Plan, fit
from adaseek_vllm.token_tree.drafts.model import DraftModel
from adaseek_vllm.token_tree.drafts.prompts import Prompt, is_held_out, read_prompts, read_texts
from adaseek_vllm.token_tree.drafts.report import acceptance_report, save_report
from adaseek_vllm.token_tree.drafts.successors import ORDER, Successors, SuccessorsSource
from adaseek_vllm.token_tree.drafts.target import facts_of, load_tokenizer, output_rows, tokenised

__all__ = ["TrainSettings", "answers", "draft_directories", "train", "train_on"]

_GENERATION, _TEXT = 0.45, 0.1
"""Shares of the time; the rest is for the drafts."""
_HIT_WEIGHT = 0.1
"""How often a place that earlier drafts get right is wanted, against one that they miss."""
_MAX_TEXT_BYTES = 8_000_000
_DEPTH, _LEARNED_DEPTH = 8, 5
"""Drafted tokens behind a root in the report, and in training, where the deeper ones cost much."""
_MAX_TRANSITIONS = 40_000
_WORK = "training"
"""Folder of what the drafts are made from."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainSettings:
    """What `adaseek drafts train` is told.

    Args:
        minutes: for everything but the report, all runs together.
        num_drafts: how many draft models to train; 0: the table only, and all of the time for
            answers.
        max_prompt_tokens, max_tokens: of a prompt, which is cut to its end, and of an answer.
        num_tokens: size of the trimmed vocabulary.
        shape: other fields of `DraftConfig`.
        steps: training steps of each model in place of a time.
        learning_rate: its peak.
        seed: of the training.
    """

    minutes: float = 40.0
    num_drafts: int = 1
    max_prompt_tokens: int = 384
    max_tokens: int = 256
    num_tokens: int = 8192
    shape: dict[str, int] = field(default_factory=dict)
    steps: int | None = None
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise DraftError(f"`minutes` is {self.minutes!r}, but must be > 0.")
        for name, least in (
            *(("num_drafts", 0), ("max_prompt_tokens", 16)),
            *(("max_tokens", 16), ("num_tokens", 16)),
        ):
            if (value := getattr(self, name)) < least:
                raise DraftError(f"`{name}` is {value!r}, but must be >= {least}.")

    @property
    def num_stages(self) -> int:
        """Stages that are told of."""
        return 5 if self.num_drafts else 3

    @property
    def generation_s(self) -> float:
        """Seconds in which the target answers."""
        return 60 * self.minutes * (_GENERATION if self.num_drafts else 1.0)

    def plan(self, share: float) -> Plan:
        """Returns how to train a model that has this share of the time."""
        seconds = self.minutes * 60 * share
        return Plan(seconds, self.steps, learning_rate=self.learning_rate, seed=self.seed)


def train(
    target: str,
    directory: Path,
    settings: TrainSettings,
    *,
    prompts: Path,
    texts: Sequence[Path] = (),
    say: Say = print,
) -> str:
    """Trains table and drafts into `directory` and returns the report as markdown.

    Args:
        target: the target's directory, or its name on the hub if it is in the local cache.
        directory: of the table and the first draft; those of the other drafts are in it.
        settings: how.
        prompts: JSONL file of what to ask the target.
        texts: files and folders of plain text to learn first; none: the prompts' own texts.
        say: is told how it goes.

    Raises:
        DraftError: an input cannot be used.
    """
    tokenizer = load_tokenizer(target)
    if tokenizer is None:
        raise DraftError(f"The target {target} has no tokenizer, or is no model at all.")
    facts = facts_of(target, tokenizer)
    asked = read_prompts(prompts)
    work = directory / _WORK
    _claim(work, {"target": asdict(facts), "prompts": sha256(prompts.read_bytes()).hexdigest()})
    say(f"1/{settings.num_stages} the target answers {len(asked)} prompts")
    _generate(
        target, work, settings, tokenised(asked, tokenizer, settings.max_prompt_tokens), tokenizer
    )
    answered = answers(work / "continuations", asked)
    plain = _plain(texts, asked, tokenizer)
    return train_on(answered, plain, Path(_local(target)), facts, directory, settings, say=say)


def train_on(
    answered: tuple[list[Document], list[Document]],
    plain: list[Document],
    target: Path,
    facts: TargetFacts,
    directory: Path,
    settings: TrainSettings,
    *,
    say: Say = print,
) -> str:
    """Trains table and drafts on answers that are there; returns the report as markdown.

    Args:
        answered: what the target said, for training and for the report.
        plain: texts to learn first.
        target: directory of its weights.
        facts: what the drafts must know of it.
        directory, settings, say: as in `train`.
    """
    work = directory / _WORK
    work.mkdir(parents=True, exist_ok=True)
    shape = {"num_tokens": min(settings.num_tokens, facts.vocab_size)} | settings.shape
    config = DraftConfig(facts, **shape)
    plain = [one for one in plain if len(one.tokens) > config.window + 1]
    tokens = _vocabulary([*answered[0], *plain], config, work / "vocabulary.json")
    rows = output_rows(target, tokens.tolist())
    ids = trimmed(tokens, facts.vocab_size)

    def laid_out(documents: list[Document], depth: int) -> Corpus:
        return Corpus(documents, ids=ids, output_rows=rows, window=config.window, depth=depth)

    learned, held_out = laid_out(answered[0], _LEARNED_DEPTH), laid_out(answered[1], _DEPTH)
    num_stages = settings.num_stages
    say(f"2/{num_stages} a table learns {len(learned.roots)} tokens that the target said")
    table = _successors(learned, tokens, facts)
    table.save(directory)
    models: list[DraftModel] = []
    if settings.num_drafts:
        say(f"3/{num_stages} a first model learns {sum(len(one.tokens) for one in plain)} "
            "tokens of text")  # fmt: skip
        base = _first_model(config, tokens, rows, learned, settings)
        if plain:
            texts, plan = laid_out(plain, _LEARNED_DEPTH), settings.plan(_TEXT)
            fit(base, texts, plan, work / "text.pt", report=_reporter(say, "text"))
        say(f"4/{num_stages} drafts learn what the target said")
        models = _drafts(base, learned, directory, settings, say)
    say(f"{num_stages}/{num_stages} {len(held_out.roots)} held-out tokens tell how good they are")
    source = SuccessorsSource(table)
    return save_report(acceptance_report(source, models, held_out, answered[1], tokens), directory)


def _drafts(
    base: DraftModel, learned: Corpus, directory: Path, settings: TrainSettings, say: Say
) -> list[DraftModel]:
    """Trains and writes the draft models."""
    models: list[DraftModel] = []
    for number, path in enumerate(draft_directories(directory, settings.num_drafts), start=1):
        model = DraftModel(base.config)
        model.load_state_dict(base.state_dict())
        share = (1.0 - _GENERATION - _TEXT) / settings.num_drafts
        plan = replace(settings.plan(share), seed=settings.seed + number)
        fit(
            model,
            learned,
            plan,
            directory / _WORK / f"draft_{number}.pt",
            weights=_missed(models, learned) if models else None,
            report=_reporter(say, f"draft {number}"),
        )
        save_draft(model, path)
        models.append(model)
    return models


def _successors(corpus: Corpus, tokens: Tensor, facts: TargetFacts) -> Successors:
    """What the target found likely after the last tokens, wherever that is known."""
    wanted, chances = corpus.wanted
    is_known = chances.sum(-1) > 0
    contexts, last = corpus.contexts(ORDER)[is_known], torch.tensor([-1])
    return Successors.learned(
        facts,
        torch.cat([tokens, last])[contexts].numpy(),
        tokens[wanted[is_known]].numpy(),
        chances[is_known].numpy(),
    )


def draft_directories(directory: Path, num_drafts: int) -> list[Path]:
    """Returns where the drafts of a training are; the table is in the first one."""
    return [directory, *(directory / str(number) for number in range(2, num_drafts + 1))]


def _claim(work: Path, identity: dict[str, object]) -> None:
    """Makes sure that the folder's state belongs to this target and these prompts."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "identity.json"
    written = json.dumps(identity, indent=2)
    if path.exists() and path.read_text() != written:
        raise DraftError(
            f"{work} holds a training for another target or other prompts: give another `--out`, "
            "or delete the folder."
        )
    path.write_text(written)


def _generate(
    target: str, work: Path, settings: TrainSettings, prompts: list[list[int]], tokenizer: Any
) -> None:
    """Lets the target answer in a process of its own, whose end gives all its memory back."""
    job = Job(
        target=target,
        directory=str(work / "continuations"),
        prompts=prompts,
        max_tokens=settings.max_tokens,
        seconds=settings.generation_s,
        stop_tokens=(tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else (),
    )
    path = work / "job.json"
    path.write_text(json.dumps(asdict(job)))
    with (work / "engine.log").open("ab") as log:
        done = subprocess.run(
            [sys.executable, "-m", continuations.__name__, str(path)],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise DraftError(f"The target could not answer the prompts: see {work / 'engine.log'}.")


def answers(directory: Path, prompts: Sequence[Prompt]) -> tuple[list[Document], list[Document]]:
    """Returns what the target said: what is for training, and what is held out.

    Args:
        directory: `training/continuations` of a training's folder.
        prompts: those of the training, in the file's order.

    Raises:
        DraftError: one of the two is empty.
    """
    answered = [
        (
            prompts[one.number].is_held_out,
            Document(one.tokens, one.num_prompt_tokens, one.hidden, one.temperature),
        )
        for one in continuations.load(directory)
    ]
    learned = [document for is_kept, document in answered if not is_kept]
    held_out = [document for is_kept, document in answered if is_kept]
    if not learned or not held_out:
        raise DraftError(
            f"The target answered {len(answered)} prompts in the time, too few to train on some "
            "and hold others out: raise `--minutes`."
        )
    return learned, held_out


def _plain(texts: Sequence[Path], prompts: Sequence[Prompt], tokenizer: Any) -> list[Document]:
    found = [text for group, text in read_texts(texts) if not is_held_out(group)]
    if not texts:
        found = [prompt.text for prompt in prompts if prompt.text and not prompt.is_held_out]
    random.Random(0).shuffle(found)
    documents, num_bytes = list[Document](), 0
    for text in found:
        if num_bytes > _MAX_TEXT_BYTES:
            break
        num_bytes += len(text)
        documents.append(Document(np.array(tokenizer(text)["input_ids"], dtype=np.int32)))
    return documents


def _local(target: str) -> str:
    """The directory of the target's files."""
    if Path(target).is_dir():
        return target
    from huggingface_hub import snapshot_download

    return str(snapshot_download(target, allow_patterns=["*.safetensors", "*.json"]))


def _vocabulary(documents: Sequence[Document], config: DraftConfig, path: Path) -> Tensor:
    """The tokens that the drafts can guess; fixed by the first run, as the checkpoints need it."""
    if path.exists():
        tokens = torch.tensor(json.loads(path.read_text()))
        if len(tokens) != config.num_tokens:
            raise DraftError(
                f"The training was begun with a vocabulary of {len(tokens)} tokens, not "
                f"{config.num_tokens}: give the same, or another `--out`."
            )
        return tokens
    tokens = vocabulary(documents, config.num_tokens, config.target.vocab_size)
    path.write_text(json.dumps(tokens.tolist()))
    return tokens


def _first_model(
    config: DraftConfig, tokens: Tensor, rows: Tensor, learned: Corpus, settings: TrainSettings
) -> DraftModel:
    torch.manual_seed(settings.seed)
    model = DraftModel(config)
    model.start_from(tokens, rows)
    if (transitions := learned.transitions(_MAX_TRANSITIONS)) is not None:
        model.foresee(*transitions)
    return model


def _missed(models: Sequence[DraftModel], corpus: Corpus) -> Tensor:
    """How often each root is wanted: those that all drafts so far get wrong most."""
    documents = range(len(corpus.roots_by_document))
    tables = best_ranks([ranks(model, corpus, documents) for model in models])
    is_hit = torch.from_numpy(np.concatenate([table[:, 0] for table in tables]) == 0)
    return torch.where(is_hit, _HIT_WEIGHT, 1.0)


def _reporter(say: Say, name: str) -> Callable[[int, float], None]:
    return lambda step, loss: say(f"    {name}: step {step}, loss {loss:.3f}")
