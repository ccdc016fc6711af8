"""The base in two parts: hidden states of a whole pass, and logits of those rows that are learned."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mint_stream.errors import BaseUnusable, DeviceLost
from mint_stream.kernels import LoraWeights
from mint_stream.model.forward import PackedModel, Uncached
from mint_stream.model.passes import AdapterSet, Pass, pack
from mint_stream.trainer.examples import Preference
from mint_stream.trainer.losses import logprobs
from mint_stream.trainer.objectives import ROWS_PER_CHUNK
from mint_stream.trainer.packing import filled, learned_rows

PROBE_TOKENS = (1, 2, 3, 4, 5)


class Body:
    """Runs passes of whole sequences."""

    def __init__(self, packed: PackedModel) -> None:
        """Raises BaseUnusable for a model whose logits are more than its head applied to its last hidden states."""
        self._packed = packed
        self._check_head()

    @property
    def device(self) -> torch.device:
        """Where the base lives."""
        return self._packed.device

    def hidden(self, pass_: Pass, gradients: bool = True) -> Tensor:
        """The last hidden states [T, H] of a pass."""
        with self._packed.sites.applied(pass_), torch.set_grad_enabled(gradients):
            output = self._packed.model.get_decoder()(  # type: ignore[operator]  # a method of every transformers model
                input_ids=torch.tensor([pass_.tokens], device=self.device),
                position_ids=torch.tensor([pass_.positions], device=self.device),
                past_key_values=Uncached(),
                use_cache=True,
                mint_pass=pass_,
                mint_cache=None,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def head(self, pass_: Pass, hidden: Tensor) -> Tensor:
        """Logits of the pass's selected rows, whose hidden states are `hidden`."""
        with self._packed.sites.applied(pass_):
            logits: Tensor = self._packed.model.get_output_embeddings()(hidden)  # type: ignore[operator]
        cap = getattr(self._packed.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def summed(self, pair: Preference, adapter: Mapping[str, LoraWeights] | None, at_least: int) -> tuple[float, float]:
        """Σ w·logp of the chosen and of the rejected one under `adapter`, in a pass of their own, filled up to `at_least` rows."""
        slot = -1 if adapter is None else 0
        sequences = filled([(one.tokens[:-1], slot) for one in pair.sequences], pair.length - 2, at_least)
        rows, targets = learned_rows(pair.sequences)
        pass_ = pack(sequences, rows, adapters=AdapterSet([adapter or {}]), training=True)
        weights = torch.tensor([weight for one in pair.sequences for weight in one.weights if weight], device=self.device)
        weighted = self._logprobs(pass_, torch.tensor(targets, device=self.device)) * weights
        first = sum(map(bool, pair.chosen.weights))
        return float(weighted[:first].sum()), float(weighted[first:].sum())

    @torch.no_grad()
    def _logprobs(self, pass_: Pass, targets: Tensor) -> Tensor:
        """Of `targets` [N] at the pass's selected rows, a chunk of rows after the other."""
        hidden = self.hidden(pass_, gradients=False)
        found = []
        for start in range(0, len(pass_.selected), ROWS_PER_CHUNK):
            rows = pass_.selected[start : start + ROWS_PER_CHUNK]
            logits = self.head(replace(pass_, selected=rows, scratch={}), hidden[list(rows)])
            found.append(logprobs(logits, targets[start : start + ROWS_PER_CHUNK]))
        return torch.cat(found)

    def prove(self) -> None:
        """One small pass of the base alone. Raises DeviceLost when it does not come through: a CUDA error stays until its process ends."""
        try:
            hidden = self.hidden(pack([(PROBE_TOKENS, -1)], training=True), gradients=False)
            finite = bool(hidden.isfinite().all())  # read here, where what the device did wrong shows
        except Exception as error:
            raise DeviceLost(f"the base alone cannot be computed any more: {type(error).__name__}: {error}; restart the worker") from error
        if not finite:
            raise DeviceLost("the base alone computes numbers that are not finite; restart the worker")

    def _check_head(self) -> None:
        probe = pack([(PROBE_TOKENS, -1)])
        with torch.no_grad():
            ours = self.head(probe, self.hidden(replace(probe, training=True), gradients=False))
            stock = self._packed.forward(replace(probe, training=True)).detach()
        if not torch.allclose(ours.float(), stock.float(), rtol=1e-3, atol=1e-3):
            raise BaseUnusable(
                f"{type(self._packed.model).__name__} does more to its logits than the trainer knows of; it cannot be trained"
            )
