# Site profile: software by environment modules. Copy it, adapt the names, and pass the copy's path to --profile.
module purge
module load cuda/13.0 nccl
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
