import Synchronization

/// Keeps the CPU out of buffers that a device owns, by the protection of their pages.
///
/// Pages that are pinned stay so: what a device reaches does not go by these. Memory of the caller's is left alone, as nobody
/// knows what protection it had.
///
/// Its lock is held across `mprotect`, as what is in the table and what holds must be the same; debug mode alone has it, and
/// the call ends by itself.
final class PageOwnership: Sendable {
  private let kernel: any Kernel
  private let state = Mutex(State())

  private struct State {
    /// By the address of the first page.
    var ranges: [UInt64: Range] = [:]
    /// How many want nothing to be protected for now.
    var lifts = 0
    var isLifted: Bool { lifts > 0 }
  }

  private struct Range {
    var byteCount: Int
    var protection: MemoryProtection
    /// The part that the CPU has for a while.
    var opened: Swift.Range<Int>?
  }

  init(kernel: any Kernel) { self.kernel = kernel }

  /// Whole pages are a device's: to be read by the CPU where the device only reads, and else not touched. Without memory for
  /// one more mapping of the process, nothing is done.
  func take(_ host: UInt64, byteCount: Int, _ access: DMAAccess) {
    let protection = access.canWrite ? MemoryProtection.none : .readOnly
    state.withLock { state in
      guard state.ranges.count < Limits.debugProtected else { return }
      guard state.isLifted || set(host, byteCount, protection) else { return }
      state.ranges[host] = Range(byteCount: byteCount, protection: protection)
    }
  }

  /// They are the CPU's again.
  func give(_ host: UInt64) {
    state.withLock { state in
      guard let range = state.ranges.removeValue(forKey: host) else { return }
      _ = set(host, range.byteCount, .readWrite)
    }
  }

  /// Lets the CPU touch some pages of a range for a while.
  func open(_ host: UInt64, _ pages: Swift.Range<Int>) {
    state.withLock { state in
      guard state.ranges[host] != nil else { return }
      state.ranges[host]!.opened = pages
      _ = set(host + UInt64(pages.lowerBound), pages.count, .readWrite)
    }
  }

  /// The end of that while.
  func shut(_ host: UInt64, _ pages: Swift.Range<Int>) {
    state.withLock { state in
      guard let range = state.ranges[host] else { return }
      state.ranges[host]!.opened = nil
      if !state.isLifted { _ = set(host + UInt64(pages.lowerBound), pages.count, range.protection) }
    }
  }

  /// Calls `body` while nothing is protected: the kernel pins no page that the process may not touch.
  func lifted<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    lift(1)
    defer { lift(-1) }
    return try body()
  }

  private func lift(_ change: Int) {
    state.withLock { state in
      let was = state.isLifted
      state.lifts += change
      guard state.isLifted != was else { return }
      for (host, range) in state.ranges {
        _ = set(host, range.byteCount, state.isLifted ? .readWrite : range.protection)
        guard !state.isLifted, let pages = range.opened else { continue }
        _ = set(host + UInt64(pages.lowerBound), pages.count, .readWrite)
      }
    }
  }

  /// Whether it could be done. What is given back is asked for again, as who gets it will touch it: it may take memory for one more
  /// mapping of the process.
  private func set(_ host: UInt64, _ byteCount: Int, _ protection: MemoryProtection) -> Bool {
    guard let base = unsafe UnsafeMutableRawPointer(bitPattern: UInt(host)) else { return false }
    for _ in 0..<(protection == .readWrite ? 3 : 1) {
      do throws(Errno) {
        try unsafe kernel.protectMemory(base, byteCount: byteCount, protection)
        return true
      } catch {}
    }
    return false
  }
}
