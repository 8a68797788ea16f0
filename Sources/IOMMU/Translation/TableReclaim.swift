package import AddressSpace
import Synchronization

/// Who gives out the addresses that a translation maps: asked before a table is taken out of use, since only who has all of its
/// region may do that.
package protocol AddressOwner: AnyObject, Sendable {
  /// Takes all addresses of a region, if nobody has any: nothing is mapped or reserved there, cached for a later map, or waiting for
  /// a flush. Until ``release(_:)`` nobody gets one. O(log n).
  func claim(_ region: IOVARange) -> Bool
  /// Gives a region back that was claimed.
  func release(_ region: IOVARange)
}

/// Taking tables without entries back, while a domain is open: whose turn it is, and how far the search has got.
///
/// One thread at a time does it. Addresses below 4 GiB are left alone, where all tables that there can be take 8 MiB: a region that is
/// claimed looks taken, and there that could cost a device its low addresses for good. Above, who finds no addresses holds the
/// reclaiming (``hold(_:)``) and asks again.
package final class TableReclaim: Sendable {
  /// What who searches has to himself.
  struct Search {
    let owner: any AddressOwner
    /// Where to go on.
    var from = TableReclaim.lowest
    /// Regions that are claimed and whose tables may still be cached by hardware.
    var regions: [IOVARange] = []

    func release() { for region in regions { owner.release(region) } }
  }

  /// Whose turn it is.
  enum Turn {
    case mine(Search)
    /// Another thread had it, and is done: there may be tables now.
    case over
    /// Nobody's: there is no one to ask, or others are short of addresses, one after the other.
    case refused
  }

  private struct State {
    /// The owner has the translation, and calls it for as long as it lives itself: so it is there when it is asked.
    struct Owner { unowned let value: any AddressOwner }
    var owner: Owner?
    var from = TableReclaim.lowest
    var regions: [IOVARange] = []
    var isRunning = false
    var holdCount = 0
  }
  private let state = Mutex(State())

  /// The lowest address at which tables are looked for.
  static let lowest: UInt64 = 1 << 32

  /// Says whom to ask.
  func setOwner(_ owner: any AddressOwner) { state.withLock { $0.owner = .init(value: owner) } }

  /// Takes the turn, or waits for who has it, and a little for who holds it. To be followed by ``end(_:)``.
  func begin(_ kernel: any Kernel) -> Turn {
    var hasWaited = false, patience = Limits.reclaimPatience
    while true {
      let turn: Turn? = state.withLock { state in
        guard let owner = state.owner else { return .refused }
        if state.isRunning {
          hasWaited = true
          return nil
        }
        if hasWaited { return .over }
        if state.holdCount > 0 {
          patience -= 1
          return patience < 0 ? .refused : nil
        }
        state.isRunning = true
        defer { state.regions = [] }
        return .mine(Search(owner: owner.value, from: state.from, regions: state.regions))
      }
      if let turn { return turn }
      // Who has it makes one system call, and who holds it looks for an address.
      kernel.sleep(.microseconds(20))
    }
  }

  /// Gives the turn back, and keeps what is still claimed for the next.
  func end(_ search: Search) {
    state.withLock { state in
      (state.from, state.regions, state.isRunning) = (search.from, search.regions, false)
    }
  }

  /// Until ``resume()`` nothing is claimed; on return nothing is but what is the answer, regions whose invalidation failed: to be given
  /// back to the owner after one that did not, or else to ``keep(_:)``.
  func hold(_ kernel: any Kernel) -> [IOVARange] {
    state.withLock { $0.holdCount += 1 }
    while state.withLock({ $0.isRunning }) { kernel.sleep(.microseconds(20)) }
    return state.withLock { state in
      defer { state.regions = [] }
      return state.regions
    }
  }

  func keep(_ regions: [IOVARange]) { state.withLock { $0.regions += regions } }

  func resume() { state.withLock { $0.holdCount -= 1 } }
}

extension Limits {
  /// In how many steps tables without entries are looked for before a domain gets more tables, and how many tables each looks at:
  /// less than a millisecond in all.
  package static let reclaimSteps = 64, reclaimStepTables = 16
  /// How often who would take tables back looks whether nobody is short of addresses any more, with 20 µs between.
  package static let reclaimPatience = 50
  /// So many tables that came back are enough, or an eighth of those that there are: more are not asked for then.
  package static let reclaimEnough = 32
}
