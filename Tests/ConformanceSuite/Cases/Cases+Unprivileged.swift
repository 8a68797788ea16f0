import AddressSpace
import IOMMU

/// An ordinary user in the group that the rules name, without capabilities and with 8 MiB of lockable memory.
extension Cases {
  static let unprivileged: [ConformanceCase] = [
    ConformanceCase(.unprivileged, "user/drives-device") { environment in
      try expect(environment.kernel.effectiveUser() != 0, "This is root")
      let driver = try EduDriver(environment.devices.edu, environment)
      try owned(driver, 1514)
    },
    ConformanceCase(.unprivileged, "user/memlock-limit") { environment in
      let limit: UInt64 = 8 << 20
      try expectEqual(environment.kernel.memoryLockLimit(), limit, "the limit of this process")
      let device = try environment.open(environment.devices.edu)
      let memory = try HostMemory(environment.kernel, byteCount: 12 << 20)
      memory.fill(1)
      let half = unsafe UnsafeRawBufferPointer(start: memory.base, count: 4 << 20)
      let first = try unsafe device.dma.map(unsafe: half, .toDevice)
      let error = try expectCode(.memoryLock, what: "12 MiB more") { () throws(DMAError) in
        _ = try unsafe device.dma.map(unsafe: memory.buffer, .toDevice)
      }
      try expectEqual(error.errno, .noMemory, "the kernel's answer")
      try expectText(
        error, has: "limit is \(limit) bytes", "Needed \(12 << 20) bytes", "RLIMIT_MEMLOCK",
        environment.interface == .iommufd ? "all processes of the user" : "by process")
      try first.unmap()
      try expectEqual(device.dma.statistics.liveMappings, 0, "live mappings")
    },
    ConformanceCase(.unprivileged, "user/other-group-refused") { environment in
      // secondEdu's nodes stay root's.
      let error = try expectCode(.permission, what: "opening another group's device") { () throws(DMAError) in
        _ = try environment.open(environment.devices.secondEdu)
      }
      try expectEqual(error.errno, .accessDenied, "the kernel's answer")
      try expectText(error, has: "/dev/vfio/", "mode", "user 1000")
    },
  ]
}
