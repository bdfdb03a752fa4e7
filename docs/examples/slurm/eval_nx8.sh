#!/bin/bash
# 16 nodes with 8 GPUs each, as an array: every job asks one shard, whenever it gets a node, and scores nothing.
# Then the results are written, by a job that needs no GPU:
#
#   JOB=$(sbatch --parsable docs/examples/slurm/eval_nx8.sh)
#   sbatch --dependency=afterok:$JOB docs/examples/slurm/merge.sh
#
# Without 8 GPUs at once: --gpus-per-node=1, --array=1-128, and `harness-ext` for `accelerate launch ... harness_ext.cli`.
#SBATCH --job-name=eval-shard
#SBATCH --array=1-16
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=01:00:00
#SBATCH --requeue
set -euo pipefail

srun accelerate launch --config_file docs/examples/accelerate/ddp.yaml -m harness_ext.cli eval \
    --model_args pretrained=meta-llama/Llama-3.2-1B,dtype=bfloat16 \
    --adapters 'adapters/*' \
    --tasks sst2_choice squad_v2_generate \
    --store "${STORE:-answers}" --output_path results/all --log_samples \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
