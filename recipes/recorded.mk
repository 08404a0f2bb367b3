# All that is recorded, no model: recipes/local.mk, and besides the answers of real models in Fujitsu's B1 (poisoned
# documents) and B3 (harmful requests) for Ds, and XSTest's answers (prompts that only look dangerous) for Dr.
#
#   make data RECIPE=recorded RAW=path/to/raw/files      (as for local, with the files of B1 and B3 in fujitsu/)

include recipes/local.mk

DATA := data/recorded

SOURCES += fujitsu_b1 fujitsu_b3 xstest_completions
HARMFUL_SETS += fujitsu_rag fujitsu_direct
RETAIN_SETS += xstest_borderline

INGEST_FLAGS_fujitsu_b1 = --data-dir $(call quoted,$(RAW)/fujitsu)
INGEST_FLAGS_fujitsu_b3 = --data-dir $(call quoted,$(RAW)/fujitsu)
# Training on XSTest spoils it as a benchmark. By group, prompts and answers alike, only its eval part is evaluated.
INGEST_FLAGS_xstest = --data-dir $(call quoted,$(RAW)/xstest) --retain
INGEST_FLAGS_xstest_completions = --data-dir $(call quoted,$(RAW)/xstest) --retain
