package import AddressSpace

/// A trace under way.
package struct ModelTrace: ~Copyable {
  package let store: RangeStore
  private var model: NaiveStore
  private(set) package var random: Choices
  private let space: ModelSpace
  /// What was allocated last, to be released and asked for again.
  private var last: (request: RangeStore.Request, start: UInt64) = (RangeStore.Request(byteCount: 0), 0)
  private(set) package var digest = Digest()
  /// Where the two differed.
  private(set) package var difference: String?

  package init(_ space: ModelSpace, choices: Choices) throws {
    self.init(space, choices, try RangeStore(usable: space.usable, granule: space.granule))
  }

  /// In two steps: Swift 6.2 stops at a throwing initializer that sets some properties.
  private init(_ space: ModelSpace, _ choices: Choices, _ store: consuming RangeStore) {
    self.store = store
    model = NaiveStore(usable: space.usable, granule: space.granule)
    random = choices
    self.space = space
  }

  package mutating func step() {
    let isCrowded = model.nodes.count > space.crowd
    switch Int.random(in: 0..<22, using: &random) {
    case 0..<(isCrowded ? 4 : 10): allocate()
    case 10..<11: insert()
    case 11..<12: reserve()
    case 12..<13: unreserve()
    case 13..<14: look()
    case 14..<15: measure()
    case 15..<16: allocateAgain()
    case 16..<17: replace()
    case 17..<18: carve()
    default: remove()
    }
  }

  private mutating func compare<Answer: Equatable & Digestible>(
    _ what: @autoclosure () -> String, _ got: Answer, _ expected: Answer
  ) {
    if got != expected { difference = difference ?? "\(what()) gave \(got), not \(expected)" }
    digest.add(got)
  }
}

// MARK: - Steps

extension ModelTrace {
  private mutating func allocate() {
    let request = random.once(in: 3) ? last.request : anyRequest()
    let tag = random.next()
    let got = Result { () throws(RangeStoreFailure) in try store.allocate(request, tag: tag) }
    compare("\(request)", got, model.allocate(request, tag: tag))
    if case .success(let start) = got { last = (request, start.rawValue) }
  }

  /// Releases what was just allocated and asks for the same, a few times, without the tree.
  private mutating func allocateAgain() {
    var request = anyRequest()
    (request.lowest, request.boundary, request.direction) = (0, nil, .topDown)
    let got = Result { () throws(RangeStoreFailure) in try store.allocate(request, tag: 0) }
    compare("\(request)", got, model.allocate(request, tag: 0))
    guard case .success(let start) = got, let natural = PageSize(fitting: request.byteCount) else { return }
    for tag in 1...UInt64.random(in: 1...3, using: &random) {
      compare("remove last \(start)", store.removeLast(start), model.remove(start)?.tag)
      if random.once(in: 3) { return }
      let again = store.allocateAgain(
        byteCount: request.byteCount, alignment: request.alignment ?? natural, limit: request.limit, tag: tag)
      compare("again \(request)", again, try? model.allocate(request, tag: tag).get())
    }
  }

  private mutating func insert() {
    let kind = RangeStore.Kind.allCases.randomElement(using: &random)!
    let node = RangeStore.Node(
      range: anyRange(), kind: kind, tag: random.next(), auxiliary: UInt32(model.nodes.count))
    let limit = random.once(in: 4) ? anyAddress() : .max
    compare(
      "insert \(node)", failure { () throws(RangeStoreFailure) in try store.insert(node, limit: limit) },
      model.insert(node, limit: limit))
  }

  private mutating func reserve() {
    let range = anyRange()
    let node = RangeStore.Node(range: range.widened(to: space.granule), kind: .reservation)
    compare(
      "reserve \(range)", failure { () throws(RangeStoreFailure) in try store.reserve(range) },
      model.insert(node, limit: .max))
  }

  private mutating func unreserve() {
    let reserved = model.nodes.filter { $0.kind == .reservation }.randomElement(using: &random)
    let range = random.once(in: 4) ? anyRange() : reserved?.range ?? anyRange()
    compare("unreserve \(range)", store.unreserve(range), model.unreserve(range))
  }

  private mutating func remove() {
    var start =
      random.once(in: 8) ? anyAddress() : model.nodes.randomElement(using: &random)?.start.rawValue ?? 0
    if random.once(in: 2) { start = last.start }
    if random.once(in: 2), let tag = store.removeLast(IOVA(start)) {
      return compare("remove last \(start)", tag, model.remove(IOVA(start))?.tag)
    }
    compare("remove \(start)", store.remove(IOVA(start)), model.remove(IOVA(start)))
  }

  /// Moves the ends of a node, its kind and its tag; in some cases by what is in the way of something.
  private mutating func replace() {
    let old = model.nodes.randomElement(using: &random)?.range ?? anyRange(), granule = space.granule.byteCount
    func moved(_ address: UInt64, _ choices: inout Choices) -> UInt64 {
      let distance = UInt64.random(in: 0...3, using: &choices) * granule
      return choices.once(in: 2) ? address &+ distance : address &- distance
    }
    let (start, last) = (moved(old.start.rawValue, &random), moved(old.last.rawValue, &random))
    let range = IOVARange(start: IOVA(start), last: IOVA(last)) ?? old
    let kind = RangeStore.Kind.allCases.randomElement(using: &random)!
    let node = RangeStore.Node(range: range, kind: kind, tag: random.next(), auxiliary: UInt32(model.nodes.count))
    let place = random.once(in: 16) ? IOVA(anyAddress()) : old.start
    compare("replace \(place) \(node)", store.replace(place, with: node), model.replace(place, with: node))
  }

  /// Puts a node into another, at either end or within.
  private mutating func carve() {
    let old = model.nodes.randomElement(using: &random)?.range ?? anyRange(), granule = space.granule
    let count = old.byteCount >> UInt64(granule.shift)
    let first = random.once(in: 3) ? 0 : UInt64.random(in: 0...min(count, 1 << 40), using: &random)
    let length = random.once(in: 3) ? count &- first : UInt64.random(in: 0...4, using: &random)
    let start = old.start.rawValue &+ first << UInt64(granule.shift)
    guard let range = IOVARange(start: IOVA(start), byteCount: length << UInt64(granule.shift)) else { return }
    let node = RangeStore.Node(range: range, kind: .fixed, tag: random.next())
    compare(
      "carve \(node)", failure { () throws(RangeStoreFailure) in try store.carve(node) }, model.carve(node))
  }

  private mutating func look() {
    let (address, range) = (IOVA(anyAddress()), anyRange())
    compare("find \(address)", store.find(containing: address), model.find(containing: address))
    compare("find \(range)", store.find(overlapping: range), model.find(overlapping: range))
    compare("next \(address)", store.next(from: address), model.next(from: address))
    var all: [RangeStore.Node] = []
    store.forEach { all.append($0) }
    compare("all", all, model.nodes)
    compare("count", store.count, model.nodes.count)
    compare("bytes", store.byteCount, model.nodes.reduce(0) { $1.byteCount > .max - $0 ? .max : $0 + $1.byteCount })
  }

  private mutating func measure() {
    let window = random.once(in: 3) ? range(0, UInt64(UInt32.max)) : random.once(in: 2) ? .full : anyRange()
    let got = store.largestFreeByteCount(limit: window.last.rawValue, lowest: window.start.rawValue)
    compare("largest in \(window)", got, model.largestFreeByteCount(window))
  }

  private func failure(_ body: () throws(RangeStoreFailure) -> Void) -> RangeStoreFailure? {
    do throws(RangeStoreFailure) { try body() } catch { return error }
    return nil
  }
}

// MARK: - Choices

extension ModelTrace {
  /// An address near something: a usable range, a node, 4 GiB, or anywhere.
  private mutating func anyAddress() -> UInt64 {
    let anchors =
      [0, 1 << 32, .max] + space.usable.flatMap { [$0.start.rawValue, $0.last.rawValue] }
      + (model.nodes.randomElement(using: &random).map { [$0.start.rawValue, $0.range.last.rawValue] } ?? [])
    let offset = UInt64.random(in: 0..<1 << UInt64.random(in: 0...24, using: &random), using: &random)
    let anchor = anchors.randomElement(using: &random)!
    let address = random.once(in: 2) ? anchor &+ offset : anchor &- offset
    return random.once(in: 2) ? space.granule.alignedDown(address) : address
  }

  private mutating func anySize() -> UInt64 {
    let shift = UInt64.random(in: 0...UInt64(space.largest), using: &random)
    let power = UInt64(1) << shift
    let count = random.once(in: 2) ? power : UInt64.random(in: 1...power, using: &random)
    return count << UInt64(space.granule.shift) | (random.once(in: 64) ? 1 : 0)
  }

  private mutating func anyRange() -> IOVARange {
    let start = space.granule.alignedDown(anyAddress()) | (random.once(in: 16) ? 1 : 0)
    return IOVARange(start: IOVA(start), byteCount: anySize()) ?? range(start, .max)
  }

  private mutating func anyRequest() -> RangeStore.Request {
    var request = RangeStore.Request(byteCount: random.once(in: 64) ? 0 : anySize())
    if random.once(in: 2) {
      request.alignment = PageSize(shift: min(space.granule.shift + .random(in: 0...9, using: &random), 63))
    } else if random.once(in: 3) {
      request.alignment = space.granule
    }
    if random.once(in: 3) { request.limit = random.once(in: 2) ? UInt64(UInt32.max) : anyAddress() }
    if random.once(in: 4) { request.lowest = anyAddress() }
    if random.once(in: 4) {
      request.boundary = PageSize(
        fitting: max(request.byteCount, 1) << UInt64.random(in: 0...2, using: &random))
    }
    if random.once(in: 3) { request.direction = .bottomUp }
    return request
  }
}
