import AddressSpace

/// What the nodes of a domain's store stand for, beyond their kind.
///
/// Guards are told apart by ``AddressSpace/RangeStore/Node/auxiliary``.
extension RangeStore.Node {
  /// A gap behind a mapping, in debug mode.
  static var gapMark: UInt32 { 1 }
  /// Addresses that nobody gets for a while, in debug mode.
  static var heldMark: UInt32 { 2 }
  /// Addresses between the parts of a list, or between the links of a reservation: somebody's, with nothing mapped.
  static var takenMark: UInt32 { 3 }

  /// Whether memory is mapped here, and `tag` is its host address.
  var isMapping: Bool { (kind == .allocation || kind == .fixed) && tag != 0 }
  /// Whether the addresses are a list's or a reservation's, with nothing mapped.
  var isTaken: Bool { kind == .guard && auxiliary == Self.takenMark }
  /// Whether it is the gap behind a mapping.
  var isGap: Bool { kind == .guard && auxiliary == Self.gapMark }

  /// The same addresses for a list or a reservation.
  static func taken(_ range: IOVARange) -> RangeStore.Node {
    RangeStore.Node(range: range, kind: .guard, auxiliary: takenMark)
  }
}
