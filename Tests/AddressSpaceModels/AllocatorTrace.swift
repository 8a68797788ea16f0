package import AddressSpace

/// A trace under way.
package struct AllocatorTrace: ~Copyable {
  package let allocator: AddressAllocator
  private var model: NaiveStore
  private(set) package var random: Choices
  private let space: AllocatorSpace
  /// What was allocated for a length alone, and that length.
  private var live: [(start: IOVA, byteCount: UInt64)] = []
  /// What was allocated by a request.
  private var kept: [IOVA] = []
  private(set) package var digest = Digest()
  /// Where the two differed.
  private(set) package var difference: String?

  package init(_ space: AllocatorSpace, choices: Choices) throws {
    self.init(
      space, choices,
      try AddressAllocator(usable: space.usable, granule: space.granule, method: .locked, processors: 3))
  }

  /// In two steps: Swift 6.2 stops at a throwing initializer that sets some properties.
  private init(_ space: AllocatorSpace, _ choices: Choices, _ allocator: consuming AddressAllocator) {
    self.allocator = allocator
    model = NaiveStore(usable: space.usable, granule: space.granule)
    random = choices
    self.space = space
  }

  package mutating func step() {
    let isCrowded = model.nodes.count > space.crowd
    if let memory = space.memory, random.once(in: 20) {
      allocator.limitMemory(toRequests: .random(in: 0...memory, using: &random))
    }
    switch Int.random(in: 0..<40, using: &random) {
    case 0..<(isCrowded ? 8 : 20): allocate()
    case 20: insert()
    case 21: unreserve()
    case 22: request()
    case 23: look()
    case 24 where random.once(in: 8): allocator.emptyCaches()
    default: free()
    }
  }

  /// Frees all that is left, and looks whether the store is empty.
  package mutating func end() {
    while !live.isEmpty { free() }
    for node in model.nodes {
      if !(allocator.remove(node.start) != nil) { difference = "\(node) was lost" }
    }
    allocator.emptyCaches()
    if let node = allocator.next(from: IOVA(0)) { difference = difference ?? "\(node) is left" }
    let left = allocator.statistics
    if left.liveCount != 0 || left.cachedCount != 0 { difference = difference ?? "left: \(left)" }
  }

  private mutating func fail(_ text: String) { difference = difference ?? text }

  private mutating func compare<Answer: Equatable & Digestible>(
    _ what: @autoclosure () -> String, _ got: Answer, _ expected: Answer
  ) {
    if got != expected { fail("\(what()) gave \(got), not \(expected)") }
    digest.add(got)
  }
}

// MARK: - Steps

extension AllocatorTrace {
  /// Of few processors, so that they exchange much.
  private mutating func processor() -> UInt32 { random.once(in: 2) ? 0 : random.once(in: 2) ? 1 : 2 }

  private mutating func allocate() {
    let (byteCount, limit, mayEmpty) = (anyByteCount(), anyLimit(), !random.once(in: 3))
    let (rounded, processor) = (roundedUp(byteCount), processor())
    let got = Result { () throws(RangeStoreFailure) in
      try allocator.allocate(byteCount: byteCount, limit: limit, mayEmptyCaches: mayEmpty, processor: processor)
    }
    switch got {
    case .success(let start):
      digest.add(start.rawValue)
      guard let natural = PageSize(fitting: rounded), start.isAligned(to: natural) else {
        return fail("\(start) for \(byteCount) bytes is not aligned")
      }
      let node = RangeStore.Node(range: IOVARange(start: start, byteCount: rounded)!, kind: .allocation)
      if let failure = model.insert(node, limit: limit) {
        fail("\(start), \(byteCount) bytes below \(limit): \(failure)")
      }
      live.append((start, byteCount))
    case .failure(let failure):
      digest.add(1 as UInt64)
      var copy = model
      let expected = copy.allocate(RangeStore.Request(byteCount: rounded, limit: limit), tag: 0)
      if failure != .noSpace { fail("\(byteCount) bytes: \(failure)") }
      if mayEmpty, case .success(let start) = expected { fail("\(byteCount) bytes below \(limit) fit at \(start)") }
    }
  }

  private mutating func free() {
    // Mostly one of the last, as drivers do.
    guard !live.isEmpty else { return }
    let index = random.once(in: 2) ? live.count - 1 : Int.random(in: 0..<live.count, using: &random)
    let (start, byteCount) = live.remove(at: index)
    allocator.free(start, byteCount: byteCount, processor: processor())
    if model.remove(start) == nil { fail("the trace lost \(start)") }
    // Many at once fill magazines.
    if random.once(in: 30) { for _ in 0..<min(live.count, 40) { free() } }
  }

  /// A request that the magazines do not serve.
  private mutating func request() {
    var request = RangeStore.Request(byteCount: space.granule.byteCount * .random(in: 1...70, using: &random))
    request.alignment = random.once(in: 2) ? space.granule : nil
    request.boundary = random.once(in: 2) ? PageSize(fitting: request.byteCount * 2) : nil
    request.limit = anyLimit()
    let got = Result { () throws(RangeStoreFailure) in try allocator.allocate(request) }
    guard case .success(let start) = got else {
      var copy = model
      if case .success = copy.allocate(request, tag: 0) { fail("\(request) fits") }
      return
    }
    let node = RangeStore.Node(range: IOVARange(start: start, byteCount: request.byteCount)!, kind: .allocation)
    if let failure = model.insert(node, limit: request.limit) { fail("\(request) at \(start): \(failure)") }
    kept.append(start)
    if kept.count < 8 { return }
    let oldest = kept.removeFirst()
    compare("remove \(oldest)", allocator.remove(oldest), model.remove(oldest))
  }

  private mutating func insert() {
    let kind: RangeStore.Kind = random.once(in: 2) ? .fixed : .reservation
    let node = RangeStore.Node(range: anyRange(), kind: kind)
    let got = failure { () throws(RangeStoreFailure) in try allocator.insert(node) }
    compare("insert \(node)", got, model.insert(node, limit: .max))
    guard got == nil, kind == .fixed else { return }
    compare("remove \(node)", allocator.remove(node.start), model.remove(node.start))
  }

  private mutating func unreserve() {
    guard let node = model.nodes.first(where: { $0.kind == .reservation }) else { return }
    compare("unreserve \(node)", allocator.unreserve(node.range), model.unreserve(node.range))
  }

  private mutating func look() {
    let got = allocator.statistics
    let allocations = model.nodes.filter { $0.kind == .allocation }
    compare("live", got.liveCount, allocations.count)
    compare("live bytes", got.liveByteCount, allocations.reduce(0) { $0 + $1.byteCount })
    guard let node = model.nodes.randomElement(using: &random) else { return }
    compare("find \(node)", allocator.find(containing: node.range.last), node)
    compare("find \(node)", allocator.find(overlapping: node.range), node)
    compare("next \(node)", allocator.next(from: node.start), node)
    if !random.once(in: 8) { return }
    allocator.emptyCaches()
    for window in [range(0, 0xffff_ffff), range(1 << 32, .max), .full] {
      let bytes = allocator.largestFreeByteCount(limit: window.last.rawValue, lowest: window.start.rawValue)
      compare("largest in \(window)", bytes, model.largestFreeByteCount(window))
      let order = allocator.largestFreeOrder(limit: window.last.rawValue, lowest: window.start.rawValue)
      compare("order in \(window)", order, bytes == 0 ? nil : 63 - bytes.leadingZeroBitCount)
    }
  }

  private func failure(_ body: () throws(RangeStoreFailure) -> Void) -> RangeStoreFailure? {
    do throws(RangeStoreFailure) { try body() } catch { return error }
    return nil
  }
}

// MARK: - Choices

extension AllocatorTrace {
  /// Small ones more often; any number of bytes up to 2 MiB, whole granules above.
  private mutating func anyByteCount() -> UInt64 {
    let power = space.granule.byteCount << UInt64.random(in: 0...(random.once(in: 4) ? 11 : 4), using: &random)
    if random.once(in: 2) { return power }
    let byteCount = UInt64.random(in: 1...power, using: &random)
    return byteCount <= 2 << 20 && space.granule.byteCount <= 2 << 20 ? byteCount : roundedUp(byteCount)
  }

  /// What a length takes: a power of two up to 2 MiB.
  private func roundedUp(_ byteCount: UInt64) -> UInt64 {
    byteCount <= 2 << 20 && space.granule.byteCount <= 2 << 20
      ? max(PageSize(fitting: byteCount)!.byteCount, space.granule.byteCount) : space.granule.alignedUp(byteCount)!
  }

  private mutating func anyLimit() -> UInt64 {
    switch Int.random(in: 0..<6, using: &random) {
    case 0: return UInt64(UInt32.max)
    case 1: return anyAddress()
    case 2: return model.nodes.randomElement(using: &random)?.range.last.rawValue ?? 0
    default: return .max
    }
  }

  private mutating func anyAddress() -> UInt64 {
    let area = space.usable.randomElement(using: &random)!
    return UInt64.random(in: area.start.rawValue...area.last.rawValue, using: &random)
  }

  private mutating func anyRange() -> IOVARange {
    let start = space.granule.alignedDown(
      random.once(in: 2) ? anyAddress() : model.nodes.randomElement(using: &random)?.start.rawValue ?? 0)
    return IOVARange(start: IOVA(start), byteCount: space.granule.byteCount * .random(in: 1...8, using: &random))!
  }
}
