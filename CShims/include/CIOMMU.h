// The C shim of swift-iommu: system calls, ioctls and MMIO, one line of policy each.
#pragma once
#include "system.h"
