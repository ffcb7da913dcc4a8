"""Make a tokenizer and a small untrained model for the grade-school maths example.

    python examples/gsm8k/make_model.py [DATA.jsonl ...]

The tokenizer is a byte-level BPE trained on the questions and answers of the data (default:
`sample.jsonl` beside this script), with a chat template; the model is a Qwen2 of about 4 million
parameters that has learnt nothing. Both go to `model/` beside this script, in seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

HERE = Path(__file__).parent
VOCABULARY = 4096
END, PAD, START = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", type=Path, default=[HERE / "sample.jsonl"])
    parser.add_argument("--out", type=Path, default=HERE / "model")
    arguments = parser.parse_args()
    tokenizer = make_tokenizer(arguments.data)
    tokenizer.save_pretrained(arguments.out)
    model = make_model(tokenizer)
    model.save_pretrained(arguments.out)
    print(
        f"{arguments.out}: {len(tokenizer):,} tokens, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters"
    )


def texts(files: list[Path]) -> Iterator[str]:
    """Every question and every answer."""
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            yield item["question"]
            yield item["answer"]


def make_tokenizer(files: list[Path]) -> Qwen2Tokenizer:
    """A byte-level BPE, in Qwen2's own class: AutoTokenizer takes no other beside its model."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(files), trainer)
    learnt = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token=PAD,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )


def make_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


if __name__ == "__main__":
    main()
