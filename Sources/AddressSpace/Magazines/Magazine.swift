internal import CIOMMU
internal import Glibc

/// A magazine: a stack of addresses of one size, after Bonwick and Adams, "Magazines and Vmem" (USENIX 2001).
///
/// A pointer of one word. Whoever took it out of a slot or of the depot owns it alone; the one that is loaded in a slot is
/// changed by the threads of the slot's processor, see ``Slot``.
@safe
struct Magazine: Equatable, BitwiseCopyable {
  let pointer: UnsafeMutablePointer<ci_magazine>

  /// The two sizes of a magazine's memory: a slot begins with the small one.
  enum Size: Int {
    case small = 128
    case large = 1024

    /// The most addresses that fit.
    var capacity: Int { unsafe (rawValue - MemoryLayout<ci_magazine>.size) / MemoryLayout<UInt64>.size }
  }

  /// An empty magazine in new memory; `nil` when there is none.
  init?(_ size: Size, capacity: Int) {
    var memory: UnsafeMutableRawPointer?
    guard unsafe posix_memalign(&memory, 128, size.rawValue) == 0, let block = unsafe memory else { return nil }
    unsafe pointer = block.bindMemory(to: ci_magazine.self, capacity: 1)
    unsafe pointer.initialize(to: ci_magazine(count: 0, capacity: UInt32(capacity), next: nil))
  }

  init(_ pointer: UnsafeMutablePointer<ci_magazine>) { unsafe self.pointer = unsafe pointer }

  static func == (left: Magazine, right: Magazine) -> Bool { unsafe left.pointer == right.pointer }

  func deallocate() { unsafe free(pointer) }

  /// The addresses that it holds; a moment's figure unless the caller owns it.
  var count: Int { unsafe Int(ci_magazine_count(pointer)) }

  /// How many it can hold; 0 for the one that stands for none.
  var capacity: Int {
    get { unsafe Int(pointer.pointee.capacity) }
    nonmutating set { unsafe pointer.pointee.capacity = UInt32(newValue) }
  }

  var isEmpty: Bool { count == 0 }
  var isFull: Bool { count == capacity }

  /// Which of the two its memory is.
  func size(_ sizeClass: SizeClass) -> Size { capacity > sizeClass.capacity(.small) ? .large : .small }

  /// The next in a list.
  var next: Magazine? {
    get { unsafe pointer.pointee.next.map { unsafe Magazine($0) } }
    nonmutating set { unsafe pointer.pointee.next = newValue.map { unsafe $0.pointer } }
  }

  @inline(__always)
  private var addresses: UnsafeMutablePointer<UInt64> {
    unsafe UnsafeMutableRawPointer(pointer + 1).assumingMemoryBound(to: UInt64.self)
  }
}

// MARK: - For the owner

extension Magazine {
  /// Takes the last address that lies in a range; ``Slot/none`` when none does.
  func pop(from lowest: UInt64, to highest: UInt64) -> UInt64 {
    var index = unsafe Int(pointer.pointee.count)
    let last = index - 1
    while index > 0 {
      index -= 1
      let address = unsafe addresses[index]
      if address < lowest || address > highest { continue }
      // The last one fills its place.
      unsafe addresses[index] = addresses[last]
      unsafe pointer.pointee.count = UInt32(truncatingIfNeeded: last)
      return address
    }
    return Slot.none
  }

  /// Takes the last address if it is at most `highest`; ``Slot/none`` when it is not, or there is none.
  @inline(__always)
  func popLast(_ highest: UInt64) -> UInt64 {
    let count = unsafe pointer.pointee.count
    guard count != 0 else { return Slot.none }
    let address = unsafe addresses[Int(truncatingIfNeeded: count &- 1)]
    guard address <= highest else { return Slot.none }
    unsafe pointer.pointee.count = count &- 1
    return address
  }

  /// Adds an address; `false` when it is full.
  @inline(__always)
  func push(_ address: UInt64) -> Bool {
    let count = unsafe pointer.pointee.count
    guard unsafe count != pointer.pointee.capacity else { return false }
    unsafe addresses[Int(truncatingIfNeeded: count)] = address
    unsafe pointer.pointee.count = count &+ 1
    return true
  }
}

// MARK: - Sizes of ranges

/// A size of range that is cached: so many granules, a power of two.
struct SizeClass: BitwiseCopyable {
  /// The exponent of the number of granules.
  let order: Int
  /// The length in bytes.
  let byteCount: UInt64

  init(order: Int, granule: PageSize) {
    self.order = order
    byteCount = granule.byteCount << UInt64(order)
  }

  /// The largest range that is cached: a large page. The kernel stops at 128 KiB, and collapses above.
  static let largestByteCount: UInt64 = 2 << 20

  /// How many sizes there are.
  static func count(_ granule: PageSize) -> Int {
    granule.byteCount > largestByteCount ? 0 : (largestByteCount >> UInt64(granule.shift)).trailingZeroBitCount + 1
  }

  /// How many addresses a magazine holds. The longer the ranges the fewer: a small magazine hides at most 1 MiB of address
  /// space, or two ranges, from those who find no room.
  func capacity(_ size: Magazine.Size) -> Int {
    let small = min(Magazine.Size.small.capacity, max(2, Int((1 << 20) / byteCount)))
    return size == .small ? small : min(Magazine.Size.large.capacity, small * 9)
  }
}
