# Site profile: nodes joined by plain Ethernet. Put into the job script by `megatrain submit --profile ethernet`.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-eth0}  # `ip -br link` on a compute node lists the names
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-eth0}
export NCCL_IB_DISABLE=${NCCL_IB_DISABLE:-1}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
