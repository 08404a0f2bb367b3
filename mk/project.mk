# Work on the project itself: tests that need heavy installs, studies, code style.

.PHONY: test-vllm test-slow test-slurm test-browser selectivity smollm2 models tiny-agent style quality

# The engine runs in the tests' own process, where it starts in half the time that one of its own takes.
test-vllm: export HF_HUB_OFFLINE := 1
test-vllm: export VLLM_CPU_KVCACHE_SPACE := 2
test-vllm: export VLLM_CPU_OMP_THREADS_BIND := nobind
test-vllm: export VLLM_ENABLE_V1_MULTIPROCESSING := 0
test-vllm: export VLLM_HOST_IP := 127.0.0.1
test-vllm: export VLLM_NO_USAGE_STATS := 1
test-vllm: export OMP_WAIT_POLICY := passive
test-vllm: $(SOURCES_READY) $(VLLM_READY) $(TOKENIZERS_READY)  ## Run the tests that need vLLM, on the CPU
	$(BIN)/python -m pytest -m vllm $(PYTEST_ARGS)

test-slow: $(SMOLLM2_READY) $(TOKENIZERS_READY)  ## Run the tests that train a real small model, on the CPU
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-slurm: $(READY)  ## Run the tests that need Slurm, on one started here from Debian's packages
	tools/slurm_cluster.sh install
	$(BIN)/python -m pytest -m slurm tests/slurm $(PYTEST_ARGS)

test-browser: $(READY)  ## Run the tests of our pages in Debian's Chromium
	command -v chromium > /dev/null || { apt-get update -qq && apt-get install -qq -y chromium > /dev/null; }
	$(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

# Finished runs are reused: `make selectivity SELECTIVITY_FLAGS="--seeds 42"` first, then all seeds.
selectivity: $(REPORTS)/preflight.json  ## Train and evaluate the ablation of the demo's breaker; writes docs/selectivity.md
	$(BIN)/python benchmarks/selectivity.py --data $(STAGE2) --model $(MODEL) --output $(DATA)/selectivity \
		--json benchmarks/selectivity.json --page docs/selectivity.md $(SELECTIVITY_FLAGS)

# Hours, nearly all of it the recipe's own steps: an interrupted run resumes where it stopped. The agent is taught with
# two threads, and then two steps run at a time.
smollm2:  ## The breakers on SmolLM2-135M, a second model; adds it to docs/selectivity.md
	$(MAKE) --no-print-directory OMP_NUM_THREADS=2 $(SMOLLM2_AGENT)/model.safetensors
	$(MAKE) --no-print-directory -j2 RECIPE=smollm2 evaluate
	$(BIN)/python benchmarks/selectivity.py --redraw --second data/smollm2 \
		--second-live data/smollm2/report/agentdojo/agentdojo.json --json benchmarks/selectivity.json \
		--page docs/selectivity.md

models: $(READY)  ## Compare the trainer's speed switches on tiny models of many architectures; writes docs/models.md
	$(BIN)/python benchmarks/architectures.py --page docs/models.md

tiny-agent: $(READY)  ## Train the demo's tiny agent again, from a fixed seed
	$(BIN)/python demo/train_tiny_agent.py --output demo/tiny_agent --seed 0

style: $(READY)  ## Format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

quality: $(READY)  ## Check format, lint and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy
