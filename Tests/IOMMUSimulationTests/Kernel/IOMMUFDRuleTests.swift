import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The errno contract of iommufd, a row a rule.
@Suite struct IOMMUFDRuleTests {
  typealias Row = Rule<IOMMUFDRig>

  static let mapRules: [Row] = [
    Row("MAP fixed", nil, "§8.2") { try $0.map(at: 0x10000) },
    Row("MAP with an unknown flag", .notSupported, "§8.2") { try $0.map(at: 0x10000, flags: 0x17) },
    Row("MAP neither readable nor writable", .invalidArgument, "§8.2") { try $0.map(at: 0x10000, flags: 1) },
    Row("MAP at the last address of 64 bits", .overflow, "§8.2") { try $0.map(at: .max) },
    Row("MAP of 2^64-1 bytes", .overflow, "§8.2") { try $0.map(at: 0x1000, byteCount: .max) },
    Row("MAP past the end of 64 bits", .overflow, "§10.1") { try $0.map(at: ~0xfff, byteCount: 0x2000) },
    Row("MAP in no IOAS", .noEntry, "§8.1") {
      _ = try $0.kernel.ioasMap(
        $0.iommufd, ioas: 99, flags: 7, address: $0.memory.address, byteCount: 4096, iova: 0x1000)
    },
    Row("MAP in a page table's id", .noEntry, "§8.1") {
      _ = try $0.kernel.ioasMap(
        $0.iommufd, ioas: $0.hwpt, flags: 7, address: $0.memory.address, byteCount: 4096, iova: 0x1000)
    },
    Row("MAP of nothing", .invalidArgument, "§8.2") { try $0.map(at: 0x1000, byteCount: 0) },
    Row("MAP of nothing, unaligned flags first", .notSupported, "§8.2") {
      try $0.map(at: 0x1000, byteCount: 0, flags: 8)
    },
    Row("MAP of half a page", .invalidArgument, "§8.2") { try $0.map(at: 0x1000, byteCount: 2048) },
    Row("MAP at half a page", .invalidArgument, "§8.2") { try $0.map(at: 0x1800) },
    Row("MAP of memory at half a page", .invalidArgument, "§8.2") { try $0.map(at: 0x1000, offset: 2048) },
    Row("MAP in a reserved range", .invalidArgument, "§8.2") { try $0.map(at: 0xfee0_0000) },
    Row("MAP across a reserved range's start", .invalidArgument, "§8.2") {
      try $0.map(at: 0xfedf_f000, byteCount: 0x2000)
    },
    Row("MAP above the aperture", .invalidArgument, "§8.2") { try $0.map(at: 1 << 48) },
    Row("MAP of the last page of the aperture", nil, "§10.1") { try $0.map(at: (1 << 48) - 4096) },
    Row("MAP at IOVA 0, fixed", nil, "§8.2") { try $0.map(at: 0) },
    Row("MAP over an area", .exists, "§8.2") {
      try $0.map(at: 0x4000, byteCount: 0x3000)
      try $0.map(at: 0x5000)
    },
    Row("MAP of memory that is not there", .badAddress, "pages.c") {
      _ = try $0.kernel.ioasMap(
        $0.iommufd, ioas: $0.ioas, flags: 7, address: 0x1000, byteCount: 4096, iova: 0x1000)
    },
    Row("MAP on a device's descriptor", .notTypewriter, "§8.1") {
      _ = try $0.kernel.ioasMap(
        $0.device, ioas: $0.ioas, flags: 7, address: $0.memory.address, byteCount: 4096, iova: 0x1000)
    },
    Row("MAP on no descriptor", .badDescriptor, "ioctl(2)") {
      _ = try $0.kernel.ioasMap(
        -1, ioas: $0.ioas, flags: 7, address: $0.memory.address, byteCount: 4096, iova: 0x1000)
    },
  ]

  static let unmapRules: [Row] = [
    Row("UNMAP of nothing mapped", .noEntry, "§8.2") { try $0.unmap(0x1000, 4096) },
    Row("UNMAP all of nothing", nil, "§8.2") { try expect(0, $0.unmap(0, .max)) },
    Row("UNMAP in no IOAS", .noEntry, "§8.1") {
      _ = try $0.kernel.ioasUnmap($0.iommufd, ioas: 99, iova: 0, byteCount: .max)
    },
    Row("UNMAP of no bytes", .invalidArgument, "io_pagetable.c") { try $0.unmap(0x1000, 0) },
    Row("UNMAP at the last address", .overflow, "ioas.c") { try $0.unmap(.max, 1) },
    Row("UNMAP past the end", .overflow, "§10.1") { try $0.unmap(~0xfff, 0x2000) },
    Row("UNMAP of half an area", .noEntry, "§8.2") {
      try $0.map(at: 0x4000, byteCount: 0x4000)
      try $0.unmap(0x4000, 0x2000)
    },
    Row("UNMAP of an area's tail", .noEntry, "§8.2") {
      try $0.map(at: 0x4000, byteCount: 0x4000)
      try $0.unmap(0x6000, 0x2000)
    },
    Row("UNMAP of a superset", nil, "§8.2") {
      try $0.map(at: 0x4000)
      try $0.map(at: 0x8000, byteCount: 0x2000)
      try expect(0x3000, $0.unmap(0x1000, 0x10000))
    },
    Row("UNMAP of an unaligned superset", nil, "io_pagetable.c") {
      try $0.map(at: 0x4000)
      try expect(0x1000, $0.unmap(0x3fff, 0x1002))
    },
  ]

  static let objectRules: [Row] = [
    Row("DESTROY of no object", .noEntry, "§8.2") { try $0.kernel.iommufdDestroy($0.iommufd, id: 99) },
    Row("DESTROY of an IOAS with a page table", .busy, "§8.2") {
      try $0.kernel.iommufdDestroy($0.iommufd, id: $0.ioas)
    },
    Row("DESTROY of an attached page table", .busy, "§8.2") {
      try $0.kernel.iommufdDestroy($0.iommufd, id: $0.hwpt)
    },
    Row("DESTROY of a bound device", .busy, "§8.2") {
      try $0.kernel.iommufdDestroy($0.iommufd, id: $0.deviceID)
    },
    Row("HWPT_ALLOC for no device", .noEntry, "§8.2") {
      _ = try $0.kernel.hwptAllocate($0.iommufd, flags: 0, device: 99, pageTable: $0.ioas)
    },
    Row("HWPT_ALLOC in no IOAS", .invalidArgument, "§8.2") {
      _ = try $0.kernel.hwptAllocate($0.iommufd, flags: 0, device: $0.deviceID, pageTable: 99)
    },
    Row("HWPT_ALLOC in a device", .invalidArgument, "§8.2") {
      _ = try $0.kernel.hwptAllocate($0.iommufd, flags: 0, device: $0.deviceID, pageTable: $0.deviceID)
    },
    Row("HWPT_ALLOC with an IOAS and a nested format", .notSupported, "§8.2") {
      _ = try $0.kernel.hwptAllocate(
        $0.iommufd, flags: 0, device: $0.deviceID, pageTable: $0.ioas, data: HWPTData(type: 1, bytes: []))
    },
    Row("HWPT_ALLOC with dirty tracking", .notSupported, "§11.4") {
      _ = try $0.kernel.hwptAllocate($0.iommufd, flags: 2, device: $0.deviceID, pageTable: $0.ioas)
    },
    Row("HWPT_ALLOC with an unknown flag", .notSupported, "§8.2") {
      _ = try $0.kernel.hwptAllocate($0.iommufd, flags: 16, device: $0.deviceID, pageTable: $0.ioas)
    },
    Row("GET_HW_INFO of no device", .noEntry, "§8.2") {
      _ = try $0.kernel.hardwareInfo($0.iommufd, device: 99)
    },
    Row("IOVA_RANGES of no IOAS", .noEntry, "§8.1") { _ = try $0.kernel.ioasRanges($0.iommufd, ioas: 99) },
    Row("ALLOW_IOVAS that touch a reserved range", .addressInUse, "§8.2") {
      try $0.kernel.ioasAllow($0.iommufd, ioas: $0.ioas, ranges: [range(0xfee0_0000, 0xfee0_0fff)])
    },
    Row("ALLOW_IOVAS that overlap", .invalidArgument, "§8.2") {
      try $0.kernel.ioasAllow(
        $0.iommufd, ioas: $0.ioas, ranges: [range(0, 0xffff), range(0x8000, 0x1ffff)])
    },
    Row("ALLOW_IOVAS of one address", .invalidArgument, "§8.2") {
      try $0.kernel.ioasAllow($0.iommufd, ioas: $0.ioas, ranges: [range(0x1000, 0x1000)])
    },
  ]

  static func expect(_ byteCount: UInt64, _ unmapped: UInt64) throws {
    #expect(byteCount == unmapped)
  }

  static func range(_ start: UInt64, _ last: UInt64) -> IOVARange {
    IOVARange(start: IOVA(start), last: IOVA(last))!
  }

  @Test(arguments: mapRules + unmapRules + objectRules)
  func rule(_ row: Row) throws {
    let rig = try IOMMUFDRig()
    row.check(rig)
    rig.close()
  }
}
