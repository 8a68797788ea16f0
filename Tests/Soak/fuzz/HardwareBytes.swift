import IOMMU

/// What hardware says of itself: the first byte is its kind, and the next the size of pages that is asked about. Of a VT-d, a second
/// one's 24 bytes may follow those of the first.
enum HardwareBytes {
  static func run(_ bytes: [UInt8]) {
    guard bytes.count >= 2 else { return }
    let type = UInt32(bytes[0] & 7)
    let info = HardwareInfo(type: type, data: Array(bytes[2...]), capabilities: UInt64(bytes[1]))
    if let identity = SMMUIdentity(info) {
      precondition(type == 2 && info.data.count >= 32, "an SMMU of another make")
      look(identity, page: 1 << UInt64(bytes[1] & 63))
    }
    precondition((VTdIdentity(info) != nil) == (type == 1 && info.data.count >= 24), "a VT-d of another make")
    guard let identity = VTdIdentity(info) else { return }
    look(identity, info.data)
    let second = HardwareInfo(type: type, data: Array(info.data.dropFirst(24)), capabilities: 0)
    join(identity, identity)
    if let second = VTdIdentity(second) { join(second, identity) }
  }

  private static func look(_ identity: SMMUIdentity, page: UInt64) {
    precondition(identity.registers.count == 6 && 0..<64 ~= identity.streamBits)
    if identity.refusal(page: page) == nil {
      guard let granule = identity.granule(page: page) else { fatalError("accepted without a granule") }
      precondition(granule.byteCount <= page && identity.granules.rawValue & granule.byteCount != 0)
    }
  }
}

// MARK: - VT-d

extension HardwareBytes {
  /// By the bytes and bits of D51397, chapter 11.4.2 and 11.4.3: CAP begins with byte 8, and ECAP with byte 16.
  private static func look(_ identity: VTdIdentity, _ data: [UInt8]) {
    func bit(_ register: Int, _ bit: Int) -> Bool { data[register + bit / 8] >> UInt8(bit % 8) & 1 == 1 }
    precondition(identity.largestOrder == data[14] & 0x3f && identity.hasGiBLeaves == bit(8, 56))
    // SMTS, NEST, SSTS, FSTS, SMPWC; and RWBF.
    let isGood = [43, 26, 46, 47, 48].allSatisfy { bit(16, $0) } && !bit(8, 4)
    precondition((identity.refusal == nil) == isGood, identity.refusal ?? "accepted")
    precondition(identity.refusal?.contains("CAP.") ?? true, "a reason without its register")
    plan(identity)
  }

  /// No command has more pages than a descriptor, and all of them have what they are for.
  private static func plan(_ identity: VTdIdentity) {
    for (start, byteCount) in [(0, 1 << 47), (0x1000, 0x3000), (1 << 30, 513 << 12)] as [(UInt64, UInt64)] {
      var plan = VTdPlan(largestOrder: identity.largestOrder)
      plan.make(forAnythingIn: start, byteCount, budget: VTdPlan.capacity)
      var covered = start
      for index in 0..<plan.count {
        let command = plan[index]
        precondition(command.isValid && command.flags == 0)
        if command == .everything {
          covered = .max
          continue
        }
        precondition(command.pageCount <= 1 << UInt64(identity.largestOrder), "more pages than a descriptor has")
        if command.address <= covered { covered = max(covered, command.address + command.pageCount << 12) }
      }
      precondition(covered >= start + byteCount, "a part is left out")
    }
  }

  /// Whoever joins can all that the first one may be told, and would be taken by itself.
  private static func join(_ identity: VTdIdentity, _ first: VTdIdentity) {
    let reason = identity.refusal(joining: first)
    let isAble = identity.largestOrder >= first.largestOrder && (identity.hasGiBLeaves || !first.hasGiBLeaves)
    precondition((reason == nil) == (identity.refusal == nil && isAble), reason ?? "joined")
    if let refusal = identity.refusal { precondition(reason == refusal, "another reason than by itself") }
  }
}
