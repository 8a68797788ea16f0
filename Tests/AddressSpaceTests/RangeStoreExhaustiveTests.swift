import AddressSpace
import AddressSpaceModels
import Testing

/// Every state of a tiny space against every request: what is chosen is the highest, or the lowest, of
/// the starts that satisfy everything, found by trying them all.
struct RangeStoreExhaustiveTests {
  /// Granules in the space.
  #if DEBUG
    static let width: UInt64 = 6
  #else
    static let width: UInt64 = 9
  #endif

  /// Where the space begins: what is a multiple of what differs from place to place.
  static let bases: [UInt64] = [0, 1, 3, 6, 8, (1 << 20) - 4, (1 << 52) - width]

  @Test(arguments: bases)
  func choosesTheOutermostOfAllThatFit(_ base: UInt64) throws {
    var checked = 0
    for occupied in UInt64(0)..<1 << Self.width {
      let space = TinySpace(base: base, width: Self.width, occupied: occupied)
      let store = try space.makeStore()
      for request in space.requests {
        let got = allocate(store, request)
        if case .success(let start) = got { store.remove(IOVA(start)) }
        try #require(got == space.expected(request), "\(String(occupied, radix: 2)) at \(base): \(request)")
        checked += 1
      }
      try #require(store.checkInvariants() == nil)
    }
    print("exhaustive: \(checked) requests at granule \(base)")
  }

  @Test(arguments: bases)
  func knowsTheLargestFreeLengthOfEveryWindow(_ base: UInt64) throws {
    for occupied in UInt64(0)..<1 << Self.width {
      let space = TinySpace(base: base, width: Self.width, occupied: occupied)
      let store = try space.makeStore()
      for (low, high) in space.windows {
        let fitting = (1...Self.width).filter { size in
          let request = RangeStore.Request(byteCount: size << 12, limit: high, lowest: low)
          if case .success = space.expected(request) { return true } else { return false }
        }
        let largest = store.largestFreeByteCount(limit: high, lowest: low)
        try #require(
          largest == (fitting.last ?? 0) << 12, "\(String(occupied, radix: 2)) at \(base): \(low)…\(high)")
        // That every smaller length fits as well is what makes one number enough.
        try #require(fitting.count == fitting.last.map { Int($0) } ?? 0)
      }
    }
  }
}

/// A few granules, some of them occupied.
struct TinySpace {
  var base: UInt64
  var width: UInt64
  /// Bit n is granule `base + n`.
  var occupied: UInt64

  func makeStore() throws -> RangeStore {
    let store = try RangeStore(
      usable: [range(base << 12, address(base + width - 1) | 0xfff)], granule: .fourKiB)
    for bit in 0..<width where isOccupied(base + bit) {
      try store.insert(
        RangeStore.Node(range: range(address(base + bit), address(base + bit) | 0xfff), kind: .fixed))
    }
    return store
  }

  private func address(_ granule: UInt64) -> UInt64 { granule << 12 }

  private func isOccupied(_ granule: UInt64) -> Bool { occupied >> (granule - base) & 1 == 1 }

  /// Windows from every granule to every other, and two that end inside a granule.
  var windows: [(low: UInt64, high: UInt64)] {
    var windows: [(UInt64, UInt64)] = [(0, .max), (address(base) + 1, address(base + width - 1) + 0xffe)]
    for first in 0..<width {
      for last in first..<width { windows.append((address(base + first), address(base + last) | 0xfff)) }
    }
    return windows
  }

  /// Every size and alignment with every boundary, in both directions, in some of the windows.
  var requests: [RangeStore.Request] {
    var requests: [RangeStore.Request] = []
    var turn = 0
    let windows = windows
    for size in 1...width {
      for alignment: PageSize? in [
        nil, PageSize(shift: 12), PageSize(shift: 13), PageSize(shift: 14), PageSize(shift: 15),
      ] {
        for boundary: PageSize? in [nil, PageSize(shift: 13), PageSize(shift: 14), PageSize(shift: 15)] {
          for direction in [RangeStore.Direction.topDown, .bottomUp] {
            // A different window each time; over all states every one meets every request.
            turn += 5
            let (low, high) = windows[(turn + Int(occupied)) % windows.count]
            for window in [(0, UInt64.max), (low, high)] {
              requests.append(
                RangeStore.Request(
                  byteCount: size << 12, alignment: alignment, limit: window.1, lowest: window.0,
                  boundary: boundary,
                  direction: direction))
            }
          }
        }
      }
    }
    return requests
  }

  /// What must come of a request: every start is tried.
  func expected(_ request: RangeStore.Request) -> Result<UInt64, RangeStoreFailure> {
    let size = request.byteCount >> 12
    if let boundary = request.boundary, boundary.byteCount < request.byteCount {
      return .failure(.boundaryTooSmall)
    }
    var natural: UInt64 = 1
    while natural < size { natural *= 2 }
    let alignment = request.alignment.map { $0.byteCount >> 12 } ?? natural
    guard size <= width else { return .failure(.noSpace) }
    let starts = (base...base + width - size).filter { start in
      let last = start + size - 1
      let isFree = (start...last).allSatisfy { !isOccupied($0) }
      let isInside = address(start) >= request.lowest && address(last) | 0xfff <= request.limit
      let crosses =
        request.boundary.map { start / ($0.byteCount >> 12) != last / ($0.byteCount >> 12) } ?? false
      return isFree && isInside && !crosses && start % alignment == 0
    }
    let chosen = request.direction == .topDown ? starts.last : starts.first
    return chosen.map { .success(address($0)) } ?? .failure(.noSpace)
  }
}
