# Site profile: a cluster whose nodes answer on the fast network under another name, such as node17 and node17i.
# Copy it, adapt the names, and pass the copy's path to --profile. #SBATCH lines go to the head of the job script;
# what the configuration's `slurm:` section says comes first.
#SBATCH --partition=gpu
#SBATCH --constraint=ib
MASTER_SUFFIX=i
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-ib}  # every interface whose name begins so
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-ib0}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
