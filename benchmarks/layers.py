"""Layerwise collection against the forward pass that it rides on, in time and memory; components against a full SVD."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.timing import Effort, Line, Race, Work, agree
from retarget.analysis.layers.collect import collect
from retarget.analysis.layers.collected import Collected
from retarget.analysis.layers.models import BridgeModel
from retarget.analysis.layers.prompts import PromptInputs
from retarget.analysis.layers.readable import Batch
from retarget.analysis.layers.spectrum import leading
from retarget.io.language import quiet
from retarget.rng import word

TOPIC = "layers"
ROOT = Path(__file__).resolve().parent.parent
#: Tokens a row, rows a batch, prompts of each class.
TOKENS, BATCH, PROMPTS = 64, 16, 128
#: Of lines that are no rates: their ratio is the other's over ours.
PEAK = "GB at the peak (ratio: other/ours)"
SHAPE = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6,
         "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 256}  # fmt: skip
#: About a billion weights.
LARGE = {"vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 256}  # fmt: skip


def run(effort: Effort) -> list[Line]:
    """Every line of this topic."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder))
        out = [*_time(folder, effort), *_half(folder, effort), *_memory(folder)]
    return [*out, *_components(effort), *_gpu(effort)]


# --------------------------------------------------------------------------------------------------------------- models


def _network(shape: dict[str, int]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(word(0, "benchmark_layers"))
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<pad>")


def _save(folder: Path) -> None:
    with quiet():
        _network(SHAPE).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)


def _inputs(vocabulary: int, n: int) -> PromptInputs:
    rng = np.random.Generator(np.random.Philox(word(0, "benchmark_layers_tokens")))
    rows = rng.integers(2, vocabulary, (2 * n, TOKENS), dtype=np.int64)
    return PromptInputs(tuple(rows), None, (n, n), ("negative", "positive"), False, 0)


def _batches(inputs: PromptInputs) -> list[Batch]:
    return [part.batch for part in inputs.batches(BATCH)]


def _plain(network: Callable[..., Any], batches: list[Batch], device: str = "cpu") -> Work:
    """The forward pass, logits and all."""

    def work() -> None:
        with torch.no_grad():
            for batch in batches:
                mask = torch.tensor(batch.mask, dtype=torch.int64, device=device)
                network(torch.tensor(batch.inputs, device=device), attention_mask=mask)

    return work


def _cached(model: BridgeModel, batches: list[Batch]) -> Work:
    """TransformerLens's cache of every activation."""

    def work() -> None:
        with torch.no_grad():
            for batch in batches:
                tokens, mask = torch.tensor(batch.inputs), torch.tensor(batch.mask, dtype=torch.int64)
                model.bridge.run_with_cache(tokens, attention_mask=mask)

    return work


def _collected(model: BridgeModel, inputs: PromptInputs, groups: int) -> Callable[[], Collected]:
    return lambda: collect(model, inputs, batch_size=BATCH, n_groups=groups, memory_limit_bytes=8 << 30)


# ----------------------------------------------------------------------------------------------------------------- time


def _time(folder: str, effort: Effort) -> list[Line]:
    """One collection of all prompts, with second moments and 200 relabellings, against bare passes over them."""
    from transformers import AutoModelForCausalLM

    model = BridgeModel.open(folder)
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    inputs = _inputs(model.n_vocabulary, PROMPTS)
    batches = _batches(inputs)
    _check(model, inputs)
    what = f"last token, all layers, {2 * PROMPTS} prompts x {TOKENS} tokens"
    one, ten = f"collect, 1 group: {what}", f"collect, 10 groups: {what}"
    plain, bare, cache = (
        "the bridge's forward with logits",
        "transformers' forward (sdpa)",
        "run_with_cache, everything",
    )
    work = {
        one: _collected(model, inputs, 1),
        ten: _collected(model, inputs, 10),
        plain: _plain(model.bridge, batches),
        bare: _plain(theirs, batches),
        cache: _cached(model, batches),
    }
    race = Race(work, Effort(min(effort.rounds, 3), effort.sample_s))
    units = dict.fromkeys(work, float(2 * PROMPTS))
    lines = [race.line(ours, plain, topic=TOPIC, unit="prompts", units=units, bar=1 / 1.1) for ours in (one, ten)]
    return lines + [race.line(one, other, topic=TOPIC, unit="prompts", units=units) for other in (bare, cache)]


def _check(model: BridgeModel, inputs: PromptInputs) -> None:
    """Means and scatters against stored activations of everything, in two passes."""
    few = PromptInputs((*inputs.tokens[:24], *inputs.tokens[-24:]), None, (24, 24), inputs.labels, False, 0)
    found = collect(model, few, batch_size=BATCH, n_groups=1)
    stored: dict[str, list[np.ndarray]] = {s.hook: [] for s in model.sites}
    with torch.no_grad():
        for row in few.tokens:
            _, cache = model.bridge.run_with_cache(torch.tensor(row)[None])
            for hook, rows in stored.items():
                rows.append(cache[hook][0, -1].double().numpy())
    for hook, rows in stored.items():
        moments = found.moments[hook, "-1"]
        x = np.stack(rows)[:24]
        spread = (x - x.mean(0)).T @ (x - x.mean(0))
        close = np.abs(moments.mean[0, 0] - x.mean(0)).max() < 1e-4 * np.abs(x).max()
        assert moments.scatter is not None
        agree(
            f"moments at {hook}", close and np.abs(moments.scatter[0, 0] - spread).max() < 1e-3 * np.abs(spread).max()
        )


def _half(folder: str, effort: Effort) -> list[Line]:
    """The same in bfloat16, float64 sums, against its own forward."""
    model = BridgeModel.open(folder, dtype="bfloat16")
    inputs = _inputs(model.n_vocabulary, PROMPTS // 4)
    ours, plain = "collect, bfloat16 forward, float64 moments, 1 group", "the bridge's forward in bfloat16"
    work = {ours: _collected(model, inputs, 1), plain: _plain(model.bridge, _batches(inputs))}
    race = Race(work, Effort(min(effort.rounds, 3), effort.sample_s))
    return [race.line(ours, plain, topic=TOPIC, unit="prompts", units=dict.fromkeys(work, float(PROMPTS // 2)))]


# --------------------------------------------------------------------------------------------------------------- memory


def _memory(folder: str) -> list[Line]:
    """Peaks of resident memory, each of a fresh process, from after the model was opened."""
    peak = {
        (kind, n): _peak(folder, kind, n)
        for kind, n in (("plain", 32), ("one", 32), ("one", 128), ("ten", 32), ("cache", 32))
    }

    def line(what: str, against: str, a: float, b: float, bar: float | None = None) -> Line:
        return Line(
            TOPIC, what, against, "GB at the peak (ratio: other/ours)", a / 1e9, b / 1e9, b / a, b / a, b / a, bar
        )

    name, base = "peak memory of collect, 1 group, 64 prompts", "the bridge's forward"
    ten = "peak memory of collect, 10 groups, 64 prompts"
    return [
        line(name, base, peak["one", 32], peak["plain", 32], 1 / 1.1),
        line(name.replace("64", "256"), "64 prompts", peak["one", 128], peak["one", 32], 1 / 1.02),
        line(ten, f"{base} (moments of a fixed size on top)", peak["ten", 32], peak["plain", 32]),
        line(name, "run_with_cache, everything", peak["one", 32], peak["cache", 32]),
    ]


def _peak(folder: str, kind: str, n: int) -> float:
    command = [sys.executable, "-m", "benchmarks.layers", folder, kind, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return float(done.stdout.split()[-1])


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _child(folder: str, kind: str, n: int) -> None:
    """Prints the highest resident memory, looked at every millisecond, while one kind of work is done."""
    torch.set_num_threads(1)
    model = BridgeModel.open(folder)
    inputs = _inputs(model.n_vocabulary, n)
    if kind in ("one", "ten"):
        work: Work = _collected(model, inputs, {"one": 1, "ten": 10}[kind])
    else:
        work = (_plain if kind == "plain" else _cached)(model.bridge if kind == "plain" else model, _batches(inputs))
    highest, over = [_resident()], threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            highest[0] = max(highest[0], _resident())

    thread = threading.Thread(target=look)
    thread.start()
    work()
    over.set()
    thread.join()
    sys.stdout.write(f"{highest[0]}\n")


# ----------------------------------------------------------------------------------------------------------- components


def _components(effort: Effort) -> list[Line]:
    """Six leading components from the second moments that a collection leaves, against an SVD of the centred rows."""
    out, d, k = [], 768, 6
    rng = np.random.Generator(np.random.Philox(word(0, "benchmark_layers_rows")))
    for n in (512, 4096):
        x = rng.normal(size=(n, d)) * np.linspace(2, 0.2, d) + 3 * rng.normal(size=(n, 3)) @ rng.normal(size=(3, d))
        rows = x - x.mean(0)
        scatter = rows.T @ rows / (n - 1)
        ours, other = f"{k} components of d = {d} from moments", f"full SVD of {n:,} x {d}"
        found, (_, s, v) = leading(scatter, k, n_rows=n), np.linalg.svd(rows, full_matrices=False)
        assert found is not None
        agree("components", np.allclose(found.values, s[:k] ** 2 / (n - 1), rtol=1e-5)
              and np.allclose(np.abs((found.vectors * v[:k].T).sum(0)), 1, atol=1e-5))  # fmt: skip
        work: dict[str, Work] = {
            ours: lambda scatter=scatter, n=n: leading(scatter, k, n_rows=n),  # type: ignore[misc]
            other: lambda rows=rows: np.linalg.svd(rows, full_matrices=False),  # type: ignore[misc]
        }
        race = Race(work, effort)
        out.append(race.line(ours, other, topic=TOPIC, unit="layers", units=dict.fromkeys(work, 1.0), bar=3.0))
    return out


# ------------------------------------------------------------------------------------------------------------------ GPU


def _gpu(effort: Effort) -> list[Line]:
    if not torch.cuda.is_available():
        Console(stderr=True).print("no GPU: collection is measured on the CPU alone")
        return []
    return large(LARGE, "cuda", effort)


def large(shape: dict[str, int], device: str, effort: Effort) -> list[Line]:
    """One collection against the forward on a device, in wall time and in peaks of its memory."""
    from transformer_lens.model_bridge import TransformerBridge

    with quiet(), torch.device(device):
        network = _network(shape)
        boot: Any = TransformerBridge.boot_transformers
        bridge = boot("random", hf_model=network, tokenizer=_tokenizer(), device=device, dtype=torch.float32)
    model = BridgeModel.of(bridge)
    numbers = sum(p.numel() for p in network.parameters())
    inputs = _inputs(model.n_vocabulary, PROMPTS)
    ours = f"collect, 1 group, on {device}: {numbers / 1e9:.2g} G weights, {2 * PROMPTS} prompts x {TOKENS} tokens"
    plain = "the bridge's forward with logits there"
    work = {ours: _collected(model, inputs, 1), plain: _plain(bridge, _batches(inputs), device)}
    peaks: dict[str, float] = {}

    def settled(name: str) -> Work:
        def done() -> None:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            work[name]()
            if device == "cuda":
                torch.cuda.synchronize()
                peaks[name] = float(torch.cuda.max_memory_allocated())

        return done

    race = Race({n: settled(n) for n in work}, Effort(min(effort.rounds, 3), effort.sample_s), clock=time.perf_counter)
    units = dict.fromkeys(work, float(2 * PROMPTS))
    lines = [race.line(ours, plain, topic=TOPIC, unit="prompts", units=units, bar=1 / 1.1)]
    if peaks:
        a, b = peaks[ours] / 1e9, peaks[plain] / 1e9
        lines.append(Line(TOPIC, f"GPU memory of {ours}", plain, PEAK, a, b, b / a, b / a, b / a, 1 / 1.1))
    return lines


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], int(sys.argv[3]))
