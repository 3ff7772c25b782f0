"""A tiny model with random weights, real in every other respect."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WORDS = "Phrase: ha ha 12\nTone: joy anger fear user assistant"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 320


def make_tokenizer() -> Any:
    """A byte-level BPE of 320 entries with the stop token <|im_end|> (id 1) and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([_WORDS] * 8, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = _CHAT_TEMPLATE
    return made


def make_tiny_llama(folder: Path) -> Path:
    """Writes a Llama of 2 layers, 32 wide, tied embeddings, with its tokenizer, in Hugging Face layout; returns the folder."""
    return make_tiny("Llama", folder)


_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
_GROUPED = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 8, "tie_word_embeddings": True}
# transformers' names of the configuration and the model, and what makes it tiny.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", "LlamaForCausalLM", {**_GROUPED, "tie_word_embeddings": True}),
    "Phi": ("PhiConfig", "PhiForCausalLM", {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 4}),
    "Phi3": ("Phi3Config", "Phi3ForCausalLM", _GROUPED),
    "Qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**_GROUPED, "tie_word_embeddings": True}),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_GROUPED, "head_dim": 8, "tie_word_embeddings": True}),
    "Gemma": ("GemmaConfig", "GemmaForCausalLM", _GEMMA),
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**_GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 64}),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
}


# onnxruntime's attention wants heads of a multiple of 16.
WIDE = {"hidden_size": 64, "num_attention_heads": 4}
WIDE_HEADS = {**WIDE, "head_dim": 16}


def make_tiny(family: str, folder: Path, **changes: Any) -> Path:
    """Writes a random model of a family, of 2 layers, 32 wide, with its tokenizer, in Hugging Face layout; returns the folder."""
    import torch
    import transformers

    config_name, model_name, sizes = FAMILIES[family]
    torch.manual_seed(7)
    config = getattr(transformers, config_name)(
        vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1, pad_token_id=1, **(sizes | changes)
    )
    getattr(transformers, model_name)(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def likeliest(model: Any, tokenizer: Any, prompt: str, answers: Sequence[str]) -> str:
    """The answer that a plain model finds most probable after a prompt, its stop token included."""
    import torch

    scores: dict[str, float] = {}
    start = tokenizer.encode(prompt)
    for answer in answers:
        ids = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([start + ids])).logits[0, len(start) - 1 : -1].log_softmax(-1)
        scores[answer] = float(logits[torch.arange(len(ids)), torch.tensor(ids)].sum())
    return max(scores, key=lambda answer: scores[answer])
