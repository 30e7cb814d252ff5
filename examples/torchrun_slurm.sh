#!/bin/sh
# One run on the GPUs of two machines that share a folder: torchrun on each, the first process of the first one measures.
#   sbatch --export=ALL,IMAGENET=/data/imagenet examples/torchrun_slurm.sh
# Stopped by the time limit, the job saves and is put into the queue again, where the same command goes on.
#SBATCH --job-name=nas_prune --nodes=2 --ntasks-per-node=1 --gres=gpu:4 --cpus-per-task=48 --time=24:00:00
#SBATCH --signal=TERM@90 --requeue

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=12
exec srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=4 --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:29400" \
    -m nas_prune run imagenet/resnet50_w_gates --data.root="$IMAGENET" --out runs/resnet50_w_gates
