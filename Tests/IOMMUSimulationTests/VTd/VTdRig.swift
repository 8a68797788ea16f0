import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// A device whose first stage this process owns, set up by raw kernel calls as a program on Linux does it: registered memory, nest
/// parent, nested page table.
///
/// Its memory is 4 MiB at ``ipa`` of stage 2: tables at the start, and pages for data in the upper half.
struct VTdRig: Sendable {
  let machine: SimulatedHost
  let kernel: any Kernel
  let iommufd: Int32, device: Int32
  let deviceID: UInt32, ioas: UInt32, parent: UInt32
  let registers: Registers
  let memory: Memory

  static let address = "0000:03:00.0"
  static let ipa: UInt64 = 0x200_0000, byteCount: UInt64 = 4 << 20
  /// Where pages of data begin in the memory.
  static let data = 2 << 20

  init(_ description: SimulatedMachine = .vtdNested, model: any DeviceModel = EduModel(addressBits: 64)) throws(Errno) {
    try self.init(on: SimulatedHost(description, devices: [Self.address: model]))
  }

  /// The same for a device of a machine, by the number of its node, with objects of its own.
  init(on host: SimulatedHost, node: Int = 0) throws(Errno) {
    machine = host
    kernel = machine.kernel
    iommufd = try kernel.open("/dev/iommu")
    device = try kernel.open("/dev/vfio/devices/vfio\(node)")
    deviceID = try kernel.vfioBind(device, iommufd: iommufd, token: nil)
    ioas = try kernel.ioasAllocate(iommufd)
    parent = try kernel.hwptAllocate(iommufd, flags: HWPTFlags.nestParent, device: deviceID, pageTable: ioas)
    registers = Registers(kernel: kernel, device: device)
    try registers.enable()
    memory = try Memory(kernel, byteCount: Int(Self.byteCount))
    try map(Self.ipa, byteCount: Self.byteCount)
  }

  /// Enters the rig's memory, or part of it, into stage 2.
  func map(_ ipa: UInt64, offset: UInt64 = 0, byteCount: UInt64 = 4096, flags: UInt32 = 7) throws(Errno) {
    _ = try kernel.ioasMap(
      iommufd, ioas: ioas, flags: flags, address: memory.address + offset, byteCount: byteCount, iova: ipa)
  }

  func unmap(_ ipa: UInt64, byteCount: UInt64 = 4096) throws(Errno) {
    _ = try kernel.ioasUnmap(iommufd, ioas: ioas, iova: ipa, byteCount: byteCount)
  }

  /// A nested page table of `struct iommu_hwpt_vtd_s1`.
  func nest(_ bytes: [UInt8], type: UInt32 = 1, flags: UInt32 = 0, over parent: UInt32? = nil) throws(Errno) -> UInt32 {
    try kernel.hwptAllocate(
      iommufd, flags: flags, device: deviceID, pageTable: parent ?? self.parent,
      data: HWPTData(type: type, bytes: bytes))
  }

  /// The structure.
  static func stage1(
    flags: UInt64 = 0, table: UInt64 = ipa, addressBits: UInt64 = 48
  ) -> [UInt8] {
    flags.littleEndianBytes + table.littleEndianBytes + addressBits.littleEndianBytes
  }

  /// One over the table at the start of the memory.
  func nest() throws(Errno) -> UInt32 { try nest(Self.stage1()) }

  func attach(_ table: UInt32) throws(Errno) { _ = try kernel.vfioAttach(device, pageTable: table) }

  /// Sends entries of `struct iommu_hwpt_vtd_s1_invalidate`: address, pages, flags; how many were handled.
  @discardableResult
  func invalidate(
    _ table: UInt32, _ entries: [(UInt64, UInt64, UInt64)], type: UInt32 = 0, byteCount: Int = 24
  ) throws(Errno) -> Int {
    let bytes = entries.flatMap {
      ($0.0.littleEndianBytes + $0.1.littleEndianBytes + $0.2.littleEndianBytes
        + [UInt8](repeating: 0, count: max(byteCount - 24, 0))).prefix(byteCount)
    }
    let result: Result<Int, Errno> = unsafe bytes.withUnsafeBytes { bytes in
      do throws(Errno) {
        return .success(
          try unsafe kernel.hwptInvalidate(iommufd, pageTable: table, type: type, entries: bytes, byteCount: byteCount))
      } catch { return .failure(error) }
    }
    return try result.get()
  }

  /// Has the device write 8 zeros, or read; whether that went through.
  func access(_ address: UInt64, byteCount: UInt64 = 8, writes: Bool = true) throws(Errno) -> Bool {
    let before = machine.faults.count
    try registers.write(0x80, writes ? 0x40000 : address, width: 8)
    try registers.write(0x88, writes ? address : 0x40000, width: 8)
    try registers.write(0x90, byteCount, width: 8)
    try registers.write(0x98, writes ? 3 : 1, width: 8)
    return machine.faults.count == before
  }

  /// Which page of data a write to an address reaches; nil when it faults.
  func page(at address: UInt64) throws -> Int? {
    for page in 0..<512 { memory[Self.data + page * 4096] = 7 }
    guard try access(address & ~0xfff) else { return nil }
    return (0..<512).first { memory[Self.data + $0 * 4096] == 0 } ?? -1
  }

  /// The IPA of a page of data.
  static func page(_ number: Int) -> UInt64 { ipa + UInt64(data + number * 4096) }

  var counters: VTdCounters { machine.vtdCounters() }
  func log() throws -> [String] { try kernel.kernelLog(from: 0).map(\.text) }
  /// The reason in the line about the last fault.
  func reason() throws -> String? {
    try log().last.flatMap { line in line.range(of: "[fault reason ").map { String(line[$0.upperBound...].prefix(4)) } }
  }

  /// Closes everything; nothing may be left.
  func close(_ location: SourceLocation = #_sourceLocation) {
    kernel.close(device)
    kernel.close(iommufd)
    memory.close()
    #expect(machine.kernel.census == Census(), sourceLocation: location)
  }
}

extension String {
  /// Where a text begins and ends in this one.
  fileprivate func range(of text: String) -> Range<String.Index>? {
    indices.first { self[$0...].hasPrefix(text) }.map { $0..<index($0, offsetBy: text.count) }
  }
}

/// A writer of first-stage tables for tests: x86-64 paging in a rig's memory, from the manual's bit layout. Levels are counted
/// from 1, the table of pages.
final class FirstStage {
  let rig: VTdRig
  let levels: Int
  /// Offset of the first table.
  let root: Int
  private var next: Int

  /// P, R/W, U/S, A, D.
  static let readWrite = word(1, 1 << 1, 1 << 2, 1 << 5, 1 << 6), table = word(1, 1 << 1, 1 << 2, 1 << 5)

  init(_ rig: VTdRig, levels: Int = 4, root: Int = 0) {
    (self.rig, self.levels, self.root, next) = (rig, levels, root, root + 0x1000)
  }

  static func shift(_ level: Int) -> UInt64 { 12 + 9 * UInt64(level - 1) }

  /// The offset of the entry for an address at a level; tables above it are made.
  func entry(_ address: UInt64, level: Int = 1) -> Int {
    var (table, current) = (root, levels)
    while true {
      let offset = table + Int(address >> Self.shift(current) & 511) * 8
      if current == level { return offset }
      if rig.memory[offset] & 1 == 0 {
        rig.memory[offset] = (VTdRig.ipa + UInt64(next)) | Self.table
        next += 0x1000
      }
      table = Int((rig.memory[offset] & 0xf_ffff_ffff_f000) - VTdRig.ipa)
      current -= 1
    }
  }

  func map(_ address: UInt64, to ipa: UInt64, level: Int = 1, _ attributes: UInt64 = readWrite) {
    rig.memory[entry(address, level: level)] = ipa | attributes | (level == 1 ? 0 : 1 << 7)
  }

  func map(_ address: UInt64, page: Int, _ attributes: UInt64 = readWrite) {
    map(address, to: VTdRig.page(page), level: 1, attributes)
  }

  /// Clears an entry, and invalidates nothing.
  func clear(_ address: UInt64, level: Int = 1) { rig.memory[entry(address, level: level)] = 0 }
}
