#!/usr/bin/env bash
# Pretraining under SLURM that is requeued before its time is up, and goes on where it stopped:
#
#   sbatch --nodes 2 --gpus-per-node 8 --time 24:00:00 tools/slurm.sh \
#       --config-file configs/detco.yaml OUTPUT_DIR output/mine DATASETS.TRAIN '("/my/photos",)'
#
# OUTPUT_DIR must be on a file system that all nodes share.
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -u
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # or a restart finds the addresses of the dead

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    --max-restarts 3 pretrain_net.py --num-gpus "${SLURM_GPUS_ON_NODE:-1}" "$@" &
training=$!

# Five minutes before the end: torchrun passes SIGTERM on, each process finishes its step, one saves.
stop() {
    kill -TERM "$training"
    wait "$training"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap stop USR1
wait "$training"
