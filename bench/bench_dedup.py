"""What version 2 of a model costs when version 1 is on disk: megalfs beside plain FastCDC and hf_xet.

    python bench/bench_dedup.py [--mib 178] [--seed 1] [--case NAME ...]

Every case makes two versions of a model of bf16 noise, chunks both in every way and adds up the chunks of
version 2 that version 1 lacks, the files of a version taken together. Nothing is sent. hf_xet exposes no cut
points, so it is asked for what it would upload: version 1, then version 2, to a CAS of its own in a temporary
directory (new bytes by its own report, less known ones that it sends again to keep files in few pieces; no
network). Where it is not installed, FastCDC 16/64/256 KiB alone stands in for its chunks of 64 KiB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import megalfs_ext
from megalfs.core.chunker import DEFAULT_PROFILE, chunk_buffer

KIB = 1024
BF16_BYTES = 2
HEADERS_BYTES_MAX = 50_000  # the goal where only headers changed
GGUF_ALIGNMENT = 32
GGUF_BF16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_STRING, GGUF_ARRAY = 30, 4, 5, 6, 8, 9
FULL_MIB = 178  # hidden size 768, 24,000 tokens, 51 tensors, 187 MB: the model of research/cdc.md section 5
EXPERTS = 32
SMALL_TENSORS = 3000

Model: TypeAlias = dict[str, NDArray[np.uint16]]  # bf16 by name, in the order of the file
Files: TypeAlias = list[bytes]
Cutter: TypeAlias = Callable[[bytes], NDArray[np.uint64]]


@dataclass(frozen=True, slots=True)
class Case:
    """Two versions, what changed between them in bytes, and what megalfs may fetch at most."""

    name: str
    before: Files
    after: Files
    ideal: int
    limit: int | None = None
    cuts: int = 0  # rows inserted at so many places: at most one average chunk each above hf_xet


# Models.


def noise(rng: np.random.Generator, *shape: int) -> NDArray[np.uint16]:
    """Weights N(0, 0.02) as bf16."""
    weights = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    return (weights.view(np.uint32) >> 16).astype(np.uint16)


def base_model(rng: np.random.Generator, mib: int) -> Model:
    """Six layers, untied embeddings, and everything in proportion to the square of the hidden size."""
    hidden = max(64, round(768 * math.sqrt(mib / FULL_MIB) / 64) * 64)
    vocab = 24_000 * hidden // 768
    model = {"model.embed_tokens.weight": noise(rng, vocab, hidden)}
    for layer in range(6):
        prefix = f"model.layers.{layer}"
        model[f"{prefix}.input_layernorm.weight"] = noise(rng, hidden)
        for name in "qkvo":
            model[f"{prefix}.self_attn.{name}_proj.weight"] = noise(rng, hidden, hidden)
        for name in ("gate", "up"):
            model[f"{prefix}.mlp.{name}_proj.weight"] = noise(rng, 4 * hidden, hidden)
        model[f"{prefix}.mlp.down_proj.weight"] = noise(rng, hidden, 4 * hidden)
    model["model.norm.weight"] = noise(rng, hidden)
    model["lm_head.weight"] = noise(rng, vocab, hidden)
    return model


def safetensors(model: Model, metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file, the header padded to eight bytes as its library does."""
    header: dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
    end = 0
    for name, tensor in model.items():
        offsets = [end, end + tensor.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensor.tobytes() for tensor in model.values())])


def gguf_header(model: Model) -> bytes:
    """The header with a tokenizer of as many tokens as the embedding has rows, and its padding."""
    tokens = len(model["model.embed_tokens.weight"])
    keys = [
        _text("general.architecture") + struct.pack("<I", GGUF_STRING) + _text("llama"),
        _text("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", GGUF_ARRAY, GGUF_STRING, tokens)
        + b"".join(_text(f"token_{token:08d}") for token in range(tokens)),
    ]
    scores, types = -np.arange(tokens, dtype=np.float32), np.ones(tokens, np.int32)
    for key, kind, values in (("scores", GGUF_F32, scores), ("token_type", GGUF_I32, types)):
        head = struct.pack("<IIQ", GGUF_ARRAY, kind, tokens)
        keys.append(_text(f"tokenizer.ggml.{key}") + head + values.tobytes())
    rows, offset = [], 0
    for name, tensor in model.items():
        extents = struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *reversed(tensor.shape))
        rows.append(_text(name) + extents + struct.pack("<IQ", GGUF_BF16, offset))
        offset += tensor.nbytes + -tensor.nbytes % GGUF_ALIGNMENT
    header = b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(keys)) + b"".join(keys + rows)
    return header + bytes(-len(header) % GGUF_ALIGNMENT)


def gguf(model: Model) -> bytes:
    """The same weights as GGUF bf16, each tensor aligned to 32 bytes."""
    parts = [gguf_header(model)]
    for tensor in model.values():
        parts += [tensor.tobytes(), bytes(-tensor.nbytes % GGUF_ALIGNMENT)]
    return b"".join(parts)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def shards(model: Model, count: int) -> Files:
    """Consecutive tensors in `count` files of about equal size."""
    total = sum(tensor.nbytes for tensor in model.values())
    parts: list[Model] = [{} for _ in range(count)]
    start = 0
    for name, tensor in model.items():
        parts[min(count - 1, start * count // total)][name] = tensor
        start += tensor.nbytes
    return [safetensors(part) for part in parts if part]


# Cases.


def replaced(name: str, model: Model, names: list[str], rng: np.random.Generator) -> Case:
    """Whole tensors get other weights: exactly those are to be fetched, since the header says nothing new."""
    changed = sum(model[each].nbytes for each in names)
    after = model | {each: noise(rng, *model[each].shape) for each in names}
    return Case(name, [safetensors(model)], [safetensors(after)], changed, limit=changed)


def all_tuned(name: str, model: Model, rng: np.random.Generator) -> Case:
    """A full fine-tune: the lowest bit of half of all weights flips. No chunker helps."""
    after = {each: tensor ^ rng.integers(0, 2, tensor.shape, np.uint16) for each, tensor in model.items()}
    total = sum(tensor.nbytes for tensor in model.values())
    return Case(name, [safetensors(model)], [safetensors(after)], total // 2)


def rows_changed(name: str, model: Model, rng: np.random.Generator) -> Case:
    """200 rows of the embedding, at random."""
    embedding = model["model.embed_tokens.weight"].copy()
    rows = rng.choice(len(embedding), min(200, len(embedding)), replace=False)
    embedding[rows] = noise(rng, len(rows), embedding.shape[1])
    after = model | {"model.embed_tokens.weight": embedding}
    return Case(name, [safetensors(model)], [safetensors(after)], len(rows) * embedding[0].nbytes)


def rows_added(name: str, model: Model, rng: np.random.Generator) -> Case:
    """64 tokens more: rows at the end of both vocabulary tensors."""
    after, names = dict(model), ("model.embed_tokens.weight", "lm_head.weight")
    for each in names:
        after[each] = np.concatenate([model[each], noise(rng, 64, model[each].shape[1])])
    added = sum(after[each].nbytes - model[each].nbytes for each in names)
    return Case(name, [safetensors(model)], [safetensors(after)], added, cuts=len(names))


def rows_inserted(name: str, model: Model, rng: np.random.Generator, *, places: int) -> Case:
    """Three rows at each of some places of the embedding, evenly spread."""
    embedding = model["model.embed_tokens.weight"]
    parts = []
    for part in np.array_split(embedding, places + 1):
        parts += [part, noise(rng, 3, embedding.shape[1])]
    after = model | {"model.embed_tokens.weight": np.concatenate(parts[:-1])}
    added = 3 * places * embedding[0].nbytes
    return Case(name, [safetensors(model)], [safetensors(after)], added, cuts=places)


def byte_inserted(name: str, model: Model, *, places: int) -> Case:
    """A byte at each of some places of a file without a header that says anything."""
    plain = b"\x93" + b"".join(tensor.tobytes() for tensor in model.values())
    starts = [len(plain) * place // (places + 1) for place in range(places + 2)]
    after = b"\xa5".join(plain[start:end] for start, end in pairwise(starts))
    return Case(name, [plain], [after], places, cuts=places)


def reordered(model: Model, rng: np.random.Generator) -> Model:
    """The same tensors in another order."""
    names = list(model)
    return {names[index]: model[names[index]] for index in rng.permutation(len(names))}


def experts(rng: np.random.Generator, mib: int) -> Model:
    """A third of `mib` in 32 experts, a tensor each; none under the 256 KiB from which a fused one is cut out."""
    hidden = max(320, round(768 * math.sqrt(mib / FULL_MIB) / 64) * 64)
    return {
        f"experts.{index}.down_proj.weight": noise(rng, hidden, hidden * 19 // 12) for index in range(EXPERTS)
    }


def fused(name: str, model: Model, order: list[int], *, was_fused: bool) -> Case:
    """Experts stacked in one tensor of three dimensions, cut at its outermost index."""
    stacked = np.stack(list(model.values()))
    before = {"experts.down_proj.weight": stacked} if was_fused else model
    after = {"experts.down_proj.weight": stacked[order]}
    return Case(name, [safetensors(before)], [safetensors(after)], 0, limit=HEADERS_BYTES_MAX)


def small_tensors(rng: np.random.Generator, mib: int) -> Model:
    """3000 tensors of 2 to 34 KB, fewer bytes for a smaller `mib`."""
    values_max = max(256, 17_000 * mib // FULL_MIB)
    return {
        f"blocks.{index}.weight": noise(rng, int(rng.integers(values_max // 16, values_max)))
        for index in range(SMALL_TENSORS)
    }


def makers(mib: int, seed: int) -> Iterator[tuple[str, Callable[[str], Case]]]:
    """Every case by name, made when it is called: each holds two whole models."""
    rng = np.random.default_rng(seed)
    model = base_model(rng, mib)
    layer = "model.layers.{}.{}.weight".format
    three = [layer(2, "mlp.down_proj"), layer(3, "self_attn.q_proj"), layer(4, "input_layernorm")]
    lora = [layer(index, f"self_attn.{name}_proj") for index in range(6) for name in "qv"]
    metadata = {
        "format": "pt",
        "base_model": "a-model-that-was-trained-further",
        "step": "120000",
        "note": "x" * 20,
    }

    def only_headers(files: Callable[[], tuple[Files, Files]], name: str) -> Case:
        return Case(name, *files(), ideal=0, limit=HEADERS_BYTES_MAX)

    yield "b1 three tensors replaced", partial(replaced, model=model, names=three, rng=rng)
    yield "a2 LoRA merged, q and v", partial(replaced, model=model, names=lora, rng=rng)
    yield "a1 full fine-tune", partial(all_tuned, model=model, rng=rng)
    yield "b2 200 scattered rows", partial(rows_changed, model=model, rng=rng)
    yield (
        "f header edited",
        partial(only_headers, lambda: ([safetensors(model)], [safetensors(model, metadata)])),
    )
    yield "d1 vocabulary + 64 rows", partial(rows_added, model=model, rng=rng)
    yield "d2 3 rows inserted", partial(rows_inserted, model=model, rng=rng, places=1)
    yield "d3 3 rows inserted at 8 places", partial(rows_inserted, model=model, rng=rng, places=8)
    yield "i a byte inserted at 64 places, no header", partial(byte_inserted, model=model, places=64)
    yield "e1 1 to 3 shards", partial(only_headers, lambda: (shards(model, 1), shards(model, 3)))
    yield "e2 reordered", partial(only_headers, lambda: (shards(model, 1), shards(reordered(model, rng), 1)))
    yield (
        "e3 3 to 2 shards, reordered",
        partial(only_headers, lambda: (shards(model, 3), shards(reordered(model, rng), 2))),
    )
    header = len(gguf_header(model))
    yield (
        "c safetensors to GGUF bf16",
        lambda name: Case(name, [safetensors(model)], [gguf(reordered(model, rng))], header, limit=header),
    )
    parts = experts(rng, mib)
    order = rng.permutation(EXPERTS).tolist()
    yield "g experts fused", partial(fused, model=parts, order=list(range(EXPERTS)), was_fused=False)
    yield "g2 experts fused, reordered", partial(fused, model=parts, order=order, was_fused=False)
    yield "g3 fused experts reordered", partial(fused, model=parts, order=order, was_fused=True)
    small = small_tensors(rng, mib)
    some = [
        f"blocks.{index}.weight" for index in rng.choice(SMALL_TENSORS, SMALL_TENSORS // 50, replace=False)
    ]
    yield "h 3000 small tensors, 2 % changed", partial(replaced, model=small, names=some, rng=rng)


# Measuring.


def cut_by_tensor(content: bytes) -> NDArray[np.uint64]:
    """As megalfs does."""
    return chunk_buffer(content, DEFAULT_PROFILE)[0]


def cut_plain(content: bytes, *, avg_kib: int) -> NDArray[np.uint64]:
    """FastCDC over the file, a quarter to four times the average."""
    return megalfs_ext.cut_points(content, avg_kib * KIB // 4, avg_kib * KIB, avg_kib * KIB * 4)


CUTTERS: dict[str, Cutter] = {
    "megalfs": cut_by_tensor,
    "FastCDC 256K": partial(cut_plain, avg_kib=256),
    "FastCDC 64K": partial(cut_plain, avg_kib=64),
}


def chunks_of(content: bytes, cut: Cutter) -> Iterator[tuple[bytes, int]]:
    """BLAKE3 and length of every chunk."""
    ends = cut(content)
    digests = megalfs_ext.blake3_many(content, ends)
    start = 0
    for index, end in enumerate(ends.tolist()):
        yield digests[32 * index : 32 * index + 32], end - start
        start = end


def new_bytes(before: Files, after: Files, cut: Cutter) -> int:
    """Bytes of the chunks of version 2 that version 1 lacks, each chunk once."""
    held = {digest for content in before for digest, _ in chunks_of(content, cut)}
    wanted = {digest: length for content in after for digest, length in chunks_of(content, cut)}
    return sum(length for digest, length in wanted.items() if digest not in held)


@dataclass
class HfXet:
    """What hf_xet would upload, to a CAS in a directory."""

    directory: str
    version: str
    refused: int = 0  # bytes that it knew and sent all the same, to keep its files in few pieces

    def new_bytes(self, before: Files, after: Files) -> int:
        """Bytes of version 2 in chunks that version 1 lacks; what it refused to reuse is counted apart."""
        import hf_xet

        session = hf_xet.XetSession()
        report = None
        with tempfile.TemporaryDirectory(dir=self.directory) as cas:
            for files in (before, after):
                commit = session.new_upload_commit(endpoint=f"local://{cas}")
                for content in files:
                    commit.start_upload_bytes(content, sha256=hf_xet.SKIP_SHA256)
                report = commit.wait_to_finish().dedup_metrics
        assert report is not None
        self.refused += report.defrag_prevented_dedup_bytes
        return int(report.new_bytes - report.defrag_prevented_dedup_bytes)


def find_hf_xet(directory: str) -> HfXet | str:
    """hf_xet with every cache of its own in `directory`; or why it cannot be asked."""
    os.environ |= {"HF_HOME": directory, "HF_XET_CACHE": directory, "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ["HF_XET_TELEMETRY_ENABLED"] = "0"
    try:
        import hf_xet
    except ModuleNotFoundError as e:
        return str(e)
    from importlib.metadata import version

    if not hasattr(hf_xet, "XetSession"):
        return "this hf_xet has no XetSession; 1.8 has"
    return HfXet(directory, version("hf-xet"))


def verdict(case: Case, cost: int, rival: int) -> str:
    """Whether megalfs keeps what issue 3 promises of the case; rows by the average chunk that was measured."""
    if case.limit is not None:
        return f"≤ {mb(case.limit)}: {'met' if cost <= case.limit else 'MISSED'}"
    if not case.cuts:
        return ""
    excess = (cost - rival) / case.cuts
    mean = sum(map(len, case.before)) / sum(len(cut_by_tensor(content)) for content in case.before)
    word = "met" if excess <= mean else "MISSED"
    return f"≤ rival + a mean chunk of {mb(int(mean))} a cut: {word} ({excess / 1e6:+.3f} a cut)"


def mb(count: int) -> str:
    """Bytes in MB, short."""
    return f"{count / 1e6:.3f}" if count < 10_000_000 else f"{count / 1e6:.1f}"


def main() -> None:
    """Prints the table."""
    from common import machine, table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=FULL_MIB, help="size of the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", nargs="*", help="only cases whose name starts so")
    args = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as directory:
        hf_xet = find_hf_xet(directory)
        for name, make in makers(args.mib, args.seed):
            if args.case and not name.startswith(tuple(args.case)):
                continue
            case = make(name)
            costs = [new_bytes(case.before, case.after, cut) for cut in CUTTERS.values()]
            if isinstance(hf_xet, HfXet):
                costs.append(hf_xet.new_bytes(case.before, case.after))
            size = sum(map(len, case.after))
            rows.append([name, *map(mb, (size, case.ideal, *costs)), verdict(case, costs[0], costs[-1])])
    kernels = ", ".join(f"{stage} {megalfs_ext.kernels(stage).default}" for stage in ("cdc", "blake3"))
    print(f"{machine()}; kernels: {kernels}; seed {args.seed}\n")
    print("MB of version 2 that are not in chunks of version 1; FastCDC is over the whole file.\n")
    is_real = isinstance(hf_xet, HfXet)
    head = ["case", "size", "ideal", *CUTTERS, *(["hf_xet 64K"] if is_real else []), "goal"]
    print(table(head, rows))
    if isinstance(hf_xet, HfXet):
        print(
            f"\nhf_xet {hf_xet.version}: its own upload report, to a CAS in a directory, no network. It would"
        )
        print(
            f"send {mb(hf_xet.refused)} MB more, all cases together: known chunks, to keep files in few pieces."
        )
    else:
        print(f"\nhf_xet skipped: {hf_xet}. FastCDC 64K stands in for it (its target is 64 KiB as well).")


if __name__ == "__main__":
    main()
