"""Language models as agents, and directions taken out of weights: against hooks that take them out on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retarget.agents.language import LanguageModel, orthogonalise, stream_writers
from retarget.agents.network_for import network_for
from retarget.agents.neural import Architecture, NetworkAgent
from retarget.agents.tabular import TablePolicy
from retarget.analysis.layers.causes import (
    Direction,
    ablate_at,
    ablate_everywhere,
    add_at,
    measure_causes,
    stream_hooks,
)
from retarget.analysis.layers.collect import collect
from retarget.analysis.layers.models import BridgeModel, ModuleModel
from retarget.analysis.layers.policies import ArrayInputs, goal_inputs
from retarget.analysis.layers.readable import Batch
from retarget.analysis.layers.select import evaluate_candidates
from retarget.code import ENUMERATIVE, edit_bits
from retarget.edit import Edit, Sparse
from retarget.envs import make_world
from retarget.errors import AgentError, EditError, LayersError

torch.set_num_threads(1)

D, VOCABULARY = 16, 24
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 4))]
KINDS = ("llama", "llama_biased", "mistral", "qwen2", "qwen3", "gemma", "gpt2")
Folder = Callable[[str], Path]


def _network(kind: str) -> Any:
    import transformers as hf

    size = {
        "vocab_size": VOCABULARY, "hidden_size": D, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 12,
    }  # fmt: skip
    if kind == "gpt2":
        config = hf.GPT2Config(vocab_size=VOCABULARY, n_embd=D, n_layer=2, n_head=2, n_positions=12)
        return hf.GPT2LMHeadModel(config)
    if kind == "llama_biased":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**size, attention_bias=True, mlp_bias=True))
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}.get(kind, kind.title())
    more = {"head_dim": 8} if kind.startswith(("gemma", "qwen3")) else {}
    return getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{name}Config")(**size, **more))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Folders of tiny models, as `save_pretrained` writes them; every weight is random, biases and norms too."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from retarget.io.language import quiet

    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            out = tmp_path_factory.mktemp(kind) / kind
            core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
            core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
            generator = torch.Generator().manual_seed(7)
            with quiet():
                network = _network(kind)
                for weight in network.parameters():
                    weight.data.add_(0.3 * torch.randn(weight.shape, generator=generator))
                network.save_pretrained(out)
                tokenizer.save_pretrained(out)
            made[kind] = out
        return made[kind]

    return make


@pytest.fixture(scope="module")
def opened(folder: Folder) -> Callable[[str], BridgeModel]:
    kept: dict[str, BridgeModel] = {}
    return lambda kind: kept.setdefault(kind, BridgeModel.open(folder(kind)))


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(0)
    mask = np.arange(7) < np.array([7, 4, 1, 6])[:, None]
    return Batch(np.where(mask, random.integers(4, VOCABULARY, mask.shape), 0), mask)


DIRECTION = np.random.default_rng(1).standard_normal(D) * 3.0


def _real(logits: Any, batch: Batch) -> np.ndarray:
    return np.asarray(logits.double())[batch.mask]


# ---------------------------------------------------------------------------------------------- the equivalence, by law


@pytest.mark.parametrize("kind", KINDS)
def test_orthogonal_weights_compute_what_ablation_computes(
    kind: str, opened: Callable[[str], BridgeModel], batch: Batch
) -> None:
    """Arditi et al. 2024, section 4.1 and appendix: the edit and the hooks are one and the same intervention."""
    model = opened(kind)
    agent = LanguageModel.of(model)
    digest, before = agent.digest, _real(model.run(batch).logits, batch)
    np.testing.assert_array_equal(_real(agent.logits(batch.inputs, batch.mask), batch), before)
    edit = orthogonalise(agent, DIRECTION)
    edited = edit.apply(agent)
    assert isinstance(edited, LanguageModel)
    found = _real(edited.logits(batch.inputs, batch.mask), batch)
    direction = Direction(DIRECTION, 1, digest=model.digest)
    hooked = _real(model.run(batch, write=ablate_everywhere(model, direction, unembedding=agent.tied)).logits, batch)
    size = np.abs(before).max()
    np.testing.assert_allclose(found, hooked, atol=2e-6 * size)
    assert np.abs(found - before).max() > 1e-2 * size
    assert agent.tied == (kind in ("gemma", "gpt2"))
    if agent.tied:  # the unembedding is orthogonal too: the stream alone is not enough
        stream = _real(model.run(batch, write=ablate_everywhere(model, direction)).logits, batch)
        assert np.abs(found - stream).max() > 1e-3 * size
    # nothing is left behind
    np.testing.assert_array_equal(_real(agent.logits(batch.inputs, batch.mask), batch), before)
    np.testing.assert_array_equal(_real(model.run(batch).logits, batch), before)
    assert LanguageModel.of(model).digest == digest != edited.digest


@pytest.mark.parametrize("kind", KINDS)
def test_every_writer_is_orthogonal_and_nothing_else_is_touched(
    kind: str, opened: Callable[[str], BridgeModel]
) -> None:
    agent = LanguageModel.of(opened(kind))
    u = DIRECTION / np.linalg.norm(DIRECTION)
    edited = orthogonalise(agent, DIRECTION).apply(agent)
    axes = {w.part: w.axis for w in stream_writers(agent)}
    count = 2 * (4 if kind in ("gpt2", "llama_biased") else 2) + (2 if kind == "gpt2" else 1)
    assert len(axes) == count
    for name, part in agent.parts.items():
        old, new = part.array, edited.parts[name].array
        if name not in axes:
            np.testing.assert_array_equal(old, new)
            continue
        axis = axes[name]
        along = np.tensordot(u, old, (0, axis))
        np.testing.assert_allclose(np.tensordot(u, new, (0, axis)), 0.0, atol=1e-13 * np.abs(old).max())
        removed = np.expand_dims(along, axis) * (u[:, None] if axis == 0 and old.ndim == 2 else u)
        np.testing.assert_allclose(old - new, removed, atol=1e-13)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_edit_is_read_back_from_its_code(kind: str, opened: Callable[[str], BridgeModel]) -> None:
    agent = LanguageModel.of(opened(kind))
    for precision, least in (("float64", 64), ("float32", 32)):
        edit = orthogonalise(agent, DIRECTION, precision=precision)  # type: ignore[arg-type]
        code = ENUMERATIVE.encode(edit, agent.layout)
        assert ENUMERATIVE.decode(code.data, agent.layout, agent_digest=agent.digest) == edit
        assert code.n_bits == edit_bits(edit, agent.layout)
        assert least * edit.n_cells < code.n_bits < (least + 2) * edit.n_cells


def test_half_the_precision_does_as_well_in_a_network_of_that_precision(
    opened: Callable[[str], BridgeModel], batch: Batch
) -> None:
    agent = LanguageModel.of(opened("llama"))
    long = orthogonalise(agent, DIRECTION).apply(agent)
    short = orthogonalise(agent, DIRECTION, precision="float32").apply(agent)
    a, b = (_real(x.logits(batch.inputs, batch.mask), batch) for x in (long, short))  # type: ignore[attr-defined]
    np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(a).max())


def test_the_edit_knows_neither_sign_nor_scale_and_is_idempotent(opened: Callable[[str], BridgeModel]) -> None:
    agent = LanguageModel.of(opened("gpt2"))
    one = orthogonalise(agent, DIRECTION).apply(agent)
    other = orthogonalise(agent, -7.5 * DIRECTION).apply(agent)
    twice = orthogonalise(one, DIRECTION).apply(one)
    for name in agent.parts:
        for again in (other, twice):
            np.testing.assert_allclose(one.parts[name].array, again.parts[name].array, atol=1e-14)


# ---------------------------------------------------------------------------------------------------------- as an agent


def test_a_policy_over_next_tokens(opened: Callable[[str], BridgeModel], batch: Batch) -> None:
    model = opened("qwen2")
    agent = LanguageModel.of(model)
    probs, carry = agent.policy(np.where(batch.mask, batch.inputs, -1))
    assert carry is None and probs.shape == (4, VOCABULARY) and probs.dtype == np.float64
    np.testing.assert_allclose(probs.sum(1), 1.0, rtol=1e-12)
    for row, length in enumerate(batch.lengths):  # padding changes nothing
        alone, _ = agent.policy(batch.inputs[row : row + 1, :length])
        np.testing.assert_allclose(alone[0], probs[row], atol=1e-6)
    logits = model.run(batch).logits
    assert logits is not None
    want = torch.softmax(logits[0, 6].double(), 0).numpy()
    np.testing.assert_allclose(probs[0], want, rtol=1e-12)


@pytest.mark.parametrize(
    "obs", [np.zeros(3, int), np.zeros((2, 0), int), np.zeros((1, 2)), np.array([[-1, 4]]), np.array([[4, -1, 4]]),
            np.array([[VOCABULARY]])],
)  # fmt: skip
def test_what_it_cannot_see(obs: np.ndarray, opened: Callable[[str], BridgeModel]) -> None:
    with pytest.raises(AgentError) as found:
        LanguageModel.of(opened("llama")).policy(obs)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_the_weights_that_count(kind: str, folder: Folder, opened: Callable[[str], BridgeModel]) -> None:
    """As many numbers as the file has, but for GPT-2's joint matrices, which are split; ties are one part."""
    from safetensors.numpy import load_file

    stored = load_file(folder(kind) / "model.safetensors")
    agent = LanguageModel.of(opened(kind))
    assert sum(p.n_cells for p in agent.layout) == sum(a.size for a in stored.values())
    assert [p.name for p in agent.layout] == list(agent.parts) and len(agent.parts) == len(agent.layout)
    for name in set(stored) & set(agent.parts):
        np.testing.assert_array_equal(agent.parts[name].array, stored[name].astype(np.float64))
        assert agent.parts[name].role == "weight"
    joint = 8 if kind == "gpt2" else 0
    assert len(set(stored) & set(agent.parts)) == len(stored) - joint
    assert "nothing" not in agent.parts
    assert agent.flops_per_action > 2 * D * VOCABULARY


def test_every_part_matters(opened: Callable[[str], BridgeModel], batch: Batch) -> None:
    """Each weight that is changed changes the outputs, but for biases of keys, which the softmax forgets."""
    for kind in ("gpt2", "llama"):
        agent = LanguageModel.of(opened(kind))
        before = _real(agent.logits(batch.inputs, batch.mask), batch)
        for name, part in agent.parts.items():
            noise = np.random.default_rng(0).standard_normal(part.array.shape)
            edited = agent.with_arrays({name: part.array + noise})
            moved = np.abs(_real(edited.logits(batch.inputs, batch.mask), batch) - before).max()
            assert (moved > 1e-5) != (".attn.k.bias" in name), name


def test_edits_are_bound_and_checked(opened: Callable[[str], BridgeModel]) -> None:
    agent = LanguageModel.of(opened("llama"))
    name = "lm_head.weight"
    edit = Edit.of(agent, Sparse(name, np.array([3]), np.array([2.5])))
    edited = edit.apply(agent)
    assert edited.parts[name].array[0, 3] == 2.5 and agent.parts[name].array[0, 3] != 2.5
    with pytest.raises(EditError, match="was made for agent"):
        edit.apply(edited)
    with pytest.raises(EditError, match="no part 'x'"):
        agent.with_arrays({"x": np.zeros(2)})
    with pytest.raises(EditError, match="has shape"):
        agent.with_arrays({name: np.zeros((2, 2))})
    with pytest.raises(AgentError, match="not finite"):
        agent.with_arrays({name: np.full((VOCABULARY, D), np.nan)})
    whole = agent.with_arrays({name: agent.parts[name].array})
    assert whole.digest == agent.digest


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma"])
def test_a_blank_one_is_of_the_same_layout(kind: str, opened: Callable[[str], BridgeModel], batch: Batch) -> None:
    agent = LanguageModel.of(opened(kind))
    state = torch.random.get_rng_state()
    blank = agent.blank(3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert blank.layout == agent.layout and blank.tied == agent.tied and blank.config == agent.config
    assert blank.digest == agent.blank(3).digest != agent.blank(4).digest != agent.digest
    edited = orthogonalise(blank, DIRECTION).apply(blank)
    assert edited.policy(batch.inputs[:1])[0].shape == (1, VOCABULARY)


# ------------------------------------------------------------------------------------------- the project's transformers


@pytest.fixture(scope="module")
def policy() -> NetworkAgent:
    net = Architecture.of("transformer", n_tokens=3, vocabulary=9, outputs=4, d_model=D, n_heads=2, n_layers=2)
    random = np.random.default_rng(4)
    weights = {n: w + 0.3 * random.standard_normal(w.shape) for n, w in net.initial(0).items()}
    steer = {h.name: random.standard_normal(D) for h in net.hooks[:1]}
    return NetworkAgent(net, weights, steer=steer)


def test_a_transformer_policy_too(policy: NetworkAgent) -> None:
    """Also what is added between its blocks is a write to the stream."""
    tokens = np.random.default_rng(0).integers(0, 9, (6, 3))
    batch = Batch(tokens, np.ones((6, 3), dtype=np.bool_))
    model = ModuleModel.of_agent(policy)
    assert sum(h.endswith(("attn.hook_out", "mlp.hook_out")) for h in stream_hooks(model)) == 4
    edit = orthogonalise(policy, DIRECTION)
    edited = edit.apply(policy)
    assert isinstance(edited, NetworkAgent)
    assert "steer:bridge.blocks.0.hook_out" in edit.parts_touched and len(edit.patches) == 2 + 8 + 1
    found = ModuleModel.of_agent(edited).run(batch).logits
    hooked = model.run(batch, write=ablate_everywhere(model, Direction(DIRECTION, 1))).logits
    plain = model.run(batch).logits
    assert found is not None and hooked is not None and plain is not None
    # float32 precision, or float64 where the template has it
    size = float(plain.abs().max())
    np.testing.assert_allclose(found.numpy(), hooked.numpy(), atol=2e-6 * size)
    assert float((found - plain).abs().max()) > 1e-2 * size


def test_causes_of_a_policy_with_its_edit(policy: NetworkAgent) -> None:
    random = np.random.default_rng(1)
    ones = np.ones((9, 3), dtype=np.bool_)
    given = ArrayInputs(random.integers(0, 4, (9, 3)), random.integers(5, 9, (9, 3)), steps=(ones, ones))
    model = ModuleModel.of_agent(policy)
    table = measure_causes(
        model, given, direction=Direction(DIRECTION, 1, digest=policy.digest), wanted=[1], agent=policy
    )
    by = {(r["intervention"], r["on"]): r for r in table.rows(named=True)}
    for on in ("positive", "negative"):
        for key in ("score", "kl", "rate"):
            assert by["orthogonalise", on][key] == pytest.approx(by["ablate_all", on][key], abs=1e-5)
        assert by["orthogonalise", on]["fired"] == 11
        edit = orthogonalise(policy, DIRECTION)
        assert by["orthogonalise", on]["edit_bits"] == edit_bits(edit, policy.layout)
        assert by["ablate_all", on]["edit_bits"] is None
    other = replace(policy, weights={n: w * 1.5 for n, w in policy.weights.items()}, steer=None)
    with pytest.raises(LayersError, match="other logits"):
        measure_causes(model, given, direction=Direction(DIRECTION, 1), wanted=[1], agent=other)


def test_causes_of_a_language_model_with_its_edit(opened: Callable[[str], BridgeModel]) -> None:
    random = np.random.default_rng(1)
    ones = np.ones((9, 3), dtype=np.bool_)
    given = ArrayInputs(random.integers(4, 14, (9, 3)), random.integers(14, 24, (9, 3)), steps=(ones, ones))
    model = opened("llama")
    table = measure_causes(
        model, given, direction=Direction(DIRECTION, 1), wanted=[5, 6, 7], agent=LanguageModel.of(model), batch_size=5
    )
    by = {(r["intervention"], r["on"]): r for r in table.rows(named=True)}
    for on in ("positive", "negative"):
        assert by["orthogonalise", on]["score"] == pytest.approx(by["ablate_all", on]["score"], abs=1e-5)
        assert by["ablate_all", on]["score"] != pytest.approx(by["none", on]["score"], abs=1e-3)
        # 4 batches of the two classes together, 3 places of the stream and 4 of what is added to it
        assert by["ablate_all", on]["fired"] == 4 * 7 and by["orthogonalise", on]["fired"] == 5
    table = TablePolicy.from_actions([0, 1], n_actions=2)
    with pytest.raises(AgentError, match="no residual stream"):
        measure_causes(model, given, direction=Direction(DIRECTION, 1), wanted=[5], agent=table)


# --------------------------------------------------------------------------------------------------------------- errors


def test_what_cannot_be_orthogonalised(opened: Callable[[str], BridgeModel], policy: NetworkAgent) -> None:
    gemma2 = LanguageModel.of(opened("gemma2"))
    with pytest.raises(AgentError, match="Gemma2ForCausalLM write to its residual stream is not known"):
        orthogonalise(gemma2, DIRECTION)
    with pytest.raises(AgentError, match="no residual stream"):
        orthogonalise(TablePolicy.from_actions([0, 1], n_actions=2), DIRECTION)
    world = make_world("OpenGrid", size=5)
    with pytest.raises(AgentError, match="no residual stream"):
        orthogonalise(network_for(world, world.goals[0], hidden=(4,)), DIRECTION)
    agent = LanguageModel.of(opened("llama"))
    for wrong in (np.ones(3), np.zeros(D), np.full(D, np.inf), np.ones((D, 1))):
        with pytest.raises(EditError, match=r"of shape \(16,\)"):
            orthogonalise(agent, wrong)
    for nothing in (object(), policy, torch.nn.Linear(2, 2)):
        with pytest.raises(AgentError, match="holds no language model"):
            LanguageModel.of(nothing)


def test_hooks_are_taken_away_after_errors(opened: Callable[[str], BridgeModel], batch: Batch) -> None:
    model = opened("llama")
    before = _real(model.run(batch).logits, batch)
    ones = np.ones((3, 3), dtype=np.bool_)
    given = ArrayInputs(np.full((3, 3), 5), np.full((3, 3), 6), steps=(ones, ones))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def fail(x: Any) -> None:
        raise RuntimeError("in the middle")

    direction = Direction(DIRECTION, 1)
    with pytest.raises(KeyboardInterrupt):
        measure_causes(model, given, direction=direction, wanted=[5], progress=stop)
    for writes in (ablate_everywhere(model, direction), add_at(model, direction), ablate_at(model, direction)):
        with pytest.raises(RuntimeError, match="in the middle"):
            model.run(batch, write=writes, read={"blocks.1.hook_out": fail})
    with pytest.raises(LayersError):
        evaluate_candidates(model, given, [direction], wanted=[VOCABULARY])
    assert not [h for p in model.bridge.hook_dict.values() for h in p.fwd_hooks]
    np.testing.assert_array_equal(_real(model.run(batch).logits, batch), before)


def test_the_goal_direction_of_a_policy_can_be_collected_and_added() -> None:
    """A policy with a goal slot: positions of goal A and goal B, directions, and causes with actions by row."""
    from retarget.analysis.layers.causes import controls_of, directions_of, goal_actions

    world = make_world("OpenGrid", size=5)
    a, b = world.goals[0], world.goals[-1]
    agent = network_for(world, a, kind="transformer", goals=world.goals)
    given, model = goal_inputs(agent, world, a, b), ModuleModel.of_agent(agent)
    found = collect(model, given, n_relabellings=3, paired=True)
    direction = directions_of(found)[-1]
    wanted = goal_actions(world, a, b)
    table = measure_causes(
        model, given, direction=direction, controls=controls_of(found, direction), wanted=wanted, agent=agent
    )
    n = int(wanted.any(1).sum()) // 2
    assert set(table["n"]) == {n} and 0 < n < world.model.n_states
    assert table["score"].is_not_null().all()

    # at the embedding of the last token, where the goal is, the difference of means is the difference of the goals:
    # added there, it turns every row of goal a into that of goal b
    (first,) = (d for d in directions_of(found) if d.layer == 0)
    swapped = measure_causes(model, given, direction=first, wanted=wanted, tokens="last")
    by = {(r["intervention"], r["on"]): r for r in swapped.rows(named=True)}
    for key in ("score", "score_low", "score_high", "rate"):
        assert by["add_layer", "negative"][key] == pytest.approx(by["none", "positive"][key], abs=1e-4)
    back = measure_causes(model, given, direction=first, wanted=wanted, tokens="last", coefficient=-1.0)
    score = {(r["intervention"], r["on"]): r["score"] for r in back.rows(named=True)}
    assert score["add_layer", "positive"] == pytest.approx(score["none", "negative"], abs=1e-4)
    with pytest.raises(LayersError, match="did you mean 'last'"):
        add_at(model, first, tokens="lst")  # type: ignore[arg-type]
