"""AdapterWeights: the fp32 truth of an adapter, read from PEFT's files and written back to them in one canonical form."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from mint_stream.adapter.parameters import separated, tensor_names
from mint_stream.adapter.peft_config import CONFIG_FILE, PeftConfig
from mint_stream.adapter.targets import LayerShape, check_layers, check_targets, grouped_targets
from mint_stream.adapter.tensors import TensorFile, all_finite, read_tensors, write_tensors
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
    """One adapted linear layer, unscaled, fp32 on the CPU: A [r, in], B [out, r].

    Of a bare parameter's `experts`, as PEFT has them: A [experts · r, in], an expert after the other, B [out, r · experts], expert fastest.
    """

    A: Tensor
    B: Tensor
    scaling: float
    experts: int = 0
    """0: a linear layer. Else a bare parameter: of so many experts, or 1 for a matrix that belongs to none."""

    @property
    def rank(self) -> int:
        """r"""
        return self.A.shape[0] // max(1, self.experts)

    @property
    def shape(self) -> LayerShape:
        """(in, out) of a linear layer, (in, out, experts) of a bare parameter."""
        width, height = self.A.shape[1], self.B.shape[0]
        return (width, height, self.experts) if self.experts else (width, height)


@dataclass(frozen=True)
class AdapterWeights:
    """Layers by the base's module path (`model.layers.0.self_attn.q_proj`), or a bare parameter's own, and their canonical PEFT config."""

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
        file = _read(tensors)
        pairs = _pairs(file.tensors)
        linears, parameters = separated(pairs, settings)
        layers = {path: _linear(path, pair, settings) for path, pair in linears.items()}
        layers |= {path: _parameter(path, pair, settings) for path, pair in parameters.items()}
        if not file.finite:
            _refuse_what_is_not_finite(layers)
        return cls(layers=dict(sorted(layers.items())), config=settings.canonical(linears, parameters))

    @classmethod
    def fresh(
        cls, settings: LoraSettings, base_targets_by_path: Mapping[str, tuple[int, int]], seed: int, output_head: str | None = "lm_head"
    ) -> Self:
        """Untrained: A uniform in ±1/sqrt(in) as PEFT draws it, B = 0, so it answers exactly as the base does.

        `base_targets_by_path` has (in, out) of every linear layer; "all-linear" leaves `output_head` out, as PEFT does. Each layer's
        numbers follow from (seed, path) alone. Raises InvalidAdapter when nothing is targeted.
        """
        wanted, paths = _selected(settings, base_targets_by_path, output_head)
        layers = {path: _untrained(path, base_targets_by_path[path], wanted, seed) for path in paths}
        return cls(layers=layers, config=wanted.canonical(paths))

    def to_peft(self) -> dict[str, bytes]:
        """The two files PEFT loads, by name. The same adapter always gives the same bytes."""
        return {CONFIG_FILE: canonical_json(self.config), TENSORS_FILE: write_tensors(self._tensors())}

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
        return max(layer.rank for layer in self.layers.values())

    def targets(self) -> tuple[TargetShape, ...]:
        """What it adapts, layers of one kind together, sorted."""
        return grouped_targets({path: (layer.shape, layer.rank) for path, layer in self.layers.items()})

    def check(self, base_targets: Iterable[TargetShape], max_rank: int) -> None:
        """Whether a base with these layers can carry it. Raises InvalidAdapter (rank over the cap) or BaseMismatch."""
        check_targets(self.targets(), base_targets, max_rank)

    def check_layers(self, layers: Mapping[str, LayerShape], max_rank: int) -> None:
        """As `check`, against the shapes of the base's linear layers and bare parameters by their exact paths."""
        check_layers({path: (layer.shape, layer.rank) for path, layer in self.layers.items()}, layers, max_rank)

    def _tensors(self) -> dict[str, Tensor]:
        inner = tensor_names([path for path, layer in self.layers.items() if layer.experts])
        named = {
            f"base_model.model.{inner.get(path, path)}.lora_{side}.weight": getattr(layer, side)
            for path, layer in self.layers.items()
            for side in "AB"
        }
        return {name: _canonical(named[name]) for name in sorted(named)}


def _canonical(tensor: Tensor) -> Tensor:
    """fp32 on the CPU; itself when it is that already, for there may be tens of thousands."""
    if tensor.dtype == torch.float32 and tensor.is_cpu and tensor.is_contiguous() and not tensor.requires_grad:
        return tensor
    return tensor.detach().cpu().float().contiguous()


def _read(tensors: bytes) -> TensorFile:
    if tensors[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        raise InvalidAdapter(f"{TENSORS_FILE} is a pickle, which can run code and is refused: save as safetensors")
    try:
        return read_tensors(tensors)
    except InvalidAdapter as error:
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


def _linear(path: str, pair: Mapping[str, Tensor], settings: PeftConfig) -> AdapterLayer:
    if not settings.selects(path):
        raise InvalidAdapter(f"{path} has weights, but {CONFIG_FILE} does not select it: PEFT would ignore them")
    return _layer(path, pair, settings, 0)


def _parameter(path: str, pair: Mapping[str, Tensor], settings: PeftConfig) -> AdapterLayer:
    """How many experts there are follows from A's rows, r for each."""
    return _layer(path, pair, settings, max(1, pair["A"].shape[0] // settings.rank(path)) if "A" in pair else 1)


def _layer(path: str, pair: Mapping[str, Tensor], settings: PeftConfig, experts: int) -> AdapterLayer:
    if set(pair) != {"A", "B"}:
        raise InvalidAdapter(f"{path} has lora_{next(iter(pair))} but not the other half")
    a, b = pair["A"], pair["B"]
    rows = settings.rank(path) * max(1, experts)
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rows or b.shape[1] != rows:
        raise InvalidAdapter(f"{path}: lora_A {list(a.shape)} and lora_B {list(b.shape)} are not [{rows}, in] and [out, {rows}]")
    if not (a.is_floating_point() and b.is_floating_point()):
        raise InvalidAdapter(f"{path}: lora_A is {a.dtype} and lora_B {b.dtype}; both must be floating point")
    return AdapterLayer(a.float().contiguous(), b.float().contiguous(), settings.scaling(path), experts)


def _refuse_what_is_not_finite(layers: Mapping[str, AdapterLayer]) -> None:
    for path, layer in layers.items():
        if not (all_finite(layer.A) and all_finite(layer.B)):
            raise InvalidAdapter(f"{path} holds numbers that are not finite")


def fresh_parameters(settings: LoraSettings, base_targets_by_path: Mapping[str, tuple[int, int]], output_head: str | None) -> int:
    """How many numbers AdapterWeights.fresh would draw. Raises InvalidAdapter as it does."""
    wanted, paths = _selected(settings, base_targets_by_path, output_head)
    return sum(wanted.rank(path) * sum(base_targets_by_path[path]) for path in paths)


def _selected(settings: LoraSettings, by_path: Mapping[str, tuple[int, int]], output_head: str | None) -> tuple[PeftConfig, list[str]]:
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
    paths = [path for path in sorted(by_path) if path != left_out and wanted.selects(path)]
    if not paths:
        raise InvalidAdapter(f"target_modules {settings.target_modules!r} names no linear layer of the base")
    return wanted, paths


def _untrained(path: str, shape: tuple[int, int], settings: PeftConfig, seed: int) -> AdapterLayer:
    width, height = shape
    rank = settings.rank(path)
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:8], "little", signed=True)
    a = torch.empty(rank, width).uniform_(-(width**-0.5), width**-0.5, generator=torch.Generator().manual_seed(draw))
    return AdapterLayer(a, torch.zeros(height, rank), settings.scaling(path))
