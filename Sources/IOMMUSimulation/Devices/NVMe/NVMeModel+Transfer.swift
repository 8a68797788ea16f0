extension NVMeModel {
  private enum IO {
    static let flush: UInt8 = 0x00, write: UInt8 = 0x01, read: UInt8 = 0x02, writeZeroes: UInt8 = 0x08
  }

  /// An I/O command.
  mutating func transfer(_ command: Command, _ bus: DeviceBus) -> Outcome? {
    guard command.namespace == 1 || command.opcode == IO.flush && command.namespace == .max else {
      return .invalidNamespace
    }
    if command.opcode == IO.flush { return .success }
    guard [IO.write, IO.read, IO.writeZeroes].contains(command.opcode) else { return .invalidOpcode }
    let first = UInt64(command.words[10]) | UInt64(command.words[11]) << 32
    let count = UInt64(command.words[12] & 0xffff) + 1
    guard first < blockCount, count <= blockCount - first else { return .outOfRange }
    let byteCount = Int(count) * Self.blockByteCount, offset = first * UInt64(Self.blockByteCount)
    switch command.opcode {
    case IO.writeZeroes:
      storage.write([UInt8](repeating: 0, count: byteCount), at: offset)
      return .success
    case IO.read:
      guard byteCount <= Self.transferLimit else { return .invalidField }
      return send(storage.read(byteCount, at: offset), command, bus)
    default:
      guard byteCount <= Self.transferLimit else { return .invalidField }
      switch receive(byteCount, command, bus) {
      case .failure(let failure): return failure.outcome
      case .success(let bytes):
        storage.write(bytes, at: offset)
        return .success
      }
    }
  }

  /// Why data could not be moved.
  struct TransferFailure: Error { let outcome: Outcome }

  /// Sends data to where a command's PRPs say.
  func send(_ bytes: [UInt8], _ command: Command, _ bus: DeviceBus) -> Outcome {
    switch pieces(bytes.count, command, bus) {
    case .failure(let failure): return failure.outcome
    case .success(let pieces):
      var next = 0
      for piece in pieces {
        let part = Array(bytes[next..<next + piece.byteCount])
        guard (try? bus.write(part, to: piece.address)) != nil else { return .transferError }
        next += piece.byteCount
      }
      return .success
    }
  }

  /// Fetches data from where a command's PRPs say.
  private func receive(
    _ byteCount: Int, _ command: Command, _ bus: DeviceBus
  ) -> Result<[UInt8], TransferFailure> {
    pieces(byteCount, command, bus).flatMap { pieces in
      var bytes: [UInt8] = []
      bytes.reserveCapacity(byteCount)
      for piece in pieces {
        guard let part = try? bus.read(piece.address, byteCount: piece.byteCount) else {
          return .failure(TransferFailure(outcome: .transferError))
        }
        bytes += part
      }
      return .success(bytes)
    }
  }
}

// MARK: - Physical region pages

extension NVMeModel {
  /// A piece of memory within one page.
  private struct Piece {
    let address: UInt64
    let byteCount: Int
  }

  /// The pieces of a transfer: the first may begin inside its page, all others are whole pages but the last.
  /// With more than two, PRP2 is a list, whose last entry leads to the next list when it is full.
  private func pieces(
    _ byteCount: Int, _ command: Command, _ bus: DeviceBus
  ) -> Result<[Piece], TransferFailure> {
    guard command.usesPRP else { return .failure(TransferFailure(outcome: .invalidField)) }
    let page = registers.pageByteCount
    guard command.prp1 % 4 == 0 else { return .failure(TransferFailure(outcome: .invalidOffset)) }
    let inside = Int(command.prp1 % UInt64(page))
    var pieces = [Piece(address: command.prp1, byteCount: min(byteCount, page - inside))]
    var left = byteCount - pieces[0].byteCount
    guard left > 0 else { return .success(pieces) }
    if left <= page {
      guard command.prp2 % UInt64(page) == 0 else {
        return .failure(TransferFailure(outcome: .invalidOffset))
      }
      return .success(pieces + [Piece(address: command.prp2, byteCount: left)])
    }
    var list = command.prp2
    guard list % 8 == 0 else { return .failure(TransferFailure(outcome: .invalidOffset)) }
    while left > 0 {
      let room = (page - Int(list % UInt64(page))) / 8
      let needed = (left + page - 1) / page
      guard let entries = entries(min(room, needed), at: list, bus) else {
        return .failure(TransferFailure(outcome: .transferError))
      }
      let data = needed > room ? entries.dropLast() : entries[...]
      for address in data {
        guard address % UInt64(page) == 0 else { return .failure(TransferFailure(outcome: .invalidOffset)) }
        pieces.append(Piece(address: address, byteCount: min(left, page)))
        left -= min(left, page)
      }
      // A list of one entry that only leads on would never end.
      guard left == 0 || room > 1 else { return .failure(TransferFailure(outcome: .invalidOffset)) }
      if left > 0 { list = entries[entries.count - 1] }
    }
    return .success(pieces)
  }

  private func entries(_ count: Int, at list: UInt64, _ bus: DeviceBus) -> [UInt64]? {
    guard let bytes = try? bus.read(list, byteCount: count * 8) else { return nil }
    return (0..<count).map { index in
      (0..<8).reduce(0) { $0 | UInt64(bytes[index * 8 + $1]) << (8 * UInt64($1)) }
    }
  }
}

/// The contents of a namespace: pages of 4 KiB that were written, zero elsewhere.
public struct BlockStorage: Sendable {
  private var pages: [UInt64: [UInt8]] = [:]
  private static let pageByteCount: UInt64 = 4096

  /// Reads bytes at a byte offset. O(bytes).
  public func read(_ byteCount: Int, at offset: UInt64) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(byteCount)
    var next = offset
    let end = offset + UInt64(byteCount)
    while next < end {
      let inside = next % Self.pageByteCount
      let count = min(Self.pageByteCount - inside, end - next)
      if let page = pages[next / Self.pageByteCount] {
        bytes += page[Int(inside)..<Int(inside + count)]
      } else {
        bytes += repeatElement(0, count: Int(count))
      }
      next += count
    }
    return bytes
  }

  /// Writes bytes at a byte offset. O(bytes).
  public mutating func write(_ bytes: [UInt8], at offset: UInt64) {
    var done = 0
    while done < bytes.count {
      let next = offset + UInt64(done)
      let inside = Int(next % Self.pageByteCount)
      let count = min(Int(Self.pageByteCount) - inside, bytes.count - done)
      let number = next / Self.pageByteCount
      let empty = [UInt8](repeating: 0, count: Int(Self.pageByteCount))
      pages[number, default: empty].replaceSubrange(inside..<inside + count, with: bytes[done..<done + count])
      done += count
    }
  }
}
