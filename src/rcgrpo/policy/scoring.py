"""Log-probabilities of given episodes, with gradients: for training, and without for the reference.

The prompt that a group shares runs once, with its autograd graph, and only the completions run on top. On a CPU whole
groups stand in one packed row without padding (``branching``). Elsewhere prompts run first, their keys and values are
expanded to the group's members, and padded completions follow: two passes, but inside ONE ``forward``, because DDP and
FSDP hook there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PretrainedConfig

from rcgrpo.errors import UserError
from rcgrpo.policy import branching
from rcgrpo.policy.architecture import Architecture, additive_mask, architecture, at_least_float32
from rcgrpo.policy.packing import ScoringBatch


class Scores(NamedTuple):
    """Laid out as ``ScoringBatch.mask_BL``; zeros where the mask is 0."""

    logprobs_BL: Tensor
    """Log-probability of each trained token at the asked temperature, nats, float32 (float64 for a float64 model)."""
    entropy_BL: Tensor
    """Entropy of the distribution that the token was drawn from, nats, without gradient."""


class _Prefixes(Cache):
    """Keeps the keys and values of each layer as they are in the autograd graph."""

    def __init__(self) -> None:
        super().__init__(layers=[])  # the layers of transformers are not used: `update` is overridden
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.kept.setdefault(layer_idx, (key_states, value_states))  # a checkpoint's recomputation comes second
        return key_states, value_states


class _Branches(Cache):
    """Each completion reads the keys and values of its own prefix and then its own.

    Nothing is written in place, so gradients of the completions flow into the prefixes they attended to.
    """

    def __init__(self, prefixes: _Prefixes, group_B: Tensor) -> None:
        super().__init__(layers=[])
        self.prefixes, self.group_B = prefixes, group_B

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.prefixes.kept[layer_idx]
        return (
            torch.cat([keys.index_select(0, self.group_B), key_states], dim=2),
            torch.cat([values.index_select(0, self.group_B), value_states], dim=2),
        )


class Scorer(nn.Module):
    """Scores episodes under ``model``, a causal LM, bare or with LoRA. Its dropout must be 0.

    ``shared_prefix``: run what a group shares once; False runs whole sequences (slower; the oracle).
    ``packed``: of the two ways to share, the packed row; None: wherever it works, on a CPU with sdpa attention.
    ``logits_chunk``: trained tokens whose logits live at once; each chunk is recomputed in the backward pass.
    ``checkpoint``: recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shared_prefix: bool = True,
        packed: bool | None = None,
        logits_chunk: int = 1024,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.packed = model, packed
        self.shared_prefix, self.logits_chunk, self.checkpoint = shared_prefix, logits_chunk, checkpoint
        arch = architecture(model)  # checks it
        options = arch.config.to_dict()
        dropping = {name: p for name, p in options.items() if "dropout" in name and isinstance(p, float) and p > 0}
        dropping |= {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0}
        if dropping:
            raise UserError(f"dropout must be 0 for log-probs that can be compared, but {dropping}: set it to 0")
        if logits_chunk < 1:
            raise UserError(f"logits_chunk={logits_chunk}: must be at least 1")

    def forward(self, batch: ScoringBatch, temperature: float) -> Scores:
        """Score the trained tokens of ``batch`` at ``temperature`` (> 0; score greedy episodes at 1)."""
        if temperature <= 0:
            raise UserError(f"temperature={temperature}: scoring needs one above 0; greedy episodes are scored at 1")
        trained_BL = batch.mask_BL
        before_BL = trained_BL.roll(-1, dims=1)  # the position that predicts a token is the one before it
        if self.shared_prefix and self._packs(batch):
            hidden_TD = self._packed(batch, before_BL)
        else:
            with self._layers_checkpointed(architecture(self.model)):
                hidden_BLD = self._shared(batch) if self.shared_prefix else self._whole(batch)
            hidden_TD = hidden_BLD[before_BL]
        logprobs_T, entropy_T = self._head(hidden_TD, batch.ids_BL[trained_BL], temperature)
        logprobs_BL, entropy_BL = (logprobs_T.new_zeros(trained_BL.shape) for _ in range(2))
        return Scores(
            logprobs_BL.masked_scatter(trained_BL, logprobs_T), entropy_BL.masked_scatter(trained_BL, entropy_T)
        )

    def _packs(self, batch: ScoringBatch) -> bool:
        if self.packed is not None:
            return self.packed
        return batch.ids_BL.device.type == "cpu" and architecture(self.model).config._attn_implementation == "sdpa"

    def _packed(self, batch: ScoringBatch, wanted_BL: Tensor) -> Tensor:
        """Last hidden states [T, D] at the wanted positions of the completions, all groups in one row."""
        arch = architecture(self.model)
        groups, columns_BL, ids_S, positions_S = batch.in_one_row()
        columns_T = columns_BL[wanted_BL]
        with _attending(arch.config, branching.ATTENTION), self._layers_checkpointed(arch):
            hidden_1SD = arch.decoder(
                input_ids=ids_S[None], position_ids=positions_S[None], use_cache=False, groups=groups, wanted=columns_T
            ).last_hidden_state
        return hidden_1SD[0, columns_T]

    def _shared(self, batch: ScoringBatch) -> Tensor:
        """Last hidden states [B, L, D] of the completions: prefixes first, completions on top of them."""
        arch = architecture(self.model)
        if not batch.prefix_NP.shape[1]:
            return arch.decoder(input_ids=batch.ids_BL, use_cache=False).last_hidden_state
        prefixes = _Prefixes()
        # Prefixes are padded on the right: plain causal attention never sees the padding from a real token.
        arch.decoder(input_ids=batch.prefix_NP, past_key_values=prefixes, use_cache=True)
        length = batch.ids_BL.shape[1]
        column_L = torch.arange(length, device=batch.ids_BL.device)
        prefix_B = batch.prefix_length_N[batch.group_B]
        column_P = torch.arange(batch.prefix_NP.shape[1], device=column_L.device)
        visible_BLP = (column_P < prefix_B[:, None])[:, None].expand(-1, length, -1)
        visible_BLL = (column_L <= column_L[:, None]).expand(len(prefix_B), -1, -1)
        visible_BLS = torch.cat([visible_BLP, visible_BLL], dim=-1)
        return arch.decoder(
            input_ids=batch.ids_BL,
            position_ids=prefix_B[:, None] + column_L,
            attention_mask=additive_mask(visible_BLS[:, None], arch.causal_lm.dtype),
            past_key_values=_Branches(prefixes, batch.group_B),
            use_cache=True,
        ).last_hidden_state

    def _whole(self, batch: ScoringBatch) -> Tensor:
        """The same by running every sequence in full, padded on the right."""
        ids_BS, start_B = batch.whole()
        hidden_BSD = architecture(self.model).decoder(input_ids=ids_BS, use_cache=False).last_hidden_state
        columns_BL = start_B[:, None] + torch.arange(batch.ids_BL.shape[1], device=ids_BS.device)
        columns_BL = columns_BL.clamp(max=ids_BS.shape[1] - 1)  # beyond a sequence's end: never trained
        return hidden_BSD.gather(1, columns_BL[:, :, None].expand(-1, -1, hidden_BSD.shape[-1]))

    def _head(self, hidden_TD: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of T tokens, a chunk of logits at a time."""
        head = architecture(self.model).head
        chunks = []
        for hidden_CD, targets_C in zip(
            hidden_TD.split(self.logits_chunk), targets_T.split(self.logits_chunk), strict=True
        ):
            chunks.append(_recomputed(_score_chunk, head, hidden_CD, targets_C, temperature))
        logprobs, entropies = zip(*chunks, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    @contextmanager
    def _layers_checkpointed(self, arch: Architecture) -> Iterator[None]:
        """Let each decoder layer recompute itself in the backward pass.

        The checkpointing of transformers switches the cache off, so the layers' ``forward`` is wrapped here. The
        cache's keys and values stay: they are outputs of the layer, like its hidden states.
        """
        layers = arch.layers if self.checkpoint and torch.is_grad_enabled() else []
        attention = str(arch.config._attn_implementation)
        for layer in layers:
            layer.forward = partial(_recomputed, partial(_under, arch.config, attention, layer.forward))
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


@contextmanager
def _attending(config: PretrainedConfig, attention: str) -> Iterator[None]:
    """Within: the model of ``config`` attends by this function."""
    before = config._attn_implementation
    config._attn_implementation = attention
    try:
        yield
    finally:
        config._attn_implementation = before


def _under(config: PretrainedConfig, attention: str, function, *args, **kwargs):
    """``function(...)`` with this attention, also where the backward pass calls it once more."""
    with _attending(config, attention):
        return function(*args, **kwargs)


def _recomputed(function, *args, **kwargs):
    """``function(...)``, its inner activations dropped and computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _score_chunk(head: nn.Module, hidden_CD: Tensor, targets_C: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs_CV = (at_least_float32(head(hidden_CD)) / temperature).log_softmax(-1)
    logprobs_C = logprobs_CV.gather(-1, targets_C[:, None])[:, 0]
    with torch.no_grad():  # 0 * log 0 = 0
        entropy_C = -(logprobs_CV.exp() * logprobs_CV.clamp(min=torch.finfo(logprobs_CV.dtype).min)).sum(-1)
    return logprobs_C, entropy_C


@torch.no_grad()
def reference_scores(
    scorer: Scorer, batch: ScoringBatch, temperature: float, reference: Scorer | None = None
) -> Scores:
    """Scores under the reference policy: ``reference`` if given, else the scorer's own model with its LoRA off.

    With the adapter off the model is what the adapter was put on, so that must be the stage-1 checkpoint.
    """
    if reference is not None:
        return reference(batch, temperature)
    if not isinstance(scorer.model, PeftModel):
        raise UserError("a reference without LoRA needs a second model: give `reference`")
    with scorer.model.disable_adapter():
        return scorer(batch, temperature)
