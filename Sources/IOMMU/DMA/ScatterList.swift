/// Buffers that go to a device together, in order.
///
/// ```swift
/// var list = ScatterList()
/// list.append(try device.dma.buffer(byteCount: 64))                       // a header
/// list.append(try device.dma.buffer(byteCount: 9000))                     // what follows it
/// list.withBuffer(at: 0) { $0.store(UInt32(9000)) }
/// let mapped = try device.dma.map(list, .toDevice)                        // consumes it: now the device's
/// for segment in mapped.segments { print(segment.address, segment.byteCount) }
/// list = try mapped.unmap()                                               // the CPU's again
/// ```
///
/// ``DMADomain/map(_:_:)-(ScatterList,_)`` gives the whole list one contiguous IOVA range and consumes it; ``MappedList/unmap()`` gives it
/// back. Memory of the caller's may be in the list too. The corresponding kernel type is `struct sg_table`.
@safe
public struct ScatterList: ~Copyable, @unchecked Sendable {
  private var storage: UnsafeMutablePointer<MemoryPart>
  private var capacity: Int
  /// How many buffers are in the list, memory of the caller's included.
  public private(set) var count = 0

  /// An empty list. Room for `capacity` buffers is made at once; appending beyond it is amortised O(1).
  public init(capacity: Int = 8) {
    self.capacity = max(capacity, 1)
    unsafe storage = .allocate(capacity: self.capacity)
  }

  deinit {
    for index in 0..<count { unsafe storage[index].free() }
    unsafe storage.deallocate()
  }

  /// Adds a buffer at the end.
  public mutating func append(_ buffer: consuming DMABuffer) { append(MemoryPart(buffer)) }

  /// Adds memory that the caller owns, and keeps alive and at its place until the list is unmapped.
  ///
  /// Whole pages only, as in ``DMADomain/map(unsafe:_:at:widening:)``: mapping the list refuses memory that does not begin
  /// and end on a multiple of ``DMADomain/granule``. With `widening` the device reaches the other bytes of the first and
  /// the last page too, and the memory begins as far into its page for the device as it does for the CPU.
  ///
  /// - Precondition: `memory` is not empty.
  public mutating func append(unsafe memory: UnsafeRawBufferPointer, widening: Bool = false) {
    precondition(memory.count > 0, "no memory to append to a ScatterList")
    append(unsafe MemoryPart(unsafe: memory, isWidened: widening))
  }

  private mutating func append(_ part: MemoryPart) {
    if count == capacity { grow() }
    unsafe (storage + count).initialize(to: part)
    count += 1
  }

  /// Takes the last buffer out.
  ///
  /// - Precondition: The list is not empty, and its last part is no memory of the caller's.
  public mutating func removeLast() -> DMABuffer {
    precondition(count > 0, "removeLast from an empty ScatterList")
    let buffer = unsafe storage[count - 1].buffer()
    count -= 1
    return buffer
  }

  /// The length of one buffer in bytes.
  ///
  /// - Precondition: `index` is in `0..<count`.
  public func byteCount(at index: Int) -> Int { self[index].byteCount }

  /// Reads or changes one buffer in its place.
  ///
  /// - Precondition: `index` is in `0..<count`, and the part is no memory of the caller's.
  public mutating func withBuffer<Result: ~Copyable, Failure: Error>(
    at index: Int, _ body: (inout DMABuffer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    var buffer = self[index].buffer()
    do throws(Failure) {
      let result = try body(&buffer)
      unsafe storage[index] = MemoryPart(buffer)
      return result
    } catch {
      unsafe storage[index] = MemoryPart(buffer)
      throw error
    }
  }

  /// Whether every buffer is of one domain.
  func isAll(of core: DomainCore) -> Bool {
    let core = unsafe Unmanaged.passUnretained(core).toOpaque()
    return (0..<count).allSatisfy { unsafe storage[$0].core.map { unsafe $0.toOpaque() == core } ?? true }
  }

  /// One part, as ``place(_:at:)`` left it.
  subscript(index: Int) -> MemoryPart {
    precondition(index >= 0 && index < count, "index outside of the ScatterList")
    return unsafe storage[index]
  }

  /// Says where a part lies in the range that the list gets.
  mutating func place(_ index: Int, at placement: UInt64) { unsafe storage[index].placement = placement }

  private mutating func grow() {
    let larger = UnsafeMutablePointer<MemoryPart>.allocate(capacity: capacity * 2)
    unsafe larger.moveInitialize(from: storage, count: count)
    unsafe storage.deallocate()
    unsafe storage = larger
    capacity *= 2
  }

  /// A list without an owner: trivial, so that ``MappedList`` can hold it and be discarded.
  @safe
  struct Parts {
    fileprivate let storage: UnsafeMutablePointer<MemoryPart>
    fileprivate let capacity: Int
    let count: Int

    /// The parts in the order of the list, which is that of their placement.
    var base: UnsafePointer<MemoryPart> { unsafe UnsafePointer(storage) }

    /// All buffers are within a device's reach until ``FlushQueue/finished`` has reached a number.
    func keep(until number: UInt64) {
      for index in 0..<count { unsafe storage[index].reachableUntil = max(storage[index].reachableUntil, number) }
    }

    /// Notes under which number debug mode has a part.
    func setRecord(_ index: Int, _ id: UInt64) { unsafe storage[index].record = id }

    /// Frees some parts of a list that nobody owns any more.
    func free(_ indices: Range<Int>) { for index in indices { unsafe storage[index].free() } }
  }

  /// The parts, while the list lives.
  var parts: Parts { unsafe Parts(storage: storage, capacity: capacity, count: count) }

  /// Gives the list up to whoever makes one of its parts again.
  consuming func take() -> Parts {
    let parts = parts
    discard self
    return parts
  }

  /// Owns the parts again.
  init(_ parts: Parts) {
    unsafe storage = parts.storage
    capacity = parts.capacity
    count = parts.count
  }
}
