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
/// back. The corresponding kernel type is `struct sg_table`.
@safe
public struct ScatterList: ~Copyable, @unchecked Sendable {
  private var storage: UnsafeMutablePointer<DMABuffer>
  private var capacity: Int
  /// How many buffers are in the list.
  public private(set) var count = 0

  /// An empty list. Room for `capacity` buffers is made at once; appending beyond it is amortised O(1).
  public init(capacity: Int = 8) {
    self.capacity = max(capacity, 1)
    unsafe storage = .allocate(capacity: self.capacity)
  }

  deinit {
    unsafe storage.deinitialize(count: count)
    unsafe storage.deallocate()
  }

  /// Adds a buffer at the end.
  public mutating func append(_ buffer: consuming DMABuffer) {
    if count == capacity { grow() }
    unsafe (storage + count).initialize(to: buffer)
    count += 1
  }

  /// Takes the last buffer out.
  ///
  /// - Precondition: The list is not empty.
  public mutating func removeLast() -> DMABuffer {
    precondition(count > 0, "removeLast from an empty ScatterList")
    count -= 1
    return unsafe (storage + count).move()
  }

  /// The length of one buffer in bytes.
  ///
  /// - Precondition: `index` is in `0..<count`.
  public func byteCount(at index: Int) -> Int {
    precondition(index >= 0 && index < count, "index outside of the ScatterList")
    return unsafe storage[index].byteCount
  }

  /// Reads or changes one buffer in its place.
  ///
  /// - Precondition: `index` is in `0..<count`.
  public mutating func withBuffer<Result: ~Copyable, Failure: Error>(
    at index: Int, _ body: (inout DMABuffer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    precondition(index >= 0 && index < count, "index outside of the ScatterList")
    return try unsafe body(&storage[index])
  }

  /// Whether every buffer is of one domain.
  func isAll(of core: DomainCore) -> Bool {
    let core = unsafe Unmanaged.passUnretained(core).toOpaque()
    return (0..<count).allSatisfy { unsafe storage[$0].core.toOpaque() == core }
  }

  /// Where one buffer's memory begins.
  func base(at index: Int) -> UnsafeMutableRawPointer { unsafe storage[index].base }

  private mutating func grow() {
    let larger = UnsafeMutablePointer<DMABuffer>.allocate(capacity: capacity * 2)
    unsafe larger.moveInitialize(from: storage, count: count)
    unsafe storage.deallocate()
    unsafe storage = larger
    capacity *= 2
  }

  /// A list without an owner: trivial, so that ``MappedList`` can hold it and be discarded.
  @safe
  struct Parts {
    fileprivate let storage: UnsafeMutablePointer<DMABuffer>
    fileprivate let capacity: Int
    let count: Int

    func byteCount(at index: Int) -> Int { unsafe storage[index].byteCount }
  }

  /// Gives the list up to whoever makes one of its parts again.
  consuming func take() -> Parts {
    let parts = unsafe Parts(storage: storage, capacity: capacity, count: count)
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
