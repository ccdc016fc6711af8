"""AdapterWeights: the fp32 truth of an adapter, read from PEFT's files and written back to them in one canonical form."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mint_stream.adapter.peft_config import CONFIG_FILE, PeftConfig
from mint_stream.adapter.targets import check_linears, check_targets, grouped_targets
from mint_stream.errors import InvalidAdapter
from mint_stream.messages.record import canonical_json
from mint_stream.messages.shared import TargetShape
from mint_stream.messages.training import LoraSettings

TENSORS_FILE = "adapter_model.safetensors"

_KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])\.weight")
_REFUSED = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "LoRA on an embedding",
    "modules_to_save": "modules_to_save",
    "token_adapter": "training of single tokens",
    "lora_B.bias": "a bias (lora_bias)",
    ".bias": "a bias",
    ".base_layer.": "a copy of a base layer (save with save_embedding_layers=False)",
    ".weight": "a full weight (save with save_embedding_layers=False)",
}


@dataclass(frozen=True)
class AdapterLayer:
    """One adapted linear layer, unscaled, fp32 on the CPU: A [r, in], B [out, r]."""

    A: Tensor
    B: Tensor
    scaling: float


@dataclass(frozen=True)
class AdapterWeights:
    """Layers by the base's module path (`model.layers.0.self_attn.q_proj`), and the canonical PEFT config that goes with them."""

    layers: Mapping[str, AdapterLayer]
    config: Mapping[str, Any]

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """From files by name, as PEFT saves them. Raises InvalidAdapter."""
        missing = [name for name in (CONFIG_FILE, TENSORS_FILE) if name not in files]
        if missing:
            pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
            hint = f"; {pickles[0]} is a pickle, which can run code and is refused: save as safetensors" if pickles else ""
            raise InvalidAdapter(f"{missing[0]} is missing{hint}")
        return cls.from_peft(files[CONFIG_FILE], files[TENSORS_FILE])

    @classmethod
    def from_peft(cls, config: bytes, tensors: bytes) -> Self:
        """From the bytes of PEFT's two files. Raises InvalidAdapter for what is malformed, not finite, or refused by name."""
        settings = PeftConfig.parse(config)
        pairs = _pairs(_read(tensors))
        layers = {path: _layer(path, pairs[path], settings) for path in sorted(pairs)}
        return cls(layers=layers, config=settings.canonical(layers))

    @classmethod
    def fresh(
        cls, settings: LoraSettings, base_targets_by_path: Mapping[str, tuple[int, int]], seed: int, output_head: str | None = "lm_head"
    ) -> Self:
        """Untrained: A uniform in ±1/sqrt(in) as PEFT draws it, B = 0, so it answers exactly as the base does.

        `base_targets_by_path` has (in, out) of every linear layer; "all-linear" leaves `output_head` out, as PEFT does. Each layer's
        numbers follow from (seed, path) alone. Raises InvalidAdapter when nothing is targeted.
        """
        wanted = PeftConfig(
            peft_type="LORA",
            r=settings.rank,
            lora_alpha=settings.alpha,
            use_rslora=settings.use_rslora,
            rank_pattern=settings.rank_pattern,
            alpha_pattern=settings.alpha_pattern,
            target_modules=settings.target_modules,
        )
        left_out = output_head if settings.target_modules == "all-linear" else None
        paths = [path for path in sorted(base_targets_by_path) if path != left_out and wanted.selects(path)]
        if not paths:
            raise InvalidAdapter(f"target_modules {settings.target_modules!r} names no linear layer of the base")
        layers = {path: _untrained(path, base_targets_by_path[path], wanted, seed) for path in paths}
        return cls(layers=layers, config=wanted.canonical(paths))

    def to_peft(self) -> dict[str, bytes]:
        """The two files PEFT loads, by name. The same adapter always gives the same bytes."""
        return {CONFIG_FILE: canonical_json(self.config), TENSORS_FILE: safetensors.torch.save(self._tensors())}

    @cached_property
    def digest(self) -> str:
        """sha256 hex over the canonical config and the sorted tensors: the identity of what the adapter computes."""
        digest = hashlib.sha256(canonical_json(self.config))
        for name, tensor in self._tensors().items():
            digest.update(f"\n{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    @property
    def parameters(self) -> int:
        """How many numbers there are in all A and B."""
        return sum(layer.A.numel() + layer.B.numel() for layer in self.layers.values())

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(layer.A.shape[0] for layer in self.layers.values())

    def targets(self) -> tuple[TargetShape, ...]:
        """What it adapts, layers of one kind together, sorted."""
        return grouped_targets(self._shapes())

    def check(self, base_targets: Iterable[TargetShape], max_rank: int) -> None:
        """Whether a base with these layers can carry it. Raises InvalidAdapter (rank over the cap) or BaseMismatch."""
        check_targets(self.targets(), base_targets, max_rank)

    def check_layers(self, linears: Mapping[str, tuple[int, int]], max_rank: int) -> None:
        """As `check`, against (in, out) of the base's linear layers by their exact paths."""
        check_linears(self._shapes(), linears, max_rank)

    def _shapes(self) -> dict[str, tuple[int, int, int]]:
        """path -> (in, out, rank)."""
        return {path: (layer.A.shape[1], layer.B.shape[0], layer.A.shape[0]) for path, layer in self.layers.items()}

    def _tensors(self) -> dict[str, Tensor]:
        named = {
            f"base_model.model.{path}.lora_{side}.weight": getattr(layer, side) for path, layer in self.layers.items() for side in "AB"
        }
        return {name: named[name].detach().cpu().float().contiguous() for name in sorted(named)}


def _read(tensors: bytes) -> dict[str, Tensor]:
    if tensors[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        raise InvalidAdapter(f"{TENSORS_FILE} is a pickle, which can run code and is refused: save as safetensors")
    try:
        return safetensors.torch.load(tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidAdapter(f"{TENSORS_FILE} is not a safetensors file: {error}") from error


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            what = next((word for part, word in _REFUSED.items() if part in name), "this tensor")
            raise InvalidAdapter(f"{what} is not supported: {TENSORS_FILE} has {name}")
        pairs.setdefault(match["path"], {})[match["side"]] = tensor
    if not pairs:
        raise InvalidAdapter(f"{TENSORS_FILE} holds no tensors")
    return pairs


def _layer(path: str, pair: Mapping[str, Tensor], settings: PeftConfig) -> AdapterLayer:
    if set(pair) != {"A", "B"}:
        raise InvalidAdapter(f"{path} has lora_{next(iter(pair))} but not the other half")
    if not settings.selects(path):
        raise InvalidAdapter(f"{path} has weights, but {CONFIG_FILE} does not select it: PEFT would ignore them")
    a, b = pair["A"], pair["B"]
    rank = settings.rank(path)
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise InvalidAdapter(f"{path}: lora_A {list(a.shape)} and lora_B {list(b.shape)} are not [{rank}, in] and [out, {rank}]")
    if not (a.is_floating_point() and b.is_floating_point()):
        raise InvalidAdapter(f"{path}: lora_A is {a.dtype} and lora_B {b.dtype}; both must be floating point")
    layer = AdapterLayer(a.float().contiguous(), b.float().contiguous(), settings.scaling(path))
    if not (torch.isfinite(layer.A).all() and torch.isfinite(layer.B).all()):
        raise InvalidAdapter(f"{path} holds numbers that are not finite")
    return layer


def _untrained(path: str, shape: tuple[int, int], settings: PeftConfig, seed: int) -> AdapterLayer:
    width, height = shape
    rank = settings.rank(path)
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:8], "little", signed=True)
    a = torch.empty(rank, width).uniform_(-(width**-0.5), width**-0.5, generator=torch.Generator().manual_seed(draw))
    return AdapterLayer(a, torch.zeros(height, rank), settings.scaling(path))
