"""What engine and scorer need to know of a causal language model, asked once and checked loudly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rcgrpo.errors import UserError

_ATTENTION = ("sdpa", "eager")
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class Architecture:
    """The parts of a causal LM. With LoRA they contain the adapters' layers, so calling them applies the adapters."""

    causal_lm: PreTrainedModel
    """Takes token ids, gives logits."""
    decoder: nn.Module
    """Takes token ids, gives last hidden states."""
    head: nn.Module
    """Hidden states to logits."""
    layers: nn.ModuleList
    config: PretrainedConfig

    @property
    def kv_heads(self) -> int:
        return self.config.num_key_value_heads

    @property
    def head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads


def architecture(model: nn.Module) -> Architecture:
    """Find the parts of ``model``, a transformers causal LM, bare or wrapped by peft's LoRA.

    Raises UserError for what the explicit 4-D masks of this package cannot serve: attention kernels that take no
    mask, sliding windows, prompt-learning adapters, and heads that transform their logits after the projection.
    """
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise UserError(f"adapter type {model.active_peft_config.peft_type}: only LoRA-like adapters; use LoRA")
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"model of type {type(model).__name__}: give a transformers causal LM, bare or with LoRA")
    config = model.config
    options = config.to_dict()
    if config._attn_implementation not in _ATTENTION:
        raise UserError(f"attn_implementation={config._attn_implementation!r}: load the model with 'sdpa' or 'eager'")
    if set(options.get("layer_types") or ["full_attention"]) != {"full_attention"}:
        raise UserError(f"layer_types={options['layer_types']}: only full attention is supported; choose another model")
    if any(options.get(name) for name in _LOGIT_TRANSFORMS):
        raise UserError(f"a config with one of {_LOGIT_TRANSFORMS} is not supported; choose another model")
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    assert isinstance(decoder, nn.Module) and isinstance(head, nn.Module)
    assert isinstance(decoder.layers, nn.ModuleList)
    return Architecture(causal_lm=model, decoder=decoder, head=head, layers=decoder.layers, config=config)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``visible``, minus infinity elsewhere: the one mask that both sdpa and eager attention read alike."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def at_least_float32(logits: Tensor) -> Tensor:
    """Half precision is widened, float64 (the tests' oracle) stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
