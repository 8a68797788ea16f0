// A view of the bytes does not outlive the CPU's turn.
import IOMMU

func spanAfterMap(_ device: Device) throws(DMAError) -> UInt8 {
  let buffer = try device.dma.buffer(byteCount: 64)
  let view = buffer.bytes
  let mapping = try device.dma.map(buffer, .fromDevice)
  let first = view.unsafeLoad(as: UInt8.self)
  _ = try mapping.unmap()
  return first
}
// expected-error: noncopyable 'buffer' cannot be consumed when captured by an escaping closure or borrowed by a non-Escapable type
