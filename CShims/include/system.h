// System calls that are not about a device: files, memory, waiting, the process itself, sockets.
#pragma once
#include "system/file.h"
#include "system/memory.h"
#include "system/process.h"
#include "system/socket.h"
#include "system/trace.h"
#include "system/wait.h"
