// The C shim of swift-iommu: system calls, ioctls and device registers, one line of policy each.
// Every function returns its value (≥ 0) or -errno; names are the kernel's with ci_ or CI_ before them.
#pragma once
#include "iommufd.h"
#include "mmio.h"
#include "pci.h"
#include "percpu.h"
#include "rseq.h"
#include "system.h"
#include "vfio.h"
