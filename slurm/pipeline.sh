#!/usr/bin/env bash
# Submits a recipe to Slurm: generate -> merge -> preflight -> train -> evaluate, each waiting for the one before.
#
#   slurm/pipeline.sh [--dry-run] RECIPE=name [VARIABLE=value ...]
#
# Variables are those of the Makefile and reach every job. --dry-run, in any place, prints the commands and runs none;
# --help prints this usage. To resume, submit again: what is done stays done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source slurm/site.sh

USAGE="usage: slurm/pipeline.sh [--dry-run] RECIPE=name [VARIABLE=value ...]"

main() {
    read_arguments "$@"
    [ -n "$dry_run" ] || refuse_second_run

    # Sources are read here, because that may need the network, and because array tasks would all read them at once.
    perform make --no-print-directory VENV="$VENV" traces "${make_variables[@]}"
    perform mkdir -p "$LOGS"

    local gpu=(${GPUS:+--gres="gpu:$GPUS"}) train_gpu=(${TRAIN_GPUS:+--gres="gpu:$TRAIN_GPUS"})
    before="" ids=()
    submit generate "${gpu[@]}" --time="$GENERATE_TIME" \
        --array="0-$((ARRAY_SIZE - 1))%$ARRAY_RUNNING" --output="$LOGS/%x-%A_%a.log"
    # Merging runs the generating commands once more, which find all shards there and write the sets.
    submit merge "${gpu[@]}" --time="$MERGE_TIME"
    submit preflight --time="$PREFLIGHT_TIME"
    submit train "${train_gpu[@]}" --time="$TRAIN_TIME"
    submit evaluate "${gpu[@]}" --time="$EVALUATE_TIME"
    [ -n "$dry_run" ] || show_jobs
}

read_arguments() {
    local argument
    dry_run="" recipe="" make_variables=()
    for argument in "$@"; do
        case $argument in
        -h | --help)
            echo "$USAGE"
            exit
            ;;
        --dry-run)
            dry_run=yes
            continue
            ;;
        RECIPE=*) recipe=${argument#RECIPE=} ;;
        [!-]*=*) ;;
        *) fail "$argument is no VARIABLE=value; $USAGE" ;;
        esac
        make_variables+=("$argument")
    done
    [ -n "$recipe" ] || fail "no recipe is named; $USAGE"
    [ -f "recipes/$recipe.mk" ] || fail "there is no recipes/$recipe.mk; RECIPE takes the name of a file in recipes/"
}

# Two jobs at work on one shard do no harm, but all of it twice.
refuse_second_run() {
    local queued
    queued=$(squeue --me --noheader --format="%F %j" |
        awk -v name="cb-$recipe-" 'index($2, name) == 1 { print $1 }' | sort -un | paste -sd ' ')
    [ -z "$queued" ] || fail "recipe $recipe has jobs in the queue: wait for them, or stop them with: scancel $queued"
}

# submit STEP OPTION...: the step's job, after the one submitted before.
submit() {
    local step=$1 id
    local command=(sbatch --parsable --job-name="cb-$recipe-$step" --output="$LOGS/%x-%j.log")
    command+=(${PARTITION:+--partition="$PARTITION"} ${ACCOUNT:+--account="$ACCOUNT"})
    command+=(--cpus-per-task="$CPUS" --mem="$MEMORY" "${@:2}")
    command+=(${before:+--dependency="afterok:$before" --kill-on-invalid-dep=yes})
    command+=("slurm/$step.sbatch" "${make_variables[@]}")
    if [ -n "$dry_run" ]; then
        perform "${command[@]}"
        id=${step^^}_JOB
    else
        id=$("${command[@]}")
        # Where clusters are federated, the name of the cluster follows.
        id=${id%%;*}
        echo "$step: job $id"
    fi
    before=$id
    ids+=("$id")
}

# Runs a command, or prints it.
perform() {
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

show_jobs() {
    echo "A step that fails, a gate among them, cancels those after it."
    echo "  state  squeue --jobs=$(IFS=,; echo "${ids[*]}")"
    echo "  logs   tail -f $LOGS/cb-$recipe-*.log"
    echo "  stop   scancel ${ids[*]}"
}

fail() {
    echo "error: $1" >&2
    exit 1
}

main "$@"
