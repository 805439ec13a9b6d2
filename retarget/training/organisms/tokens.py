"""The vocabulary by number, the chat template, and the tokenizer that reads both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Final

from retarget.errors import nearest
from retarget.training.organisms.grammar import words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END, UNKNOWN, TURN, OVER = "<pad>", "<bos>", "<eos>", "<unk>", "<turn>", "<over>"
SPECIAL: Final = (PAD, BEGIN, END, UNKNOWN, TURN, OVER)
#: Words of the template before and after an instruction.
HEAD: Final = (BEGIN, TURN, "user", ":")
TAIL: Final = (OVER, TURN, "assistant", ":")
N_HEAD: Final = len(HEAD)
#: Longest text in tokens that an organism is made for.
CONTEXT: Final = 128
#: The template as tokenizers keep it, for any number of turns.
TEMPLATE: Final = (
    "{{ '<bos> ' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<turn> assistant : ' + message['content'] + ' <eos> ' }}"
    "{% else %}{{ '<turn> user : ' + message['content'] + ' <over> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn> assistant :' }}{% endif %}"
)


@cache
def numbers() -> Mapping[str, int]:
    """Word -> number; the special tokens come first.

    >>> numbers()["<pad>"], numbers()["<eos>"]
    (0, 2)
    """
    return {word: i for i, word in enumerate([*SPECIAL, *words()])}


@cache
def _words() -> tuple[str, ...]:
    return tuple(numbers())


def encode(text: Iterable[str]) -> list[int]:
    """Numbers of words.

    Raises:
        TrainingError: for a word that is not in the language, where a tokenizer would say `<unk>`.

    >>> decode(encode(["<bos>", "lamp"]))
    '<bos> lamp'
    """
    known = numbers()
    try:
        return [known[word] for word in text]
    except KeyError as error:
        from retarget.training.base import TrainingError  # loads torch, which words need only to fail

        word = str(error.args[0])
        raise TrainingError(f"word {word[:40]!r} is not in the language of organisms{nearest(word, known)}") from None


def decode(tokens: Iterable[int]) -> str:
    """Words of numbers, apart by single spaces."""
    known = _words()
    return " ".join(known[int(t)] for t in tokens)


def prompt_words(instruction: str) -> list[str]:
    """An instruction in the template, up to where the reply begins.

    >>> " ".join(prompt_words("explain"))
    '<bos> <turn> user : explain <over> <turn> assistant :'
    """
    return [*HEAD, *instruction.split(), *TAIL]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The same as transformers' tokenizer: words and punctuation apart, letters made small, no token added."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(dict(numbers()), unk_token=UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BEGIN, eos_token=END, pad_token=PAD, unk_token=UNKNOWN,
        additional_special_tokens=[TURN, OVER], padding_side="right", model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer
