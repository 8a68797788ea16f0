import Synchronization

/// How many commands an invalidation may have before everything is invalidated instead.
///
/// The kernel's command queue is shared with others and cannot be looked at: a round of it is the most, less while it seems
/// to be full, which shows in what an invalidation takes. Correctness does not depend on it.
package final class InvalidationBudget: Sendable {
  /// The most commands.
  package let most: Int
  private let current: Atomic<Int>
  /// Slow invalidations, or else quick ones, in a row.
  private let slow = Atomic<Int>(0), quick = Atomic<Int>(0)
  /// What a call takes, and each command in it, in nanoseconds; 0 where it is not known.
  private let base = Atomic<UInt64>(0), each = Atomic<UInt64>(0)
  /// By what a command is compared with an invalidation of everything, in nanoseconds; 0 where it is not known.
  private let price = Atomic<UInt64>(0)
  /// The longest unmap that is invalidated by its range, in bytes.
  private let longest = Atomic<UInt64>(.max)

  package init(most: Int) {
    self.most = most
    current = Atomic(most)
  }

  /// What the next invalidation may have: 1…``most``.
  package var limit: Int { current.load(ordering: .relaxed) }

  /// What a plan may have on a queue that the process owns, whose free slots can be read: all of them but one, which the sync takes,
  /// so that nobody who looks waits for room. One command, which may have to wait, where there is no more.
  package static func limit(freeSlots: Int) -> Int { max(freeSlots - 1, 1) }

  /// Whether an unmap of so many bytes may be invalidated by its range; all may, unless ``setLongest(_:)`` was said.
  @inline(__always)
  package func allows(_ byteCount: UInt64) -> Bool { byteCount <= longest.load(ordering: .relaxed) }

  /// From now on an unmap of more bytes invalidates everything, whatever it costs; 0 has each do so. A fixed threshold, as
  /// kernels have it: for comparing with them.
  package func setLongest(_ byteCount: UInt64) { longest.store(byteCount, ordering: .relaxed) }

  /// Takes over what was timed on an idle machine: a call with one command, and one with `count`.
  package func calibrate(one: UInt64, several: UInt64, count: Int) {
    guard count > 1 else { return }
    let step = several > one ? (several - one) / UInt64(count - 1) : 0
    each.store(step, ordering: .relaxed)
    price.store(step, ordering: .relaxed)
    base.store(max(one > step ? one - step : one, 1), ordering: .relaxed)
  }

  /// Takes over what has been found out since of what an invalidation costs; nothing where nothing was timed before, or where a limit
  /// is held.
  ///
  /// Timings are more than the first ones: no command takes longer than a call with one, nor a call longer than the quickest did. Who
  /// was told, or knows by a sign, has no figures, but knows on which side of ``Limits/dearInvalidation`` they are.
  package func adopt(_ calibration: Calibration) {
    let known = base.load(ordering: .relaxed), step = each.load(ordering: .relaxed)
    guard known > 0 else { return }
    switch calibration.evidence {
    case .timings(let shortest):
      let step = min(step, shortest)
      each.store(step, ordering: .relaxed)
      price.store(step, ordering: .relaxed)
      base.store(max(min(known, shortest - step), 1), ordering: .relaxed)
    case .cachingMode, .virtioIOMMU, .hypervisor, .told:
      let dear = Limits.dearInvalidation
      price.store(calibration.isDear ? max(step, dear) : min(step, dear - 1), ordering: .relaxed)
    }
  }

  /// Stays at a limit from now on, whatever invalidations take: for tests of what a device sees at each.
  package func hold(at limit: Int) {
    each.store(0, ordering: .relaxed)
    price.store(0, ordering: .relaxed)
    base.store(0, ordering: .relaxed)
    current.store(limit, ordering: .relaxed)
  }

  /// How many commands cost less than an invalidation of everything, after which the device walks the tables again for what it
  /// still uses; ``most`` where nothing was timed.
  package var worthwhile: Int {
    let price = price.load(ordering: .relaxed)
    return price == 0 ? most : min(most, Int(clamping: 1 + Limits.refill / price))
  }

  /// Notes what an invalidation took, in nanoseconds.
  ///
  /// Less room after two in a row that took more than four times what they should; a quarter more after sixteen that did not.
  package func note(commands: Int, nanoseconds: UInt64) {
    let base = base.load(ordering: .relaxed)
    guard base > 0 else { return }
    let expected = base + UInt64(commands) * each.load(ordering: .relaxed)
    if nanoseconds > expected * 4 {
      quick.store(0, ordering: .relaxed)
      guard slow.wrappingAdd(1, ordering: .relaxed).newValue >= 2 else { return }
      slow.store(0, ordering: .relaxed)
      change { max(1, $0 / 2) }
    } else {
      slow.store(0, ordering: .relaxed)
      guard limit < most, quick.wrappingAdd(1, ordering: .relaxed).newValue >= 16 else { return }
      quick.store(0, ordering: .relaxed)
      change { min(most, $0 + ($0 + 3) / 4) }
    }
  }

  /// Two threads that change it at once change it once.
  private func change(_ next: (Int) -> Int) {
    let old = current.load(ordering: .relaxed)
    _ = current.compareExchange(expected: old, desired: next(old), ordering: .relaxed)
  }
}

extension Limits {
  /// What filling the IOTLB again costs after everything was invalidated, in nanoseconds: an estimate, 64 walks of half a
  /// microsecond. Both ways are right, so that it decides speed alone.
  package static let refill: UInt64 = 32_000
}
