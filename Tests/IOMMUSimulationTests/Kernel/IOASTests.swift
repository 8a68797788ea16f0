import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// What an IOAS holds, where it places maps, and what leaves with what.
@Suite struct IOASTests {
  @Test func idsAreTheLowestFree() throws {
    let rig = try IOMMUFDRig()
    #expect((rig.deviceID, rig.ioas, rig.hwpt) == (1, 2, 3))
    let second = try rig.kernel.ioasAllocate(rig.iommufd)
    let third = try rig.kernel.ioasAllocate(rig.iommufd)
    try rig.kernel.iommufdDestroy(rig.iommufd, id: second)
    #expect(try rig.kernel.ioasAllocate(rig.iommufd) == second)
    #expect(third == second + 1)
    rig.close()
  }

  @Test func rangesBeforeAndAfterAttach() throws {
    let rig = try IOMMUFDRig()
    let empty = try rig.kernel.ioasAllocate(rig.iommufd)
    let before = try rig.kernel.ioasRanges(rig.iommufd, ioas: empty)
    #expect(before == IOASRanges(ranges: [.full], alignment: 1))
    let after = try rig.kernel.ioasRanges(rig.iommufd, ioas: rig.ioas)
    #expect(after.alignment == 4096)
    #expect(after.ranges.map(\.description) == ["0x0–0xfedfffff", "0xfef00000–0xffffffffffff"])
    rig.close()
  }

  @Test func rangesOfSMMU() throws {
    var machine = SimulatedMachine.smmuv3
    machine.addressBits = 44
    let rig = try IOMMUFDRig(machine)
    let ranges = try rig.kernel.ioasRanges(rig.iommufd, ioas: rig.ioas).ranges
    #expect(ranges.map(\.description) == ["0x0–0x7ffffff", "0x8100000–0xfffffffffff"])
    rig.close()
  }

  @Test func placesAreLowestFirst() throws {
    let rig = try IOMMUFDRig()
    // One page: the lowest that is not page 0. The alignment of larger maps is that of the memory.
    #expect(try rig.map(at: 0, flags: 6) == 0x1000)
    #expect(try rig.map(at: 0, flags: 6) == 0x2000)
    let aligned = try rig.map(at: 0, byteCount: 0x4000, flags: 6)
    let memoryAlignment = min(rig.memory.address & ~(rig.memory.address - 1), 0x4000)
    #expect(aligned % memoryAlignment == 0 && aligned >= 0x3000)
    // A hole is found again.
    try rig.unmap(0x1000, 4096)
    #expect(try rig.map(at: 0, flags: 6) == 0x1000)
    rig.close()
  }

  @Test func allowedRangesHoldPlaces() throws {
    let rig = try IOMMUFDRig()
    let allowed = IOVARange(start: IOVA(0x10_0000), last: IOVA(0x10_1fff))!
    try rig.kernel.ioasAllow(rig.iommufd, ioas: rig.ioas, ranges: [allowed])
    #expect(try rig.map(at: 0, flags: 6) == 0x10_0000)
    #expect(try rig.map(at: 0, flags: 6) == 0x10_1000)
    #expect(throws: Errno.noSpace) { try rig.map(at: 0, flags: 6) }
    // A place that the caller names is not bound by them.
    try rig.map(at: 0x20_0000)
    // A list is replaced, an empty one allows all.
    try rig.kernel.ioasAllow(rig.iommufd, ioas: rig.ioas, ranges: [])
    #expect(try rig.map(at: 0, flags: 6) == 0x1000)
    rig.close()
  }

  @Test func attachRefusesWhatItWouldCutOff() throws {
    var small = SimulatedMachine.vtd
    small.addressBits = 39
    let rig = try IOMMUFDRig(small)
    let other = try rig.kernel.ioasAllocate(rig.iommufd)
    _ = try rig.kernel.ioasMap(
      rig.iommufd, ioas: other, flags: 7, address: rig.memory.address, byteCount: 4096, iova: 1 << 40)
    #expect(throws: Errno.addressInUse) {
      try rig.kernel.hwptAllocate(rig.iommufd, flags: 0, device: rig.deviceID, pageTable: other)
    }
    let doorbell = try rig.kernel.ioasAllocate(rig.iommufd)
    _ = try rig.kernel.ioasMap(
      rig.iommufd, ioas: doorbell, flags: 7, address: rig.memory.address, byteCount: 4096, iova: 0xfee0_0000)
    #expect(throws: Errno.addressInUse) { try rig.kernel.vfioAttach(rig.device, pageTable: doorbell) }
    rig.close()
  }

  @Test func bisectionKeepsWhatWentBefore() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    try rig.map(at: 0x4000, byteCount: 0x4000)
    #expect(throws: Errno.noEntry) { try rig.unmap(0x1000, 0x4000) }
    // The first area went, the second is whole.
    #expect(throws: Errno.noEntry) { try rig.unmap(0x1000, 0x1000) }
    #expect(try rig.unmap(0x4000, 0x4000) == 0x4000)
    rig.close()
  }

  @Test func unmapAllReportsBytes() throws {
    let rig = try IOMMUFDRig()
    for page in 0..<16 as Range<UInt64> { try rig.map(at: 0x10_0000 + page * 0x2000, offset: page * 4096) }
    #expect(try rig.unmap(0, .max) == 16 * 4096)
    #expect(try rig.unmap(0, .max) == 0)
    rig.close()
  }

  @Test func destroyedIOASTakesItsMaps() throws {
    let rig = try IOMMUFDRig()
    let second = try rig.kernel.ioasAllocate(rig.iommufd)
    _ = try rig.kernel.ioasMap(
      rig.iommufd, ioas: second, flags: 7, address: rig.memory.address, byteCount: 4096, iova: 0x1000)
    #expect(rig.machine.kernel.census.areas == 1)
    // Without a page table nothing is pinned yet.
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    let table = try rig.kernel.hwptAllocate(rig.iommufd, flags: 0, device: rig.deviceID, pageTable: second)
    #expect(rig.machine.kernel.census.pinnedBytes == 4096)
    try rig.kernel.iommufdDestroy(rig.iommufd, id: table)
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    try rig.kernel.iommufdDestroy(rig.iommufd, id: second)
    #expect(rig.machine.kernel.census.areas == 0)
    rig.close()
  }

  @Test func twoPageTablesShareOnePin() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    let second = try rig.kernel.hwptAllocate(
      rig.iommufd, flags: 0, device: rig.deviceID, pageTable: rig.ioas)
    #expect(rig.machine.kernel.census.pinnedBytes == 4096)
    #expect(try rig.kernel.vfioAttach(rig.device, pageTable: second) == second)
    #expect(try rig.edu(0x1000, 8, toMemory: true))
    #expect(try rig.unmap(0x1000, 4096) == 4096)
    #expect(try !rig.edu(0x1000, 8, toMemory: true))
    rig.close()
  }
}
