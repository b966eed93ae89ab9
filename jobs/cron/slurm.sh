#!/bin/bash
# sbatch slurm.sh: a run that outlives its time limit. Five minutes before the end SLURM tells this script, which tells the
# run: that finishes what is in flight and exits with 75 (not done yet), and the job goes back into the queue.
#SBATCH --job-name=pipeline
#SBATCH --time=04:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=2G
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pipeline-%j.log

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2

# In the background, since bash hears a signal only while it waits. Say "$!" before anything else starts.
.venv/bin/pipeline run job.toml "$@" &
run=$!
trap 'heard=yes; kill -TERM "$run"' TERM

heard=yes
while [ -n "$heard" ]; do # a signal ends a wait early: then the run is still there
  heard=
  wait "$run"
  code=$?
done

# Not for ever: a disk that is full stays full.
if [ "$code" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
