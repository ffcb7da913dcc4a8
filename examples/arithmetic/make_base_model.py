"""Make the quickstart's base model: a small Qwen2 that can almost add and subtract.

The task is reasoning-gym's `chain_sum` with two terms of two digits: "47 - 85=" has the
answer "-38". The script

1. draws the held-out problems, leaves out those that the quickstart's training data contain,
   and writes `heldout.jsonl` (whole reasoning-gym items);
2. trains a new model on right answers, never on a held-out or validation problem, and stops
   early: at the first check at which its greedy accuracy on the *validation* problems reaches
   `--stop-accuracy`. Nothing else limits the model;
3. saves it in bfloat16 with its tokenizer, reads it back and prints its accuracy on the
   held-out problems.

Run it from the repository's root; it takes some minutes on one core:
python examples/arithmetic/make_base_model.py
"""

import argparse
import json
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import reasoning_gym
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

HERE = Path(__file__).parent
TASK = "chain_sum"
TASK_PARAMS = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
PROMPT_TEMPLATE = "{metadata[expression]}="

# Item i of a reasoning-gym data set is drawn from the random seed `seed + i`: data sets whose
# seeds lie closer together than their sizes share items.
RL_TRAIN_SEED, RL_TRAIN_SIZE = 1, 4096  # as the job files beside this script say
HELDOUT_SEED, NUM_HELDOUT = 1_000_000, 512
VALIDATION_SEED, NUM_VALIDATION = 2_000_000, 512
PRETRAIN_SEED, PRETRAIN_SIZE = 3_000_000, 10_000_000

TOKENS = ["<pad>", "<eos>", "<unk>", *"0123456789", "+", "-", "=", "Ġ", "Ġ+", "Ġ-"]  # Ġ is a space
MAX_ANSWER_TOKENS = 8
NOT_TRAINED = -100

Item = dict[str, Any]


def problems(seed: int, size: int) -> Iterator[Item]:
    """The task's items, in order."""
    dataset = reasoning_gym.create_dataset(TASK, seed=seed, size=size, **TASK_PARAMS)
    return iter(dataset)


def prompt_of(item: Item) -> str:
    return PROMPT_TEMPLATE.format(**item)


def draw_new(items: Iterator[Item], num_items: int, seen: set[str]) -> list[Item]:
    """The first `num_items` items whose prompts are not in `seen`, which grows by them."""
    drawn: list[Item] = []
    for item in items:
        if prompt_of(item) not in seen:
            seen.add(prompt_of(item))
            drawn.append(item)
        if len(drawn) == num_items:
            return drawn
    raise ValueError(
        f"the data set holds only {len(drawn)} new problems, {num_items} were asked for"
    )


def make_tokenizer() -> Qwen2Tokenizer:
    """One token a character, but an operator and the space before it are one.

    It is Qwen2's own class because AutoTokenizer takes no other beside a Qwen2 model.
    """
    return Qwen2Tokenizer(
        vocab={token: token_id for token_id, token in enumerate(TOKENS)},
        merges=[("Ġ", "+"), ("Ġ", "-")],
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )


def make_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(TOKENS),
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def to_batch(items: list[Item], tokenizer: Qwen2Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids and labels; only the answer and its <eos> are trained."""
    prompts = [tokenizer.encode(prompt_of(item)) for item in items]
    answers = [[*tokenizer.encode(item["answer"]), tokenizer.eos_token_id] for item in items]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids_BT = torch.full((len(items), width), tokenizer.pad_token_id)
    labels_BT = torch.full((len(items), width), NOT_TRAINED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids_BT[row, :end] = torch.tensor(prompt + answer)
        labels_BT[row, len(prompt) : end] = torch.tensor(answer)
    return ids_BT, labels_BT


@torch.no_grad()
def accuracy(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    items: list[Item],
    *,
    samples_per_item: int = 0,
) -> float:
    """The share of right answers: greedy, or where `samples_per_item` > 0 at temperature 1."""
    verifier = reasoning_gym.create_dataset(TASK, seed=0, size=1, **TASK_PARAMS)
    prompts = tokenizer([prompt_of(item) for item in items], return_tensors="pt", padding=True)
    num_answers = max(1, samples_per_item)
    outputs = model.generate(
        **prompts,
        do_sample=samples_per_item > 0,
        num_return_sequences=num_answers,
        max_new_tokens=MAX_ANSWER_TOKENS,
    )
    texts = tokenizer.batch_decode(
        outputs[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
    )
    rewards = [verifier.score_answer(text, items[i // num_answers]) for i, text in enumerate(texts)]
    return float(sum(reward >= 1.0 for reward in rewards)) / len(rewards)


def train(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    stream: Iterator[Item],
    validation: list[Item],
    args: argparse.Namespace,
) -> None:
    """Train in place, at a constant learning rate, until `stop_accuracy` on `validation`."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 20, total_iters=20)
    for step in count(1):
        ids_BT, labels_BT = to_batch(list(islice(stream, args.batch_size)), tokenizer)
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        loss = cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=NOT_TRAINED
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        if step % args.check_every_steps == 0:
            greedy = accuracy(model, tokenizer, validation)
            print(
                f"step {step}: loss {loss.item():.3f}, validation greedy accuracy {greedy:.3f}",
                flush=True,
            )
            if greedy >= args.stop_accuracy:
                return
        if step == args.max_steps:
            raise ValueError(
                f"{args.stop_accuracy} was not reached in {step} steps: try another --seed"
            )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "base_model")
    parser.add_argument("--heldout", type=Path, default=HERE / "heldout.jsonl")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--stop-accuracy", type=float, default=0.40)
    parser.add_argument("--check-every-steps", type=int, default=25)
    parser.add_argument("--max-steps", type=int, default=3000)
    parser.add_argument("--num-threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)

    rl_prompts = {prompt_of(item) for item in problems(RL_TRAIN_SEED, RL_TRAIN_SIZE)}
    heldout = draw_new(problems(HELDOUT_SEED, 100 * NUM_HELDOUT), NUM_HELDOUT, seen=set(rl_prompts))
    heldout_prompts = {prompt_of(item) for item in heldout}
    validation = draw_new(
        problems(VALIDATION_SEED, 100 * NUM_VALIDATION), NUM_VALIDATION, seen=set(heldout_prompts)
    )
    not_trained = heldout_prompts | {prompt_of(item) for item in validation}
    stream = (
        item
        for item in problems(PRETRAIN_SEED, PRETRAIN_SIZE)
        if prompt_of(item) not in not_trained
    )

    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, tokenizer, stream, validation, args)

    model.to(torch.bfloat16).save_pretrained(args.out)  # type: ignore[arg-type]
    tokenizer.save_pretrained(args.out)
    args.heldout.write_text("".join(json.dumps(item) + "\n" for item in heldout))

    saved = Qwen2ForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    greedy = accuracy(saved, tokenizer, heldout)
    sampled = accuracy(saved, tokenizer, heldout, samples_per_item=8)
    print(
        f"held-out accuracy on {len(heldout)} problems: greedy {greedy:.3f}, "
        f"sampled at temperature 1 {sampled:.3f}"
    )


if __name__ == "__main__":
    main()
