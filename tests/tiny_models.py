"""Random models of three architectures, small enough for oracles: 2 layers, grouped-query attention, 97 tokens."""

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ARCHITECTURES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
VOCABULARY = 97


def tiny_model(name: str = "qwen3", dtype: torch.dtype = torch.float64, **options) -> PreTrainedModel:
    """Weights are large (std 0.3), so that attention is sharp and a wrong position or mask shows."""
    config_class, model_class = ARCHITECTURES[name]
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
    }
    if name == "qwen2":
        del settings["head_dim"]
    torch.manual_seed(0)
    model = model_class(config_class(**(settings | options))).to(dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def with_exact_norms(model: nn.Module) -> nn.Module:
    """The models' own RMS norms round to float32 even in float64; these do not."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=child.weight.dtype)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model


def random_ids(generator: torch.Generator, length: int) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def full_forward_logprobs(model: nn.Module, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Row t: log-probs of token t+1 over the vocabulary, by one ordinary forward without any cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return (logits / temperature).log_softmax(-1)
