#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <iommufd.h>
#include <malloc.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <vfio.h>

enum { ADDRESS = 0x10000000 };

static int error(void) { return -errno; }

int raw_open_iommufd(struct raw_device *raw, const char *node) {
  raw->group = -1;
  raw->device = open(node, O_RDWR | O_CLOEXEC);
  raw->space = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (raw->device < 0 || raw->space < 0) return error();
  struct ci_vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = raw->space};
  if (ioctl(raw->device, CI_VFIO_DEVICE_BIND_IOMMUFD, &bind)) return error();
  struct ci_iommu_ioas_alloc space = {.size = sizeof space};
  if (ioctl(raw->space, CI_IOMMU_IOAS_ALLOC, &space)) return error();
  struct ci_vfio_device_attach_iommufd_pt attach = {.argsz = sizeof attach, .pt_id = space.out_ioas_id};
  if (ioctl(raw->device, CI_VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach)) return error();
  raw->ioas = space.out_ioas_id;
  return 0;
}

int raw_open_type1(struct raw_device *raw, const char *group, const char *address) {
  raw->group = open(group, O_RDWR | O_CLOEXEC);
  raw->space = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  if (raw->group < 0 || raw->space < 0) return error();
  if (ioctl(raw->group, CI_VFIO_GROUP_SET_CONTAINER, &raw->space)) return error();
  if (ioctl(raw->space, CI_VFIO_SET_IOMMU, 3UL)) return error();  // VFIO_TYPE1v2_IOMMU
  raw->device = ioctl(raw->group, CI_VFIO_GROUP_GET_DEVICE_FD, address);
  return raw->device < 0 ? error() : 0;
}

int raw_pairs_iommufd(const struct raw_device *raw, uint64_t memory, uint64_t length, int count) {
  for (int i = 0; i < count; i++) {
    struct ci_iommu_ioas_map map = {
        .size = sizeof map,
        .flags = CI_IOMMU_IOAS_MAP_FIXED_IOVA | CI_IOMMU_IOAS_MAP_WRITEABLE | CI_IOMMU_IOAS_MAP_READABLE,
        .ioas_id = raw->ioas, .user_va = memory, .length = length, .iova = ADDRESS};
    if (ioctl(raw->space, CI_IOMMU_IOAS_MAP, &map)) return error();
    struct ci_iommu_ioas_unmap unmap = {
        .size = sizeof unmap, .ioas_id = raw->ioas, .iova = ADDRESS, .length = length};
    if (ioctl(raw->space, CI_IOMMU_IOAS_UNMAP, &unmap)) return error();
  }
  return 0;
}

int raw_pairs_type1(const struct raw_device *raw, uint64_t memory, uint64_t length, int count) {
  for (int i = 0; i < count; i++) {
    struct ci_vfio_iommu_type1_dma_map map = {
        .argsz = sizeof map, .flags = CI_VFIO_DMA_MAP_FLAG_READ | CI_VFIO_DMA_MAP_FLAG_WRITE, .vaddr = memory,
        .iova = ADDRESS, .size = length};
    if (ioctl(raw->space, CI_VFIO_IOMMU_MAP_DMA, &map)) return error();
    struct ci_vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = ADDRESS, .size = length};
    if (ioctl(raw->space, CI_VFIO_IOMMU_UNMAP_DMA, &unmap)) return error();
  }
  return 0;
}

void raw_close(const struct raw_device *raw) {
  if (raw->device >= 0) close(raw->device);
  if (raw->group >= 0) close(raw->group);
  if (raw->space >= 0) close(raw->space);
}

// `struct map_benchmark` of the kernel.
struct benchmark {
  uint64_t map, map_deviation, unmap, unmap_deviation;
  uint32_t threads, seconds;
  int32_t node;
  uint32_t address_bits, direction, transfer_ns, granule;
  uint8_t mode, unused[75];
};

int raw_kernel_pairs(const char *file, double *map, double *unmap) {
  int descriptor = open(file, O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return error();
  struct benchmark benchmark = {.threads = 1, .seconds = 1, .node = -1, .address_bits = 64, .granule = 1};
  int result = ioctl(descriptor, _IOWR('d', 1, struct benchmark), &benchmark) ? error() : 0;
  close(descriptor);
  *map = 100 * (double)benchmark.map;
  *unmap = 100 * (double)benchmark.unmap;
  return result;
}

long raw_heap_bytes(void) {
  struct mallinfo2 info = mallinfo2();
  return (long)(info.uordblks + info.hblkhd);
}
