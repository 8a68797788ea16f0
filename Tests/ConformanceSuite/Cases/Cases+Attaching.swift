import IOMMU

/// Attaching a device to page tables.
extension Cases {
  static let attaching: [ConformanceCase] = [
    ConformanceCase(.conformance, "iommufd/attach-detach") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      try raw.kernel.vfioDetach(raw.device)
      try expect(try raw.kernel.vfioAttach(raw.device, pageTable: raw.ioas) != 0, "attached to table 0")
      try raw.kernel.vfioDetach(raw.device)
      // Detached already: the kernel takes it for done.
      try raw.kernel.vfioDetach(raw.device)
    },
    ConformanceCase(.conformance, "iommufd/attach-invalid") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      try expectErrno(.noEntry, what: "attaching to an id that is not there") { () throws(Errno) in
        try raw.kernel.vfioAttach(raw.device, pageTable: .max)
      }
      try expectErrno(.invalidArgument, what: "attaching to a device's id") { () throws(Errno) in
        try raw.kernel.vfioAttach(raw.device, pageTable: raw.deviceID)
      }
    },
    ConformanceCase(.conformance, "iommufd/table-of-its-own") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      let (kernel, iommufd) = (raw.kernel, raw.space)
      let ioas = try kernel.ioasAllocate(iommufd)
      let table = try kernel.hwptAllocate(iommufd, flags: 0, device: raw.deviceID, pageTable: ioas)
      try expectEqual(try kernel.vfioAttach(raw.device, pageTable: table), table, "the table attached to")
      for (id, what) in [(table, "a table in use"), (ioas, "an IOAS in use")] {
        try expectErrno(.busy, what: "destroying \(what)") { () throws(Errno) in
          try kernel.iommufdDestroy(iommufd, id: id)
        }
      }
      try kernel.vfioDetach(raw.device)
      try kernel.iommufdDestroy(iommufd, id: table)
      try kernel.iommufdDestroy(iommufd, id: ioas)
      try expectErrno(.noEntry, what: "destroying it again") { () throws(Errno) in
        try kernel.iommufdDestroy(iommufd, id: ioas)
      }
    },
    ConformanceCase(.conformance, "iommufd/hardware-info") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      let info = try raw.kernel.hardwareInfo(raw.space, device: raw.deviceID)
      let wanted: UInt32 = environment.isVirtio ? 0 : environment.isSMMU ? 2 : 1
      try expectEqual(info.type, wanted, "the IOMMU's type")
    },
    ConformanceCase(.conformance, "type1/container") { environment in
      let kernel = environment.kernel
      let container = try kernel.open("/dev/vfio/vfio")
      defer { kernel.close(container) }
      try expectEqual(try kernel.vfioAPIVersion(container), 0, "the API's version")
      for id: UInt32 in [1, 3, 9] {  // type1, type1 version 2, unmap all
        try expect(try kernel.vfioCheckExtension(container, id) != 0, "No extension \(id)")
      }
      try expectErrno(.invalidArgument, what: "SET_IOMMU without a group") { () throws(Errno) in
        try kernel.vfioSetIOMMU(container, type: 3)
      }
    },
    ConformanceCase(.conformance, "type1/group") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      try expectEqual(try raw.kernel.vfioGroupStatus(raw.group), 1, "status of a viable group")
      try raw.bind()
      try expectEqual(try raw.kernel.vfioGroupStatus(raw.group), 3, "status of a group in a container")
      try expectErrno(.busy, what: "UNSET_CONTAINER with a device open") { () throws(Errno) in
        try raw.kernel.vfioUnsetContainer(group: raw.group)
      }
      let path = try raw.groupNode
      try expectErrno(.busy, what: "opening the group twice") { () throws(Errno) in try raw.kernel.open(path)
      }
      try expectErrno(.noDevice, what: "a device that is not in the group") { () throws(Errno) in
        try raw.kernel.vfioGroupDevice(raw.group, name: "ffff:00:00.0")
      }
    },
    ConformanceCase(.conformance, "type1/info") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let info = try raw.kernel.vfioContainerInfo(raw.space)
      try expect(info.pageSizes & 0x1000 != 0, "No pages of 4 KiB: \(info.pageSizes.hexadecimal)")
      try expectEqual(info.availableEntries, 65_535, "map entries")
      let memory = try HostMemory(raw.kernel, byteCount: 4096)
      try raw.map(memory.address, iova: 0x10_0000, byteCount: 4096)
      try expectEqual(
        try raw.kernel.vfioContainerInfo(raw.space).availableEntries, 65_534, "map entries after one map")
    },
  ]
}
