"""What tests are made of: tiny real bases in directories, real PEFT adapters, datasets. `from tests.factories import ...`.

    tiny_base(directory, kind="llama")            a saved model directory with a byte tokenizer, loadable by load_base
    peft_files(base_dir, rank=4, ...)             {file name: bytes} as real peft saves them, B random so that it changes answers
    random_weights(linears, rank=4, seed=0)       AdapterWeights without peft: fast, for caches and stores
    chat_lines(n)                                 JSON lines of a small chat dataset

Append freely; keep one purpose a function.
"""

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mint_stream.adapter import AdapterLayer, AdapterWeights
from mint_stream.messages.training import LoraSettings
from mint_stream.model.tiny import tiny_model

VOCABULARY = 259
"""256 bytes, then <|im_start|> 256, <|im_end|> 257 (ends a sequence), <|endoftext|> 258."""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LINEARS = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {"self_attn.q_proj": (16, 16), "self_attn.v_proj": (16, 8), "mlp.down_proj": (40, 16)}.items()
}
"""Shapes of a base that does not exist, for tests that only need the numbers."""


def byte_tokenizer(template: str | None = CHATML) -> Any:
    """Every byte is a token; <|im_end|> ends a sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def tiny_base(directory: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Save a tiny random base of `kind` (see mint_stream.model.tiny.KINDS) with its tokenizer; gives `directory`."""
    tiny_model(kind, seed, **({"vocab_size": VOCABULARY} | changes)).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def peft_files(base: Path, seed: int = 0, **settings: Any) -> dict[str, bytes]:
    """The files real peft saves for a random adapter of the base; `settings` are LoraConfig's. B is random, so answers change."""
    with tempfile.TemporaryDirectory() as directory:
        peft_model(base, seed, **settings).save_pretrained(directory, save_embedding_layers=False)
        return {file.name: file.read_bytes() for file in Path(directory).iterdir() if file.name.startswith("adapter_")}


def peft_model(base: Path, seed: int = 0, **settings: Any) -> Any:
    """The base under real peft with a random adapter, in eval mode: the correctness oracle."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager", local_files_only=True)
    config = LoraConfig(task_type="CAUSAL_LM", **({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft 0.21 asks transformers 5.23
        warnings.filterwarnings("ignore", "The following (alpha|rank)_pattern keys did not match", RuntimeWarning)
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    return adapted.eval()


def random_weights(linears: Mapping[str, tuple[int, int]] = LINEARS, rank: int = 4, seed: int = 0, alpha: float = 8.0) -> AdapterWeights:
    """An adapter with random A and B on all of `linears` (path -> (in, out))."""
    weights = AdapterWeights.fresh(LoraSettings(rank=rank, alpha=alpha), linears, seed, output_head=None)
    draw = torch.Generator().manual_seed(seed)
    drawn = {path: torch.randn(layer.B.shape, generator=draw) * 0.2 for path, layer in weights.layers.items()}
    layers = {path: AdapterLayer(layer.A, drawn[path], layer.scaling) for path, layer in weights.layers.items()}
    return AdapterWeights(layers=layers, config=weights.config)


def chat_lines(count: int = 16) -> bytes:
    """A chat dataset whose answers can be learned: each user says a number, the assistant says whether it is even."""
    turns = ((f"Is {number} even?", "yes" if number % 2 == 0 else "no") for number in range(count))
    lines = ({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]} for ask, answer in turns)
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
