"""Opening a language model from a folder that nobody vouches for: checked first, then read by TransformerLens.

The folder is one that `save_pretrained` wrote for model and tokenizer: `config.json`, `*.safetensors`,
`tokenizer.json`. Nothing is unpickled, no code of the folder is run, and nothing is fetched: weights must be there.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from retarget.digest import canonical_json
from retarget.errors import FileError, unknown
from retarget.io.limits import DTYPES, MAX_AXES, MAX_JSON, fail, open_bounded, read_json, short

if TYPE_CHECKING:
    from torch import device as Device  # noqa: N812

Precision = Literal["float32", "bfloat16", "float16", "float64"]

#: Bytes of a number, by its safetensors name: those of 16 bits without a NumPy type are read as well.
SIZES: dict[str, int] = {name: kind.itemsize for name, kind in DTYPES.items()} | {"BF16": 2}
#: Most bytes of a file's header, of the other JSON and text files, and of one file of weights.
MAX_HEADER, MAX_TEXT, MAX_WEIGHTS = 16 << 20, 128 << 20, 1 << 40
#: Most tensors of a model.
MAX_TENSORS = 1 << 17
#: What a model may take in memory beside what its files hold, such as masks of attention.
FREE_BYTES = 256 << 20

_SAVE = "save the folder again with model.save_pretrained(folder) and tokenizer.save_pretrained(folder)"
_CONVERT = "convert to safetensors where you trust it: AutoModelForCausalLM.from_pretrained(it).save_pretrained(new)"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
#: Entries of a configuration that do not change what the network computes.
_IDLE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
_PIECE = 8 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its type, shape, and where its bytes are, counted from the file's beginning."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class Folder:
    """A language model's folder after the checks. No weights were read yet.

    Attributes:
        path: the folder, resolved.
        label: its name; for a snapshot in a cache of downloads, the model's name there.
        config: what `config.json` says.
        tensors: by name.
    """

    path: Path
    label: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def n_bytes(self) -> int:
        """Of all tensors."""
        return sum(t.end - t.begin for t in self.tensors.values())

    def digest(self) -> str:
        """SHA-256 (first 32 hex digits) over the configuration and every tensor by name, type, shape and bytes.

        It does not depend on how tensors are spread over files. Files are read piece by piece.
        """
        h = hashlib.sha256()
        kept = {k: v for k, v in self.config.items() if k not in _IDLE}
        h.update(canonical_json(["language_model", kept]).encode())
        with contextlib.ExitStack() as stack:
            handles = {f: stack.enter_context(f.open("rb")) for f in {t.file for t in self.tensors.values()}}
            for name, tensor in sorted(self.tensors.items()):
                h.update(canonical_json([name, tensor.dtype, list(tensor.shape)]).encode())
                handle, left = handles[tensor.file], tensor.end - tensor.begin
                handle.seek(tensor.begin)
                while left:
                    piece = handle.read(min(left, _PIECE))
                    if not piece:
                        fail(tensor.file, "was cut off while it was read; try again")
                    h.update(piece)
                    left -= len(piece)
        return h.hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model that was opened.

    Attributes:
        bridge: TransformerLens's bridge, in evaluation mode.
        tokenizer: the folder's own, as it was saved.
        label: short name.
        digest: of configuration and weights as they are in the files.
    """

    bridge: Any
    tokenizer: Any
    label: str
    digest: str


def open_language_model(path: str | Path, *, dtype: Precision = "float32", device: str = "cpu") -> LanguageModel:
    """Open a local folder of a causal language model and its tokenizer.

    Args:
        path: the folder. The name of a model on a server is no folder: nothing is ever fetched.
        dtype: precision that it computes in.
        device: where, e.g. `cpu` or `cuda:0`.

    Raises:
        FileError: in one line, for a folder that is no model, weights that are pickles, a tokenizer that is missing,
            code that would have to be run, an architecture that is not known.

    >>> open_language_model("no/such/model")
    Traceback (most recent call last):
    retarget.errors.FileError: 'no/such/model': there is no such folder; pass the folder of a model that was saved here
    """
    if dtype not in get_args(Precision):
        raise FileError(unknown("precision", dtype, get_args(Precision)))
    folder = check_folder(path)
    where = _device(device)
    import torch

    # transformers draws numbers for weights before it reads them: nobody else's draws are to change
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            model = _load(folder, dtype, where)
            tokenizer = _tokenizer(folder)
            bridge = _bridge(folder, model, tokenizer, dtype, where)
        except (FileError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except Exception as error:  # whatever a foreign library makes of a folder that was tampered with
            fail(folder.path, f"cannot be opened as a language model ({short(error)}); {_SAVE}")
    return LanguageModel(bridge, tokenizer, folder.label, folder.digest())


# ------------------------------------------------------------------------------------------------------------ checks


def check_folder(path: str | Path) -> Folder:
    """Check a folder before any of its weights is read.

    Raises:
        FileError: see `open_language_model`.
    """
    given = Path(path)
    try:
        if not given.exists():
            fail(given, "there is no such folder; pass the folder of a model that was saved here")
        if not given.is_dir():
            fail(given, "is no folder; pass the folder that holds config.json, the weights and the tokenizer")
        folder = given.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, FileError):
            raise
        fail(given, f"cannot be opened ({short(error)}); check the path and its permissions")
    config = _config(folder)
    _check_tokenizer(folder)
    tensors: dict[str, Stored] = {}
    for file in _weight_files(folder):
        for name, tensor in _stored(file).items():
            if name in tensors:
                fail(file, f"holds tensor {name[:80]!r}, which another file holds too; {_SAVE}")
            tensors[name] = tensor
    if not tensors or len(tensors) > MAX_TENSORS:
        fail(folder, f"has {len(tensors)} tensors of weights, not 1 to {MAX_TENSORS}; {_SAVE}")
    layers = [v for k, v in config.items() if k in ("num_hidden_layers", "n_layer", "num_layers") and type(v) is int]
    if any(n > len(tensors) for n in layers):
        fail(folder, f"config.json declares {max(layers)} layers, and there are {len(tensors)} tensors; {_SAVE}")
    return Folder(folder, _label(folder), config, tensors)


def _label(folder: Path) -> str:
    above = folder.parent.parent.name
    if folder.parent.name == "snapshots" and above.startswith("models--"):
        return above.split("--")[-1]
    return folder.name


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder. Links may lead within it, or to the blobs of the download cache that it is part of."""
    file = folder / name
    real = file.resolve()
    homes = [folder]
    if folder.parent.name == "snapshots":
        homes.append(folder.parent.parent / "blobs")
    if not any(real.is_relative_to(home) for home in homes):
        fail(file, "is a link that leads out of the folder; copy the file itself into it")
    return file


def _json(folder: Path, name: str, limit: int) -> dict[str, Any]:
    file = _inside(folder, name)
    handle, size = open_bounded(file, limit, remedy=_SAVE)
    with handle:
        value = read_json(file, handle.read(size))
    if not isinstance(value, dict):
        fail(file, f"holds no JSON object; {_SAVE}")
    return value


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        other = "agent.json"
        hint = (
            "it is a saved agent: pass it as a policy"
            if (folder / other).exists()
            else "pass the folder that model.save_pretrained(folder) wrote"
        )
        fail(folder, f"is a folder that is no language model: it has no config.json; {hint}")
    if (folder / "adapter_config.json").exists():
        fail(folder, "holds an adapter (LoRA, perhaps), no whole model; save model.merge_and_unload() instead")
    config = _json(folder, "config.json", MAX_JSON)
    _no_code(folder, "config.json", config)
    if not isinstance(config.get("model_type"), str):
        fail(folder, "config.json names no model_type, so that this is no language model; pass one's folder")
    if config.get("quantization_config") is not None:
        fail(folder, "its weights are quantised, which is not read; save the model in float32 or bfloat16")
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        fail(folder, f"config.json must name one architecture, it has {str(names)[:80]}; {_SAVE}")
    if config.get("is_encoder_decoder") is True or not names[0].endswith(("ForCausalLM", "LMHeadModel")):
        fail(folder, f"{names[0][:80]!r} is no causal language model (…ForCausalLM); pass the folder of one")
    return config


def _no_code(folder: Path, name: str, config: Mapping[str, Any]) -> None:
    if config.get("auto_map") is not None:
        fail(
            folder,
            f"{name} asks for code of its own to be run (auto_map), which is never done; if transformers knows the "
            "model by itself, take auto_map out",
        )


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").exists():
        fail(
            folder,
            "has no tokenizer.json, so that text cannot be read; save it there: "
            "AutoTokenizer.from_pretrained(where it is).save_pretrained(folder)",
        )
    _json(folder, "tokenizer.json", MAX_TEXT)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"):
        if (folder / name).exists():
            _no_code(folder, name, _json(folder, name, MAX_TEXT))
    for file in (*folder.glob("*.jinja"), *folder.glob("*.txt"), *folder.glob("*.model")):
        if _inside(folder, file.name).stat().st_size > MAX_TEXT:
            fail(file, f"has more than {MAX_TEXT} bytes; {_SAVE}")


def _weight_files(folder: Path) -> list[Path]:
    """Files of weights: one, or the shards that an index names."""
    single, index = "model.safetensors", "model.safetensors.index.json"
    if (folder / single).exists():
        return [_inside(folder, single)]
    if (folder / index).exists():
        where = _json(folder, index, MAX_HEADER).get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(v, str) for v in where.values()):
            fail(folder / index, f"has no weight_map from tensors to files; {_SAVE}")
        names = sorted(set(where.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                fail(folder / index, f"names the file {name[:80]!r}, which is none of this folder; {_SAVE}")
            if not (folder / name).exists():
                fail(folder, f"lacks {name[:80]!r}, which its index names; copy it there")
        return [_inside(folder, name) for name in names]
    pickles = sorted(f.name for pattern in _PICKLES for f in folder.glob(pattern))
    if pickles:
        fail(folder, f"has its weights in {pickles[0]!r}, which can run code when it is read; {_CONVERT}")
    return fail(folder, f"has no weights (model.safetensors); {_SAVE}")


def _stored(file: Path) -> dict[str, Stored]:
    """Tensors that a safetensors file declares. Every byte behind the header belongs to one of them, in order."""
    handle, size = open_bounded(file, MAX_WEIGHTS, remedy=_SAVE)
    with handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(MAX_HEADER, size - 8):
            message = "is a pickle" if start[:2] in (b"PK", b"\x80\x02") else "has a header that does not fit the file"
            fail(file, f"{message}: it is no safetensors file of weights; {_CONVERT}")
        header = read_json(file, handle.read(length), what="its header")
    if not isinstance(header, dict):
        fail(file, f"has a header that is no table of tensors; {_SAVE}")
    found = {n: _entry(file, n, v, 8 + length) for n, v in header.items() if n != "__metadata__"}
    at = 8 + length
    for name, entry in sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            fail(file, f"tensor {name[:80]!r} does not begin where the one before ends; it was changed: {_SAVE}")
        at = entry.end
    if at != size:
        fail(file, f"declares {at} bytes and has {size}; it was cut off: {_SAVE}")
    return found


def _entry(file: Path, name: str, value: object, data: int) -> Stored:
    shown = repr(name[:80])
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        fail(file, f"tensor {shown} needs dtype, shape and data_offsets and no more; {_SAVE}")
    dtype, shape, where = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in SIZES:
        fail(file, f"tensor {shown} has numbers of type {str(dtype)[:40]!r}; those read are {', '.join(SIZES)}")
    ints = [*(shape if isinstance(shape, list) else [None]), *(where if isinstance(where, list) else [None])]
    if len(shape) > MAX_AXES or len(where) != 2 or not all(type(n) is int and 0 <= n <= MAX_WEIGHTS for n in ints):
        fail(file, f"tensor {shown} has a shape or place that is none; {_SAVE}")
    count = 1
    for n in shape:
        count *= n
    if where[1] - where[0] != count * SIZES[dtype]:
        fail(file, f"tensor {shown} of shape {tuple(shape)} does not fill its {where[1] - where[0]} bytes")
    return Stored(file, dtype, tuple(shape), data + where[0], data + where[1])


# ----------------------------------------------------------------------------------------------------------- opening


def _device(name: str) -> Device:
    import torch

    try:
        where = torch.device(name)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise FileError(f"device {name!r} cannot be used ({short(error)[:120]}); use 'cpu'") from error
    return where


def _load(folder: Folder, dtype: Precision, where: Device) -> Any:
    """The network of `transformers`, every weight from the files."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    here = str(folder.path)
    try:
        config = AutoConfig.from_pretrained(here, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        return fail(
            folder.path, f"model_type {folder.config['model_type'][:40]!r} cannot be read ({short(error)}); {_SAVE}"
        )
    _supported(folder)
    # what the configuration would take is seen on a device that takes no memory, before anything is read
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation="eager")
    wanted = sum(t.numel() * t.element_size() for t in (*blank.parameters(), *blank.buffers()))
    numbers = sum((t.end - t.begin) // SIZES[t.dtype] for t in folder.tensors.values())
    if wanted > 8 * numbers + FREE_BYTES:
        fail(folder.path, f"config.json describes {wanted} bytes of network, its files hold {numbers} numbers; {_SAVE}")
    read: Any = AutoModelForCausalLM.from_pretrained
    model, found = read(
        here,
        config=config,
        dtype=getattr(torch, dtype),
        # stated, since a configuration could name one that would have to be fetched; hooks need this one
        attn_implementation="eager",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are told below, by name
        output_loading_info=True,
    )
    wrong = [k[0] if isinstance(k, tuple) else k for k in found["mismatched_keys"]]
    lacking = sorted(str(k) for k in (*found["missing_keys"], *wrong))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        fail(folder.path, f"has no weights of the right shape for {lacking[0][:120]!r}{more}; {_SAVE}")
    for name, weight in model.named_parameters():
        # one sum tells: it is not finite where a term is not, and in a wide type no finite terms overflow it
        if not torch.isfinite(weight.detach().sum(dtype=torch.float64)):
            fail(folder.path, f"weight {name!r} holds a number that is not finite in {dtype}; check where it was saved")
    return model.to(where).eval()


def _supported(folder: Folder) -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    name = folder.config["architectures"][0]
    if name not in SUPPORTED_ARCHITECTURES:
        known = [k for k in SUPPORTED_ARCHITECTURES if k.endswith(("ForCausalLM", "LMHeadModel"))]
        close = unknown("architecture", name[:80], known).split(";")[0]
        fail(folder.path, f"{close}; TransformerLens reads {len(known)} causal ones, e.g. LlamaForCausalLM")


def _tokenizer(folder: Folder) -> Any:
    """The tokenizer of `tokenizer.json`, to the letter.

    Not through AutoTokenizer: for some types of model it puts a splitting of its own in the place of the saved one.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder.path), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        return fail(folder.path, f"its tokenizer cannot be read ({short(error)}); save the tokenizer again")


def _bridge(folder: Folder, model: Any, tokenizer: Any, dtype: Precision, where: Device) -> Any:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    # the bridge sets up a tokenizer to its own liking: it gets a copy, marked so that it does not load another
    mine = copy.deepcopy(tokenizer)
    mine.init_kwargs["add_bos_token"] = True
    boot: Any = TransformerBridge.boot_transformers
    bridge = boot(str(folder.path), hf_model=model, tokenizer=mine, device=where, dtype=getattr(torch, dtype))
    return bridge.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what `transformers` and TransformerLens print and warn of, and leave their settings as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as theirs

        level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
        root = logging.root.manager.disable
        theirs.set_verbosity_error()
        theirs.disable_progress_bar()
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            theirs.set_verbosity(level)
            if bars:
                theirs.enable_progress_bar()
            logging.disable(root)
