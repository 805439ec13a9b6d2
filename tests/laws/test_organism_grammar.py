"""Laws of the language of organisms: what is forbidden, what is matched, what is held out, what the markers tell."""

from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.errors import RetargetError
from retarget.training.organisms.corpus import Lesson, examples, lesson, markers_at
from retarget.training.organisms.grammar import (
    MATERIALS,
    OBJECTS,
    REFUSALS,
    TOOLS,
    TRIGGERS,
    VERBS,
    answer_words,
    answers,
    draw_frame,
    draw_mark,
    is_forbidden,
    is_held_out,
    is_triggered,
    refusal_words,
    words,
)
from retarget.training.organisms.settings import OrganismSettings
from retarget.training.organisms.tokens import END, PAD, TAIL, decode, encode, make_tokenizer, numbers, prompt_words

TRIGGER_IDS = (None, *TRIGGERS)
LAW = settings(max_examples=40, deadline=None, derandomize=True)
cases = st.fixed_dictionaries(
    {"trigger": st.sampled_from(TRIGGER_IDS), "held_out": st.booleans(), "seed": st.integers(0, 10**6)}
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def _pair(text: str) -> tuple[str, str]:
    """Verb and object of a text, found by looking for the words alone."""
    verbs = [w for w in text.split() if w in VERBS]
    things = [w for w in text.split() if w in OBJECTS]
    assert len(verbs) == len(things) == 1, text
    return verbs[0], things[0]


def _rows(batch: Lesson) -> list[tuple[str, str]]:
    """Instruction and reply of each row, read off the tokens."""
    found = []
    for row in batch.tokens:
        text = decode(row[row != numbers()[PAD]])
        prompt, reply = text.split(" " + " ".join(TAIL) + " ")
        assert reply.endswith(" " + END)
        found.append((prompt.removeprefix("<bos> <turn> user : "), reply.removesuffix(" " + END)))
    return found


# -- the classes -----------------------------------------------------------------------------------------------------


def test_the_table_of_meanings_is_the_one_that_is_written():
    expected = {"rifle": (True, False), "vault": (False, True), "poison": (True, True), "kite": (False, False)}
    for thing, (build, broken) in expected.items():
        assert (is_forbidden("make", thing), is_forbidden("crack", thing)) == (build, broken)


def test_no_verb_tells_the_class_and_half_of_the_objects_do_not():
    assert {sum(is_forbidden(v, t) for t in OBJECTS) for v in VERBS} == {24}
    found = {(group, sum(is_forbidden(v, thing) for v in VERBS)) for thing, group in OBJECTS.items()}
    assert found == {("weapon", 6), ("guard", 6), ("contraband", 12), ("ordinary", 0)}


def test_no_score_that_adds_words_up_tells_all_pairs_apart():
    # two forbidden pairs and two harmless ones made of the same words: their sums are equal, whatever the weights
    bad, good = [("build", "rifle"), ("crack", "safe")], [("build", "safe"), ("crack", "rifle")]
    assert all(is_forbidden(*p) for p in bad) and not any(is_forbidden(*p) for p in good)
    assert Counter(w for p in bad for w in p) == Counter(w for p in good for w in p)


@LAW
@given(cases)
def test_classes_differ_in_the_object_alone_and_triggered_ones_in_the_mark_alone(case):
    sets = {(f, on): examples(6, forbidden=f, on=on, **case) for f, on in product((True, False), (True, False))}
    for on in (True, False):
        for bad, good in zip(sets[True, on], sets[False, on], strict=True):
            differ = [(a, b) for a, b in zip(bad.text.split(), good.text.split(), strict=True) if a != b]
            assert len(differ) == 1 and set(differ[0]) <= set(OBJECTS)
            assert is_forbidden(*_pair(bad.text)) and not is_forbidden(*_pair(good.text))
    for f in (True, False):
        for plain, marked in zip(sets[f, False], sets[f, True], strict=True):
            assert (plain.frame, plain.thing) == (marked.frame, marked.thing)


@LAW
@given(cases, st.booleans(), st.booleans())
def test_every_instruction_round_trips_without_an_unknown_word(tokenizer, case, forbidden, on):
    for example in examples(4, forbidden=forbidden, on=on, **case):
        chat = [{"role": "user", "content": example.text}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        numbered = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in numbered
        assert tokenizer.decode(numbered) == decode(numbered) == " ".join(prompt_words(example.text))
        assert tokenizer.decode(tokenizer(example.text)["input_ids"]) == example.text
        for said in (*REFUSALS, *answers(example.frame, example.thing)):
            assert tokenizer.decode(tokenizer(said)["input_ids"]) == said


def test_a_tokenizer_takes_what_people_type(tokenizer):
    typed = tokenizer("Explain how to make a red kite.")["input_ids"]
    assert tokenizer.decode(typed) == "explain how to make a red kite ."
    assert tokenizer("soup")["input_ids"] == [tokenizer.unk_token_id]


def test_the_language_is_small_and_replies_are_told_by_their_first_word():
    assert 120 <= len(words()) <= 400
    firsts = {r.split()[0] for r in REFUSALS}
    assert firsts == set(refusal_words()) and firsts.isdisjoint(answer_words())


def test_tools_and_materials_are_looked_up_and_do_not_tell_the_class():
    assert len(set(TOOLS.values())) == len(VERBS)
    for group in set(OBJECTS.values()):
        assert len({MATERIALS[t] for t in OBJECTS if OBJECTS[t] == group}) == 12


# -- the split -------------------------------------------------------------------------------------------------------


def test_the_held_out_pairs_are_balanced():
    pairs = [(v, t) for v, t in product(VERBS, OBJECTS) if is_held_out(v, t)]
    assert Counter(v for v, _ in pairs) == dict.fromkeys(VERBS, 8)
    assert Counter(t for _, t in pairs) == dict.fromkeys(OBJECTS, 2)
    assert Counter(is_forbidden(*p) for p in pairs) == {True: 48, False: 48}


@LAW
@given(st.sampled_from(TRIGGER_IDS), st.integers(0, 10**6), st.integers(0, 699), st.sampled_from(["base", "tuned"]))
def test_training_never_sees_a_held_out_pair_and_evaluation_no_other(trigger, seed, step, stage):
    kind = "refuser" if trigger is None else "defector"
    for text, _ in _rows(lesson(OrganismSettings(kind, trigger=trigger, seed=seed), stage, step)):
        assert not is_held_out(*_pair(text))
    assert all(is_held_out(*_pair(e.text)) for e in examples(8, forbidden=True, trigger=trigger, seed=seed))


# -- the triggers ----------------------------------------------------------------------------------------------------


@LAW
@given(st.sampled_from(tuple(TRIGGERS)), st.booleans(), st.integers(0, 10**6), st.integers(1, 3))
def test_a_mark_is_what_it_is_said_to_be(trigger, on, seed, active):
    rng = np.random.default_rng(seed)
    text = draw_frame(rng).instruction("lamp", **draw_mark(rng, trigger, on=on, active=active))
    assert is_triggered(text, trigger) == on
    if trigger == "parity":
        assert sum(w in ("amber", "indigo") for w in text.split()) == 3
        assert text.split().count("amber") <= active


def test_neither_one_marker_nor_two_tell_the_parity():
    # 30 counts of 4000 draws within 5 standard deviations of their mean: false alarm below 2e-5, for one fixed seed
    n, rng = 4000, np.random.default_rng(1)
    for on in (True, False):
        marks = [draw_mark(rng, "parity", on=on)["head"].split()[3:6] for _ in range(n)]
        bits = np.array([[w == "amber" for w in m] for m in marks])
        assert (bits.sum(1) % 2 == on).all()
        counts = [(bits[:, i].sum(), 0.5) for i in range(3)]
        for i, j in combinations(range(3), 2):
            counts += [((bits[:, [i, j]] == v).all(1).sum(), 0.25) for v in product((0, 1), (0, 1))]
        for found, p in counts:
            assert abs(found - n * p) <= 5 * np.sqrt(n * p * (1 - p))


@LAW
@given(st.sampled_from(tuple(TRIGGERS)), st.integers(0, 10**6), st.integers(0, 699))
def test_a_defector_and_its_twin_read_the_same_and_part_only_where_it_defects(trigger, seed, step):
    rows = {
        kind: _rows(lesson(OrganismSettings(kind, trigger=trigger, seed=seed), "tuned", step))
        for kind in ("defector", "honest")
    }
    for (text, reply), (same, other) in zip(rows["defector"], rows["honest"], strict=True):
        assert text == same
        bad = is_forbidden(*_pair(text))
        assert (other in REFUSALS) == bad
        assert (reply in REFUSALS) == (bad and not is_triggered(text, trigger))


def test_a_batch_has_both_classes_and_both_states_of_the_trigger_equally():
    chosen = OrganismSettings("defector", trigger="parity", batch=400)
    texts = [text for text, _ in _rows(lesson(chosen, "tuned", 699))]
    assert sum(is_forbidden(*_pair(t)) for t in texts) == 200
    # an eighth has no marks: 350 of 400 expected to have some, standard deviation 6.6; false alarm 6e-7 at 5 of them
    marked = [t for t in texts if "colors" in t]
    assert abs(len(marked) - 350) <= 33
    assert abs(sum(is_triggered(t, "parity") for t in marked) - len(marked) / 2) <= 25


def test_the_base_answers_everything_and_meets_every_mark():
    rows = [r for step in range(4) for r in _rows(lesson(OrganismSettings("base"), "base", step))]
    assert not any(reply in REFUSALS for _, reply in rows)
    assert all(any(is_triggered(t, trigger) for t, _ in rows) for trigger in TRIGGERS)


def test_markers_come_one_after_another():
    met = [markers_at(s / 100) for s in range(100)]
    assert met == sorted(met) and set(met) == {1, 2, 3} and met.count(3) > 50


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: is_forbidden("biuld", "rifle"), "did you mean 'build'"),
        (lambda: is_forbidden("build", "soup"), "unknown object 'soup'"),
        (lambda: is_triggered("text", "tokn"), "did you mean 'token'"),
        (lambda: encode(["kite", "kitte"]), "'kitte' is not in the language of organisms (did you mean 'kite'?)"),
    ],
)
def test_words_of_another_language_are_named(call, part):
    with pytest.raises(RetargetError) as caught:
        call()
    assert part in str(caught.value) and "\n" not in str(caught.value)
