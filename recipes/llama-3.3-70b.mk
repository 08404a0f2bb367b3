# Llama 3.3 70B on a node of eight GPUs of 80 GB, see recipes/include/full.mk.
#
#   make data RECIPE=llama-3.3-70b RAW=path/to/raw/files     (with fujitsu/ and agentdojo/ below it)
#   make train RECIPE=llama-3.3-70b RAW=path/to/raw/files
#   make data/llama-3.3-70b/report/table.txt RECIPE=llama-3.3-70b RAW=path/to/raw/files
#
# Generation: 141 GB of weights in bfloat16 (70.6e9 parameters) are 35 GB on each of four GPUs, which leaves about 35 GB
# of each for keys and values: 320 kB a token (80 blocks, 8 heads of 128, keys and values, 2 bytes), 80 kB on each GPU.
#
# Training, with FSDP2 over eight GPUs, in GB on each:
#
#   18    an eighth of the weights
#    4    two blocks of 0.86e9 parameters, gathered while they are computed
#    4    embeddings and LM head, gathered (2.1 each)
#    1    an eighth of 0.2e9 LoRA parameters in float32, with gradients and two moments of Adam
#   32    inputs of 80 blocks for three rows of 8,192 tokens at most, which checkpointing keeps (1.3 MB a token)
#    5    the MLP of the block that is computed again
#
# That makes 64 at worst, and about half of it with rows of usual length.
#
# `make evaluate` measures cosines too, and `make attack` searches, with Transformers on one GPU: this model does not fit.
# The third command compares base and breaker without that.
#
# On Slurm, set TRAIN_GPUS=8 and GPUS=4 in slurm/site.sh.
#
# Checked: every command of the recipe is one. Its chat template asks for the calls of Llama 3.1 and is checked before any
# work. Not yet run on a GPU: the figures above are arithmetic. Licence: Llama 3.3 Community License.

DATA := data/llama-3.3-70b
MODEL := meta-llama/Llama-3.3-70B-Instruct
FORMAT := llama3_json
TENSOR_PARALLEL := 4
LAUNCH_FLAGS := --config_file recipes/accelerate/fsdp2.yaml --num_processes 8

include recipes/include/full.mk
