package import AddressSpace

/// What a run did, in one number: FNV-1a over the words fed to it.
package struct Digest: CustomStringConvertible {
  package init() {}

  private var value: UInt64 = 0xcbf2_9ce4_8422_2325

  package mutating func add(_ word: UInt64) {
    for shift in stride(from: 0, to: 64, by: 8) {
      value = (value ^ (word >> UInt64(shift)) & 0xff) &* 0x100_0000_01b3
    }
  }

  package mutating func add(_ answer: some Digestible) { answer.feed(&self) }

  package var description: String { String(value, radix: 16) }
}

/// An answer that a digest takes in, word by word: texts of all of them were four fifths of a run's time.
package protocol Digestible {
  func feed(_ digest: inout Digest)
}

extension UInt64: Digestible {
  package func feed(_ digest: inout Digest) { digest.add(self) }
}

extension Int: Digestible {
  package func feed(_ digest: inout Digest) { digest.add(UInt64(bitPattern: Int64(self))) }
}

extension Bool: Digestible {
  package func feed(_ digest: inout Digest) { digest.add(self ? 1 as UInt64 : 0) }
}

extension IOVA: Digestible {
  package func feed(_ digest: inout Digest) { digest.add(rawValue) }
}

extension IOVARange: Digestible {
  package func feed(_ digest: inout Digest) {
    digest.add(start.rawValue)
    digest.add(last.rawValue)
  }
}

extension RangeStore.Node: Digestible {
  package func feed(_ digest: inout Digest) {
    digest.add(range)
    digest.add(UInt64(kind.rawValue) << 32 | UInt64(auxiliary))
    digest.add(tag)
  }
}

extension RangeStoreFailure: Digestible {
  package func feed(_ digest: inout Digest) {
    switch self {
    case .empty: digest.add(2 as UInt64)
    case .unaligned: digest.add(3 as UInt64)
    case .overflow: digest.add(4 as UInt64)
    case .boundaryTooSmall: digest.add(5 as UInt64)
    case .granuleTooSmall: digest.add(6 as UInt64)
    case .outsideAperture(let range): feed(11, range, &digest)
    case .aboveLimit(let limit): feed(12, limit, &digest)
    case .reserved(let range): feed(13, range, &digest)
    case .occupied(let range): feed(14, range, &digest)
    case .noSpace: digest.add(7 as UInt64)
    case .fragmented: digest.add(8 as UInt64)
    case .duplicate: digest.add(9 as UInt64)
    case .outOfMemory: digest.add(10 as UInt64)
    }
  }

  /// Which failure it is, before what it says.
  private func feed(_ tag: UInt64, _ detail: some Digestible, _ digest: inout Digest) {
    digest.add(tag)
    digest.add(detail)
  }
}

extension Optional: Digestible where Wrapped: Digestible {
  package func feed(_ digest: inout Digest) {
    digest.add(self == nil)
    if let self { digest.add(self) }
  }
}

extension Array: Digestible where Element: Digestible {
  package func feed(_ digest: inout Digest) {
    digest.add(count)
    for element in self { digest.add(element) }
  }
}

extension Result: Digestible where Success: Digestible, Failure: Digestible {
  package func feed(_ digest: inout Digest) {
    switch self {
    case .success(let answer):
      digest.add(0 as UInt64)
      digest.add(answer)
    case .failure(let failure):
      digest.add(1 as UInt64)
      digest.add(failure)
    }
  }
}
