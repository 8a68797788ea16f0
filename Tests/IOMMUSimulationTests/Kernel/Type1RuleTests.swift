import IOMMU
import IOMMUSimulation
import Testing

/// The errno contract of the type1 container, a row a rule.
@Suite struct Type1RuleTests {
  typealias Row = Rule<ContainerRig>

  static let mapRules: [Row] = [
    Row("MAP", nil, "§8.3") { try $0.map(at: 0x1000) },
    Row("MAP at IOVA 0", nil, "§8.3") { try $0.map(at: 0) },
    Row("MAP over an entry", .exists, "§8.3") {
      try $0.map(at: 0x4000, byteCount: 0x3000)
      try $0.map(at: 0x6000)
    },
    Row("MAP in a reserved range", .invalidArgument, "§8.3") { try $0.map(at: 0xfee0_0000) },
    Row("MAP across a reserved range's end", .invalidArgument, "§8.3") {
      try $0.map(at: 0xfeef_f000, byteCount: 0x2000)
    },
    Row("MAP above the aperture", .invalidArgument, "§8.3") { try $0.map(at: 1 << 48) },
    Row("MAP of the last page of the aperture", nil, "§10.1") { try $0.map(at: (1 << 48) - 4096) },
    Row("MAP of half a page", .invalidArgument, "§8.3") { try $0.map(at: 0x1000, byteCount: 2048) },
    Row("MAP at half a page", .invalidArgument, "§8.3") { try $0.map(at: 0x1800) },
    Row("MAP of memory at half a page", .invalidArgument, "§8.3") { try $0.map(at: 0x1000, offset: 2048) },
    Row("MAP of nothing", .invalidArgument, "type1.c") { try $0.map(at: 0x1000, byteCount: 0) },
    Row("MAP neither readable nor writable", .invalidArgument, "§8.3") { try $0.map(at: 0x1000, flags: 0) },
    Row("MAP with an unknown flag", .invalidArgument, "type1.c") { try $0.map(at: 0x1000, flags: 11) },
    Row("MAP past the end of 64 bits", .overflow, "§10.1") { try $0.map(at: ~0xfff, byteCount: 0x2000) },
    Row("MAP of memory that is not there", .badAddress, "type1.c") {
      try $0.kernel.vfioMap($0.container, flags: 3, address: 0x1000, iova: 0x1000, byteCount: 4096)
    },
    Row("MAP with a new address for no entry", .noEntry, "type1.c") { try $0.map(at: 0x1000, flags: 4) },
    Row("MAP with a new address for a live entry", .invalidArgument, "type1.c") {
      try $0.map(at: 0x1000)
      try $0.map(at: 0x1000, flags: 4)
    },
    Row("MAP on a device's descriptor", .notTypewriter, "ioctl(2)") {
      try $0.kernel.vfioMap($0.device, flags: 3, address: $0.memory.address, iova: 0x1000, byteCount: 4096)
    },
  ]

  static let unmapRules: [Row] = [
    Row("UNMAP of nothing mapped", nil, "§8.3") { try expect(0, $0.unmap(0x1000, 4096)) },
    Row("UNMAP of several entries", nil, "§8.3") {
      try $0.map(at: 0x4000)
      try $0.map(at: 0x8000, byteCount: 0x2000)
      try expect(0x3000, $0.unmap(0, 0x10000))
    },
    Row("UNMAP of an entry's head", .invalidArgument, "§8.3") {
      try $0.map(at: 0x4000, byteCount: 0x4000)
      try $0.unmap(0x4000, 0x2000)
    },
    Row("UNMAP of an entry's tail", .invalidArgument, "§8.3") {
      try $0.map(at: 0x4000, byteCount: 0x4000)
      try $0.unmap(0x6000, 0x2000)
    },
    Row("UNMAP of an entry's middle", .invalidArgument, "§8.3") {
      try $0.map(at: 0x4000, byteCount: 0x4000)
      try $0.unmap(0x5000, 0x1000)
    },
    Row("UNMAP unaligned", .invalidArgument, "type1.c") { try $0.unmap(0x1800, 4096) },
    Row("UNMAP of half a page", .invalidArgument, "type1.c") { try $0.unmap(0x1000, 2048) },
    Row("UNMAP of no bytes", .invalidArgument, "type1.c") { try $0.unmap(0x1000, 0) },
    Row("UNMAP past the end", .overflow, "§10.1") { try $0.unmap(~0xfff, 0x2000) },
    Row("UNMAP all with a length", .invalidArgument, "type1.c") { try $0.unmap(0, 4096, flags: 2) },
    Row("UNMAP all", nil, "§8.3") {
      try $0.map(at: 0x4000)
      try $0.map(at: 0x8000)
      try expect(0x2000, $0.unmap(0, 0, flags: 2))
      try expect(0, $0.unmap(0, 0, flags: 2))
    },
    Row("UNMAP with a dirty bitmap", .invalidArgument, "type1.c") { try $0.unmap(0x1000, 4096, flags: 1) },
  ]

  static let containerRules: [Row] = [
    Row("SET_IOMMU twice", .invalidArgument, "container.c") {
      try $0.kernel.vfioSetIOMMU($0.container, type: 3)
    },
    Row("SET_CONTAINER twice", .invalidArgument, "group.c") {
      try $0.kernel.vfioSetContainer(group: $0.group, container: $0.container)
    },
    Row("UNSET_CONTAINER with an open device", .busy, "§8.3") {
      try $0.kernel.vfioUnsetContainer(group: $0.group)
    },
    Row("GET_DEVICE_FD of no device", .noDevice, "group.c") {
      _ = try $0.kernel.vfioGroupDevice($0.group, name: "0000:04:00.0")
    },
    Row("GET_DEVICE_FD with an unknown option", .invalidArgument, "vfio_pci_core.c") {
      _ = try $0.kernel.vfioGroupDevice($0.group, name: "\(IOMMUFDRig.address) token=1")
    },
    Row("GET_DEVICE_FD with a token that is none", .invalidArgument, "vfio_pci_core.c") {
      _ = try $0.kernel.vfioGroupDevice($0.group, name: "\(IOMMUFDRig.address) vf_token=1234")
    },
    Row("GET_DEVICE_FD with a token that is not wanted", .invalidArgument, "vfio_pci_core.c") {
      let token = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
      _ = try $0.kernel.vfioGroupDevice($0.group, name: "\(IOMMUFDRig.address) vf_token=\(token)")
    },
    Row("ATTACH on a device of a group", .notTypewriter, "vfio_main.c") {
      _ = try $0.kernel.vfioAttach($0.device, pageTable: 1)
    },
    Row("BIND on a device of a group", .invalidArgument, "device_cdev.c") { rig in
      let iommufd = try rig.kernel.open("/dev/iommu")
      defer { rig.kernel.close(iommufd) }
      _ = try rig.kernel.vfioBind(rig.device, iommufd: iommufd, token: nil)
    },
    Row("group node opened twice", .busy, "§8.3") { _ = try $0.kernel.open("/dev/vfio/0") },
    Row("BIND while the group is open", .busy, "§8.3") { rig in
      let (iommufd, node) = try (rig.kernel.open("/dev/iommu"), rig.kernel.open("/dev/vfio/devices/vfio0"))
      defer { for descriptor in [iommufd, node] { rig.kernel.close(descriptor) } }
      _ = try rig.kernel.vfioBind(node, iommufd: iommufd, token: nil)
    },
  ]

  static func expect(_ byteCount: UInt64, _ unmapped: UInt64) throws { #expect(byteCount == unmapped) }

  @Test(arguments: mapRules + unmapRules + containerRules)
  func rule(_ row: Row) throws {
    let rig = try ContainerRig()
    row.check(rig)
    rig.close()
  }
}
