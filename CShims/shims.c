#define _GNU_SOURCE
#include "CIOMMU.h"
