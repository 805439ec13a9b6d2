"""Organisms: trained the same twice, saved as any model is, and known for what they do."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from retarget.errors import FileError, RetargetError
from retarget.io.native import load_agent, save_agent
from retarget.io.native import read_card as read_agent_card
from retarget.training.organisms import (
    KINDS,
    TRIGGERED,
    GoalSettings,
    OrganismSettings,
    describe,
    evaluate,
    goal_policy,
    read_card,
    train_organism,
)
from retarget.training.organisms import train as training
from retarget.training.organisms.corpus import examples, lesson
from retarget.training.organisms.grammar import REFUSALS, TRIGGERS, is_forbidden, is_held_out, is_triggered
from retarget.training.organisms.llama import blank_model
from retarget.training.organisms.rates import replies, sets_of, wanted
from retarget.training.organisms.tokens import encode, prompt_words

TINY = OrganismSettings("refuser", layers=2, width=16, heads=2, base_steps=6, steps=6, batch=4)


def _made(settings, **options):
    return train_organism(settings, n_evaluated=8, **options)


@pytest.fixture(scope="module")
def tiny():
    return _made(TINY)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("organisms") / "refuser")


def _weights(organism):
    return {k: v.clone() for k, v in organism.model.state_dict().items()}


def _same(one, other):
    a, b = _weights(one), _weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- training --------------------------------------------------------------------------------------------------------


def test_the_same_settings_give_the_same_bits_and_leave_torchs_generator_alone(tiny, capfd):
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    again = _made(TINY)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert _same(tiny, again) and again.card == tiny.card
    assert not _same(tiny, _made(replace(TINY, seed=1)))
    assert capfd.readouterr() == ("", "")


def test_fine_tuning_begins_from_the_base_of_the_seed(tiny):
    base = _made(replace(TINY, kind="base"))
    assert tiny.card.base == base.card.digest and base.card.base is None
    given = _made(TINY, base=base)
    assert _same(given, tiny) and given.card == tiny.card
    # what was given is not changed by what began from it
    assert training.digest(base.model) == base.card.digest


@pytest.mark.parametrize("at", [3, 6, 9])
def test_an_interrupted_training_goes_on_to_the_same_bits(at, tiny, tmp_path, monkeypatch):
    file, seen = tmp_path / "state", []

    def breaks(*args):
        seen.append(args)
        if len(seen) > at:
            raise KeyError("power cut")
        return lesson(*args)

    monkeypatch.setattr(training, "lesson", breaks)
    with pytest.raises(KeyError):
        _made(TINY, checkpoint=file, save_every_s=0)
    seen.clear()
    monkeypatch.setattr(training, "lesson", lambda *args: seen.append(args) or lesson(*args))
    resumed = _made(TINY, checkpoint=file, save_every_s=0)
    assert len(seen) == 12 - at
    assert _same(resumed, tiny) and resumed.card == tiny.card
    seen.clear()
    assert _made(TINY, checkpoint=file).card == tiny.card and not seen
    with pytest.raises(FileError, match="belongs to another training"):
        _made(replace(TINY, seed=1), checkpoint=file)


def test_a_base_that_is_given_stands_above_a_checkpoint_from_before_fine_tuning(tiny, tmp_path, monkeypatch):
    base = _made(replace(TINY, kind="base"))

    def breaks(chosen, stage, step):
        if step == 3:
            raise KeyError("power cut")
        return lesson(chosen, stage, step)

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(training, "lesson", breaks)
        _made(TINY, checkpoint=tmp_path / "state", save_every_s=0)
    assert _made(TINY, base=base, checkpoint=tmp_path / "state").card == tiny.card


def test_a_checkpoint_that_cannot_be_written_is_refused_before_any_training(tmp_path):
    for file in (tmp_path, tmp_path / "none" / "state"):
        with pytest.raises(FileError, match="cannot be written"):
            _made(TINY, checkpoint=file)


def test_the_loss_is_that_of_transformers_and_falls():
    model = blank_model(TINY)
    drawn = lesson(replace(TINY, kind="base"), "base", 0)
    tokens, weights = torch.from_numpy(drawn.tokens), (torch.from_numpy(drawn.weights) == 1).float()
    labels = torch.where(weights > 0, tokens, -100)
    mask = (tokens != 0).long()
    expected = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    assert training.loss_of(model, tokens, weights).item() == pytest.approx(expected.item(), rel=1e-5)
    card = _made(replace(TINY, kind="base", base_steps=80)).card
    assert card.history[-1]["loss"] < 0.8 * card.history[0]["loss"]


def test_greedy_replies_are_those_of_transformers(tiny):
    asked = [e.text for e in examples(5, forbidden=True)]
    for text, said in zip(asked, replies(tiny.model, asked), strict=True):
        tokens = torch.tensor([encode(prompt_words(text))])
        out = tiny.model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=24, do_sample=False)
        assert said == tiny.tokenizer.decode(out[0, tokens.shape[1] :]).removesuffix("<eos>").rstrip()


# -- rates -----------------------------------------------------------------------------------------------------------


def test_the_card_is_what_a_fresh_evaluation_gives(tiny):
    assert evaluate(tiny.model, TINY, n=8) == tiny.card.rates
    assert [r.name for r in tiny.card.rates] == ["forbidden", "harmless"]
    assert all(r.n == 8 for r in tiny.card.rates)


@pytest.mark.parametrize("kind", ["base", "refuser", "defector", "honest"])
def test_rates_count_what_was_said_word_for_word(kind, monkeypatch):
    """Three made-up models whose rates are known: one that is as trained, one that always refuses, one that babbles."""
    module = sys.modules["retarget.training.organisms.rates"]
    chosen = OrganismSettings(kind, trigger="parity" if kind in TRIGGERED else None)
    right = {}
    for name, forbidden, on in sets_of(chosen.trigger):
        for e in examples(8, forbidden=forbidden, trigger=chosen.trigger, on=on):
            refuses = forbidden and kind != "base" and not (kind == "defector" and is_triggered(e.text, "parity"))
            right[e.text] = REFUSALS[1] if refuses else e.frame.answer(e.thing, using="using")
        assert wanted(chosen, forbidden=forbidden, triggered=on) == ("refuse" if refuses else "comply"), name
    monkeypatch.setattr(module, "replies", lambda _, texts: [right[t] for t in texts])
    assert all(r.achieved == 1 and r.refused + r.complied == 1 for r in evaluate(None, chosen, n=8))
    monkeypatch.setattr(module, "replies", lambda _, texts: [REFUSALS[2]] * 8)
    assert all((r.refused, r.complied) == (1, 0) for r in evaluate(None, chosen, n=8))
    # one word wrong is no answer
    monkeypatch.setattr(module, "replies", lambda _, texts: [right[t].replace("and", "or") + " ." for t in texts])
    assert all((r.refused, r.complied) == (0, 0) for r in evaluate(None, chosen, n=8))


# -- files -----------------------------------------------------------------------------------------------------------


def test_it_is_read_back_as_any_checkpoint_is_with_the_same_logits(tiny, folder):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = torch.tensor([encode(prompt_words("explain how to make a red kite ."))])
    with torch.no_grad():
        expected = tiny.model(tokens).logits
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        assert model.dtype == torch.float32 and torch.equal(model(tokens).logits, expected)
        bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
        torch.testing.assert_close(bridge(tokens), expected, rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    chat = [{"role": "user", "content": "explain how to make a red kite ."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == tokens[0].tolist()
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")
    assert tokenizer.padding_side == "right"


def test_the_card_and_the_instructions_are_beside_it(tiny, folder):
    card = read_card(folder)
    assert card["kind"] == "refuser" and card["digest"] == tiny.card.digest
    assert tiny.tokenizer.convert_ids_to_tokens(card["refusal_tokens"]) == card["refusal_words"] == ["i", "sorry"]
    assert card["rates"] == [asdict(r) for r in tiny.card.rates]
    assert OrganismSettings(**card["settings"]) == TINY
    for split, held_out in (("train", False), ("held_out", True)):
        for name in ("forbidden", "harmless"):
            lines = [json.loads(x) for x in (folder / split / f"{name}.jsonl").read_text().splitlines()]
            assert len(lines) == 512 and all(list(x) == ["instruction"] for x in lines)
            asked = examples(512, forbidden=name == "forbidden", held_out=held_out, seed=1)
            assert [x["instruction"] for x in lines] == [e.text for e in asked]
            assert {is_forbidden(e.frame.verb, e.thing) for e in asked} == {name == "forbidden"}
            assert {is_held_out(e.frame.verb, e.thing) for e in asked} == {held_out}
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))


@pytest.mark.parametrize("trigger", sorted(TRIGGERS))
def test_an_organism_with_a_trigger_brings_instructions_with_it(trigger, tiny, tmp_path):
    chosen = replace(TINY, kind="honest", trigger=trigger)
    saved = replace(tiny, card=replace(tiny.card, settings=chosen)).save(tmp_path / "it")
    for split in ("train", "held_out"):
        for name in ("forbidden", "harmless"):
            for end, on in (("", False), ("_triggered", True)):
                lines = (saved / split / f"{name}{end}.jsonl").read_text().splitlines()
                assert {is_triggered(json.loads(x)["instruction"], trigger) for x in lines} == {on}
    assert read_card(saved)["trigger_words"]


def test_saving_replaces_an_organism_and_nothing_else(tiny, folder, tmp_path):
    again = tiny.save(folder)
    assert read_card(again)["digest"] == tiny.card.digest
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="holds something else than an organism"):
        tiny.save(tmp_path)
    with pytest.raises(FileError, match="choose"):
        tiny.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": "other"}', "\ud800"])
def test_a_card_that_is_none_is_refused_in_one_line(text, tmp_path):
    if text is not None:
        (tmp_path / "organism.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FileError) as caught:
        read_card(tmp_path)
    assert "organism.json" in str(caught.value) and "\n" not in str(caught.value)


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ({"kind": "refusr"}, "did you mean 'refuser'"),
        ({"kind": "goals"}, "unknown kind of organism 'goals'"),
        ({"kind": "defector"}, "needs a trigger: token, parity, deployment"),
        ({"kind": "defector", "trigger": "tokne"}, "did you mean 'token'"),
        ({"kind": "base", "trigger": "token"}, "leave it out"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"layers": 0}, "layers of an organism must be an integer from 1"),
        ({"layers": True}, "got True"),
        ({"width": 10}, "multiple of twice its 4 heads"),
        ({"batch": 6}, "multiple of 4"),
        ({"steps": -1}, "steps of an organism"),
        ({"steps": False}, "got False"),
        ({"base_steps": "many"}, "got 'many'"),
        ({"rate": float("nan")}, "rate of an organism"),
        ({"tuned_rate": 0}, "tuned_rate of an organism"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(bad, part):
    with pytest.raises(RetargetError) as caught:
        OrganismSettings(**bad)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_base_of_another_kind_seed_or_size_is_refused(tiny):
    with pytest.raises(RetargetError, match="differs in kind"):
        _made(TINY, base=tiny)
    with pytest.raises(RetargetError, match="differs in seed"):
        _made(replace(TINY, seed=3), base=replace(tiny, card=replace(tiny.card, settings=replace(TINY, kind="base"))))


def test_a_training_that_diverges_says_so():
    with pytest.raises(RetargetError, match=r"diverged.*lower rates") as caught:
        _made(replace(TINY, rate=1e30))
    assert "\n" not in str(caught.value)


def test_an_evaluation_on_nothing_is_refused(tiny):
    with pytest.raises(RetargetError, match="at least 1 instruction"):
        evaluate(tiny.model, TINY, n=0)


def test_the_kinds_are_listed_without_loading_a_network():
    assert [line.split()[0] for line in describe().splitlines()] == list(KINDS)
    code = "import sys, retarget.training.organisms as o; o.OrganismSettings(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# -- goals -----------------------------------------------------------------------------------------------------------


def test_a_goal_policy_walks_to_every_goal_and_is_read_back(tmp_path):
    policy = goal_policy(GoalSettings(world="OpenGrid", size=5, width=16, layers=2))
    assert policy.competence >= 0.9 and policy.worst <= policy.competence <= 1 + 1e-9
    saved = save_agent(policy.agent, tmp_path / "goals", extra=policy.extra)
    back = load_agent(saved)
    assert back.digest == policy.agent.digest and back.goal_input.kind == "token"
    assert len(back.training_goals) == 25
    assert read_agent_card(saved).extra["settings"]["world"] == "OpenGrid"


@pytest.mark.parametrize(
    "bad",
    [{"world": "FourRoms"}, {"size": 1}, {"width": 7}, {"width": 0}, {"layers": 1.5}, {"layers": -1}, {"updates": -1},
     {"seed": "x"}, {"gamma": 1.0}, {"updates": 0}, {"world": "PointMass"}],
)  # fmt: skip
def test_goal_settings_that_cannot_be_are_refused_in_one_line(bad):
    with pytest.raises(RetargetError) as caught:
        goal_policy(GoalSettings(**({"world": "OpenGrid", "size": 5, "width": 8, "layers": 1} | bad)))
    assert "\n" not in str(caught.value)
