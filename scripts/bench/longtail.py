"""Makes the long-tailed workload: an untrained model whose answers end by chance.

    python scripts/bench/longtail.py OUT

With small random weights the next token is nearly uniform over the vocabulary, so an answer
ends at each token with odds of about 1 in V: a geometric length of mean about V, cut at
512. V = 134 gives a mean of about 130 after the cut. OUT gets `model/` and `prompts.jsonl`.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

VOCABULARY = 134
NUM_PROMPTS = 256


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    make_model(out / "model")
    letters = random.Random(0)
    lines = [
        json.dumps({"prompt": "".join(letters.choices("abcdefghijklmnop", k=12))})
        for _ in range(NUM_PROMPTS)
    ]
    (out / "prompts.jsonl").write_text("\n".join(lines) + "\n")


def make_model(directory: Path) -> None:
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    model.save_pretrained(directory)
    characters = [chr(code) for code in range(33, 33 + VOCABULARY - 2)]
    vocabulary = {"<pad>": 0, "<eos>": 1, **{c: i + 2 for i, c in enumerate(characters)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    ).save_pretrained(directory)


if __name__ == "__main__":
    main()
