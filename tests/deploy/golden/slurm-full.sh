#!/bin/bash
#SBATCH --job-name=loom-main-1a2b3c
#SBATCH --output=/home/me/queues/main-1a2b3c/job-%j.log
#SBATCH --ntasks=2
#SBATCH --cpus-per-task=4
#SBATCH --time=1-01:00:00
#SBATCH --mem-per-cpu=2048M
#SBATCH --gpus-per-task=1
#SBATCH --no-requeue

module load python
. ~/env/bin/activate

# What this job still has: the workers take no task that does not fit, and leave before the time is over.
time_limit=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%L 2>/dev/null)
case "$time_limit" in
  *:*) ;;
  UNLIMITED) time_limit= ;;
  *) time_limit=90000 ;;
esac

exec srun --ntasks=2 --cpus-per-task=4 --export=ALL --mpi=none --wait=0 --kill-on-bad-exit=0 \
  --input=none bash -c 'exec python3 -m loom.cli.worker --name "slurm-$SLURM_JOB_ID-$SLURM_PROCID" "$@"' worker \
  --address-file /home/me/queues/main-1a2b3c/address \
  --key-file /home/me/.config/loom/key \
  --cpus 4 --gpus 1 --mem 8589934592 --resource fpga=2 \
  --drain-timeout 30 --lost-timeout 300 \
  ${time_limit:+--time-limit "$time_limit"} \
  --wdir '/scratch/my files'
