#!/usr/bin/env bash
# A run on GPUs under SLURM, one process per GPU. From the root of a clone on a folder that all nodes share:
#   sbatch cluster/slurm.sh
#
# Edit: the resources, and the values below them.
#SBATCH --job-name=ada
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
# --requeue: SLURM itself starts the job again after a lost node or a preemption. --signal: 120 seconds before the end of
# its time, the processes get SIGTERM, save, and end with code 75.
set -uo pipefail
mirror=s3://BUCKET/ada  # or a folder that outlives this one
data="$PWD/data"  # prepared on first use, by download; nodes without network: prepare it on the login node
restarts=100  # at most
# shellcheck source=/dev/null
. .venv/bin/activate || exit

trap 'stopped=yes' TERM  # a preemption, after which SLURM requeues, or scancel, after which nobody should
if [[ ! -d "$data/cifar10" ]]; then
  python -m adversarial_augment.prepare cifar10 --data_dir="$data" || exit
fi
srun python -m adversarial_augment.train --config=configs/ada_edsr.py --config.data_dir="$data" \
  --workdir="runs/$SLURM_JOB_NAME" --mirror="$mirror"
code=$?  # the highest of all processes

# 1 to 5: a bug, wrong input, NaN, no usable checkpoint, a full disk. Others: stopped, a lost peer, a crash.
if ((code > 5 && ${SLURM_RESTART_COUNT:-0} < restarts)) && [[ -z "${stopped:-}" ]]; then
  echo "exit code $code: again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
