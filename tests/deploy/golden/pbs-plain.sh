#!/bin/bash
#PBS -N loom-1a2b3c
#PBS -j oe
#PBS -o /dev/null
#PBS -l select=1:ncpus=1
#PBS -r n
exec > "/home/me/queues/main-1a2b3c/job-${PBS_JOBID%%.*}.log" 2>&1
cd "$PBS_O_WORKDIR" 2>/dev/null || cd

# What this job still has: the workers take no task that does not fit, and leave before the time is over.
walltime=$(qstat -f "$PBS_JOBID" 2>/dev/null | sed -n 's/^ *Resource_List.walltime = //p')
walltime=${walltime:-}
IFS=: read -r hours minutes seconds <<< "$walltime"
time_limit=
if [ -n "$seconds" ]; then
  time_limit=$((10#$hours * 3600 + 10#$minutes * 60 + 10#$seconds - SECONDS))
fi

workers=
trap 'kill -TERM $workers 2>/dev/null' TERM INT
for number in $(seq 0 0); do
  /opt/python/bin/python3 -m loom.cli.worker --name "pbs-${PBS_JOBID%%.*}-$number" \
    --address-file /home/me/queues/main-1a2b3c/address \
    --key-file /home/me/.config/loom/key \
    --cpus 1 \
    --drain-timeout 30 --lost-timeout 300 \
    ${time_limit:+--time-limit "$time_limit"} &
  workers="$workers $!"
done
status=0
for worker in $workers; do
  wait "$worker"
  result=$?
  while kill -0 "$worker" 2>/dev/null; do  # a signal came meanwhile
    wait "$worker"
    result=$?
  done
  [ "$result" -eq 0 ] || status=$result
done
exit "$status"
