// What torch asks of CUDA's runtime before it runs a kernel, answered for one H100. Preloaded in front of libcudart.
#include <cstring>
#include <cuda_runtime_api.h>

extern "C" {
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = 80ul << 30; return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *device, int) {
  memset(device, 0, sizeof *device);
  strcpy(device->name, "NVIDIA H100 80GB HBM3");
  device->major = 9;
  device->totalGlobalMem = 80ul << 30;
  device->multiProcessorCount = 132;
  device->warpSize = 32;
  device->regsPerBlock = device->regsPerMultiprocessor = 65536;
  device->maxThreadsPerBlock = 1024;
  device->maxThreadsPerMultiProcessor = 2048;
  device->sharedMemPerBlock = 48 << 10;
  device->sharedMemPerBlockOptin = 227 << 10;
  device->sharedMemPerMultiprocessor = 228 << 10;
  device->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
}
