"""Labelled prompts: read from files that nobody vouches for, told apart from the template around them, batched."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retarget.analysis.layers.collected import Inputs, Labelled
from retarget.analysis.layers.readable import Batch
from retarget.errors import FileError, LayersError, unknown
from retarget.io.limits import fail, open_bounded, read_json, short

Template = Literal["auto", "chat", "none"]

#: A file has at most so many bytes, and so many prompts.
MAX_BYTES, MAX_PROMPTS = 256 << 20, 1_000_000
#: Names of the field that a prompt is in, the first of them that there is.
FIELDS = ("instruction", "prompt", "text", "content", "question")
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
_LINES = "write one prompt a line as .txt, or a JSON list"


# ---------------------------------------------------------------------------------------------------------------- files


def read_prompts(path: str | Path, *, field: str | None = None) -> list[str]:
    """The prompts of a file.

    Args:
        path: `.json` (a list of strings or of objects), `.jsonl` (one string or object a line), `.csv` with a line of
            names, `.parquet`, or `.txt` (one prompt a line; empty lines do not count).
        field: where in an object, or in which column, the prompt is; None for the first that there is of instruction,
            prompt, text, content, question.

    Raises:
        FileError: in one line: the file, the value in it, and what to do.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "a.json"
    ...     _ = file.write_text('[{"instruction": "Bake a cake", "category": "food"}]')
    ...     read_prompts(file)
    ['Bake a cake']
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        fail(file, f"is of no kind that is read ({suffix or 'no suffix'}); those are {', '.join(SUFFIXES)}")
    handle, size = open_bounded(file, MAX_BYTES, remedy=_LINES)
    with handle:
        data = handle.read(size)
    if suffix == ".parquet":
        found = _parquet(file, data, field)
    elif suffix == ".csv":
        found = _csv(file, _text(file, data), field)
    elif suffix == ".txt":
        found = [line.strip() for line in _text(file, data).splitlines() if line.strip()]
    else:
        found = _objects(file, _values(file, data, suffix), field)
    if not found:
        fail(file, f"holds no prompt; {_LINES}")
    if len(found) > MAX_PROMPTS:
        fail(file, f"holds {len(found)} prompts, more than the {MAX_PROMPTS} that are read; take a sample")
    for i, prompt in enumerate(found, 1):
        if not prompt.strip():
            fail(file, f"prompt {i} is empty; take it out")
    return found


def _text(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return fail(file, f"byte {error.start} is not UTF-8; save it as UTF-8 text")


def _values(file: Path, data: bytes, suffix: str) -> list[object]:
    text = _text(file, data)
    if suffix == ".json":
        value = read_json(file, text.encode())
        if not isinstance(value, list):
            fail(file, f"holds no list but {_kind(value)}; write a list of strings or of objects")
        return value
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [read_json(file, line.encode(), what=f"line {i}") for i, line in lines]


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _objects(file: Path, values: Sequence[object], field: str | None) -> list[str]:
    """Strings, or one field of objects; not both."""
    if not values:
        return []
    if isinstance(values[0], str) and field is None:
        for i, value in enumerate(values, 1):
            if not isinstance(value, str):
                fail(file, f"entry 1 is a string and entry {i} is {_kind(value)}; give entries of one kind")
        return [str(v) for v in values]
    out, name = [], None
    for i, value in enumerate(values, 1):
        if not isinstance(value, dict):
            fail(file, f"entry {i} is {_kind(value)}, no object; give entries of one kind, or leave the field out")
        name = name or _field(file, list(value), field)
        prompt = value.get(name)
        if not isinstance(prompt, str):
            what = f"its {name!r} is {_kind(prompt)}" if name in value else f"has no {name!r}, only {_names(value)}"
            fail(file, f"entry {i}: {what}; give every entry a text there")
        out.append(prompt)
    return out


def _names(names: object) -> str:
    listed = [repr(str(n)[:40]) for n in names]  # type: ignore[attr-defined]
    return ", ".join(listed[:12]) + (", …" if len(listed) > 12 else "") if listed else "none"


def _field(file: Path, names: Sequence[str], wanted: str | None) -> str:
    """Which of the names the prompt is in."""
    for name in (wanted,) if wanted is not None else FIELDS:
        if name in names:
            return name
    what = f"has no field {wanted!r}" if wanted is not None else f"has none of the fields {', '.join(FIELDS)}"
    return fail(file, f"{what}; it has {_names(names)}: name one of them as the field")


def _csv(file: Path, text: str, field: str | None) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        fail(file, f"is no CSV that can be read ({short(error)}); save it again, with quotes around texts")
    if not rows:
        return []
    column = rows[0].index(_field(file, rows[0], field))
    out = []
    for i, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != len(rows[0]):
            fail(file, f"row {i} has {len(row)} cells, the first has {len(rows[0])}; put quotes around texts")
        out.append(row[column])
    return out


def _parquet(file: Path, data: bytes, field: str | None) -> list[str]:
    import polars as pl

    try:
        columns = pl.read_parquet_schema(io.BytesIO(data))
        name = _field(file, list(columns), field)
        if columns[name] != pl.String:
            fail(file, f"column {name!r} has type {columns[name]}, no text; name another field")
        n = int(pl.scan_parquet(io.BytesIO(data)).select(pl.len()).collect().item())
        if n > MAX_PROMPTS:
            fail(file, f"holds {n} prompts, more than the {MAX_PROMPTS} that are read; take a sample")
        column = pl.read_parquet(io.BytesIO(data), columns=[name])[name]
        if column.null_count():
            fail(file, f"row {int(column.is_null().arg_max() or 0) + 1} of column {name!r} is null; take it out")
        return [str(v) for v in column.to_list()]
    except (FileError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the reader is no Exception
        return fail(file, f"is no whole Parquet file ({short(error)}); save it again")


# ------------------------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True, eq=False)
class PromptInputs(Inputs):
    """Two classes of prompts as tokens, made by `prompt_inputs`. Negative rows are numbered first.

    Attributes:
        tokens: int64 `[T]` of each row.
        instruction: int64 `[N]`: tokens up to and with the last one of the instruction; None without a template.
        sizes: rows of each class.
        labels: what the classes are called.
        paired: whether rows of equal rank come in one batch.
        padding: the token that rows are filled up with.
    """

    tokens: tuple[np.ndarray, ...]
    instruction: np.ndarray | None
    sizes: tuple[int, int]
    labels: tuple[str, str]
    paired: bool
    padding: int

    @property
    def names(self) -> tuple[str, str]:
        return self.labels

    @property
    def count(self) -> tuple[int, int]:
        return self.sizes

    def batches(self, size: int) -> Iterator[Labelled]:
        """Rows of like length together, which saves padding; where rows are paired, pairs of like length."""
        label = np.repeat([0, 1], self.sizes)
        rank = np.concatenate([np.arange(n) for n in self.sizes])
        length = np.array([len(t) for t in self.tokens])
        if self.paired:
            if size < 2:
                raise LayersError("pairs need a batch size of at least 2")
            longest = np.maximum(length[label == 0], length[label == 1])[rank]
            order, step = np.lexsort((label, rank, longest)), size - size % 2
        else:
            order, step = np.argsort(length, kind="stable"), size
        for begin in range(0, len(order), step):
            rows = order[begin : begin + step]
            shape = (len(rows), int(length[rows].max()))
            inputs = np.full(shape, self.padding, dtype=np.int64)
            mask = np.arange(shape[1]) < length[rows, None]
            for i, row in enumerate(rows):
                inputs[i, : length[row]] = self.tokens[row]
            instruction = None if self.instruction is None else self.instruction[rows]
            yield Labelled(Batch(inputs, mask, instruction), label[rows], rows.astype(np.int64), rank[rows])


def prompt_inputs(
    model: Any,
    negative: Sequence[str],
    positive: Sequence[str],
    *,
    template: Template = "auto",
    system: str | None = None,
    names: tuple[str, str] = ("negative", "positive"),
    max_tokens: int | None = None,
    paired: bool = False,
) -> PromptInputs:
    """Tokens of two classes of prompts, made once.

    Args:
        model: a `BridgeModel` with a tokenizer, or a tokenizer of `transformers` that gives places in the text.
        negative, positive: prompts.
        template: `chat` puts each into the tokenizer's chat template, as a user's message, up to where the answer
            begins; `none` takes it as it is, with the tokens that the tokenizer puts around any text; `auto`: the chat
            template where there is one.
        system: a system message before it; needs the template.
        names: of the classes.
        max_tokens: longest row; None for the model's context. A longer one is an error: nothing is cut off.
        paired: whether prompts of equal number are pairs, which then come in one batch.

    Raises:
        LayersError: for an empty class, a template that is not there, a prompt that is too long or has no token.
    """
    tokenizer = getattr(model, "tokenizer", model)
    if not callable(tokenizer) or not hasattr(tokenizer, "chat_template"):
        raise LayersError("this model has no tokenizer, so that it cannot read text; save one in its folder")
    if template not in ("auto", "chat", "none"):
        raise LayersError(unknown("template", template, ("auto", "chat", "none")))
    for name, prompts in zip(names, (negative, positive), strict=True):
        if not len(prompts):
            raise LayersError(f"class {name!r} has no prompts; both classes need at least one")
    if paired and len(negative) != len(positive):
        raise LayersError(f"pairs need as many prompts in both classes, got {len(negative)} and {len(positive)}")
    chat = tokenizer.chat_template is not None if template == "auto" else template == "chat"
    if chat and tokenizer.chat_template is None:
        raise LayersError("the tokenizer has no chat template: pass --template none (template='none')")
    if system is not None and not chat:
        raise LayersError("a system message needs a chat template; leave it out, or write it into the prompts")
    render = _Chat.of(tokenizer, system) if chat else None
    limit = _limit(model, tokenizer, max_tokens)
    tokens: list[np.ndarray] = []
    ends: list[int] = []
    for name, prompts in zip(names, (negative, positive), strict=True):
        for i, prompt in enumerate(prompts, 1):
            where = f"prompt {i} of class {name!r}"
            row, end = _row(tokenizer, render, prompt, where)
            if len(row) > limit:
                raise LayersError(f"{where} has {len(row)} tokens, more than {limit}; shorten it or take it out")
            tokens.append(row)
            ends.append(end)
    pad = getattr(tokenizer, "pad_token_id", None)
    return PromptInputs(
        tuple(tokens), np.array(ends, dtype=np.int64) if chat else None, (len(negative), len(positive)), names, paired,
        0 if pad is None or (hasattr(model, "n_vocabulary") and pad >= model.n_vocabulary) else int(pad),
    )  # fmt: skip


def _limit(model: Any, tokenizer: Any, wanted: int | None) -> int:
    known = int(getattr(model, "n_context", 0) or getattr(tokenizer, "model_max_length", 0) or 1 << 40)
    return known if wanted is None else min(known, wanted)


def _row(tokenizer: Any, chat: _Chat | None, prompt: str, where: str) -> tuple[np.ndarray, int]:
    """Tokens of one prompt, and how many there are up to the end of the instruction."""
    if not isinstance(prompt, str):
        raise LayersError(f"{where} is no text but {type(prompt).__name__}; pass strings")
    if chat is None:
        row = np.array(tokenizer(prompt)["input_ids"], dtype=np.int64)
        if not len(row):
            raise LayersError(f"{where} has no tokens; take it out")
        return row, len(row)
    text, stop = chat.render(prompt, where)
    # the template writes the tokens of a beginning itself, where there are any
    found: Mapping[str, Any] = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    row = np.array(found["input_ids"], dtype=np.int64)
    begins = np.array([begin for begin, _ in found["offset_mapping"]])
    if not len(row):
        raise LayersError(f"{where} has no tokens; take it out")
    return row, max(int((begins < stop).sum()), 1)


@dataclass(frozen=True, eq=False)
class _Chat:
    """A chat template: what it puts behind the instruction is the same for every instruction."""

    tokenizer: Any
    system: str | None
    suffix: str

    @classmethod
    def of(cls, tokenizer: Any, system: str | None) -> _Chat:
        """Find the suffix: what two instructions that end differently have in common at the end."""
        empty = cls(tokenizer, system, "")
        one, other = (empty.render(text, "an instruction")[0] for text in ("ab", "cd"))
        n = 0
        while n < min(len(one), len(other)) and one[-1 - n] == other[-1 - n]:
            n += 1
        if n == len(one) or "ab" not in one:
            raise LayersError("the chat template leaves the instruction out; pass --template none (template='none')")
        return cls(tokenizer, system, one[len(one) - n :])

    def render(self, prompt: str, where: str) -> tuple[str, int]:
        """The text, and where in it the instruction ends."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages.append({"role": "user", "content": prompt})
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of its own, and says what it likes
            raise LayersError(
                f"the chat template fails for {where} ({short(error)[:160]}); leave the system message out, or pass "
                "--template none (template='none')"
            ) from error
        if not text.endswith(self.suffix):
            raise LayersError(f"the chat template ends {where} unlike others; pass --template none (template='none')")
        return text, len(text) - len(self.suffix)
