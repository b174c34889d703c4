# Site profile: ranks in a container, by apptainer. Copy it, adapt it, and pass the copy's path to --profile.
# megatrain itself, on the host, submits and keeps the books; the image holds Python, torch and megatrain's packages.
CONTAINER=(apptainer exec --nv --bind "$PWD,$RUN" --pwd "$PWD" "${IMAGE:-$HOME/images/megatrain.sif}")
RANK_PYTHON=python3                     # the image's
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
