"""Reading and writing networks: against transformers' own hidden states, and against forward passes written by hand."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retarget.agents.network_for import network_for
from retarget.agents.neural import NetworkAgent
from retarget.analysis.layers.collect import collect
from retarget.analysis.layers.models import BridgeModel, ModuleModel
from retarget.analysis.layers.policies import ArrayInputs, goal_inputs, sensed
from retarget.analysis.layers.positions import Positions
from retarget.analysis.layers.prompts import prompt_inputs, read_prompts
from retarget.analysis.layers.readable import Batch, Readable, Write
from retarget.envs import make_world
from retarget.envs.control.mountain_car import MountainCar
from retarget.errors import LayersError
from retarget.io.language import check_folder, quiet

torch.set_num_threads(1)

TEXT = "<pad> <s> </s> <unk> [user] [/user] [system] tell me about the cat dog how to make a bomb cake now please"
WORDS = TEXT.split()
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %} [system] {{ m['content'] }}{% else %}"
    " [user] {{ m['content'] | trim }} [/user]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} please now{% endif %}"
)
KINDS = ("llama", "qwen2", "gemma", "gpt2")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    out = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    out.chat_template = CHAT
    return out


def _network(kind: str) -> Any:
    import transformers as hf

    small = {
        "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3,
    }  # fmt: skip
    tiny = {
        "vocab_size": len(WORDS), "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.3,
    }  # fmt: skip
    made = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**small)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**small)),
        "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**small, head_dim=8)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**tiny)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return made[kind]().eval()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Randomly initialised models, written as anyone would write them."""
    out = {}
    with quiet():
        for kind in KINDS:
            out[kind] = tmp_path_factory.mktemp("models") / kind
            _network(kind).save_pretrained(out[kind])
            _tokenizer().save_pretrained(out[kind])
    return out


@pytest.fixture(scope="session")
def opened(folders: dict[str, Path]) -> Iterator[dict[str, BridgeModel]]:
    """The same, opened while nothing can be fetched."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("something asked the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield {kind: BridgeModel.open(folder) for kind, folder in folders.items()}


def _ragged(rows: int = 5, longest: int = 9, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    lengths = np.append(rng.integers(1, longest + 1, rows - 1), longest)
    mask = np.arange(longest) < lengths[:, None]
    return Batch(np.where(mask, rng.integers(1, len(WORDS), mask.shape), 0), mask)


def _read(model: Readable, batch: Batch, hooks: list[str] | None = None, **options: Any) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}

    def reader(hook: str) -> Any:
        def take(x: torch.Tensor) -> None:
            assert hook not in out  # once each
            out[hook] = x.double().numpy().copy()

        return take

    names = [s.hook for s in model.sites] if hooks is None else hooks
    model.run(batch, read={h: reader(h) for h in names}, **options)
    return out


def _hidden(folder: Path, batch: Batch) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """transformers alone: what enters each block and leaves the last, after the final norm, and the logits."""
    from transformers import AutoModelForCausalLM

    with quiet():
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    last: list[torch.Tensor] = []
    body = net.model.layers if hasattr(net, "model") else net.transformer.h
    body[-1].register_forward_hook(lambda m, i, o: last.append(o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        out = net(
            input_ids=torch.tensor(batch.inputs),
            attention_mask=torch.tensor(batch.mask).long(),
            output_hidden_states=True,
        )
    states = [h.double().numpy() for h in out.hidden_states]
    return [*states[:-1], last[0].double().numpy()], states[-1], out.logits.double().numpy()


# --------------------------------------------------------------------------------------------------- language models


@pytest.mark.parametrize("kind", KINDS)
def test_sites_are_the_hidden_states_of_transformers(
    kind: str, folders: dict[str, Path], opened: dict[str, BridgeModel]
) -> None:
    batch, model = _ragged(), opened[kind]
    residual, normed, logits = _hidden(folders[kind], batch)
    found = _read(model, batch)
    assert [s.layer for s in model.sites] == [0, 1, 2, 3, 3]
    assert [s.stream for s in model.sites] == ["embedding", "residual", "residual", "residual", "final_norm"]
    for site, expected in zip(model.sites, [*residual, normed], strict=True):
        np.testing.assert_allclose(found[site.hook][batch.mask], expected[batch.mask], atol=2e-4, rtol=1e-4)
    mine = model.run(batch).logits
    assert mine is not None
    np.testing.assert_allclose(mine.double().numpy()[batch.mask], logits[batch.mask], atol=2e-4, rtol=1e-4)
    # before and after the final norm are different things, and are told apart
    assert np.abs(found["ln_final.hook_out"] - found["blocks.2.hook_out"])[batch.mask].max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_row(kind: str, opened: dict[str, BridgeModel]) -> None:
    batch, model = _ragged(), opened[kind]
    together = _read(model, batch)
    for i, n in enumerate(batch.lengths):
        alone = _read(model, Batch(batch.inputs[i : i + 1, :n], batch.mask[i : i + 1, :n]))
        for hook, x in alone.items():
            np.testing.assert_allclose(together[hook][i, :n], x[0], atol=1e-5, rtol=1e-4)


def test_leaving_the_pass_early_reads_the_same_and_leaves_nothing_behind(opened: dict[str, BridgeModel]) -> None:
    batch, model = _ragged(), opened["llama"]
    before = model.run(batch).logits
    early, whole = _read(model, batch, ["blocks.0.hook_out"], logits=False), _read(model, batch, ["blocks.0.hook_out"])
    np.testing.assert_array_equal(early["blocks.0.hook_out"], whole["blocks.0.hook_out"])
    assert model.run(batch, logits=False).logits is None
    assert torch.equal(before, model.run(batch).logits)


def test_every_name_of_a_place_is_taken_and_wrong_ones_are_told(opened: dict[str, BridgeModel]) -> None:
    model = opened["gpt2"]
    for name in ("blocks.1.hook_resid_pre", "blocks.1.hook_in", "blocks.0.hook_resid_post", "blocks.0.hook_out"):
        assert model.site(name) == model.sites[1]
    assert model.site("blocks.1.hook_attn_out").stream == "attention"
    assert model.site("blocks.1.mlp.hook_out").stream == "mlp"
    assert (model.site("unembed.hook_in").stream, model.site("unembed.hook_in").layer) == ("final_norm", 3)
    with pytest.raises(
        LayersError, match=r"unknown hook 'blocks.1.hook_resid_pots' \(did you mean 'blocks.1.hook_resid_post'"
    ):
        model.site("blocks.1.hook_resid_pots")
    with pytest.raises(LayersError, match="holds no vector for each token"):
        model.site("blocks.1.attn.hook_pattern")


@pytest.mark.parametrize("kind", KINDS)
def test_writes_change_what_follows_and_nothing_else(kind: str, opened: dict[str, BridgeModel]) -> None:
    batch, model, rng = _ragged(), opened[kind], np.random.default_rng(1)
    plain, logits = _read(model, batch), model.run(batch).logits
    direction = rng.normal(size=32)
    unit = direction / np.linalg.norm(direction)
    place, later = "blocks.1.hook_out", "blocks.2.hook_out"
    ablated = _read(model, batch, write=[Write(place, direction, "ablate")])
    expected = plain[place] - (plain[place] @ unit)[..., None] * unit
    np.testing.assert_allclose(ablated[place][batch.mask], expected[batch.mask], atol=1e-4)
    np.testing.assert_array_equal(ablated["blocks.0.hook_out"], plain["blocks.0.hook_out"])
    assert np.abs(ablated[later] - plain[later])[batch.mask].max() > 1e-3
    # an addition at the last token is seen there and nowhere before
    added = _read(model, batch, write=[Write(place, direction, "add", coefficient=2.0, positions="last")])
    change, last = added[place] - plain[place], (np.arange(len(batch.mask)), batch.lengths - 1)
    np.testing.assert_allclose(change[last], np.broadcast_to(2 * direction, (batch.n, 32)), atol=1e-4)
    change[last] = 0
    assert not change.any()
    # one after the other, in the order given; and afterwards nothing is left
    out = model.run(batch, write=[Write(place, direction, "add"), Write("blocks.2.hook_in", direction, "ablate")])
    assert out.fired == (1, 1)
    assert torch.equal(logits, model.run(batch).logits)


def test_hooks_are_gone_after_an_error(opened: dict[str, BridgeModel]) -> None:
    batch, model = _ragged(), opened["llama"]

    def fail(x: torch.Tensor) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        model.run(batch, read={"blocks.1.hook_out": fail}, write=[Write("blocks.0.hook_out", np.ones(32), "add")])
    assert not any(p.fwd_hooks or p._forward_hooks for p in model.bridge.hook_dict.values())


def test_what_cannot_run_is_told(opened: dict[str, BridgeModel]) -> None:
    model, one = opened["llama"], np.ones((1, 1), dtype=np.bool_)
    with pytest.raises(LayersError, match="length 3 cannot be written"):
        model.run(_ragged(), write=[Write("blocks.0.hook_out", np.ones(3), "add")])
    with pytest.raises(LayersError, match="token 99 is not in the vocabulary of 21"):
        model.run(Batch(np.array([[99]]), one))
    with pytest.raises(LayersError, match="longer than the context of 64"):
        model.run(Batch(np.ones((1, 65), dtype=np.int64), np.ones((1, 65), dtype=np.bool_)))
    with pytest.raises(LayersError, match="needs integer tokens"):
        model.run(Batch(np.ones((1, 1)), one))


def test_half_precision_reads_and_writes(folders: dict[str, Path], opened: dict[str, BridgeModel]) -> None:
    batch, model = _ragged(), BridgeModel.open(folders["llama"], dtype="bfloat16")
    exact, rough = _read(opened["llama"], batch), _read(model, batch)
    place, u = "blocks.1.hook_out", np.eye(32)[3]
    assert 0 < np.abs(rough[place] - exact[place])[batch.mask].max() < 0.05 * np.abs(exact[place]).max()
    gone = _read(model, batch, write=[Write(place, u, "ablate")])
    assert not gone[place][..., 3].any()
    np.testing.assert_array_equal(np.delete(gone[place], 3, -1), np.delete(rough[place], 3, -1))
    inputs = prompt_inputs(model, ["tell me about cat"], ["how to make a bomb"])
    moments = collect(model, inputs, n_relabellings=0).moments["blocks.1.hook_out", "-1"]
    assert moments.mean.dtype == np.float64


def test_digests_go_by_contents(folders: dict[str, Path], tmp_path: Path, opened: dict[str, BridgeModel]) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["llama"], tmp_path / "other")
    whole = check_folder(folder).digest()
    assert whole == opened["llama"].digest != opened["qwen2"].digest
    with quiet():  # the same in many files
        shards = tmp_path / "shards"
        _network("llama").save_pretrained(shards, max_shard_size="10KB")
        _tokenizer().save_pretrained(shards)
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert check_folder(shards).digest() == whole
    again = BridgeModel.open(shards)
    assert again.digest == whole
    assert torch.equal(again.run(_ragged()).logits, opened["llama"].run(_ragged()).logits)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert check_folder(folder).digest() != whole


def test_opening_prints_nothing_and_leaves_settings_alone(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging as theirs

    theirs.set_verbosity_info()
    state = torch.random.get_rng_state()
    before = (theirs.get_verbosity(), theirs.is_progress_bar_enabled(), logging.root.manager.disable)
    model = BridgeModel.open(folders["gpt2"])
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled(), logging.root.manager.disable) == before
    theirs.set_verbosity_warning()
    assert torch.equal(state, torch.random.get_rng_state())
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")
    assert model.label == "gpt2"


def test_a_native_bridge_is_read_too() -> None:
    with quiet():
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge

        config = TransformerBridgeConfig(
            d_model=8, d_head=4, n_heads=2, n_layers=2, n_ctx=9, d_vocab=len(WORDS), d_mlp=16, act_fn="gelu", seed=1
        )
        model = BridgeModel.of(TransformerBridge.boot_native(config).double(), label="native")
    batch = _ragged()
    found = _read(model, batch)
    body = model.bridge.original_model
    with torch.no_grad():  # the sum of what is embedded, by hand
        start = body.tok_embed(torch.tensor(batch.inputs)) + body.pos(torch.arange(9))
    np.testing.assert_allclose(found["blocks.0.hook_in"], start.double().numpy(), atol=1e-6)
    alone = _read(model, Batch(batch.inputs[:1, : batch.lengths[0]], batch.mask[:1, : batch.lengths[0]]))
    np.testing.assert_allclose(
        found["ln_final.hook_out"][0, : batch.lengths[0]], alone["ln_final.hook_out"][0], atol=1e-6
    )
    assert len(model.digest) == 32


# ------------------------------------------------------------------------------------------------------------- prompts


def _words(inputs: Any, row: int, end: int | None = None) -> str:
    return " ".join(WORDS[t] for t in inputs.tokens[row][:end])


def test_the_template_is_told_from_the_instruction(opened: dict[str, BridgeModel]) -> None:
    model = opened["llama"]
    inputs = prompt_inputs(model, ["tell me about the cat ", "make cake"], ["how to make a bomb"])
    assert _words(inputs, 0) == "<s> [user] tell me about the cat [/user] please now"  # one beginning, not two
    assert _words(inputs, 0, inputs.instruction[0]).endswith("the cat")
    assert _words(inputs, 1, inputs.instruction[1]) == "<s> [user] make cake"
    # an instruction that ends as the template does is still told apart from it
    twice = prompt_inputs(model, ["make cake please now"], ["tell me [/user] please now"])
    assert _words(twice, 0, twice.instruction[0]) == "<s> [user] make cake please now"
    assert _words(twice, 1, twice.instruction[1]) == "<s> [user] tell me [/user] please now"
    plain = prompt_inputs(model, ["make cake"], ["make a bomb"], template="none")
    assert _words(plain, 0) == "<s> make cake" and plain.instruction is None
    with_system = prompt_inputs(model, ["make cake"], ["make a bomb"], system="tell me")
    assert _words(with_system, 0) == "<s> [system] tell me [user] make cake [/user] please now"


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_saved_tokenizer(
    kind: str, folders: dict[str, Path], opened: dict[str, BridgeModel]
) -> None:
    from tokenizers import Tokenizer

    text = "tell me about the dog please nonsense"
    expected = Tokenizer.from_file(str(folders[kind] / "tokenizer.json")).encode(text).ids
    inputs = prompt_inputs(opened[kind], [text], ["cat"], template="none")
    assert inputs.tokens[0].tolist() == expected == [1, 7, 8, 9, 10, 12, 20, 3]


def test_positions_after_the_instruction_are_the_template(opened: dict[str, BridgeModel]) -> None:
    inputs = prompt_inputs(opened["qwen2"], ["tell me about the cat", "make cake"], ["how to make a bomb"])
    for part in inputs.batches(2):
        where = Positions("after_instruction", n=4).index(part.batch)
        words = [[WORDS[t] for t in row[w[w >= 0]]] for row, w in zip(part.batch.inputs, where, strict=True)]
        assert words == [["[/user]", "please", "now"]] * part.batch.n
        assert (where[:, 0] == -1).all()


def test_batches_hold_every_row_once_in_order_of_length(opened: dict[str, BridgeModel]) -> None:
    negative = ["tell", "tell me about the cat", "make cake now", "dog"]
    inputs = prompt_inputs(opened["llama"], negative, ["a", "a a a a a a", "a a", "a a a"], paired=True)
    for size in (2, 3, 8):
        parts = list(inputs.batches(size))
        assert sorted(np.concatenate([p.row for p in parts])) == list(range(8))
        for part in parts:
            assert part.batch.n <= size
            assert sorted(part.rank[part.label == 0]) == sorted(part.rank[part.label == 1])
            for i, row in enumerate(part.row):
                np.testing.assert_array_equal(part.batch.inputs[i][part.batch.mask[i]], inputs.tokens[row])
        assert sum(p.batch.mask.size for p in parts) <= 8 * max(map(len, inputs.tokens))


def test_the_same_prompts_from_any_kind_of_file(tmp_path: Path) -> None:
    import polars as pl

    prompts = ["Bake a cake", 'Say "no", please', "Größe?"]
    frame = pl.DataFrame({"id": [1, 2, 3], "prompt": prompts})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_csv(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"prompt": {p!r}}}'.replace("'", '"') for p in ["Bake a cake"]))
    (tmp_path / "a.txt").write_text("\n".join([*prompts, "", ""]), encoding="utf-8-sig")
    frame.write_json(tmp_path / "a.json")
    for name in ("a.parquet", "a.csv", "a.txt", "a.json"):
        assert read_prompts(tmp_path / name) == prompts
    assert read_prompts(tmp_path / "a.jsonl") == ["Bake a cake"]
    frame.rename({"prompt": "goal"}).write_csv(tmp_path / "b.csv")
    assert read_prompts(tmp_path / "b.csv", field="goal") == prompts


# ------------------------------------------------------------------------------------------------------ other networks

WORLD, CAR = make_world("FourRooms", size=7), MountainCar()
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (6, 5)},
    "cnn": {"convs": (3, 4), "hidden": 5},
    "gru": {"hidden": 6},
    "vin": {"iterations": 3, "hidden": 4},
    "transformer": {"d_model": 8},
}


def _agent(kind: str) -> NetworkAgent:
    return network_for(WORLD, WORLD.goals[0], goals=WORLD.goals[:4], kind=kind, seed=1, **SMALL[kind])


def test_an_mlp_is_read_as_it_is_computed() -> None:
    agent = _agent("mlp")
    model, rng = ModuleModel.of_agent(agent), np.random.default_rng(0)
    w = {n: np.asarray(a) for n, a in agent.weights.items()}
    x = rng.normal(size=(4, w["hidden.0.0.weight"].shape[1]))
    one = np.maximum(x @ w["hidden.0.0.weight"].T + w["hidden.0.0.bias"], 0)
    two = np.maximum(one @ w["hidden.1.0.weight"].T + w["hidden.1.0.bias"], 0)
    batch = Batch(x, np.ones((4, 1), dtype=np.bool_))
    found = _read(model, batch)
    np.testing.assert_allclose(found["hidden.0"][:, 0], one, atol=1e-12)
    np.testing.assert_allclose(found["hidden.1"][:, 0], two, atol=1e-12)
    changed = model.run(batch, write=[Write("hidden.1", np.ones(5), "add", coefficient=0.5)])
    expected = (two + 0.5) @ w["out.weight"].T + w["out.bias"]
    assert changed.logits is not None
    np.testing.assert_allclose(changed.logits.numpy()[:, 0], expected, atol=1e-12)
    # episodes are steps side by side
    steps = Batch(x.reshape(2, 2, -1), np.array([[True, True], [True, False]]))
    np.testing.assert_allclose(_read(model, steps)["hidden.1"], two.reshape(2, 2, 5), atol=1e-12)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_policies_are_run_as_they_decide(kind: str) -> None:
    agent, goal = _agent(kind), WORLD.goals[2]
    agent = agent.with_arrays(
        {n: np.full(a.array.shape, 0.1) for n, a in agent.parts.items() if n.startswith("steer:")}
    )
    states = np.arange(WORLD.model.n_states)
    inputs = sensed(agent, states, goal)
    if agent.has_memory:
        inputs = inputs[:, None]
    t = inputs.shape[1] if kind == "transformer" else 1
    batch = Batch(inputs, np.ones((len(inputs), t), dtype=np.bool_))
    model = ModuleModel.of_agent(agent)
    out = model.run(batch).logits
    assert out is not None
    aimed = agent.aimed(goal)
    with torch.no_grad():
        expected, _ = aimed.step(aimed.tensors, torch.tensor(states))
    np.testing.assert_allclose(out[:, -1].numpy(), expected.numpy(), atol=1e-9)
    for site in model.sites:  # every place can be written, and what is written matters
        direction = np.random.default_rng(3).normal(size=site.width)
        moved = model.run(batch, write=[Write(site.hook, direction, "add", coefficient=3.0)])
        assert moved.fired == (1,)
        assert not torch.equal(moved.logits, out)
    assert torch.equal(model.run(batch).logits, out)
    assert model.digest == agent.digest


def test_images_are_read_as_the_mean_over_their_cells() -> None:
    agent = _agent("cnn")
    model, x = ModuleModel.of_agent(agent), sensed(agent, np.arange(6))
    seen: list[torch.Tensor] = []
    assert [s.width for s in model.sites] == [3, 4, 5]
    handle = agent.architecture.template.get_submodule("convs.1").register_forward_hook(lambda m, i, o: seen.append(o))
    batch = Batch(x, np.ones((6, 1), dtype=np.bool_))
    found = _read(model, batch)["convs.1"]
    ablated = _read(model, batch, write=[Write("convs.1", np.eye(4)[2], "ablate")])["convs.1"]
    handle.remove()
    np.testing.assert_allclose(found[:, 0], seen[0].numpy().mean((2, 3)), atol=1e-12)
    assert not ablated[..., 2].any()
    np.testing.assert_array_equal(ablated[..., :2], found[..., :2])


def test_episodes_of_a_memory_are_read_step_by_step() -> None:
    agent = _agent("gru")
    inputs = goal_inputs(agent, WORLD, WORLD.goals[1], WORLD.goals[2], horizon=6)
    part = next(inputs.batches(8))
    found = _read(ModuleModel.of_agent(agent), part.batch)["memory"]
    w = {n: np.asarray(a) for n, a in agent.weights.items()}

    def gate(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    h = np.zeros((part.batch.n, 6))
    for t in range(part.batch.inputs.shape[1]):
        a = part.batch.inputs[:, t] @ w["gates_in.weight"].T + w["gates_in.bias"]
        b = h @ w["gates_memory.weight"].T + w["gates_memory.bias"]
        r, z = gate(a[:, :6] + b[:, :6]), gate(a[:, 6:12] + b[:, 6:12])
        h = (1 - z) * np.tanh(a[:, 12:] + r * b[:, 12:]) + z * h
        np.testing.assert_allclose(found[:, t], h, atol=1e-12)
    alone = collect(ModuleModel.of_agent(agent), inputs, positions=Positions("every"), n_relabellings=0)
    assert alone.moments["memory", "every"].count.sum() == sum(p.batch.mask.sum() for p in inputs.batches(99))


@pytest.mark.parametrize("kind", ["mlp", "transformer", "gru"])
def test_a_goal_contrast_is_paired_by_place(kind: str) -> None:
    agent = _agent(kind)
    inputs = goal_inputs(agent, WORLD, WORLD.goals[0], WORLD.goals[1])
    assert inputs.contrast == f"{WORLD.goals[1].label} - {WORLD.goals[0].label}"
    if kind != "gru":
        states = np.arange(WORLD.model.n_states)
        np.testing.assert_array_equal(inputs.negative, sensed(agent.aimed(WORLD.goals[0]), states))
        np.testing.assert_array_equal(inputs.positive, sensed(agent.aimed(WORLD.goals[1]), states))
    found = collect(ModuleModel.of_agent(agent), inputs, paired=True, batch_size=6, n_relabellings=7)
    moments = found.moments[found.sites[-1].hook, "-1"]
    assert moments.paired_count == inputs.count[0]
    np.testing.assert_allclose(moments.paired_sum / moments.paired_count, moments.difference, atol=1e-12)


def test_a_goal_contrast_where_states_are_continuous() -> None:
    for kind in ("mlp", "gru"):
        agent = network_for(CAR, CAR.goal, goals=CAR.goals, kind=kind, seed=1)
        inputs = goal_inputs(agent, CAR, CAR.goals[0], CAR.goals[1], n=50)
        assert inputs.count == (50, 50) and np.isfinite(inputs.negative).all()
        assert not np.array_equal(inputs.negative, inputs.positive)
        again = goal_inputs(agent, CAR, CAR.goals[0], CAR.goals[1], n=50)
        np.testing.assert_array_equal(inputs.negative, again.negative)
    one = network_for(CAR, CAR.goal, kind="mlp")
    with pytest.raises(LayersError, match="cannot be given the goal"):
        goal_inputs(one, CAR, CAR.goals[0], CAR.goals[1])


def test_any_module_with_names_of_its_own() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    ).eval()
    model = ModuleModel.of(net, sites=["1", "2"], example=np.zeros((1, 3)), label="mine")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch.tanh(torch.tensor(x) @ net[0].weight.T + net[0].bias).double().numpy()
    batch = Batch(x, np.ones((5, 1), dtype=np.bool_))
    np.testing.assert_allclose(_read(model, batch)["1"][:, 0], expected, atol=1e-6)
    assert model.site("3").width == 2
    assert replace(model, title="other").label == "other"
    with pytest.raises(LayersError, match="unknown submodule 'nine'"):
        ModuleModel.of(net, sites=["nine"], example=np.zeros((1, 3)))
    with pytest.raises(LayersError, match="do not fit a network that takes"):
        model.run(Batch(np.zeros((2, 7)), np.ones((2, 1), dtype=np.bool_)))
    lazy = torch.nn.Module()
    lazy.used, lazy.unused = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    lazy.forward = lambda v: lazy.used(lazy.used(v))  # type: ignore[method-assign]
    with pytest.raises(LayersError, match="never goes through 'unused'"):
        ModuleModel.of(lazy, sites=["unused"], example=np.zeros((1, 2)))
    twice = ModuleModel.of(lazy, sites=["used"], example=np.zeros((1, 2)))
    with pytest.raises(LayersError, match="more than once"):
        collect(twice, ArrayInputs(np.zeros((2, 2)), np.ones((2, 2))), n_relabellings=0)
    assert twice.run(
        Batch(np.zeros((1, 2)), np.ones((1, 1), dtype=np.bool_)), write=[Write("used", np.ones(2), "add")]
    ).fired == (2,)
