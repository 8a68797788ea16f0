import AddressSpace

extension Fault.Story {
  /// One or two sentences: what the device reached for, what is or was there, and why it was refused; then who made that mapping,
  /// and who ended it, where debug mode knows.
  ///
  /// Such as `a write to 0xfffff040: byte 64 of the buffer of 4096 bytes at 0xfffff000, .toDevice, which lets a device read only`.
  public var description: String {
    let told = mapping ?? neighbour
    return ["\(access.attempt) \(address): \(finding)", told?.history].compactMap(\.self).joined(separator: ". ")
  }

  private var finding: String {
    switch place {
    case .live: "\(mapping.map(part) ?? "a mapping")\(refusal)"
    case .ended: "\(mapping.map(part) ?? "a mapping")\(ending)\(nearby ?? "")"
    case .gap: "in a gap that is kept free, \(beside ?? "beside a mapping that has ended")"
    case .beside: "nothing is mapped there, \(beside ?? "beside a mapping")"
    case .nowhere: "nothing is mapped there, nor is it remembered that anything was" + (beside.map { "; \($0)" } ?? "")
    case .unusable:
      address.rawValue < 4096
        ? "page 0 is never mapped: an address that was not set, or is an offset"
        : "the domain maps nothing there: it is reserved, or the IOMMU does not translate it"
    }
  }

  /// `byte 64 of the buffer of …`.
  private func part(_ mapping: Fault.MappingDetails) -> String {
    let offset = offset ?? 0
    let isInside = offset >= 0 && UInt64(offset) < mapping.range.byteCount
    return "\(isInside ? "byte \(offset)" : "a page") of \(mapping.text)"
  }

  /// `24 bytes past the end of the buffer of …`.
  private var beside: String? {
    guard let neighbour, let distance else { return nil }
    switch distance {
    case 0: return "right behind the end of \(neighbour.text)"
    case 1...: return "\(distance.bytes) past the end of \(neighbour.text)"
    default: return "\((-distance).bytes) before the start of \(neighbour.text)"
    }
  }

  /// The neighbour of a mapping that has ended, where the address is less than a page past its end: that may be meant as well.
  private var nearby: String? {
    guard let distance, 0..<4096 ~= distance else { return nil }
    return beside.map { "; also \($0)" }
  }

  /// Why what is mapped was refused.
  private var refusal: String {
    guard let mapping else { return "" }
    if isNested, stage == 2 { return ", whose memory stage 2 has no more: its registration has ended" }
    let deed = access == .write ? "write" : access == .read ? "read" : "do that"
    switch mapping.forbids(access) {
    case true: return ", which lets a device \(access == .write ? "read" : "write") only"
    case false:
      return kind == .permission
        ? ", and its table entry did not let the device \(deed)"
        : ", which allows that: it was made after the fault, or the IOMMU used an older entry"
    case nil:
      return kind == .permission
        ? ", which does not let the device \(deed)"
        : ", which does not let the device \(deed), or was made after the fault"
    }
  }

  private var ending: String {
    guard let mapping else { return "" }
    let ago = mapping.endedAgo.map { " \($0.milliseconds) before the fault was read" } ?? ""
    let never =
      switch mapping.forbids(access) {
      case true: "; nor did it ever let the device \(access.rawValue)"
      // What it allowed is remembered in debug mode only, but nothing else refuses so.
      case nil where kind == .permission: "; or it was not, and did not let the device \(access.rawValue)"
      default: ""
      }
    switch mapping.end {
    case .queued: return ", which was unmapped\(ago) and waits for a flush\(never)"
    case .flushed: return ", which was unmapped\(ago) and is flushed\(never)"
    case .closed: return ", which ended when the domain was closed\(never)"
    default: return ", which was unmapped\(ago)\(never)"
    }
  }
}

extension Fault.MappingDetails {
  /// `the buffer of 4096 bytes at 0x1000, .toDevice`.
  fileprivate var text: String {
    "the \(what) of \(range.byteCount) bytes at \(range.start)\(direction.map { ", .\($0)" } ?? "")"
  }

  /// Who made it, and who ended it; nil where nobody has noted that.
  fileprivate var history: String? {
    guard let thread else { return nil }
    var text = "It was mapped by thread \(thread)"
    if let mappedAgo { text += " \(mappedAgo.milliseconds) before the fault was read" }
    if !mappedAt.isEmpty { text += " at \(mappedAt)" }
    if !unmappedAt.isEmpty { text += "; unmapped at \(unmappedAt)" }
    return text
  }
}

extension Fault.Access {
  /// `a write to`.
  fileprivate var attempt: String { self == .write ? "a write to" : self == .read ? "a read of" : "an access to" }
}

extension Int64 {
  fileprivate var bytes: String { self == 1 ? "1 byte" : "\(self) bytes" }
}

extension Duration {
  /// Tenths of a millisecond up to 100, else whole ones: `0.4 ms`.
  fileprivate var milliseconds: String {
    let tenths = components.seconds.multipliedReportingOverflow(by: 10_000)
    if tenths.overflow { return "long" }
    let all = tenths.partialValue + components.attoseconds / 100_000_000_000_000
    return all < 1000 ? "\(all / 10).\(all % 10) ms" : "\(all / 10) ms"
  }
}
