"""Write text by unmasking.

    python -m sample.generate --model models/qwen3-0.6b --prompt "The capital of France is" --steps 64 --gen-length 64
    python -m sample.generate --model runs/chat --chat --prompt "What is a haiku?" --live --trace haiku.png

--model takes a model folder, a training run, or a Hugging Face folder of safetensors. Lengths, blocks and
steps must divide: --gen-length into blocks of --block-length, --steps among the blocks.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax

from qwen3llada_jax import checkpoint, command_line, tokens
from qwen3llada_jax.canvas import Generation, finish
from qwen3llada_jax.config import VISIBILITIES
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model import Qwen3LLaDA
from qwen3llada_jax.rules import CONFIDENCE_RULES
from qwen3llada_jax.sampler_config import SamplerConfig
from qwen3llada_jax.sampling import generate, watch
from sample.live import show_live
from sample.trace import check_trace_path, write_trace


def main() -> None:
    flags = parse()
    if flags.trace:
        check_trace_path(flags.trace)
    settings = SamplerConfig(
        gen_length=flags.gen_length,
        block_length=flags.block_length,
        steps=flags.steps,
        temperature=flags.temperature,
        cfg_scale=flags.cfg_scale,
        remasking=flags.remasking,
        visibility="block_bias" if flags.block_attention else flags.visibility,
        mask_token_id=flags.mask_token_id,
    )
    folder = Path(flags.model)
    config = checkpoint.read_model_config(folder)
    settings.for_model(config)  # impossible settings are refused before the weights are read
    tokenizer = tokens.load_tokenizer(folder)
    model = checkpoint.load(folder, flags.dtype)
    if model.config.live_vocab_size is None:  # a plain Hugging Face folder does not say which rows are tokens
        live = min(tokens.live_vocab_size(tokenizer), model.config.vocab_size)
        model.config = dataclasses.replace(model.config, live_vocab_size=live)
    prompts = [encode(tokenizer, text, chat=flags.chat) for text in flags.prompt]

    key = jax.random.key(flags.seed)
    begin = time.perf_counter()
    if flags.live:
        result = generate_live(model, tokenizer, prompts, settings, key)
    else:
        result = jax.block_until_ready(generate(model, prompts, settings, key=key))
    seconds = time.perf_counter() - begin

    stops = stop_ids(tokenizer, model)
    for text, answer in zip(flags.prompt, result.answers(), strict=True):
        written = tokenizer.decode(up_to_stop(answer, stops), skip_special_tokens=True)
        print(written if flags.chat else text + written)
    written_tokens = settings.gen_length * len(prompts)
    print(
        f"NFE {int(result.nfe.max())} · {written_tokens} tokens · {seconds:.1f} s with compiling · seed {flags.seed}",
        file=sys.stderr,
    )
    if flags.trace:
        write_trace(flags.trace, result, tokenizer, settings)
        print(f"{flags.trace}: when each token was written", file=sys.stderr)


def parse() -> Any:
    """The command line."""
    defaults = SamplerConfig()
    parser = command_line.Parser(__doc__)
    parser.add_argument("--model", required=True, help="model folder, training run, or Hugging Face folder")
    parser.add_argument("--prompt", required=True, action="append", help="text to go on from; several make a batch")
    parser.add_argument("--chat", action="store_true", help="put the prompt through the tokenizer's chat template")
    parser.add_argument(
        "--gen-length", type=int, default=defaults.gen_length, help="tokens to write (default: %(default)s)"
    )
    parser.add_argument("--block-length", type=int, help="tokens of a block (default: the model's, or 32)")
    parser.add_argument("--steps", type=int, help="forward passes over all blocks (default: one for each token)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token (default: %(default)s)")
    parser.add_argument(
        "--cfg-scale", "--cfg", type=float, default=0.0, help="classifier-free guidance; 0: off (default: %(default)s)"
    )
    parser.add_argument(
        "--remasking",
        choices=tuple(CONFIDENCE_RULES),
        default="low_confidence",
        help="which proposals stay (default: %(default)s)",
    )
    parser.add_argument(
        "--visibility", choices=VISIBILITIES, help="who sees whom (default: what the model was trained with)"
    )
    parser.add_argument("--block-attention", action="store_true", help="the same as --visibility block_bias")
    parser.add_argument("--mask-token-id", type=int, help="(default: the model's)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of temperature and random remasking (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of weights and computation (default: as stored)"
    )
    parser.add_argument("--live", action="store_true", help="show the text while it is unmasked")
    parser.add_argument("--trace", type=Path, help="draw (.png) or write down (.json) when each token was written")
    flags = parser.parse()
    if flags.block_attention and flags.visibility not in (None, "block_bias"):
        raise InputError(f"--block-attention means --visibility block_bias, not {flags.visibility}; give one of them")
    return flags


def encode(tokenizer: Any, text: str, *, chat: bool) -> list[int]:
    """A prompt's ids.

    Raises:
        InputError: `chat` without a chat template.
    """
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("the model's tokenizer has no chat template; leave out --chat")
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def stop_ids(tokenizer: Any, model: Qwen3LLaDA) -> set[int]:
    """Ids that end an answer: the model's and the tokenizer's EOS, and the end of a chat turn."""
    end_of_turn = tokenizer.get_vocab().get("<|im_end|>")
    return {i for i in (*model.config.eos_token_ids, tokenizer.eos_token_id, end_of_turn) if i is not None}


def up_to_stop(answer: list[int], stops: set[int]) -> list[int]:
    """The answer before its first end."""
    end = next((i for i, token in enumerate(answer) if token in stops), len(answer))
    return answer[:end]


def generate_live(
    model: Qwen3LLaDA, tokenizer: Any, prompts: list[list[int]], settings: SamplerConfig, key: jax.Array
) -> Generation:
    """`generate`, with every step on the terminal."""
    canvas = show_live(watch(model, prompts, settings, key=key), tokenizer, settings.steps or settings.gen_length)
    return finish(canvas)


if __name__ == "__main__":
    command_line.run(main)
