// Compares the shim's declarations of the uAPI with the kernel's own headers: every size, every field's
// offset and size, every constant, every request. `check` writes the list of comparisons from the shim's
// headers, so that none can be forgotten; a difference is a compile error that names it. The program counts
// what was compared.
#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/version.h>
#include <linux/vfio.h>

#include <stdio.h>

#include "CIOMMU.h"

// 0, or a compile error with the names in it.
#define SAME(ours, theirs) \
  (0 * sizeof(struct { int unused; _Static_assert((ours) == (theirs), #ours " is not " #theirs); }))
#define MEMBER(type, field) (((struct type *)0)->field)

#define CONSTANT(name) constants += 1 + SAME((uint64_t)CI_##name, (uint64_t)(name));
// Kernel constants that are -1 are compared as the 32 bits that go into a field.
#define CONSTANT32(name) constants += 1 + SAME((uint32_t)CI_##name, (uint32_t)(name));
#define REQUEST(name) requests += 1 + SAME(CI_##name, (name));
#define SIZE(type) sizes += 1 + SAME(sizeof(struct ci_##type), sizeof(struct type));
#define FIELD(type, field) FIELD_AS(type, field, field)
#define FIELD_AS(type, field, name)                                          \
  offsets += 1 + SAME(offsetof(struct ci_##type, field), offsetof(struct type, name)) \
             + SAME(sizeof MEMBER(ci_##type, field), sizeof MEMBER(type, name));       \
  bytes += sizeof MEMBER(ci_##type, field);
// The fields listed are all the fields: nothing but `padding` is left between them.
#define WHOLE(type, padding)                                                                      \
  if (bytes + (padding) != sizeof(struct type)) {                                                 \
    printf("struct %s: fields of %zu bytes compared, it has %zu\n", #type, bytes, sizeof(struct type)); \
    failed = 1;                                                                                   \
  }                                                                                               \
  bytes = 0;
// What the kernel declares as a flexible array begins where the shim's structure ends.
#define TAIL(type, field) tails += 1 + SAME(sizeof(struct ci_##type), offsetof(struct type, field));

int main(void) {
  size_t sizes = 0, offsets = 0, constants = 0, requests = 0, tails = 0, bytes = 0;
  int failed = 0;
#include COMPARISONS
  TAIL(vfio_region_info_cap_sparse_mmap, areas)
  TAIL(vfio_iommu_type1_info_cap_iova_range, iova_ranges)
  TAIL(vfio_iommu_type1_dma_unmap, data)
  TAIL(vfio_iommu_type1_dirty_bitmap, data)
  TAIL(vfio_irq_set, data)
  TAIL(vfio_pci_hot_reset_info, devices)
  TAIL(vfio_pci_hot_reset, group_fds)
  TAIL(vfio_device_feature, data)
  TAIL(vfio_device_feature_dma_buf, dma_ranges)
  printf(
      "Linux %d.%d.%d: %zu requests, %zu structures, %zu fields, %zu tails, %zu constants compared%s\n",
      LINUX_VERSION_CODE >> 16, LINUX_VERSION_CODE >> 8 & 255, LINUX_VERSION_CODE & 255, requests, sizes,
      offsets, tails, constants, failed ? ": DIFFERENT" : ", all equal");
  return failed;
}
