# Llama 3.1 8B on a GPU node, see recipes/include/full.mk.
#
#   make evaluate RECIPE=llama-3.1-8b RAW=path/to/raw/files TENSOR_PARALLEL=1    (with fujitsu/ and agentdojo/ below it)

DATA := data/llama-3.1-8b
MODEL := meta-llama/Llama-3.1-8B-Instruct
# 16 GB of weights fit on one GPU; more GPUs are better used by slurm/pipeline.sh, one each.
TENSOR_PARALLEL := 1

include recipes/include/full.mk
