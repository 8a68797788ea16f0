import IOMMU

/// DMA through tables that this process writes, without the library: what the library's own translation is measured by.
/// 17 transfers.
extension Cases {
  static let nestedTranslation: [ConformanceCase] = [
    ConformanceCase(.dma, "nesting/raw-translation") { environment in
      let smmu = try NestedSMMU(environment)
      try smmu.attach()
      let edu = try RawEdu(smmu.raw), bytes = pattern(41, 64)
      smmu.memory.store(bytes, at: smmu.place(0))
      smmu.map(0, to: 0)
      try edu.load(smmu.iova(0), byteCount: 64)
      try edu.store(smmu.iova(0, 0x800), byteCount: 64)
      try expect(smmu.memory.holds(bytes[...], at: smmu.place(0, 0x800)), "Other bytes than the device had read")
      // The entry leads elsewhere, and the SMMU does not know yet.
      smmu.map(0, to: 1)
      try expectReaches(smmu, edu, page: 0, bytes, 0, not: 1, "before the invalidation")
      try expectEqual(
        try smmu.send(SMMUWords.invalidate(page: smmu.iova(0), asid: NestedSMMU.asid)), 1, "commands")
      try expectReaches(smmu, edu, page: 0, bytes, 1, not: 0, "after the invalidation")
      try expectEqual(try smmu.takeEvents(expected: false), [], "events of what went well")
      try smmu.takeDown()
    },
    ConformanceCase(.dma, "nesting/raw-faults") { environment in
      let smmu = try NestedSMMU(environment)
      try smmu.attach()
      let edu = try RawEdu(smmu.raw)
      smmu.map(1, to: 1, isWritable: false)
      // QEMU's SMMU reports every four bytes of a transfer.
      try edu.store(smmu.iova(0, 8), byteCount: 4)
      try expectEvent(smmu, .translation, isRead: false, smmu.iova(0, 8))
      try edu.load(smmu.iova(0, 0xffc), byteCount: 4)
      try expectEvent(smmu, .translation, isRead: true, smmu.iova(0, 0xffc))
      try edu.load(smmu.iova(1), byteCount: 4)
      try expectEqual(try smmu.takeEvents(expected: false), [], "events of a load that may be")
      try edu.store(smmu.iova(1), byteCount: 4)
      try expectEvent(smmu, .permission, isRead: false, smmu.iova(1))
      // Far from every table: nothing at level 1.
      try edu.store(0xc000_0010, byteCount: 4)
      try expectEvent(smmu, .translation, isRead: false, 0xc000_0010)
      try smmu.takeDown()
    },
    ConformanceCase(.dma, "nesting/raw-invalidation") { environment in
      let smmu = try NestedSMMU(environment)
      try smmu.attach()
      let edu = try RawEdu(smmu.raw), bytes = pattern(42, 64)
      smmu.memory.store(bytes, at: smmu.place(0))
      for page in [0, 15] { smmu.map(page, to: 0) }
      for page in [0, 15] { try edu.load(smmu.iova(page), byteCount: 64) }
      // 16 pages by one command: both ends of the range.
      for page in [0, 15] { smmu.map(page, to: 1) }
      try smmu.send(SMMUWords.invalidate(pages: smmu.iova(0), number: 0, scale: 4, asid: NestedSMMU.asid))
      for page in [0, 15] { try expectReaches(smmu, edu, page: page, bytes, 1, not: 0, "after the range") }
      // Another ASID's invalidation is none of ours; that of our own is.
      smmu.map(15, to: 2)
      try smmu.send(SMMUWords.invalidate(asid: NestedSMMU.asid + 1))
      try expectReaches(smmu, edu, page: 15, bytes, 1, not: 2, "after another ASID's")
      try smmu.send(SMMUWords.invalidate(asid: NestedSMMU.asid))
      try expectReaches(smmu, edu, page: 15, bytes, 2, not: 1, "after the ASID's")
      // Other tables: the descriptor is cached too, beside what it led to.
      smmu.map(15, to: 3, in: NestedSMMU.Place.otherLevel3)
      smmu.point(to: NestedSMMU.Place.otherLevel1)
      try smmu.send(SMMUWords.invalidate(asid: NestedSMMU.asid))
      try expectReaches(smmu, edu, page: 15, bytes, 2, not: 3, "with the old descriptor")
      try smmu.send(
        SMMUWords.invalidate(contextOf: NestedSMMU.stream), SMMUWords.invalidate(asid: NestedSMMU.asid))
      try expectReaches(smmu, edu, page: 15, bytes, 3, not: 2, "with the new descriptor")
      try smmu.takeDown()
    },
    ConformanceCase(.dma, "nesting/raw-interrupt") { environment in
      let smmu = try NestedSMMU(environment)
      try smmu.attach()
      let edu = try RawEdu(smmu.raw), kernel = smmu.kernel, event = try kernel.createEvent()
      defer { kernel.close(event) }
      try kernel.vfioSetInterrupts(smmu.raw.device, index: VFIOPCI.msi, start: 0, events: [event])
      // A message is a write by the device, and stage 1 translates it.
      try edu.interrupt()
      let faults = try smmu.takeEvents()
      try expectEqual(faults.map { $0.address & ~0xfff }, [NestedSMMU.doorbells], "pages of faults")
      try expectEqual(try kernel.takeEvent(event), nil, "messages without a doorbell")
      smmu.mapDoorbell()
      try edu.acknowledge()
      try edu.interrupt()
      _ = try kernel.waitReadable([event], timeout: .seconds(2))
      try expectEqual(try kernel.takeEvent(event), 1, "messages")
      try expectEqual(try smmu.takeEvents(expected: false), [], "events of a message that arrived")
      try kernel.vfioInterruptAction(smmu.raw.device, index: VFIOPCI.msi, start: 0, count: 0, .trigger)
      try smmu.takeDown()
    },
  ]

  /// The device writes what it holds to a page: it must come to one page of the memory, and not to another.
  private static func expectReaches(
    _ smmu: NestedSMMU, _ edu: RawEdu, page: Int, _ bytes: [UInt8], _ target: Int, not other: Int, _ when: String
  ) throws {
    let nothing = [UInt8](repeating: 0, count: bytes.count)
    for place in [target, other] { smmu.memory.store(nothing, at: smmu.place(place, 256)) }
    try edu.store(smmu.iova(page, 256), byteCount: bytes.count)
    try expect(
      smmu.memory.holds(bytes[...], at: smmu.place(target, 256)), "Page \(page) does not lead to \(target) \(when)")
    try expect(smmu.memory.holds(nothing[...], at: smmu.place(other, 256)), "Page \(page) leads to \(other) \(when)")
  }

  private static func expectEvent(
    _ smmu: NestedSMMU, _ kind: SMMUEvent.Kind, isRead: Bool, _ address: UInt64
  ) throws {
    let wanted = [SMMUEvent(kind, stream: NestedSMMU.stream, isRead: isRead, address)]
    try expectEqual(try smmu.takeEvents(), wanted, "events")
  }
}
