# syntax=docker/dockerfile:1
# A GPU node with everything that a recipe needs, except weights, data and tokens: docs/cluster.md says how to run it.
#
#   docker build -t cb-datasets .

# With CUDA's compiler, not its libraries alone: some kernels of vLLM are compiled when they are first used. The version
# is that of the torch in constraints.txt, whose wheel has libraries of its own.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

# Triton compiles launchers against Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /cb-datasets
# What .dockerignore lets through.
COPY . .

RUN --mount=type=cache,target=/root/.cache/pip \
    make PYTHON=python3.12 setup .venv/.ready-agentdojo .venv/.ready-sources \
    && .venv/bin/python -m pip install -c constraints.txt -e '.[vllm]'

# Run as a user of the host, who has neither a home nor a name in here, where caches of kernels look for both.
ENV HOME=/tmp LOGNAME=user HF_HOME=/huggingface
CMD ["make", "help"]
