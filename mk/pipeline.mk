# Sources -> Ds and Dr -> gates -> merged -> preflight -> breaker -> report, with the variables of a recipe.

TRACES := $(DATA)/traces
HARMFUL := $(DATA)/harmful
RETAIN := $(DATA)/retain
PROMPTS := $(DATA)/prompts
STAGE2 := $(DATA)/stage2
REPORTS := $(DATA)/reports
QUARANTINE := $(DATA)/quarantine/validate
WORK := $(DATA)/completions

# What a recipe decides about the chat template, once for all steps: FORMAT, TEMPLATE_SETTINGS, CHAT_TEMPLATE. The
# decided tokenizer is a folder, which stands for the model wherever prompts are written and nothing is generated.
DECISIONS := $(FORMAT:%=--tool-format %) $(TEMPLATE_SETTINGS:%=--template-setting %) $(CHAT_TEMPLATE:%=--chat-template %)
DECIDED := $(if $(strip $(DECISIONS)),$(DATA)/tokenizer/tokenizer.json)
# A template of one of our tokenizers is made with it.
TEMPLATE_READY := $(patsubst %/chat_template.jinja,%/tokenizer.json,$(filter .tokenizers/%/chat_template.jinja,$(CHAT_TEMPLATE)))
TARGET := $(if $(DECIDED),$(DATA)/tokenizer,$(MODEL))
TOKENIZER_FLAG := $(DECIDED:%/tokenizer.json=--tokenizer %)

# A stamp is a file with what something was made with. $(call outdated,file,text) is the file where it has another text:
# then it is written again, and what depends on it is made again. (Each text is looked for in the other.)
outdated = $(if $(call differ,$(strip $(2)),$(strip $(shell cat $(1) 2>/dev/null))),$(1))
differ = $(subst <$(1)>,,<$(2)>)$(subst <$(2)>,,<$(1)>)

# What the data in the folder were made with: the model, and what was decided about its chat template.
STAMP := $(DATA)/decisions.txt
MADE_WITH := --model $(MODEL) $(DECISIONS)
$(call outdated,$(STAMP),$(MADE_WITH)): always
	mkdir -p $(@D)
	printf '%s\n' $(call quoted,$(strip $(MADE_WITH))) > $@

# The recipe and what it includes. An edited one redoes everything.
RECIPE_FILES := $(filter recipes/%,$(MAKEFILE_LIST))

SETS := $(HARMFUL_SETS:%=$(HARMFUL)/%) $(RETAIN_SETS:%=$(RETAIN)/%)
TRACE_FOLDERS := $(SOURCES:%=$(TRACES)/%)
INGESTED := $(TRACE_FOLDERS:%=%/report.json)
PROMPT_SETS := $(TASKS:%=$(PROMPTS)/%/report.json)
WEIGHTS := $(wildcard $(MODEL)/*.safetensors)

.PHONY: data traces harmful retain generate-shards prompts validate gates merge preflight train evaluate attack tamper \
	agentdojo export cards push push-model view clean clean-all

# What is missing is said at once, not after the steps before it.
ifneq ($(filter push push-model,$(MAKECMDGOALS)),)
$(if $(REPO),,$(error Name the repository: make $(filter push push-model,$(MAKECMDGOALS)) REPO=owner/name))
endif
# The breaker to measure. With one from elsewhere, nothing is trained: make evaluate RECIPE=... ADAPTER=path/or/hub-id
TRAINED_ADAPTER := $(DATA)/adapter
ADAPTER ?= $(TRAINED_ADAPTER)
GIVEN := $(filter-out $(TRAINED_ADAPTER),$(ADAPTER))
NEED_TRAINING := $(filter train push-model $(if $(GIVEN),,evaluate attack tamper),$(MAKECMDGOALS))
ifneq ($(NEED_TRAINING),)
$(if $(wildcard recipes/$(RECIPE).yaml),,$(error make $(NEED_TRAINING): the recipe $(RECIPE) has no training, since there \
	is no recipes/$(RECIPE).yaml. Name a trained breaker to measure: make evaluate RECIPE=$(RECIPE) ADAPTER=path))
endif

# ---------------------------------------------------------------------------------------------------------------- data

data: $(REPORTS)/preflight.json  ## Sources -> Ds and Dr -> gates -> merged -> preflight
traces: $(REPORTS)/sources.json  ## Raw files -> traces, and a report on each source
harmful: $(HARMFUL_SETS:%=$(HARMFUL)/%/report.json)  ## Ds, the circuit breaker set
retain: $(RETAIN_SETS:%=$(RETAIN)/%/report.json)  ## Dr, the retain set
prompts: $(PROMPT_SETS)  ## Evaluation prompts, from the eval split
validate: $(REPORTS)/validation_report.json  ## Check every row; rows that fail go to quarantine
gates: $(REPORTS)/quality_gates.json  ## Check the numbers of the sets
merge: $(STAGE2)/eval/report.json  ## Ds and Dr -> stage2/train and stage2/eval
preflight: $(REPORTS)/preflight.json  ## Check every merged row with the target's tokenizer

ifneq ($(DECIDED),)
# A name of one of the package's templates is no file.
$(DECIDED): $(RECIPE_FILES) $(TOKENIZER_FILE) $(wildcard $(CHAT_TEMPLATE)) $(STAMP) | $(READY) $(TEMPLATE_READY)
	$(CB) tokenizer $(MODEL) --output $(@D) $(DECISIONS)
endif

# An edited recipe redoes everything; finished completions are found again by the hash of their inputs.
$(TRACES)/%/report.json: $(RECIPE_FILES) | $(READY) $(RECIPE_READY) $(DECIDED)
	$(CB) ingest $(or $(SOURCE_OF_$*),$*) --output $(TRACES)/$* $(INGEST_FLAGS) $(INGEST_FLAGS_$*)

# Runs of the base model itself, in suites of AgentDojo or of one's own: the agentic half of Ds and Dr, on-policy.
# Finished runs of the same settings are reused. Those of other settings took hours too: only their owner moves them.
RUNS := $(DATA)/runs
ifneq ($(RUNS_FLAGS),)
FROM_RUNS := $(TRACES)/agentdojo/report.json
MOVE_RUNS = test ! -f $(RUNS)/settings.json || \
	echo "Runs of other settings have to be moved away first: mv $(RUNS) $(RUNS)-old" >&2
$(RUNS)/agentdojo.json: $(WEIGHTS) $(RECIPE_FILES) $(STAMP) $(DECIDED) \
		| $(filter-out $(FROM_RUNS),$(INGESTED)) $(READY) $(AGENTDOJO_READY) $(RECIPE_READY)
	$(CB) agentdojo --model $(MODEL) $(TOKENIZER_FLAG) --output $(RUNS) $(RUNS_FLAGS) || { $(MOVE_RUNS); exit 1; }

$(FROM_RUNS): $(RUNS)/agentdojo.json
INGEST_FLAGS_agentdojo := --data-dir $(RUNS) $(INGEST_FLAGS_agentdojo)
COLLECT_FLAGS += --own-agent local-base
endif

# The flags of each source, in which RAW may be: other ones read it again. Where RAW is needed and not given, what has
# been read stays.
ingest_flags = $(or $(SOURCE_OF_$(1)),$(1)) $(INGEST_FLAGS) $(INGEST_FLAGS_$(1))
RAISES := $$(error
ifeq ($(findstring $(RAISES),$(value RAW)),)
$(foreach source,$(SOURCES),$(eval READ_WITH_$(source) := $$(call ingest_flags,$(source))))
OTHER_FLAGS := $(foreach source,$(SOURCES),$(call outdated,$(TRACES)/$(source)/flags.txt,$(READ_WITH_$(source))))
$(OTHER_FLAGS): $(TRACES)/%/flags.txt: always
	mkdir -p $(@D)
	printf '%s\n' $(call quoted,$(strip $(READ_WITH_$*))) > $@
$(INGESTED): %/report.json: %/flags.txt
endif

# The data sheet has the token lengths of traces with the target's tokenizer.
SHEET_FLAGS ?= --model $(TARGET)

$(REPORTS)/sources.json: $(INGESTED) $(TOKENIZER_FILE)
	$(CB) sources $(TRACE_FOLDERS) --output $(REPORTS) $(SHEET_FLAGS)

# Traces are no model's; all else is written with the decided template.
$(REPORTS)/sources.json $(SETS:%=%/report.json) $(PROMPT_SETS): $(STAMP) $(DECIDED)

# Sets that the model generates: flips, its own good answers (benign twins, calls, refusals, chat), and attacks it resists.
# ATTACKED is the source of attacked prompts; flips and benign twins are named for their source.
RETAIN_SOURCES ?= $(ATTACKED)
FLIPS := $(filter %_flips,$(HARMFUL_SETS))
TWINS := $(filter %_benign_twins,$(RETAIN_SETS))
ANSWERED_KINDS := tool_capability refusals chat
ANSWERS := $(TWINS) $(filter $(ANSWERED_KINDS),$(RETAIN_SETS))
SAFE := $(filter adversarial_safe,$(RETAIN_SETS))
# On-policy completions at the decisions of AgentDojo's recorded agents. A recipe without a model, which brings a
# tokenizer only, takes the recorded turns as they are; so does one whose runs are its model's own.
REGENERATED := $(if $(TOKENIZER_FILE)$(RUNS_FLAGS),,$(filter agentdojo_failures agentdojo_resisted,$(HARMFUL_SETS) $(RETAIN_SETS)))
GENERATED := $(FLIPS:%=$(HARMFUL)/%) $(ANSWERS:%=$(RETAIN)/%) $(SAFE:%=$(RETAIN)/%) \
	$(if $(REGENERATED),$(HARMFUL)/agentdojo_failures $(RETAIN)/agentdojo_resisted)

ENGINE = --model $(MODEL) $(TOKENIZER_FLAG) --work-dir $(WORK) $(GENERATE_FLAGS)
# The system prompt and the tools that B4-style prompts must carry to the end.
TOOL_SCHEMA := builders/assets/b4_standard_v1.json
SCHEMA_FLAG := --tool-schema $(TOOL_SCHEMA)
WITH_SCHEMA = $(ENGINE) $(SCHEMA_FLAG)
# Every source is read before a model is asked: a missing one is found in minutes, not after hours of generation.
$(GENERATED:%=%/report.json): | $(filter-out $(FROM_RUNS),$(INGESTED))

$(FLIPS:%=$(HARMFUL)/%/report.json): $(TRACES)/$(ATTACKED)/report.json $(WEIGHTS)
	$(CB) generate-ds --traces $(TRACES)/$(ATTACKED) --output $(@D) $(WITH_SCHEMA) $(DS_FLAGS)

$(ANSWERS:%=$(RETAIN)/%/report.json) &: $(RETAIN_SOURCES:%=$(TRACES)/%/report.json) $(WEIGHTS)
	$(CB) generate-dr $(RETAIN_SOURCES:%=--traces $(TRACES)/%) --output $(RETAIN) \
		$(TWINS:%=--kinds benign_twins) $(patsubst %,--kinds %,$(filter $(ANSWERED_KINDS),$(ANSWERS))) $(WITH_SCHEMA) $(DR_FLAGS)

# Where flips are sampled alike, the completions of attacked prompts are found finished.
$(SAFE:%=$(RETAIN)/%/report.json): $(TWINS:%=$(RETAIN)/%/report.json) | $(FLIPS:%=$(HARMFUL)/%/report.json)
	$(CB) generate-adversarial-safe --traces $(TRACES)/$(ATTACKED) --output $(@D) $(WITH_SCHEMA) $(SAFE_FLAGS) \
		$(TWINS:%=--fill twin --twins $(RETAIN)/%)

ifneq ($(REGENERATED),)
$(HARMFUL)/agentdojo_failures/report.json $(RETAIN)/agentdojo_resisted/report.json &: $(TRACES)/agentdojo/report.json $(WEIGHTS)
	$(CB) regenerate --traces $(TRACES)/agentdojo --output-harmful $(HARMFUL)/agentdojo_failures \
		--output-retain $(RETAIN)/agentdojo_resisted $(ENGINE) $(REGENERATE_FLAGS)
endif

# For machines that share a disk: each rank completes its part, and `make data` finds all of it.
generate-shards: $(INGESTED)  ## Part RANK of WORLD of all completions that the sets need
	$(CB) generate --sets "$(GENERATED:$(DATA)/%=%)" --data-dir $(DATA) --rank $(RANK) --world $(WORLD) \
		--attacked-source "$(ATTACKED)" --retain-sources "$(RETAIN_SOURCES)" \
		--ds-flags "$(SCHEMA_FLAG) $(DS_FLAGS)" --dr-flags "$(SCHEMA_FLAG) $(DR_FLAGS)" \
		--safe-flags "$(SCHEMA_FLAG) $(SAFE_FLAGS)" --regenerate-flags "$(REGENERATE_FLAGS)" -- $(ENGINE)

# Sets of recorded turns: `collect` knows the source of each.
RECORDED := $(filter-out $(GENERATED),$(SETS))

$(RECORDED:%=%/report.json): %/report.json: $(INGESTED) $(TOKENIZER_FILE)
	$(CB) collect $(*:$(DATA)/%=%) --traces $(TRACES) --model $(TARGET) --output $* $(COLLECT_FLAGS)

$(PROMPT_SETS) &: $(INGESTED) $(TOKENIZER_FILE)
	$(CB) generate-eval $(TRACE_FOLDERS) --model $(TARGET) --output $(PROMPTS) $(TASKS:%=--tasks %) $(EVAL_FLAGS)

$(REPORTS)/validation_report.json: $(SETS:%=%/report.json)
	$(CB) validate $(SETS) --strict --quarantine $(QUARANTINE) --output $@ $(VALIDATE_FLAGS)

$(REPORTS)/quality_gates.json: $(REPORTS)/validation_report.json $(REPORTS)/sources.json
	$(CB) quality-gates $(SETS) --quarantine $(QUARANTINE) --sources $(REPORTS)/sources.json --model $(TARGET) \
		--output $@ $(GATE_FLAGS)

# Rows that were marked bad in the audit are left out.
MARKS := $(wildcard $(DATA)/audit/marks.parquet)

$(STAGE2)/eval/report.json: $(REPORTS)/quality_gates.json $(PROMPT_SETS) $(MARKS)
	$(CB) merge $(SETS) $(if $(TASKS),--prompts $(PROMPTS)) --quarantine $(QUARANTINE) --output $(STAGE2) --reports $(REPORTS) \
		--schemas $(DATA)/schemas --model $(TARGET) $(MARKS:%=--marks %) $(MERGE_FLAGS)

$(REPORTS)/preflight.json: $(STAGE2)/eval/report.json
	$(CB) preflight --train-data $(STAGE2) --model $(TARGET) --output $@ \
		--tool-schema $(TOOL_SCHEMA) $(PREFLIGHT_FLAGS)

# ------------------------------------------------------------------------------------------------ training, evaluation

# Breakers that a recipe trains beside its own, by name: recipes/<recipe>-<name>.yaml.
BESIDE := $(if $(GIVEN),,$(ALSO))
EXTRA_ADAPTERS := $(BESIDE:%=$(DATA)/adapters/%/adapter_model.safetensors)
ADAPTERS := --adapter $(ADAPTER) $(foreach name,$(BESIDE),--also $(name)=$(DATA)/adapters/$(name))
# What measurements wait for. A given adapter may be a Hub id, which is no file.
MEASURED := $(if $(GIVEN),$(wildcard $(GIVEN)/*.safetensors),$(TRAINED_ADAPTER)/adapter_model.safetensors $(EXTRA_ADAPTERS))
# The training leaves curves, and its held-out samples are what cosines are measured on.
CURVES := $(if $(GIVEN),,--curves $(TRAINED_ADAPTER)/curves.png)
DIAGNOSTICS := $(if $(GIVEN),,$(DATA)/report/diagnostics.json)
# Names the model and the breakers of the report: with others, it is made anew.
SUBJECT := $(DATA)/report/subject.txt
# Quiet: an error of the training is one line, without a traceback of the launcher.
LAUNCH ?= $(BIN)/accelerate launch --quiet $(LAUNCH_FLAGS)
# With RESUME=true, training resumes from its newest whole checkpoint, or starts if there is none; with RESUME=false it
# starts, and those of an earlier one are removed. Either writes checkpoints, whatever the recipe says.
CHECKPOINTS = $(if $(RESUME),--save_strategy steps --save_steps 0.1 --save_total_limit 2 --resume_from_checkpoint $(RESUME))
TRAIN = $(if $(filter false,$(RESUME)),rm -rf $(@D)/checkpoint-* && )$(LAUNCH) -m trainers.train --config $(filter %.yaml,$^) \
	--model_name_or_path $(MODEL) $(TOKENIZER_FLAG:--tokenizer%=--tokenizer_name_or_path%) \
	--dataset_name $(STAGE2) --output_dir $(@D) $(CHECKPOINTS) $(TRAIN_FLAGS)

# A recipe with suites of AgentDojo's or its own tests base and breakers in live runs, too.
LIVE_TABLE := $(if $(LIVE_FLAGS),$(DATA)/report/agentdojo/table.txt)

train: $(TRAINED_ADAPTER)/adapter_model.safetensors $(EXTRA_ADAPTERS)  ## Train the breaker
evaluate: $(DATA)/report/summary.txt  ## Base against breakers on held-out prompts, and in live runs
	cat $<

$(TRAINED_ADAPTER)/adapter_model.safetensors: $(REPORTS)/preflight.json recipes/$(RECIPE).yaml
	$(TRAIN)

$(EXTRA_ADAPTERS): $(DATA)/adapters/%/adapter_model.safetensors: $(REPORTS)/preflight.json recipes/$(RECIPE)-%.yaml
	$(TRAIN)

# Cosines between breaker and base on the hidden states of held-out samples.
$(DATA)/report/diagnostics.json: $(MEASURED)
	$(BIN)/python -m trainers.diagnostics --model $(MODEL) $(TOKENIZER_FLAG) $(ADAPTERS) \
		--data $(STAGE2)/eval --output $@ $(DIAGNOSTICS_FLAGS)

EVALUATE = $(CB) evaluate --model $(MODEL) $(TOKENIZER_FLAG) --prompts $(PROMPTS) --output $(@D) --work-dir $(WORK) $(EVALUATE_FLAGS)

# An extra breaker has a report of its own, whatever its gates say. It is made while the breaker trains, and the
# comparison below finds the completions of the base and of the extra breakers finished.
EXTRA_REPORTS := $(BESIDE:%=$(DATA)/adapters/%/report/table.txt)
$(EXTRA_REPORTS): $(DATA)/adapters/%/report/table.txt: $(DATA)/adapters/%/adapter_model.safetensors $(PROMPT_SETS)
	mkdir -p $(@D) && rm -f $(@D)/results.json
	$(EVALUATE) --adapter $(DATA)/adapters/$* > $@ || test -s $(@D)/results.json

# No file: what depends on it is looked at every time.
always:

$(SUBJECT): always
	mkdir -p $(@D) && echo "$(strip $(MODEL) $(ADAPTERS))" | cmp -s - $@ || echo "$(strip $(MODEL) $(ADAPTERS))" > $@

# A gate that fails stops the line, unless the breaker is given and all that is asked for is figures. The report is
# written in any case.
$(DATA)/report/table.txt: $(MEASURED) $(EXTRA_REPORTS) $(PROMPT_SETS) $(SUBJECT)
	rm -f $(@D)/results.json
	$(EVALUATE) $(ADAPTERS) $(SCALES:%=--scale %) $(CURVES) > $@ || { cat $@; $(if $(GIVEN),test -s $(@D)/results.json,exit 1); }

# What a recipe asks besides: general ability on held-out conversations, and whether merged weights judge alike.
ABILITY := $(if $(ABILITY_DATA),$(DATA)/report/ability.json)
$(ABILITY): $(MEASURED) $(ABILITY_DATA:%=%/report.json) $(SUBJECT)
	$(CB) ability --model $(MODEL) $(TOKENIZER_FLAG) $(ADAPTERS) $(ABILITY_DATA:%=--data %) --output $(@D) \
		--work-dir $(WORK) $(ABILITY_FLAGS)

MERGED := $(MERGE_DTYPES:%=$(DATA)/merged/%/merged.json)
$(MERGED): $(DATA)/merged/%/merged.json: $(MEASURED) $(DATA)/report/table.txt
	$(CB) merge-adapter --model $(MODEL) $(TOKENIZER_FLAG) --adapter $(ADAPTER) --prompts $(PROMPTS) --output $(@D) \
		--dtype $* --report $(DATA)/report --work-dir $(WORK) $(EVALUATE_FLAGS)

REPORT = $(CB) report $(DATA)/report/results.json --output $(DATA)/report

# Finished runs are reused.
$(LIVE_TABLE): $(MEASURED) $(SUBJECT) | $(AGENTDOJO_READY)
	mkdir -p $(@D)
	$(CB) agentdojo --model $(MODEL) $(TOKENIZER_FLAG) $(ADAPTERS) --output $(@D) $(LIVE_FLAGS) > $@

# The cosines are measured meanwhile, and added with the live runs to the report of a breaker that passes.
$(DATA)/report/summary.txt: $(DATA)/report/table.txt $(LIVE_TABLE) $(DIAGNOSTICS) $(ABILITY) $(MERGED)
	$(REPORT) $(DIAGNOSTICS:%=--diagnostics %) $(CURVES) > $@

# Adds later results to the report, where there is one.
UPDATE_REPORT = test ! -f $(DATA)/report/results.json || $(REPORT) \
	$(addprefix --diagnostics ,$(wildcard $(DIAGNOSTICS))) $(if $(wildcard $(lastword $(CURVES))),$(CURVES))

# Attackers who try again or know the breaker, about whom fixed attacks say nothing.
attack: $(MEASURED) $(PROMPT_SETS)  ## The ladder of attacks against base and breakers: black box, searches, free vectors
	$(CB) attack --model $(MODEL) $(TOKENIZER_FLAG) $(ADAPTERS) --prompts $(PROMPTS) --output $(DATA)/report \
		--work-dir $(WORK) $(ATTACK_FLAGS)
	$(UPDATE_REPORT)

# Whoever has the weights can train them: on rows of the merged data, which a given breaker's recipe makes.
tamper: $(MEASURED) $(STAGE2)/eval/report.json $(PROMPT_SETS)  ## Fine-tune base and breakers on benign and on harmful rows, and measure them meanwhile
	$(CB) attack --tamper --data $(STAGE2) --model $(MODEL) $(TOKENIZER_FLAG) $(ADAPTERS) --prompts $(PROMPTS) \
		--output $(DATA)/report --work-dir $(WORK) $(TAMPER_FLAGS)
	$(UPDATE_REPORT)

# The models are served while the benchmark runs. Finished runs are reused.
SUITES ?= banking
ATTACK ?= important_instructions
agentdojo: $(READY) $(AGENTDOJO_READY)  ## AgentDojo's own benchmark: make agentdojo MODEL=... ADAPTER=... SUITES="banking slack"
	$(CB) agentdojo --model $(MODEL) $(TOKENIZER_FLAG) --adapter $(ADAPTER) --output $(DATA)/report/agentdojo --attack $(ATTACK) \
		$(SUITES:%=--suite %) $(USER_TASKS:%=--user-task %) $(INJECTION_TASKS:%=--injection-task %) $(AGENTDOJO_FLAGS)
	$(UPDATE_REPORT)

# ---------------------------------------------------------------------------------------------------------- publishing

# Recipes whose inputs are all on disk stay offline; publishing needs the network.
push push-model: export HF_HUB_OFFLINE := 0

cards: $(REPORTS)/preflight.json  ## Write the release folder with its card; send nothing
	$(CB) push $(call quoted,$(or $(REPO),owner/name)) --data $(DATA) --dry-run

push: $(REPORTS)/preflight.json  ## Publish the dataset: make push REPO=owner/name
	$(CB) push $(call quoted,$(REPO)) --data $(DATA) $(PUSH_FLAGS)

push-model: $(DATA)/report/table.txt  ## Publish the adapter: make push-model REPO=owner/name
	$(CB) push-model $(call quoted,$(REPO)) --adapter $(TRAINED_ADAPTER) --report $(DATA)/report $(PUSH_FLAGS)

EXPORT ?= $(DATA)/jsonl
export: $(REPORTS)/preflight.json  ## All sets, the merged splits and their reports as a tree of JSON lines, in EXPORT
	$(CB) export $(DATA) --output $(call quoted,$(EXPORT))

view: $(REPORTS)/preflight.json  ## Look through the rows in a browser, and mark them
	$(CB) view $(DATA) --model $(TARGET) $(VIEW_FLAGS)

# What a model wrote took hours, and marks are a person's work.
KEPT_BY_CLEAN := completions runs audit
clean:  ## Delete the recipe's data, except completions, runs of the model and audit marks
	test ! -d $(DATA) || find $(DATA) -mindepth 1 -maxdepth 1 $(KEPT_BY_CLEAN:%=! -name %) -exec rm -rf {} +

clean-all:  ## Delete all of the recipe's data
	rm -rf $(DATA)
