# Site profile: InfiniBand or RoCE fabric. Put into the job script by `megatrain submit --profile infiniband`.
# Copy it, adapt the names (`ip -br link` and `ibv_devices` on a compute node list them), and pass the copy's path.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-^lo,docker0}  # for the bootstrap: any interface but these
export NCCL_IB_HCA=${NCCL_IB_HCA:-mlx5}  # every adapter whose name begins so
# gloo takes one name: the interface of the default route, the same on all nodes of most clusters
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$(ip -o route show default | awk '{print $5; exit}')}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
