internal import Synchronization

/// What all processors share: full magazines of each size of range, and some empty ones.
///
/// The lock beside it is held for a few instructions; memory is neither asked for nor given back meanwhile.
@safe
struct Depot: ~Copyable {
  /// Full magazines, a list for each size of range.
  private let full: UnsafeMutablePointer<Magazine?>
  /// How many there are, for ``SharedState/hasFull(_:)``.
  private let fullCounts: UnsafeMutablePointer<Atomic<Int>>
  private let classCount: Int
  /// Empty magazines, so that an exchange asks for no memory.
  private var spares: (small: Magazine?, large: Magazine?) = (nil, nil)
  private var spareCounts = (small: 0, large: 0)
  /// Magazines whose former users membarrier(2) refused to stop: they are not touched before the end.
  private var stuck: Magazine?

  /// Empty magazines of a size that are kept.
  static var spareLimit: Int { 8 }

  /// Owns `fullCounts` from now on.
  init(classCount: Int, fullCounts: UnsafeMutablePointer<Atomic<Int>>) {
    self.classCount = classCount
    unsafe self.fullCounts = unsafe fullCounts
    unsafe full = .allocate(capacity: classCount)
    unsafe full.initialize(repeating: nil, count: classCount)
  }

  deinit {
    for order in 0..<classCount { unsafe full[order].forEachMagazine { $0.deallocate() } }
    for list in [spares.small, spares.large, stuck] { list.forEachMagazine { $0.deallocate() } }
    unsafe full.deallocate()
    unsafe fullCounts.deinitialize(count: classCount)
    unsafe fullCounts.deallocate()
  }
}

// MARK: - Full magazines

extension Depot {
  /// With the lock held: takes a full magazine out.
  mutating func takeFull(_ order: Int) -> Magazine? {
    guard let magazine = unsafe full[order] else { return nil }
    unsafe full[order] = magazine.next
    unsafe fullCounts[order].wrappingSubtract(1, ordering: .relaxed)
    magazine.next = nil
    return magazine
  }

  /// With the lock held: puts a full magazine in.
  mutating func putFull(_ magazine: Magazine, _ order: Int) {
    magazine.next = unsafe full[order]
    unsafe full[order] = magazine
    unsafe fullCounts[order].wrappingAdd(1, ordering: .relaxed)
  }

  /// With the lock held: takes all full magazines of a size out.
  mutating func takeAllFull(_ order: Int) -> Magazine? {
    defer {
      unsafe full[order] = nil
      unsafe fullCounts[order].store(0, ordering: .relaxed)
    }
    return unsafe full[order]
  }

  /// With the lock held: the bytes of memory of the magazines, and the addresses in the full ones of a size.
  func contents(_ sizeClass: SizeClass) -> (memory: Int, count: Int) {
    var (memory, count) = (0, 0)
    unsafe full[sizeClass.order].forEachMagazine {
      memory += $0.size(sizeClass).rawValue
      count += $0.count
    }
    return (memory, count)
  }
}

// MARK: - Empty magazines

extension Depot {
  /// With the lock held: bytes of memory of the empty magazines.
  var spareByteCount: Int {
    spareCounts.small * Magazine.Size.small.rawValue + spareCounts.large * Magazine.Size.large.rawValue
  }

  /// With the lock held: takes an empty magazine out.
  mutating func takeSpare(_ size: Magazine.Size) -> Magazine? {
    let magazine = size == .small ? spares.small : spares.large
    guard let magazine else { return nil }
    if size == .small {
      spares.small = magazine.next
      spareCounts.small -= 1
    } else {
      spares.large = magazine.next
      spareCounts.large -= 1
    }
    magazine.next = nil
    return magazine
  }

  /// With the lock held: keeps an empty magazine; `false` when there are enough.
  mutating func putSpare(_ magazine: Magazine, _ size: Magazine.Size) -> Bool {
    guard (size == .small ? spareCounts.small : spareCounts.large) < Depot.spareLimit else { return false }
    magazine.next = size == .small ? spares.small : spares.large
    if size == .small {
      spares.small = magazine
      spareCounts.small += 1
    } else {
      spares.large = magazine
      spareCounts.large += 1
    }
    return true
  }

  /// With the lock held: takes all empty magazines of a size out.
  mutating func takeAllSpares() -> (Magazine?, Magazine?) {
    defer {
      spares = (nil, nil)
      spareCounts = (0, 0)
    }
    return (spares.small, spares.large)
  }

  /// With the lock held: puts away what may still be in use.
  mutating func strand(_ list: Magazine) {
    var last = list
    while let next = last.next { last = next }
    last.next = stuck
    stuck = list
  }
}

extension Magazine? {
  /// Calls a function with each magazine of a list; it may deallocate the one it is given.
  func forEachMagazine(_ body: (Magazine) -> Void) {
    var item = self
    while let magazine = item {
      item = magazine.next
      body(magazine)
    }
  }
}
