/// What an entry means, by the architecture's manual.
enum EntryMeaning {
  /// Nothing is there.
  case absent
  /// It leads to a table at an address, and lets through so much of what is below.
  case table(address: UInt64, allows: Access)
  case leaf(address: UInt64, allows: Access, isDevice: Bool, isOwned: Bool)
  /// A reserved bit is set, or something that these tables must not say.
  case malformed(String)
}

/// What a device may do.
struct Access: OptionSet, Hashable {
  let rawValue: Int
  static let read = Access(rawValue: 1), write = Access(rawValue: 2), all: Access = [.read, .write]
}

/// A level's part of an address, and how the manual reads its entries.
struct ReaderLevel: Sendable {
  /// The bits of the address that choose the entry, highest and lowest.
  let high: Int, low: Int
  let meaning: @Sendable (UInt64) -> EntryMeaning
}

/// A leaf as the hardware would use it.
struct ReadLeaf: Hashable, CustomStringConvertible {
  var iova: UInt64, address: UInt64, byteCount: UInt64
  var allows: Access, isDevice: Bool, isOwned: Bool

  var description: String {
    "\(String(iova, radix: 16)) → \(String(address, radix: 16)) (\(byteCount)) \(allows.rawValue) \(isDevice) \(isOwned)"
  }
}

/// Reads table memory as an IOMMU does. Written from the manuals, and sharing nothing with what wrote the tables.
struct TableReader {
  /// From the root downwards.
  let levels: [ReaderLevel]
  let memory: TestMemory
  /// Where the hardware finds the memory.
  let address: UInt64

  struct Failure: Error, CustomStringConvertible { let description: String }

  /// What the whole tree holds: its leaves in rising order, and the addresses of its tables.
  struct Contents {
    var leaves: [ReadLeaf] = []
    var tables: [UInt64] = []
    fileprivate var seen: Set<UInt64> = []
  }

  private func word(_ table: UInt64, _ index: UInt64) throws -> UInt64 {
    let place = table &- address &+ index * 8
    guard place < memory.byteCount else {
      throw Failure(description: "a table at \(String(table, radix: 16)), outside the pool")
    }
    return unsafe UInt64(littleEndian: (memory.base + Int(place)).load(as: UInt64.self))
  }

  private func index(_ iova: UInt64, _ level: ReaderLevel) -> UInt64 {
    iova >> UInt64(level.low) & ((1 << UInt64(level.high - level.low + 1)) - 1)
  }

  /// The leaf at an address; `nil` where a device's access is a fault.
  func walk(_ iova: UInt64, root: UInt64) throws -> ReadLeaf? {
    var table = root
    var allows = Access.all
    for level in levels {
      switch level.meaning(try word(table, index(iova, level))) {
      case .absent: return nil
      case .malformed(let text): throw Failure(description: text)
      case .table(let next, let access):
        table = next
        allows.formIntersection(access)
      case .leaf(let address, let access, let isDevice, let isOwned):
        let size: UInt64 = 1 << UInt64(level.low)
        return ReadLeaf(
          iova: iova & ~(size - 1), address: address, byteCount: size, allows: allows.intersection(access),
          isDevice: isDevice, isOwned: isOwned)
      }
    }
    throw Failure(description: "a table below the last level")
  }

  /// All that can be reached from a root.
  func contents(root: UInt64) throws -> Contents {
    var contents = Contents()
    try visit(root, 0, 0, .all, &contents)
    return contents
  }

  private func visit(_ table: UInt64, _ depth: Int, _ start: UInt64, _ allows: Access, _ contents: inout Contents)
    throws
  {
    guard depth < levels.count else { throw Failure(description: "a table below the last level") }
    // At once: one that leads to itself has no end.
    guard contents.seen.insert(table).inserted else { throw Failure(description: "a table that is linked twice") }
    contents.tables.append(table)
    let level = levels[depth]
    let size: UInt64 = 1 << UInt64(level.low)
    for index in 0..<(1 as UInt64) << UInt64(level.high - level.low + 1) {
      let entry = try word(table, index)
      if entry == 0 { continue }
      let iova = start + index * size
      switch level.meaning(entry) {
      case .absent: throw Failure(description: "a word that is neither 0 nor an entry: \(String(entry, radix: 16))")
      case .malformed(let text):
        throw Failure(description: "\(text): \(String(entry, radix: 16)) at \(String(iova, radix: 16)), level \(depth)")
      case .table(let next, let access): try visit(next, depth + 1, iova, allows.intersection(access), &contents)
      case .leaf(let address, let access, let isDevice, let isOwned):
        contents.leaves.append(
          ReadLeaf(
            iova: iova, address: address, byteCount: size, allows: allows.intersection(access), isDevice: isDevice,
            isOwned: isOwned))
      }
    }
  }
}

extension UInt64 {
  /// The bits from `high` down to `low`, as a number.
  func bits(_ high: Int, _ low: Int) -> UInt64 { (self << UInt64(63 - high)) >> UInt64(63 - high + low) }

  func bit(_ place: Int) -> Bool { self >> UInt64(place) & 1 != 0 }
}
