import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Devices behind several SMMUs in one domain.
extension ProcessOwnedSMMUTests {
  /// Devices behind two SMMUs see one domain, and an unmap tells both.
  @Test func twoSMMUs() throws {
    let machine = Self.host({ _ in }) { $0[1].iommuUnit = 1 }
    do {
      let first = try Device(Self.first, on: machine.host, translation: .process)
      let second = try Device(Self.second, on: machine.host, sharing: first.dma)
      let mapping = try first.dma.map(try Self.buffer(first), .bidirectional), address = mapping.address
      #expect(try Self.writes(first, address, machine) && Self.writes(second, address, machine))
      let before = [0, 1].map { machine.smmuCounters(unit: $0).process[.invalidateAddress] }
      _ = try mapping.unmap()
      #expect([0, 1].map { machine.smmuCounters(unit: $0).process[.invalidateAddress] } == before.map { $0 + 1 })
      #expect(try !Self.writes(first, address, machine) && !Self.writes(second, address, machine))
      second.close()
      let other = try first.dma.map(try Self.buffer(first), .bidirectional)
      _ = try other.unmap()
      #expect(
        machine.smmuCounters(unit: 1).process[.invalidateAddress] == before[1] + 1,
        "no command for an SMMU without a device")
      first.close()
    }
    #expect(machine.isClean)
  }

  /// A second SMMU has to read the tables that are there, and to know the commands that are sent: else the device is told by name
  /// what is missing, and nothing of it is left.
  @Test(arguments: [
    ("IDR3.RIL", 21, ~4, 0), ("IDR0.TTF", 8, ~8, 0), ("IDR0.TTENDIAN", 10, ~0, 0x60),
    ("IDR0.STALL_MODEL", 11, ~3, 2), ("IDR1.SIDSIZE", 12, ~0x3f, 0), ("IDR5", 28, ~0x10, 0),
  ])
  func aSecondSMMUThatCannot(_ field: String, _ byte: Int, _ kept: Int, _ set: Int) throws {
    let machine = Self.host({ _ in }) { $0[1].iommuUnit = 1 }, kernel = FaultingKernel(machine.kernel)
    do {
      let host = Host(kernel: kernel), first = try Device(Self.first, on: host, translation: .process)
      let before = machine.kernel.census
      kernel.changeHardware { $0.data[byte] = UInt8(Int($0.data[byte]) & kept | set) }
      do throws(DMAError) {
        _ = try Device(Self.second, on: host, sharing: first.dma)
        Issue.record("joined without \(field)")
      } catch {
        #expect(error.code == .notSupported && error.device == Self.second)
        #expect(error.detail?.contains(field + ":") == true, "\(error)")
      }
      #expect(machine.kernel.census == before)
      let mapping = try first.dma.map(try Self.buffer(first), .bidirectional), address = mapping.address
      #expect(try Self.writes(first, address, machine))
      _ = try mapping.unmap()
      #expect(try !Self.writes(first, address, machine))
      first.close()
    }
    #expect(machine.isClean)
  }

  /// One that can more than the first gets what the first is sent: a command a page.
  @Test func aSecondSMMUThatCanMore() throws {
    let machine = Self.host({ _ in }) { $0[1].iommuUnit = 1 }, kernel = FaultingKernel(machine.kernel)
    do {
      let host = Host(kernel: kernel)
      kernel.hideRangeInvalidation()
      let first = try Device(Self.first, on: host, translation: .process)
      kernel.changeHardware { _ in }
      let second = try Device(Self.second, on: host, sharing: first.dma)
      let mapping = try first.dma.map(try Self.buffer(first, 5), .bidirectional), last = mapping.address + 0x4000
      #expect(try Self.writes(first, last, machine) && Self.writes(second, last, machine))
      let before = machine.smmuCounters(unit: 1).process[.invalidateAddress]
      _ = try mapping.unmap()
      #expect(machine.smmuCounters(unit: 1).process[.invalidateAddress] == before + 5)
      #expect(try !Self.writes(first, last, machine) && !Self.writes(second, last, machine))
      second.close()
      first.close()
    }
    #expect(machine.isClean)
  }
}
