// What follows VFIO's structures: chains of capabilities, lists of devices, the data of SET_IRQS. Read with
// bounds, by memcpy, so that neither a short buffer nor an odd offset from a kernel can lead outside.
#pragma once
#include "vfio_types.h"

/// Interrupts for which SET_IRQS builds its argument on the stack.
#define CI_VFIO_IRQ_INLINE 64u
/// Groups that one hot reset can name.
#define CI_VFIO_HOT_RESET_GROUPS 64u
/// Bytes of a feature that are built on the stack.
#define CI_VFIO_FEATURE_INLINE 64u

/// Copies `length` bytes from `offset` of a buffer of `size` bytes. -ERANGE where they do not all lie in it.
CI_SHIM int32_t ci_vfio_copy(
    const void *_Nonnull buffer, uint64_t size, uint64_t offset, void *_Nonnull out, uint64_t length) {
  if (length > size || offset > size - length) return -ERANGE;
  memcpy(out, (const char *)buffer + offset, length);
  return 0;
}

/// The offset of the capability `id` in a buffer that begins with an info structure; the chain starts at
/// `first` (`cap_offset`). -ENOENT where there is none, -EPROTO where the chain leaves the buffer or does not
/// end.
CI_SHIM int32_t ci_vfio_capability(const void *_Nonnull info, uint32_t size, uint32_t first, uint16_t id) {
  struct ci_vfio_info_cap_header header;
  uint32_t offset = first;
  // A chain cannot have more links than headers fit into the buffer.
  for (uint32_t links = size / (uint32_t)sizeof header; offset != 0; links--) {
    if (links == 0 || ci_vfio_copy(info, size, offset, &header, sizeof header) < 0) return -EPROTO;
    if (header.id == id) return (int32_t)offset;
    offset = header.next;
  }
  return -ENOENT;
}

/// VFIO_REGION_INFO_CAP_SPARSE_MMAP at `offset`: how many areas may be mapped, or -ERANGE.
CI_SHIM int32_t ci_vfio_sparse_mmap_count(const void *_Nonnull info, uint32_t size, uint32_t offset) {
  struct ci_vfio_region_info_cap_sparse_mmap head;
  int32_t result = ci_vfio_copy(info, size, offset, &head, sizeof head);
  if (result < 0) return result;
  return head.nr_areas > INT32_MAX ? -ERANGE : (int32_t)head.nr_areas;
}

/// VFIO_REGION_INFO_CAP_SPARSE_MMAP at `offset`: one of its areas.
CI_SHIM int32_t ci_vfio_sparse_mmap_area(
    const void *_Nonnull info, uint32_t size, uint32_t offset, uint32_t index,
    struct ci_vfio_region_sparse_mmap_area *_Nonnull out) {
  const uint64_t head = sizeof(struct ci_vfio_region_info_cap_sparse_mmap);
  uint64_t at = offset + head + (uint64_t)index * sizeof *out;
  return ci_vfio_copy(info, size, at, out, sizeof *out);
}

/// VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE at `offset`: how many ranges, or -ERANGE.
CI_SHIM int32_t ci_vfio_iova_range_count(const void *_Nonnull info, uint32_t size, uint32_t offset) {
  struct ci_vfio_iommu_type1_info_cap_iova_range head;
  int32_t result = ci_vfio_copy(info, size, offset, &head, sizeof head);
  if (result < 0) return result;
  return head.nr_iovas > INT32_MAX ? -ERANGE : (int32_t)head.nr_iovas;
}

/// VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE at `offset`: one of its ranges.
CI_SHIM int32_t ci_vfio_iova_range_at(
    const void *_Nonnull info, uint32_t size, uint32_t offset, uint32_t index,
    struct ci_vfio_iova_range *_Nonnull out) {
  const uint64_t head = sizeof(struct ci_vfio_iommu_type1_info_cap_iova_range);
  uint64_t at = offset + head + (uint64_t)index * sizeof *out;
  return ci_vfio_copy(info, size, at, out, sizeof *out);
}

/// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: one of the `count` devices behind the structure.
CI_SHIM int32_t ci_vfio_pci_hot_reset_device(
    const struct ci_vfio_pci_hot_reset_info *_Nonnull info, uint32_t capacity, uint32_t index,
    struct ci_vfio_pci_dependent_device *_Nonnull out) {
  if (index >= info->count) return -ERANGE;
  return ci_vfio_copy(info, capacity, sizeof *info + (uint64_t)index * sizeof *out, out, sizeof *out);
}

/// Bytes that SET_IRQS takes for `count` interrupts whose data are `width` bytes each (BOOL 1, EVENTFD 4).
CI_SHIM uint64_t ci_vfio_irq_set_size(uint32_t count, uint32_t width) {
  return sizeof(struct ci_vfio_irq_set) + (uint64_t)count * width;
}

/// Puts the structure and its data together and issues SET_IRQS. For vfio.h.
CI_SHIM int32_t ci_vfio_set_irqs_data(
    int device, struct ci_vfio_irq_set set, const void *_Nonnull data, uint32_t width,
    void *_Nullable scratch, uint32_t scratch_size) {
  struct {
    struct ci_vfio_irq_set set;
    int32_t data[CI_VFIO_IRQ_INLINE];
  } local;
  uint64_t size = ci_vfio_irq_set_size(set.count, width);
  void *argument = &local;
  if (size > sizeof local) {
    if (scratch == NULL || size > scratch_size) return -ENOBUFS;
    argument = scratch;
  }
  set.argsz = (uint32_t)size;
  memcpy(argument, &set, sizeof set);
  memcpy((char *)argument + sizeof set, data, size - sizeof set);
  return ci_ioctl(device, CI_VFIO_DEVICE_SET_IRQS, argument);
}
