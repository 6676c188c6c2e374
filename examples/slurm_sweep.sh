#!/bin/bash
# A study as a Slurm array: every task trains, draws and reads whole packs by itself, and whoever is last writes the
# table. Count the packs first; this also measures them, so that the tasks agree on their numbers:
#
#     kanjilab sweep --study rank --scale full --retrain --dry-run     # "24 arms in 3 packs"
#     sbatch --array=0-2 examples/slurm_sweep.sh rank full
#
# --retrain also trains the arms whose tables are in figures/studies; without it nothing of this study is left to do.
#
# A task that was killed or ran out of time goes on where it was when it is submitted again. Tasks on machines that
# share no disk: copy their runs/studies/rank-full/packs/* into one folder, and run the sweep there to merge them.
# Without Slurm, any queue that runs `kanjilab sweep --study rank --scale full --retrain --pack 2` will do.
#SBATCH --job-name=kanjilab
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
#SBATCH --time=04:00:00
set -euo pipefail
study=${1:-rank} scale=${2:-full} pack=${SLURM_ARRAY_TASK_ID:?submit with --array}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-2}
exec .venv/bin/kanjilab sweep --study "$study" --scale "$scale" --retrain --pack "$pack"
