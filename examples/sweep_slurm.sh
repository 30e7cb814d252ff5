#!/bin/sh
# A sweep on a cluster: eight agents, each on a GPU of its own, one run after the other.
#   wandb sweep --project nas_prune recipes/sweeps/imagenet_resnet50.yaml
#   sbatch --export=ALL,SWEEP=ENTITY/nas_prune/ID,IMAGENET=/data/imagenet examples/sweep_slurm.sh
#SBATCH --job-name=nas_prune --array=0-7 --gres=gpu:1 --cpus-per-task=12 --time=24:00:00 --signal=B:TERM@90

export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"
export NAS_PRUNE_MEASURING_LOCK="/tmp/nas_prune-$USER.lock" # agents on one node measure one after the other
export NAS_PRUNE_CACHE="$HOME/.cache/nas_prune"             # calibrations are shared by all of one kind of node
exec wandb agent --forward-signals --count 4 "$SWEEP"
