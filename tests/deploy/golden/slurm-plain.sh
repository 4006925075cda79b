#!/bin/bash
#SBATCH --job-name=loom-main-1a2b3c
#SBATCH --output=/home/me/queues/main-1a2b3c/job-%j.log
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --no-requeue

# What this job still has: the workers take no task that does not fit, and leave before the time is over.
time_limit=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%L 2>/dev/null)
case "$time_limit" in
  *:*) ;;
  UNLIMITED) time_limit= ;;
  *) time_limit= ;;
esac

exec srun --ntasks=1 --cpus-per-task=1 --export=ALL --mpi=none --wait=0 --kill-on-bad-exit=0 \
  --input=none bash -c 'exec /opt/python/bin/python3 -m loom.cli.worker --name "slurm-$SLURM_JOB_ID-$SLURM_PROCID" "$@"' worker \
  --address-file /home/me/queues/main-1a2b3c/address \
  --key-file /home/me/.config/loom/key \
  --cpus 1 \
  --drain-timeout 30 --lost-timeout 300 \
  ${time_limit:+--time-limit "$time_limit"}
