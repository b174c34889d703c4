# Site profile: ranks in a container, by pyxis and enroot. Copy it, adapt it, and pass the copy's path to --profile.
# megatrain itself, on the host, submits and keeps the books; the image holds Python, torch and megatrain's packages.
SRUN_OPTIONS=(
    --container-image="${IMAGE:-$HOME/images/megatrain.sqsh}"
    --container-mounts="$PWD:$PWD,$RUN:$RUN"
    --container-workdir="$PWD"
)
RANK_PYTHON=python3                     # the image's
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
