package import IOMMU

// Domains whose stage 1 an SMMU walks, and what the kernel's driver sends it for them.

extension SimulatedIOMMU {
  /// Stage 1 in the hardware's format, and the domain that is its stage 2.
  struct HardwareNesting {
    let parent: DomainID
    let entry: StreamTableEntry
  }

  /// A domain whose stage 1 is what a stream table entry leads to.
  mutating func makeDomain(over parent: DomainID, _ entry: StreamTableEntry, unit: Int) throws(Errno) -> DomainID {
    let id = try makeDomain(unit: unit, sharing: parent.tag)
    var entry = entry
    (entry.vmid, entry.stage2) = (id.tag, parent)
    domains[id]!.hardware = HardwareNesting(parent: parent, entry: entry)
    domains[parent]!.children.insert(id)
    return id
  }

  /// Whether a device's requests go through a stage 1 in the hardware's format.
  func isNested(_ device: PCIAddress) -> Bool { domain(of: device).flatMap { domains[$0]?.hardware } != nil }

  func unit(of id: DomainID) -> Int { domains[id]?.unit ?? 0 }

  /// Which device has a stream id, among those of an SMMU that are in a domain.
  func device(_ stream: UInt32, unit: Int) -> PCIAddress? {
    for domain in domains.values where domain.unit == unit && domain.hardware != nil {
      if let device = domain.members.first(where: { UInt32($0.requesterID) == stream }) { return device }
    }
    return nil
  }
}

extension SimulatedIOMMU {
  /// Has a device behind an SMMU read one address after another, without the bytes; how many accesses went through.
  mutating func touch(_ device: PCIAddress, _ addresses: [UInt64]) -> Int {
    guard let id = domain(of: device), let domain = domains[id], domain.hardware != nil else { return 0 }
    return smmus[domain.unit].touch(UInt32(device.requesterID), addresses, over: domains)
  }
}

// MARK: - What the kernel sends

extension SimulatedIOMMU {
  /// Writes a device's stream table entry, in two steps with a sync after each, as `arm_smmu_write_entry` does between
  /// blocking and nesting.
  mutating func configure(_ device: PCIAddress, from old: DomainID?, to new: DomainID?) {
    let before = old.flatMap { domains[$0] }, after = new.flatMap { domains[$0] }
    guard before?.hardware != nil || after?.hardware != nil else {
      count { $0.configurationInvalidations += 1 }
      return
    }
    let stream = UInt32(device.requesterID), unit = (after ?? before)!.unit
    smmus[unit].streamTable[stream] = after?.hardware?.entry
    let command = SMMUCommand(UInt64(SMMUOpcode.invalidateSTE.rawValue) | UInt64(stream) << 32, 1)
    for _ in 0..<2 { send([command], to: unit) }
    count { $0.configurationInvalidations += 2 }
  }

  /// The tag of what is nested goes when nothing over its parent is attached; false where nothing is nested.
  mutating func flushHardwareTag(of id: DomainID) -> Bool {
    let domain = domains[id]!
    guard domain.hardware != nil || hasHardwareChildren(id) else { return false }
    let parent = domain.hardware?.parent ?? id
    guard !isAttached(parent) else { return true }
    let vmid = parent.tag
    send([SMMUCommand(UInt64(SMMUOpcode.invalidateVMID.rawValue) | UInt64(vmid) << 32)], to: domain.unit)
    count { $0.invalidations += 1 }
    return true
  }

  private func hasHardwareChildren(_ id: DomainID) -> Bool {
    domains[id]!.children.contains { domains[$0]?.hardware != nil }
  }

  /// What unmapping an area of stage 2 takes while something nested is attached: the area, and before it each table that it
  /// frees; and each time all of stage 1, which may have any of it cached. False where nothing is nested.
  mutating func invalidateHardware(over id: DomainID, _ area: Span64, _ freedTables: [Span64]) -> Bool {
    guard hasHardwareChildren(id) else { return false }
    let unit = domains[id]!.unit, vmid = id.tag, hasRanges = smmus[unit].registers.hasRangeInvalidation
    let everything = SMMUCommand(UInt64(SMMUOpcode.invalidateAll.rawValue) | UInt64(vmid) << 32)
    for (span, isLeafOnly) in freedTables.map({ ($0, false) }) + [(area, true)] {
      send(SMMUCommand.stage2(span, vmid: vmid, isLeafOnly: isLeafOnly, hasRanges: hasRanges), to: unit)
      send([everything], to: unit)
      count { $0.invalidations += 2 }
    }
    return true
  }

  private mutating func send(_ commands: [SMMUCommand], to unit: Int) {
    smmus[unit].issue(commands, from: .kernel)
  }

  /// Nanoseconds that SMMUs and VT-ds waited and walked since this was asked last.
  mutating func takeTime() -> UInt64 {
    var sum: UInt64 = 0
    for index in smmus.indices {
      sum += smmus[index].time
      smmus[index].time = 0
    }
    for index in vtds.indices {
      sum += vtds[index].time
      vtds[index].time = 0
    }
    return sum
  }
}

extension SimulatedKernel {
  /// Puts commands as they are into an SMMU's queue, with a sync, as its driver in the kernel may.
  package func issue(_ commands: [(UInt64, UInt64)], unit: Int = 0) {
    let commands = commands.map { SMMUCommand($0.0, $0.1) }
    locked { state in
      state.iommu!.smmus[unit].issue(commands, from: .kernel)
      state.deliverEvents()
    }
  }

  /// Translates addresses for a device one after the other, over and over, as its SMMU or VT-d does for requests to write, and moves no
  /// data: for measuring. Returns how many were translated; a fault ends it, without an event.
  package func translate(_ addresses: [UInt64], rounds: Int, for device: PCIAddress) -> Int {
    locked { state in
      guard let iommu = state.iommu, let domain = iommu.domain(of: device) else { return 0 }
      let unit = iommu.vtds.isEmpty ? iommu.unit(of: domain) : iommu.unit(of: device)
      return state.iommu!.translate(addresses, rounds: rounds, UInt32(device.requesterID), unit: unit)
    }
  }
}

extension SimulatedIOMMU {
  fileprivate mutating func translate(_ addresses: [UInt64], rounds: Int, _ stream: UInt32, unit: Int) -> Int {
    if vtds.indices.contains(unit) { return vtds[unit].translate(addresses, rounds: rounds, stream) }
    guard smmus.indices.contains(unit) else { return 0 }
    var count = 0
    do throws(SMMUFault) {
      for _ in 0..<rounds {
        for address in addresses {
          let place = try smmus[unit].translate(stream, address, .write, over: domains)
          count += place.byteCount > 0 ? 1 : 0
        }
      }
    } catch { return count }
    return count
  }
}

extension SimulatedIOMMU.Domain {
  /// The domain that is stage 2 of this one.
  var parent: SimulatedIOMMU.DomainID? { nesting?.parent ?? hardware?.parent ?? vtd?.parent }
}

extension SimulatedMachine {
  /// How many IOMMUs there are.
  var unitCount: Int { max(devices.map(\.iommuUnit).max() ?? 0, 0) + 1 }
}
