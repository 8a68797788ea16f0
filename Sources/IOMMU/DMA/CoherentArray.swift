public import AddressSpace

/// Memory that the CPU and the device see at once: a descriptor ring, a queue, a status block.
///
/// Part of the domain's coherent arena, which is mapped while the domain is open; making and dropping an array costs no
/// system call. Elements are loaded and stored whole, never through a span: the device changes them at any time. Order
/// between elements, and between them and registers, is the driver's to state: ``Registers`` stores come after earlier
/// array stores; between two arrays use ``publish()`` and ``observe()``.
///
/// No element straddles a page, or a multiple of the boundary of the device's ``DMADomain/constraints``: if an array of more
/// than one page has a stride that is not a power of two, ``stride`` is rounded up to one. The corresponding kernel call is `dma_alloc_coherent`.
@safe
public struct CoherentArray<Element: BitwiseCopyable>: ~Copyable, @unchecked Sendable {
  private let core: Unmanaged<DomainCore>
  @usableFromInline let base: UnsafeMutableRawPointer
  /// The address of the first element as the device sees it.
  public let address: IOVA
  /// How many elements there are.
  public let count: Int
  /// Bytes from one element to the next.
  public let stride: Int

  /// Takes over a reference to `core` and memory of its coherent arena.
  init(core: Unmanaged<DomainCore>, base: UnsafeMutableRawPointer, address: IOVA, count: Int, stride: Int) {
    unsafe self.core = core
    unsafe self.base = base
    (self.address, self.count, self.stride) = (address, count, stride)
  }

  deinit { unsafe DomainCore.freeCoherent(core, base) }

  /// The whole array in bytes.
  public var byteCount: Int { count * stride }

  /// One element, loaded or stored whole.
  ///
  /// - Precondition: `index` is in `0..<count`.
  public subscript(index: Int) -> Element {
    @inlinable get {
      precondition(index >= 0 && index < count, "index outside of the CoherentArray")
      return unsafe base.load(fromByteOffset: index &* stride, as: Element.self)
    }
    @inlinable nonmutating set {
      precondition(index >= 0 && index < count, "index outside of the CoherentArray")
      unsafe base.storeBytes(of: newValue, toByteOffset: index &* stride, as: Element.self)
    }
  }

  /// The address of one element as the device sees it.
  ///
  /// - Precondition: `index` is in `0..<count`.
  public func address(of index: Int) -> IOVA {
    precondition(index >= 0 && index < count, "index outside of the CoherentArray")
    return IOVA(address.rawValue &+ UInt64(index &* stride))
  }

  /// Orders earlier stores to any array before later ones. The corresponding kernel macro is `dma_wmb`.
  public func publish() { dmaWriteBarrier() }

  /// Orders earlier loads from any array before later ones. The corresponding kernel macro is `dma_rmb`.
  public func observe() { dmaReadBarrier() }

  /// The memory itself, for what elements cannot say. The device may change it at any time.
  public var unsafeBaseAddress: UnsafeMutableRawPointer { unsafe base }

  /// The stride and alignment, in bytes, that keep elements of `natural` bytes off page ends and off multiples of a
  /// boundary; nil when an element is longer than the boundary. An element that is longer than a page keeps off the
  /// boundary alone.
  ///
  /// - Precondition: `natural * count` is at most a quarter of `Int.max`.
  static func layout(natural: Int, count: Int, page: Int, boundary: PageSize?) -> (stride: Int, alignment: Int)? {
    let border = boundary.flatMap { Int(exactly: $0.byteCount) } ?? .max
    if natural > border { return nil }
    let fence = natural > page ? border : min(page, border)
    let stride = natural * count > fence ? power(natural) : natural, whole = stride * count
    if whole <= page || (boundary != nil && whole <= border) { return (stride, max(power(whole), Limits.arenaUnit)) }
    return (stride, boundary == nil ? page : max(power(natural), page))
  }

  /// The smallest power of two that is not less.
  private static func power(_ value: Int) -> Int {
    value <= 1 ? 1 : 1 << (Int.bitWidth - (value - 1).leadingZeroBitCount)
  }
}
