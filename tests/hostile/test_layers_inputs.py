"""Folders, files and inputs that cannot be used: one clear line each, and nothing of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retarget.analysis.layers.collect import collect
from retarget.analysis.layers.collected import Inputs, Labelled
from retarget.analysis.layers.models import BridgeModel, ModuleModel
from retarget.analysis.layers.policies import ArrayInputs
from retarget.analysis.layers.positions import Positions
from retarget.analysis.layers.prompts import FIELDS, prompt_inputs, read_prompts
from retarget.analysis.layers.readable import Batch
from retarget.errors import FileError, LayersError, RetargetError
from retarget.io.language import check_folder, open_language_model, quiet

torch.set_num_threads(1)

WORDS = "<pad> <s> </s> <unk> tell me about cats how to make a bomb".split()  # noqa: SIM905


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that opens, without a chat template."""
    folder = tmp_path_factory.mktemp("hostile") / "good"
    with quiet(), torch.random.fork_rng(devices=[]):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
        config = LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(good: Path) -> BridgeModel:
    return BridgeModel.open(good)


def one_line(error: RetargetError, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text and len(text) < 700
    for part in parts:
        assert part in text, text


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


# ------------------------------------------------------------------------------------------------------------- folders


def _config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder / "ran")))


def _disguised(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(folder / "ran")))


def _index(folder: Path, where: object) -> None:
    (folder / "model.safetensors").rename(folder.parent / "away.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def _header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    change(header)
    new = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + n :])


def _link(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def _code(folder: Path, name: str = "config.json") -> None:
    file = folder / name
    config = json.loads(file.read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    file.write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(folder / 'ran')!r})\nclass Evil: pass\n")


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _drop(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ("no language model", "save_pretrained")),
    "config of another kind": (lambda f: (f / "config.json").write_text("[]"), ("no JSON object",)),
    "config cut off": (lambda f: (f / "config.json").write_text('{"a":'), ("no JSON",)),
    "config empty": (lambda f: (f / "config.json").write_text(""), ("empty",)),
    "config too large": (lambda f: (f / "config.json").write_text(" " * (1 << 20) + "{}"), ("bytes",)),
    "config is a folder": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), ("no regular file",)),
    "no type": (lambda f: _config(f, model_type=None), ("model_type",)),
    "unknown type": (lambda f: _config(f, model_type="zorp"), ("'zorp'",)),
    "unknown architecture": (lambda f: _config(f, architectures=["LlamaForCausalLM2ForCausalLM"]), ("unknown arch",)),
    "an encoder": (lambda f: _config(f, architectures=["BertForMaskedLM"]), ("no causal language model",)),
    "no architecture": (lambda f: _config(f, architectures=[]), ("one architecture",)),
    "quantised": (lambda f: _config(f, quantization_config={"quant_method": "gptq"}), ("quantised",)),
    "code in the config": (_code, ("auto_map", "never")),
    "code in the tokenizer": (lambda f: _code(f, "tokenizer_config.json"), ("auto_map", "never")),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), ("LoRA", "merge_and_unload")),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ("no tokenizer.json",)),
    "tokenizer broken": (lambda f: (f / "tokenizer.json").write_text('{"model": 3}'), ("tokenizer cannot be read",)),
    "tokenizer no JSON": (lambda f: (f / "tokenizer.json").write_bytes(b"\x80\x04"), ("no JSON",)),
    "a pickle": (_pickle, ("pytorch_model.bin", "safetensors")),
    "a pickle by another name": (_disguised, ("no safetensors file", "safetensors")),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("no weights",)),
    "weights cut off": (_cut, ("cut off",)),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), ("empty",)),
    "a link out": (_link, ("link", "out of the folder")),
    "index leads out": (lambda f: _index(f, {"a": "../away.safetensors"}), ("none of this folder",)),
    "index of nothing": (lambda f: _index(f, {"a": "m-1.safetensors"}), ("lacks 'm-1.safetensors'",)),
    "index without files": (lambda f: _index(f, {}), ("weight_map",)),
    "index names a pickle": (lambda f: _index(f, {"a": "pytorch_model.bin"}), ("none of this folder",)),
    "a weight missing": (_drop, ("has no weights", "model.layers.1.mlp.up_proj.weight")),
    "a type unknown": (lambda f: _header(f, lambda h: h["lm_head.weight"].update(dtype="F4")), ("'F4'",)),
    "an offset wrong": (lambda f: _header(f, lambda h: h["lm_head.weight"].update(data_offsets=[4, 0])), ("bytes",)),
    "shapes wrong": (lambda f: _header(f, lambda h: h["lm_head.weight"].update(shape=[1 << 39, 1 << 39])), ("fill",)),
    "wider than its weights": (lambda f: _config(f, hidden_size=64), ("weights of the right shape",)),
    "too many layers": (lambda f: _config(f, num_hidden_layers=10**9), ("layers",)),
    "a huge network": (lambda f: _config(f, vocab_size=10**11), ("config.json describes",)),
    "heads that do not divide": (lambda f: _config(f, num_attention_heads=0), ("cannot be",)),
    "numbers that are none": (lambda f: _config(f, hidden_size="many"), ("cannot be",)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line(name: str, good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "model")
    change, parts = BROKEN[name]
    change(folder)
    begin = time.monotonic()
    with pytest.raises(FileError) as caught:
        open_language_model(folder)
    one_line(caught.value, *parts)
    assert time.monotonic() - begin < 10
    assert not (folder / "ran").exists()


def test_a_pickle_beside_the_weights_is_never_opened(good: Path, tmp_path: Path, model: BridgeModel) -> None:
    folder = shutil.copytree(good, tmp_path / "model")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(folder / "ran")))
    assert open_language_model(folder).digest == model.digest
    assert not (folder / "ran").exists()


def test_attention_that_would_be_fetched_is_not(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "model")
    _config(folder, attn_implementation="kernels-community/flash-attn", _attn_implementation="someone/something")
    opened = BridgeModel.open(folder)
    assert opened.run(Batch(np.ones((1, 2), dtype=np.int64), np.ones((1, 2), dtype=np.bool_))).logits is not None


def test_a_snapshot_in_a_cache_of_downloads_is_a_folder(good: Path, tmp_path: Path, model: BridgeModel) -> None:
    home = tmp_path / "models--them--small"
    (home / "snapshots").mkdir(parents=True)
    shutil.copytree(good, home / "blobs")
    (home / "snapshots" / "abc").mkdir()
    for file in (home / "blobs").iterdir():
        (home / "snapshots" / "abc" / file.name).symlink_to(Path("../../blobs") / file.name)
    found = open_language_model(home / "snapshots" / "abc")
    assert (found.label, found.digest) == ("small", model.digest)


@pytest.mark.parametrize("where", ["gpt2", "meta-llama/Llama-2-7b", "", "\0", "x" * 5000])
def test_names_of_models_elsewhere_are_no_folders(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError) as caught:
        open_language_model(where)
    assert "\n" not in str(caught.value)


def test_a_file_and_settings_that_are_none(good: Path) -> None:
    for path, options, part in (
        (good / "config.json", {}, "no folder"),
        (good, {"dtype": "int4"}, "unknown precision 'int4'"),
        (good, {"device": "cuda:99"}, "device 'cuda:99'"),
        (good, {"device": "moon"}, "device 'moon'"),
    ):
        with pytest.raises(FileError) as caught:
            open_language_model(path, **options)  # type: ignore[arg-type]
        one_line(caught.value, part)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_weights_changed_anywhere_are_read_or_refused(data: st.DataObject, good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fuzz"
    if not folder.exists():
        shutil.copytree(good, folder)
    original = (good / "model.safetensors").read_bytes()
    n = 8 + struct.unpack("<Q", original[:8])[0]
    raw = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, n - 1))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(bytes(raw))
    try:
        check_folder(folder).digest()
    except FileError as error:
        assert "\n" not in str(error)


# -------------------------------------------------------------------------------------------------------- prompt files

FILES: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "missing": ("a.json", b"", ("empty",)),
    "another kind": ("a.docx", "x", (".docx", ".jsonl")),
    "no suffix": ("a", "x", ("no suffix",)),
    "no list": ("a.json", '{"a": 1}', ("no list but an object",)),
    "no JSON": ("a.json", "hello", ("no JSON",)),
    "empty list": ("a.json", "[]", ("holds no prompt",)),
    "mixed, text first": ("a.json", '["a", {"text": "b"}]', ("entry 2 is an object",)),
    "mixed, object first": ("a.json", '[{"text": "b"}, "a"]', ("entry 2 is a string",)),
    "numbers": ("a.json", "[1, 2]", ("entry 1 is a number",)),
    "null": ("a.json", "[null]", ("entry 1 is null",)),
    "no such field": ("a.json", '[{"goal": "b", "id": 3}]', ("'goal', 'id'", *FIELDS)),
    "field gone": ("a.json", '[{"text": "b"}, {"goal": "c"}]', ("entry 2", "no 'text'", "'goal'")),
    "field no text": ("a.json", '[{"text": ["b"]}]', ("entry 1", "'text' is a list")),
    "empty prompt": ("a.json", '["a", " "]', ("prompt 2 is empty",)),
    "a bad line": ("a.jsonl", '{"text": "a"}\n{"text": \n', ("line 2",)),
    "not UTF-8": ("a.txt", "Größe".encode("latin-1"), ("UTF-8", "byte 2")),
    "blank": ("a.txt", "\n \n", ("holds no prompt",)),
    "ragged": ("a.csv", "id,text\n1,a,b\n", ("row 2 has 3 cells",)),
    "names only": ("a.csv", "id,text\n", ("holds no prompt",)),
    "no name": ("a.csv", "1,hello\n2,you\n", ("'1', 'hello'",)),
    "open quote": ("a.csv", 'text\n"a\n', ("no CSV",)),
    "no Parquet": ("a.parquet", "PAR1xxxxPAR1", ("no whole Parquet",)),
    "deep": ("a.json", "[" * 100_000, ("no JSON",)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_of_prompts_is_one_line(name: str, tmp_path: Path) -> None:
    file, content, parts = FILES[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileError) as caught:
        read_prompts(path)
    one_line(caught.value, *parts)


def test_files_that_are_not_there_or_hold_other_things(tmp_path: Path) -> None:
    import polars as pl

    with pytest.raises(FileError, match="no such file"):
        read_prompts(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(FileError, match="no regular file"):
        read_prompts(tmp_path / "folder.json")
    pl.DataFrame({"text": [1, 2]}).write_parquet(tmp_path / "n.parquet")
    with pytest.raises(FileError, match="Int64, no text"):
        read_prompts(tmp_path / "n.parquet")
    pl.DataFrame({"text": ["a", None]}).write_parquet(tmp_path / "m.parquet")
    with pytest.raises(FileError, match="row 2 of column 'text' is null"):
        read_prompts(tmp_path / "m.parquet")
    with pytest.raises(FileError, match=r"no field 'goal'; it has 'text'"):
        read_prompts(tmp_path / "m.parquet", field="goal")
    (tmp_path / "s.json").write_text('["a"]')
    with pytest.raises(FileError, match="no object"):
        read_prompts(tmp_path / "s.json", field="goal")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".json", ".jsonl", ".csv", ".txt", ".parquet"]))
def test_any_bytes_give_prompts_or_one_line(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(data)
    try:
        found = read_prompts(path)
    except FileError as error:
        assert "\n" not in str(error)
    else:
        assert found and all(isinstance(p, str) and p.strip() for p in found)


# -------------------------------------------------------------------------------------------------------------- inputs


def test_prompts_that_cannot_be_given_to_a_model(model: BridgeModel) -> None:
    for negative, positive, options, part in (
        ([], ["tell me"], {}, "class 'negative' has no prompts"),
        (["tell me"], [], {}, "class 'positive' has no prompts"),
        (["a"], ["a"], {"template": "chat"}, "no chat template: pass --template none"),
        (["a"], ["a"], {"template": "jinja"}, "unknown template 'jinja'"),
        (["a"], ["a"], {"system": "be kind"}, "needs a chat template"),
        (["a"], ["a", "a"], {"paired": True}, "as many prompts in both"),
        (["a"], ["a", "a " * 17], {}, "prompt 2 of class 'positive' has 17 tokens, more than 16"),
        (["a a a"], ["a"], {"max_tokens": 2}, "prompt 1 of class 'negative' has 3 tokens, more than 2"),
        (["a"], [""], {}, "prompt 1 of class 'positive' has no tokens"),
        (["a"], [3], {}, "no text but int"),
    ):
        with pytest.raises(LayersError) as caught:
            prompt_inputs(model, negative, positive, **options)  # type: ignore[arg-type]
        one_line(caught.value, part)
    with pytest.raises(LayersError, match="has no tokenizer"):
        prompt_inputs(BridgeModel.of(model.bridge), ["a"], ["a"])
    inputs = prompt_inputs(model, ["a"], ["tell me"])
    with pytest.raises(LayersError, match="have no template"):
        collect(model, inputs, positions=Positions("after_instruction"))


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{% for m in messages %}{{ raise_exception('no') }}{% endfor %}", "the chat template fails"),
        ("{{ 1 / 0 }}", "the chat template fails"),
        ("{% if", "the chat template fails"),
        ("always the same", "leaves the instruction out"),
        ("{{ messages[0]['content'].__class__.__mro__ }}", "the chat template"),
    ],
)
def test_templates_that_fail_are_one_line(template: str, part: str, good: Path) -> None:
    tokenizer = open_language_model(good).tokenizer
    tokenizer.chat_template = template
    with pytest.raises(LayersError) as caught:
        prompt_inputs(tokenizer, ["a"], ["a"])
    one_line(caught.value, part, "--template none")


class Odd(Inputs):
    """Inputs that declare one thing and give another."""

    def __init__(self, label: list[int], row: list[int], count: tuple[int, int]) -> None:
        self.label, self.row, self.sizes = label, row, count

    @property
    def names(self) -> tuple[str, str]:
        return ("a", "b")

    @property
    def count(self) -> tuple[int, int]:
        return self.sizes

    def batches(self, size: int) -> Any:
        n = len(self.label)
        batch = Batch(np.ones((n, 2)), np.ones((n, 1), dtype=np.bool_))
        yield Labelled(batch, np.array(self.label), np.array(self.row), np.arange(n))


def test_inputs_that_contradict_themselves(model: BridgeModel) -> None:
    net = ModuleModel.of(torch.nn.Sequential(torch.nn.Linear(2, 2)), sites=["0"], example=np.zeros((1, 2)))
    for label, row, count in (([0, 1], [0, 0], (1, 1)), ([0, 1], [0, 2], (1, 1)), ([0, 0], [0, 1], (1, 1)),
                              ([0], [0], (1, 0)), ([0], [0], (1, 1)), ([0, 2], [0, 1], (1, 1))):  # fmt: skip
        with pytest.raises(LayersError) as caught:
            collect(net, Odd(label, row, count))
        one_line(caught.value)
    inputs = ArrayInputs(np.zeros((3, 2)), np.ones((3, 2)))
    for options in ({"batch_size": 0}, {"n_groups": 0}, {"n_relabellings": -1}, {"sites": []}, {"sites": ["nine"]},
                    {"paired": True, "batch_size": 2}):  # fmt: skip
        with pytest.raises(LayersError) as caught:
            collect(net, inputs, **options)  # type: ignore[arg-type]
        one_line(caught.value)
    zero = np.zeros((1, 2))
    for negative, positive in ((zero[:0], zero), (zero, np.ones((1, 3))), (zero, zero + np.nan), (zero, zero == 0)):
        with pytest.raises(LayersError) as caught:
            ArrayInputs(negative, positive)
        one_line(caught.value)
    with pytest.raises(LayersError, match="batch size of at least 2"):
        collect(net, ArrayInputs(np.zeros((3, 2)), np.ones((3, 2)), paired=True), batch_size=1)


def test_activations_that_are_not_finite_name_their_place() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
    torch.nn.init.constant_(net[0].weight, 1e38)
    model = ModuleModel.of(net, sites=["0"], example=np.zeros((1, 2)))
    with pytest.raises(LayersError) as caught:
        collect(model, ArrayInputs(np.zeros((3, 2)), np.array([[1.0, 1.0], [9.0, 9.0]])))
    one_line(caught.value, "at '0'", "row 4")
