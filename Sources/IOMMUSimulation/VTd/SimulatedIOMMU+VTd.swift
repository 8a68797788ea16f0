import IOMMU

// Domains whose tables a VT-d walks, and what the kernel's driver sends it for them: `drivers/iommu/intel/{cache,pasid,nested}.c`.

extension SimulatedIOMMU {
  /// Stage 1 of the process's, and the domain that is its stage 2.
  struct VTdNesting {
    let parent: DomainID
    let stage1: VTdStage1
  }

  /// A domain that the kernel fills, with the tables that a VT-d's driver would make: for a nest parent the second stage, else the
  /// first where there is one.
  mutating func makeKernelDomain(unit: Int = 0, isNestParent: Bool = false) throws(Errno) -> DomainID {
    let id = try makeDomain(unit: unit)
    guard let registers = vtds.first?.registers, let tables = driverTables else { return id }
    let isFirst = registers.prefersFirstStage && !isNestParent
    domains[id]!.table1 = isFirst ? tables.makeFirstStage(registers) : nil
    domains[id]!.table2 = isFirst ? nil : tables.makeSecondStage(registers)
    return id
  }

  /// A domain whose stage 1 is what the process says. It has a tag of its own.
  mutating func makeDomain(over parent: DomainID, _ stage1: VTdStage1) throws(Errno) -> DomainID {
    let id = try makeDomain()
    domains[id]!.vtd = VTdNesting(parent: parent, stage1: stage1)
    domains[parent]!.children.insert(id)
    return id
  }

  /// The highest address that a domain's tables translate.
  func apertureLast(of id: DomainID) -> UInt64 {
    guard let registers = vtds.first?.registers else { return apertureLast }
    return domains[id]?.table1 == nil ? registers.secondStageLast : registers.firstStageLast
  }

  /// What the hardware finds of a domain in memory.
  private func entry(of id: DomainID) -> PASIDEntry {
    let domain = domains[id]!, tag = id.tag
    if let nesting = domain.vtd {
      var entry = PASIDEntry(.nested, domain: tag)
      let second = domains[nesting.parent]!.table2!
      (entry.secondStageTable, entry.secondStageLevels) = (second.root, second.levels)
      (entry.firstStageTable, entry.firstStageLevels) = (nesting.stage1.table, nesting.stage1.addressBits == 57 ? 5 : 4)
      return entry
    }
    if let first = domain.table1 {
      var entry = PASIDEntry(.firstStage, domain: tag)
      (entry.firstStageTable, entry.firstStageLevels) = (first.root, first.levels)
      return entry
    }
    var entry = PASIDEntry(.secondStage, domain: tag)
    (entry.secondStageTable, entry.secondStageLevels) = (domain.table2!.root, domain.table2!.levels)
    return entry
  }
}

// MARK: - What the kernel sends

extension SimulatedIOMMU {
  /// Writes a device's PASID table entry. One that was there is dropped from the cache with everything of its tag, each by a
  /// call that waits: `intel_pasid_tear_down_entry`, and `intel_pasid_flush_present` for one that is replaced.
  mutating func configureVTd(_ device: PCIAddress, from old: DomainID?, to new: DomainID?) {
    let source = UInt32(device.requesterID), unit = unit(of: device)
    let entry = new.map { self.entry(of: $0) }
    vtds[unit].pasidTable[source] = entry
    guard let old, let before = domains[old] else { return }
    let tag = old.tag
    let isScalable = vtds[unit].registers.hasScalableMode
    send([isScalable ? .entry(tag) : .context(tag, source: source)], to: unit)
    send([before.table1 == nil ? .domain(tag) : .pasid(tag)], to: unit)
    count {
      $0.configurationInvalidations += 1
      $0.invalidations += 1
    }
  }

  /// The tags under which what a domain maps may be cached, by unit: its own, or those of what is nested over it.
  private func tags(of id: DomainID) -> [Int: Set<UInt16>] {
    var tags: [Int: Set<UInt16>] = [:]
    for domain in [id] + domains[id]!.children {
      for device in domains[domain]?.members ?? [] {
        tags[unit(of: device), default: []].insert(domain.tag)
      }
    }
    return tags
  }

  /// What changed in a domain's tables goes from the caches: one descriptor a tag, one wait a unit.
  private mutating func flush(_ id: DomainID, _ span: Span64, leafOnly: Bool) {
    let isFirst = domains[id]!.table1 != nil, block = VTdBlock(covering: span.start, span.last)
    for (unit, tags) in tags(of: id).sorted(by: { $0.key < $1.key }) {
      let registers = vtds[unit].registers
      let batch: [VTdDescriptor] = tags.sorted().map { tag in
        if isFirst { return block.isEverything ? .pasid(tag) : .pasidPages(tag, block, leafOnly: leafOnly) }
        let isSelective = registers.hasPageSelectiveInvalidation && block.order <= UInt64(registers.maximumAddressMask)
        return isSelective ? .pages(tag, block, leafOnly: leafOnly) : .domain(tag)
      }
      send(batch, to: unit)
      count { $0.invalidations += batch.count }
    }
  }

  /// Enters an area into a domain's tables. Caching mode has what was not there flushed, a page at a time, but for first stages.
  mutating func enterVTd(
    _ id: DomainID, _ span: Span64, to host: UInt, _ permissions: Permissions, pageByteCount: UInt64
  ) {
    guard let table = domains[id]!.table1 ?? domains[id]!.table2 else { return }
    table.map(span, to: host, permissions) { flush(id, $0, leafOnly: false) }
    guard vtds[0].registers.isCachingMode, domains[id]!.table1 == nil, isAttached(id) else { return }
    let before = counters.invalidations
    for start in stride(from: span.start, through: span.last, by: Int(clamping: pageByteCount)) {
      flush(id, Span64(start: start, last: start + (pageByteCount - 1)), leafOnly: true)
    }
    count {
      $0.flushesOnMap += $0.invalidations - before
      $0.invalidations = before
    }
  }

  /// Clears an area in a domain's tables: one invalidation of all of it while anything may have it cached, for leaves alone
  /// unless tables go.
  mutating func leaveVTd(_ id: DomainID, _ span: Span64) {
    guard let table = domains[id]!.table1 ?? domains[id]!.table2 else { return }
    table.unmap(span) { flush(id, span, leafOnly: !$0) }
  }

  /// A command of the process for its stage 1: on each unit a descriptor and a wait.
  mutating func invalidateVTd(_ id: DomainID, _ block: VTdBlock, leafOnly: Bool) {
    let tag = id.tag, units = Set((domains[id]?.members ?? []).map { unit(of: $0) })
    for unit in units.sorted() {
      let waits = vtds[unit].issue(
        [block.isEverything ? .pasid(tag) : .pasidPages(tag, block, leafOnly: leafOnly)], from: .process)
      count {
        $0.processInvalidations += 1
        $0.processSyncs += waits
      }
    }
  }

  private mutating func send(_ descriptors: [VTdDescriptor], to unit: Int) {
    vtds[unit].issue(descriptors, from: .kernel)
  }
}

extension SimulatedKernel {
  /// Puts descriptors as they are into a VT-d's queue, with a wait, as its driver in the kernel may.
  package func issueVTd(_ descriptors: [(UInt64, UInt64)], unit: Int = 0) {
    let descriptors = descriptors.map { VTdDescriptor($0.0, $0.1) }
    locked { state in
      state.iommu!.vtds[unit].issue(descriptors, from: .kernel)
      state.deliverEvents()
    }
  }
}
