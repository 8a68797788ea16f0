import CIOMMU

/// The calls that led to some place, the innermost first.
///
/// Kept as addresses; names are looked for when they are asked for. Names are those of the dynamic symbol table: link the
/// program with `-rdynamic` to have its own, or give the offsets to `llvm-symbolizer`. The corresponding C functions are
/// `backtrace` and `dladdr`.
public struct DebugBacktrace: Hashable, Sendable, CustomStringConvertible {
  /// Return addresses.
  public let addresses: [UInt]

  /// No calls at all.
  init() { addresses = [] }

  /// The calls that led to the caller.
  @inline(never)
  init(capturing count: Int) {
    guard count > 0 else {
      addresses = []
      return
    }
    // The first is this place itself.
    addresses = unsafe [UInt](unsafeUninitializedCapacity: count + 1) { buffer, done in
      done = unsafe Int(ci_backtrace(buffer.baseAddress!, Int32(count + 1)))
      if done > 0 {
        unsafe buffer.baseAddress!.update(from: buffer.baseAddress! + 1, count: done - 1)
        done -= 1
      }
    }
  }

  /// Whether nothing was kept.
  public var isEmpty: Bool { addresses.isEmpty }

  /// Each frame as `function+offset (file)`, or as `file+offset` where there is no name.
  public var symbols: [String] { addresses.map(Self.symbol) }

  /// The first four frames outside of this library in one line; all frames where there are no names to tell.
  public var description: String {
    let symbols = symbols
    guard symbols.first?.hasSuffix(")") ?? false else { return symbols.joined(separator: " < ") }
    let outer = symbols.firstIndex { !$0.hasPrefix("IOMMU.") && !$0.contains(" IOMMU.") } ?? 0
    return symbols[outer...].prefix(4).joined(separator: " < ")
  }

  private static func symbol(_ address: UInt) -> String {
    unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: 1024) { text in
      unsafe ci_symbol(address, text.baseAddress!, UInt64(text.count))
      return unsafe String(cString: text.baseAddress!)
    }
  }
}
