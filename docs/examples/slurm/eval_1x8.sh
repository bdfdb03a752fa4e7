#!/bin/bash
# One node with 8 GPUs: the processes divide the requests. Submitted again, it goes on where it stood.
#SBATCH --job-name=eval
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

srun accelerate launch --config_file docs/examples/accelerate/ddp.yaml -m harness_ext.cli eval \
    --model_args pretrained=meta-llama/Llama-3.2-1B,dtype=bfloat16 \
    --adapters 'adapters/*' \
    --tasks sst2_choice squad_v2_generate \
    --store "${STORE:-answers}" --output_path results/all --log_samples
