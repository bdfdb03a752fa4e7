#!/bin/bash
# Scores the answers of all shards, without weights and without a GPU. What is missing is named, and nothing is written.
#SBATCH --job-name=eval-merge
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=00:30:00
set -euo pipefail

srun harness-ext eval \
    --model_args pretrained=meta-llama/Llama-3.2-1B,dtype=bfloat16 \
    --adapters 'adapters/*' \
    --tasks sst2_choice squad_v2_generate \
    --store "${STORE:-answers}" --output_path results/all --log_samples \
    --from-store
harness-ext compare results/all --fail-on worse
