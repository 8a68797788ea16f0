// What VFIO_DEVICE_FEATURE reads and writes: one number and one structure a feature.
#pragma once
#include "base.h"

#define CI_VFIO_DEVICE_FEATURE_MASK 0xffffu
#define CI_VFIO_DEVICE_FEATURE_GET (1u << 16)
#define CI_VFIO_DEVICE_FEATURE_SET (1u << 17)
#define CI_VFIO_DEVICE_FEATURE_PROBE (1u << 18)

/// Followed by the feature's data.
struct ci_vfio_device_feature {
  uint32_t argsz, flags;
};

#define CI_VFIO_DEVICE_FEATURE_PCI_VF_TOKEN 0u  // SET of a physical function: 16 bytes
#define CI_VFIO_DEVICE_FEATURE_MIGRATION 1u
#define CI_VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE 2u
#define CI_VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY 3u
#define CI_VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP 4u
#define CI_VFIO_DEVICE_FEATURE_LOW_POWER_EXIT 5u
#define CI_VFIO_DEVICE_FEATURE_DMA_LOGGING_START 6u
#define CI_VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP 7u
#define CI_VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT 8u
#define CI_VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9u
#define CI_VFIO_DEVICE_FEATURE_BUS_MASTER 10u
#define CI_VFIO_DEVICE_FEATURE_DMA_BUF 11u
#define CI_VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 12u

#define CI_VFIO_MIGRATION_STOP_COPY (1ull << 0)
#define CI_VFIO_MIGRATION_P2P (1ull << 1)
#define CI_VFIO_MIGRATION_PRE_COPY (1ull << 2)

struct ci_vfio_device_feature_migration {
  uint64_t flags;
};

#define CI_VFIO_DEVICE_STATE_ERROR 0u
#define CI_VFIO_DEVICE_STATE_STOP 1u
#define CI_VFIO_DEVICE_STATE_RUNNING 2u
#define CI_VFIO_DEVICE_STATE_STOP_COPY 3u
#define CI_VFIO_DEVICE_STATE_RESUMING 4u
#define CI_VFIO_DEVICE_STATE_RUNNING_P2P 5u
#define CI_VFIO_DEVICE_STATE_PRE_COPY 6u
#define CI_VFIO_DEVICE_STATE_PRE_COPY_P2P 7u

struct ci_vfio_device_feature_mig_state {
  uint32_t device_state;
  int32_t data_fd;
};

struct ci_vfio_device_low_power_entry_with_wakeup {
  int32_t wakeup_eventfd;
  uint32_t reserved;
};

struct ci_vfio_device_feature_dma_logging_range {
  uint64_t iova, length;
};

/// `ranges` is the address of `num_ranges` ranges.
struct ci_vfio_device_feature_dma_logging_control {
  uint64_t page_size;
  uint32_t num_ranges, __reserved;
  uint64_t ranges;
};

struct ci_vfio_device_feature_dma_logging_report {
  uint64_t iova, length, page_size, bitmap;
};

struct ci_vfio_device_feature_mig_data_size {
  uint64_t stop_copy_length;
};

#define CI_VFIO_DEVICE_FEATURE_CLEAR_MASTER 0u
#define CI_VFIO_DEVICE_FEATURE_SET_MASTER 1u

struct ci_vfio_device_feature_bus_master {
  uint32_t op;
};

struct ci_vfio_region_dma_range {
  uint64_t offset, length;
};

/// Followed by `nr_ranges` ranges. GET returns the descriptor of a dma-buf.
struct ci_vfio_device_feature_dma_buf {
  uint32_t region_index, open_flags, flags, nr_ranges;
};

#define CI_VFIO_PRECOPY_INFO_REINIT (1u << 0)

/// For VFIO_MIG_GET_PRECOPY_INFO on the descriptor of a migration.
struct ci_vfio_precopy_info {
  uint32_t argsz, flags;
  uint64_t initial_bytes, dirty_bytes;
};
