"""Make the bundled checkpoint: a genuine, tiny, autoregressive Qwen3 trained in PyTorch on Shakespeare.

    python examples/tiny-qwen3/train_tiny_qwen3.py --out examples/tiny-qwen3

Writes what a Qwen3 folder on the hub holds: config.json, generation_config.json, model.safetensors
(bfloat16), tokenizer.json and tokenizer_config.json (a byte-level BPE with Qwen3's pre-tokenizer and
special tokens, and a ChatML chat template). Needs torch; takes about a quarter of an hour on two CPU cores.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
TEXT = HERE.parent / "data" / "shakespeare"

# Qwen3's own added tokens, in its order.
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
PLAIN_ADDED_TOKENS = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
]  # fmt: skip
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TEXT_TOKENS = 1024
EMBEDDING_ROWS = 1088  # more rows than tokens, as every Qwen3 has: the spare ones belong to no token


def train_tokenizer(text: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=TEXT_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.add_tokens(PLAIN_ADDED_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=EMBEDDING_ROWS,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def loss_of(model: Qwen3ForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    logits = model(rows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: Qwen3ForCausalLM, tokens: torch.Tensor, length: int) -> float:
    rows = tokens[: len(tokens) // length * length].view(-1, length)
    return sum(loss_of(model, part).item() * len(part) for part in rows.split(32)) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=160)
    parser.add_argument("--lr", type=float, default=2e-3)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    train_text = (TEXT / "train.txt").read_text()
    tokenizer = train_tokenizer(train_text)
    train = torch.tensor(tokenizer(train_text).input_ids)
    valid = torch.tensor(tokenizer((TEXT / "valid.txt").read_text()).input_ids)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(train):,} training tokens, {len(valid):,} held out")

    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.lr, betas=(0.9, 0.95))
    steps, warmup = arguments.steps, 50

    def schedule(step: int) -> float:
        return min((step + 1) / warmup, 0.52 + 0.48 * math.cos(math.pi * step / steps))

    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

    best, weights, start = float("inf"), model.state_dict(), time.time()
    for step in range(steps):
        starts = torch.randint(len(train) - arguments.length - 1, (arguments.batch_size,))
        rows = torch.stack([train[s : s + arguments.length + 1] for s in starts.tolist()])
        loss = loss_of(model, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if (step + 1) % 100 == 0:
            held_out = validation_loss(model, valid, arguments.length)
            print(
                f"step {step + 1:5d}  loss {loss.item():.3f}  held out {held_out:.3f}  {time.time() - start:.0f} s",
                flush=True,
            )
            if held_out < best:
                best, weights = held_out, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    model = model.to(torch.bfloat16)

    stop = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.8, top_k=50, eos_token_id=stop, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)

    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    prompt = tokenizer("ROMEO:\n", return_tensors="pt").input_ids
    sample = model.generate(prompt, max_new_tokens=120)
    print(f"best held-out loss {best:.3f}\n{tokenizer.decode(sample[0])}")


if __name__ == "__main__":
    main()
