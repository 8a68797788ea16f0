// One function for each ioctl of VFIO: container, group and device. Each fills in `argsz` and returns 0, the
// call's value, or -errno. `capacity` is the length of a buffer that begins with the structure: where it is
// too small for the capabilities (or devices) that follow, `argsz` (or `count`) comes back as what is needed.
#pragma once
#include <fcntl.h>

#include "vfio_data.h"
#include "vfio_features.h"
#include "vfio_types.h"

// Container: /dev/vfio/vfio

/// VFIO_GET_API_VERSION: 0 on every kernel so far.
CI_SHIM int32_t ci_vfio_get_api_version(int container) {
  return ci_ioctl(container, CI_VFIO_GET_API_VERSION, NULL);
}

/// VFIO_CHECK_EXTENSION: > 0 where the container knows an extension or IOMMU type.
CI_SHIM int32_t ci_vfio_check_extension(int container, uint32_t extension) {
  return ci_or_errno(ioctl(container, CI_VFIO_CHECK_EXTENSION, (unsigned long)extension));
}

/// VFIO_SET_IOMMU: chooses the interface, once a group is in the container.
CI_SHIM int32_t ci_vfio_set_iommu(int container, uint32_t type) {
  return ci_or_errno(ioctl(container, CI_VFIO_SET_IOMMU, (unsigned long)type));
}

/// VFIO_IOMMU_GET_INFO: page sizes and, behind the structure, capabilities.
CI_SHIM int32_t ci_vfio_iommu_get_info(
    int container, struct ci_vfio_iommu_type1_info *_Nonnull info, uint32_t capacity) {
  info->argsz = capacity;
  return ci_ioctl(container, CI_VFIO_IOMMU_GET_INFO, info);
}

/// VFIO_IOMMU_MAP_DMA: pins user memory and maps it at `iova`.
CI_SHIM int32_t ci_vfio_iommu_map_dma(int container, struct ci_vfio_iommu_type1_dma_map *_Nonnull map) {
  map->argsz = sizeof *map;
  return ci_ioctl(container, CI_VFIO_IOMMU_MAP_DMA, map);
}

/// VFIO_IOMMU_UNMAP_DMA: unmaps whole mappings; `size` comes back as the bytes unmapped.
CI_SHIM int32_t ci_vfio_iommu_unmap_dma(int container, struct ci_vfio_iommu_type1_dma_unmap *_Nonnull unmap) {
  unmap->argsz = sizeof *unmap;
  return ci_ioctl(container, CI_VFIO_IOMMU_UNMAP_DMA, unmap);
}

/// VFIO_IOMMU_UNMAP_DMA with GET_DIRTY_BITMAP: the same, and which pages were dirty.
CI_SHIM int32_t ci_vfio_iommu_unmap_dma_bitmap(
    int container, struct ci_vfio_iommu_type1_dma_unmap *_Nonnull unmap, struct ci_vfio_bitmap bitmap) {
  struct {
    struct ci_vfio_iommu_type1_dma_unmap unmap;
    struct ci_vfio_bitmap bitmap;
  } argument = {*unmap, bitmap};
  argument.unmap.argsz = sizeof argument;
  argument.unmap.flags |= CI_VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
  int32_t result = ci_ioctl(container, CI_VFIO_IOMMU_UNMAP_DMA, &argument);
  *unmap = argument.unmap;
  return result;
}

/// VFIO_IOMMU_DIRTY_PAGES with FLAG_START or FLAG_STOP.
CI_SHIM int32_t ci_vfio_iommu_dirty_pages(int container, uint32_t flags) {
  struct ci_vfio_iommu_type1_dirty_bitmap argument = {.argsz = sizeof argument, .flags = flags};
  return ci_ioctl(container, CI_VFIO_IOMMU_DIRTY_PAGES, &argument);
}

/// VFIO_IOMMU_DIRTY_PAGES with FLAG_GET_BITMAP: fills in `range.bitmap.data`.
CI_SHIM int32_t ci_vfio_iommu_dirty_pages_get_bitmap(
    int container, struct ci_vfio_iommu_type1_dirty_bitmap_get range) {
  struct {
    struct ci_vfio_iommu_type1_dirty_bitmap header;
    struct ci_vfio_iommu_type1_dirty_bitmap_get range;
  } argument = {{sizeof argument, CI_VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP}, range};
  return ci_ioctl(container, CI_VFIO_IOMMU_DIRTY_PAGES, &argument);
}

// Group: /dev/vfio/N

/// VFIO_GROUP_GET_STATUS: is every device of the group in the hands of VFIO?
CI_SHIM int32_t ci_vfio_group_get_status(int group, struct ci_vfio_group_status *_Nonnull status) {
  status->argsz = sizeof *status;
  return ci_ioctl(group, CI_VFIO_GROUP_GET_STATUS, status);
}

/// VFIO_GROUP_SET_CONTAINER: a container, or an iommufd that stands in for one.
CI_SHIM int32_t ci_vfio_group_set_container(int group, int container) {
  return ci_ioctl(group, CI_VFIO_GROUP_SET_CONTAINER, &container);
}

/// VFIO_GROUP_UNSET_CONTAINER: -EBUSY while a device of the group is open.
CI_SHIM int32_t ci_vfio_group_unset_container(int group) {
  return ci_ioctl(group, CI_VFIO_GROUP_UNSET_CONTAINER, NULL);
}

/// VFIO_GROUP_GET_DEVICE_FD: opens a device by PCI address; where it needs one, with " vf_token=UUID" after.
CI_SHIM int32_t ci_vfio_group_get_device_fd(int group, const char *_Nonnull name) {
  return ci_ioctl(group, CI_VFIO_GROUP_GET_DEVICE_FD, (void *)(uintptr_t)name);
}

// Device: /dev/vfio/devices/vfioN, or opened through its group

/// VFIO_DEVICE_BIND_IOMMUFD: claims the device; until then every other call gives -EINVAL.
CI_SHIM int32_t ci_vfio_device_bind_iommufd(int device, struct ci_vfio_device_bind_iommufd *_Nonnull bind) {
  bind->argsz = sizeof *bind;
  return ci_ioctl(device, CI_VFIO_DEVICE_BIND_IOMMUFD, bind);
}

/// VFIO_DEVICE_ATTACH_IOMMUFD_PT: attaches, or replaces what was attached.
CI_SHIM int32_t ci_vfio_device_attach_iommufd_pt(
    int device, struct ci_vfio_device_attach_iommufd_pt *_Nonnull attach) {
  attach->argsz = sizeof *attach;
  return ci_ioctl(device, CI_VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach);
}

/// VFIO_DEVICE_DETACH_IOMMUFD_PT: the device's DMA is blocked from here on.
CI_SHIM int32_t ci_vfio_device_detach_iommufd_pt(
    int device, struct ci_vfio_device_detach_iommufd_pt *_Nonnull detach) {
  detach->argsz = sizeof *detach;
  return ci_ioctl(device, CI_VFIO_DEVICE_DETACH_IOMMUFD_PT, detach);
}

/// VFIO_DEVICE_GET_INFO: numbers of regions and interrupts and, behind the structure, capabilities.
CI_SHIM int32_t ci_vfio_device_get_info(
    int device, struct ci_vfio_device_info *_Nonnull info, uint32_t capacity) {
  info->argsz = capacity;
  return ci_ioctl(device, CI_VFIO_DEVICE_GET_INFO, info);
}

/// VFIO_DEVICE_GET_REGION_INFO of the region `info->index`: a BAR, the ROM, config space.
CI_SHIM int32_t ci_vfio_device_get_region_info(
    int device, struct ci_vfio_region_info *_Nonnull info, uint32_t capacity) {
  info->argsz = capacity;
  return ci_ioctl(device, CI_VFIO_DEVICE_GET_REGION_INFO, info);
}

/// VFIO_DEVICE_GET_IRQ_INFO of the interrupt kind `info->index`.
CI_SHIM int32_t ci_vfio_device_get_irq_info(int device, struct ci_vfio_irq_info *_Nonnull info) {
  info->argsz = sizeof *info;
  return ci_ioctl(device, CI_VFIO_DEVICE_GET_IRQ_INFO, info);
}

/// VFIO_DEVICE_SET_IRQS with DATA_NONE. `count` 0 with ACTION_TRIGGER switches the whole index off.
CI_SHIM int32_t ci_vfio_device_set_irqs_none(
    int device, uint32_t action, uint32_t index, uint32_t start, uint32_t count) {
  struct ci_vfio_irq_set set = {sizeof set, CI_VFIO_IRQ_SET_DATA_NONE | action, index, start, count};
  return ci_ioctl(device, CI_VFIO_DEVICE_SET_IRQS, &set);
}

/// VFIO_DEVICE_SET_IRQS with a byte for each of `count` interrupts: 0 leaves it alone. `scratch`: see below.
CI_SHIM int32_t ci_vfio_device_set_irqs_bool(
    int device, uint32_t action, uint32_t index, uint32_t start, uint32_t count,
    const uint8_t *_Nonnull values, void *_Nullable scratch, uint32_t scratch_size) {
  struct ci_vfio_irq_set set = {0, CI_VFIO_IRQ_SET_DATA_BOOL | action, index, start, count};
  return ci_vfio_set_irqs_data(device, set, values, 1, scratch, scratch_size);
}

/// VFIO_DEVICE_SET_IRQS with an eventfd (or -1: none) for each of `count` interrupts. More than
/// CI_VFIO_IRQ_INLINE need `scratch` of `ci_vfio_irq_set_size` bytes, else -ENOBUFS.
CI_SHIM int32_t ci_vfio_device_set_irqs_eventfd(
    int device, uint32_t action, uint32_t index, uint32_t start, uint32_t count,
    const int32_t *_Nonnull eventfds, void *_Nullable scratch, uint32_t scratch_size) {
  struct ci_vfio_irq_set set = {0, CI_VFIO_IRQ_SET_DATA_EVENTFD | action, index, start, count};
  return ci_vfio_set_irqs_data(device, set, eventfds, 4, scratch, scratch_size);
}

/// VFIO_DEVICE_SET_IRQS as it is; `size` is the structure's length with the data that follow it.
CI_SHIM int32_t ci_vfio_device_set_irqs(int device, struct ci_vfio_irq_set *_Nonnull set, uint32_t size) {
  set->argsz = size;
  return ci_ioctl(device, CI_VFIO_DEVICE_SET_IRQS, set);
}

/// VFIO_DEVICE_RESET: a function level reset or what the device has instead.
CI_SHIM int32_t ci_vfio_device_reset(int device) { return ci_ioctl(device, CI_VFIO_DEVICE_RESET, NULL); }

/// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: the devices that a bus reset would reset too; -ENOSPC and `count`.
CI_SHIM int32_t ci_vfio_device_get_pci_hot_reset_info(
    int device, struct ci_vfio_pci_hot_reset_info *_Nonnull info, uint32_t capacity) {
  info->argsz = capacity;
  return ci_ioctl(device, CI_VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, info);
}

/// VFIO_DEVICE_PCI_HOT_RESET. Ownership is proved by the groups' descriptors, or, with iommufd, by none at
/// all. More than CI_VFIO_HOT_RESET_GROUPS give -E2BIG.
CI_SHIM int32_t ci_vfio_device_pci_hot_reset(int device, const int32_t *_Nullable groups, uint32_t count) {
  struct {
    struct ci_vfio_pci_hot_reset reset;
    int32_t groups[CI_VFIO_HOT_RESET_GROUPS];
  } argument = {{(uint32_t)(sizeof argument.reset + sizeof *groups * count), 0, count}, {0}};
  if (count > CI_VFIO_HOT_RESET_GROUPS) return -E2BIG;
  if (count != 0 && groups == NULL) return -EINVAL;
  if (count != 0) memcpy(argument.groups, groups, sizeof *groups * count);
  return ci_ioctl(device, CI_VFIO_DEVICE_PCI_HOT_RESET, &argument);
}

/// VFIO_DEVICE_IOEVENTFD: the kernel writes `data` at `offset` whenever the eventfd is signalled.
CI_SHIM int32_t ci_vfio_device_ioeventfd(int device, struct ci_vfio_device_ioeventfd *_Nonnull argument) {
  argument->argsz = sizeof *argument;
  return ci_ioctl(device, CI_VFIO_DEVICE_IOEVENTFD, argument);
}

/// VFIO_DEVICE_FEATURE with up to CI_VFIO_FEATURE_INLINE bytes, which are read and written back; more give
/// -E2BIG. `flags` is the feature's number with GET, SET or PROBE.
CI_SHIM int32_t ci_vfio_device_feature(int device, uint32_t flags, void *_Nullable data, uint32_t size) {
  struct {
    struct ci_vfio_device_feature header;
    uint64_t data[CI_VFIO_FEATURE_INLINE / 8];  // aligned as the structures of vfio_features.h are
  } argument = {{(uint32_t)sizeof argument.header + size, flags}, {0}};
  if (size > CI_VFIO_FEATURE_INLINE) return -E2BIG;
  if (size != 0 && data == NULL) return -EINVAL;
  if (size != 0) memcpy(argument.data, data, size);
  int32_t result = ci_ioctl(device, CI_VFIO_DEVICE_FEATURE, &argument);
  if (size != 0) memcpy(data, argument.data, size);
  return result;
}

/// VFIO_DEVICE_FEATURE as it is; `size` is the structure's length with the data that follow it.
CI_SHIM int32_t ci_vfio_device_feature_sized(
    int device, struct ci_vfio_device_feature *_Nonnull argument, uint32_t size) {
  argument->argsz = size;
  return ci_ioctl(device, CI_VFIO_DEVICE_FEATURE, argument);
}

/// VFIO_DEVICE_FEATURE_DMA_BUF: the descriptor of a dma-buf of one range of a BAR, for IOMMU_IOAS_MAP_FILE.
/// Closed on exec, as all descriptors are.
CI_SHIM int32_t ci_vfio_device_get_dma_buf(
    int device, uint32_t region, uint32_t open_flags, uint64_t offset, uint64_t length) {
  struct {
    struct ci_vfio_device_feature_dma_buf header;
    struct ci_vfio_region_dma_range range;
  } argument = {{region, open_flags | (uint32_t)O_CLOEXEC, 0, 1}, {offset, length}};
  return ci_vfio_device_feature(
      device, CI_VFIO_DEVICE_FEATURE_DMA_BUF | CI_VFIO_DEVICE_FEATURE_GET, &argument, sizeof argument);
}

/// VFIO_MIG_GET_PRECOPY_INFO on the descriptor of a migration.
CI_SHIM int32_t ci_vfio_mig_get_precopy_info(int migration, struct ci_vfio_precopy_info *_Nonnull info) {
  info->argsz = sizeof *info;
  return ci_ioctl(migration, CI_VFIO_MIG_GET_PRECOPY_INFO, info);
}
