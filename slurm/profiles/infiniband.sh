# Site profile: InfiniBand or RoCE fabric. Put into the job script by `megatrain submit --profile infiniband`.
# Copy it, adapt the names (`ip -br link` and `ibv_devices` on a compute node list them), and pass the copy's path.
export NCCL_SOCKET_IFNAME=^lo,docker0   # for the bootstrap: any interface but these
export NCCL_IB_HCA=mlx5                 # every adapter whose name begins so
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
