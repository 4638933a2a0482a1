"""What the GPU benchmark runs: models from their configs alone, prompts like BFCL's, and the counts behind each bound.

Counts are of useful work: what the shared-prefix algorithm cannot do without. Recomputed activations are not counted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

CONFIGS: dict[str, dict[str, Any]] = {
    # https://huggingface.co/Qwen/Qwen2.5-7B/blob/main/config.json
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": False,
    },
    # https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
    },
    # for the 200 steps, and for equality with generate() in float32
    "small": {
        "model_type": "qwen2",
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16384,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": True,
    },
    # for tests
    "tiny": {
        "model_type": "qwen2",
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
    },
}
"""By name; the keys are those of the published config.json, without what does not change shape or speed."""


@dataclass(frozen=True)
class Load:
    """Rollouts of one step: groups of rows with one prompt each, messages of sampled tokens between given ones."""

    prompts: int
    group: int
    prompt_tokens: int
    messages: tuple[int, ...]
    """Sampled tokens of each message. Every second message is followed by a user turn, the others by a tool result."""
    given: int
    """Given tokens between two messages."""

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    @property
    def generated(self) -> int:
        """Sampled tokens per row."""
        return sum(self.messages)

    @property
    def completion(self) -> int:
        """Tokens per row after the prompt."""
        return self.generated + self.given * (len(self.messages) - 1)

    def prompt_ids(self, vocabulary: int, seed: int = 0) -> list[list[int]]:
        """One prompt per row. Inside a group only the reward token differs, six before the end; lengths vary by 5%."""
        rng = random.Random(seed)
        prompts = []
        for _ in range(self.prompts):
            length = self.prompt_tokens + rng.randrange(-self.prompt_tokens // 20, self.prompt_tokens // 20 + 1)
            common, end = ([rng.randrange(10, vocabulary) for _ in range(n)] for n in (length - 6, 5))
            prompts += [[*common, 3 + j % 2, *end] for j in range(self.group)]
        return prompts


BFCL = Load(prompts=8, group=8, prompt_tokens=6000, messages=(150, 50) * 3, given=40)
"""8 prompts x G = 8, three user turns, 600 sampled tokens a row."""
TINY = Load(prompts=2, group=2, prompt_tokens=60, messages=(6, 3) * 2, given=4)
SMALL = Load(prompts=4, group=4, prompt_tokens=200, messages=(16, 8), given=8)


def load_of(name: str) -> Load:
    """The rollouts that a model of this name plays."""
    return {"tiny": TINY, "small": SMALL}.get(name, BFCL)


def build(name: str, dtype: torch.dtype, device: torch.device, seed: int = 0) -> PreTrainedModel:
    """Random weights, made on the device in their dtype."""
    settings = dict(CONFIGS[name])
    kind = {"qwen2": Qwen2Config, "llama": LlamaConfig}[settings.pop("model_type")]
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(kind(**settings), dtype=dtype, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


@dataclass(frozen=True)
class Counts:
    """Sizes of a model, from its config."""

    layers: int
    """Parameters of all decoder layers' matrices."""
    head: int
    """Parameters of the LM head (as many as the embedding)."""
    total: int
    """All parameters."""
    kv_bytes: int
    """Bytes of keys and values per token, bfloat16."""
    attention: int
    """FLOPs of one query meeting one key, all layers and heads, forward: 4 x layers x heads x head dimension."""
    hidden: int
    depth: int

    @classmethod
    def of(cls, name: str) -> Counts:
        c = CONFIGS[name]
        hidden, depth, heads, kv = (
            c[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        )
        width = hidden // heads
        matrices = 2 * hidden * hidden + 2 * hidden * kv * width + 3 * hidden * c["intermediate_size"]
        biases = (heads + 2 * kv) * width if c["model_type"] == "qwen2" else 0
        head = c["vocab_size"] * hidden
        total = depth * (matrices + biases + 2 * hidden) + hidden + head * (1 if c["tie_word_embeddings"] else 2)
        return cls(depth * matrices, head, total, 4 * depth * kv * width, 4 * depth * hidden, hidden, depth)

    def decode_bytes(self, load: Load) -> float:
        """Least bytes of the middle decode step: weights once, each group's prompt once, each row's own tokens."""
        own = load.rows * load.completion / 2
        return 2 * (self.total - self.head) + self.kv_bytes * (load.prompts * load.prompt_tokens + own)

    def decode_flops(self, load: Load) -> float:
        """FLOPs of that step."""
        seen = load.prompt_tokens + load.completion / 2
        return load.rows * (2 * (self.layers + self.head) + self.attention * seen)

    def prefill_flops(self, load: Load) -> float:
        """FLOPs of every prompt once."""
        n = load.prompt_tokens
        return load.prompts * (2 * self.layers * n + self.attention * n * n / 2)

    def update_flops(self, load: Load, *, full: bool, shared: bool = True) -> float:
        """Forward, input gradients and (``full``) weight gradients of one step: 4 or 6 FLOPs per parameter and token.

        ``shared``: each prompt once (useful work); False: once per row, as an ordinary forward does. Attention: the
        forward's FLOPs three times (its backward has twice as many products). The head: trained tokens only. LoRA's
        own matrices (0.3%) are left out.
        """
        n, c, rows = load.prompt_tokens, load.completion, load.rows
        copies = load.prompts if shared else rows
        pairs = copies * n * n / 2 + rows * (c * n + c * c / 2)
        per = 6 if full else 4
        products = self.layers * (copies * n + rows * c) + self.head * rows * load.generated
        return per * products + 3 * self.attention * pairs

    def memory(self, load: Load, mode: str) -> dict[str, float]:
        """GB (1e9 bytes) that a step needs, item by item, at its fullest moment (rollout or update)."""
        states = {
            "lora": {},
            "full": {"masters_float32": 4, "moments_float32": 8},
            "full-bf16-moments": {"masters_float32": 4, "moments_bfloat16": 4},
        }[mode]
        items = {"weights": 2 * self.total, **{k: v * self.total for k, v in states.items()}}
        row = load.prompt_tokens * 1.05 + load.completion + 1
        shared = load.prompts * load.prompt_tokens * 1.1
        caches = self.kv_bytes * (load.rows * row + shared)
        tokens = load.prompt_tokens + load.group * load.completion
        # kept per layer: its input; of the layer being recomputed: about 12 hidden and 6 intermediate-sized tensors
        activations = 2 * tokens * self.hidden * (self.depth + 12 + 6 * 4) + 4 * 4 * 1024 * self.head / self.hidden
        gradients = 2 * self.total if mode != "lora" else 0
        items["rollout_caches"], items["update_activations"], items["update_gradients"] = caches, activations, gradients
        resident = (2 + sum(states.values())) * self.total
        items["fullest"] = resident + max(caches, activations + gradients)
        return {key: round(value / 1e9, 2) for key, value in items.items()}
