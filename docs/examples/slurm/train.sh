#!/bin/bash
# Training on 8 GPUs; on N nodes of 8 with `sbatch --nodes=N`. `--resume` after a job that was stopped.
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export MASTER
# shellcheck disable=SC2016  # the variables are those of each node
srun bash -c 'accelerate launch --config_file docs/examples/accelerate/ddp.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$((8 * SLURM_NNODES))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MASTER" --main_process_port 29500 \
    -m harness_ext.cli train sst2_choice --model meta-llama/Llama-3.2-1B --output adapters/sst2'
